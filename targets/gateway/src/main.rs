//! `selvedge`: the gateway. Reads the command line, builds the node, runs it, drains it.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod activation;
mod check;
mod components;
mod control;
mod demo;
mod doctor;
mod escape;
mod flags;
mod init;
mod queue;
mod reload;
mod run;
mod say;
#[cfg(feature = "api")]
mod serve_api;
#[cfg(not(feature = "api"))]
#[path = "without_api.rs"]
mod serve_api;

use std::process::ExitCode;

use flags::Flags;
use say::say;

/// Exit code for a command line that is not understood (daprd's).
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let flags = match Flags::parse(std::env::args().skip(1)) {
        Ok(flags) => flags,
        Err(error) => {
            eprintln!("selvedge: {error}");
            return ExitCode::from(USAGE);
        }
    };
    if flags.switch("help", false) {
        match flags.rest.first().map(String::as_str) {
            Some("init") => say!("{}", init::HELP.trim_end()),
            _ => help(),
        }
        return ExitCode::SUCCESS;
    }
    if flags.switch("version", false) {
        say!("{}", env!("CARGO_PKG_VERSION"));
        return ExitCode::SUCCESS;
    }
    if flags.switch("build-info", false) {
        say!("Version: {}, Features: {}", env!("CARGO_PKG_VERSION"), components::features().join(" "));
        return ExitCode::SUCCESS;
    }
    let result = match flags.rest.first().map(String::as_str) {
        None => run::run(&flags, run::Flavour::Sidecar),
        Some("run") => run::run(&flags, run::Flavour::Newcomer),
        Some("demo") => demo::demo(&flags),
        Some("init") => init::init(&flags),
        Some("check") => check::check(&flags),
        Some("status") => Ok(control::print(&flags, "status", |status| format!("{status:#}"))),
        Some("queue") => queue::queue(&flags),
        Some("doctor") => doctor::doctor(&flags),
        Some("reload") => reload::reload(&flags),
        Some("escape") => escape::escape(&flags),
        Some("version") => {
            say!("{}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
        Some("help") => {
            help();
            Ok(ExitCode::SUCCESS)
        }
        Some(other) => Err(flags::UsageError(format!(
            "unknown command {other:?}; accepted are run, demo, init, check, status, queue, escape, doctor, reload, version, help"
        ))),
    };
    result.unwrap_or_else(|error| {
        eprintln!("selvedge: {error}");
        ExitCode::from(USAGE)
    })
}

fn help() {
    say!(
        "selvedge: the edge runtime\n\n\
         selvedge [FLAGS]            run as a sidecar, with daprd's flags; only what the YAML declares exists\n\
         selvedge run [FLAGS] [-- PROGRAM ...]\n                            \
         run with working defaults where no --resources-path is given, and a program beside it\n\
         selvedge demo [--upstream mqtt://HOST:PORT]\n                            \
         an outage, a kill and the books, in about a minute\n\
         selvedge init [FOLDER] [--upstream mqtts://HOST --user NAME --password-file FILE] [--devices NAME,...]\n                            \
         write a commented folder of YAML, check it, say what comes next; more: selvedge init --help\n\
         selvedge check DIR...       check folders of YAML strictly, start nothing\n\
         selvedge status             what the node of this data directory is doing, as JSON\n\
         selvedge queue [ls|show [NUMBER]|export|retry NUMBER...|purge NUMBER...|drop DESTINATION]\n                            \
         what waits; what upstreams refused: show it, as JSON lines, try it again, drop it;\n                            \
         drop what waits for an upstream that there is not any more\n\
         selvedge escape [status|enter|leave|pin [MODE] --for TIME|report]\n                            \
         the mode of the box: show it, close all links, open them, set it, past outages\n\
         selvedge doctor [--resources-path DIR] [--rate 50/s] [--size 200]\n                            \
         examine the box, the upstreams and the settings: what was found and what to do\n\
         selvedge reload [--log-level LEVEL]\n                            \
         read the folders of YAML again: what can change live does, the rest is named; another level for the log\n\
         selvedge version\n\n\
         flags (selvedge(1) explains them; those in brackets are accepted and have no effect yet):"
    );
    for (name, served) in Flags::names() {
        say!("  {}", if served { format!("--{name}") } else { format!("[--{name}]") });
    }
}
