//! What has been sent and is not answered.

use std::collections::VecDeque;

use super::feed::Origin;
use crate::time::Monotonic;

/// One publish on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InFlight {
    pub(super) origin: Origin,
    pub(super) sequence: u64,
    pub(super) sent_at: Monotonic,
    pub(super) bytes: usize,
}

/// Publishes in the order sent, found by token in constant time. Tokens are consecutive and never used again, so an answer from an
/// earlier connection finds nothing.
#[derive(Debug, Default)]
pub(super) struct Window {
    slots: VecDeque<Option<InFlight>>,
    /// Token of the first slot.
    base: u64,
    waiting: usize,
    bytes: usize,
}

impl Window {
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Bytes of what is unanswered.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Slots held, answered ones behind an unanswered first one included.
    pub(super) fn span(&self) -> usize {
        self.slots.len()
    }

    /// The token that [`Self::push`] will use.
    pub(super) fn next_token(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    pub(super) fn push(&mut self, publish: InFlight) {
        self.slots.push_back(Some(publish));
        self.waiting += 1;
        self.bytes += publish.bytes;
    }

    /// Takes the publish out; `None` when it was answered before or is from an earlier connection.
    pub(super) fn answer(&mut self, token: u64) -> Option<InFlight> {
        let index = usize::try_from(token.checked_sub(self.base)?).ok()?;
        let found = self.slots.get_mut(index)?.take()?;
        self.waiting -= 1;
        self.bytes -= found.bytes;
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.base += 1;
        }
        Some(found)
    }

    /// When the oldest unanswered publish was sent.
    pub(super) fn oldest(&self) -> Option<Monotonic> {
        self.slots.front().and_then(|slot| slot.as_ref()).map(|p| p.sent_at)
    }

    /// What is unanswered, in the order sent.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &InFlight> {
        self.slots.iter().flatten()
    }

    /// The only publish on its way, if it is one.
    pub(super) fn only(&self) -> Option<InFlight> {
        if self.waiting == 1 { self.slots.front().copied().flatten() } else { None }
    }

    /// Whether something of this source is on its way.
    pub(super) fn has(&self, source: u8) -> bool {
        self.slots.iter().flatten().any(|p| p.origin.source == source)
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.base = self.next_token();
        self.slots.clear();
        self.waiting = 0;
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::LaneId;
    use std::time::Duration;

    fn publish(n: u64) -> InFlight {
        InFlight { origin: Origin { source: 0, lane: LaneId(0) }, sequence: n, sent_at: Monotonic(Duration::from_millis(n)), bytes: 10 }
    }

    #[test]
    fn answers_in_any_order_are_found_once() {
        let mut window = Window::default();
        for n in 0..4 {
            assert_eq!(window.next_token(), n);
            window.push(publish(n));
        }
        assert_eq!(window.answer(2), Some(publish(2)));
        assert_eq!(window.answer(2), None);
        assert_eq!((window.waiting(), window.span(), window.oldest()), (3, 4, Some(publish(0).sent_at)));
        assert_eq!(window.answer(0), Some(publish(0)));
        assert_eq!(window.answer(1), Some(publish(1)));
        assert_eq!((window.waiting(), window.span(), window.oldest()), (1, 1, Some(publish(3).sent_at)));
        assert_eq!((window.bytes(), window.only()), (10, Some(publish(3))));
        assert_eq!(window.answer(9), None);
        window.clear();
        assert_eq!(window.answer(3), None, "from before");
        assert_eq!(window.next_token(), 4);
    }
}
