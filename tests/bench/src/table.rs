//! The rows as a table: medians, their spread, and ratios.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use crate::measure::Row;
use crate::peer::{self, Peer};

const BEGIN: &str = "<!-- measured: begin (written by tests/bench/run --write) -->";
const END: &str = "<!-- measured: end -->";

/// Median, least and most.
fn spread(readings: &[f64]) -> Option<(f64, f64, f64)> {
    let mut sorted = readings.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    Some((sorted[sorted.len() / 2], first, last))
}

fn cell(row: &Row, peer: Peer) -> String {
    let Some((median, least, most)) = row.readings.get(&peer).and_then(|r| spread(r)) else { return "-".to_owned() };
    let digits = row.digits;
    if format!("{least:.digits$}") == format!("{most:.digits$}") {
        return format!("{median:.digits$}");
    }
    format!("{median:.digits$} ({least:.digits$} to {most:.digits$})")
}

/// How many times mosquitto's reading this peer's is.
fn ratio(row: &Row, peer: Peer) -> String {
    let median = |p: Peer| row.readings.get(&p).and_then(|r| spread(r)).map(|s| s.0);
    match (median(peer), median(Peer::Mosquitto)) {
        (Some(ours), Some(theirs)) if theirs > 0.0 => format!("{:.2}", ours / theirs),
        _ => "-".to_owned(),
    }
}

/// Titles, then one line per row.
fn lines(rows: &[Row], peers: &[Peer]) -> Vec<Vec<String>> {
    let ours: Vec<Peer> = peers.iter().copied().filter(|p| matches!(p, Peer::Durable | Peer::Memory)).collect();
    let mut head = vec!["median (least to most)".to_owned()];
    head.extend(peers.iter().map(|p| p.title().to_owned()));
    head.extend(ours.iter().map(|p| format!("{} / mosquitto", p.title())));
    let mut all = vec![head];
    for row in rows {
        let mut line = vec![row.what.to_owned()];
        line.extend(peers.iter().map(|p| cell(row, *p)));
        line.extend(ours.iter().map(|p| ratio(row, *p)));
        all.push(line);
    }
    all
}

/// For a terminal.
pub fn plain(rows: &[Row], peers: &[Peer]) -> String {
    let all = lines(rows, peers);
    let widths: Vec<usize> = (0..all[0].len()).map(|i| all.iter().map(|l| l[i].chars().count()).max().unwrap_or(0)).collect();
    let mut out = String::new();
    for line in all {
        let cells: Vec<String> = line.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        out.push_str(cells.join("  ").trim_end());
        out.push('\n');
    }
    out
}

fn markdown(rows: &[Row], peers: &[Peer]) -> String {
    let mut out = String::new();
    for (i, line) in lines(rows, peers).into_iter().enumerate() {
        out.push_str(&format!("| {} |\n", line.join(" | ")));
        if i == 0 {
            out.push_str(&format!("|{}\n", " --- |".repeat(line.len())));
        }
    }
    out
}

/// The machine and the versions, as one sentence per line.
pub fn conditions(quick: bool) -> io::Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus.lines().find_map(|l| l.strip_prefix("model name")).map_or("unknown", |l| l.trim_start_matches([' ', '\t', ':']));
    let count = cpus.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let text = Command::new(peer::mosquitto()?).arg("-h").output()?.stdout;
    let text = String::from_utf8_lossy(&text);
    let mosquitto = text.lines().next().unwrap_or("mosquitto");
    let rounds = if quick { "one quick round" } else { "five rounds, the peers in turn" };
    Ok(format!("{count} processors ({model}), Linux {}, {mosquitto}; {rounds}.", kernel.trim()))
}

/// Puts the table between the page's marks.
///
/// # Errors
/// When the page is not there or has no marks.
pub fn into_page(path: &Path, rows: &[Row], peers: &[Peer], conditions: &str) -> io::Result<()> {
    let page = fs::read_to_string(path)?;
    let new =
        replace(&page, &format!("{conditions}\n\n{}", markdown(rows, peers))).ok_or_else(|| io::Error::other(format!("no {BEGIN} ... {END}")))?;
    fs::write(path, new)
}

fn replace(page: &str, content: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{content}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_row_shows_medians_their_spread_and_the_ratio() {
        let readings = BTreeMap::from([(Peer::Durable, vec![3.0, 1.0, 2.0]), (Peer::Mosquitto, vec![4.0])]);
        let text = markdown(&[Row { what: "x (s)", digits: 1, readings }], &[Peer::Durable, Peer::Mosquitto]);
        assert_eq!(text.lines().nth(2), Some("| x (s) | 2.0 (1.0 to 3.0) | 4.0 | 0.50 |"));
    }

    #[test]
    fn the_page_around_the_table_stays() {
        let page = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        assert_eq!(replace(&page, "new\n"), Some(format!("a\n{BEGIN}\nnew\n{END}\nb\n")));
        assert_eq!(replace("no marks", "new"), None);
    }
}
