//! Folders of YAML into [`Resources`].

use std::path::{Path, PathBuf};

use super::strict::{Environment, Findings};
use super::{Problem, Resources, Severity, dapr, own, routes, together, yaml};
use crate::resource::ConfigurationSpec;

/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A folder or file that was named and is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A folder of resources cannot be listed.
    #[error("cannot read the resources folder {}: {detail}; accepted is a folder of .yaml and .yml files", .path.display())]
    Folder {
        /// Folder.
        path: PathBuf,
        /// What the system said.
        detail: String,
    },
    /// A configuration file cannot be read.
    #[error("cannot read the configuration {}: {detail}", .path.display())]
    Configuration {
        /// File.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

fn read_text(path: &Path) -> Result<String, String> {
    let size = std::fs::metadata(path).map_err(|e| e.to_string())?.len();
    if size > MAX_FILE_BYTES {
        return Err(format!("{size} bytes; at most {MAX_FILE_BYTES} are read"));
    }
    let bytes = std::fs::read(path).map_err(|e| e.to_string())?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("yaml") || e.eq_ignore_ascii_case("yml"))
}

/// Reads all resources of the folders, in the order given and by file name, as far as they are meant for `app_id`.
///
/// # Errors
/// When a folder is not there. What is wrong inside is in [`Resources::problems`].
pub fn load(folders: &[PathBuf], app_id: &str, namespace: Option<&str>, environment: Environment<'_>) -> Result<Resources, LoadError> {
    let mut resources = Resources::default();
    for folder in folders {
        let fail = |e: std::io::Error| LoadError::Folder { path: folder.clone(), detail: e.to_string() };
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(fail)? {
            let path = entry.map_err(fail)?.path();
            if path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        for path in files {
            let mut findings = Findings { file: path.display().to_string(), problems: Vec::new(), environment };
            if !is_yaml(&path) {
                findings.add(Severity::Warning, 0, "", "is not a .yaml or .yml file and is left out");
            } else {
                match read_text(&path) {
                    Ok(text) => read_file(&text, app_id, namespace, &mut resources, &mut findings),
                    Err(detail) => findings.add(Severity::Warning, 0, "", format!("cannot be read: {detail}")),
                }
            }
            resources.problems.append(&mut findings.problems);
        }
    }
    check_names(&mut resources);
    routes::check(&mut resources);
    together::check(&mut resources);
    Ok(resources)
}

fn read_file(text: &str, app_id: &str, namespace: Option<&str>, resources: &mut Resources, findings: &mut Findings<'_>) {
    // Documents are parsed one by one, so that a broken one takes only itself down.
    let mut first_line = 1;
    for part in text.split("\n---") {
        let offset = first_line - 1;
        first_line += part.matches('\n').count() + 1;
        // What follows the dashes on their line belongs to no document.
        let body = if offset == 0 { part } else { part.split_once('\n').map_or("", |(_, rest)| rest) };
        let shift = if offset == 0 { 0 } else { offset + 1 };
        match yaml::parse(body) {
            Ok(documents) => {
                for mut document in documents {
                    move_down(&mut document, shift);
                    read_document(&document, app_id, namespace, resources, findings);
                }
            }
            Err(error) => {
                // Ours or Dapr's cannot be told in broken text: what daprd leaves out with a warning, a strict check reports.
                findings.add(Severity::Unreadable, error.line + shift, "", format!("is no YAML: {}", error.detail));
            }
        }
    }
}

fn move_down(node: &mut yaml::Node, by: usize) {
    if by == 0 {
        return;
    }
    node.line += by;
    match &mut node.value {
        yaml::Value::List(items) => items.iter_mut().for_each(|n| move_down(n, by)),
        yaml::Value::Map(entries) => entries.iter_mut().for_each(|(_, line, n)| {
            *line += by;
            move_down(n, by);
        }),
        _ => {}
    }
}

/// `apiVersion` and kinds of ours.
const OUR_VERSION: &str = "selvedge/v1alpha1";
const OUR_KINDS: [&str; 4] = ["Listener", "Forwarding", "EscapePolicy", "Logging"];

/// Whether a document is meant for us, whatever is wrong with its `apiVersion`: ours in another version, or a kind of ours with Dapr's or none.
fn is_meant_for_us(version: &str, kind: &str) -> bool {
    let group = version.split('/').next().unwrap_or_default();
    group.eq_ignore_ascii_case("selvedge") || (OUR_KINDS.contains(&kind) && (version.is_empty() || group == "dapr.io"))
}

fn read_document(document: &yaml::Node, app_id: &str, namespace: Option<&str>, resources: &mut Resources, findings: &mut Findings<'_>) {
    let text =
        |path: [&str; 2]| document.get(path[0]).and_then(|n| if path[1].is_empty() { Some(n) } else { n.get(path[1]) }).and_then(yaml::Node::scalar);
    let (version, kind) = (text(["apiVersion", ""]).unwrap_or_default(), text(["kind", ""]).unwrap_or_default());
    let name = text(["metadata", "name"]).unwrap_or_default();
    let ours = version == OUR_VERSION;
    let known = match version {
        "dapr.io/v1alpha1" => ["Component", "Subscription", "Configuration", "HTTPEndpoint", "Resiliency"].contains(&kind),
        "dapr.io/v2alpha1" => kind == "Subscription",
        OUR_VERSION => OUR_KINDS.contains(&kind),
        _ => false,
    };
    if !ours && is_meant_for_us(version, kind) {
        let line = document.get("apiVersion").map_or(document.line, |n| n.line);
        let text = format!("found {version:?} of a {kind:?}; accepted for {} is {OUR_VERSION}", OUR_KINDS.join(", "));
        findings.add(Severity::Error, line, "apiVersion", text);
        return;
    }
    if !known {
        let severity = if ours { Severity::Error } else { Severity::Warning };
        let nothing = version.is_empty() && kind.is_empty();
        findings.add(
            severity,
            document.line,
            if nothing { "" } else { "kind" },
            format!(
                "{} is left out; accepted are dapr.io/v1alpha1 Component, Subscription, Configuration, HTTPEndpoint, Resiliency, dapr.io/v2alpha1 Subscription, selvedge/v1alpha1 Listener, Forwarding, EscapePolicy, Logging",
                if nothing { "a document without apiVersion and kind".to_owned() } else { format!("{version:?} {kind:?}") }
            ),
        );
        return;
    }
    if name.is_empty() || name.contains(['/', '%']) || name == "." || name == ".." {
        findings.add(Severity::Error, document.line, "metadata.name", format!("found {name:?}; accepted is any name without '/' and '%'"));
        return;
    }
    let scopes = document.get("scopes").map(yaml::Node::items).unwrap_or_default();
    if !scopes.is_empty() && !scopes.iter().any(|s| s.scalar() == Some(app_id)) {
        return;
    }
    if let (Some(ours), Some(theirs)) = (namespace.filter(|n| !n.is_empty()), text(["metadata", "namespace"]).filter(|n| !n.is_empty()))
        && ours != theirs
    {
        return;
    }
    if ours {
        let mut document = document.clone();
        if let yaml::Value::Map(entries) = &mut document.value {
            entries.retain(|(k, _, _)| k != "scopes");
        }
        own::read(&document, kind, name, resources, findings);
    } else {
        dapr::read(document, kind, name, resources, findings);
    }
}

/// Names that stand twice, and references that lead nowhere.
fn check_names(resources: &mut Resources) {
    let mut duplicates = Vec::new();
    let mut seen: Vec<(String, String)> = Vec::new();
    for c in &resources.components {
        let version = if c.version.is_empty() { "v1" } else { &c.version };
        let this = format!("{}/{version}", c.type_name);
        match seen.iter().find(|(name, _)| *name == c.name) {
            Some((_, existing)) => {
                duplicates.push(format!("duplicate definition of Component name {} ({this}) with existing {} ({existing})", c.name, c.name))
            }
            None => seen.push((c.name.clone(), this)),
        }
    }
    if !duplicates.is_empty() {
        resources.duplicate_components = Some(duplicates.join("\n"));
    }
    let mut names: Vec<&str> = resources.components.iter().map(|c| c.name.as_str()).collect();
    names.push("local");
    let mut missing = Vec::new();
    for f in &resources.forwardings {
        for route in &f.routes {
            for end in std::iter::once(&route.from).chain(&route.to) {
                if !names.contains(&end.as_str()) {
                    missing.push((format!("Forwarding {}", f.name), format!("route names the pub/sub {end:?}, and no Component has that name")));
                }
            }
        }
    }
    for p in &resources.escape_policies {
        for u in &p.upstreams {
            if !names.contains(&u.component.as_str()) {
                missing.push((
                    format!("EscapePolicy {}", p.name),
                    format!("upstream names the component {:?}, and no Component has that name", u.component),
                ));
            }
        }
    }
    for (key, text) in missing {
        resources.problems.push(Problem { severity: Severity::Error, file: String::new(), line: 0, key, text });
    }
}

/// Reads the `--config` files; later ones overlay earlier ones.
///
/// # Errors
/// When a file is not there or is no YAML.
pub fn load_configuration(files: &[PathBuf], environment: Environment<'_>) -> Result<ConfigurationSpec, LoadError> {
    let mut configuration = ConfigurationSpec::default();
    for path in files {
        let fail = |detail: String| LoadError::Configuration { path: path.clone(), detail };
        let text = read_text(path).map_err(fail)?;
        let text = super::strict::interpolate(&text, &|name| Some(environment(name).unwrap_or_default())).unwrap_or(text);
        if let Some(document) = yaml::parse(&text).map_err(|e| fail(e.to_string()))?.first() {
            dapr::configuration(document, &mut configuration);
        }
    }
    Ok(configuration)
}
