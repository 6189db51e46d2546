//! Where a forwarder's records come from: its own destination, those of primaries that it stands in for, and sets that it is a member of. A
//! source is open or closed; at any time one forwarder at most has a source open, so order holds and nothing is sent twice but what was on
//! its way. Sets are the exception: each member has them open, and what one has taken is done for all.

use smallvec::SmallVec;

use super::mapping::Mapping;
use crate::component::Fut;
use crate::hub::{Consumer, LaneRun, SetConsumer, SetCounts};
use crate::outbox::{DEFAULT_LIVE_SHARE, Flow, LaneId, OutboxError, Unpassed};
use crate::resource::RouteSpec;

/// The source and the lane that a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) source: u8,
    pub(super) lane: LaneId,
}

/// What a source is read by.
#[derive(Debug)]
enum Tap {
    Own(Consumer),
    Set(SetConsumer),
}

impl Tap {
    fn next_strict_run(&mut self, most: usize, bytes: usize, run: &mut LaneRun) -> Result<usize, OutboxError> {
        match self {
            Self::Own(consumer) => consumer.next_strict_run(most, bytes, run),
            Self::Set(set) => set.next_strict_run(most, bytes, run),
        }
    }

    fn next_shared_run(&mut self, most: usize, bytes: usize, run: &mut LaneRun) -> Result<usize, OutboxError> {
        match self {
            Self::Own(consumer) => consumer.next_shared_run(most, bytes, run),
            Self::Set(set) => set.next_shared_run(most, bytes, run),
        }
    }

    fn readable(&self, strict_only: bool) -> Fut<'static, ()> {
        match self {
            Self::Own(consumer) if strict_only => Box::pin(consumer.strict_readable()),
            Self::Own(consumer) => Box::pin(consumer.readable()),
            Self::Set(set) => Box::pin(set.readable(strict_only)),
        }
    }

    /// Sets have no records of lanes that store nothing.
    fn flow(&mut self, strict: &Flow, others: &Flow) {
        if let Self::Own(consumer) = self {
            consumer.flow(strict, others);
        }
    }

    fn rewind(&mut self) {
        match self {
            Self::Own(consumer) => consumer.rewind(),
            Self::Set(set) => set.rewind(),
        }
    }
}

/// One source.
#[derive(Debug)]
struct Source {
    /// The upstream, or the set, that the records were accepted for.
    owner: String,
    tap: Tap,
    mapping: Mapping,
    open: bool,
}

/// All sources of a forwarder.
#[derive(Debug, Default)]
pub(super) struct Feed {
    sources: SmallVec<[Source; 2]>,
    turn: usize,
}

impl Feed {
    /// Adds a source; gives its number.
    pub(super) fn add(&mut self, owner: &str, consumer: Consumer, mapping: Mapping, open: bool) -> u8 {
        self.push(Source { owner: owner.to_owned(), tap: Tap::Own(consumer), mapping, open })
    }

    /// Adds a set, which is always open; gives its number.
    pub(super) fn add_set(&mut self, name: &str, consumer: SetConsumer, mapping: Mapping) -> u8 {
        self.push(Source { owner: name.to_owned(), tap: Tap::Set(consumer), mapping, open: true })
    }

    fn push(&mut self, source: Source) -> u8 {
        self.sources.push(source);
        u8::try_from(self.sources.len() - 1).unwrap_or(u8::MAX)
    }

    pub(super) fn has_sets(&self) -> bool {
        self.sources.iter().any(|s| matches!(s.tap, Tap::Set(_)))
    }

    /// Its sets, by name.
    pub(super) fn sets(&self) -> impl Iterator<Item = (&str, SetCounts)> {
        self.sources.iter().filter_map(|s| match &s.tap {
            Tap::Own(_) => None,
            Tap::Set(set) => Some((s.owner.as_str(), set.counts())),
        })
    }

