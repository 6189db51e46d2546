//! What the box has stored is damaged while it is down. It starts all the same, says what it has set aside, and delivers what checks out.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use selvedge_tests::ledger::{Book, Publisher};
use selvedge_tests::mqtt::Client;
use selvedge_tests::proxy::Fault;

use crate::drill::{Drill, Random, Scene};

/// Files below a folder that hold data: no locks, no sockets, nothing that was set aside before.
fn files(dir: &Path, segments: bool, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files(&path, segments, found);
        } else if kind.is_file() && name != "lock" && !name.contains("corrupt") && name.ends_with(".seg") == segments {
            found.push(path);
        }
    }
}

/// Damages a file in one of the ways of disks, cables and people; tells how.
fn damage(path: &Path, random: &mut Random) -> &'static str {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    match random.below(6) {
        0 => {
            file.set_len(random.below(len + 1)).unwrap();
            "cut"
        }
        1 => {
            file.set_len(0).unwrap();
            "emptied"
        }
        2 => {
            let block = vec![0; 512.min(len as usize)];
            file.write_all_at(&block, random.below(len) / 512 * 512).unwrap();
            "a block of zeros"
        }
        3 => {
            let noise: Vec<u8> = (0..random.below(4_096)).map(|_| random.below(256) as u8).collect();
            file.write_all_at(&noise, len).unwrap();
            "noise behind it"
        }
        _ => {
            for _ in 0..=random.below(8) {
                let (at, mut byte) = (random.below(len), [0]);
                if len > 0 && file.read_at(&mut byte, at).unwrap() == 1 {
                    file.write_all_at(&[byte[0] ^ (1 << random.below(8))], at).unwrap();
                }
            }
            "flipped bits"
        }
    }
}

/// Damages one file while the box is down, again and again.
fn damages(s: &mut Scene, segments: bool, rounds: u64) {
    let mut cloud = Client::connect(s.cloud.port, "operator", true).unwrap();
    cloud.subscribe("selvedge/#").unwrap();
    let (mut how, mut set_aside, mut at_risk) = (BTreeMap::<String, u64>::new(), 0, Vec::<Book>::new());
    for round in 0..rounds {
        // Most rounds without a link, so that something is there to damage.
        let linked = round % 5 == 4;
        s.proxy.set(if linked { Fault::None } else { Fault::Refuse });
        s.more(60);
        if linked {
            s.await_node("the backlog leaves", |node| node.ledger("upstream/cloud", "queued") < 200);
        }
        s.subject.kill();
        let mut found = Vec::new();
        files(&s.subject.data(), segments, &mut found);
        found.sort();
        let at = s.random.below(found.len() as u64) as usize;
        if let Some(path) = found.get(at) {
            if segments {
                let acknowledged: Book = s.publishers.iter().flat_map(Publisher::acknowledged).collect();
                at_risk.push(acknowledged.without(&s.sink().arrived()).into_iter().collect());
            }
            let done = if segments && s.random.below(6) == 0 {
                std::fs::remove_file(path).unwrap();
                "removed"
            } else {
                damage(path, &mut s.random)
            };
            *how.entry(done.to_owned()).or_default() += 1;
        }
        s.subject.up();
        if let Some(node) = s.subject.node() {
            set_aside += u64::from(node.log().iter().any(|line| line.contains("a damaged file is set aside")));
        }
    }
    s.proxy.set(Fault::None);
    s.await_node("the backlog leaves", |node| node.ledger("upstream/cloud", "queued") < 200);
    s.excused = at_risk.into_iter().flatten().collect();
    let counts: Vec<String> = how.into_iter().map(|(how, n)| format!("{how} {n}")).collect();
    s.notes.push(format!("{rounds} files damaged ({})", counts.join(", ")));
    let end = Instant::now() + Duration::from_secs(5);
    let (mut alarms, mut told) = (0, 0);
    while (set_aside > 0 && alarms == 0 || Instant::now() + Duration::from_secs(4) < end)
        && let Some((topic, payload)) = cloud.receive(end.saturating_duration_since(Instant::now())).unwrap()
    {
        alarms += u64::from(topic.ends_with("/alarm"));
        let stone: serde_json::Value = serde_json::from_slice(&payload).unwrap_or_default();
        told += u64::from(topic.ends_with("/tombstone") && stone["count"].as_u64() > Some(0));
    }
    s.must(set_aside == 0 || alarms > 0, || format!("{set_aside} starts set something aside, and nobody was told"));
    s.notes.push(format!("{set_aside} starts set something aside, {alarms} alarms came"));
    if segments {
        let acknowledged: Book = s.publishers.iter().flat_map(Publisher::acknowledged).collect();
        let lost: Vec<_> = acknowledged.without(&s.sink().arrived()).into_iter().filter(|(topic, n)| s.excused.of(topic).contains(*n)).collect();
        let (lost, given_up) = (lost.len(), s.given_up());
        s.notes.push(format!("{lost} messages lost with what held them, {given_up} counted as lost, {told} tombstones"));
    }
}

pub const DRILLS: &[Drill] = &[
    Drill {
        no_peer: Some("not tried: it keeps one file of another kind"),
        ..Drill::new(
            "damaged-books",
            "while the box is down a file beside the messages is damaged (cursors, manifest, SQLite, mode, node id), 30 times: no message may be missing",
            |s| damages(s, false, if s.soak { 300 } else { 30 }),
        )
    },
    Drill {
        no_peer: Some("not tried: it keeps one file of another kind"),
        world: |world| world.lanes = r##"[{name: all, match: ["#"], quota: 1MiB, onFull: reject}]"##,
        ..Drill::new(
            "damaged-segments",
            "while the box is down a file that holds messages is damaged, 30 times: the others arrive, in order, and the loss is told",
            |s| damages(s, true, if s.soak { 300 } else { 30 }),
        )
    },
];
