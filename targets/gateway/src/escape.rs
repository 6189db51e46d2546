//! `selvedge escape`: shows and steers the escape mode of the running node.

use std::process::ExitCode;
use std::time::Duration;

use selvedge::escape::Mode;
use selvedge::node::{BudgetView, EscapeOrder, NodeStatus};
use selvedge::units;
use serde_json::Value;

use crate::control;
use crate::flags::{Flags, UsageError};

const ACCEPTED: &str = "status, enter, leave, pin [MODE] --for TIME, report";

/// Asks the running node; exit code 1 when none answers or it refuses.
pub fn escape(flags: &Flags) -> Result<ExitCode, UsageError> {
    let words: Vec<&str> = flags.rest.iter().skip(1).map(String::as_str).collect();
    let question = match words.as_slice() {
        [] | ["status"] => "escape status".to_owned(),
        ["enter"] => "escape enter".to_owned(),
        ["leave"] => "escape leave".to_owned(),
        ["report"] => "escape report".to_owned(),
        ["pin", mode @ ..] if mode.len() <= 1 => {
            let lasting = flags.text("for").ok_or_else(|| UsageError("escape pin needs --for TIME, for example --for 2h".to_owned()))?;
            let lasting = units::parse_duration(lasting).map_err(|e| UsageError(format!("--for: {e}")))?;
            let mode = match mode.first() {
                None => "-",
                Some(word) => Mode::parse(word).ok_or_else(|| UsageError(format!("escape pin: found {word:?}; accepted are {}", modes())))?.as_str(),
            };
            format!("escape pin {mode} {}", lasting.as_secs())
        }
        other => return Err(UsageError(format!("escape: found {:?}; accepted are {ACCEPTED}", other.join(" ")))),
    };
    Ok(control::print(flags, &question, |answer| match words.first() {
        Some(&"report") => reports(answer),
        // The mode of this moment may still be the one that was asked for.
        Some(&"leave") => format!("{}\nno order of an operator holds any more: the mode follows the links and the disk", state(answer)),
        _ => state(answer),
    }))
}

fn modes() -> String {
    Mode::ALL.map(Mode::as_str).join(", ")
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn state(answer: &Value) -> String {
    let mut line = format!("mode {} since {}", text(answer, "mode"), text(answer, "since"));
    if let Some(cause) = answer["cause"].as_str() {
        line.push_str(&format!(", a link is not up: {cause}"));
    }
    if answer["fenced"] == true {
        line.push_str("\nall links are closed by an operator; `selvedge escape leave` opens them");
    }
    if let Some(seconds) = answer["pinnedSeconds"].as_u64() {
        line.push_str(&format!("\npinned by an operator for {seconds} s more; `selvedge escape leave` ends that"));
    }
    let names = |key: &str| answer[key].as_array().map_or_else(Vec::new, |all| all.iter().filter_map(Value::as_str).collect()).join(", ");
    let (held, shut) = (names("heldLanes"), names("shutLanes"));
    if answer["batchesLonger"] == true {
        line.push_str("\nbatched lanes are synced once a second");
    }
    if !held.is_empty() {
        line.push_str(&format!("\nlanes that grow no more: {held}"));
    }
    if !shut.is_empty() {
        line.push_str(&format!("\nlanes that take nothing: {shut}"));
    }
    for budget in answer["budgets"].as_array().into_iter().flatten() {
        line.push_str(&self::budget(budget));
    }
    line
}

/// A line on a budget: what is used of it, since when it is so, and what follows.
fn budget(budget: &Value) -> String {
    let bytes = |key: &str| units::size(budget[key].as_u64().unwrap_or(0));
    let upstream = budget["upstream"].as_str().map(|name| format!(" of {name}")).unwrap_or_default();
    let (kind, level) = (text(budget, "kind"), text(budget, "level"));
    let period = if text(budget, "per") == "day" { "today" } else { "this month" };
    let follows = match (kind, level) {
        ("flash", "spent") => ": batches are longer",
        ("data", "scarce" | "spent") => ": only strict lanes are sent",
        _ => "",
    };
    let since = text(budget, "since");
    format!("\nbudget {kind}{upstream}: {} of {} used {period}, {level} since {since}{follows}", bytes("usedBytes"), bytes("limitBytes"))
}

fn reports(answer: &Value) -> String {
    let all = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    if all.is_empty() {
        return "no outage since this data directory was made".to_owned();
    }
    let mut lines = Vec::new();
    for report in all {
        let ended = report["ended"].as_str().unwrap_or("now, it goes on");
        lines.push(format!("outage {}: {} to {ended} ({} s)", report["number"], text(report, "started"), report["seconds"]));
        for cause in report["causes"].as_array().into_iter().flatten() {
            lines.push(format!("  {} {}: {} {}", text(cause, "at"), text(cause, "upstream"), text(cause, "cause"), text(cause, "detail")));
        }
        for mode in report["modes"].as_array().into_iter().flatten() {
            lines.push(format!("  {} mode {}", text(mode, "at"), text(mode, "mode")));
        }
        for lane in report["lanes"].as_array().into_iter().flatten() {
            lines.push(format!(
                "  lane {} for {}: {} accepted, {} delivered, {} expired, {} evicted, {} aggregated, {} wait",
                text(lane, "lane"),
                text(lane, "destination"),
                lane["accepted"],
                lane["delivered"],
                lane["expired"],
                lane["evicted"],
                lane["aggregated"],
                lane["queued"]
            ));
        }
    }
    lines.join("\n")
}

/// Answers the questions that `escape` asks over the control socket.
pub async fn answer(status: &NodeStatus, words: &[&str]) -> Result<Value, String> {
    let escape = status.escape().ok_or("this node stores nothing and has no upstream: it has no modes")?;
    let order = match words {
        ["status"] => {
            let mut state = escape.to_json();
            state["budgets"] = escape.budgets().iter().map(BudgetView::to_json).collect();
            return Ok(state);
        }
        ["enter"] => EscapeOrder::Enter,
        ["leave"] => EscapeOrder::Leave,
        ["report"] => EscapeOrder::Reports,
        ["pin", mode, seconds] => {
            let mode = if *mode == "-" { Some(escape.mode()) } else { Mode::parse(mode) };
            let seconds = seconds.parse().ok();
            let (Some(mode), Some(seconds)) = (mode, seconds) else {
                return Err(format!("accepted is escape pin MODE SECONDS; modes are {}", modes()));
            };
            EscapeOrder::Pin(mode, Duration::from_secs(seconds))
        }
        _ => return Err(format!("accepted are escape {ACCEPTED}")),
    };
    escape.order(order).await
}
