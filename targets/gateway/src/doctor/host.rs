//! The clock, memory and the limits of the system.

use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};
use selvedge::component::Finding;
use selvedge::resource::ListenerProtocol;

use super::Patient;

/// 2024-01-01: a clock before that has not been set.
const PLAUSIBLE: u64 = 1_704_067_200;
/// What a node with full lanes of requests and many devices may need.
const MEMORY_BYTES: u64 = 64 << 20;
/// Descriptors that a node needs beside those of devices.
const OTHER_FILES: u64 = 128;

pub fn examine(patient: &Patient) -> Vec<Finding> {
    let mut findings = vec![clock()];
    findings.extend(synchronised());
    findings.extend(memory());
    findings.extend(descriptors(patient));
    findings.extend(kernel(patient));
    findings
}

fn read_number(path: &str) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

fn clock() -> Finding {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if seconds < PLAUSIBLE {
        let found = format!("the clock says {seconds} s after 1970: it has not been set");
        return Finding::problem(
            "clock",
            found,
            "start time synchronisation (`timedatectl set-ntp true`), or fit a clock chip; certificates fail until then",
        );
    }
    if std::path::Path::new("/dev/rtc0").exists() {
        Finding::good("clock", "the year is plausible, and there is a clock chip")
    } else {
        Finding::note(
            "clock",
            "there is no clock chip: after a power cut the clock starts in the past",
            "lifetimes in the queue do not mind; TLS does, until the time is synchronised",
        )
    }
}

/// systemd's own notes, else what `timedatectl` says.
fn synchronised() -> Option<Finding> {
    let yes = || Some(Finding::good("clock", "synchronised"));
    if std::path::Path::new("/run/systemd/timesync/synchronized").exists() {
        return yes();
    }
    let output = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output().ok().filter(|o| o.status.success());
    match output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).as_deref() {
        Some("yes") => yes(),
        Some("no") => Some(Finding::warning("clock", "not synchronised", "`timedatectl set-ntp true`, and check that UDP port 123 is let out")),
        _ => Some(Finding::note("clock", "whether it is synchronised cannot be told: there is no systemd to ask", "")),
    }
}

fn memory() -> Option<Finding> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?.split_whitespace().next()?.parse().ok()?;
    let found = format!("{} MiB are available", kib >> 10);
    Some(if kib << 10 < MEMORY_BYTES {
        Finding::warning("memory", found, "the node itself needs about 10 MiB: look for what takes the rest")
    } else {
        Finding::good("memory", found)
    })
}

/// The limit of the node that runs, else of this shell.
fn descriptors(patient: &Patient) -> Option<Finding> {
    let of_node = patient.running.and_then(|process| {
        let text = std::fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
        text.lines().find_map(|l| l.strip_prefix("Max open files"))?.split_whitespace().next()?.parse::<u64>().ok()
    });
    let (limit, whose) = match of_node {
        Some(limit) => (limit, "of the node"),
        None => (getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), "of this shell"),
    };
    let clients: usize = patient.resources.listeners.iter().filter(|l| l.protocol == ListenerProtocol::Mqtt).map(|l| l.limits.clients).sum();
    let needed = clients as u64 + OTHER_FILES;
    let found = format!("{limit} open files {whose}, {needed} needed for {clients} clients");
    Some(if limit < needed {
        Finding::warning(
            "limits",
            found,
            format!("LimitNOFILE={} in the service unit, or a smaller limits.clients", (needed * 2).next_power_of_two()),
        )
    } else {
        Finding::good("limits", found)
    })
}

fn kernel(patient: &Patient) -> Vec<Finding> {
    let mut findings = Vec::new();
    let clients = patient.resources.listeners.iter().map(|l| l.limits.clients).max().unwrap_or_default() as u64;
    if let Some(queue) = read_number("/proc/sys/net/core/somaxconn").filter(|n| *n < 128.min(clients)) {
        let found = format!("net.core.somaxconn is {queue}: devices that all come back at once are refused");
        findings.push(Finding::warning("kernel", found, "sysctl net.core.somaxconn=1024"));
    }
    let coap = patient.resources.listeners.iter().any(|l| l.protocol == ListenerProtocol::Coap);
    if let Some(buffer) = read_number("/proc/sys/net/core/rmem_default").filter(|n| coap && *n < 128 << 10) {
        let found = format!("net.core.rmem_default is {buffer} bytes: bursts of CoAP datagrams are dropped");
        findings.push(Finding::note("kernel", found, "sysctl net.core.rmem_default=262144"));
    }
    findings
}
