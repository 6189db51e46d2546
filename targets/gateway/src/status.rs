//! `selvedge status`: asks the running node.

use std::process::ExitCode;

use crate::control;
use crate::flags::{Flags, UsageError};
use crate::run::data_dir;

/// Prints the node's status as JSON; exit code 1 when no node answers.
pub fn status(flags: &Flags) -> Result<ExitCode, UsageError> {
    let dir = data_dir(flags, flags.text("app-id").unwrap_or("selvedge"));
    match control::ask(&dir, "status") {
        Ok(status) => {
            println!("{status:#}");
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("selvedge: no node answers at {}: {error}; is it running with this --data-dir?", control::path(&dir).display());
            Ok(ExitCode::FAILURE)
        }
    }
}
