//! `selvedge check`: reads folders of YAML strictly and starts nothing.

use std::path::PathBuf;
use std::process::ExitCode;

use selvedge::component::Category;
use selvedge::outlook::{self, Load};
use selvedge::resource::{Severity, load};

use crate::flags::{Flags, UsageError};
use crate::{components, serve_api};

/// Checks the folders given as arguments or by `--resources-path`; prints every problem; exit code 1 if there is one.
pub fn check(flags: &Flags) -> Result<ExitCode, UsageError> {
    let mut folders: Vec<PathBuf> = flags.rest.iter().skip(1).map(PathBuf::from).collect();
    folders.extend(flags.list("resources-path"));
    if folders.is_empty() {
        return Err(UsageError("check needs a folder of YAML".into()));
    }
    let sound = report(&folders, flags.text("app-id").unwrap_or("selvedge"), flags.load()?);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints what is wrong with the folders, what is in them, and what they mean at worst under this load. Whether nothing is wrong.
pub fn report(folders: &[PathBuf], app_id: &str, load_of_lanes: Load) -> bool {
    let environment = |name: &str| std::env::var(name).ok();
    let resources = match load(folders, app_id, std::env::var("NAMESPACE").ok().as_deref(), &environment) {
        Ok(resources) => resources,
        Err(error) => {
            println!("{error}");
            return false;
        }
    };
    let mut errors = 0;
    for problem in &resources.problems {
        let word = if problem.severity == Severity::Warning { "warning" } else { "error" };
        errors += usize::from(problem.severity != Severity::Warning);
        println!("{word}: {problem}");
    }
    if let Some(duplicates) = &resources.duplicate_components {
        errors += 1;
        println!("error: {duplicates}");
    }
    for error in resources.subscriptions.iter().filter_map(|s| serve_api::check_routes(s).err()) {
        errors += 1;
        println!("error: {error}");
    }
    let types = components::types();
    for c in &resources.components {
        let known = types.iter().any(|t| t.split('/').next() == Some(c.type_name.to_ascii_lowercase().as_str()));
        if Category::of(&c.type_name).is_none() || !known {
            errors += 1;
            println!("error: {}: spec.type {:?} is not shipped; accepted are {}", c.origin, c.type_name, types.join(", "));
        }
    }
    println!(
        "{} components, {} subscriptions, {} listeners, {} forwardings, {} escape policies: {}",
        resources.components.len(),
        resources.subscriptions.len(),
        resources.listeners.len(),
        resources.forwardings.len(),
        resources.escape_policies.len(),
        if errors == 0 { "all well".to_owned() } else { format!("{errors} to mend") }
    );
    for lane in outlook::lanes(&resources, load_of_lanes, None) {
        for line in lane.lines(load_of_lanes) {
            println!("{line}");
        }
    }
    errors == 0
}
