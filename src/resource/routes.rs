//! What routes may not do together: lead from one upstream to another, or feed themselves.

use super::{Problem, Resources, RouteSpec, Severity};
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
    for route in all.iter().filter(|r| r.shard.is_some() && r.to.iter().filter(|t| !is_local(t)).count() < 2) {
        found.push(problem(route, "says deliver: shard; accepted is that with at least two upstreams in to".to_owned()));
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
