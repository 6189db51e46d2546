//! `selvedge doctor`: examines the box, the upstreams and the settings, and says what was found and what to do.

mod disk;
mod files;
mod host;
mod ports;

pub use ports::holder;

use std::process::ExitCode;
use std::sync::Arc;

use selvedge::component::{Finding, FindingLevel, InheritedSockets};
use selvedge::node::{self, NodeConfig};
use selvedge::outlook;
use selvedge::resource::{ConfigurationSpec, Resources, Severity, load};
use selvedge::telemetry::Metrics;
use selvedge::time::{Clock, SystemClock};
use serde_json::{Value, json};

use crate::flags::{Flags, UsageError};
use crate::run::data_dir_of_node;
use crate::say::say;
use crate::{components, control, serve_api};

/// What is examined.
pub struct Patient {
    resources: Resources,
    folders: Vec<std::path::PathBuf>,
    data_dir: std::path::PathBuf,
    /// Process id of the node that runs on the data folder, if one answers.
    running: Option<u32>,
}

/// Prints the findings; exit code 1 when one of them is a problem.
pub fn doctor(flags: &Flags) -> Result<ExitCode, UsageError> {
    let load_of_lanes = flags.load()?;
    let mut folders = flags.list("resources-path");
    folders.extend(flags.list("components-path"));
    folders.extend(flags.rest.iter().skip(1).map(Into::into));
    let data_dir = data_dir_of_node(flags);
    let running = control::process(&data_dir);
    let of_node = running.and_then(command_line);
    if let (Some(process), Some(of_node), true) = (running, &of_node, folders.is_empty()) {
        // As the node sees them: from the folder that it was started in.
        let base = std::path::PathBuf::from(format!("/proc/{process}/cwd"));
        let base = std::fs::read_link(&base).unwrap_or(base);
        folders = ["resources-path", "components-path"].iter().flat_map(|f| of_node.list(f)).map(|folder| base.join(folder)).collect();
    }
    let app_id = flags.text("app-id").or_else(|| of_node.as_ref()?.text("app-id")).unwrap_or("selvedge");
    let (resources, mut findings) = settings(&folders, app_id);
    let patient = Patient { running, resources, folders, data_dir };
    findings.push(match patient.running {
        Some(process) => Finding::good("node", format!("runs as process {process} on {}", patient.data_dir.display())),
        None => Finding::note("node", format!("none answers on {}", patient.data_dir.display()), "give the --data-dir of the node if one should run"),
    });
    findings.extend(orphans(&patient));
    findings.extend(host::examine(&patient));
    findings.extend(disk::examine(&patient));
    findings.extend(files::examine(&patient));
    findings.extend(ports::examine(&patient));
    findings.extend(ports::apis(&patient, of_node.as_ref().unwrap_or(flags)));
    findings.extend(upstreams(&patient, app_id));
    let lanes = outlook::lanes(&patient.resources, load_of_lanes, disk::space(&patient.data_dir).map(|s| s.0));
    if flags.switch("json", false) {
        let lanes: Vec<Value> = lanes
            .iter()
            .map(|l| {
                json!({
                    "lane": l.lane, "stores": l.keeps, "quotaBytes": l.quota_bytes, "records": l.records, "coversSeconds": l.covers.as_secs(), "endsByTtl": l.ends_by_ttl,
                    "lostByKill": l.kill, "lostByPowerCut": l.power, "whenFull": l.full, "traps": l.traps,
                })
            })
            .collect();
        let findings: Vec<Value> =
            findings.iter().map(|f| json!({"level": f.level.as_str(), "subject": f.subject, "found": f.found, "remedy": f.remedy})).collect();
        say!("{:#}", json!({"findings": findings, "worstCase": lanes}));
    } else {
        for finding in &findings {
            say!("{finding}");
        }
        for line in lanes.iter().flat_map(|l| l.lines(load_of_lanes)) {
            say!("{line}");
        }
        let count = |level| findings.iter().filter(|f| f.level == level).count();
        say!("{} problems, {} warnings", count(FindingLevel::Problem), count(FindingLevel::Warning));
    }
    let sound = findings.iter().all(|f| f.level < FindingLevel::Problem);
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Upstreams that records wait for and that there are not.
fn orphans(patient: &Patient) -> Vec<Finding> {
    let Some(status) = patient.running.and_then(|_| control::ask(&patient.data_dir, "status").ok()) else { return Vec::new() };
    let each = status["orphans"].as_array().into_iter().flatten();
    each.map(|orphan| {
        let destination = orphan["destination"].as_str().unwrap_or("?");
        Finding::warning(
            destination,
            format!("{} records wait for an upstream that there is not, and take room in their lanes", orphan["queued"]),
            format!("give a component that name again, or `selvedge queue drop {destination}`"),
        )
    })
    .collect()
}

/// The command line of a process, if it is a node's.
fn command_line(process: u32) -> Option<Flags> {
    let line = std::fs::read(format!("/proc/{process}/cmdline")).ok()?;
    let words = line.split(|b| *b == 0).skip(1).filter(|w| !w.is_empty()).map(|w| String::from_utf8_lossy(w).into_owned());
    Flags::parse(words).ok()
}

/// The ways in and out alone: addresses of listeners, certificates and files, brokers stage by stage.
pub fn doors(folders: &[std::path::PathBuf], app_id: &str, flags: &Flags) -> Vec<Finding> {
    let data_dir = data_dir_of_node(flags);
    let (resources, _) = settings(folders, app_id);
    let running = control::process(&data_dir);
    let of_node = running.and_then(command_line);
    let patient = Patient { running, resources, folders: folders.to_vec(), data_dir };
    let mut findings = files::examine(&patient);
    findings.extend(ports::examine(&patient));
    findings.extend(ports::apis(&patient, of_node.as_ref().unwrap_or(flags)).into_iter().filter(|f| f.level == FindingLevel::Problem));
    findings.extend(upstreams(&patient, app_id));
    findings
}

/// Room for the node on the file system of a folder, in bytes.
pub fn free_bytes(dir: &std::path::Path) -> Option<u64> {
    disk::space(dir).map(|(available, _)| available)
}

/// The resources, read strictly.
fn settings(folders: &[std::path::PathBuf], app_id: &str) -> (Resources, Vec<Finding>) {
    if folders.is_empty() {
        let found = "no folder of YAML is given: only the box is examined";
        return (Resources::default(), vec![Finding::note("settings", found, "add --resources-path DIR")]);
    }
    let environment = |name: &str| std::env::var(name).ok();
    let resources = match load(folders, app_id, std::env::var("NAMESPACE").ok().as_deref(), &environment) {
        Ok(resources) => resources,
        Err(error) => return (Resources::default(), vec![Finding::problem("settings", error.to_string(), "mend the folder or the file")]),
    };
    let remedy = "`selvedge check` shows all of them";
    let mut findings: Vec<Finding> = resources
        .problems
        .iter()
        .map(|p| match p.severity {
            Severity::Warning => Finding::warning("settings", p.to_string(), remedy),
            Severity::Unreadable | Severity::Error => Finding::problem("settings", p.to_string(), remedy),
        })
        .collect();
    findings.extend(resources.duplicate_components.iter().map(|d| Finding::problem("settings", d.clone(), "give each component a name of its own")));
    for error in resources.subscriptions.iter().filter_map(|s| serve_api::check_routes(s).err()) {
        findings.push(Finding::problem("settings", error.to_string(), remedy));
    }
    if findings.is_empty() {
        findings.push(Finding::good(
            "settings",
            format!("{} components and {} listeners, no mistakes", resources.components.len(), resources.listeners.len()),
        ));
    }
    (resources, findings)
}

/// What the components find of their peers.
fn upstreams(patient: &Patient, app_id: &str) -> Vec<Finding> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let host = components::host(clock, Metrics::new(), InheritedSockets::default());
    let config = NodeConfig {
        app_id: app_id.to_owned(),
        namespace: std::env::var("NAMESPACE").ok(),
        data_dir: patient.data_dir.clone(),
        resources: patient.resources.clone(),
        configuration: ConfigurationSpec::default(),
        environment: std::env::vars().collect(),
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(node::diagnose(&config, &host)),
        Err(error) => vec![Finding::problem("upstreams", format!("the event loop cannot be started: {error}"), "look at the limits of this shell")],
    }
}
