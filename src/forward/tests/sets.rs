//! Two forwarders of one set over scripted links.

use super::*;
use crate::outbox::LedgerRow;

/// A rig whose records of `sets` are stored for two upstreams together.
struct Pair {
    rig: Rig,
    destination: DestinationId,
    configs: Vec<ForwarderConfig>,
}

impl Pair {
    async fn new() -> Self {
        Self::of(Rig::new().await)
    }

    fn of(rig: Rig) -> Self {
        let destination = rig.hub.destination("upstream/a|b").unwrap();
        rig.hub.bind(destination, "sets", "#").unwrap();
        let set = rig.hub.set(destination, 2);
        let route = RouteSpec { from: "sets".into(), topics: vec!["#".into()], prefix: "site/".into(), ..RouteSpec::default() };
        let config = |(member, name): (usize, &str)| {
            let own = rig.hub.destination(&format!("upstream/{name}")).unwrap();
            let share = SetShare { name: "a|b".into(), set: set.clone(), member, routes: vec![route.clone()] };
            ForwarderConfig { seed: Some(member as u64 + 1), sets: vec![share], ..ForwarderConfig::new(name, own) }
        };
        let configs = ["a", "b"].into_iter().enumerate().map(config).collect();
        Self { rig, destination, configs }
    }

    fn start(&self, at: usize, uplink: &Scripted) -> (ForwarderStatus, tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        self.rig.start(self.configs[at].clone(), uplink)
    }

    fn row(&self) -> LedgerRow {
        let row = self.rig.hub.outbox().ledger_of(self.destination).remove(0);
        assert_eq!(row.accepted, row.delivered + row.expired + row.evicted + row.aggregated + row.queued, "{row:?}");
        row
    }

    fn first(&self, name: &str) -> u64 {
        let line = format!("selvedge_forward_first_total{{upstream=\"{name}\"}} ");
        self.rig.metrics.render().lines().filter_map(|l| l.strip_prefix(&line)).map(|n| n.parse::<u64>().unwrap()).sum()
    }
}

fn refused() -> LinkFailure {
    LinkFailure::new(LinkCause::Tcp, "connection refused")
}

#[tokio::test(start_paused = true)]
async fn a_site_that_says_nothing_holds_nothing_up_and_is_sent_nothing_that_the_other_one_has() {
    let pair = Pair::new().await;
    pair.rig.accept("sets", "t", 0..3_000);
    let (silent, quick) = (Scripted::new(|_| None), Scripted::accepting());
    let (one, _stop_one, _one) = pair.start(0, &silent);
    until(|| silent.peer().sent.len() == 1).await;
    let (two, _stop_two, _two) = pair.start(1, &quick);
    until(|| pair.row().queued == 0).await;
    let took = quick.peer().sent.last().unwrap().at;
    assert!(took < Duration::from_secs(2), "3,000 records took {took:?}");
    assert_eq!((quick.payloads(), two.state()), (numbers(0..3_000), LinkState::Up));
    assert!(quick.peer().sent.iter().all(|s| s.topic == "site/t" && !s.repeated));
    until(|| one.snapshot().cause == Some(LinkCause::Silent)).await;
    until(|| one.state() == LinkState::Up).await;
    assert_eq!(silent.payloads(), numbers(0..1), "what the other one has is not sent again");
    assert_eq!((one.snapshot().queued, pair.first("a"), pair.first("b")), (0, 0, 3_000));
    silent.peer().answer = Box::new(|_| Some(UplinkOutcome::Accepted));
    pair.rig.accept("sets", "t", 3_000..3_010);
    until(|| silent.payloads().len() == 11 && quick.payloads().len() == 3_010).await;
    let ids = |peer: &Scripted| peer.peer().sent.iter().rev().take(10).map(|s| s.marks[0].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&silent), ids(&quick), "the same ids at both");
}

