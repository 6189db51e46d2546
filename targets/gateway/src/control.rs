//! The local control channel: a Unix socket in the data folder, for its owner only. One line asks, one line of JSON answers.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use selvedge::node::NodeStatus;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;

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
pub async fn serve(listener: UnixListener, status: NodeStatus) {
    let mut askers = tokio::task::JoinSet::new();
    loop {
        while askers.len() >= MAX_ASKERS {
            askers.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let status = status.clone();
        askers.spawn(async move {
            let (read, mut write) = stream.into_split();
            let mut line = String::new();
            let mut read = tokio::io::BufReader::new(read.take(MAX_LINE));
            let asked = tokio::time::timeout(Duration::from_secs(5), read.read_line(&mut line)).await;
            if !matches!(asked, Ok(Ok(n)) if n > 0) {
                return;
            }
            let answer = match line.trim() {
                "status" => status.to_json(),
                other => serde_json::json!({"error": format!("unknown question {other:?}; accepted is status")}),
            };
            let _ = write.write_all(format!("{answer}\n").as_bytes()).await;
        });
        while askers.try_join_next().is_some() {}
    }
}

/// Asks the node of a data folder.
pub fn ask(data_dir: &Path, question: &str) -> io::Result<serde_json::Value> {
    let mut stream = BlockingStream::connect(path(data_dir))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    serde_json::from_str(&line).map_err(io::Error::other)
}
