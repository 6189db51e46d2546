//! Where keys come from: `keys: [{credential: NAME}, {file: PATH}, {env: NAME}]`. Files name no key themselves.

use std::path::PathBuf;

use super::Severity;
use super::strict::{Fields, Findings};
use crate::seal::MasterKey;

/// Largest file that is taken for a key.
const MAX_KEY_FILE_BYTES: u64 = 4_096;

/// Where one key comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// A file that holds the key as text.
    File(PathBuf),
    /// A systemd credential (`LoadCredential=`, `LoadCredentialEncrypted=`): the file of this name in `$CREDENTIALS_DIRECTORY`.
    Credential(String),
    /// An environment variable.
    Environment(String),
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Credential(name) => write!(f, "credential {name}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

impl KeySource {
    /// Reads the key. `environment` gives variables.
    ///
    /// # Errors
    /// In words, with the source and without the key.
    pub fn read(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<MasterKey, String> {
        let text = match self {
            Self::File(path) => read_file(path),
            Self::Credential(name) => match environment("CREDENTIALS_DIRECTORY").filter(|d| !d.is_empty()) {
                Some(folder) => read_file(&PathBuf::from(folder).join(name)),
                None => Err("CREDENTIALS_DIRECTORY is not set: systemd sets it for a unit with LoadCredential=".to_owned()),
            },
            Self::Environment(name) => environment(name).filter(|v| !v.is_empty()).ok_or_else(|| "it is not set".to_owned()),
        };
        text.and_then(|t| MasterKey::parse(&t)).map_err(|e| format!("the key from {self}: {e}"))
    }
}

fn read_file(path: &std::path::Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    file.take(MAX_KEY_FILE_BYTES).read_to_string(&mut text).map_err(|e| e.to_string())?;
    Ok(text)
}

/// Reads all of them, the one that seals first.
///
/// # Errors
/// The first that cannot be read.
pub fn read_keys(sources: &[KeySource], environment: &dyn Fn(&str) -> Option<String>) -> Result<Vec<MasterKey>, String> {
    sources.iter().map(|s| s.read(environment)).collect()
}

/// The list `keys` of a map.
pub(super) fn keys(fields: &mut Fields<'_>, findings: &mut Findings<'_>) -> Vec<KeySource> {
    let mut sources = Vec::new();
    for mut entry in fields.maps("keys", findings) {
        let (line, key) = (entry.line(), entry.key("").trim_end_matches('.').to_owned());
        let named = [
            entry.text("file", findings).map(|(t, _)| KeySource::File(PathBuf::from(t))),
            entry.text("credential", findings).map(|(t, _)| KeySource::Credential(t)),
            entry.text("env", findings).map(|(t, _)| KeySource::Environment(t)),
        ];
        entry.finish(findings);
        let mut named: Vec<KeySource> = named.into_iter().flatten().collect();
        let plain = |name: &str| !name.is_empty() && !name.contains(['/', '\\']) && name != "." && name != "..";
        match named.pop() {
            Some(KeySource::Credential(name)) if named.is_empty() && !plain(&name) => {
                findings.add(Severity::Error, line, &format!("{key}.credential"), format!("found {name:?}; accepted is the name of a credential"));
            }
            Some(source) if named.is_empty() => sources.push(source),
            _ => findings.add(Severity::Error, line, &key, "accepted is one of file, credential, env"),
        }
    }
    sources
}

/// The list `lostKeys` of a map: ids of keys.
pub(super) fn lost(fields: &mut Fields<'_>, findings: &mut Findings<'_>) -> Vec<u32> {
    let key = fields.key("lostKeys");
    let mut ids = Vec::new();
    for (text, line) in fields.texts("lostKeys", findings) {
        let id = (text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u32::from_str_radix(&text, 16).ok()).flatten();
        match id {
            Some(id) => ids.push(id),
            None => {
                let accepted = "accepted is the id of a key as the log and `selvedge doctor` show it, eight hexadecimal digits";
                findings.add(Severity::Error, line, &key, format!("found {text:?}; {accepted}"));
            }
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_from_a_file_a_credential_or_a_variable() {
        let dir = tempfile::tempdir().unwrap();
        let (hex, path) = ("ab".repeat(32), dir.path().join("box-key"));
        std::fs::write(&path, format!("{hex}\n")).unwrap();
        let folder = dir.path().display().to_string();
        let environment = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(folder.clone()),
            "KEY" => Some("ab".repeat(32)),
            _ => None,
        };
        let sources = [KeySource::File(path), KeySource::Credential("box-key".into()), KeySource::Environment("KEY".into())];
        assert_eq!(read_keys(&sources, &environment).unwrap(), vec![MasterKey::new([0xAB; 32]); 3]);
        for (source, words) in [
            (KeySource::File("/nowhere/key".into()), ["file /nowhere/key", "No such file"]),
            (KeySource::Credential("other".into()), ["credential other", "No such file"]),
            (KeySource::Environment("NONE".into()), ["environment variable NONE", "not set"]),
        ] {
            let error = source.read(&environment).unwrap_err();
            assert!(words.iter().all(|w| error.contains(w)), "{error}");
        }
        let none = |_: &str| None;
        assert!(KeySource::Credential("box-key".into()).read(&none).unwrap_err().contains("LoadCredential"));
    }
}
