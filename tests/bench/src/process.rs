//! A process that ends with its owner, and what the kernel says about it.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// A process of ours.
pub struct Process(Child);

impl Process {
    /// Starts it; what it says goes to a file.
    pub fn start(mut command: Command, log: &Path) -> io::Result<Self> {
        let log = fs::File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        child.map(Self).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", command.get_program().to_string_lossy())))
    }

    fn file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/{}/{name}", self.0.id()))
    }

    /// Processor time so far, user and system, all threads, in seconds. The kernel counts in hundredths.
    pub fn cpu(&self) -> io::Result<f64> {
        cpu(&self.file("stat")?)
    }

    /// Resident memory, in bytes: all of it, then what is not backed by a file.
    pub fn resident(&self) -> io::Result<(f64, f64)> {
        let text = self.file("status")?;
        Ok((field(&text, "VmRSS:")? * 1024.0, field(&text, "RssAnon:")? * 1024.0))
    }

    /// Bytes it has caused to be written to storage.
    pub fn written(&self) -> io::Result<f64> {
        let text = self.file("io")?;
        Ok(field(&text, "write_bytes:")? - field(&text, "cancelled_write_bytes:")?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn cpu(stat: &str) -> io::Result<f64> {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|t| t.parse::<f64>().ok()).ok_or_else(|| io::Error::other("/proc/PID/stat is not as expected"));
    Ok((ticks(11)? + ticks(12)?) / rustix::param::clock_ticks_per_second() as f64)
}

fn field(text: &str, name: &str) -> io::Result<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok());
    value.ok_or_else(|| io::Error::other(format!("/proc does not say {name}")))
}

/// What a folder's files take on the disk, in bytes.
pub fn disk(folder: &Path) -> io::Result<f64> {
    let mut sum = 0.0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        sum += if metadata.is_dir() { disk(&entry.path())? } else { metadata.blocks() as f64 * 512.0 };
    }
    Ok(sum)
}

/// A port that nobody uses at the moment, below those that the system gives to outgoing connections: none of these may take it before
/// it is bound.
pub fn free_port() -> io::Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 100) as u16 * 100;
    for _ in 0..10_000 {
        let port = 20_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    Err(io::Error::other("no free port from 20000 to 29999"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_a_name_with_spaces_and_brackets() {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let seconds = cpu("12 (a) b) c) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20").unwrap();
        assert!((seconds - 200.0 / ticks).abs() < 1e-9, "{seconds}");
        assert!(cpu("nonsense").is_err());
    }
}
