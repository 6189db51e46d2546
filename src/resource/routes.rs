//! What routes may not do together: lead from one upstream to another, or feed themselves.

use super::{Deliver, Problem, Resources, RouteSpec, SET_SEPARATOR, Severity, UpstreamRole};
use crate::hub::MAX_MEMBERS;
use crate::outbox::Durability;
use crate::topic;

/// A filter that covers what has this prefix, whatever follows.
fn anything(prefix: &str) -> String {
    match prefix.rfind('/') {
        Some(at) => format!("{}#", &prefix[..=at]),
        None => "#".to_owned(),
    }
}

/// Filters that cover every topic which `filter` covers, once the route has mapped it; rather too many than too few.
fn mapped(route: &RouteSpec, filter: &str) -> Vec<String> {
    let prefixed = |rest: &str| {
        let joins = route.prefix.is_empty() || route.prefix.ends_with('/');
        let mapped = format!("{}{rest}", route.prefix);
        if topic::check_filter(&mapped).is_ok() && (joins || !rest.starts_with(['+', '#'])) { mapped } else { anything(&route.prefix) }
    };
    if route.strip_prefix.is_empty() {
        return vec![prefixed(filter)];
    }
    if let Some(rest) = filter.strip_prefix(route.strip_prefix.as_str()) {
        return vec![prefixed(rest)];
    }
    let literal = filter.split(['+', '#']).next().unwrap_or_default();
    let may_begin_so = literal.len() < filter.len() && route.strip_prefix.starts_with(literal);
    let mut all = vec![prefixed(filter)];
    if may_begin_so {
        all.push(anything(&route.prefix));
    }
    all
}

/// Whether what `one` puts into a name space may take `next`.
fn feeds(one: &RouteSpec, next: &RouteSpec) -> bool {
    one.to.contains(&next.from)
        && one.topics.iter().flat_map(|f| mapped(one, f)).any(|out| next.topics.iter().any(|filter| topic::overlap(&out, filter)))
}

/// The shortest way from a route back to itself.
fn way_back(routes: &[&RouteSpec], start: usize) -> Option<Vec<usize>> {
    let mut ways = std::collections::VecDeque::from([vec![start]]);
    let mut seen = vec![false; routes.len()];
    while let Some(way) = ways.pop_front() {
        let last = *way.last()?;
        for next in (0..routes.len()).filter(|n| feeds(routes[last], routes[*n])) {
            if next == start {
                return Some(way);
            }
            if !std::mem::replace(&mut seen[next], true) {
                ways.push_back([way.as_slice(), &[next]].concat());
            }
        }
    }
    None
}

fn secondaries(resources: &Resources) -> impl Iterator<Item = &str> {
    let upstreams = resources.escape_policies.iter().flat_map(|p| &p.upstreams);
    upstreams.filter(|u| u.role == UpstreamRole::Secondary).map(|u| u.component.as_str())
}

/// What keeps the ends of a route from being a set.
fn set_mistake(route: &RouteSpec, resources: &Resources, is_local: impl Fn(&str) -> bool) -> Option<String> {
    let to = &route.to;
    if let Some(local) = to.iter().find(|t| is_local(t)) {
        return Some(format!("and leads to {local:?}; accepted is that with upstreams alone (a route of its own may lead to {local:?})"));
    }
    if let Some((_, twice)) = to.iter().enumerate().find(|(at, t)| to[..*at].contains(t)) {
        return Some(format!("and names {twice:?} twice; accepted is each upstream once"));
    }
    if !(2..=MAX_MEMBERS).contains(&to.len()) {
        return Some(format!("with {} in to; accepted is that with 2 to {MAX_MEMBERS} upstreams", to.len()));
    }
    if let Some(odd) = to.iter().find(|t| t.contains(SET_SEPARATOR)) {
        return Some(format!("and leads to {odd:?}; accepted are names without {SET_SEPARATOR:?}, which stands between them in the books"));
    }
    if let Some(set) = route.set().filter(|set| resources.components.iter().any(|c| c.name == *set)) {
        return Some(format!("and a component is called {set:?}, as its upstreams together are in the books; accepted is another name for it"));
    }
    let secondary = secondaries(resources).find(|s| to.iter().any(|t| t == s))?;
    Some(format!(
        "and leads to {secondary:?}, a secondary upstream of the EscapePolicy; accepted are primary ones: a secondary waits for one to be down"
    ))
}

/// An upstream that both routes lead to as different destinations, for the same topics.
fn twice<'r>(route: &'r RouteSpec, other: &RouteSpec) -> Option<&'r String> {
    let overlap = || route.topics.iter().any(|a| other.topics.iter().any(|b| topic::overlap(a, b)));
    let shared = route.to.iter().find(|t| other.to.contains(t))?;
    (route.from == other.from && route.set() != other.set() && overlap()).then_some(shared)
}

