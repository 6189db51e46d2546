//! Where the keys are: a file or a folder, read as a whole.

use std::fs::{File, Metadata as FileMetadata};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use selvedge::component::{ConfigurationItem, ConfigurationItems, Metadata};
use selvedge::resource::yaml::{self, Node, Value};

/// Largest file of keys, and largest value of a folder.
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_VALUE_BYTES: u64 = 64 << 10;
/// Most keys.
const MAX_KEYS: usize = 1_000;

/// Reads all items. A key of a file is the path of a leaf, joined with `.`; in a folder it is the name of a file, whose text without the line end
/// is the value. Files whose names begin with `.` are left out. The version is the time of the file's last change, in milliseconds since 1970.
///
/// # Errors
/// In words, with the file: it cannot be read, holds something else, or is too large.
pub(crate) fn read(path: &Path) -> Result<ConfigurationItems, String> {
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let about = path.metadata().map_err(fail)?;
    if about.is_dir() { read_folder(path) } else { read_file(path) }
}

fn version(about: &FileMetadata) -> String {
    let changed = about.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    changed.as_millis().to_string()
}

/// The text of a file that is no longer than `most`, and its version.
fn text(path: &Path, most: u64) -> Result<(String, String), String> {
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(fail)?;
    let version = version(&file.metadata().map_err(fail)?);
    let mut text = String::new();
    let read = file.take(most + 1).read_to_string(&mut text).map_err(fail)?;
    if read as u64 > most {
        return Err(format!("{}: it has more than {most} bytes", path.display()));
    }
    Ok((text, version))
}

fn read_file(path: &Path) -> Result<ConfigurationItems, String> {
    let (text, version) = text(path, MAX_FILE_BYTES)?;
    let documents = yaml::parse(&text).map_err(|e| format!("{}: {e}", path.display()))?;
    let mut items = ConfigurationItems::new();
    match documents.as_slice() {
        [] => {}
        [map] if matches!(map.value, Value::Map(_)) => leaves("", map, &version, &mut items),
        _ => return Err(format!("{}: accepted is one map of keys and values", path.display())),
    }
    if items.len() > MAX_KEYS {
        return Err(format!("{}: {} keys; accepted are at most {MAX_KEYS}", path.display(), items.len()));
    }
    Ok(items)
}

fn leaves(path: &str, node: &Node, version: &str, items: &mut ConfigurationItems) {
    let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match &node.value {
        Value::Map(entries) => entries.iter().for_each(|(name, _, child)| leaves(&join(name), child, version, items)),
        Value::List(elements) => elements.iter().enumerate().for_each(|(n, child)| leaves(&join(&n.to_string()), child, version, items)),
        _ => {
            let value = node.scalar().unwrap_or_default().to_owned();
            items.insert(path.to_owned(), ConfigurationItem { value, version: version.to_owned(), metadata: Metadata::new() });
        }
    }
}

fn read_folder(path: &Path) -> Result<ConfigurationItems, String> {
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut items = ConfigurationItems::new();
    for entry in path.read_dir().map_err(fail)? {
        let file: PathBuf = entry.map_err(fail)?.path();
        let Some(name) = file.file_name().and_then(|n| n.to_str()).filter(|n| !n.starts_with('.')) else { continue };
        if !file.is_file() {
            continue;
        }
        if items.len() == MAX_KEYS {
            return Err(format!("{}: more than {MAX_KEYS} files", path.display()));
        }
        let (text, version) = text(&file, MAX_VALUE_BYTES)?;
        let value = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t)).to_owned();
        items.insert(name.to_owned(), ConfigurationItem { value, version, metadata: Metadata::new() });
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(path: &Path) -> Vec<(String, String)> {
        read(path).unwrap().into_iter().map(|(k, i)| (k, i.value)).collect()
    }

    fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
        of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[tokio::test]
    async fn leaves_of_a_file_are_keys_by_their_path_and_files_of_a_folder_by_their_name() {
        let bench = selvedge_conformance::Bench::new().await;
        let file = bench.dir().join("keys.yaml");
        std::fs::write(&file, "rate: 10\nalarm: {limit: 8.5, on: yes}\nlist: [a, b]\nnothing:\nquoted: \"01\"\n").unwrap();
        let expected =
            [("alarm.limit", "8.5"), ("alarm.on", "yes"), ("list.0", "a"), ("list.1", "b"), ("nothing", ""), ("quoted", "01"), ("rate", "10")];
        assert_eq!(values(&file), pairs(&expected));
        std::fs::write(&file, r#"{"a": {"b": "c"}, "n": 1}"#).unwrap();
        assert_eq!(values(&file), pairs(&[("a.b", "c"), ("n", "1")]), "JSON is YAML");
        std::fs::write(&file, "").unwrap();
        assert!(values(&file).is_empty());

        let folder = bench.dir().join("keys");
        std::fs::create_dir_all(folder.join("below")).unwrap();
        for (name, text) in [("rate", "10\n"), ("limit", "8.5\r\n"), (".hidden", "x")] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        assert_eq!(values(&folder), pairs(&[("limit", "8.5"), ("rate", "10")]));
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_named() {
        let bench = selvedge_conformance::Bench::new().await;
        let file = bench.dir().join("keys.yaml");
        assert!(read(&file).unwrap_err().contains("keys.yaml"));
        for text in ["- a\n- b\n", "text", "a: [", "a: 1\n---\nb: 2\n"] {
            std::fs::write(&file, text).unwrap();
            assert!(read(&file).unwrap_err().contains("keys.yaml"), "{text:?}");
        }
        std::fs::write(&file, "x".repeat(1 + MAX_FILE_BYTES as usize)).unwrap();
        assert!(read(&file).unwrap_err().contains("more than"));
        let many: String = (0..=MAX_KEYS).map(|n| format!("k{n}: v\n")).collect();
        std::fs::write(&file, many).unwrap();
        assert!(read(&file).unwrap_err().contains("1001 keys"));
    }
}
