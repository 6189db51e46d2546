use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use coap_lite::CoapOption;
use proptest::prelude::*;
use selvedge::message::Inbound;
use selvedge::telemetry::Metrics;

use super::*;
use crate::packet::{add_uint, decode, encode, uint};
use crate::settings::{EXCHANGE_LIFETIME, PROCESSING_DELAY, UNPROVEN_BLOCK_BYTES};

const GET: u8 = 1;
const POST: u8 = 2;

fn random(seed: u64) -> Random {
    let mut state = seed;
    Box::new(move || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    })
}

fn peer(n: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], n))
}

fn at(ms: u64) -> Monotonic {
    Monotonic(Duration::from_millis(ms))
}

struct Bench {
    endpoint: Endpoint,
    metrics: Metrics,
    now: Monotonic,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let metrics = Metrics::new();
        Self { endpoint: Endpoint::new(settings, random(1), CoapMetrics::new(&metrics, "t")), metrics, now: at(0) }
    }

    fn give(&mut self, from: SocketAddr, packet: &Packet) -> Vec<Action> {
        self.give_bytes(from, &encode(packet))
    }

    fn give_bytes(&mut self, from: SocketAddr, bytes: &[u8]) -> Vec<Action> {
        let mut out = Vec::new();
        self.endpoint.datagram(self.now, from, bytes, false, &mut out);
        out
    }

    fn answer(&mut self, id: RequestId, answer: Answer) -> Vec<Action> {
        let mut out = Vec::new();
        self.endpoint.answer(self.now, id, answer, &mut out);
        out
    }

    fn notify(&mut self, topic: &str, payload: &[u8], qos: u8) -> Vec<Action> {
        let mut out = Vec::new();
        let message = Arc::new(Message::from(&Inbound { qos, ..Inbound::new(topic, payload) }));
        self.endpoint.notify(self.now, &message, &mut out);
        out
    }

    /// Lets time pass, deadline by deadline.
    fn pass(&mut self, by: Duration) -> Vec<Action> {
        let end = self.now.plus(by);
        let mut out = Vec::new();
        while let Some(next) = self.endpoint.next_deadline().filter(|d| *d <= end) {
            self.now = self.now.max(next);
            self.endpoint.tick(self.now, &mut out);
        }
        self.now = end;
        out
    }

    fn count(&self, line: &str) -> u64 {
        let text = self.metrics.render();
        text.lines().find_map(|l| l.strip_prefix(line)).map_or(0, |rest| rest.rsplit(' ').next().unwrap().parse().unwrap())
    }
}

fn request(kind: MessageType, method: u8, id: u16, path: &[&str], payload: &[u8]) -> Packet {
    let mut packet = packet::message(kind, id, Code(method), &id.to_be_bytes());
    for segment in path {
        packet.add_option(CoapOption::UriPath, segment.as_bytes().to_vec());
    }
    packet.payload = payload.to_vec();
    packet
}

fn post(id: u16, topic: &str) -> Packet {
    request(MessageType::Confirmable, POST, id, &topic.split('/').collect::<Vec<_>>(), b"payload")
}

fn observe(id: u16, topic: &str, value: u32) -> Packet {
    let mut packet = request(MessageType::Confirmable, GET, id, &[topic], b"");
    add_uint(&mut packet, CoapOption::Observe, value);
    packet
}

fn asked(actions: &[Action]) -> (RequestId, Request) {
    match actions.last() {
        Some(Action::Request(id, request)) => (*id, request.clone()),
        other => panic!("no request but {other:?}"),
    }
}

fn sent(actions: &[Action]) -> Vec<Packet> {
    actions
        .iter()
        .filter_map(|a| match a {
            Action::Send(_, bytes) => Some(decode(bytes).unwrap()),
            _ => None,
        })
        .collect()
}

fn only(actions: &[Action]) -> Packet {
    let mut sent = sent(actions);
    assert_eq!(sent.len(), 1, "{actions:?}");
    sent.remove(0)
}

fn code(packet: &Packet) -> String {
    Code(packet.header.code.into()).to_string()
}

fn number(packet: &Packet, option: CoapOption) -> Option<u32> {
    packet.get_first_option(option).map(|v| uint(v).unwrap())
}

