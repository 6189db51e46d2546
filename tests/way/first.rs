//! Two sites, of which the first to acknowledge a record makes it done: `deliver: first-ack`.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::{Duration, Instant};

use selvedge_tests::http::request;
use selvedge_tests::mqtt::Client;
use selvedge_tests::proxy::{Fault, Proxy};
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, yaml};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);
const SET: &str = "upstream/site-a|site-b";

fn place(ports: [u16; 2], devices: u16) -> Place {
    Place::new(&document(ports, devices, "to: [site-b, site-a], deliver: first-ack"))
}

fn document(ports: [u16; 2], devices: u16, to: &str) -> String {
    let [one, two] = ["site-a", "site-b"].map(|name| yaml::upstream(name, ports[usize::from(name == "site-b")]));
    let listener = yaml::devices(devices);
    format!(
        r##"{one}{two}{listener}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], prefix: "box/", {to}}}]
  lanes: [{{name: brief, match: ["sensors/brief"], ttl: 1s}}]
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: site-a, stall: 2s}}, {{component: site-b, stall: 2s}}]
  modes: {{islandAfter: 1s, normalAfter: 1s}}
  budgets: {{diskFree: 1MiB}}
"##
    )
}

/// What a site has, number by number in the order of arrival, by topic.
#[derive(Default)]
struct Site {
    came: BTreeMap<String, Vec<u64>>,
}

impl Site {
    fn take(&mut self, client: &mut Client, within: Duration) -> bool {
        let Some((topic, payload)) = client.receive(within).unwrap() else { return false };
        if topic.starts_with("box/sensors/") {
            self.came.entry(topic).or_default().push(String::from_utf8(payload).unwrap().parse().unwrap());
        }
        true
    }

    fn all(&self) -> BTreeSet<u64> {
        self.came.values().flatten().copied().collect()
    }

    fn count(&self) -> usize {
        self.came.values().map(Vec::len).sum()
    }

    /// How often a topic went back to an earlier number: what a new connection repeats.
    fn steps_back(&self) -> usize {
        self.came.values().map(|numbers| numbers.windows(2).filter(|w| w[1] <= w[0]).count()).sum()
    }
}

/// Publishes these numbers over three topics, each of them acknowledged.
fn publish(device: &mut Client, numbers: std::ops::Range<u64>) {
    let topics = ["sensors/a", "sensors/b", "sensors/c"];
    let batch: Vec<(&str, Vec<u8>)> = numbers.map(|n| (topics[(n % 3) as usize], n.to_string().into_bytes())).collect();
    for some in batch.chunks(50) {
        for _ in device.send(some).unwrap() {
            assert!(device.acknowledged(Duration::from_secs(10)).unwrap().is_some());
        }
    }
}

fn sinks(brokers: [&Mosquitto; 2]) -> [Client; 2] {
    brokers.map(|broker| {
        let mut sink = Client::connect(broker.port, "sink", true).unwrap();
        sink.subscribe("#").unwrap();
        sink
    })
}

/// Takes what has come, until nothing comes for half a second.
fn settle(sites: &mut [Site; 2], clients: &mut [Client; 2]) {
    for (site, client) in sites.iter_mut().zip(clients) {
        while site.take(client, Duration::from_millis(500)) {}
    }
}

fn metric(place: &Place, line: &str) -> u64 {
    let metrics = request(place.flag("metrics-port").parse().unwrap(), "GET /metrics", &[], "").body;
    let found = metrics.lines().find_map(|l| l.strip_prefix(line)).unwrap_or_else(|| panic!("{line} is not in\n{metrics}"));
    found.trim().parse().unwrap()
}

fn links(node: &Node) -> [String; 2] {
    [node.link("site-a"), node.link("site-b")]
}