    fn open(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|s| s.open)
    }

    pub(super) fn is_open(&self, source: u8) -> bool {
        self.sources[usize::from(source)].open
    }

    /// Opens a source, from its lowest unfinished record on, or closes it.
    pub(super) fn set_open(&mut self, source: u8, open: bool) {
        let source = &mut self.sources[usize::from(source)];
        source.open = open;
        if open {
            source.tap.rewind();
        } else {
            let closing = Flow::Closing(Unpassed::Link);
            source.tap.flow(&closing, &closing);
        }
    }

    /// How the peer takes records of lanes that store nothing, from the sources that are open: of strict lanes, and of the others.
    pub(super) fn flow(&mut self, strict: &Flow, others: &Flow) {
        self.sources.iter_mut().filter(|s| s.open).for_each(|s| s.tap.flow(strict, others));
    }

    /// Whether the record came from a lane that stores nothing: there is nothing to set aside.
    pub(super) fn passes(&self, origin: Origin) -> bool {
        matches!(&self.sources[usize::from(origin.source)].tap, Tap::Own(consumer) if consumer.passes(origin.lane))
    }

    /// Gives back what a source that is closed has handed out.
    pub(super) fn give_back(&mut self, source: u8) {
        self.sources[usize::from(source)].tap.rewind();
    }

    /// The upstream that a source's records were accepted for.
    pub(super) fn owner(&self, source: u8) -> &str {
        &self.sources[usize::from(source)].owner
    }

    /// Other routes for what was accepted for this upstream.
    pub(super) fn set_routes(&mut self, owner: &str, routes: &[RouteSpec]) {
        for source in self.sources.iter_mut().filter(|s| s.owner == owner) {
            source.mapping = Mapping::new(owner, routes.to_vec());
        }
    }

    /// How the link is shared between live records and the backlog, in lanes that are replayed newest first; by the default unless said.
    pub(super) fn set_live_share(&mut self, percent: Option<u8>) {
        let percent = percent.unwrap_or(DEFAULT_LIVE_SHARE);
        self.sources.iter_mut().for_each(|s| match &mut s.tap {
            Tap::Own(consumer) => consumer.set_live_share(percent),
            Tap::Set(set) => set.set_live_share(percent),
        });
    }

    /// The topic of a record at the peer.
    pub(super) fn map<'a>(&'a mut self, source: u8, published_to: &str, topic: &'a str) -> &'a str {
        self.sources[usize::from(source)].mapping.map(published_to, topic)
    }

    /// Reads the next records: strict lanes of all sources first, then (unless these alone are wanted) source after source. None when all
    /// have been read.
    pub(super) fn next_run(&mut self, most: usize, bytes: usize, strict_only: bool, run: &mut LaneRun) -> Result<Option<Origin>, OutboxError> {
        let count = self.sources.len();
        for step in 0..if strict_only { count } else { 2 * count } {
            let at = if step < count { step } else { (self.turn + step) % count };
            let source = &mut self.sources[at];
            if !source.open {
                continue;
            }
            let read = if step < count { source.tap.next_strict_run(most, bytes, run)? } else { source.tap.next_shared_run(most, bytes, run)? };
            if read > 0
                && let Some(lane) = run.lane()
            {
                if step >= count {
                    self.turn = at + 1;
                }
                return Ok(Some(Origin { source: u8::try_from(at).unwrap_or(u8::MAX), lane }));
            }
        }
        Ok(None)
    }

    /// Resolves when there may be something new to read, in strict lanes if these alone are read.
    pub(super) fn readable(&self, strict_only: bool) -> impl Future<Output = ()> + Send + 'static {
        let all: SmallVec<[_; 2]> = self.open().map(|s| s.tap.readable(strict_only)).collect();
        async move {
            if all.is_empty() {
                std::future::pending::<()>().await;
            }
            futures_util::future::select_all(all).await;
        }
    }

    /// The peer has these. Returns how many of them a set had from nobody before.
    pub(super) fn acknowledge(&self, origin: Origin, sequences: &[u64]) -> u64 {
        match &self.sources[usize::from(origin.source)].tap {
            Tap::Own(consumer) => {
                consumer.acknowledge(origin.lane, sequences);
                0
            }
            Tap::Set(set) => set.acknowledge(origin.lane, sequences),
        }
    }

    /// The peer refuses a record for good. True when that is the last word on it; of a set the other members are asked.
    pub(super) fn refuse(&self, origin: Origin, sequence: u64, reason: &str) -> bool {
        match &self.sources[usize::from(origin.source)].tap {
            Tap::Own(_) => true,
            Tap::Set(set) => {
                set.refuse(origin.lane, sequence, reason);
                false
            }
        }
    }

    /// Records of sets that nobody takes, with why: they are this forwarder's to set aside and to [reject](Self::reject).
    pub(super) fn unwanted(&self) -> Vec<(Origin, u64, String)> {
        let (mut all, mut found) = (Vec::new(), Vec::new());
        for (at, source) in self.sources.iter().enumerate() {
            if let Tap::Set(set) = &source.tap {
                set.unwanted(&mut found);
                let source = u8::try_from(at).unwrap_or(u8::MAX);
                all.extend(found.drain(..).map(|(lane, sequence, reason)| (Origin { source, lane }, sequence, reason)));
            }
        }
        all
    }

    /// Nobody takes the record.
    pub(super) fn reject(&self, origin: Origin, sequence: u64, reason: &str) {
        match &self.sources[usize::from(origin.source)].tap {
            Tap::Own(consumer) => consumer.reject(origin.lane, sequence, reason),
            Tap::Set(set) => set.reject(origin.lane, sequence, reason),
        }
    }

    /// Starts again at the lowest record that is not finished, in every source that is open.
    pub(super) fn rewind(&mut self) {
        for source in self.sources.iter_mut().filter(|s| s.open) {
            source.tap.rewind();
        }
    }

    /// What is read next of this lane is this record, if it waits.
    pub(super) fn begin_with(&mut self, origin: Origin, sequence: u64) {
        if let Some(source) = self.sources.get_mut(usize::from(origin.source)).filter(|s| s.open) {
            match &mut source.tap {
                Tap::Own(consumer) => consumer.begin_with(origin.lane, sequence),
                Tap::Set(set) => set.begin_with(origin.lane, sequence),
            }
        }
    }

    /// Records that wait in the sources that are open and do not wait for a key, in strict lanes if these alone are read.
    pub(super) fn sendable(&self, strict_only: bool) -> u64 {
        let of = |s: &Source| match &s.tap {
            Tap::Own(consumer) => consumer.sendable(strict_only),
            Tap::Set(set) => set.sendable(strict_only),
        };
        self.open().map(of).sum()
    }

    /// Records that wait in the sources that are open.
    pub(super) fn queued(&self) -> u64 {
        let of = |s: &Source| match &s.tap {
            Tap::Own(consumer) => consumer.queued(),
            Tap::Set(set) => set.queued(),
        };
        self.open().map(of).sum()
    }
}
