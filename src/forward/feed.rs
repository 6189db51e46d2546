//! Where a forwarder's records come from: its own destination, and those of primaries that it stands in for. A source is open or closed;
//! at any time one forwarder at most has a source open, so order holds and nothing is sent twice but what was on its way.

use smallvec::SmallVec;

use super::mapping::Mapping;
use crate::component::Fut;
use crate::hub::{Consumer, LaneRun};
use crate::outbox::{DEFAULT_LIVE_SHARE, Flow, LaneId, OutboxError, Unpassed};
use crate::resource::RouteSpec;

/// The source and the lane that a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) source: u8,
    pub(super) lane: LaneId,
}

/// One source.
#[derive(Debug)]
struct Source {
    /// The upstream that the records were accepted for.
    owner: String,
    consumer: Consumer,
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
        self.sources.push(Source { owner: owner.to_owned(), consumer, mapping, open });
        u8::try_from(self.sources.len() - 1).unwrap_or(u8::MAX)
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
            source.consumer.rewind();
        } else {
            let closing = Flow::Closing(Unpassed::Link);
            source.consumer.flow(&closing, &closing);
        }
    }

    /// How the peer takes records of lanes that store nothing, from the sources that are open: of strict lanes, and of the others.
    pub(super) fn flow(&mut self, strict: &Flow, others: &Flow) {
        self.sources.iter_mut().filter(|s| s.open).for_each(|s| s.consumer.flow(strict, others));
    }

    /// Whether the record came from a lane that stores nothing: there is nothing to set aside.
    pub(super) fn passes(&self, origin: Origin) -> bool {
        self.sources[usize::from(origin.source)].consumer.passes(origin.lane)
    }

    /// Gives back what a source that is closed has handed out.
    pub(super) fn give_back(&mut self, source: u8) {
        self.sources[usize::from(source)].consumer.rewind();
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
        self.sources.iter_mut().for_each(|s| s.consumer.set_live_share(percent));
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
            let read =
                if step < count { source.consumer.next_strict_run(most, bytes, run)? } else { source.consumer.next_shared_run(most, bytes, run)? };
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
        let of =
            |s: &Source| -> Fut<'static, ()> { if strict_only { Box::pin(s.consumer.strict_readable()) } else { Box::pin(s.consumer.readable()) } };
        let all: SmallVec<[_; 2]> = self.open().map(of).collect();
        async move {
            if all.is_empty() {
                std::future::pending::<()>().await;
            }
            futures_util::future::select_all(all).await;
        }
    }

    pub(super) fn acknowledge(&self, origin: Origin, sequences: &[u64]) {
        self.sources[usize::from(origin.source)].consumer.acknowledge(origin.lane, sequences);
    }

    pub(super) fn reject(&self, origin: Origin, sequence: u64, reason: &str) {
        self.sources[usize::from(origin.source)].consumer.reject(origin.lane, sequence, reason);
    }

    /// Starts again at the lowest record that is not finished, in every source that is open.
    pub(super) fn rewind(&mut self) {
        for source in self.sources.iter_mut().filter(|s| s.open) {
            source.consumer.rewind();
        }
    }

    /// What is read next of this lane is this record, if it waits.
    pub(super) fn begin_with(&mut self, origin: Origin, sequence: u64) {
        if let Some(source) = self.sources.get_mut(usize::from(origin.source)).filter(|s| s.open) {
            source.consumer.begin_with(origin.lane, sequence);
        }
    }

    /// Records that wait in the sources that are open and do not wait for a key, in strict lanes if these alone are read.
    pub(super) fn sendable(&self, strict_only: bool) -> u64 {
        self.open().map(|s| s.consumer.sendable(strict_only)).sum()
    }

    /// Records that wait in the sources that are open.
    pub(super) fn queued(&self) -> u64 {
        self.open().map(|s| s.consumer.queued()).sum()
    }
}
