//! The disk fails.

use std::time::Duration;

use selvedge_tests::proxy::Fault;

use crate::around::{has_compiler, may_mount, may_mount_image};
use crate::drill::{Drill, Scene, Store};

/// Nothing is acknowledged while nothing can be kept. What was on its way when the disk failed may still be answered, so the count
/// begins a moment later.
fn nothing_is_acknowledged(s: &mut Scene, seconds: u64) {
    std::thread::sleep(Duration::from_millis(500));
    let before = s.total();
    s.last(seconds);
    let after = s.total();
    s.must(after == before, || format!("{} messages were acknowledged that could not be kept", after - before));
}

pub const DRILLS: &[Drill] = &[
    Drill {
        store: Store::Tmpfs(24),
        needs: &[may_mount],
        ..Drill::new("disk-full", "the link is down and the file system full (24 MiB tmpfs) for 5 s", |s| {
            s.proxy.set(Fault::Refuse);
            s.more(300);
            let filler = s.disk().fill();
            s.last(5);
            std::fs::remove_file(&filler).unwrap();
            s.proxy.set(Fault::None);
        })
    },
    Drill {
        store: Store::Ext4(48),
        needs: &[may_mount_image],
        ..Drill::new(
            "disk-error",
            "the link is down; the file system (ext4) meets a defect and becomes read-only for 5 s; then kill -9, fsck, a start",
            |s| {
                s.proxy.set(Fault::Refuse);
                s.more(600);
                s.disk().fail();
                nothing_is_acknowledged(s, 5);
                s.subject.kill();
                s.disk().repair();
                s.proxy.set(Fault::None);
                s.subject.up();
            },
        )
    },
    Drill {
        shim: true,
        needs: &[has_compiler],
        ..Drill::new(
            "read-only",
            "the link is down and the data folder read-only (EROFS by a preloaded library) for 5 s, twice; the box goes on",
            |s| {
                for _ in 0..2 {
                    s.proxy.set(Fault::Refuse);
                    s.more(300);
                    s.shim().set('r');
                    nothing_is_acknowledged(s, 5);
                    s.shim().set('-');
                    s.more(300);
                    s.proxy.set(Fault::None);
                }
            },
        )
    },
    Drill {
        shim: true,
        needs: &[has_compiler],
        ..Drill::new(
            "sync-fails",
            "the link is down and every fsync and fdatasync fails (EIO by a preloaded library) for 5 s, twice; kill -9 in the second",
            |s| {
                for round in 0..2 {
                    s.proxy.set(Fault::Refuse);
                    s.more(300);
                    s.shim().set('e');
                    nothing_is_acknowledged(s, 5);
                    if round == 1 {
                        s.subject.kill();
                    }
                    s.shim().set('-');
                    s.subject.up();
                    s.more(300);
                    s.proxy.set(Fault::None);
                }
            },
        )
    },
    Drill {
        shim: true,
        needs: &[has_compiler],
        ..Drill::new("slow-disk", "every fsync and fdatasync takes 50 ms longer, for 8 s, with kill -9 at the end", |s| {
            s.shim().set('s');
            s.last(8);
            s.kill();
            s.more(100);
            s.shim().set('-');
        })
    },
    Drill {
        shim: true,
        needs: &[has_compiler],
        ..Drill::new("crawling-disk", "every fsync and fdatasync takes 5 s longer, for 16 s", |s| {
            s.shim().set('S');
            let before = s.total();
            s.last(16);
            let after = s.total();
            s.must(after > before, || "nothing was acknowledged within 16 s".to_owned());
            s.notes.push(format!("{} acknowledged meanwhile", after - before));
            s.shim().set('-');
        })
    },
    Drill {
        store: Store::Ext4(32),
        needs: &[may_mount_image],
        ..Drill::new(
            "power-cut",
            "power is cut, 5 times, with and without a link: all that the file system (ext4) has not handed to its device is gone; the device keeps what it was handed",
            |s| {
                for round in 0..if s.soak { 50 } else { 5 } {
                    s.proxy.set(if round % 2 == 0 { Fault::Refuse } else { Fault::None });
                    let ms = 100 + s.random.below(700);
                    std::thread::sleep(Duration::from_millis(ms));
                    s.more(50);
                    if let Some(pid) = s.subject.pid() {
                        crate::around::command(&["kill", "-STOP", &pid.to_string()]).unwrap();
                    }
                    // What it had answered by now is counted, whatever the publishers have read of it.
                    let picture = s.disk().picture();
                    s.subject.kill();
                    s.disk().restore(&picture);
                    s.subject.up();
                    s.more(50);
                }
                s.proxy.set(Fault::None);
            },
        )
    },
];
