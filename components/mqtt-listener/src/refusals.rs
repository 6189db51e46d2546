//! Who was refused, for the log: not one line for each, since devices try again and again, and strangers more often than that.

use std::time::Duration;

use selvedge::time::Monotonic;

/// Least time between two lines.
const PAUSE: Duration = Duration::from_secs(10);
/// Most characters of what a stranger says of itself.
const MOST: usize = 64;

/// Decides which refusal is a line.
#[derive(Debug, Default)]
pub struct Refusals {
    last: Option<Monotonic>,
    untold: u64,
}

impl Refusals {
    /// Whether this one is told; with how many before it that were not.
    pub fn one(&mut self, now: Monotonic) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < PAUSE) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

/// The beginning of a text of somebody else's.
pub fn beginning(text: &str) -> &str {
    text.char_indices().nth(MOST).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_a_line_now_and_then_that_counts_the_rest() {
        let mut refusals = Refusals::default();
        let at = |seconds| Monotonic::default().plus(Duration::from_secs(seconds));
        assert_eq!(refusals.one(at(0)), Some(0));
        assert_eq!((refusals.one(at(1)), refusals.one(at(9))), (None, None));
        assert_eq!(refusals.one(at(10)), Some(2));
        assert_eq!(refusals.one(at(30)), Some(0));
        assert_eq!((beginning("ä"), beginning(&"ä".repeat(100)).chars().count()), ("ä", MOST));
    }
}