fn ack(id: u16) -> Vec<u8> {
    packet::empty_ack(id).to_vec()
}

#[test]
fn an_answer_in_time_travels_in_the_acknowledgement_and_repeats_get_the_same_bytes() {
    let mut bench = Bench::new(Settings::default());
    let (id, what) = asked(&bench.give(peer(1), &post(7, "a/b")));
    let Request::Publish(publish) = what else { panic!("{what:?}") };
    assert_eq!((publish.topic.as_str(), publish.payload.as_ref()), ("a/b", &b"payload"[..]));
    assert!(bench.give(peer(1), &post(7, "a/b")).is_empty(), "a repeat before the answer waits with the first");
    let first = bench.answer(id, Answer::of(Code::CHANGED));
    let response = only(&first);
    assert_eq!((response.header.get_type(), response.header.message_id, code(&response)), (MessageType::Acknowledgement, 7, "2.04".into()));
    assert_eq!(response.get_token(), 7u16.to_be_bytes());
    bench.pass(EXCHANGE_LIFETIME - Duration::from_millis(1));
    assert_eq!(bench.give(peer(1), &post(7, "a/b")), first);
    assert_eq!(bench.count("selvedge_coap_duplicates_total"), 2);
    assert_eq!(bench.count("selvedge_coap_requests_total{listener=\"t\",method=\"post\",code=\"2.04\"}"), 1);
    // The same id from another peer is another message, and so is the same one after its lifetime.
    asked(&bench.give(peer(2), &post(7, "a/b")));
    bench.pass(EXCHANGE_LIFETIME);
    asked(&bench.give(peer(1), &post(7, "a/b")));
}

#[test]
fn a_late_answer_comes_apart_and_is_repeated_until_acknowledged() {
    let mut bench = Bench::new(Settings::default());
    let (id, _) = asked(&bench.give(peer(1), &post(7, "a")));
    let empty = only(&bench.pass(PROCESSING_DELAY));
    assert_eq!((empty.header.get_type(), code(&empty), empty.header.message_id), (MessageType::Acknowledgement, "0.00".into(), 7));
    assert_eq!(only(&bench.give(peer(1), &post(7, "a"))), empty, "a repeat is acknowledged again");
    let response = only(&bench.answer(id, Answer::of(Code::CHANGED)));
    assert_eq!((response.header.get_type(), code(&response)), (MessageType::Confirmable, "2.04".into()));
    assert_eq!(response.get_token(), 7u16.to_be_bytes());
    assert_eq!(only(&bench.give(peer(1), &post(7, "a"))), empty);
    let again = sent(&bench.pass(Duration::from_secs(10)));
    assert_eq!(again.len(), 2, "after 2-3 and 4-6 more seconds");
    assert!(again.iter().all(|p| *p == response));
    bench.give_bytes(peer(1), &ack(response.header.message_id));
    assert!(bench.pass(Duration::from_secs(200)).is_empty());
    assert_eq!(bench.count("selvedge_coap_retransmissions_total"), 2);
}

#[test]
fn retransmission_gives_up_after_four_repeats_and_one_message_is_in_flight_at_a_time() {
    let mut bench = Bench::new(Settings::default());
    let ids: Vec<RequestId> = (0..3).map(|n| asked(&bench.give(peer(1), &post(n, "a"))).0).collect();
    bench.pass(PROCESSING_DELAY);
    let mut first = Vec::new();
    for id in ids {
        first.extend(sent(&bench.answer(id, Answer::of(Code::CHANGED))));
    }
    assert_eq!(first.len(), 1, "NSTART is 1");
    let later = sent(&bench.pass(Duration::from_secs(93)));
    let repeats = later.iter().filter(|p| **p == first[0]).count();
    assert_eq!(repeats, 4);
    assert!(later.iter().any(|p| *p != first[0]), "the next one has its turn");
    assert_eq!(bench.count("selvedge_coap_dropped_total{listener=\"t\",reason=\"timed_out\"}"), 1);
}

