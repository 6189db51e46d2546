//! Socket activation: sockets that outlive the node, so that nobody is refused while it starts anew.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use selvedge_tests::ledger::{Publisher, Sink};
use selvedge_tests::mqtt::Client;
use selvedge_tests::{Mosquitto, Node, Place, binary, eventually, free_port, signal, yaml};

const LONG: Duration = Duration::from_secs(60);

fn place(cloud: u16, more: &str) -> Place {
    let upstream = yaml::cloud(cloud);
    Place::new(&format!(
        r##"{upstream}apiVersion: selvedge/v1alpha1
kind: Listener
metadata: {{name: devices}}
spec: {{protocol: mqtt, bind: "systemd:mqtt"}}
---
apiVersion: selvedge/v1alpha1
kind: Forwarding
metadata: {{name: up}}
spec:
  routes: [{{from: local, topics: ["sensors/#"], to: [cloud]}}]
{more}"##
    ))
}

/// Whether a node answers calls at this port of the HTTP API.
fn is_well(port: u16) -> bool {
    selvedge_tests::http::try_request(port, "GET /v1.0/healthz", &[], "").is_ok_and(|answer| answer.start == "204")
}

/// Ends the running process with a signal and waits until the next one is ready.
fn restart(node: &Node, name: &str) {
    let ready = |n: usize| node.log().iter().filter(|l| l.contains("dapr initialized")).count() >= n;
    let starts = node.starts();
    signal(*starts.last().unwrap(), name);
    eventually(LONG, "the next process is ready", || node.starts().len() > starts.len() && ready(starts.len() + 1));
}

#[test]
fn over_restarts_no_connection_is_refused_and_nothing_acknowledged_is_lost() {
    let broker = Mosquitto::start();
    let (first, second, coap, http) = (free_port(), free_port(), free_port(), free_port());
    let place = place(
        broker.port,
        "---\napiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {name: small}\nspec: {protocol: coap, bind: \"systemd:coap\"}\n",
    );
    let sink = Sink::start(broker.port, "sensors/#", "");
    let node = place.activate(&[format!("mqtt=tcp:{first}"), format!("mqtt=tcp:{second}"), format!("coap=udp:{coap}"), format!("http=tcp:{http}")]);
    eventually(LONG, "the inherited socket of the HTTP API answers", || is_well(http));
    let publishers: Vec<Publisher> = [(first, "a"), (second, "b"), (first, "c")].iter().map(|(port, n)| Publisher::start(*port, n, 300)).collect();
    // Connects all the time: a refusal at any moment is one too many.
    let (stop, refused, connected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let knocking = std::thread::spawn({
        let (stop, refused, connected) = (stop.clone(), refused.clone(), connected.clone());
        move || {
            while !stop.load(Ordering::Relaxed) {
                match std::net::TcpStream::connect(("127.0.0.1", first)) {
                    Ok(_) => connected.fetch_add(1, Ordering::Relaxed),
                    Err(_) => refused.fetch_add(1, Ordering::Relaxed),
                };
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let total = || publishers.iter().map(Publisher::count).sum::<usize>();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    datagrams.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for (round, name) in ["TERM", "KILL", "TERM"].iter().enumerate() {
        let from = total();
        eventually(LONG, "publishers are served", || total() >= from + 300);
        restart(&node, name);
        // A confirmable POST to coap://127.0.0.1/small is answered with 2.04 by the same message id.
        let id = u8::try_from(round).unwrap();
        let post = [&[0x40, 0x02, 0x77, id, 0xb5], b"small".as_slice(), &[0xff], b"1"].concat();
        datagrams.send_to(&post, ("127.0.0.1", coap)).unwrap();
        let mut answer = [0; 64];
        let (length, _) = datagrams.recv_from(&mut answer).unwrap();
        assert_eq!(&answer[..length.min(4)], [0x60, 0x44, 0x77, id]);
    }
    // Who knocks while the node is away is served once it is back.
    let away = *node.starts().last().unwrap();
    signal(away, "STOP");
    let waiting = std::thread::spawn(move || Client::connect(second, "early", true).is_ok());
    signal(away, "KILL");
    assert!(waiting.join().unwrap(), "a connection that was made while the node was away is served by the next one");
    let from = total();
    eventually(LONG, "publishers are served", || total() >= from + 300);
    stop.store(true, Ordering::Relaxed);
    knocking.join().unwrap();
    assert!(connected.load(Ordering::Relaxed) > 100);
    assert_eq!(refused.load(Ordering::Relaxed), 0, "of {} connections", connected.load(Ordering::Relaxed));
    let acknowledged = publishers.into_iter().flat_map(Publisher::finish).collect();
    sink.check(&acknowledged, LONG);
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn a_socket_that_is_not_there_or_of_another_kind_is_named() {
    let (port, other) = (free_port(), free_port());
    for (sockets, text) in [
        (vec![], r#"no inherited socket has the name "mqtt": none is left, or none was handed over"#.to_owned()),
        (vec![format!("coap=udp:{port}")], format!(r#"no inherited socket has the name "mqtt": there are coap (udp 127.0.0.1:{port})"#)),
        (vec![format!("mqtt=udp:{other}")], format!(r#"the inherited socket "mqtt" is udp 127.0.0.1:{other}; accepted is a listening TCP socket"#)),
    ] {
        let place = place(1, "");
        let mut command = if sockets.is_empty() {
            Command::new(binary())
        } else {
            let mut command = Command::new("python3");
            command
                .args(["-c", &include_str!("../src/activate.py").replace("while not ended", "for _ in [0]")])
                .args(&sockets)
                .arg("--")
                .arg(binary());
            command
        };
        let output =
            command.args(["--app-id", "box", "--resources-path"]).arg(place.resources()).arg("--data-dir").arg(place.data()).args(&place.flags);
        let output = String::from_utf8(output.output().unwrap().stdout).unwrap();
        // Quotes stand escaped in the log.
        assert!(output.replace('\\', "").contains(&text), "{text}\n{output}");
    }
}
