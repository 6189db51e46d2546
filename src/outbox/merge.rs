//! Which records of a run of segments can be merged, and into what: a survey first, then the fate of each record. No IO.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use super::DestinationId;
use super::aggregate::{self, Numbers, Stats};
use super::codec::RawRecord;
use crate::time::Timestamp;

/// Groups that a survey knows; records of others are kept as they are. About 1 MiB.
const MAX_GROUPS: usize = 16_384;
/// Numbers of groups that are being gathered; records of others are kept as they are. About 2 MiB at most.
const MAX_OPEN_NUMBERS: usize = 16_384;
/// What an aggregate takes more than the record that it stands in for: its properties, and the five values of each number.
const AGGREGATE_BYTES: u64 = 120;
const NUMBER_BYTES: u64 = 70;

/// What is merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merge {
    /// Of a topic only the newest stays.
    Latest,
    /// Numbers of a topic are reduced in windows of this length; `level` counts the windows of the lane from 1.
    Window { seconds: u32, level: u8 },
}

/// Records that are merged into the last of them.
#[derive(Debug)]
struct Group {
    last: u64,
    count: u32,
    /// Of the last one: its bytes, and the input it stands in.
    bytes: u32,
    input: u32,
    /// There was no room to gather it.
    keep: bool,
}

struct Open {
    stats: Vec<Stats>,
    count: u64,
    from: String,
}

/// What becomes of a record.
pub(crate) enum Fate {
    /// It stays as it is.
    Stays,
    /// Another one stands for it.
    Merged,
    /// It stands for so many since then.
    StandsFor { payload: Vec<u8>, count: u64, from: String },
}

pub(crate) struct Plan {
    pub merge: Merge,
    hashers: (RandomState, RandomState),
    groups: HashMap<u128, Group>,
    open: HashMap<u128, Open>,
    open_numbers: usize,
    /// By input: bytes that merging saves there for sure (`Latest`), and bytes that will stand there about.
    pub saves: Vec<u64>,
    pub leaves: Vec<u64>,
}

impl Plan {
    pub fn new(merge: Merge, inputs: usize) -> Self {
        Self {
            merge,
            hashers: (RandomState::new(), RandomState::new()),
            groups: HashMap::new(),
            open: HashMap::new(),
            open_numbers: 0,
            saves: vec![0; inputs],
            leaves: vec![0; inputs],
        }
    }

    /// No more segments should be added: what follows would hardly be merged.
    pub fn is_filling(&self) -> bool {
        self.groups.len() > MAX_GROUPS / 2
    }

    /// Two keyed hashes of 64 bits: topics come from outside, and two groups must never be taken for one.
    fn key(&self, output: usize, record: &RawRecord<'_>, destinations: &[DestinationId], shape: &str) -> u128 {
        let window = match self.merge {
            Merge::Latest => 0,
            Merge::Window { seconds, .. } => record.accepted.at.0 / (u64::from(seconds) * 1000),
        };
        // Of windows each output has its own groups: one that is done must not wait for what another one gathers.
        let output = if self.merge == Merge::Latest { 0 } else { output };
        let hash = |state: &RandomState| state.hash_one((output, window, record.source, record.topic, destinations, shape));
        u128::from(hash(&self.hashers.0)) << 64 | u128::from(hash(&self.hashers.1))
    }

    /// The numbers of a record that may be reduced. Requests are left alone: each of them wants its own answer.
    fn numbers(&self, record: &RawRecord<'_>) -> Option<Numbers> {
        let request = record.with_attributes(|a| a.response_topic.is_some() || a.correlation_data.is_some());
        if request { None } else { Numbers::read(record.payload, record.aggregate) }
    }

    /// Survey: a record of input `input`, of so many bytes, that these destinations still need.
    pub fn look(&mut self, input: usize, output: usize, record: &RawRecord<'_>, destinations: &[DestinationId], bytes: usize) {
        let full = self.groups.len() >= MAX_GROUPS;
        let (key, more) = match self.merge {
            Merge::Latest => (self.key(output, record, destinations, ""), 0),
            Merge::Window { .. } => {
                let Some(numbers) = self.numbers(record) else {
                    self.leaves[input] += bytes as u64;
                    return;
                };
                let more = if record.aggregate { 0 } else { AGGREGATE_BYTES + NUMBER_BYTES * numbers.stats.len() as u64 };
                (self.key(output, record, destinations, &numbers.shape), more)
            }
        };
        let newest = Group { last: record.sequence, count: 1, bytes: bytes as u32, input: input as u32, keep: false };
        match self.groups.get_mut(&key) {
            Some(group) => {
                let (before, old) = (group.input as usize, u64::from(group.bytes));
                self.saves[before] += old;
                self.leaves[before] = self.leaves[before].saturating_sub(old);
                // The first one that is merged makes the group an aggregate.
                let grown = if group.count == 1 { more } else { 0 };
                *group = Group { count: group.count.saturating_add(1), ..newest };
                self.leaves[input] += bytes as u64 + grown;
            }
            None => {
                self.leaves[input] += bytes as u64;
                if !full {
                    self.groups.insert(key, newest);
                }
            }
        }
    }

    /// After the survey: what becomes of a record, called for each in the same order. `told` gives a time as text.
    pub fn fate(&mut self, output: usize, record: &RawRecord<'_>, destinations: &[DestinationId], told: impl Fn(Timestamp) -> String) -> Fate {
        if self.merge == Merge::Latest {
            let key = self.key(output, record, destinations, "");
            return match self.groups.get(&key) {
                Some(group) if group.last != record.sequence => Fate::Merged,
                _ => Fate::Stays,
            };
        }
        let Some(numbers) = self.numbers(record) else { return Fate::Stays };
        let key = self.key(output, record, destinations, &numbers.shape);
        let Some(group) = self.groups.get_mut(&key).filter(|g| g.count > 1 && !g.keep) else { return Fate::Stays };
        let (count, from) = record.with_attributes(|a| {
            let (count, from) = aggregate::stands_for(a.user, record.aggregate, || told(record.accepted.at));
            (count, from.into_owned())
        });
        match self.open.get_mut(&key) {
            Some(open) => {
                open.stats.iter_mut().zip(&numbers.stats).for_each(|(all, one)| all.add(one));
                open.count = open.count.saturating_add(count);
            }
            None if self.open_numbers + numbers.stats.len() > MAX_OPEN_NUMBERS => {
                group.keep = true;
                return Fate::Stays;
            }
            None => {
                self.open_numbers += numbers.stats.len();
                self.open.insert(key, Open { stats: numbers.stats.clone(), count, from });
            }
        }
        if group.last != record.sequence {
            return Fate::Merged;
        }
        let Some(open) = self.open.remove(&key) else { return Fate::Stays };
        self.open_numbers -= open.stats.len();
        Fate::StandsFor { payload: numbers.with(&open.stats), count: open.count, from: open.from }
    }
}
