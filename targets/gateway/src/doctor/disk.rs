//! The disk below the data folder: room, kind, and how long a sync takes.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{fdatasync, statfs, statvfs};
use selvedge::component::Finding;
use selvedge::outbox::Durability;
use selvedge::outbox::storage::Space;
use selvedge::resource::{DiskFloor, LaneSpec};

use super::Patient;

/// Writes that are measured.
const WRITES: usize = 32;
const WRITE_BYTES: usize = 4_096;
/// No longer than this, however slow the disk.
const LONGEST: Duration = Duration::from_secs(5);
/// A sync that takes longer makes `fsync` lanes slow.
const SLOW: Duration = Duration::from_millis(50);
const TMPFS: u32 = 0x0102_1994;

/// Room on the file system of a folder, or of the nearest one above it that is there: available and total bytes.
pub fn space(dir: &Path) -> Option<(u64, u64)> {
    let stat = statvfs(&existing(dir)?).ok()?;
    Some((stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize))
}

fn existing(dir: &Path) -> Option<PathBuf> {
    dir.ancestors().map(|a| if a.as_os_str().is_empty() { Path::new(".") } else { a }).find(|a| a.is_dir()).map(Path::to_owned)
}

pub fn examine(patient: &Patient) -> Vec<Finding> {
    let mut findings = Vec::new();
    let dir = &patient.data_dir;
    if let Some((available, total)) = space(dir) {
        findings.push(room(patient, available, total));
    }
    if existing(dir).and_then(|d| statfs(&d).ok()).is_some_and(|s| s.f_type as u32 == TMPFS) {
        let found = format!("{} is in memory (tmpfs): a reboot or a power cut loses everything stored", dir.display());
        findings.push(Finding::problem("disk", found, "put the data directory on a disk: --data-dir, or StateDirectory= in the unit"));
    }
    match existing(dir) {
        Some(at) if at == *dir => findings.push(sync_time(patient, dir)),
        Some(_) => findings.push(Finding::note(
            "disk",
            format!("{} is not there yet: no sync was measured", dir.display()),
            "start the node once, or give its --data-dir",
        )),
        None => findings.push(Finding::problem("disk", format!("{} cannot be there", dir.display()), "choose another --data-dir")),
    }
    findings
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

fn used(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().map(|e| if e.path().is_dir() { used(&e.path()) } else { e.metadata().map_or(0, |m| m.len()) }).sum()
}

fn room(patient: &Patient, available: u64, total: u64) -> Finding {
    let stores = |l: &&LaneSpec| l.durability != Durability::Passthrough;
    let quotas: u64 = patient.resources.forwardings.iter().flat_map(|f| &f.lanes).filter(stores).map(|l| l.quota_bytes).sum();
    // What the lanes hold already counts for their quotas.
    let held = used(&patient.data_dir.join("outbox"));
    let needed = quotas.saturating_sub(held);
    let floor = patient.resources.escape_policies.first().map(|p| p.disk_free).unwrap_or_default();
    let found = format!("{} of {} MiB are free; the lanes may take {} MiB more", mib(available), mib(total), mib(needed));
    if floor.is_passed(Space { available, total }) {
        return Finding::problem("disk", format!("{found}; that is less than budgets.diskFree: lanes do not grow now"), "free some room");
    }
    if available < needed || floor.is_passed(Space { available: available.saturating_sub(needed), total }) {
        let names = if floor == DiskFloor::Little { "the default of budgets.diskFree" } else { "budgets.diskFree" };
        return Finding::warning(
            "disk",
            format!("{found}: in a long outage the disk is full, or below {names}, first"),
            "smaller quotas or a larger disk",
        );
    }
    Finding::good("disk", found)
}

/// Writes and syncs a file beside the store, which is removed at the end.
fn sync_time(patient: &Patient, dir: &Path) -> Finding {
    let path = dir.join(format!("doctor-{}.tmp", std::process::id()));
    let measured = measure(&path);
    let _ = std::fs::remove_file(&path);
    let mut times = match measured {
        Ok(times) if !times.is_empty() => times,
        Ok(_) => return Finding::problem("disk", "no write was done in time", "look at the disk: `dmesg`"),
        Err(error) => {
            return Finding::problem(
                "disk",
                format!("{} cannot be written: {error}", dir.display()),
                "run this as the node's user, and check who owns the folder",
            );
        }
    };
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    let ms = |d: Duration| d.as_secs_f64() * 1_000.0;
    let mut found = format!("a sync takes {:.2} ms (median of {}, worst {:.1} ms)", ms(median), times.len(), ms(worst));
    let per_second = 1.0 / median.as_secs_f64().max(1e-6);
    found.push_str(&format!(": a sender that waits for each answer gets {per_second:.0} a second through an fsync lane"));
    let batched = patient.resources.forwardings.iter().flat_map(|f| &f.lanes).find_map(|l| match l.durability {
        Durability::Batched(time) => Some((l.name.as_str(), time)),
        _ => None,
    });
    if let Some((lane, time)) = batched {
        let each = 1.0 / (time + median).as_secs_f64().max(1e-6);
        found.push_str(&format!(", {each:.0} through {lane}; senders together are not bound by that"));
    }
    if median > SLOW { Finding::warning("disk", found, "a better card or an SSD; batched lanes suffer least") } else { Finding::good("disk", found) }
}

fn measure(path: &Path) -> std::io::Result<Vec<Duration>> {
    let mut file = File::create(path)?;
    let block = [0x5A; WRITE_BYTES];
    let begun = Instant::now();
    let mut times = Vec::with_capacity(WRITES);
    while times.len() < WRITES && begun.elapsed() < LONGEST {
        file.write_all(&block)?;
        let at = Instant::now();
        fdatasync(&file)?;
        times.push(at.elapsed());
    }
    Ok(times)
}
