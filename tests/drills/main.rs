//! Drills: what becomes of acknowledged messages while something fails. An independent publisher, sink and proxy keep the books.
//!
//!     drills                   every drill with selvedge; exit code 1 when one does not hold
//!     drills --soak            the same, longer and more often
//!     drills --only NAME       one of them (again for more)
//!     drills --at-once N       so many at a time; 4 unless said
//!     drills --seed N          where things happen at random: the same again
//!     drills --write           with mosquitto as a bridge beside it; writes docs/drills.md

#![allow(clippy::unwrap_used)] // a failure here is a failed drill

mod around;
mod clock;
mod damage;
mod disk;
mod drill;
mod link;
mod process;
mod report;
mod subject;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use drill::Drill;
use report::Result;
use subject::Kind;

/// Drills at a time: they wait most of the time.
const AT_ONCE: usize = 4;

struct Options {
    soak: bool,
    write: bool,
    at_once: usize,
    seed: u64,
    only: Vec<String>,
}

fn options() -> std::result::Result<Options, String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut options = Options { soak: false, write: false, at_once: AT_ONCE, seed: now.as_micros() as u64 % 1_000_000, only: Vec::new() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{argument}: found {text:?}; accepted is a number"));
        match argument.as_str() {
            "--soak" => options.soak = true,
            "--write" => options.write = true,
            "--at-once" => options.at_once = number(value()?)?.max(1) as usize,
            "--seed" => options.seed = number(value()?)?,
            "--only" => options.only.push(value()?),
            _ => return Err(format!("{argument}: accepted are --soak, --only NAME, --at-once N, --seed N, --write")),
        }
    }
    Ok(options)
}

fn all() -> Vec<&'static Drill> {
    [link::DRILLS, process::DRILLS, disk::DRILLS, damage::DRILLS, clock::DRILLS].into_iter().flatten().collect()
}

/// Runs one in a thread of its own, so that what breaks off there ends there.
fn attempt(drill: &'static Drill, kind: Kind, options: &Options) -> Result {
    if let Some(why) = drill.hindrance() {
        return Result::NotRun(why);
    }
    if let (Kind::Bridge, Some(why)) = (kind, drill.no_peer) {
        return Result::NotRun(why.to_owned());
    }
    let (soak, seed) = (options.soak, options.seed);
    let name = format!("{} {kind:?}", drill.name);
    let thread = std::thread::Builder::new().name(name).spawn(move || drill::run(drill, kind, soak, seed)).expect("a thread can be started");
    match thread.join() {
        Ok(outcome) => Result::Ran(Box::new(outcome)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
            Result::Broke(text.unwrap_or_default())
        }
    }
}

fn run(chosen: &[&'static Drill], options: &Options) -> BTreeMap<(usize, bool), Result> {
    let kinds: &[Kind] = if options.write { &[Kind::Selvedge, Kind::Bridge] } else { &[Kind::Selvedge] };
    let jobs: Vec<(usize, Kind)> = (0..chosen.len()).flat_map(|at| kinds.iter().map(move |kind| (at, *kind))).collect();
    let (jobs, done) = (Mutex::new(jobs.into_iter()), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..options.at_once {
            scope.spawn(|| {
                loop {
                    let Some((at, kind)) = jobs.lock().unwrap().next() else { return };
                    let drill = chosen[at];
                    let result = attempt(drill, kind, options);
                    let peer = if kind == Kind::Bridge { "   (mosquitto bridge)" } else { "" };
                    let mut lines = format!("{:<20} {}{peer}", drill.name, report::cells(&result));
                    if kind == Kind::Selvedge {
                        for problem in report::problems(&result) {
                            lines += &format!("\n    DOES NOT HOLD: {problem}");
                        }
                    }
                    println!("{lines}");
                    done.lock().unwrap().insert((at, kind == Kind::Bridge), result);
                }
            });
        }
    });
    done.into_inner().unwrap()
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(why) => {
            eprintln!("drills: {why}");
            return ExitCode::from(2);
        }
    };
    let all = all();
    let unknown = options.only.iter().find(|name| all.iter().all(|d| d.name != name.as_str()));
    if let Some(unknown) = unknown {
        eprintln!("drills: no drill {unknown:?}; there are {}", all.iter().map(|d| d.name).collect::<Vec<_>>().join(", "));
        return ExitCode::from(2);
    }
    let chosen: Vec<&Drill> = all.into_iter().filter(|d| options.only.is_empty() || options.only.iter().any(|o| o == d.name)).collect();
    let begun = Instant::now();
    println!("{} drills, {} at a time, seed {}", chosen.len(), options.at_once, options.seed);
    println!("{:<20} acknowledged | missing | out of order | repeated | recovery | own MiB resident / at most | seen", "");
    let mut results = run(&chosen, &options);
    let failed: Vec<&str> =
        chosen.iter().enumerate().filter(|(at, _)| !results.get(&(*at, false)).is_some_and(Result::holds)).map(|(_, d)| d.name).collect();
    let ran = results.iter().filter(|((_, peer), result)| !peer && !matches!(result, Result::NotRun(_))).count();
    println!(
        "{ran} drills ran in {} s, {} not run, {} do not hold {}",
        begun.elapsed().as_secs(),
        chosen.len() - ran,
        failed.len(),
        failed.join(", ")
    );
    if options.write {
        let mut take = |at: usize, peer: bool| results.remove(&(at, peer)).unwrap_or_else(|| Result::NotRun(String::new()));
        let rows: Vec<_> = chosen.iter().enumerate().map(|(at, drill)| (*drill, take(at, false), take(at, true))).collect();
        let path = drill::root().join("docs/drills.md");
        std::fs::write(&path, report::document(&rows)).unwrap();
        println!("written: {}", path.display());
    }
    if failed.is_empty() && ran > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
