//! Who carries the lanes that a primary upstream may lend: events in, orders out, time handed in.
//!
//! ```text
//!  primary --primary down for `settle`, secondary stands--> lending --it has let go--> secondary
//!     ^                                                                                   |
//!     +-- returning <--primary stands for `failback`, or it stands and the secondary does not--+
//! ```
//! The one that gives says when it has let go; only then the other one takes. Failing over is sticky: a primary that comes and goes
//! does not take the lanes back before it has held.

use std::time::Duration;

use crate::time::Monotonic;

/// What is seen of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandoverSight {
    /// The primary's peer takes records.
    pub primary_stands: bool,
    /// The secondary's peer takes records.
    pub secondary_stands: bool,
    /// The primary has the lanes still.
    pub primary_has: bool,
    /// The secondary has them.
    pub secondary_has: bool,
}

/// What is asked of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HandoverOrders {
    /// The primary leaves the lanes.
    pub lent: bool,
    /// The secondary takes them.
    pub borrow: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Primary,
    Lending,
    Secondary,
    Returning,
}

/// The lanes of one primary and its secondary.
#[derive(Debug, Clone)]
pub struct Handover {
    settle: Duration,
    failback: Duration,
    state: State,
    /// Since when the reason for the next change has held.
    since: Option<Monotonic>,
}

impl Handover {
    /// The primary has the lanes. They are lent after it has been down for `settle`, and come back when it has stood for `failback`.
    #[must_use]
    pub fn new(settle: Duration, failback: Duration) -> Self {
        Self { settle, failback, state: State::Primary, since: None }
    }

    /// Other times from now on.
    pub fn configure(&mut self, settle: Duration, failback: Duration) {
        (self.settle, self.failback) = (settle, failback);
    }

    /// Whether the secondary carries the lanes, or is about to.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.state != State::Primary
    }

    /// Looks, and says what is asked of the two.
    pub fn step(&mut self, now: Monotonic, sight: HandoverSight) -> HandoverOrders {
        let (reason, hold) = match self.state {
            State::Primary => (!sight.primary_stands && sight.secondary_stands, self.settle),
            State::Lending => (!sight.primary_has, Duration::ZERO),
            State::Secondary => {
                // With the secondary gone too there is nothing to be sticky for.
                let hold = if sight.secondary_stands { self.failback } else { Duration::ZERO };
                (sight.primary_stands, hold)
            }
            State::Returning => (!sight.secondary_has, Duration::ZERO),
        };
        if reason {
            let since = *self.since.get_or_insert(now);
            if now.since(since) >= hold {
                self.since = None;
                self.state = match self.state {
                    State::Primary => State::Lending,
                    State::Lending => State::Secondary,
                    State::Secondary => State::Returning,
                    State::Returning => State::Primary,
                };
            }
        } else {
            self.since = None;
        }
        HandoverOrders { lent: self.state != State::Primary, borrow: self.state == State::Secondary }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The two forwarders: each does what it is asked some looks later.
    struct Pair {
        handover: Handover,
        now: Monotonic,
        sight: HandoverSight,
    }

    impl Pair {
        fn new() -> Self {
            let sight = HandoverSight { primary_stands: true, secondary_stands: true, primary_has: true, secondary_has: false };
            Self { handover: Handover::new(Duration::from_secs(5), Duration::from_secs(300)), now: Monotonic::default(), sight }
        }

        fn look(&mut self, seconds: u64, obeys: bool) -> HandoverOrders {
            let mut orders = HandoverOrders::default();
            for _ in 0..seconds {
                self.now = self.now.plus(Duration::from_secs(1));
                orders = self.handover.step(self.now, self.sight);
                if obeys {
                    (self.sight.primary_has, self.sight.secondary_has) = (!orders.lent, orders.borrow);
                }
            }
            orders
        }
    }

    #[test]
    fn lanes_go_over_when_the_primary_is_down_and_come_back_when_it_has_held() {
        let mut pair = Pair::new();
        assert_eq!(pair.look(100, true), HandoverOrders::default());
        pair.sight.primary_stands = false;
        assert_eq!(pair.look(5, true), HandoverOrders::default());
        assert_eq!(pair.look(2, true), HandoverOrders { lent: true, borrow: true });
        for _ in 0..20 {
            pair.sight.primary_stands = !pair.sight.primary_stands;
            assert!(pair.look(100, true).borrow, "sticky while the primary comes and goes");
        }
        pair.sight.primary_stands = true;
        assert!(pair.look(300, true).borrow);
        assert_eq!(pair.look(3, true), HandoverOrders::default());
        // With the secondary gone the primary takes them back at once.
        pair.sight.primary_stands = false;
        pair.look(10, true);
        (pair.sight.primary_stands, pair.sight.secondary_stands) = (true, false);
        assert_eq!(pair.look(3, true), HandoverOrders::default());
    }

    #[test]
    fn nothing_is_taken_before_it_is_let_go() {
        let mut pair = Pair::new();
        pair.sight.primary_stands = false;
        assert_eq!(pair.look(1_000, false), HandoverOrders { lent: true, borrow: false });
    }

    proptest! {
        /// Whatever links do and however slowly the two obey, they never have the lanes at the same time.
        #[test]
        fn never_two_at_a_time(steps in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 1u64..400), 1..100)) {
            let mut pair = Pair::new();
            for (primary, secondary, first_obeys, second_obeys, seconds) in steps {
                (pair.sight.primary_stands, pair.sight.secondary_stands) = (primary, secondary);
                for _ in 0..seconds {
                    let orders = pair.look(1, false);
                    if first_obeys {
                        pair.sight.primary_has = !orders.lent;
                    }
                    if second_obeys {
                        pair.sight.secondary_has = orders.borrow;
                    }
                    prop_assert!(!(pair.sight.primary_has && pair.sight.secondary_has));
                }
            }
        }
    }
}
