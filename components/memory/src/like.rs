//! SQL LIKE patterns: `%` any text, `_` any one character, `\` takes the next character as it is. Case counts.

/// One element of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Element {
    Any,
    One,
    Literal(char),
}

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Like(Vec<Element>);

impl Like {
    pub fn parse(pattern: &str) -> Self {
        let mut elements = Vec::with_capacity(pattern.len());
        let mut characters = pattern.chars();
        while let Some(c) = characters.next() {
            let element = match c {
                '%' if elements.last() == Some(&Element::Any) => continue,
                '%' => Element::Any,
                '_' => Element::One,
                // A backslash at the end stands for itself.
                '\\' => Element::Literal(characters.next().unwrap_or('\\')),
                other => Element::Literal(other),
            };
            elements.push(element);
        }
        Self(elements)
    }

    /// Whether the whole text matches. Takes at most pattern length times text length steps.
    pub fn matches(&self, text: &str) -> bool {
        let (mut at, mut rest) = (0, text);
        // Where to go on when a literal does not fit: the last `%`, which then takes one character more.
        let mut retry: Option<(usize, &str)> = None;
        loop {
            let next = rest.chars().next();
            match (self.0.get(at), next) {
                (None, None) => return true,
                (Some(Element::Any), _) => {
                    retry = Some((at + 1, rest));
                    at += 1;
                    continue;
                }
                (Some(Element::One), Some(c)) => {
                    at += 1;
                    rest = &rest[c.len_utf8()..];
                    continue;
                }
                (Some(Element::Literal(want)), Some(c)) if *want == c => {
                    at += 1;
                    rest = &rest[c.len_utf8()..];
                    continue;
                }
                _ => {}
            }
            let Some((again, from)) = retry else { return false };
            let Some(skipped) = from.chars().next() else { return false };
            at = again;
            rest = &from[skipped.len_utf8()..];
            retry = Some((again, rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_texts() {
        for (pattern, text, expected) in [
            ("a%", "abc", true),
            ("a%", "ba", false),
            ("%c", "abc", true),
            ("%b%", "abc", true),
            ("a_c", "abc", true),
            ("a_c", "aßc", true),
            ("a_c", "ac", false),
            ("a\\%c", "a%c", true),
            ("a\\%c", "abc", false),
            ("a\\_", "a_", true),
            ("\\\\", "\\", true),
            ("abc", "abcd", false),
            ("%%x", "aax", true),
            ("%ab", "aab", true),
            ("%", "", true),
            ("_", "", false),
            ("A", "a", false),
        ] {
            assert_eq!(Like::parse(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn many_wildcards_do_not_take_for_ever() {
        let pattern = Like::parse(&"%a".repeat(200));
        assert!(!pattern.matches(&format!("{}b", "a".repeat(20_000))));
    }
}
