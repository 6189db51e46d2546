use std::sync::{Arc, Mutex};

use super::*;
use crate::component::{MemoryTables, Tables as _};
use crate::time::{ManualClock, Timestamp};

#[derive(Default)]
struct Collected(Mutex<Vec<(u64, String)>>);

impl LiveSink for Collected {
    fn deliver(&self, token: u64, message: &Arc<Message>) {
        self.0.lock().unwrap().push((token, message.topic.clone()));
    }
}

async fn hub(clock: Arc<ManualClock>, tables: &MemoryTables) -> Hub {
    let outbox = Outbox::simulated(&["critical", "default"], clock.clone());
    let rules = vec![LaneRule { lane: "critical".into(), filters: vec!["alarm/#".into()], weight: 4, strict: false }];
    Hub::new(outbox, rules, tables.open("retained").await.unwrap(), clock).await.unwrap()
}

async fn read(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let mut run = LaneRun::default();
    let mut topics = Vec::new();
    while topics.len() < count {
        if consumer.next_run(100, 1 << 20, &mut run).unwrap() == 0 {
            consumer.readable().await;
        }
        topics.extend(run.run.iter().map(|r| r.topic().to_owned()));
    }
    topics
}

#[tokio::test]
async fn a_message_goes_to_live_and_durable_subscribers_that_its_topic_matches() {
    let hub = hub(Arc::default(), &MemoryTables::default()).await;
    let up = hub.destination("upstream/cloud").unwrap();
    hub.bind(up, "local", "sensors/#").unwrap();
    hub.bind(up, "local", "alarm/#").unwrap();
    let seen = Arc::new(Collected::default());
    let live = hub.subscribe("local", "+/a", 7, seen.clone()).unwrap();

    let accepted = hub.accept("local", &[Inbound::new("sensors/a", b"1"), Inbound::new("alarm/a", b"2"), Inbound::new("other/x", b"3")]);
    assert_eq!((accepted.taken, accepted.refused.is_none()), (3, true));
    hub.settled(accepted.receipt).await.unwrap();
    assert_eq!(*seen.0.lock().unwrap(), [(7, "sensors/a".to_owned()), (7, "alarm/a".to_owned())]);
    let mut consumer = hub.consumer(up);
    assert_eq!(consumer.queued(), 2);
    let mut topics = read(&mut consumer, 2).await;
    topics.sort();
    assert_eq!(topics, ["alarm/a", "sensors/a"]);

    drop(live);
    let _ = hub.accept("local", &[Inbound::new("sensors/a", b"4")]);
    assert_eq!(seen.0.lock().unwrap().len(), 2, "a dropped subscription gets nothing");
    hub.unbind(up, "local", "sensors/#");
    let after = hub.accept("local", &[Inbound::new("sensors/a", b"5")]);
    assert!(after.last.is_none(), "nobody durable wants it, so it is not stored");
}

#[tokio::test]
async fn a_bad_topic_stops_the_batch_where_it_stands() {
    let hub = hub(Arc::default(), &MemoryTables::default()).await;
    let accepted = hub.accept("local", &[Inbound::new("ok", b""), Inbound::new("bad/#", b""), Inbound::new("never", b"")]);
    assert_eq!(accepted.taken, 1, "what stands before it is taken");
    assert!(matches!(accepted.refused, Some(AcceptError::Topic { .. })));
}

#[tokio::test]
async fn retained_messages_survive_a_restart_expire_and_are_cleared_by_an_empty_payload() {
    let clock = Arc::new(ManualClock::at(Timestamp(1_000_000)));
    let tables = MemoryTables::default();
    let first = hub(clock.clone(), &tables).await;
    let keep = |topic: &'static str, payload: &'static [u8], ttl| Inbound { retain: true, ttl_seconds: ttl, ..Inbound::new(topic, payload) };
    for message in [keep("a/1", b"x", None), keep("a/2", &[0, 255], Some(10)), keep("b", b"y", None), keep("b", b"", None)] {
        first.accept_one("local", &message).await.unwrap();
    }
    let again = hub(clock.clone(), &tables).await;
    let topics = |h: &Hub, f: &str| h.retained("local", f).iter().map(|m| m.topic.clone()).collect::<Vec<_>>();
    assert_eq!(topics(&again, "#"), ["a/1", "a/2"]);
    assert_eq!(again.retained("local", "a/2")[0].payload.as_ref(), [0, 255]);
    clock.advance(std::time::Duration::from_secs(10));
    assert_eq!(topics(&again, "a/+"), ["a/1"]);
    assert!(topics(&again, "b").is_empty() && again.retained("cloud", "#").is_empty());
}
