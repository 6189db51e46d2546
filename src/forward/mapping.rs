//! The topic at the peer.

use crate::resource::RouteSpec;
use crate::topic;

/// Maps topics of one upstream's records.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    upstream: String,
    routes: Vec<RouteSpec>,
    mapped: String,
}

impl Mapping {
    /// `routes` are those that lead to `upstream`.
    pub(super) fn new(upstream: &str, routes: Vec<RouteSpec>) -> Self {
        Self { upstream: upstream.to_owned(), routes, mapped: String::new() }
    }

    /// What was published to the upstream itself keeps its topic; the rest goes by the first route from its source that covers the
    /// topic. A record whose route is gone since it was stored goes by the first route from its source, else with its own topic:
    /// it was accepted for this upstream and is not dropped for a change of configuration.
    pub(super) fn map<'a>(&'a mut self, source: &str, topic: &'a str) -> &'a str {
        if source == self.upstream {
            return topic;
        }
        let mut from_source = self.routes.iter().filter(|r| r.from == source);
        let first = from_source.next();
        let covers = |r: &&RouteSpec| r.topics.iter().any(|f| topic::matches(f, topic));
        let Some(route) = first.filter(covers).or_else(|| from_source.find(covers)).or(first) else { return topic };
        if route.prefix.is_empty() && route.strip_prefix.is_empty() {
            return topic;
        }
        // As `RouteSpec::map_topic`, into a buffer that is used again.
        self.mapped.clear();
        self.mapped.push_str(&route.prefix);
        self.mapped.push_str(topic.strip_prefix(route.strip_prefix.as_str()).unwrap_or(topic));
        &self.mapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(from: &str, topics: &[&str], prefix: &str, strip: &str) -> RouteSpec {
        RouteSpec {
            from: from.into(),
            topics: topics.iter().map(|t| (*t).to_owned()).collect(),
            to: vec!["cloud".into()],
            prefix: prefix.into(),
            strip_prefix: strip.into(),
            ..RouteSpec::default()
        }
    }

    #[test]
    fn the_first_route_that_covers_the_topic_maps_it() {
        let routes = vec![route("local", &["a/#"], "one/", ""), route("local", &["b/+", "a/#"], "two/", "b/"), route("other", &["#"], "", "x/")];
        let check = routes.clone();
        let mut mapping = Mapping::new("cloud", routes);
        for (source, topic, expected) in [
            ("local", "a/b", "one/a/b"),
            ("local", "b/c", "two/c"),
            ("local", "gone", "one/gone"),
            ("cloud", "a/b", "a/b"),
            ("other", "x/y", "y"),
            ("other", "y", "y"),
            ("unknown", "a/b", "a/b"),
        ] {
            assert_eq!(mapping.map(source, topic), expected, "{source} {topic}");
        }
        assert_eq!(mapping.map("local", "b/c"), check[1].map_topic("b/c"), "the same rule as the resource's own");
    }
}
