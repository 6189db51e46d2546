//! What `/proc` says of load, processor, memory and network (proc(5)).

use crate::reading::{Group, Reading, Value};

/// `/proc/loadavg`.
pub(super) fn load(text: &str) -> Result<Vec<Reading>, String> {
    let mut words = text.split_whitespace();
    ["1m", "5m", "15m"]
        .into_iter()
        .map(|span| {
            let value: f64 = words.next().and_then(|w| w.parse().ok()).filter(|x: &f64| x.is_finite()).ok_or("not three load averages")?;
            Ok(Reading::new(Group::Load, &[span], Value::Real(value), "processes"))
        })
        .collect()
}

/// What the processors did since the machine started, in ticks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct CpuTimes {
    total: u64,
    idle: u64,
    iowait: u64,
}

impl CpuTimes {
    /// The first line of `/proc/stat`: user nice system idle iowait irq softirq steal; guest times are within user.
    pub fn parse(text: &str) -> Result<Self, String> {
        let line = text.lines().find_map(|l| l.strip_prefix("cpu ")).ok_or("no line that begins with cpu")?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).map_while(|w| w.parse().ok()).collect();
        let [_, _, _, idle, rest @ ..] = ticks.as_slice() else { return Err("fewer than four processor times".to_owned()) };
        let total = ticks.iter().fold(0u64, |sum, t| sum.saturating_add(*t));
        Ok(Self { total, idle: *idle, iowait: rest.first().copied().unwrap_or(0) })
    }

    /// Shares of the time since `before`; nothing when no tick has passed, or when counters went back.
    pub fn since(self, before: Self) -> Vec<Reading> {
        let total = self.total.saturating_sub(before.total);
        if total == 0 {
            return Vec::new();
        }
        let idle = self.idle.saturating_sub(before.idle);
        // The kernel's count of time spent waiting for disks may go back (proc(5)).
        let iowait = self.iowait.saturating_sub(before.iowait);
        let percent = |ticks: u64| Value::Real((ticks as f64 / total as f64 * 10_000.0).round() / 100.0);
        vec![
            Reading::new(Group::Cpu, &["usage"], percent(total.saturating_sub(idle.saturating_add(iowait))), "percent"),
            Reading::new(Group::Cpu, &["iowait"], percent(iowait.min(total)), "percent"),
        ]
    }
}

/// `/proc/meminfo`, in bytes.
pub(super) fn memory(text: &str) -> Result<Vec<Reading>, String> {
    let wanted = [("MemTotal", "total"), ("MemAvailable", "available"), ("SwapTotal", "swap-total"), ("SwapFree", "swap-free")];
    let readings: Vec<Reading> = text
        .lines()
        .filter_map(|line| {
            let (key, rest) = line.split_once(':')?;
            let (_, name) = wanted.iter().find(|(k, _)| *k == key)?;
            let kilobytes: u64 = rest.split_whitespace().next()?.parse().ok()?;
            Some(Reading::new(Group::Memory, &[name], Value::Whole(kilobytes.saturating_mul(1_024)), "bytes"))
        })
        .collect();
    if readings.is_empty() { Err("no amount that is known".to_owned()) } else { Ok(readings) }
}

/// `/proc/net/dev`: counters of every interface but the loopback one.
pub(super) fn network(text: &str) -> Result<Vec<Reading>, String> {
    let mut readings = Vec::new();
    for line in text.lines().skip(2) {
        let Some((name, counters)) = line.split_once(':') else { continue };
        let name = name.trim();
        if name == "lo" {
            continue;
        }
        let counters: Vec<u64> = counters.split_whitespace().map_while(|w| w.parse().ok()).collect();
        // Received: bytes packets errs drop fifo frame compressed multicast; then sent: bytes packets errs drop ...
        let [received, _, receive_errors, _, _, _, _, _, sent, _, send_errors, ..] = counters.as_slice() else {
            return Err(format!("not the counters of an interface: {name}"));
        };
        for (what, value, unit) in [
            ("received", received, "bytes"),
            ("sent", sent, "bytes"),
            ("receive-errors", receive_errors, "packets"),
            ("send-errors", send_errors, "packets"),
        ] {
            readings.push(Reading::new(Group::Network, &[name, what], Value::Whole(*value), unit));
        }
    }
    Ok(readings)
}