/// Adds what is wrong.
pub(super) fn check(resources: &mut Resources) {
    let is_local =
        |name: &str| name == "local" || resources.components.iter().any(|c| c.name == name && c.type_name.eq_ignore_ascii_case("pubsub.local"));
    let all: Vec<&RouteSpec> = resources.forwardings.iter().flat_map(|f| &f.routes).collect();
    let inside: Vec<RouteSpec> = all
        .iter()
        .filter(|r| is_local(&r.from))
        .map(|r| RouteSpec { to: r.to.iter().filter(|t| is_local(t)).cloned().collect(), ..(*r).clone() })
        .filter(|r| !r.to.is_empty())
        .collect();
    let inside: Vec<&RouteSpec> = inside.iter().collect();
    let problem = |route: &RouteSpec, text: String| Problem {
        severity: Severity::Error,
        file: route.origin.file.clone(),
        line: route.origin.line,
        key: route.origin.key.clone(),
        text,
    };
    let mut found = Vec::new();
    for route in all.iter().filter(|r| !is_local(&r.from)) {
        for to in route.to.iter().filter(|t| !is_local(t)) {
            found.push(problem(route, format!("leads from {:?} to {to:?}; accepted is a route with local at one end", route.from)));
        }
    }
    for route in all.iter().filter(|r| matches!(r.deliver, Deliver::Shard(_)) && r.to.iter().filter(|t| !is_local(t)).count() < 2) {
        found.push(problem(route, "says deliver: shard; accepted is that with at least two upstreams in to".to_owned()));
    }
    for (at, route) in all.iter().enumerate().filter(|(_, r)| r.deliver == Deliver::FirstAck) {
        if let Some(text) = set_mistake(route, resources, is_local) {
            found.push(problem(route, format!("says deliver: first-ack {text}")));
            continue;
        }
        let passing = resources.forwardings.iter().flat_map(|f| &f.lanes).filter(|l| l.durability == Durability::Passthrough);
        for lane in passing.filter(|l| l.matches.iter().any(|m| route.topics.iter().any(|t| topic::overlap(m, t)))) {
            let text = format!(
                "says deliver: first-ack for topics that the lane {} may take, which stores nothing (durability: passthrough); accepted are topics of lanes that store",
                lane.name
            );
            found.push(problem(route, text));
        }
        if let Some(secondary) = secondaries(resources).next() {
            let text = format!(
                "says deliver: first-ack: the secondary upstream {secondary:?} does not stand in for it; what takes it waits while none of {} stands",
                route.to.join(", ")
            );
            found.push(Problem { severity: Severity::Warning, ..problem(route, text) });
        }
        // Two destinations are two copies.
        for (other, twice) in all.iter().enumerate().filter(|(n, _)| *n != at).filter_map(|(_, r)| Some((r, twice(route, r)?))) {
            let text = format!("says deliver: first-ack, and {twice:?} gets what it takes again by {}", other.origin.key);
            found.push(Problem { severity: Severity::Warning, ..problem(route, text) });
        }
    }
    for route in all.iter().filter(|r| r.dedupe.is_some() && is_local(&r.from)) {
        found
            .push(problem(route, format!("says dedupe and comes from {:?}; accepted is that on a route that leads in from an upstream", route.from)));
    }
    for (at, route) in inside.iter().enumerate() {
        if let Some(way) = way_back(&inside, at) {
            let steps: Vec<String> =
                way.iter().map(|n| format!("{} {} -> {}", inside[*n].from, inside[*n].topics.join(", "), inside[*n].map_topic("..."))).collect();
            found.push(problem(
                route,
                format!(
                    "feeds itself ({}); accepted is a route whose messages do not take it again: give them a prefix that its topics do not cover",
                    steps.join("; ")
                ),
            ));
        }
    }
    resources.problems.extend(found);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(topics: &[&str], strip_prefix: &str, prefix: &str) -> RouteSpec {
        RouteSpec {
            from: "local".into(),
            topics: topics.iter().map(|t| (*t).to_owned()).collect(),
            to: vec!["local".into()],
            prefix: prefix.into(),
            strip_prefix: strip_prefix.into(),
            ..RouteSpec::default()
        }
    }

    #[test]
    fn a_route_feeds_itself_when_its_messages_may_take_it_again() {
        for (topics, strip, prefix, loops) in [
            (&["a/#"][..], "", "b/", false),
            (&["a/#"], "", "", true),
            (&["#"], "", "b/", true),
            (&["a/#"], "", "a/", true),
            (&["a/#"], "a/", "b/", false),
            (&["a/#"], "a/", "a/", true),
            (&["a/+"], "", "a/", false),
            (&["+/x"], "a/", "", true),
            (&["a/b/#"], "a/", "", false),
            (&["a/#"], "a/", "", true),
            (&["+"], "", "pre", true),
            (&["a/+/c"], "b/", "c/", false),
        ] {
            let route = route(topics, strip, prefix);
            assert_eq!(way_back(&[&route], 0).is_some(), loops, "{topics:?} without {strip:?} with {prefix:?}");
        }
    }

    #[test]
    fn a_circle_of_routes_is_found_from_each_of_them() {
        let (one, two, three) = (route(&["a/#"], "a/", "b/"), route(&["b/#"], "b/", "c/"), route(&["c/#"], "c/", "a/"));
        let all = [&one, &two, &three];
        assert_eq!(way_back(&all, 1), Some(vec![1, 2, 0]));
        assert_eq!(way_back(&all[..2], 0), None);
    }

    /// Whatever a route makes of a topic is covered by what its filters are mapped to.
    #[test]
    fn mapped_filters_cover_every_mapped_topic() {
        let parts = ["a", "b", "ab", "", "a/b", "b/a/a"];
        for filter in ["#", "+", "a/#", "+/b", "a/+", "ab/#", "a/b", "a/b/#", "+/+", "b/+/a"] {
            for strip in ["", "a/", "a", "a/b", "b/", "ab/"] {
                for prefix in ["", "x/", "x", "a/"] {
                    let route = route(&[filter], strip, prefix);
                    for topic in parts.iter().flat_map(|p| parts.iter().map(move |q| format!("{p}/{q}"))).filter(|t| topic::matches(filter, t)) {
                        let out = route.map_topic(&topic);
                        let covered = topic::check_name(&out).is_err() || mapped(&route, filter).iter().any(|f| topic::matches(f, &out));
                        assert!(covered, "{filter} strip {strip:?} prefix {prefix:?}: {topic} -> {out}, {:?}", mapped(&route, filter));
                    }
                }
            }
        }
    }
}
