//! Topic names, topic filters and the tree that finds who wants a topic (OASIS MQTT 5.0, section 4.7).

use std::collections::HashMap;

/// Longest topic name or filter, in bytes (the MQTT length prefix has 16 bits).
pub const MAX_TOPIC_BYTES: usize = 65_535;
/// Most levels a topic may have here. MQTT sets no limit; an unbounded one would let a client build a deep tree.
pub const MAX_TOPIC_LEVELS: usize = 128;

/// Why a topic name or filter is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Nothing between the quotes.
    #[error("a topic must have at least one character")]
    Empty,
    /// Longer than [`MAX_TOPIC_BYTES`].
    #[error("a topic may have at most {MAX_TOPIC_BYTES} bytes")]
    TooLong,
    /// More levels than [`MAX_TOPIC_LEVELS`].
    #[error("a topic may have at most {MAX_TOPIC_LEVELS} levels")]
    TooDeep,
    /// U+0000 in the text.
    #[error("a topic must not contain U+0000")]
    Nul,
    /// `+` or `#` in a topic name.
    #[error("a topic that is published to must not contain '+' or '#'")]
    WildcardInName,
    /// `+` or `#` beside other characters of its level, or `#` before the end.
    #[error("'+' must stand alone in its level, '#' alone in the last one")]
    MisplacedWildcard,
}

fn check_common(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > MAX_TOPIC_BYTES {
        return Err(TopicError::TooLong);
    }
    if text.contains('\0') {
        return Err(TopicError::Nul);
    }
    if text.bytes().filter(|b| *b == b'/').count() >= MAX_TOPIC_LEVELS {
        return Err(TopicError::TooDeep);
    }
    Ok(())
}

/// Checks a topic that is published to.
///
/// # Errors
/// Says which rule of section 4.7 it breaks.
pub fn check_name(topic: &str) -> Result<(), TopicError> {
    check_common(topic)?;
    if topic.contains(['+', '#']) {
        return Err(TopicError::WildcardInName);
    }
    Ok(())
}

/// Checks a topic filter (without a `$share/GROUP/` prefix).
///
/// # Errors
/// Says which rule of section 4.7 it breaks.
pub fn check_filter(filter: &str) -> Result<(), TopicError> {
    check_common(filter)?;
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let well_placed = match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            other => !other.contains(['+', '#']),
        };
        if !well_placed {
            return Err(TopicError::MisplacedWildcard);
        }
    }
    Ok(())
}

/// Whether `filter` covers `topic`. A wildcard in the first level does not cover topics that begin with `$`
/// (section 4.7.2); `a/#` covers `a` as well (section 4.7.1.2).
#[must_use]
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut have = topic.split('/');
    let mut want = filter.split('/');
    loop {
        match (want.next(), have.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(w), Some(h)) if w == h => {}
            _ => return false,
        }
    }
}

/// Whether some topic is covered by both filters.
#[must_use]
pub fn overlap(one: &str, other: &str) -> bool {
    fn levels(one: &[&str], other: &[&str]) -> bool {
        match (one.split_first(), other.split_first()) {
            (None, None) => true,
            (Some((&"#", _)), _) | (_, Some((&"#", _))) => true,
            (Some((a, one)), Some((b, other))) => (a == b || *a == "+" || *b == "+") && levels(one, other),
            _ => false,
        }
    }
    let (one, other): (Vec<&str>, Vec<&str>) = (one.split('/').collect(), other.split('/').collect());
    // Wildcards do not cover topics that begin with `$` (section 4.7.2).
    let hidden = |a: &[&str], b: &[&str]| a[0].starts_with('$') && (b[0] == "+" || b[0] == "#");
    !hidden(&one, &other) && !hidden(&other, &one) && levels(&one, &other)
}

/// Whether `wide` covers every topic that `narrow` covers. `+/#`, which covers what `#` does, is not recognised as such.
#[must_use]
pub fn includes(wide: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    let (mut wide, mut narrow) = (wide.split('/'), narrow.split('/'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(w), Some(n)) if w == n => {}
            _ => return false,
        }
    }
}

/// A tree of topic filters, each with any number of values.
#[derive(Debug)]
pub struct TopicTree<T> {
    root: Node<T>,
    values: usize,
}

#[derive(Debug)]
struct Node<T> {
    children: HashMap<Box<str>, Node<T>>,
    here: Vec<T>,
}

impl<T> Node<T> {
    fn new() -> Self {
        Self { children: HashMap::new(), here: Vec::new() }
    }

    fn is_unused(&self) -> bool {
        self.children.is_empty() && self.here.is_empty()
    }
}

impl<T> Default for TopicTree<T> {
    fn default() -> Self {
        Self { root: Node::new(), values: 0 }
    }
}