#[tokio::test(start_paused = true)]
async fn links_that_break_by_turns_lose_nothing_and_finish_each_record_once() {
    let pair = Pair::new().await;
    pair.rig.accept("sets", "t", 0..500);
    let mut handles = Vec::new();
    let peers: Vec<Scripted> = (0..2u64)
        .map(|at| {
            // One answer in seven never comes; then the link breaks.
            let mut n = at * 3;
            let peer = Scripted::new(move |_| {
                n += 1;
                (!n.is_multiple_of(7) || n > 2_000).then_some(UplinkOutcome::Accepted)
            });
            peer.peer().receive_maximum = 20;
            (0..60).for_each(|_| peer.peer().breaks.push_back(LinkFailure::new(LinkCause::Tcp, "reset")));
            peer
        })
        .collect();
    for (at, peer) in peers.iter().enumerate() {
        handles.push(pair.start(at, peer));
    }
    for n in 0..50 {
        pair.rig.accept("sets", "t", 500 + n * 10..510 + n * 10);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    until(|| pair.row().queued == 0).await;
    let row = pair.row();
    assert_eq!((row.accepted, row.delivered), (1_000, 1_000));
    until(|| pair.first("a") + pair.first("b") == 1_000).await;
    let mut union = std::collections::BTreeSet::new();
    for peer in &peers {
        let sent = peer.peer().sent.clone();
        union.extend(sent.iter().map(|s| s.payload.parse::<u32>().unwrap()));
        assert!(peer.peer().connected_at.len() > 3, "it broke");
        let mut seen = std::collections::BTreeSet::new();
        for s in &sent {
            assert_eq!(s.repeated, !seen.insert(s.payload.clone()), "what is sent again says so, and nothing else does: {s:?}");
        }
    }
    assert_eq!(union, (0..1_000).collect());
    assert_eq!(pair.configs[0].sets[0].set.counts(), Default::default());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_breaks_the_link_of_one_site_is_left_to_the_other_one() {
    let pair = Pair::new().await;
    pair.rig.keep_writing();
    pair.rig.accept("sets", "t", 0..20);
    let (touchy, away) = (Scripted::accepting(), Scripted::accepting());
    touchy.peer().poison = Some("7");
    (0..200).for_each(|_| away.peer().connects.push_back(refused()));
    let (one, _stop_one, _one) = pair.start(0, &touchy);
    let (_two, _stop_two, _two_task) = pair.start(1, &away);
    until(|| pair.row().queued == 1).await;
    assert_eq!((one.snapshot().refused, pair.rig.hub.quarantined(0, 9).await.unwrap().len()), (1, 0), "it waits for the one that is away");
    away.peer().connects.clear();
    until(|| pair.row().queued == 0).await;
    assert_eq!((away.payloads(), pair.row().evicted), (vec!["7".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn what_both_sites_refuse_is_set_aside_under_the_name_of_the_set_and_retried_for_it() {
    let pair = Pair::new().await;
    pair.rig.keep_writing();
    let open = Arc::new(AtomicBool::new(false));
    let picky = || {
        let open = open.clone();
        Scripted::new(move |sent| {
            let no = sent.payload.ends_with('3') && !open.load(Ordering::Relaxed);
            Some(if no { UplinkOutcome::Refused("not authorized".into()) } else { UplinkOutcome::Accepted })
        })
    };
    let peers = [picky(), picky()];
    let started: Vec<_> = peers.iter().enumerate().map(|(at, peer)| pair.start(at, peer)).collect();
    pair.rig.accept("sets", "t", 0..20);
    until(|| pair.row().queued == 0).await;
    let aside = pair.rig.hub.quarantined(0, 9).await.unwrap();
    let facts: Vec<_> = aside.iter().map(|r| (r["payload"].as_str().unwrap(), r["upstream"].as_str().unwrap())).collect();
    assert_eq!((facts, pair.row().evicted), (vec![("3", "a|b"), ("13", "a|b")], 2));
    until(|| started.iter().all(|(status, _, _)| status.snapshot().refused == 2 && status.snapshot().queued == 0)).await;
    open.store(true, Ordering::Relaxed);
    assert_eq!(pair.rig.hub.release(None, Release::Retry).await.unwrap(), 2);
    until(|| pair.row().queued == 0).await;
    assert_eq!((pair.row().accepted, pair.row().delivered), (22, 20));
}

#[tokio::test(start_paused = true)]
async fn a_site_that_refuses_everything_is_fenced_and_the_records_wait_for_the_other_one() {
    let pair = Pair::new().await;
    pair.rig.keep_writing();
    pair.rig.accept("sets", "t", 0..300);
    let closed = Scripted::new(|_| Some(UplinkOutcome::Refused("no".into())));
    let away = Scripted::accepting();
    (0..200).for_each(|_| away.peer().connects.push_back(refused()));
    let (one, _stop_one, _one) = pair.rig.start(ForwarderConfig { poison_bytes: 2_000, ..pair.configs[0].clone() }, &closed);
    let (_two, _stop_two, _two_task) = pair.start(1, &away);
    until(|| one.state() == LinkState::Fenced).await;
    let asked = closed.payloads().len();
    assert!(asked < 60, "{asked}");
    until(|| closed.peer().connected_at.len() > 4).await;
    let payloads = closed.payloads();
    let again: std::collections::BTreeSet<&String> = payloads.iter().collect();
    assert_eq!(again.len(), payloads.len(), "what it has refused is not sent to it again");
    assert_eq!((pair.row().queued, pair.row().evicted), (300, 0));
    away.peer().connects.clear();
    until(|| pair.row().queued == 0).await;
    assert_eq!((away.payloads(), pair.row().delivered), (numbers(0..300), 300));
}
