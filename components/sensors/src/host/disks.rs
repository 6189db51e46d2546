//! Free space of the file systems on disks, and what disks have read and written.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{Sample, files};
use crate::reading::{Group, Reading, Value};

/// Bytes of a sector in `/proc/diskstats`, whatever the disk's own are (kernel documentation, iostats).
const SECTOR_BYTES: u64 = 512;

pub(super) fn sample(root: &Path, sample: &mut Sample) {
    space(root, sample);
    let block = root.join("sys/block");
    sample.whole(Group::Disk, &root.join("proc/diskstats"), |text| Ok(counters(text, |disk| block.join(disk).is_dir())));
}

fn space(root: &Path, sample: &mut Sample) {
    let file = root.join("proc/mounts");
    let text = match files::text(&file) {
        Ok(Some(text)) => text,
        Ok(None) => return,
        Err(error) => return sample.fail(Group::Disk, &file, error),
    };
    let at = |mount: &str| root.join(mount.trim_start_matches('/'));
    for mount in mounts(&text, |mount| at(mount).is_dir()) {
        let place = at(&mount);
        match rustix::fs::statvfs(&place) {
            Ok(stat) => {
                let name = if mount == "/" { "root" } else { &mount };
                let bytes = |blocks: u64| Value::Whole(blocks.saturating_mul(stat.f_frsize));
                sample.readings.push(Reading::new(Group::Disk, &[name, "free"], bytes(stat.f_bavail), "bytes"));
                sample.readings.push(Reading::new(Group::Disk, &[name, "size"], bytes(stat.f_blocks), "bytes"));
            }
            Err(error) => sample.fail(Group::Disk, &place, error),
        }
    }
}

/// Where file systems that stand on a disk are mounted: each disk once, at its shortest path, and the root whatever it stands
/// on. A disk that shows only as files mounted over files, as containers have them, is left out.
fn mounts(text: &str, is_folder: impl Fn(&str) -> bool) -> Vec<String> {
    let mut by_device: BTreeMap<&str, String> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        let (Some(device), Some(place)) = (words.next(), words.next()) else { continue };
        let place = unescape(place);
        let disk = device.starts_with("/dev/") && !device.starts_with("/dev/loop") && !device.starts_with("/dev/ram");
        if (disk || place == "/") && is_folder(&place) {
            let known = by_device.entry(device).or_insert_with(|| place.clone());
            if place.len() < known.len() {
                *known = place;
            }
        }
    }
    let places: BTreeSet<String> = by_device.into_values().collect();
    places.into_iter().collect()
}

/// Undoes the octal escapes of `/proc/mounts` (fstab(5)).
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")].iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// What whole disks have read and written since the machine started.
fn counters(text: &str, is_disk: impl Fn(&str) -> bool) -> Vec<Reading> {
    let mut readings = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, name, _, _, read, _, _, _, written, ..] = words.as_slice() else { continue };
        if ["loop", "ram", "zram"].iter().any(|kind| name.starts_with(kind)) || name.contains('/') || !is_disk(name) {
            continue;
        }
        for (what, sectors) in [("read", read), ("written", written)] {
            if let Ok(sectors) = sectors.parse::<u64>() {
                readings.push(Reading::new(Group::Disk, &[name, what], Value::Whole(sectors.saturating_mul(SECTOR_BYTES)), "bytes"));
            }
        }
    }
    readings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_is_looked_at_once_and_the_root_always() {
        let text = "overlay / overlay rw 0 0\nproc /proc proc rw 0 0\n/dev/sda1 /etc/hosts ext4 rw 0 0\n/dev/sda1 /data/x ext4 rw 0 0\n\
                    /dev/sda1 /data ext4 rw 0 0\n/dev/sdb1 /my\\040disk ext4 rw 0 0\n/dev/loop3 /snap/x squashfs ro 0 0\nbroken\n";
        assert_eq!(mounts(text, |place| place != "/etc/hosts"), ["/", "/data", "/my disk"]);
    }
}
