//! `selvedge queue`: what waits, and what upstreams refused.

use std::process::ExitCode;

use selvedge::hub::Release;
use selvedge::node::NodeStatus;
use serde_json::{Value, json};

use crate::control;
use crate::flags::{Flags, UsageError};
use crate::say::say;

const ACCEPTED: &str = "ls, show [NUMBER], export, retry NUMBER...|all, purge NUMBER...|all, drop DESTINATION";
/// Records asked for at a time.
const PAGE: usize = 2_000;

/// Asks the running node; exit code 1 when none answers or it refuses.
pub fn queue(flags: &Flags) -> Result<ExitCode, UsageError> {
    let words: Vec<&str> = flags.rest.iter().skip(1).map(String::as_str).collect();
    match words.as_slice() {
        [] | ["ls"] => Ok(control::print(flags, "status", list)),
        ["show"] => Ok(pages(flags, 0, None, |record| say!("{}", line(record)))),
        ["show", number] => {
            let number = parse(number)?;
            Ok(pages(flags, number.saturating_sub(1), Some(number), |record| say!("{record:#}")))
        }
        ["export"] => Ok(pages(flags, 0, None, |record| say!("{record}"))),
        [order @ ("retry" | "purge"), numbers @ ..] if !numbers.is_empty() => {
            if *numbers != ["all"] {
                for number in numbers {
                    parse(number)?;
                }
            }
            let done = if *order == "retry" { "stored for their upstream again" } else { "dropped" };
            Ok(control::print(flags, &format!("queue {order} {}", numbers.join(" ")), |answer| {
                format!("{} records {done}", answer["released"].as_u64().unwrap_or_default())
            }))
        }
        ["drop", destination] => Ok(control::print(flags, &format!("queue drop {destination}"), |answer| {
            format!("{} records of {destination} dropped; its lines are no longer in the books", answer["dropped"].as_u64().unwrap_or_default())
        })),
        other => Err(UsageError(format!("queue: found {:?}; accepted are {ACCEPTED}", other.join(" ")))),
    }
}

fn parse(number: &str) -> Result<u64, UsageError> {
    number.parse().map_err(|_| UsageError(format!("queue: found {number:?}; accepted is a number that `selvedge queue show` prints, or all")))
}

/// Shows records that are set aside, page by page; of one number when it is given.
fn pages(flags: &Flags, after: u64, only: Option<u64>, show: impl Fn(&Value)) -> ExitCode {
    let (mut after, mut shown) = (after, 0);
    loop {
        let page = match control::ask_flags(flags, &format!("queue page {after} {}", if only.is_some() { 1 } else { PAGE })) {
            Ok(page) => page,
            Err(code) => return code,
        };
        let records = page.as_array().map(Vec::as_slice).unwrap_or_default();
        for record in records.iter().filter(|r| only.is_none_or(|n| r["number"] == n)) {
            show(record);
            shown += 1;
        }
        match records.last().and_then(|r| r["number"].as_u64()) {
            Some(last) if only.is_none() => after = last,
            _ => break,
        }
    }
    if let Some(number) = only.filter(|_| shown == 0) {
        eprintln!("selvedge: no record {number} is set aside; `selvedge queue show` lists them");
        return ExitCode::FAILURE;
    }
    if shown == 0 {
        eprintln!("nothing is set aside");
    }
    ExitCode::SUCCESS
}

fn line(record: &Value) -> String {
    let text = |key: &str| record[key].as_str().unwrap_or("?");
    format!(
        "{:>6}  {}  {}  {} ({} bytes)  {}",
        record["number"].as_u64().unwrap_or_default(),
        text("setAside"),
        text("upstream"),
        text("topic"),
        record["bytes"],
        text("reason")
    )
}

