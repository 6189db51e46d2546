//! HTTP for tests: a client of one request, and an application that answers by a closure.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A request or an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// `POST /path` or a status as text.
    pub start: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Message {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

fn read(stream: &mut BufReader<TcpStream>) -> Option<Message> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut parts = line.split_whitespace();
    let (a, b) = (parts.next()?, parts.next()?);
    let start = if a.starts_with("HTTP/") { b.to_owned() } else { format!("{a} {b}") };
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let Some((k, v)) = line.trim().split_once(':') else { break };
        headers.push((k.to_ascii_lowercase(), v.trim().to_owned()));
    }
    let mut message = Message { start, headers, body: String::new() };
    let length = message.header("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    message.body = String::from_utf8_lossy(&body).into_owned();
    Some(message)
}

/// One request to this machine.
///
/// # Panics
/// When nothing answers.
#[must_use]
pub fn request(port: u16, start: &str, headers: &[(&str, &str)], body: &str) -> Message {
    try_request(port, start, headers, body).unwrap()
}

/// The same where the node may be gone.
///
/// # Errors
/// When the connection cannot be made or ends too early.
pub fn try_request(port: u16, start: &str, headers: &[(&str, &str)], body: &str) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let mut text = format!("{start} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (k, v) in headers {
        text += &format!("{k}: {v}\r\n");
    }
    stream.write_all(format!("{text}\r\n{body}").as_bytes())?;
    read(&mut BufReader::new(stream)).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
}

/// An application; it goes on until the test ends.
pub struct App {
    /// Its port.
    pub port: u16,
    /// Requests so far.
    pub requests: Arc<Mutex<Vec<Message>>>,
}

impl App {
    /// Answers each request with the status and body that `answer` gives.
    #[must_use]
    pub fn start(port: u16, answer: impl Fn(&Message) -> (u16, String) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, answer) = (seen.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream.try_clone().unwrap());
                    let mut stream = stream;
                    while let Some(request) = read(&mut reader) {
                        let (status, body) = answer(&request);
                        seen.lock().unwrap().push(request);
                        let text = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        if stream.write_all(text.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        Self { port, requests }
    }

    /// Requests to a path.
    #[must_use]
    pub fn to(&self, start: &str) -> Vec<Message> {
        self.requests.lock().unwrap().iter().filter(|r| r.start == start).cloned().collect()
    }
}