#[test]
fn a_message_that_is_not_confirmable_is_answered_in_kind_and_taken_once() {
    let mut bench = Bench::new(Settings::default());
    let non = request(MessageType::NonConfirmable, POST, 9, &["a"], b"x");
    let (id, _) = asked(&bench.give(peer(1), &non));
    assert!(bench.pass(Duration::from_secs(5)).is_empty(), "nothing to acknowledge");
    let response = only(&bench.answer(id, Answer::of(Code::CHANGED)));
    assert_eq!((response.header.get_type(), code(&response)), (MessageType::NonConfirmable, "2.04".into()));
    assert!(bench.give(peer(1), &non).is_empty());
}

#[test]
fn what_is_no_request_is_reset_or_ignored() {
    let mut bench = Bench::new(Settings::default());
    for (bytes, reset) in [
        (&[0x40, 0, 0, 7][..], true),    // ping
        (&[0x50, 0, 0, 7], false),       // empty, not confirmable
        (&[0x40, 0x45, 0, 7], true),     // a response to nothing
        (&[0x50, 0x45, 0, 7], false),    // the same, not confirmable
        (&[0x60, 0, 0, 7], false),       // an acknowledgement of nothing
        (&[0x70, 0, 0, 7], false),       // a reset of nothing
        (&[0x40, 0x20, 0, 7], true),     // reserved class
        (&[0x80, 1, 0, 7], false),       // version 2
        (&[0x40, 1, 0, 7, 0xFF], true),  // marker without payload
        (&[0x50, 1, 0, 7, 0xFF], false), // the same, not confirmable
    ] {
        let actions = bench.give_bytes(peer(1), bytes);
        let expected: &[u8] = &[0x70, 0, 0, 7];
        match reset {
            true => assert_eq!(actions, [Action::Send(peer(1), Bytes::copy_from_slice(expected))], "{bytes:02x?}"),
            false => assert!(actions.is_empty(), "{bytes:02x?}: {actions:?}"),
        }
    }
    assert_eq!(bench.endpoint.peers.held(), (0, 0, 0), "none of them costs memory");
}

#[test]
fn options_that_must_be_understood_are_refused_by_kind_of_message() {
    let mut bench = Bench::new(Settings::default());
    let mut odd = post(1, "a");
    odd.add_option(CoapOption::Unknown(65_001), vec![1]);
    assert_eq!(code(&only(&bench.give(peer(1), &odd))), "4.02");
    let mut odd = request(MessageType::NonConfirmable, POST, 2, &["a"], b"");
    odd.add_option(CoapOption::Unknown(65_001), vec![1]);
    assert_eq!(only(&bench.give(peer(1), &odd)).header.get_type(), MessageType::Reset);
    assert_eq!(code(&only(&bench.give(peer(1), &request(MessageType::Confirmable, 4, 3, &["a"], b"")))), "4.05");
}

#[test]
fn bodies_come_in_blocks_and_only_the_last_is_published() {
    let mut bench = Bench::new(Settings { body_bytes: 5_000, ..Settings::default() });
    let body: Vec<u8> = (0..4_500u32).map(|n| n as u8).collect();
    let block = |number: usize, id: u16| {
        let mut packet = request(MessageType::Confirmable, POST, id, &["a"], &body[number * 1_024..body.len().min((number + 1) * 1_024)]);
        add_uint(&mut packet, CoapOption::Block1, Block { number: number as u32, more: number < 4, szx: 6 }.value());
        packet
    };
    for n in 0..4 {
        let response = only(&bench.give(peer(1), &block(n, n as u16)));
        assert_eq!((code(&response), number(&response, CoapOption::Block1)), ("2.31".into(), Some((n as u32) << 4 | 8 | 6)));
    }
    assert_eq!(sent(&bench.give(peer(1), &block(3, 3))).len(), 1, "a repeated block is answered from memory");
    let (id, what) = asked(&bench.give(peer(1), &block(4, 4)));
    let Request::Publish(publish) = what else { panic!("{what:?}") };
    assert_eq!(publish.payload, body);
    let response = only(&bench.answer(id, Answer::of(Code::CHANGED)));
    assert_eq!(number(&response, CoapOption::Block1), Some(4 << 4 | 6));
    assert_eq!(code(&only(&bench.give(peer(1), &block(2, 5)))), "4.08");

    let mut large = request(MessageType::Confirmable, POST, 6, &["a"], &[0; 1_024]);
    add_uint(&mut large, CoapOption::Block1, 8 | 6);
    add_uint(&mut large, CoapOption::Size1, 5_001);
    let response = only(&bench.give(peer(1), &large));
    assert_eq!((code(&response), number(&response, CoapOption::Size1)), ("4.13".into(), Some(5_000)));
    let response = only(&bench.give(peer(1), &request(MessageType::Confirmable, POST, 7, &["a"], &[0; 5_001])));
    assert_eq!((code(&response), number(&response, CoapOption::Size1)), ("4.13".into(), Some(5_000)));
    let mut out = Vec::new();
    bench.endpoint.datagram(bench.now, peer(1), &encode(&post(8, "a")), true, &mut out);
    assert_eq!(code(&only(&out)), "4.13", "longer than a datagram may be");
}

