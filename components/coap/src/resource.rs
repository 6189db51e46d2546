//! What a request asks for: options to topics (RFC 7252, section 5.10).

use bytes::Bytes;
use coap_lite::Packet;
use selvedge::topic;

use crate::block::Block;
use crate::endpoint::Answer;
use crate::packet::{Code, uint};

const GET: u8 = 1;
const POST: u8 = 2;
const PUT: u8 = 3;

/// Longest value of a path segment, query or host option (section 5.10, table 4).
const MAX_TEXT_OPTION_BYTES: usize = 255;
/// Largest lifetime that `?ttl=` may ask for is what the message carries.
const TTL: &str = "ttl";
const RETAIN: &str = "retain";

/// The options of a request that mean something here.
#[derive(Debug, Default)]
pub(crate) struct Options {
    path: Vec<String>,
    query: Vec<String>,
    pub content_format: Option<u16>,
    pub accept: Option<u16>,
    pub observe: Option<u32>,
    pub block1: Option<Block>,
    pub block2: Option<Block>,
    pub size1: Option<u32>,
}

/// A request that cannot be served.
#[derive(Debug, PartialEq)]
pub(crate) struct Refusal {
    pub answer: Answer,
    /// A critical option was not understood: what is not confirmable is reset instead (section 5.4.1).
    pub critical: bool,
}

impl From<Answer> for Refusal {
    fn from(answer: Answer) -> Self {
        Self { answer, critical: false }
    }
}

/// What a request is for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Publish { topic: String, retain: bool, ttl_seconds: Option<u32> },
    Read { topic: String },
    Discover,
}

impl Options {
    pub(crate) fn of(packet: &Packet) -> Result<Self, Refusal> {
        let mut options = Self::default();
        for (number, values) in packet.options() {
            let first = values.front().map(Vec::as_slice).unwrap_or_default();
            // An option that may not repeat and does, or has a length it may not have, counts as not understood
            // (sections 5.4.3, 5.4.5): elective ones are skipped.
            let once = values.len() == 1;
            let understood = match number {
                3 => once && first.len() <= MAX_TEXT_OPTION_BYTES,
                7 => once && first.len() <= 2,
                6 => {
                    options.observe = uint(first).filter(|_| first.len() <= 3);
                    true
                }
                11 => texts(values, &mut options.path)?,
                15 => texts(values, &mut options.query)?,
                12 => {
                    options.content_format = uint(first).and_then(|n| u16::try_from(n).ok());
                    true
                }
                17 => {
                    options.accept = uint(first).and_then(|n| u16::try_from(n).ok());
                    once && options.accept.is_some()
                }
                23 | 27 => {
                    let Some(block) = Block::from_value(first).filter(|_| once) else {
                        return Err(Answer::text(Code::BAD_REQUEST, "a block option has 0 to 3 bytes and a size of 16 to 1024").into());
                    };
                    *(if *number == 23 { &mut options.block2 } else { &mut options.block1 }) = Some(block);
                    true
                }
                60 => {
                    options.size1 = uint(first);
                    true
                }
                35 | 39 => return Err(Answer::text(Code::NO_PROXY, "this is no proxy").into()),
                elective => elective % 2 == 0,
            };
            if !understood {
                return Err(Refusal { answer: Answer::text(Code::BAD_OPTION, &format!("option {number} is not understood")), critical: true });
            }
        }
        Ok(options)
    }

