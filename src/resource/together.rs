//! What resources may not say together: one name or address twice, policies that contradict each other, lanes that others leave nothing to.

use std::net::{IpAddr, SocketAddr};

use super::{ListenerProtocol, ListenerSpec, Origin, Problem, Resources, Severity};
use crate::hub::{NOTICES, QUARANTINE};
use crate::topic;

fn problem(severity: Severity, at: &Origin, key: &str, text: String) -> Problem {
    Problem { severity, file: at.file.clone(), line: at.line, key: key.to_owned(), text }
}

/// Every item with the first one before it for which `same` holds.
fn twice<T>(all: &[T], same: impl Fn(&T, &T) -> bool) -> impl Iterator<Item = (&T, &T)> {
    all.iter().enumerate().filter_map(move |(at, item)| Some((all[..at].iter().find(|before| same(before, item))?, item)))
}

/// Whether two listeners want one socket.
fn share_an_address(one: &ListenerSpec, other: &ListenerSpec) -> bool {
    let (Ok(a), Ok(b)) = (one.bind.parse::<SocketAddr>(), other.bind.parse::<SocketAddr>()) else {
        // Sockets that systemd hands over are given to the first one that asks for their name, whatever they are.
        return one.bind == other.bind;
    };
    let transport = |l: &ListenerSpec| match l.protocol {
        ListenerProtocol::Mqtt => "tcp",
        ListenerProtocol::Coap => "udp",
    };
    let (any, ips): (fn(IpAddr) -> bool, _) = (|ip| ip.is_unspecified(), (a.ip(), b.ip()));
    let same_ip = ips.0 == ips.1 || (ips.0.is_ipv4() == ips.1.is_ipv4() && (any(ips.0) || any(ips.1)));
    // The system chooses another port for each 0.
    transport(one) == transport(other) && a.port() == b.port() && a.port() != 0 && same_ip
}

fn listeners(resources: &Resources, found: &mut Vec<Problem>) {
    for (before, again) in twice(&resources.listeners, share_an_address) {
        let text = format!(
            "found {:?}, and the Listener {} has {:?} already ({}); accepted is an address for each",
            again.bind, before.name, before.bind, before.origin
        );
        found.push(problem(Severity::Error, &again.origin, &again.origin.key, text));
    }
}

fn lanes(resources: &Resources, found: &mut Vec<Problem>) {
    let all: Vec<_> = resources.forwardings.iter().flat_map(|f| f.lanes.iter().map(move |lane| (f, lane))).collect();
    for ((forwarding, before), (_, again)) in twice(&all, |(_, a), (_, b)| a.name == b.name) {
        let text = format!(
            "found {:?}, which is a lane already: {} of the Forwarding {} ({}); accepted is one lane of a name on the node, with all its filters in match",
            again.name, before.origin.key, forwarding.name, before.origin
        );
        found.push(problem(Severity::Error, &again.origin, &format!("{}.name", again.origin.key), text));
    }
    for (at, (_, lane)) in all.iter().enumerate().filter(|(_, (_, lane))| !lane.matches.is_empty()) {
        // The first lane before it that takes what a filter covers.
        let taken = |filter: &String| all[..at].iter().find(|(_, before)| before.matches.iter().any(|wide| topic::includes(wide, filter)));
        let Some(before) = lane.matches.iter().map(taken).collect::<Option<Vec<_>>>() else { continue };
        // A name that stands twice is an error, said above. The lane `default` also keeps what takes no rule.
        if lane.name == "default" || before.iter().any(|(_, b)| b.name == lane.name) {
            continue;
        }
        let mut names: Vec<String> = before.iter().map(|(_, b)| format!("{} ({})", b.name, b.origin)).collect();
        names.dedup();
        let text = format!(
            "found {:?}, and nothing is left of that: the first lane that matches takes a message, and before this one stands {}",
            lane.matches.join(", "),
            names.join(", ")
        );
        found.push(problem(Severity::Warning, &lane.origin, &format!("{}.match", lane.origin.key), text));
    }
}

fn policies(resources: &Resources, found: &mut Vec<Problem>) {
    if let Some((first, more)) = resources.escape_policies.split_first() {
        for again in more {
            let text = format!("there is an EscapePolicy already, {:?} at {}; accepted is one for the node", first.name, first.origin);
            found.push(problem(Severity::Error, &again.origin, &again.origin.key, text));
        }
    }
    let declared: Vec<&str> = resources.forwardings.iter().flat_map(|f| &f.lanes).map(|l| l.name.as_str()).collect();
    let is_lane = |name: &String| [NOTICES, QUARANTINE, "default"].contains(&name.as_str()) || declared.contains(&name.as_str());
    for upstream in resources.escape_policies.iter().flat_map(|p| &p.upstreams) {
        for unknown in upstream.lanes.iter().filter(|name| !is_lane(name)) {
            let text = format!(
                "found {unknown:?}, and no Forwarding has a lane of that name; accepted are default{}",
                declared.iter().filter(|name| **name != "default").map(|name| format!(", {name}")).collect::<String>()
            );
            found.push(problem(Severity::Error, &upstream.origin, &format!("{}.lanes", upstream.origin.key), text));
        }
    }
}

/// Adds what is wrong.
pub(super) fn check(resources: &mut Resources) {
    let mut found = Vec::new();
    listeners(resources, &mut found);
    lanes(resources, &mut found);
    policies(resources, &mut found);
    resources.problems.extend(found);
}
