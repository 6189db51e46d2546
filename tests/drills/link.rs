//! The link fails.

use selvedge_tests::interposer::Manner;
use selvedge_tests::names::Answer;
use selvedge_tests::proxy::Fault;

use crate::around::{Valid, has_openssl, may_change_names, may_lose_packets, passwords};
use crate::drill::{Drill, Way};

pub const DRILLS: &[Drill] = &[
    Drill::new("refuse", "the link is closed, then refused, for 5 s", |s| s.outage(Fault::Refuse, 5)),
    Drill::new("reset", "every connection is reset for 5 s", |s| s.outage(Fault::Reset, 5)),
    Drill::new("fin", "the peer ends every connection in an orderly way (FIN) and reads on, for 5 s", |s| s.outage(Fault::Finish, 5)),
    Drill::new("half-open", "the peer vanishes without a word, 3 times: nothing comes back, new connections work", |s| {
        for _ in 0..3 {
            s.proxy.abandon();
            s.arrive(600);
        }
    }),
    Drill::new("black-hole", "the link takes everything and gives nothing for 8 s", |s| s.outage(Fault::Swallow, 8)),
    Drill::new("stall", "the link takes nothing and stays open for 8 s", |s| s.outage(Fault::Stall, 8)),
    Drill::new("frozen-broker", "the broker is stopped (SIGSTOP) for 8 s", |s| {
        s.cloud.signal("STOP");
        s.last(8);
        s.cloud.signal("CONT");
    }),
    Drill::new("delay", "everything takes 2 s longer in each direction, for 8 s", |s| s.outage(Fault::Delay, 8)),
    Drill {
        world: |world| world.stall = "20s",
        ..Drill::new("delay-10s", "everything takes 5 s longer in each direction, a round trip 10 s, for 25 s", |s| {
            s.proxy.set(Fault::LongDelay);
            s.last(6);
            let before = s.sink().count();
            s.last(19);
            let after = s.sink().count();
            s.must(after > before, || "nothing got through in 19 s of a link that takes 10 s for a round trip".to_owned());
            s.notes.push(format!("{} arrived meanwhile", after - before));
            s.proxy.set(Fault::None);
        })
    },
    Drill::new("throttle", "1 KiB/s in each direction for 12 s", |s| s.outage(Fault::Throttle, 12)),
    Drill {
        way: Way::Cable,
        needs: &[may_lose_packets],
        ..Drill::new("loss-30", "30 % of all packets are lost in each direction, for 10 s", |s| {
            s.cable().lose(30).unwrap();
            s.last(10);
            s.cable().lose(0).unwrap();
        })
    },
    Drill {
        way: Way::Cable,
        needs: &[may_lose_packets],
        ..Drill::new("loss-99", "99 % of all packets are lost in each direction, for 12 s", |s| {
            s.cable().lose(99).unwrap();
            s.last(12);
            s.cable().lose(0).unwrap();
        })
    },
    Drill::new("flap", "the link breaks every 0.3 s, 20 times", |s| {
        for _ in 0..if s.soak { 200 } else { 20 } {
            s.proxy.set(Fault::Refuse);
            std::thread::sleep(std::time::Duration::from_millis(150));
            s.proxy.set(Fault::None);
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
    }),
    Drill {
        way: Way::Name,
        needs: &[may_change_names],
        ..Drill::new("dns-dead", "the link is closed and its name cannot be looked up: no answer for 7 s, then failures for 3 s", |s| {
            s.names().set(Answer::Nothing);
            s.proxy.cut();
            s.last(7);
            s.names().set(Answer::Failure);
            s.await_cause("dns");
            s.last(3);
            let (from, asked) = (s.total(), s.names().asked());
            s.must(from > 300, || "devices are not served while a name is looked up".to_owned());
            s.notes.push(format!("{asked} questions"));
            s.names().set(Answer::Address);
        })
    },
    Drill {
        way: Way::Tls,
        needs: &[has_openssl],
        ..Drill::new(
            "certificate-expired",
            "the broker's certificate is one that has expired, for 5 s; kill -9 of the box, so that no TLS session is resumed",
            |s| {
                s.certificate(Valid::Past);
                s.kill();
                s.await_cause("tls-time");
                s.last(5);
                s.certificate(Valid::Now);
            },
        )
    },
    Drill {
        way: Way::Tls,
        needs: &[has_openssl],
        ..Drill::new(
            "certificate-early",
            "the broker's certificate is not yet valid, for 5 s; kill -9 of the box, so that no TLS session is resumed",
            |s| {
                s.certificate(Valid::Future);
                s.kill();
                s.await_cause("tls-time");
                s.last(5);
                s.certificate(Valid::Now);
            },
        )
    },
    Drill::new("credentials", "the account is revoked for 5 s", |s| {
        passwords(s.folder.path(), "another");
        s.cloud.reload();
        s.proxy.cut();
        s.await_cause("auth");
        s.last(5);
        passwords(s.folder.path(), "secret");
        s.cloud.reload();
    }),
    Drill {
        way: Way::Interposer,
        no_peer: Some("over MQTT 3.1.1 there is no such answer, and as a bridge over MQTT 5 it did not come up in this arrangement"),
        ..Drill::new("quota", "the broker refuses every message with \"quota exceeded\" (MQTT 5, 0x97) for 5 s", |s| {
            s.interposer().set(Manner::Quota);
            s.last(5);
            let refused = s.interposer().refused();
            s.must(refused > 0, || "nothing was refused".to_owned());
            s.notes.push(format!("{refused} refusals"));
            s.interposer().set(Manner::Honest);
        })
    },
    Drill {
        way: Way::Interposer,
        ..Drill::new(
            "forgetful",
            "the broker acknowledges for 3 s what it then forgets, with its sessions: the promise ends at its acknowledgement",
            |s| {
                s.interposer().set(Manner::Forgetful);
                s.last(3);
                s.interposer().cut();
                s.interposer().set(Manner::Honest);
                s.excused = s.interposer().forgotten();
                let n = s.excused.len();
                s.must(n > 0, || "nothing was forgotten".to_owned());
                s.notes.push(format!("{n} forgotten by the broker"));
            },
        )
    },
];
