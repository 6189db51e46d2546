//! Addresses that listeners want: free, ours, or somebody else's.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use selvedge::component::Finding;
use selvedge::resource::ListenerProtocol;

use super::Patient;

pub fn examine(patient: &Patient) -> Vec<Finding> {
    patient
        .resources
        .listeners
        .iter()
        .map(|listener| {
            let subject = format!("listener {}", listener.name);
            let (udp, kind) = match listener.protocol {
                ListenerProtocol::Mqtt => (false, "tcp"),
                ListenerProtocol::Coap => (true, "udp"),
            };
            let Ok(address) = listener.bind.parse::<SocketAddr>() else {
                return Finding::note(subject, format!("takes its sockets from the service manager ({})", listener.bind), "");
            };
            let bound = if udp { UdpSocket::bind(address).map(drop) } else { TcpListener::bind(address).map(drop) };
            match bound {
                Ok(()) if patient.running.is_some() => Finding::warning(
                    subject,
                    format!("{kind} {address} is free although a node runs"),
                    "has the YAML changed since it started? `selvedge reload` says what needs a restart",
                ),
                Ok(()) => Finding::good(subject, format!("{kind} {address} is free")),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken(patient, subject, kind, address),
                Err(error) => Finding::problem(
                    subject,
                    format!("{kind} {address} cannot be bound: {error}"),
                    "ports below 1024 need CAP_NET_BIND_SERVICE; the address must be one of the box's",
                ),
            }
        })
        .collect()
}

fn taken(patient: &Patient, subject: String, kind: &str, address: SocketAddr) -> Finding {
    let owner = owner(kind, address.port());
    match owner {
        Some((process, _)) if Some(process) == patient.running => Finding::good(subject, format!("{kind} {address} is the running node's")),
        Some((process, name)) => {
            let found = format!("{kind} {address} is taken by process {process} ({name})");
            Finding::problem(subject, found, "stop that program, or choose another `bind`")
        }
        // Without rights over other users' processes nobody is seen.
        None if patient.running.is_some() => {
            Finding::note(subject, format!("{kind} {address} is taken, most likely by the node that runs"), "run this as root to be sure")
        }
        None => Finding::problem(
            subject,
            format!("{kind} {address} is taken, by whom cannot be seen"),
            "run this as root to see by whom, or choose another `bind`",
        ),
    }
}

/// The process that has a socket bound to this port, and its name.
fn owner(kind: &str, port: u16) -> Option<(u32, String)> {
    let mut inodes = Vec::new();
    for table in [format!("/proc/net/{kind}"), format!("/proc/net/{kind}6")] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        inodes.extend(text.lines().skip(1).filter_map(|line| bound_inode(kind, port, line)));
    }
    let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let Some(id) = process.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let has = files.flatten().any(|f| std::fs::read_link(f.path()).is_ok_and(|to| wanted.iter().any(|w| to.as_os_str() == w.as_str())));
        if has {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((id, name.trim().to_owned()));
        }
    }
    None
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
        assert_eq!(owner("tcp", port).map(|(id, _)| id), Some(std::process::id()));
        let line = "   0: 0100007F:075B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0";
        assert_eq!((bound_inode("tcp", 1883, line), bound_inode("tcp", 1884, line), bound_inode("udp", 1883, line)), (Some(12_345), None, None));
        assert_eq!(bound_inode("tcp", 1883, "nonsense"), None);
    }
}
