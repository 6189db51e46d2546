//! Real clients of mosquitto against the listener, and hostile ones beside them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use selvedge_tests::mqtt::Client;
use selvedge_tests::{Place, free_port};

const LONG: Duration = Duration::from_secs(20);

fn place(mqtt: u16, coap: u16) -> Place {
    Place::new(&format!(
        "apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: devices}}\nspec: {{protocol: mqtt, bind: \"127.0.0.1:{mqtt}\"}}\n---\n\
         apiVersion: selvedge/v1alpha1\nkind: Listener\nmetadata: {{name: coap}}\nspec: {{protocol: coap, bind: \"127.0.0.1:{coap}\"}}\n"
    ))
}

/// `mosquitto_sub`, line by line.
struct Sub(Child, BufReader<ChildStdout>);

impl Sub {
    fn start(port: u16, arguments: &[&str]) -> Self {
        let mut child = Command::new("mosquitto_sub")
            .args(["-h", "127.0.0.1", "-W", "20", "-p", &port.to_string()])
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("mosquitto_sub is installed (tests/run does that)");
        let output = BufReader::new(child.stdout.take().unwrap());
        Self(child, output)
    }

    /// The next line; empty when there is none within its 20 s.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.1.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Sub {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn publish(port: u16, arguments: &[&str]) {
    let done = Command::new("mosquitto_pub").args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(arguments).status().unwrap();
    assert!(done.success(), "mosquitto_pub {arguments:?}");
}

#[test]
fn mosquittos_clients_talk_through_the_listener_in_every_version_and_quality() {
    let (mqtt, coap) = (free_port(), free_port());
    let place = place(mqtt, coap);
    let node = place.start();
    for (version, quality) in [("mqttv311", "0"), ("mqttv311", "1"), ("mqttv311", "2"), ("5", "0"), ("5", "1"), ("5", "2")] {
        let topic = format!("t/{version}/{quality}");
        let ready = format!("{topic}/ready");
        let mut sub = Sub::start(mqtt, &["-V", version, "-q", quality, "-t", &format!("{topic}/#"), "-F", "%t %q %p"]);
        // It is retained, so it comes whether the subscription is there already or not; after it the subscription surely is.
        publish(mqtt, &["-V", version, "-q", quality, "-r", "-t", &ready, "-m", "now"]);
        assert_eq!(sub.line(), format!("{ready} {quality} now"));
        for text in ["one", "two"] {
            publish(mqtt, &["-V", version, "-q", quality, "-t", &topic, "-m", text]);
            assert_eq!(sub.line(), format!("{topic} {quality} {text}"));
        }
    }
    assert_eq!(node.terminate(), Some(0));
}

#[test]
fn properties_of_version_5_pass_unchanged_and_a_will_is_sent_when_its_client_is_lost() {
    let (mqtt, coap) = (free_port(), free_port());
    let place = place(mqtt, coap);
    let _node = place.start();
    publish(
        mqtt,
        &[
            "-V",
            "5",
            "-q",
            "1",
            "-r",
            "-t",
            "p/x",
            "-m",
            "hi",
            "-D",
            "publish",
            "user-property",
            "a",
            "1",
            "-D",
            "publish",
            "content-type",
            "text/x",
            "-D",
            "publish",
            "response-topic",
            "r",
        ],
    );
    let mut sub = Sub::start(mqtt, &["-V", "5", "-t", "p/#", "-F", "%p|%P|%C|%R|%r"]);
    assert_eq!(sub.line(), "hi|a:1|text/x|r|1");

    let mut watcher = Client::connect(mqtt, "watcher", true).unwrap();
    watcher.subscribe("wills/#").unwrap();
    // A client that says nothing after its CONNECT and is then lost.
    let mut lost = TcpStream::connect(("127.0.0.1", mqtt)).unwrap();
    let mut connect = vec![0x10, 0, 0, 4];
    connect.extend_from_slice(b"MQTT");
    connect.extend_from_slice(&[4, 0x0E, 0, 60, 0, 4]); // clean, will of quality 1
    connect.extend_from_slice(b"lost");
    for text in ["wills/lost", "gone"] {
        connect.extend_from_slice(&[0, text.len() as u8]);
        connect.extend_from_slice(text.as_bytes());
    }
    connect[1] = (connect.len() - 2) as u8;
    lost.write_all(&connect).unwrap();
    let mut answer = [0; 4];
    lost.read_exact(&mut answer).unwrap();
    assert_eq!(answer, [0x20, 2, 0, 0]);
    drop(lost);
    assert_eq!(watcher.receive(LONG).unwrap(), Some(("wills/lost".into(), b"gone".to_vec())));
}

