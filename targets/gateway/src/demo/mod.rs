//! `selvedge demo`: the story in about a minute, on this machine, with nothing else installed.
//!
//! This process plays the cloud (a broker behind a line that can be cut) and the devices; a child process is the node, so that it can be
//! killed for real. The verdict is the receiver's: what was acknowledged to the devices against what arrived at the broker.

mod books;
mod cloud;
mod devices;
mod screen;
mod story;

use std::process::ExitCode;

use crate::flags::{Flags, UsageError};

/// Tells the story. Exit code 0 when every acknowledged message arrived, in order, and the ledger balances.
pub fn demo(flags: &Flags) -> Result<ExitCode, UsageError> {
    let upstream = match flags.text("upstream") {
        None => None,
        Some(url) => Some(cloud::Upstream::parse(url).map_err(UsageError)?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| UsageError(format!("the event loop cannot be started: {e}")))?;
    Ok(match runtime.block_on(story::tell(upstream)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("selvedge demo: {error}");
            ExitCode::FAILURE
        }
    })
}
