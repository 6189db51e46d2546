//! The system journal: one datagram per event, with the event's fields as fields of the entry.
//!
//! The protocol is systemd's "Native Journal Protocol". A large entry would need a sealed memory file, which cannot be passed on without
//! `unsafe`: texts are cut instead, so that every entry fits a datagram.

use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tracing::Level;

/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// Most of a message, in bytes. With the 32 fields that an event has at most, an entry stays below the 208 KiB of a datagram.
const MAX_MESSAGE: usize = 32 << 10;
/// Most of another field's value, in bytes.
const MAX_VALUE: usize = 4 << 10;
/// Stands where a text was cut.
const CUT: &str = " [cut]";

/// A way to the journal.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

/// `syslog(3)`'s number of a level.
pub(super) fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let end = (0..=most - CUT.len()).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
    format!("{}{CUT}", &text[..end])
}

/// One field: `NAME=value`, or with its length where the value has several lines.
fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

/// An entry: what happened, told with its fields for those who read messages alone, and each field under `SELVEDGE_` and its name.
pub(super) fn entry(level: Level, scope: &str, app_id: &str, message: &str, fields: &[(&'static str, Value)]) -> Vec<u8> {
    let mut told = message.to_owned();
    let mut out = Vec::with_capacity(256);
    put(&mut out, "PRIORITY", &priority(level).to_string());
    put(&mut out, "SYSLOG_IDENTIFIER", "selvedge");
    put(&mut out, "SELVEDGE_SCOPE", scope);
    put(&mut out, "SELVEDGE_APP_ID", app_id);
    for (name, value) in fields {
        let text = cut(&value.as_str().map_or_else(|| value.to_string(), str::to_owned), MAX_VALUE);
        let _ = write!(told, " {name}=");
        super::logs::quote(&mut told, &text);
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
        put(&mut out, &format!("SELVEDGE_{name}"), &text);
    }
    put(&mut out, "MESSAGE", &cut(&told, MAX_MESSAGE));
    out
}

impl Journal {
    /// A way to the journal at `path`, when `stream` leads there already: `variable` is `$JOURNAL_STREAM`, device and inode of what systemd
    /// connected.
    pub fn behind(stream: impl AsFd, variable: Option<&str>, path: &Path) -> Option<Self> {
        let (device, inode) = variable?.split_once(':')?;
        let file = File::from(stream.as_fd().try_clone_to_owned().ok()?).metadata().ok()?;
        if device.parse() != Ok(file.dev()) || inode.parse() != Ok(file.ino()) {
            return None;
        }
        let socket = UnixDatagram::unbound().ok()?;
        // A journal that does not keep up must not hold up the event loop; lines that find it full take the other way.
        socket.set_nonblocking(true).ok()?;
        Some(Self { socket, path: path.to_owned() })
    }

    /// Hands over an entry.
    ///
    /// # Errors
    /// When nobody takes it; nothing is kept.
    pub(super) fn send(&self, entry: &[u8]) -> io::Result<()> {
        self.socket.send_to(entry, &self.path).map(drop)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// An entry as journald takes it apart.
    pub fn parsed(mut entry: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while let Some(end) = entry.iter().position(|b| *b == b'\n') {
            let line = std::str::from_utf8(&entry[..end]).unwrap();
            entry = &entry[end + 1..];
            let (name, value) = match line.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => {
                    let length = u64::from_le_bytes(entry[..8].try_into().unwrap()) as usize;
                    let value = String::from_utf8(entry[8..8 + length].to_vec()).unwrap();
                    assert_eq!(entry[8 + length], b'\n');
                    entry = &entry[9 + length..];
                    (line, value)
                }
            };
            assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_') && name.len() <= 64, "{name}");
            fields.insert(name.to_owned(), value);
        }
        assert!(entry.is_empty());
        fields
    }

    #[test]
    fn values_of_several_lines_and_without_end_keep_the_entry_whole() {
        let long = "ä".repeat(MAX_MESSAGE);
        let entry = entry(Level::ERROR, "a.b", "box", "two\nlines", &[("app.id", "x\n=y\n".into()), ("bytes", 3.into()), ("error", long.into())]);
        let fields = parsed(&entry);
        assert_eq!((fields["PRIORITY"].as_str(), fields["SELVEDGE_APP_ID"].as_str(), fields["SELVEDGE_BYTES"].as_str()), ("3", "x\n=y\n", "3"));
        assert!(fields["MESSAGE"].starts_with("two\nlines app.id=\"x\\n=y\\n\" bytes=3 error=") && fields["SELVEDGE_ERROR"].ends_with(CUT));
        assert!(fields["SELVEDGE_ERROR"].len() <= MAX_VALUE && fields["MESSAGE"].len() <= MAX_MESSAGE);
    }

    #[test]
    fn only_a_stream_that_systemd_connected_leads_to_the_journal() {
        let file = tempfile::tempfile().unwrap();
        let (device, inode) = file.metadata().map(|m| (m.dev(), m.ino())).unwrap();
        let behind = |variable: Option<String>| Journal::behind(&file, variable.as_deref(), Path::new(SOCKET)).is_some();
        assert!(behind(Some(format!("{device}:{inode}"))));
        for other in [None, Some(format!("{device}:{}", inode + 1)), Some(format!("{}:{inode}", device + 1)), Some("x".into())] {
            assert!(!behind(other.clone()), "{other:?}");
        }
    }
}