#[test]
fn an_unproven_peer_gets_small_blocks_and_a_proven_one_large_ones() {
    let mut bench = Bench::new(Settings::default());
    let body = Bytes::from(vec![7; 3_000]);
    let full = Answer { payload: body.clone(), content_format: Some(42), ..Answer::of(Code::CONTENT) };
    let read = |bench: &mut Bench, id: u16, block: Option<u32>| {
        let mut get = request(MessageType::Confirmable, GET, id, &["a"], b"");
        if let Some(block) = block {
            add_uint(&mut get, CoapOption::Block2, block);
        }
        let (request, _) = asked(&bench.give(peer(1), &get));
        only(&bench.answer(request, full.clone()))
    };
    let response = read(&mut bench, 1, None);
    assert_eq!(response.payload.len(), UNPROVEN_BLOCK_BYTES);
    assert_eq!(number(&response, CoapOption::Block2), Some(8 | 3));
    assert_eq!(number(&response, CoapOption::Size2), Some(3_000));
    // It observes; the first notification must be acknowledged before anything else comes.
    let (id, _) = asked(&bench.give(peer(1), &observe(2, "a", 0)));
    let registered = only(&bench.answer(id, Answer::of(Code::NOT_FOUND)));
    assert_eq!((code(&registered), number(&registered, CoapOption::Observe).is_some()), ("2.05".into(), true));
    let notification = only(&bench.notify("a", b"1", 0));
    assert_eq!(notification.header.get_type(), MessageType::Confirmable);
    bench.give_bytes(peer(1), &ack(notification.header.message_id));
    let response = read(&mut bench, 3, None);
    assert_eq!((response.payload.len(), number(&response, CoapOption::Block2)), (1_024, Some(8 | 6)));
    let mut got = response.payload.clone();
    let tag = response.get_first_option(CoapOption::ETag).cloned();
    for n in 1..3u32 {
        let response = read(&mut bench, 3 + n as u16, Some(n << 4 | 6));
        assert_eq!(response.get_first_option(CoapOption::ETag).cloned(), tag);
        got.extend(response.payload);
    }
    assert_eq!(got, body);
    assert_eq!(code(&read(&mut bench, 9, Some(3 << 4 | 6))), "4.00");
}

