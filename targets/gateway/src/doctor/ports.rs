//! Addresses that listeners want: free, ours, or somebody else's.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use selvedge::component::Finding;
use selvedge::resource::ListenerProtocol;

use super::Patient;
use crate::flags::Flags;
use crate::serve_api::Doors;

/// An address that somebody wants to listen on.
struct Wanted {
    subject: String,
    udp: bool,
    address: SocketAddr,
    /// What chooses another one.
    choice: String,
}

pub fn examine(patient: &Patient) -> Vec<Finding> {
    patient
        .resources
        .listeners
        .iter()
        .map(|listener| {
            let subject = format!("listener {}", listener.name);
            match listener.bind.parse() {
                Ok(address) => {
                    let udp = listener.protocol == ListenerProtocol::Coap;
                    one(patient.running, Wanted { subject, udp, address, choice: "another `bind`".to_owned() })
                }
                Err(_) => Finding::note(subject, format!("takes its sockets from the service manager ({})", listener.bind), ""),
            }
        })
        .collect()
}

/// Addresses of Dapr's APIs and of the metrics, by the command line of the node that runs, else by this one.
pub fn apis(patient: &Patient, flags: &Flags) -> Vec<Finding> {
    let doors = match Doors::from_flags(flags) {
        Ok(doors) => doors,
        Err(error) => return vec![Finding::problem("APIs", error.to_string(), "mend the command line")],
    };
    let addresses = doors.addresses();
    let mut findings: Vec<Finding> = addresses
        .iter()
        .map(|(what, flag, address)| {
            one(patient.running, Wanted { subject: (*what).to_owned(), udp: false, address: *address, choice: format!("another {flag}") })
        })
        .collect();
    let open = addresses.iter().find(|(what, _, address)| *what != "metrics" && !address.ip().is_loopback());
    let token = |environment: &[u8]| environment.split(|b| *b == 0).any(|v| v.strip_prefix(b"DAPR_API_TOKEN=").is_some_and(|t| !t.is_empty()));
    let guarded = match patient.running {
        // Of a node that belongs to somebody else it cannot be told, and nothing is said.
        Some(process) => std::fs::read(format!("/proc/{process}/environ")).map_or(true, |e| token(&e)),
        None => std::env::var_os("DAPR_API_TOKEN").is_some_and(|t| !t.is_empty()),
    };
    if let Some((what, _, address)) = open.filter(|_| !guarded) {
        let found = format!("{address}: everybody who reaches the box may call it");
        findings.push(Finding::note(*what, found, "--dapr-listen-addresses 127.0.0.1 keeps it to the box; DAPR_API_TOKEN asks callers for a token"));
    }
    findings
}

fn one(running: Option<u32>, wanted: Wanted) -> Finding {
    let Wanted { subject, udp, address, choice } = wanted;
    let kind = if udp { "udp" } else { "tcp" };
    let bound = if udp { UdpSocket::bind(address).map(drop) } else { TcpListener::bind(address).map(drop) };
    match bound {
        Ok(()) if running.is_some() => Finding::warning(
            subject,
            format!("{kind} {address} is free although a node runs"),
            "has the YAML changed since it started? `selvedge reload` says what needs a restart",
        ),
        Ok(()) => Finding::good(subject, format!("{kind} {address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken(running, subject, kind, address, &choice),
        Err(error) => Finding::problem(
            subject,
            format!("{kind} {address} cannot be bound: {error}"),
            "ports below 1024 need CAP_NET_BIND_SERVICE; the address must be one of the box's",
        ),
    }
}

fn taken(running: Option<u32>, subject: String, kind: &str, address: SocketAddr, choice: &str) -> Finding {
    match owner(kind, address.port(), running) {
        Some((process, _)) if Some(process) == running => Finding::good(subject, format!("{kind} {address} is the running node's")),
        Some((1, name)) if name == "systemd" => {
            Finding::good(subject, format!("{kind} {address} is held by systemd, for the service that its socket unit names"))
        }
        Some((process, name)) => {
            let found = format!("{kind} {address} is taken by process {process} ({name})");
            Finding::problem(subject, found, format!("stop that program, or choose {choice}"))
        }
        // Without rights over other users' processes nobody is seen.
        None if running.is_some() => {
            Finding::note(subject, format!("{kind} {address} is taken, most likely by the node that runs"), "run this as root to be sure")
        }
        None => Finding::problem(
            subject,
            format!("{kind} {address} is taken, by whom cannot be seen"),
            format!("run this as root to see by whom, or choose {choice}"),
        ),
    }
}

/// Who listens at a TCP port, as far as that can be seen.
pub fn holder(port: u16) -> String {
    owner("tcp", port, None)
        .map_or_else(|| "another program (root can see which)".to_owned(), |(process, name)| format!("process {process} ({name})"))
}

/// The process that has a socket bound to this port, and its name; `first` if it is one of several.
fn owner(kind: &str, port: u16, first: Option<u32>) -> Option<(u32, String)> {
    let mut inodes = Vec::new();
    for table in [format!("/proc/net/{kind}"), format!("/proc/net/{kind}6")] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        inodes.extend(text.lines().skip(1).filter_map(|line| bound_inode(kind, port, line)));
    }
    let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let has = |process: u32| {
        let files = std::fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        files.map(|f| f.path()).any(|f| std::fs::read_link(f).is_ok_and(|to| wanted.iter().any(|w| to.as_os_str() == w.as_str())))
    };
    let all = std::fs::read_dir("/proc").ok()?.flatten().filter_map(|p| p.file_name().to_str()?.parse().ok());
    let process = first.into_iter().chain(all).find(|process| has(*process))?;
    Some((process, std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default().trim().to_owned()))
}

/// The inode of a line of `/proc/net/tcp` or `/proc/net/udp` when it is a socket that waits at this port.
fn bound_inode(kind: &str, port: u16, line: &str) -> Option<u64> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let local = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
    // 0A is LISTEN; UDP sockets that nobody connected are in state 07.
    let waits = *fields.get(3)? == if kind == "tcp" { "0A" } else { "07" };
    (local == port && waits).then(|| fields.get(9)?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_port_is_found() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = held.local_addr().unwrap().port();
        assert_eq!(owner("tcp", port, None).map(|(id, _)| id), Some(std::process::id()));
        let line = "   0: 0100007F:075B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0";
        assert_eq!((bound_inode("tcp", 1883, line), bound_inode("tcp", 1884, line), bound_inode("udp", 1883, line)), (Some(12_345), None, None));
        assert_eq!(bound_inode("tcp", 1883, "nonsense"), None);
    }
}
