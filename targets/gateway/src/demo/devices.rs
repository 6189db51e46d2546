//! Simulated devices: MQTT sensors that send as fast as they are told, and a CoAP sensor.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use selvedge::component::{PubSub, PublishRequest};
use selvedge::time::Clock;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::books::Books;
use super::cloud;

/// Devices that are at work.
pub struct Devices {
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// Where devices find the box.
#[derive(Debug, Clone, Copy)]
pub struct Doors {
    /// MQTT.
    pub mqtt: u16,
    /// CoAP.
    pub coap: Option<u16>,
}

impl Devices {
    /// Starts them: `count` over MQTT, each `per_second`, and one over CoAP if there is a door for it.
    pub async fn start(count: usize, per_second: u32, doors: Doors, books: &Books, data_dir: &Path, clock: &Arc<dyn Clock>) -> Result<Self, String> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for n in 1..=count {
            let component = cloud::component(&format!("demo-device-{n}"), &format!("127.0.0.1:{}", doors.mqtt), data_dir, clock).await?;
            tasks.spawn(mqtt_device(component, format!("sensors/device-{n}"), per_second, books.clone(), stopped.clone()));
        }
        if let Some(port) = doors.coap {
            tasks.spawn(coap_device(port, "sensors/coap-1", books.clone(), stopped));
        }
        Ok(Self { stop, tasks })
    }

    /// Stops them and waits until each knows what became of its last message.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(Duration::from_secs(25), async { while self.tasks.join_next().await.is_some() {} }).await;
    }
}

async fn mqtt_device(component: Arc<dyn PubSub>, topic: String, per_second: u32, books: Books, stopped: watch::Receiver<bool>) {
    let mut tick = tokio::time::interval(Duration::from_secs(1) / per_second);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut number = 0u64;
    while !*stopped.borrow() {
        tick.tick().await;
        let request =
            PublishRequest { topic: topic.clone(), data: Bytes::from(format!("#{number} {:>190}", "reading")), ..PublishRequest::default() };
        // Not acknowledged: sent again, as a device of quality 1 does.
        while component.publish(request.clone()).await.is_err() {
            if *stopped.borrow() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        books.acknowledged(&topic, number);
        number += 1;
    }
    component.close().await;
}

/// A confirmable POST (RFC 7252, section 3): version 1, type 0, code 0.02, path options, payload.
fn coap_post(id: u16, topic: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x40 | 2, 0x02];
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&id.to_be_bytes()); // token
    for (at, segment) in topic.split('/').enumerate() {
        let delta = if at == 0 { 11 } else { 0 };
        if segment.len() < 13 {
            packet.push(delta << 4 | segment.len() as u8);
        } else {
            packet.extend_from_slice(&[delta << 4 | 13, (segment.len() - 13) as u8]);
        }
        packet.extend_from_slice(segment.as_bytes());
    }
    packet.push(0xFF);
    packet.extend_from_slice(payload);
    packet
}

/// Waits for a 2.xx response with this token; an empty acknowledgement says that it comes later.
async fn coap_answer(socket: &UdpSocket, id: u16, within: Duration) -> bool {
    let mut buffer = [0u8; 1500];
    let wait = async {
        loop {
            let Ok(n) = socket.recv(&mut buffer).await else { return false };
            let packet = &buffer[..n];
            if n < 4 {
                continue;
            }
            let (kind, token_length, code) = ((packet[0] >> 4) & 3, usize::from(packet[0] & 15), packet[1]);
            if code == 0 || packet.get(4..4 + token_length) != Some(&id.to_be_bytes()) {
                continue;
            }
            if kind == 0 {
                let _ = socket.send(&[0x60, 0, packet[2], packet[3]]).await;
            }
            return code >> 5 == 2;
        }
    };
    tokio::time::timeout(within, wait).await.unwrap_or(false)
}

async fn coap_device(port: u16, topic: &str, books: Books, stopped: watch::Receiver<bool>) {
    let Ok(socket) = UdpSocket::bind("127.0.0.1:0").await else { return };
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    if socket.connect(to).await.is_err() {
        return;
    }
    let mut number = 0u64;
    let mut id = 1u16;
    while !*stopped.borrow() {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let packet = coap_post(id, topic, format!("#{number} coap").as_bytes());
        // Sent again with the same id until it is answered, as section 4.2 has it; in a shorter time, since this is one machine.
        let mut answered = false;
        for _ in 0..20 {
            let _ = socket.send(&packet).await;
            answered = coap_answer(&socket, id, Duration::from_secs(1)).await;
            if answered || *stopped.borrow() {
                break;
            }
        }
        if answered {
            books.acknowledged(topic, number);
            number += 1;
        }
        id = id.wrapping_add(1);
    }
}