#[test]
fn observers_are_told_until_they_say_no_or_are_silent() {
    let mut bench = Bench::new(Settings::default());
    let actions = bench.give(peer(1), &observe(1, "a", 0));
    assert_eq!(actions[0], Action::Watch("a".into()));
    let (id, _) = asked(&actions);
    assert!(bench.notify("a", b"0", 0).is_empty(), "not before the first answer");
    let first = only(&bench.answer(id, Answer::message(&Message::from(&Inbound::new("a", b"kept")))));
    assert_eq!((code(&first), first.payload.as_slice()), ("2.05".into(), &b"kept"[..]));
    let mut last = number(&first, CoapOption::Observe).unwrap();

    let proof = only(&bench.notify("a", b"1", 0));
    bench.give_bytes(peer(1), &ack(proof.header.message_id));
    for n in 0..20u8 {
        let notification = only(&bench.notify("a", &[n], 0));
        let sequence = number(&notification, CoapOption::Observe).unwrap();
        assert!(sequence > last);
        last = sequence;
        assert_eq!(notification.get_token(), 1u16.to_be_bytes());
        let confirmable = notification.header.get_type() == MessageType::Confirmable;
        assert_eq!(confirmable, (n + 1) % 8 == 0, "{n}");
        if confirmable {
            bench.give_bytes(peer(1), &ack(notification.header.message_id));
        }
    }
    // A message of quality 1 is confirmable; a newer one takes the place of one that waits.
    let in_flight = only(&bench.notify("a", b"x", 1));
    assert!(bench.notify("a", b"y", 1).is_empty() && bench.notify("a", b"z", 1).is_empty());
    let newest = only(&bench.give_bytes(peer(1), &ack(in_flight.header.message_id)));
    assert_eq!(newest.payload, b"z");
    assert_eq!(bench.count("selvedge_coap_dropped_total{listener=\"t\",reason=\"replaced\"}"), 1);
    // A reset of one of the last notifications ends it.
    bench.give_bytes(peer(1), &ack(newest.header.message_id));
    let notification = only(&bench.notify("a", b"q", 0));
    assert_eq!(bench.give_bytes(peer(1), &packet::reset(notification.header.message_id)), [Action::Unwatch("a".into())]);

    // So does a GET with Observe 1, and so does silence.
    let (id, _) = asked(&bench.give(peer(1), &observe(2, "a", 0)));
    bench.answer(id, Answer::of(Code::NOT_FOUND));
    let actions = bench.give(peer(1), &{
        let mut p = observe(3, "a", 1);
        p.set_token(2u16.to_be_bytes().to_vec());
        p
    });
    assert_eq!(actions[0], Action::Unwatch("a".into()));
    bench.answer(asked(&actions).0, Answer::of(Code::NOT_FOUND));
    let (id, _) = asked(&bench.give(peer(2), &observe(4, "a", 0)));
    bench.answer(id, Answer::of(Code::NOT_FOUND));
    bench.notify("a", b"?", 1);
    assert_eq!(bench.pass(Duration::from_secs(100)).last(), Some(&Action::Unwatch("a".into())));
    bench.pass(Duration::from_secs(600));
    assert_eq!(bench.endpoint.peers.held(), (0, 0, 0), "in the end nobody is remembered");
    assert_eq!(bench.endpoint.next_deadline(), None);
}

#[test]
fn the_later_blocks_of_a_notification_can_be_read() {
    let mut bench = Bench::new(Settings::default());
    let (id, _) = asked(&bench.give(peer(1), &observe(1, "a", 0)));
    bench.answer(id, Answer::of(Code::NOT_FOUND));
    let body: Vec<u8> = (0..300u32).map(|n| n as u8).collect();
    let notification = only(&bench.notify("a", &body, 0));
    assert_eq!(number(&notification, CoapOption::Block2), Some(8 | 3));
    let mut got = notification.payload;
    for n in 1..3u32 {
        let mut get = request(MessageType::Confirmable, GET, 10 + n as u16, &["a"], b"");
        add_uint(&mut get, CoapOption::Block2, n << 4 | 3);
        let (id, _) = asked(&bench.give(peer(1), &get));
        got.extend(only(&bench.answer(id, Answer::of(Code::NOT_FOUND))).payload);
    }
    assert_eq!(got, body);
}

#[test]
fn a_representation_that_is_not_wanted_is_not_sent() {
    let mut bench = Bench::new(Settings::default());
    let mut get = request(MessageType::Confirmable, GET, 1, &["a"], b"");
    add_uint(&mut get, CoapOption::Accept, 60);
    let (id, _) = asked(&bench.give(peer(1), &get));
    let answer = Answer { content_format: Some(50), payload: Bytes::from_static(b"{}"), ..Answer::of(Code::CONTENT) };
    let response = only(&bench.answer(id, answer));
    assert_eq!((code(&response), response.payload.len()), ("4.06".into(), 0));
}