/// A small generator; the seed is printed by a failing assertion's text.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A call of Dapr's `SaveState` with these bytes as its message: HTTP/2 preface, settings, headers, data.
fn grpc_call(message: &[u8]) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, body: &[u8]| {
        let mut out = (body.len() as u32).to_be_bytes()[1..].to_vec();
        out.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
        out.extend_from_slice(body);
        out
    };
    // Literal fields that are not indexed (RFC 7541, section 6.2.2); method, scheme from the static table.
    let mut headers = vec![0x83, 0x86];
    for (name, value) in
        [(":path", "/dapr.proto.runtime.v1.Dapr/SaveState"), (":authority", "x"), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        headers.push(0);
        for text in [name, value] {
            headers.push(text.len() as u8);
            headers.extend_from_slice(text.as_bytes());
        }
    }
    let mut data = vec![0];
    data.extend_from_slice(&(message.len() as u32).to_be_bytes());
    data.extend_from_slice(message);
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    out.extend(frame(4, 0, 0, &[]));
    out.extend(frame(1, 4, 1, &headers));
    out.extend(frame(0, 1, 1, &data));
    out
}

#[test]
fn hostile_bytes_on_every_port_close_their_own_connection_and_harm_nobody_else() {
    let (mqtt, coap) = (free_port(), free_port());
    let place = place(mqtt, coap);
    let node = place.start();
    let (http, grpc): (u16, u16) = (place.flag("dapr-http-port").parse().unwrap(), place.flag("dapr-grpc-port").parse().unwrap());
    let mut good = Client::connect(mqtt, "good", true).unwrap();
    good.subscribe("echo/#").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut seed = 0x5e1_7ed9e;
    let connect = [0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 60, 0, 1, b'h'];
    for round in 0..200 {
        let length = (random(&mut seed) % 300) as usize;
        let bytes: Vec<u8> = (0..length).map(|_| random(&mut seed) as u8).collect();
        let _ = udp.send_to(&bytes, ("127.0.0.1", coap));
        for port in [mqtt, http, grpc] {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            if port == mqtt && round % 2 == 0 {
                let _ = stream.write_all(&connect);
            }
            if port == grpc && round % 2 == 0 {
                let _ = stream.write_all(&grpc_call(&bytes));
            }
            let _ = stream.write_all(&bytes);
            let _ = stream.read(&mut [0; 64]);
        }
        if round % 20 == 0 {
            good.publish("echo/a", round.to_string().as_bytes()).unwrap();
            let back = good.receive(Duration::from_secs(5)).unwrap();
            assert_eq!(back, Some(("echo/a".into(), round.to_string().into_bytes())), "round {round}");
        }
    }
    assert!(!node.has_logged("ended by a defect"), "{}", node.log().join("\n"));
    assert_eq!(node.terminate(), Some(0));
}

/// The bytes of a request that asks for HTTP/2, the client's preface and a second request on the connection.
#[test]
fn a_connection_changes_from_http_1_to_http_2_when_it_asks() {
    let place = Place::new("");
    let _node = place.start();
    let port: u16 = place.flag("dapr-http-port").parse().unwrap();
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let ask = "GET /v1.0/healthz HTTP/1.1\r\nhost: box\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n";
    socket.write_all(ask.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    // Preface, empty SETTINGS, and GET /v1.0/healthz?appid=other on stream 3 (indexed :method GET and :scheme http, literal :path).
    let path = b"/v1.0/healthz?appid=other";
    let mut frames = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00".to_vec();
    frames.extend([0, 0, 4 + path.len() as u8, 1, 5, 0, 0, 0, 3, 0x82, 0x86, 0x04, path.len() as u8]);
    frames.extend(path);
    socket.write_all(&frames).unwrap();
    // The first octet of an answer's header block is its status: 204 and 500 have entries in the static table.
    let mut answers = BTreeMap::new();
    while answers.len() < 2 {
        let mut head = [0; 9];
        socket.read_exact(&mut head).unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        socket.read_exact(&mut payload).unwrap();
        if head[3] == 1 {
            answers.insert(head[8], payload[0]);
        }
    }
    assert_eq!(answers, BTreeMap::from([(1, 0x89), (3, 0x8e)]), "stream 1 is the request that asked, 204; stream 3 is another, 500");
    // Who asks and then speaks something else is cut off, and nobody else.
    let mut liar = TcpStream::connect(("127.0.0.1", port)).unwrap();
    liar.set_read_timeout(Some(LONG)).unwrap();
    liar.write_all(ask.as_bytes()).unwrap();
    liar.write_all(&[b'x'; 100]).unwrap();
    let mut rest = Vec::new();
    let _ = liar.read_to_end(&mut rest); // an end or a reset, whichever comes first
    assert!(rest.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(selvedge_tests::http::request(port, "GET /v1.0/healthz", &[], "").start, "204");
}