    /// What the request is for.
    pub(crate) fn target(&self, method: u8) -> Result<Target, Answer> {
        if self.path.first().is_some_and(|s| s == ".well-known") {
            return match (&self.path[1..], method) {
                ([core], GET) if core == "core" => Ok(Target::Discover),
                ([core], _) if core == "core" => Err(Answer::of(Code::METHOD_NOT_ALLOWED)),
                _ => Err(Answer::of(Code::NOT_FOUND)),
            };
        }
        let publish = match method {
            GET => false,
            POST | PUT => true,
            _ => return Err(Answer::of(Code::METHOD_NOT_ALLOWED)),
        };
        if self.path.is_empty() {
            return Err(Answer::text(if publish { Code::METHOD_NOT_ALLOWED } else { Code::NOT_FOUND }, "the path is the topic"));
        }
        let topic = self.topic()?;
        if !publish {
            return Ok(Target::Read { topic });
        }
        if topic.starts_with('$') {
            return Err(Answer::text(Code::FORBIDDEN, "topics that begin with $ belong to the box"));
        }
        let (mut retain, mut ttl_seconds) = (false, None);
        for query in &self.query {
            match query.split_once('=').unwrap_or((query, "")) {
                (RETAIN, "" | "1" | "true") => retain = true,
                (RETAIN, "0" | "false") => retain = false,
                (TTL, seconds) => {
                    ttl_seconds = Some(seconds.parse().map_err(|_| Answer::text(Code::BAD_REQUEST, "ttl is a whole number of seconds"))?);
                }
                _ => return Err(Answer::text(Code::BAD_REQUEST, "known queries are retain and ttl=SECONDS")),
            }
        }
        Ok(Target::Publish { topic, retain, ttl_seconds })
    }

    /// The topic that the path names. What would change its levels, or make it a filter, is refused.
    fn topic(&self) -> Result<String, Answer> {
        for segment in &self.path {
            if segment.contains(['/', '+', '#', '\0']) {
                return Err(Answer::text(Code::BAD_REQUEST, "a path segment must not contain / + # or U+0000"));
            }
            if matches!(segment.as_str(), "." | "..") {
                return Err(Answer::text(Code::BAD_REQUEST, "a path segment must not be . or .."));
            }
        }
        let topic = self.path.join("/");
        topic::check_name(&topic).map_err(|e| Answer::text(Code::BAD_REQUEST, &e.to_string()))?;
        Ok(topic)
    }

    /// What names the body of an upload: path and query.
    pub(crate) fn upload_target(&self) -> String {
        let mut target = self.path.join("/");
        for query in &self.query {
            target.push('?');
            target.push_str(query);
        }
        target
    }
}

fn texts(values: &std::collections::LinkedList<Vec<u8>>, into: &mut Vec<String>) -> Result<bool, Refusal> {
    for value in values {
        if value.len() > MAX_TEXT_OPTION_BYTES {
            return Ok(false);
        }
        let Ok(text) = std::str::from_utf8(value) else {
            return Err(Answer::text(Code::BAD_REQUEST, "path and query are UTF-8").into());
        };
        into.push(text.to_owned());
    }
    Ok(true)
}

/// The description of what can be read (RFC 6690): one link per topic, as many as fit into `limit` bytes.
pub(crate) fn link_format<'a>(topics: impl Iterator<Item = (&'a str, Option<u16>)>, limit: usize) -> Bytes {
    let mut text = String::from("</.well-known/core>;ct=40");
    for (topic, format) in topics {
        let mut link = String::with_capacity(topic.len() + 16);
        link.push_str(",</");
        for byte in topic.bytes() {
            // RFC 3986, section 3.3: what a path may hold as it is.
            if byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@".contains(&byte) {
                link.push(char::from(byte));
            } else {
                link.push_str(&format!("%{byte:02X}"));
            }
        }
        link.push_str(">;obs");
        if let Some(format) = format {
            link.push_str(&format!(";ct={format}"));
        }
        if text.len() + link.len() > limit {
            break;
        }
        text.push_str(&link);
    }
    Bytes::from(text)
}

#[cfg(test)]
mod tests {
    use coap_lite::{CoapOption, MessageType};

    use super::*;
    use crate::packet::message;

    fn request(options: &[(u16, &[u8])]) -> Packet {
        let mut packet = message(MessageType::Confirmable, 1, Code(POST), &[]);
        for (number, value) in options {
            packet.add_option(CoapOption::from(*number), value.to_vec());
        }
        packet
    }

    fn code_of(method: u8, options: &[(u16, &[u8])]) -> Result<Target, Code> {
        Options::of(&request(options)).map_err(|r| r.answer.code)?.target(method).map_err(|a| a.code)
    }