#[test]
fn every_bound_has_its_answer_and_others_are_served_on() {
    let settings = Settings { peers: 4, window: 2, pending: 5, exchanges: 16, exchange_bytes: 200, ..Settings::default() };
    let mut bench = Bench::new(settings);
    for n in 0..2 {
        asked(&bench.give(peer(1), &post(n, "a")));
    }
    let refused = only(&bench.give(peer(1), &post(2, "a")));
    assert_eq!((code(&refused), number(&refused, CoapOption::MaxAge)), ("5.03".into(), Some(1)), "the window is used up");
    assert!(bench.give(peer(1), &request(MessageType::NonConfirmable, POST, 3, &["a"], b"")).is_empty());
    let mut waiting = Vec::new();
    for n in 2..5 {
        waiting.push(asked(&bench.give(peer(n), &post(0, "a"))).0);
    }
    assert_eq!(code(&only(&bench.give(peer(5), &post(0, "a")))), "5.03", "four peers, and none is idle");
    for id in waiting {
        bench.answer(id, Answer::of(Code::CHANGED));
    }
    asked(&bench.give(peer(5), &post(0, "a"))); // takes the place of an idle one

    // A flood of answered requests of one peer forgets its own exchanges, not those of others.
    for n in 0..100 {
        let (id, _) = asked(&bench.give(peer(3), &post(1_000 + n, "a")));
        bench.answer(id, Answer::of(Code::CHANGED));
    }
    let (peers, exchanges, bytes) = bench.endpoint.peers.held();
    assert!(peers <= 4 && exchanges <= 16 && bytes <= 200, "{peers} {exchanges} {bytes}");
    assert_eq!(sent(&bench.give(peer(4), &post(0, "a"))).len(), 1, "the duplicate of another peer is still known");
    assert!(bench.count("selvedge_coap_dropped_total{listener=\"t\",reason=\"exchange_forgotten\"}") > 80);
}

#[test]
fn a_stopping_endpoint_takes_nothing_new_and_answers_what_it_owes() {
    let mut bench = Bench::new(Settings::default());
    let (observed, _) = asked(&bench.give(peer(2), &observe(1, "a", 0)));
    bench.answer(observed, Answer::of(Code::NOT_FOUND));
    let (id, _) = asked(&bench.give(peer(1), &post(1, "a")));
    let mut out = Vec::new();
    bench.endpoint.drain(bench.now, &mut out);
    assert_eq!(code(&only(&out)), "5.03", "the observer is told");
    assert_eq!(out.last(), Some(&Action::Unwatch("a".into())));
    assert_eq!(code(&only(&bench.give(peer(1), &post(2, "a")))), "5.03");
    assert!(!bench.endpoint.owes_nothing());
    assert_eq!(code(&only(&bench.answer(id, Answer::of(Code::CHANGED)))), "2.04");
    assert!(bench.endpoint.owes_nothing());
}

/// A device that sends confirmable messages one after the other and repeats each until it has its answer.
struct Device {
    address: SocketAddr,
    next: u16,
    waiting: Option<(u16, Monotonic, Duration, u32)>,
    answered: BTreeSet<u16>,
    given_up: BTreeSet<u16>,
}

