//! `selvedge check`: reads folders of YAML strictly and starts nothing.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use selvedge::component::Category;
use selvedge::outlook::{self, Load};
use selvedge::resource::{ComponentSpec, PropertySource, Severity, load};
use selvedge_mqtt::settings::{URL, Url, redact};

use crate::flags::{Flags, UsageError};
use crate::say::say;
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
            say!("{error}");
            return false;
        }
    };
    let mut errors = 0;
    for problem in &resources.problems {
        let word = if problem.severity == Severity::Warning { "warning" } else { "error" };
        errors += usize::from(problem.severity != Severity::Warning);
        say!("{word}: {problem}");
    }
    for folder in folders.iter().filter(|f| !has_yaml(f)) {
        errors += 1;
        let inside = if has_yaml(&folder.join("resources")) { format!("; is {} meant?", folder.join("resources").display()) } else { String::new() };
        say!("error: {}: no file ends in .yaml or .yml: there is nothing to check{inside}", folder.display());
    }
    if let Some(duplicates) = &resources.duplicate_components {
        errors += 1;
        say!("error: {duplicates}");
    }
    for error in resources.subscriptions.iter().filter_map(|s| serve_api::check_routes(s).err()) {
        errors += 1;
        say!("error: {error}");
    }
    let types = components::types();
    for c in &resources.components {
        let known = types.iter().any(|t| t.split('/').next() == Some(c.type_name.to_ascii_lowercase().as_str()));
        if Category::of(&c.type_name).is_none() || !known {
            errors += 1;
            say!("error: {}: spec.type {:?} is not shipped; accepted are {}", c.origin, c.type_name, types.join(", "));
        } else if let Some(mistake) = broker_mistake(c) {
            errors += 1;
            say!("error: {}: component {}: {mistake}; accepted is {URL}", c.origin, c.name);
        }
    }
    say!(
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
            say!("{line}");
        }
    }
    for line in outlook::sets(&resources) {
        say!("{line}");
    }
    errors == 0
}

/// Whether the folder has a file that would be read.
fn has_yaml(folder: &Path) -> bool {
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    files.map(|f| f.path()).any(|f| f.extension().is_some_and(|e| e == "yaml" || e == "yml"))
}

/// What is wrong with the `url` of a component that is a broker's: the one key that such a component cannot be without.
fn broker_mistake(component: &ComponentSpec) -> Option<String> {
    if !component.type_name.to_ascii_lowercase().contains(".mqtt") {
        return None;
    }
    match component.properties.iter().find(|p| p.name.eq_ignore_ascii_case("url")).map(|p| &p.source) {
        Some(PropertySource::Literal(text)) => Url::parse(text).is_none().then(|| format!("url: found {:?}", redact(text))),
        // What stands elsewhere is the node's to read.
        Some(_) => None,
        None => {
            let names: Vec<&str> = component.properties.iter().map(|p| p.name.as_str()).collect();
            Some(format!("spec.metadata has no url (it has {})", if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }))
        }
    }
}
