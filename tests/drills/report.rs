//! What is printed, and `docs/drills.md`.

use std::fmt::Write as _;

use crate::drill::{Drill, Outcome};

/// What became of a drill.
pub enum Result {
    /// It ran.
    Ran(Box<Outcome>),
    /// It broke off.
    Broke(String),
    /// It cannot run here, or not with this box.
    NotRun(String),
}

impl Result {
    /// Whether selvedge held.
    pub fn holds(&self) -> bool {
        match self {
            Self::Ran(outcome) => outcome.holds(),
            Self::Broke(_) => false,
            Self::NotRun(_) => true,
        }
    }
}

/// A row without its name.
pub fn cells(result: &Result) -> String {
    let outcome = match result {
        Result::Ran(outcome) => outcome,
        Result::Broke(why) => return format!("broke off: {} | | | | | |", first_line(why)),
        Result::NotRun(why) if why.starts_with("not tried") => return format!("{why} | | | | | |"),
        Result::NotRun(why) => return format!("not run: {why} | | | | | |"),
    };
    let v = &outcome.verdict;
    let recovery = outcome.recovery.map_or_else(|| "never".to_owned(), |r| format!("{:.1} s", r.as_secs_f64()));
    let mib = |kib: u64| kib as f64 / 1024.0;
    let (resident, peak) = (mib(outcome.resident), mib(outcome.peak));
    format!(
        "{} | {} | {} | {} | {recovery} | {resident:.1} / {peak:.1} | {}",
        v.acknowledged,
        v.missing.len(),
        v.disordered.len(),
        v.repeated,
        outcome.notes.join("; ")
    )
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// What does not hold, a line each.
pub fn problems(result: &Result) -> Vec<String> {
    match result {
        Result::Ran(outcome) => {
            let v = &outcome.verdict;
            let mut lines = outcome.problems.clone();
            if !v.missing.is_empty() {
                lines.push(format!("missing: {:?}", &v.missing[..v.missing.len().min(5)]));
            }
            if !v.disordered.is_empty() {
                lines.push(format!("out of order: {:?}", &v.disordered[..v.disordered.len().min(5)]));
            }
            if outcome.recovery.is_none() {
                lines.push("what had been acknowledged did not arrive in time".to_owned());
            }
            lines
        }
        Result::Broke(why) => vec![why.clone()],
        Result::NotRun(_) => Vec::new(),
    }
}

/// The page for people.
pub fn document(rows: &[(&Drill, Result, Result)]) -> String {
    let mut text = "# Drills\n\nMade by `cargo run -p selvedge-tests --bin drills -- --write`; `tests/run drills` runs the same with selvedge alone and fails when a message that was acknowledged is missing or \
         comes after a later one of its topic, a line of the books does not balance, more than 8 MiB of its own were resident (without the program's own pages), or something else that the drill is about does not hold. Three devices publish 900 messages of 200 bytes a second \
         (where nothing else is said) with QoS 1 through the box; a sink at a real mosquitto counts what arrives. The peer is mosquitto as a bridge, persistent, saving on every change. Recovery: from the end of the fault until everything \
         that had been acknowledged by then has arrived. Four drills run at a time on two processors, so times are not those of an idle machine, and selvedge is built for debugging unless `SELVEDGE_BINARY` names another.\n\n\
         How the faults are made: links break in a proxy; packets are lost in a network of the broker's own (a pair of virtual cards, dropped by nftables at random as they come and go); broken disks are a full tmpfs, ext4 on an image, or a \
         preloaded library in front of the real calls; names are asked of a server that the drill runs; certificates and clocks are shifted with faketime.\n"
        .to_owned();
    for (title, pick) in [("selvedge", 0), ("mosquitto bridge", 1)] {
        let _ = write!(
            text,
            "\n## {title}\n\n| drill | what fails | acknowledged | missing | out of order | repeated | recovery | own MiB resident, at the end / at most | seen |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        );
        for (drill, ours, theirs) in rows {
            let _ = writeln!(text, "| {} | {} | {} |", drill.name, drill.what, cells(if pick == 0 { ours } else { theirs }));
        }
    }
    text
}