/// Runs devices against an endpoint over a network that loses, repeats and reorders, with a store that takes up to
/// three seconds. Whatever happens: no message is taken twice, and an answer means that it was taken.
fn simulate(seed: u64) {
    println!("seed {seed}");
    let mut roll = random(seed);
    let mut bench = Bench::new(Settings { peers: 8, ..Settings::default() });
    let mut devices: Vec<Device> =
        (1..=4).map(|n| Device { address: peer(n), next: n * 1_000, waiting: None, answered: BTreeSet::new(), given_up: BTreeSet::new() }).collect();
    let mut to_server: BTreeMap<(Monotonic, u64), (SocketAddr, Vec<u8>)> = BTreeMap::new();
    let mut to_device: BTreeMap<(Monotonic, u64), (SocketAddr, Vec<u8>)> = BTreeMap::new();
    let mut store: BTreeMap<(Monotonic, u64), (RequestId, String)> = BTreeMap::new();
    let mut taken: BTreeMap<String, u32> = BTreeMap::new();
    let mut settled: BTreeSet<String> = BTreeSet::new();
    let mut order = 0u64;
    for step in 0..60_000u64 {
        let now = at(step * 10);
        bench.now = now;
        let mut post_to = |queue: &mut BTreeMap<(Monotonic, u64), (SocketAddr, Vec<u8>)>, roll: &mut Random, who: SocketAddr, bytes: Vec<u8>| {
            let copies = match roll() % 10 {
                0..=2 => 0,
                3 => 2,
                _ => 1,
            };
            for _ in 0..copies {
                order += 1;
                queue.insert((now.plus(Duration::from_millis(roll() % 400)), order), (who, bytes.clone()));
            }
        };
        for device in &mut devices {
            let send = match &mut device.waiting {
                None if device.answered.len() + device.given_up.len() < 25 => {
                    device.next += 1;
                    device.waiting = Some((device.next, now.plus(Duration::from_secs(2)), Duration::from_secs(2), 0));
                    Some(device.next)
                }
                None => None,
                Some((id, due, wait, repeats)) if *due <= now => {
                    *repeats += 1;
                    *wait *= 2;
                    *due = now.plus(*wait);
                    if *repeats > 4 {
                        let id = *id;
                        device.given_up.insert(id);
                        device.waiting = None;
                        None
                    } else {
                        Some(*id)
                    }
                }
                Some(_) => None,
            };
            if let Some(id) = send {
                let packet = request(MessageType::Confirmable, POST, id, &["d", &id.to_string()], b"x");
                post_to(&mut to_server, &mut roll, device.address, encode(&packet).to_vec());
            }
        }
        let mut out = Vec::new();
        while let Some(entry) = to_server.first_entry().filter(|e| e.key().0 <= now) {
            let (from, bytes) = entry.remove();
            bench.endpoint.datagram(now, from, &bytes, false, &mut out);
        }
        while let Some(entry) = store.first_entry().filter(|e| e.key().0 <= now) {
            let (id, topic) = entry.remove();
            settled.insert(topic);
            bench.endpoint.answer(now, id, Answer::of(Code::CHANGED), &mut out);
        }
        bench.endpoint.tick(now, &mut out);
        for action in out {
            match action {
                Action::Send(to, bytes) => post_to(&mut to_device, &mut roll, to, bytes.to_vec()),
                Action::Request(id, Request::Publish(publish)) => {
                    *taken.entry(publish.topic.clone()).or_default() += 1;
                    let key = (now.plus(Duration::from_millis(roll() % 3_000)), step << 20 | taken.len() as u64);
                    store.insert(key, (id, publish.topic));
                }
                other => panic!("{other:?}"),
            }
        }
        while let Some(entry) = to_device.first_entry().filter(|e| e.key().0 <= now) {
            let (to, bytes) = entry.remove();
            let packet = decode(&bytes).unwrap();
            let device = devices.iter_mut().find(|d| d.address == to).unwrap();
            if packet.header.get_type() == MessageType::Confirmable {
                post_to(&mut to_server, &mut roll, to, ack(packet.header.message_id));
            }
            if u8::from(packet.header.code) == 0 {
                // Acknowledged: from here on it waits, and gives up after a while.
                if let Some(waiting) = device.waiting.as_mut().filter(|w| w.0 == packet.header.message_id) {
                    waiting.1 = now.plus(Duration::from_secs(120));
                    waiting.3 = 4;
                }
                continue;
            }
            assert_eq!(code(&packet), "2.04");
            let id = u16::from_be_bytes(packet.get_token().try_into().unwrap());
            assert!(settled.contains(&format!("d/{id}")), "answered before it was safe");
            if device.waiting.as_ref().is_some_and(|w| w.0 == id) {
                device.waiting = None;
                device.answered.insert(id);
            }
        }
    }
    assert!(taken.values().all(|n| *n == 1), "taken twice: {taken:?}");
    let answered: usize = devices.iter().map(|d| d.answered.len()).sum();
    let given_up: usize = devices.iter().map(|d| d.given_up.len()).sum();
    assert_eq!(answered + given_up, 100, "everyone is done");
    assert!(answered >= 80, "most come through: {answered}");
    bench.pass(Duration::from_secs(1_000));
    assert_eq!(bench.endpoint.peers.held(), (0, 0, 0));
}

#[test]
fn over_a_bad_network_nothing_is_taken_twice_and_no_answer_comes_before_it_is_safe() {
    for seed in 1..=12 {
        simulate(seed);
    }
}

