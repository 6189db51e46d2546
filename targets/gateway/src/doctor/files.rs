//! Files with secrets and certificates: who may read them, until when they hold.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use selvedge::certificate;
use selvedge::component::Finding;
use selvedge::outbox::AtRest;
use selvedge::resource::{KeySource, PropertySource};
use selvedge::time::{Clock as _, SystemClock, Timestamp};
use selvedge_mqtt_listener::users::Users;

use super::Patient;

/// Read, write or enter for everyone.
const OTHERS: u32 = 0o007;
const READABLE: u32 = 0o004;

pub fn examine(patient: &Patient) -> Vec<Finding> {
    let now = SystemClock::new().now();
    let mut findings = folders(patient);
    for listener in &patient.resources.listeners {
        let subject = format!("listener {}", listener.name);
        if let Some(tls) = &listener.tls {
            findings.extend(pem_file(&format!("{subject}: certFile"), &tls.cert_file, now));
            if let Some(ca) = &tls.client_ca_file {
                findings.extend(pem_file(&format!("{subject}: clientCaFile"), ca, now));
            }
            findings.extend(readable_by_all(&tls.key_file, &format!("{subject}: keyFile"), "anybody on the box can take the private key"));
        }
        match &listener.users_file {
            None if !listener.bind.starts_with("127.") && !listener.bind.starts_with("[::1]") => {
                let found = format!("{} lets everyone in, and everyone may do everything", listener.bind);
                findings.push(Finding::warning(subject, found, "give it `users` (docs/install.md has a file of them), or bind it to 127.0.0.1"));
            }
            None => {}
            Some(path) => match Users::load(path) {
                Ok(users) => findings.push(Finding::good(subject, format!("{} accounts in {}", users.count(), path.display()))),
                Err(error) => findings.push(Finding::problem(subject, error, "mend the users file; a node that runs goes on with what it has")),
            },
        }
    }
    for source in patient.resources.escape_policies.iter().flat_map(|p| &p.at_rest) {
        findings.extend(key(source));
    }
    for component in &patient.resources.components {
        let literal = |wanted: &str| {
            let found = component.properties.iter().find(|p| p.name.eq_ignore_ascii_case(wanted));
            found.and_then(|p| if let PropertySource::Literal(text) = &p.source { Some(text.as_str()) } else { None })
        };
        for key in ["caCert", "clientCert"] {
            if let Some(pem) = literal(key).filter(|p| p.contains("-----BEGIN")) {
                findings.extend(pem_text(&format!("component {}: {key}", component.name), pem.as_bytes(), now));
            }
        }
        let secret = component.properties.iter().any(|p| matches!(&p.source, PropertySource::Literal(text) if holds_secret(&p.name, text)));
        // The line stands behind the file's name.
        let file = component.origin.rsplit_once(':').map_or(component.origin.as_str(), |(file, _)| file);
        if secret {
            findings.extend(readable_by_all(Path::new(file), &format!("component {}", component.name), "a password stands in it"));
        }
    }
    findings
}

/// A key of `atRest`.
fn key(source: &KeySource) -> Vec<Finding> {
    let subject = format!("atRest: {source}");
    let environment = |name: &str| std::env::var(name).ok();
    if matches!(source, KeySource::Credential(_)) && environment("CREDENTIALS_DIRECTORY").is_none() {
        return vec![Finding::note(subject, "systemd hands it to the node alone: it cannot be looked at from here", "")];
    }
    let mut findings = vec![match source.read(&environment) {
        Ok(key) => Finding::good(&subject, format!("key {} seals and opens stored messages", AtRest::with_keys(&[key], true).key_ids().concat())),
        Err(error) => {
            Finding::problem(&subject, error, "without it the node takes no messages, and keeps those that it has sealed until it is there again")
        }
    }];
    if let KeySource::File(path) = source {
        findings.extend(readable_by_all(path, &subject, "anybody on the box can read what it seals"));
    }
    findings
}

/// Whether a literal value is one that only the node should know.
fn holds_secret(name: &str, text: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // `secretsFile` says where they are.
    let place = name.ends_with("file") || name.ends_with("path");
    let named = ["password", "secret", "token", "clientkey"].iter().any(|word| name.contains(word)) && !place && !text.is_empty();
    // A URL with `user:password@`.
    let in_url = text.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@')).is_some_and(|(user, _)| user.contains(':'));
    named || in_url
}

fn mode(path: &Path) -> Option<u32> {
    path.metadata().ok().map(|m| m.mode() & 0o777)
}

fn readable_by_all(path: &Path, subject: &str, why: &str) -> Option<Finding> {
    let mode = mode(path)?;
    (mode & READABLE != 0).then(|| {
        let found = format!("everybody on the box can read {} (mode {mode:o}): {why}", path.display());
        Finding::warning(subject, found, format!("chmod 640 {}, owned by root and the node's group", path.display()))
    })
}

fn folders(patient: &Patient) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(mode) = mode(&patient.data_dir).filter(|m| m & OTHERS != 0) {
        let found = format!("everybody on the box can look into {} (mode {mode:o})", patient.data_dir.display());
        findings.push(Finding::warning("data directory", found, format!("chmod 750 {}", patient.data_dir.display())));
    }
    for folder in &patient.folders {
        if let Some(mode) = mode(folder).filter(|m| m & 0o002 != 0) {
            let found = format!("everybody on the box can change {} (mode {mode:o}), and with it what the node does", folder.display());
            findings.push(Finding::problem("settings", found, format!("chmod o-w {}", folder.display())));
        }
    }
    findings
}

fn pem_file(subject: &str, path: &PathBuf, now: Timestamp) -> Vec<Finding> {
    match std::fs::read(path) {
        Ok(bytes) => pem_text(subject, &bytes, now),
        Err(error) => vec![Finding::problem(subject, format!("{} cannot be read: {error}", path.display()), "check the path and who may read it")],
    }
}

fn pem_text(subject: &str, pem: &[u8], now: Timestamp) -> Vec<Finding> {
    let all: Result<Vec<CertificateDer<'_>>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if !all.is_empty() => all.iter().map(|one| certificate::examine(subject, one.as_ref(), now)).collect(),
        Ok(_) => vec![Finding::problem(subject, "there is no certificate in it", "accepted is PEM, the chain from the leaf on")],
        Err(error) => vec![Finding::problem(subject, format!("no PEM: {error}"), "accepted is PEM, the chain from the leaf on")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_by_name_or_by_their_place_in_a_url() {
        for (name, text, expected) in [
            ("url", "mqtt://user:pw@host", true),
            ("url", "mqtt://user@host", false),
            ("url", "mqtt://host/a:b@c", false),
            ("redisPassword", "x", true),
            ("redisPassword", "", false),
            ("secretsFile", "/etc/selvedge/secrets.json", false),
            ("clientKey", "-----BEGIN", true),
            ("qos", "1", false),
        ] {
            assert_eq!(holds_secret(name, text), expected, "{name} {text}");
        }
    }
}