#[test]
fn sites_that_are_cut_off_in_turn_have_everything_together_over_a_kill_and_the_books_close() {
    let (one, two) = (Mosquitto::start(), Mosquitto::start());
    let proxies = [Proxy::to(one.port), Proxy::to(two.port)];
    let devices = free_port();
    let place = place([proxies[0].port, proxies[1].port], devices);
    let mut clients = sinks([&one, &two]);
    let mut sites = [Site::default(), Site::default()];
    let mut node = place.start();
    eventually(LONG, "both links are up", || links(&node) == ["up", "up"]);
    let mut device = Client::connect(devices, "d", true).unwrap();
    let (mut n, mut outages, mut accepted) = (0, [0usize; 2], 0);
    for round in 0..8u64 {
        let gone = (round % 2) as usize;
        publish(&mut device, n..n + 60);
        // In the middle of what is on its way, in three ways.
        proxies[gone].set([Fault::Refuse, Fault::Reset, Fault::Swallow][(round % 3) as usize]);
        outages[gone] += 1;
        publish(&mut device, n + 60..n + 200);
        n += 200;
        accepted += 200;
        if round == 4 {
            drop(device);
            node.kill();
            node = place.start();
            outages[1 - gone] += 1;
            device = Client::connect(devices, "d", true).unwrap();
        }
        eventually(LONG, "the other site has it all", || node.ledger(SET, "queued") == 0);
        let name = ["site-a", "site-b"][gone];
        eventually(LONG, "the link is known to be gone", || node.link(name) != "up");
        assert_eq!(node.status()["mode"]["mode"].as_str().map(|m| m == "island"), Some(false), "one that stands is enough");
        proxies[gone].set(Fault::None);
        eventually(LONG, "both links are up again", || links(&node) == ["up", "up"]);
    }
    assert_eq!((node.ledger(SET, "accepted"), node.ledger(SET, "delivered")), (accepted, accepted));
    settle(&mut sites, &mut clients);
    let union: BTreeSet<u64> = sites.iter().flat_map(Site::all).collect();
    assert_eq!(union, (0..n).collect(), "nothing is lost");
    for (site, outages) in sites.iter().zip(outages) {
        // What was on its way when a link broke can come again on the next connection; else each comes once, and in order.
        let (again, back) = (site.count() - site.all().len(), site.steps_back());
        assert!(again <= outages * 512 && back <= outages * 3, "{again} came again, {back} steps back in {outages} outages");
        let missing = n as usize - site.all().len();
        assert!(site.all().len() >= 700 && missing >= 140, "a site is sent what comes while it is there ({missing} are missing)");
    }
    let first: u64 = ["site-a", "site-b"].map(|name| metric(&place, &format!("selvedge_forward_first_total{{upstream=\"{name}\"}}"))).iter().sum();
    assert!(first >= 600, "{first} since the start after the kill");
    assert_eq!((metric(&place, "selvedge_set_kept{set=\"site-a|site-b\"}"), metric(&place, "selvedge_set_refused{set=\"site-a|site-b\"}")), (0, 0));
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn three_sites_that_come_and_go_at_random_have_lanes_of_all_kinds_together_sealed_and_over_kills() {
    let brokers = [Mosquitto::start(), Mosquitto::start(), Mosquitto::start()];
    let proxies = brokers.each_ref().map(|b| Proxy::to(b.port));
    let devices = free_port();
    let upstreams: String = (0..3).map(|at| yaml::upstream(&format!("site-{at}"), proxies[at].port)).collect();
    let mut place = Place::new(&format!(
        r##"{upstreams}{}apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], to: [site-0, site-1, site-2], prefix: "box/", deliver: first-ack}}]
  lanes:
    - {{name: strict, match: ["sensors/a"], durability: fsync, strict: true, onFull: reject}}
    - {{name: newest, match: ["sensors/b"], order: newest, weight: 3}}
    - {{name: memory, match: ["sensors/c"], durability: memory, spillAfter: 100ms}}
---
apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec:
  upstreams: [{{component: site-0, stall: 1s}}, {{component: site-1, stall: 1s}}, {{component: site-2, stall: 1s}}]
  atRest: {{keys: [{{env: BOX_KEY}}]}}
  notices: {{topic: ""}}
"##,
        yaml::devices(devices)
    ));
    place.environment.push(("BOX_KEY".to_owned(), "5a".repeat(32)));
    let set = "upstream/site-0|site-1|site-2";
    let mut clients = brokers.each_ref().map(|b| {
        let mut sink = Client::connect(b.port, "sink", true).unwrap();
        sink.subscribe("#").unwrap();
        sink
    });
    let mut node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut below = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    let (mut n, mut killed) = (0, 0);
    for round in 0..40 {
        publish(&mut device, n..n + 60);
        n += 60;
        let fault = [Fault::None, Fault::None, Fault::Refuse, Fault::Reset, Fault::Swallow, Fault::Stall][below(6) as usize];
        proxies[below(3) as usize].set(fault);
        if round % 13 == 12 {
            drop(device);
            node.kill();
            killed += 1;
            node = place.start();
            device = Client::connect(devices, "d", true).unwrap();
        }
    }
    proxies.iter().for_each(|p| p.set(Fault::None));
    eventually(LONG, "the books close", || node.ledger(set, "queued") == 0);
    assert_eq!((node.ledger(set, "evicted"), node.ledger(set, "expired")), (0, 0));
    let mut union: BTreeSet<u64> = BTreeSet::new();
    for client in &mut clients {
        let mut site = Site::default();
        while site.take(client, Duration::from_millis(500)) {}
        union.extend(site.all());
    }
    // A kill may take what a memory lane held for less than its time, and nothing else.
    let missing: Vec<u64> = (0..n).filter(|n| !union.contains(n)).collect();
    assert!(missing.iter().all(|n| n % 3 == 2) && missing.len() <= killed * 60, "{missing:?}");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_site_that_is_away_costs_nothing_and_gets_nothing_that_the_other_one_has() {
    let (one, two) = (Mosquitto::start(), Mosquitto::start());
    let proxy = Proxy::to(two.port);
    proxy.set(Fault::Refuse);
    let devices = free_port();
    let place = place([one.port, proxy.port], devices);
    let mut clients = sinks([&one, &two]);
    let mut sites = [Site::default(), Site::default()];
    let node = place.start();
    eventually(LONG, "one link is up", || node.link("site-a") == "up" && node.status()["mode"]["mode"] == "normal");
    let mut device = Client::connect(devices, "d", true).unwrap();
    publish(&mut device, 0..5_000);
    eventually(LONG, "one has it all", || node.ledger(SET, "queued") == 0);
    let status = node.status();
    assert_eq!((&status["sets"][0]["name"], &status["sets"][0]["queued"]), (&"site-a|site-b".into(), &0.into()));
    eventually(LONG, "the files go", || std::fs::read_dir(place.data().join("outbox/default")).unwrap().count() <= 1);
    proxy.set(Fault::None);
    eventually(LONG, "the other one is back", || links(&node) == ["up", "up"]);
    // A flag behind everything that there may be.
    publish(&mut device, 5_000..5_001);
    while !sites[1].all().contains(&5_000) {
        assert!(sites[1].take(&mut clients[1], LONG), "it gets what comes now");
    }
    settle(&mut sites, &mut clients);
    assert_eq!(sites[1].all(), BTreeSet::from([5_000]), "and no backlog");
    assert!((0..5_000).all(|n| sites[0].all().contains(&n)));
    let queue = Command::new(binary()).args(["queue", "--data-dir"]).arg(place.data()).output().unwrap();
    let said = String::from_utf8(queue.stdout).unwrap();
    assert!(said.contains(SET) && said.contains("\nset site-a|site-b: done when the first of site-a, site-b has it; 0 wait"), "{said}");
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn when_both_are_gone_records_wait_the_report_comes_before_them_and_what_was_lost_is_told() {
    let (one, two) = (Mosquitto::start(), Mosquitto::start());
    let proxies = [Proxy::to(one.port), Proxy::to(two.port)];
    let devices = free_port();
    let place = place([proxies[0].port, proxies[1].port], devices);
    let mut clients = sinks([&one, &two]);
    let node = place.start();
    eventually(LONG, "both links are up", || links(&node) == ["up", "up"] && node.status()["mode"]["mode"] == "normal");
    proxies.iter().for_each(|p| p.set(Fault::Refuse));
    eventually(LONG, "an island", || node.status()["mode"]["mode"] == "island");
    let mut device = Client::connect(devices, "d", true).unwrap();
    publish(&mut device, 0..300);
    for n in 0..7 {
        device.publish("sensors/brief", format!("{n}").as_bytes()).unwrap();
    }
    let stored = Instant::now();
    assert_eq!((node.ledger(SET, "queued"), node.ledger(SET, "delivered")), (307, 0));
    drop(device);
    node.kill();
    let node = place.start();
    assert_eq!(node.ledger(SET, "queued"), 307);
    eventually(LONG, "what was brief outlives its time", || stored.elapsed() > Duration::from_millis(1_500));
    // One of them is enough.
    proxies[1].set(Fault::None);
    eventually(LONG, "it has all of them", || node.ledger(SET, "queued") == 0);
    assert_eq!(node.ledger(SET, "expired"), 7);
    let (mut report, mut stone) = (None::<Value>, None::<Value>);
    let mut site = Site::default();
    while site.count() < 300 || stone.is_none() {
        let (topic, payload) = clients[1].receive(LONG).unwrap().expect("all of it comes");
        if topic.ends_with("/outage") {
            assert!(site.count() <= 1, "before the backlog, but for the record that tried the link");
            report = Some(serde_json::from_slice(&payload).unwrap());
        } else if topic.ends_with("/tombstone") {
            stone = Some(serde_json::from_slice(&payload).unwrap());
        } else if topic.starts_with("box/") {
            site.came.entry(topic).or_default().push(String::from_utf8(payload).unwrap().parse().unwrap());
        }
    }
    assert_eq!((site.all(), site.steps_back()), ((0..300).collect(), 0));
    let report = report.expect("one outage, one report");
    assert!(report["lanes"].as_array().unwrap().iter().any(|l| l["destination"] == SET && l["accepted"] == 300), "{report:#}");
    let stone = stone.expect("what was lost is told");
    let facts = ["destination", "lane", "reason"].map(|key| stone[key].as_str().unwrap());
    assert_eq!((facts, stone["count"].as_u64()), ([SET, "brief", "expired"], Some(7)), "{stone:#}");
    proxies[0].set(Fault::None);
    eventually(LONG, "both links are up again", || links(&node) == ["up", "up"]);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn what_one_site_refuses_the_other_one_takes_and_what_both_refuse_is_set_aside_until_it_may_go() {
    let folder = tempfile::tempdir().unwrap();
    let rules = ["box/sensors/a", "box/sensors/a\ntopic box/sensors/b"];
    let allow = |name: &str, rules: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("topic selvedge/#\ntopic {rules}\n")).unwrap();
        // mosquitto reads it as its own user when it is started by root.
        for path in [folder.path(), &path] {
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        format!("acl_file {}\n", path.display())
    };
    let [one, two] = ["one", "two"].map(|name| Mosquitto::with(&allow(name, rules[usize::from(name == "two")])));
    let proxy = Proxy::to(two.port);
    proxy.set(Fault::Refuse);
    let devices = free_port();
    let place = place([one.port, proxy.port], devices);
    let mut clients = sinks([&one, &two]);
    let mut sites = [Site::default(), Site::default()];
    let node = place.start();
    eventually(LONG, "one link is up", || node.link("site-a") == "up");
    let mut device = Client::connect(devices, "d", true).unwrap();
    // This broker ends the connection with each record that it refuses.
    publish(&mut device, 0..6);
    eventually(LONG, "traffic goes on past what one refuses", || node.ledger(SET, "queued") == 4);
    assert_eq!((node.ledger(SET, "delivered"), node.ledger("quarantine", "accepted")), (2, 0), "the one that is away has refused nothing");
    eventually(LONG, "one has refused them", || metric(&place, "selvedge_set_refused{set=\"site-a|site-b\"}") == 4);
    proxy.set(Fault::None);
    eventually(LONG, "the other one takes what it may", || node.ledger(SET, "queued") == 0);
    assert_eq!(node.ledger("quarantine", "queued"), 2, "the rest is nobody's");
    assert_eq!(node.ledger(SET, "evicted"), 2);
    let queue = |words: &[&str]| {
        let output = Command::new(binary()).args(["queue", "--data-dir"]).arg(place.data()).args(words).output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let said = queue(&["show"]);
    let each = |l: &str| l.contains("site-a|site-b  sensors/c") && l.contains("refused by each of its set, the last one said:");
    assert!(said.lines().count() == 2 && said.lines().all(each), "{said}");
    settle(&mut sites, &mut clients);
    assert_eq!(sites[0].all(), (0..6).step_by(3).collect());
    assert_eq!(sites[1].all(), (1..6).step_by(3).collect(), "nothing that the other one has");
    allow("two", "#");
    two.reload();
    let mut probe = Client::connect(two.port, "probe", true).unwrap();
    eventually(LONG, "the broker has read its rules again", || {
        probe.publish("box/sensors/c", b"99").unwrap();
        sites[1].take(&mut clients[1], Duration::from_millis(100)) && sites[1].all().contains(&99)
    });
    assert!(queue(&["retry", "all"]).starts_with("2 records stored"));
    eventually(LONG, "the books close", || node.ledger(SET, "queued") == 0 && node.ledger("quarantine", "queued") == 0);
    settle(&mut sites, &mut clients);
    assert!((2..6).step_by(3).all(|n| sites[1].all().contains(&n)));
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_set_that_no_route_leads_to_any_more_empties_and_a_new_one_waits_for_the_next_start() {
    let (one, two) = (Mosquitto::start(), Mosquitto::start());
    let proxies = [Proxy::to(one.port), Proxy::to(two.port)];
    let ports = [proxies[0].port, proxies[1].port];
    proxies.iter().for_each(|p| p.set(Fault::Refuse));
    let devices = free_port();
    let place = place(ports, devices);
    let mut clients = sinks([&one, &two]);
    let mut sites = [Site::default(), Site::default()];
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    publish(&mut device, 0..40);
    assert_eq!(node.terminate(), Some(0));
    let write = |to: &str| std::fs::write(place.resources().join("node.yaml"), document(ports, devices, to)).unwrap();
    write("to: [site-b]");
    let node = place.start();
    let mut device = Client::connect(devices, "d", true).unwrap();
    publish(&mut device, 40..50);
    assert_eq!((node.ledger(SET, "queued"), node.ledger("upstream/site-b", "queued")), (40, 10));
    proxies[0].set(Fault::None);
    eventually(LONG, "a member that is still an upstream has what waited for the set", || node.ledger(SET, "queued") == 0);
    assert_eq!(node.ledger("upstream/site-b", "queued"), 10);
    proxies[1].set(Fault::None);
    eventually(LONG, "the route as it is now", || node.ledger("upstream/site-b", "queued") == 0);
    settle(&mut sites, &mut clients);
    assert_eq!((sites[0].all(), sites[1].all()), ((0..40).collect(), (40..50).collect()), "with the topics of a route to a member");
    assert_eq!(node.terminate(), Some(0));
    // It is empty, so nobody reads it any more.
    let node = place.start();
    write("to: [site-b, site-a], deliver: first-ack");
    let output = Command::new(binary()).args(["reload", "--data-dir"]).arg(place.data()).output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("needs a restart: routes: 1 new, 1 gone"), "{said}");
    assert_eq!(node.ledger(SET, "accepted"), 40);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn what_a_site_sends_to_the_box_does_not_go_back_to_its_set() {
    let (one, two) = (Mosquitto::start(), Mosquitto::start());
    let devices = free_port();
    let way_in = r#"to: [site-b, site-a], deliver: first-ack}, {from: site-a, topics: ["box/sensors/#"], stripPrefix: "box/", to: [local]"#;
    let place = Place::new(&document([one.port, two.port], devices, way_in));
    let mut clients = sinks([&one, &two]);
    let node = place.start();
    eventually(LONG, "both links are up", || links(&node) == ["up", "up"]);
    let mut device = Client::connect(devices, "d", true).unwrap();
    device.subscribe("sensors/#").unwrap();
    let mut n = 0;
    eventually(LONG, "what the site sends comes to the box", || {
        n += 1;
        clients[0].publish("box/sensors/a", n.to_string().as_bytes()).unwrap();
        device.receive(Duration::from_millis(200)).unwrap().is_some()
    });
    assert_eq!(node.ledger(SET, "accepted"), 0, "the site has it, and one is enough");
    publish(&mut device, 100..101);
    eventually(LONG, "what the box has to say goes to both", || node.ledger(SET, "delivered") == 1);
    let mut at_two = Site::default();
    while !at_two.all().contains(&100) {
        assert!(at_two.take(&mut clients[1], LONG));
    }
    assert_eq!(at_two.all(), BTreeSet::from([100]));
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn check_names_routes_whose_ends_cannot_be_a_set_and_says_what_a_set_means() {
    let text = |routes: &str, secondary: &str| {
        let upstreams = ["site-a", "site-b", "site-c"].map(|name| yaml::upstream(name, 1883)).concat();
        format!(
            r##"{upstreams}apiVersion: selvedge/v1alpha1
kind: EscapePolicy
metadata: {{name: escape}}
spec: {{upstreams: [{{component: site-a}}{secondary}]}}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes:
{routes}"##
        )
    };
    let check = |yaml: &str| {
        let place = Place::new(yaml);
        let output = Command::new(binary()).arg("check").arg(place.resources()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    let wrong = r##"    - {from: local, topics: ["a"], to: [site-a], deliver: first-ack}
    - {from: local, topics: ["b"], to: [site-a, local], deliver: first-ack, prefix: "x/"}
    - {from: local, topics: ["c"], to: [site-a, site-b, site-a], deliver: first-ack}
    - {from: local, topics: ["d"], to: [site-a, site-c], deliver: first-ack}
    - {from: local, topics: ["e"], to: [site-a, site-b], deliver: first-ack, shardBy: topic}
    - {from: local, topics: ["f"], to: [site-a, site-b], deliver: first}
"##;
    let yaml = text(wrong, ", {component: site-c, role: secondary}");
    let line = yaml.lines().position(|l| l.contains(r#"topics: ["a"]"#)).unwrap() + 1;
    let (well, said) = check(&yaml);
    assert!(!well);
    for (place, part) in [
        (0, "spec.routes[0] says deliver: first-ack with 1 in to; accepted is that with 2 to 16 upstreams"),
        (1, "spec.routes[1] says deliver: first-ack and leads to \"local\"; accepted is that with upstreams alone"),
        (2, "spec.routes[2] says deliver: first-ack and names \"site-a\" twice; accepted is each upstream once"),
        (3, "spec.routes[3] says deliver: first-ack and leads to \"site-c\", a secondary upstream of the EscapePolicy; accepted are primary ones"),
        (4, "spec.routes[4].shardBy is for deliver: shard"),
        (5, "spec.routes[5].deliver found \"first\"; accepted is both (each upstream gets everything), shard, or first-ack"),
    ] {
        let part = format!("node.yaml:{}: {part}", line + place);
        assert!(said.contains(&part), "{part}\nin\n{said}");
    }
    let routes = r##"    - {from: local, topics: ["a/#"], to: [site-a, site-b], deliver: first-ack}
    - {from: local, topics: ["a/b"], to: [site-b]}
"##;
    let (well, said) = check(&text(routes, ", {component: site-c, role: secondary}"));
    assert!(well, "{said}");
    for part in [
        "warning: ",
        "the secondary upstream \"site-c\" does not stand in for it; what takes it waits while none of site-a, site-b stands",
        "spec.routes[0] says deliver: first-ack, and \"site-b\" gets what it takes again by spec.routes[1]",
        "set site-a|site-b: stored once; it waits only while none of them stands; while all stand, each is sent everything: 2 times the bytes",
    ] {
        assert!(said.contains(part), "{part}\nin\n{said}");
    }
}
