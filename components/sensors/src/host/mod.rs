//! The machine's sensors, read from `/proc` and `/sys` below a root.

mod chips;
mod disks;
mod files;
mod processes;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::reading::{Group, Reading};
use processes::CpuTimes;

/// Most sensors of one sample. Those beyond are left out and counted.
pub(crate) const MAX_SENSORS: usize = 512;

/// A sensor that is there and could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub group: Group,
    /// File that could not be read or understood.
    pub file: PathBuf,
    pub cause: String,
}

/// What one look at the machine gave.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Sample {
    pub readings: Vec<Reading>,
    pub failures: Vec<Failure>,
    /// Readings left out because of [`MAX_SENSORS`].
    pub beyond_limit: usize,
}

impl Sample {
    fn fail(&mut self, group: Group, file: &Path, cause: impl std::fmt::Display) {
        self.failures.push(Failure { group, file: file.to_owned(), cause: cause.to_string() });
    }

    /// Adds what a whole file gives. One that is not there is a machine without it, which is no failure.
    fn whole(&mut self, group: Group, file: &Path, parse: impl FnOnce(&str) -> Result<Vec<Reading>, String>) {
        match files::text(file) {
            Ok(Some(text)) => match parse(&text) {
                Ok(readings) => self.readings.extend(readings),
                Err(cause) => self.fail(group, file, cause),
            },
            Ok(None) => {}
            Err(error) => self.fail(group, file, error),
        }
    }

    /// Gives every reading a topic of its own, and keeps the bound.
    fn finish(&mut self) {
        let mut seen: HashSet<String> = HashSet::with_capacity(self.readings.len());
        for reading in &mut self.readings {
            let mut number = 2;
            let base = reading.topic.clone();
            while !seen.insert(reading.topic.clone()) {
                reading.topic = format!("{base}-{number}");
                number += 1;
            }
        }
        self.beyond_limit = self.readings.len().saturating_sub(MAX_SENSORS);
        self.readings.truncate(MAX_SENSORS);
    }
}

/// The machine below a root.
#[derive(Debug)]
pub(crate) struct Host {
    root: PathBuf,
    /// Counters of the sample before: what the processor did is the difference.
    cpu: Option<CpuTimes>,
}

impl Host {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, cpu: None }
    }

    /// Looks at the sensors of these groups. Blocks for as long as the files do.
    pub(crate) fn sample(&mut self, groups: &[Group]) -> Sample {
        let mut sample = Sample::default();
        chips::sample(&self.root, groups, &mut sample);
        for group in groups {
            match group {
                Group::Load => sample.whole(*group, &self.root.join("proc/loadavg"), processes::load),
                Group::Cpu => sample.whole(*group, &self.root.join("proc/stat"), |text| {
                    let now = CpuTimes::parse(text)?;
                    let before = self.cpu.replace(now);
                    Ok(before.map(|before| now.since(before)).unwrap_or_default())
                }),
                Group::Memory => sample.whole(*group, &self.root.join("proc/meminfo"), processes::memory),
                Group::Network => sample.whole(*group, &self.root.join("proc/net/dev"), processes::network),
                Group::Disk => disks::sample(&self.root, &mut sample),
                Group::Temperature | Group::Fan | Group::Voltage | Group::Power => {} // the chips
            }
        }
        sample.finish();
        sample
    }
}

#[cfg(test)]
mod tests;