impl<T> TopicTree<T> {
    /// An empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of values in the tree.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values
    }

    /// Whether the tree holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values == 0
    }

    /// Adds a value under a filter that [`check_filter`] has accepted.
    pub fn insert(&mut self, filter: &str, value: T) {
        let mut node = &mut self.root;
        for level in filter.split('/') {
            node = node.children.entry(level.into()).or_insert_with(Node::new);
        }
        node.here.push(value);
        self.values += 1;
    }

    /// Removes the values under exactly this filter for which `which` holds; returns them.
    pub fn remove(&mut self, filter: &str, which: impl FnMut(&T) -> bool) -> Vec<T> {
        fn walk<T>(node: &mut Node<T>, levels: &[&str], which: &mut dyn FnMut(&T) -> bool) -> Vec<T> {
            match levels.split_first() {
                None => {
                    let (gone, kept): (Vec<T>, Vec<T>) = node.here.drain(..).partition(|v| which(v));
                    node.here = kept;
                    gone
                }
                Some((level, rest)) => {
                    let Some(child) = node.children.get_mut(*level) else { return Vec::new() };
                    let gone = walk(child, rest, which);
                    if child.is_unused() {
                        node.children.remove(*level);
                    }
                    gone
                }
            }
        }
        let mut which = which;
        let levels: Vec<&str> = filter.split('/').collect();
        let gone = walk(&mut self.root, &levels, &mut which);
        self.values -= gone.len();
        gone
    }

    /// Calls `found` with every value whose filter covers `topic`, exact levels before wildcards.
    pub fn each_match<'t>(&'t self, topic: &str, mut found: impl FnMut(&'t T)) {
        let levels: smallvec::SmallVec<[&str; 16]> = topic.split('/').collect();
        visit(&self.root, &levels, true, topic.starts_with('$'), &mut found);
    }
}

fn visit<'t, T>(node: &'t Node<T>, levels: &[&str], first: bool, dollar: bool, found: &mut dyn FnMut(&'t T)) {
    let wild = !(first && dollar);
    if let Some(hash) = node.children.get("#").filter(|_| wild) {
        hash.here.iter().for_each(&mut *found);
    }
    let Some((level, rest)) = levels.split_first() else {
        node.here.iter().for_each(found);
        return;
    };
    if let Some(child) = node.children.get(*level) {
        visit(child, rest, false, dollar, found);
    }
    if let Some(child) = node.children.get("+").filter(|_| wild) {
        visit(child, rest, false, dollar, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_includes_another_one_when_it_covers_all_topics_of_that() {
        let all = |levels: &[&str], depth: usize| {
            let mut all: Vec<String> = levels.iter().map(|l| (*l).to_owned()).collect();
            let mut from = 0;
            for _ in 1..depth {
                let longer: Vec<String> = all[from..].iter().flat_map(|begin| levels.iter().map(move |l| format!("{begin}/{l}"))).collect();
                from = all.len();
                all.extend(longer);
            }
            all
        };
        let mut filters = all(&["a", "b", "+", "#", "$a"], 3);
        filters.retain(|f| check_filter(f).is_ok() && f != "+/#");
        let topics = all(&["a", "b", "c", "$a", "$b"], 4);
        for (wide, narrow) in filters.iter().flat_map(|w| filters.iter().map(move |n| (w, n))) {
            let covers = topics.iter().all(|t| !matches(narrow, t) || matches(wide, t));
            assert_eq!(includes(wide, narrow), covers, "{wide} {narrow}");
        }
    }

    const FILTERS: &[&str] = &["#", "+", "a/#", "a/+", "a/b", "+/b", "a/+/c", "/+", "+/+", "$SYS/#", "a//c", "a/"];
    const TOPICS: &[&str] = &["a", "a/b", "a/b/c", "b", "/b", "$SYS/x", "$SYS", "a//c", "a/", "/", "x/y/z"];

    #[test]
    fn tree_and_plain_matching_agree() {
        let mut tree = TopicTree::new();
        for f in FILTERS {
            check_filter(f).expect("valid");
            tree.insert(f, *f);
        }
        for topic in TOPICS {
            let mut found = Vec::new();
            tree.each_match(topic, |f| found.push(*f));
            found.sort_unstable();
            let mut expected: Vec<&str> = FILTERS.iter().copied().filter(|f| matches(f, topic)).collect();
            expected.sort_unstable();
            assert_eq!(found, expected, "topic {topic}");
        }
    }

    #[test]
    fn filters_overlap_when_a_topic_is_covered_by_both() {
        let names = ["a", "b", "a/a", "a/b", "b/a", "a/b/a", "$x", "$x/a", "", "/a"];
        let filters = ["#", "+", "a", "a/#", "a/+", "+/a", "+/+", "a/b", "b", "b/+/a", "$x/#", "$x", "/+", "a/b/#", "+/b/a", "+/+/+"];
        for one in filters {
            for other in filters {
                let covered = names.iter().any(|t| matches(one, t) && matches(other, t));
                assert!(!covered || overlap(one, other), "{one} and {other}");
                assert_eq!(overlap(one, other), overlap(other, one), "{one} and {other}");
            }
        }
        for (one, other, both) in [("a/+", "b/+", false), ("a/#", "a", true), ("+/+/+", "b/+/a", true), ("b/+/a", "a/#", false), ("#", "$x/#", false)]
        {
            assert_eq!(overlap(one, other), both, "{one} and {other}");
        }
    }

    #[test]
    fn rules_of_section_4_7() {
        for (filter, topic, covered) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/monitor", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/monitor", true),
        ] {
            assert_eq!(matches(filter, topic), covered, "{filter} on {topic}");
        }
        for bad in ["", "a/#/b", "a#", "a/b+", "#a", "a\0"] {
            assert!(check_filter(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_name("a/+"), Err(TopicError::WildcardInName));
    }

    #[test]
    fn removing_prunes_empty_branches() {
        let mut tree = TopicTree::new();
        tree.insert("a/b/c", 1);
        tree.insert("a/b/c", 2);
        assert_eq!(tree.remove("a/b/c", |v| *v == 1), [1]);
        assert_eq!(tree.len(), 1);
        assert_eq!(tree.remove("a/b/c", |_| true), [2]);
        assert!(tree.is_empty() && tree.root.is_unused());
        assert!(tree.remove("x/y", |_| true).is_empty());
    }
}
