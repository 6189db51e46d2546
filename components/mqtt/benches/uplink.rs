//! What the way out costs: CPU of this process per 100,000 publishes of quality 1 and 200 bytes, against a peer in another process that
//! stores nothing and acknowledges every read in one write.
//!
//! `cargo bench -p selvedge-mqtt`; with `-- --broker HOST:PORT` against a real broker instead.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::Rig;
use selvedge::component::{UplinkAck, UplinkPublish};
use selvedge::escape::LinkState;
use selvedge::message::Attributes;
use selvedge_mqtt::Version;

const COUNT: u64 = 200_000;
const STORED: u64 = 100_000;

/// User and system time of this process, from /proc: in steps of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

/// CPU of this thread alone, nanoseconds: what the store's own thread does is left out.
fn cpu_of_thread() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

fn peer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    for socket in listener.incoming() {
        let mut socket = socket.unwrap();
        socket.set_nodelay(true).unwrap();
        std::thread::spawn(move || {
            let (mut buffer, mut out) = (Vec::new(), Vec::new());
            let mut chunk = vec![0; 64 << 10];
            loop {
                match socket.read(&mut chunk) {
                    Ok(0) | Err(_) => return,
                    Ok(n) => buffer.extend_from_slice(&chunk[..n]),
                }
                let mut at = 0;
                out.clear();
                while let Ok(Some(frame)) = selvedge_mqtt::wire::frame(&buffer[at..], 1 << 20) {
                    match frame.first & 0xF0 {
                        0x10 if frame.body[6] == 5 => out.extend_from_slice(&[0x20, 3, 0, 0, 0]),
                        0x10 => out.extend_from_slice(&[0x20, 2, 0, 0]),
                        0x30 => {
                            let topic = usize::from(u16::from_be_bytes([frame.body[0], frame.body[1]]));
                            out.extend_from_slice(&[0x40, 2, frame.body[2 + topic], frame.body[3 + topic]]);
                        }
                        0xC0 => out.extend_from_slice(&[0xD0, 0]),
                        _ => {}
                    }
                    at += frame.bytes;
                }
                buffer.drain(..at);
                if socket.write_all(&out).is_err() {
                    return;
                }
            }
        });
    }
}

struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn uplink_alone(version: Version, url: &str, window: usize, marks: bool) {
    let component = common::component(version, &[("url", url)]).await;
    let mut uplink = component.uplink().unwrap();
    let limits = uplink.connect().await.unwrap();
    let payload = [b'x'; 200];
    let with = [("selvedge-id", "node-0123456789/1/default/1234567"), ("selvedge-time", "2026-11-24T02:43:02.123Z")];
    let (mut sent, mut done, mut acks) = (0, 0, Vec::<UplinkAck>::new());
    let (start, before) = (Instant::now(), cpu());
    while done < COUNT {
        if sent - done <= (window - window / 4) as u64 {
            while sent < COUNT && sent - done < window as u64 {
                let publish = UplinkPublish {
                    token: sent,
                    topic: "sensors/room/1",
                    payload: &payload,
                    attributes: Attributes::default(),
                    marks: if marks && limits.carries_marks { &with } else { &[] },
                    retain: false,
                    expires_seconds: None,
                    repeated: false,
                };
                uplink.enqueue(&publish).unwrap();
                sent += 1;
            }
        }
        uplink.drive(&mut acks, false).await.unwrap();
        done += acks.drain(..).count() as u64;
    }
    let (took, used) = (start.elapsed(), cpu() - before);
    let per = used.as_secs_f64() * 100_000.0 / COUNT as f64;
    println!("uplink    {version:?} window {window:4} marks {marks:5}: {per:.3} s CPU/100k, {:.0}k/s", COUNT as f64 / took.as_secs_f64() / 1e3);
    uplink.disconnect().await;
}

async fn forwarder(version: Version, url: &str, window: u16) {
    let rig = Rig::new(version, url).await;
    rig.accept("sensors/room/", 10, STORED);
    let outbox = rig.hub.outbox().clone();
    let lane = outbox.lane("default").unwrap();
    outbox.durable(lane, STORED).await.unwrap();
    let (start, before) = (Instant::now(), cpu_of_thread());
    let forwarder = rig.forward_with(selvedge::forward::ForwarderConfig { window, ..rig.config() });
    rig.wait(|s| s.state == LinkState::Up && s.acknowledged == STORED).await;
    let (took, used) = (start.elapsed(), cpu_of_thread() - before);
    forwarder.stop().await;
    let per = used.as_secs_f64() * 100_000.0 / STORED as f64;
    println!("forwarder {version:?} window {window:4} from the outbox: {per:.3} s CPU/100k, {:.0}k/s", STORED as f64 / took.as_secs_f64() / 1e3);
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.iter().any(|a| a == "--peer") {
        return peer();
    }
    let broker = arguments.iter().position(|a| a == "--broker").and_then(|at| arguments.get(at + 1)).cloned();
    let mut child = None;
    let address = broker.unwrap_or_else(|| {
        let mut peer = Command::new(&arguments[0]).arg("--peer").stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(peer.stdout.take().unwrap()).read_line(&mut line).unwrap();
        child = Some(Peer(peer));
        line.trim().to_owned()
    });
    let url = format!("mqtt://{address}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for window in [100, 256, 512, 1_000] {
            uplink_alone(Version::V3, &url, window, false).await;
            uplink_alone(Version::V5, &url, window, true).await;
        }
        for window in [100, 256, 512, 1_000] {
            forwarder(Version::V3, &url, window).await;
            forwarder(Version::V5, &url, window).await;
        }
    });
}