/// Datagrams that look like CoAP more often than chance: a plausible head, plausible options, broken tails.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let option = (0u8..16, 0u8..16, proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(delta, length, bytes)| {
        let mut option = vec![delta << 4 | length];
        option.extend(bytes);
        option
    });
    let known = (
        prop_oneof![Just(0x40u8), Just(0x50), Just(0x60), Just(0x70), any::<u8>()],
        prop_oneof![0u8..8, any::<u8>()],
        0u16..6,
        prop_oneof![
            Just(vec![0xB1, b'a']),
            Just(vec![0x60, 0x51, b'a']),
            Just(vec![0xB1, b'a', 0xD1, 3, 0x0E]),
            Just(vec![0xB1, b'a', 0xC1, 0x08]),
            proptest::collection::vec(option, 0..4).prop_map(|all| all.concat()),
        ],
        proptest::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(first, code, id, options, tail)| {
            let mut bytes = vec![first, code];
            bytes.extend(id.to_be_bytes());
            bytes.extend(options);
            bytes.extend(tail);
            bytes
        });
    prop_oneof![known, proptest::collection::vec(any::<u8>(), 0..64)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Whatever attackers send, whatever the answers, and however time goes: no panic, no bound broken, and a device that
    /// behaves is served as if they were not there.
    #[test]
    fn hostile_datagrams_harm_nobody_else(
        steps in proptest::collection::vec((hostile(), 0u16..6, 0u64..90_000, any::<bool>(), 0u8..6), 1..60),
    ) {
        let settings = Settings { peers: 4, window: 3, pending: 8, exchanges: 24, exchange_bytes: 400, observers: 3, upload_bytes: 4_000, body_bytes: 2_000, latest_bytes: 500 };
        let mut bench = Bench::new(settings);
        let good = peer(999);
        let mut waiting = Vec::new();
        for (n, (bytes, from, ms, cut, kind)) in steps.into_iter().enumerate() {
            let mut out = bench.pass(Duration::from_millis(ms));
            bench.endpoint.datagram(bench.now, peer(from), &bytes, cut, &mut out);
            for action in &out {
                if let Action::Send(to, sent) = action {
                    prop_assert!(decode(sent).is_ok());
                    prop_assert!(*to == good || sent.len() <= UNPROVEN_BLOCK_BYTES + 64, "{} bytes to a peer that proved nothing", sent.len());
                }
                if let Action::Request(id, _) = action {
                    waiting.push(*id);
                }
            }
            if kind < 4 && !waiting.is_empty() {
                let id = waiting.remove(0);
                let answer = match kind {
                    0 => Answer::of(Code::CHANGED),
                    1 => Answer::of(Code::NOT_FOUND),
                    2 => Answer::try_again(1, "x"),
                    _ => Answer { payload: Bytes::from(vec![1; 900]), content_format: Some(0), ..Answer::of(Code::CONTENT) },
                };
                bench.answer(id, answer);
            }
            if kind == 5 {
                bench.notify("a", &[1; 300], 0);
            }
            let (peers, exchanges, bytes) = bench.endpoint.peers.held();
            prop_assert!(peers <= 4 && exchanges <= 24 + 8 && bytes <= 400, "{peers} {exchanges} {bytes}");
            prop_assert!(bench.endpoint.observers.len() <= 3 && bench.endpoint.pending.len() <= 8);

            // The good device: either it is told to come back, or it is served, byte for byte.
            let id = 5_000 + n as u16;
            let actions = bench.give(good, &post(id, "good"));
            match actions.last() {
                Some(Action::Request(request, Request::Publish(publish))) => {
                    prop_assert_eq!(publish.topic.as_str(), "good");
                    prop_assert_eq!(publish.payload.as_ref(), b"payload");
                    let response = only(&bench.answer(*request, Answer::of(Code::CHANGED)));
                    prop_assert_eq!(code(&response), "2.04");
                }
                Some(Action::Send(to, _)) => {
                    prop_assert_eq!(*to, good);
                    prop_assert_eq!(code(&only(&actions)), "5.03");
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn parsers_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(packet) = decode(&bytes) {
            let _ = crate::resource::Options::of(&packet).map(|o| o.target(packet.header.code.into()));
            let again = encode(&packet);
            prop_assert_eq!(decode(&again).ok(), Some(packet), "what was read can be written");
        }
        let _ = Block::from_value(&bytes);
    }
}
