//! Sensor chips (`/sys/class/hwmon`) and thermal zones (`/sys/class/thermal`), as the kernel's documentation of their
//! sysfs interfaces has them.

use std::collections::HashSet;
use std::path::Path;

use super::{Sample, files};
use crate::reading::{Group, Reading, Value, level_name};

/// A kind of input of a chip.
struct Kind {
    group: Group,
    prefix: &'static str,
    suffix: &'static str,
    /// What the file's number is divided by.
    scale: f64,
    unit: &'static str,
}

const KINDS: [Kind; 5] = [
    Kind { group: Group::Temperature, prefix: "temp", suffix: "_input", scale: 1_000.0, unit: "celsius" },
    Kind { group: Group::Fan, prefix: "fan", suffix: "_input", scale: 1.0, unit: "rpm" },
    Kind { group: Group::Voltage, prefix: "in", suffix: "_input", scale: 1_000.0, unit: "volt" },
    Kind { group: Group::Power, prefix: "power", suffix: "_input", scale: 1_000_000.0, unit: "watt" },
    Kind { group: Group::Power, prefix: "power", suffix: "_average", scale: 1_000_000.0, unit: "watt" },
];

pub(super) fn sample(root: &Path, groups: &[Group], sample: &mut Sample) {
    let mut chips: HashSet<String> = HashSet::new();
    for folder in files::numbered(&root.join("sys/class/hwmon"), "hwmon") {
        let base = level_name(&files::name(&folder.join("name")).unwrap_or_else(|| "chip".to_owned()));
        // Two chips of one kind (two disks, say) are told apart by a number.
        let mut chip = base.clone();
        let mut number = 2;
        while !chips.insert(chip.clone()) {
            chip = format!("{base}-{number}");
            number += 1;
        }
        for kind in KINDS.iter().filter(|kind| groups.contains(&kind.group)) {
            inputs(&folder, &chip, kind, sample);
        }
    }
    if groups.contains(&Group::Temperature) {
        zones(root, sample);
    }
}

fn inputs(folder: &Path, chip: &str, kind: &Kind, sample: &mut Sample) {
    let inputs = files::inputs(folder, kind.prefix, kind.suffix);
    for (number, file) in &inputs {
        let label = files::name(&folder.join(format!("{}{number}_label", kind.prefix)));
        let sensor = label.unwrap_or_else(|| format!("{}{number}", kind.prefix));
        let levels: &[&str] = if inputs.len() == 1 { &[chip] } else { &[chip, &sensor] };
        let cause = match files::text(file) {
            Ok(Some(text)) => match text.trim().parse::<i64>() {
                Ok(raw) => {
                    sample.readings.push(Reading::new(kind.group, levels, Value::scaled(raw, kind.scale), kind.unit));
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Ok(None) => continue, // gone since the folder was listed
            Err(error) => error.to_string(),
        };
        sample.fail(kind.group, file, cause);
    }
}

/// Thermal zones. Many show up as chips too, under the same name: those are not read twice.
fn zones(root: &Path, sample: &mut Sample) {
    let chips: HashSet<String> = sample.readings.iter().map(|r| r.topic.clone()).collect();
    for folder in files::numbered(&root.join("sys/class/thermal"), "thermal_zone") {
        let name = files::name(&folder.join("type")).unwrap_or_else(|| "zone".to_owned());
        let file = folder.join("temp");
        let cause = match files::text(&file) {
            Ok(Some(text)) => match text.trim().parse::<i64>() {
                Ok(raw) => {
                    let reading = Reading::new(Group::Temperature, &[&name], Value::scaled(raw, 1_000.0), "celsius");
                    if !chips.contains(&reading.topic) {
                        sample.readings.push(reading);
                    }
                    continue;
                }
                Err(error) => error.to_string(),
            },
            Ok(None) => continue,
            Err(error) => error.to_string(),
        };
        sample.fail(Group::Temperature, &file, cause);
    }
}
