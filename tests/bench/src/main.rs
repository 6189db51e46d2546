//! `selvedge-bench`: selvedge beside mosquitto as a bridge, in one run. `tests/bench/run` is the way in.
//!
//! Devices publish 200 bytes of quality 1 at a box; the box carries everything to a broker in the cloud with quality 1; a sink there
//! books what arrives. Load, sink and cloud are the same for every peer and share the machine with it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod gate;
mod load;
mod measure;
mod peer;
mod process;
mod sink;
mod table;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use measure::{Bench, Part};
use peer::Peer;

struct Arguments {
    data: PathBuf,
    selvedge: PathBuf,
    write: Option<PathBuf>,
    quick: bool,
    only: Vec<Part>,
    peers: Vec<Peer>,
}

fn parse() -> Result<Arguments, String> {
    let mut arguments = Arguments { data: PathBuf::new(), selvedge: PathBuf::new(), write: None, quick: false, only: Vec::new(), peers: Vec::new() };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut value = || given.next().ok_or_else(|| format!("{name} needs a value"));
        match name.as_str() {
            "--data" => arguments.data = value()?.into(),
            "--selvedge" => arguments.selvedge = value()?.into(),
            "--write" => arguments.write = Some(value()?.into()),
            "--quick" => arguments.quick = true,
            "--only" => {
                let part = value()?;
                let known = Part::ALL.into_iter().find(|p| p.name() == part);
                arguments.only.push(known.ok_or_else(|| format!("--only {part}: accepted are {}", Part::ALL.map(Part::name).join(", ")))?);
            }
            "--peer" => {
                let peer = value()?;
                let known = Peer::ALL.into_iter().find(|p| p.name() == peer);
                arguments.peers.push(known.ok_or_else(|| format!("--peer {peer}: accepted are {}", Peer::ALL.map(Peer::name).join(", ")))?);
            }
            other => return Err(format!("unknown argument {other}; see tests/bench/run --help")),
        }
    }
    if arguments.only.is_empty() {
        arguments.only = Part::ALL.to_vec();
    }
    if arguments.peers.is_empty() {
        arguments.peers = Peer::ALL.to_vec();
    }
    if arguments.write.is_some() && (arguments.quick || arguments.only.len() < Part::ALL.len() || arguments.peers.len() < Peer::ALL.len()) {
        return Err("--write goes with a whole run: no --quick, --only or --peer".to_owned());
    }
    Ok(arguments)
}

fn main() -> ExitCode {
    let arguments = match parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("selvedge-bench: {error}");
            return ExitCode::from(2);
        }
    };
    let mut bench = Bench::new(arguments.data, arguments.selvedge, arguments.peers.clone(), arguments.quick);
    for part in arguments.only {
        if let Err(error) = bench.part(part) {
            eprintln!("selvedge-bench: {}: {error}", part.name());
            return ExitCode::FAILURE;
        }
    }
    let rows = bench.rows();
    print!("\n{}", table::plain(&rows, &arguments.peers));
    if let Some(path) = arguments.write {
        let written = table::conditions(arguments.quick).and_then(|conditions| table::into_page(&path, &rows, &arguments.peers, &conditions));
        if let Err(error) = written {
            eprintln!("selvedge-bench: {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        println!("written to {}", path.display());
    }
    ExitCode::SUCCESS
}
