//! The local control channel: a Unix socket in the data folder, for its owner only. One line asks, one line of JSON answers.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use selvedge::node::NodeStatus;
use selvedge::telemetry::logs::parse_level;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

use crate::flags::Flags;
use crate::reload::Reloader;
use crate::run::data_dir_of_node;
use crate::say::say;
use crate::{escape, queue};

/// Longest question.
const MAX_LINE: u64 = 1_024;
/// Questions served at a time.
const MAX_ASKERS: usize = 16;

/// Where the socket of a data folder stands.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// Binds the socket, in place of one that a node left behind.
pub fn bind(data_dir: &Path) -> io::Result<UnixListener> {
    let path = path(data_dir);
    if BlockingStream::connect(&path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another node answers there"));
    }
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until dropped.
pub async fn serve(listener: UnixListener, status: NodeStatus, reloader: Reloader) {
    let mut askers = tokio::task::JoinSet::new();
    loop {
        while askers.len() >= MAX_ASKERS {
            askers.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (status, reloader) = (status.clone(), reloader.clone());
        askers.spawn(async move {
            let (read, mut write) = stream.into_split();
            let mut line = String::new();
            let mut read = tokio::io::BufReader::new(read.take(MAX_LINE));
            let asked = tokio::time::timeout(Duration::from_secs(5), read.read_line(&mut line)).await;
            if !matches!(asked, Ok(Ok(n)) if n > 0) {
                return;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let answer = match words.as_slice() {
                ["status"] => Ok(status.to_json()),
                ["escape", order @ ..] => escape::answer(&status, order).await,
                ["queue", order @ ..] => queue::answer(&status, order).await,
                ["reload", level @ ..] if level.len() <= 1 => match level.first().map(|level| parse_level(level)).transpose() {
                    Ok(level) => Ok(reloader.reload(level).await),
                    Err(accepted) => Err(format!("reload: found {:?}; accepted is {accepted}", level.join(" "))),
                },
                _ => Err(format!("unknown question {:?}; accepted are status, escape ..., queue ..., reload [LEVEL]", line.trim())),
            };
            let answer = answer.unwrap_or_else(|error| serde_json::json!({"error": error}));
            let _ = write.write_all(format!("{answer}\n").as_bytes()).await;
        });
        while askers.try_join_next().is_some() {}
    }
}

/// Process id of the node that answers for a data folder, as the system knows it.
pub fn process(data_dir: &Path) -> Option<u32> {
    let stream = BlockingStream::connect(path(data_dir)).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
}

/// Asks the node of a data folder.
pub fn ask(data_dir: &Path, question: &str) -> io::Result<Value> {
    let mut stream = BlockingStream::connect(path(data_dir))?;
    // What is set aside may be 64 MiB, which are read and written again before the answer.
    let patience = if question.starts_with("queue ") { Duration::from_secs(300) } else { Duration::from_secs(5) };
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::other)
}

/// Asks the node of the flags' data folder. Says on standard error what went wrong, and gives the exit code.
pub fn ask_flags(flags: &Flags, question: &str) -> Result<Value, ExitCode> {
    let dir = data_dir_of_node(flags);
    match ask(&dir, question) {
        Ok(answer) => match answer["error"].as_str() {
            Some(error) => {
                eprintln!("selvedge: {error}");
                Err(ExitCode::FAILURE)
            }
            None => Ok(answer),
        },
        Err(error) => {
            let remedy = match error.kind() {
                io::ErrorKind::PermissionDenied => "run this as root, or as the node's user",
                io::ErrorKind::ConnectionRefused => "the node that was there has ended",
                io::ErrorKind::NotFound => "start one (`selvedge run`), or give the --data-dir of the one that runs",
                _ => "`selvedge doctor` examines it",
            };
            eprintln!("selvedge: no node answers at {}: {error}; {remedy}", path(&dir).display());
            Err(ExitCode::FAILURE)
        }
    }
}

/// Asks, and prints the answer as `show` puts it, or as JSON with `--json`.
pub fn print(flags: &Flags, question: &str, show: impl FnOnce(&Value) -> String) -> ExitCode {
    match ask_flags(flags, question) {
        Ok(answer) => {
            let text = if flags.switch("json", false) { format!("{answer:#}") } else { show(&answer) };
            say!("{text}");
            ExitCode::SUCCESS
        }
        Err(code) => code,
    }
}