/// A table of lanes and destinations.
fn list(status: &Value) -> String {
    let header = ["lane", "destination", "accepted", "delivered", "expired", "evicted", "aggregated", "queued"];
    let mut rows: Vec<Vec<String>> = vec![header.iter().map(|h| (*h).to_owned()).collect()];
    for row in status["ledger"].as_array().into_iter().flatten() {
        let cell = |key: &&str| row[*key].as_str().map_or_else(|| row[*key].to_string(), str::to_owned);
        // Lanes that never had anything for a destination say nothing.
        if row["accepted"] != 0 {
            rows.push(header.iter().map(cell).collect());
        }
    }
    let widths: Vec<usize> = (0..header.len()).map(|c| rows.iter().map(|r| r[c].len()).max().unwrap_or_default()).collect();
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let padded = if column < 2 { format!("{cell:<width$}  ") } else { format!("{cell:>width$}  ") };
            text.push_str(&padded);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    for lane in status["lanes"].as_array().into_iter().flatten() {
        let number = |key: &str| lane[key].as_u64().unwrap_or_default();
        if number("diskBytes") > 0 {
            text.push_str(&format!(
                "\nlane {}: {} of {} KiB on disk",
                lane["name"].as_str().unwrap_or("?"),
                number("diskBytes") >> 10,
                number("quotaBytes") >> 10
            ));
        }
        if lane["passthrough"] == true {
            text.push_str(&format!(
                "\nlane {}: stores nothing (passthrough); {} records are on their way",
                lane["name"].as_str().unwrap_or("?"),
                number("passing")
            ));
        }
        if let Some(why) = lane["failure"].as_str() {
            // A lane that has no file yet has had no line.
            if number("diskBytes") == 0 {
                text.push_str(&format!("\nlane {}", lane["name"].as_str().unwrap_or("?")));
            }
            text.push_str(&format!("; IT CANNOT BE WRITTEN and takes nothing until it can: {why}"));
        }
        if number("lockedSegments") > 0 {
            text.push_str(&format!(
                "; {} of its {} segments are sealed with a key that is not among atRest.keys: they wait for it, and so does what came later",
                number("lockedSegments"),
                number("segments")
            ));
        }
    }
    for upstream in status["upstreams"].as_array().into_iter().flatten() {
        let word = |key: &str| upstream[key].as_str().unwrap_or_default();
        let why: Vec<&str> = [word("cause"), word("detail")].into_iter().filter(|w| !w.is_empty()).collect();
        text.push_str(&format!("\nupstream {}: {}", word("name"), word("state")));
        if word("state") != "up" && !why.is_empty() {
            text.push_str(&format!(" ({}); `selvedge doctor` says what to do", why.join(": ")));
        }
    }
    for set in status["sets"].as_array().into_iter().flatten() {
        let members: Vec<&str> = set["members"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let name = set["name"].as_str().unwrap_or_default();
        text.push_str(&format!("\nset {name}: done when the first of {} has it; {} wait", members.join(", "), set["queued"]));
    }
    for orphan in status["orphans"].as_array().into_iter().flatten() {
        let (destination, queued) = (orphan["destination"].as_str().unwrap_or("?"), &orphan["queued"]);
        text.push_str(&format!(
            "\n{destination}: {queued} records wait for an upstream that there is not; give a component that name again, or `selvedge queue drop {destination}`"
        ));
    }
    text.trim_end().to_owned()
}

/// Answers the questions that `queue` asks over the control socket.
pub async fn answer(status: &NodeStatus, words: &[&str]) -> Result<Value, String> {
    let hub = status.hub().ok_or("this node stores nothing")?;
    match words {
        ["page", after, most] => match (after.parse(), most.parse()) {
            (Ok(after), Ok(most)) => hub.quarantined(after, most).await.map(Value::Array).map_err(|e| e.to_string()),
            _ => Err("accepted is queue page AFTER MOST, two numbers".to_owned()),
        },
        [order @ ("retry" | "purge"), numbers @ ..] => {
            let how = if *order == "retry" { Release::Retry } else { Release::Purge };
            let chosen: Option<Vec<u64>> = match numbers {
                ["all"] => None,
                _ => Some(
                    numbers.iter().map(|n| n.parse()).collect::<Result<_, _>>().map_err(|_| format!("accepted is queue {order} NUMBER...|all"))?,
                ),
            };
            let released = hub.release(chosen.as_deref(), how).await.map_err(|e| e.to_string())?;
            Ok(json!({"released": released}))
        }
        ["drop", destination] => status.drop_orphan(destination).map(|dropped| json!({"dropped": dropped})).map_err(|e| format!("queue drop: {e}")),
        _ => Err("accepted are queue page, queue retry, queue purge, queue drop".to_owned()),
    }
}