    #[test]
    fn paths_are_topics() {
        let publish = |topic: &str| Ok(Target::Publish { topic: topic.into(), retain: false, ttl_seconds: None });
        assert_eq!(code_of(POST, &[(11, b"sensors"), (11, b"a")]), publish("sensors/a"));
        assert_eq!(code_of(PUT, &[(11, b"a"), (11, b""), (11, "ä%2F".as_bytes())]), publish("a//ä%2F"), "options are decoded by the sender");
        assert_eq!(code_of(GET, &[(11, b"a")]), Ok(Target::Read { topic: "a".into() }));
        assert_eq!(
            code_of(POST, &[(11, b"a"), (15, b"retain"), (15, b"ttl=60")]),
            Ok(Target::Publish { topic: "a".into(), retain: true, ttl_seconds: Some(60) })
        );
        for bad in [&b"a/b"[..], b"+", b"#", b"a\0", b".", b"..", b"\xFF"] {
            assert_eq!(code_of(POST, &[(11, b"x"), (11, bad)]), Err(Code::BAD_REQUEST), "{bad:?}");
        }
        assert_eq!(code_of(POST, &[(11, b"$SYS"), (11, b"a")]), Err(Code::FORBIDDEN));
        assert_eq!(code_of(POST, &[]), Err(Code::METHOD_NOT_ALLOWED));
        assert_eq!(code_of(POST, &[(11, b"")]), Err(Code::BAD_REQUEST));
        for method in [4, 5, 6, 7, 20] {
            assert_eq!(code_of(method, &[(11, b"a")]), Err(Code::METHOD_NOT_ALLOWED), "{method}");
        }
        for bad in [&b"ttl=x"[..], b"ttl=-1", b"retain=2", b"other"] {
            assert_eq!(code_of(POST, &[(11, b"a"), (15, bad)]), Err(Code::BAD_REQUEST), "{bad:?}");
        }
    }

    #[test]
    fn well_known_core_is_no_topic() {
        assert_eq!(code_of(GET, &[(11, b".well-known"), (11, b"core")]), Ok(Target::Discover));
        assert_eq!(code_of(POST, &[(11, b".well-known"), (11, b"core")]), Err(Code::METHOD_NOT_ALLOWED));
        assert_eq!(code_of(GET, &[(11, b".well-known"), (11, b"x")]), Err(Code::NOT_FOUND));
    }

    #[test]
    fn critical_options_must_be_understood_and_elective_ones_need_not() {
        let long = [b'a'; 256];
        for (number, value, code) in [
            (9, &b""[..], Some(Code::BAD_OPTION)), // OSCORE
            (1, b"x", Some(Code::BAD_OPTION)),     // If-Match
            (65_001, b"x", Some(Code::BAD_OPTION)),
            (65_000, b"x", None),
            (11, &long, Some(Code::BAD_OPTION)),
            (17, b"abc", Some(Code::BAD_OPTION)),
            (35, b"coap://x", Some(Code::NO_PROXY)),
            (39, b"http", Some(Code::NO_PROXY)),
            (27, b"\x07", Some(Code::BAD_REQUEST)),
            (3, b"box", None),
            (7, b"\x16\x33", None),
            (12, b"abc", None),
        ] {
            assert_eq!(code_of(POST, &[(number, value), (11, b"a")]).err(), code, "option {number}");
        }
        assert_eq!(code_of(POST, &[(3, b"a"), (3, b"b"), (11, b"a")]), Err(Code::BAD_OPTION), "Uri-Host twice");
    }

    #[test]
    fn links_are_escaped_and_bounded() {
        let topics = [("a/b", Some(50)), ("x>;y\"\n", None)];
        assert_eq!(link_format(topics.into_iter(), 1_000).as_ref(), b"</.well-known/core>;ct=40,</a/b>;obs;ct=50,</x%3E;y%22%0A>;obs");
        assert_eq!(link_format(topics.into_iter(), 50).as_ref(), b"</.well-known/core>;ct=40,</a/b>;obs;ct=50");
    }
}
