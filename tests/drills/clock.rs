//! The wall clock fails.

use selvedge_tests::proxy::Fault;

use crate::around::{Need, has_faketime, has_openssl};
use crate::drill::{Drill, Scene, Way};

/// Lanes whose records live for an hour.
const HOUR: &str = r##"[{name: all, match: ["#"], quota: 64MiB, ttl: 1h, onFull: reject}]"##;

const NEEDS: &[Need] = &[has_faketime, has_openssl];

fn nothing_expired(s: &mut Scene) {
    let lost = s.given_up();
    s.must(lost == 0, || format!("{lost} messages were given up, though their hour had not passed"));
}

pub const DRILLS: &[Drill] = &[
    Drill {
        way: Way::Tls,
        own_clock: true,
        needs: NEEDS,
        world: |world| world.lanes = HOUR,
        ..Drill::new(
            "clock-1970",
            "the box boots in 1970 with a backlog, link down; TLS must work all the same; then its clock is set, and it boots in 1970 again",
            |s| {
                s.proxy.set(Fault::Refuse);
                s.more(300);
                s.subject.kill();
                s.clock().set("@1970-01-01 00:00:07");
                s.subject.up();
                s.more(300);
                s.proxy.set(Fault::None);
                s.arrive(600);
                nothing_expired(s);
                s.proxy.set(Fault::Refuse);
                s.more(300);
                s.clock().set("+0");
                s.more(300);
                s.subject.kill();
                s.clock().set("@1970-01-01 00:00:07");
                s.subject.up();
                s.proxy.set(Fault::None);
                s.arrive(600);
                nothing_expired(s);
            },
        )
    },
    Drill {
        own_clock: true,
        needs: &[has_faketime],
        world: |world| world.lanes = HOUR,
        ..Drill::new(
            "clock-jumps",
            "the link is down and the wall clock jumps: 10 years forward, back, 10 years back, forward; records live for an hour",
            |s| {
                s.proxy.set(Fault::Refuse);
                for to in ["+10y", "+0", "-10y", "+0"] {
                    s.more(300);
                    s.clock().set(to);
                    s.last(1);
                    s.more(300);
                    nothing_expired(s);
                }
                s.proxy.set(Fault::None);
            },
        )
    },
];
