//! The four operations, on a thread that may block.

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use selvedge::component::{Binding, BindingError, ComponentContext, Fut, InitError, InvokeRequest, InvokeResponse, OutputBinding};

use crate::place::{PlaceError, Root};

const OPERATIONS: [&str; 4] = ["create", "get", "list", "delete"];
/// Largest file that is read in one piece.
const MAX_READ_BYTES: u64 = 256 << 20;
/// Most files that a list names, and folders that it looks into.
const MAX_LISTED: usize = 100_000;
/// Calls that may be at the disk at the same time; further ones wait.
const CALLS: usize = 8;

struct LocalStorage {
    root: Root,
    calls: tokio::sync::Semaphore,
}

/// Builds a `bindings.localstorage`.
///
/// # Errors
/// When `rootPath` is missing, is a folder of the system, or cannot be made.
pub async fn binding(context: ComponentContext) -> Result<Binding, InitError> {
    let path = context.properties.require("rootPath", "the path of a folder")?.to_owned();
    let root = tokio::task::spawn_blocking(move || Root::make(Path::new(&path))).await;
    let root = root.map_err(|e| InitError::failed("rootPath", e))?.map_err(|e| InitError::failed("rootPath", e))?;
    Ok(Binding { input: None, output: Some(Arc::new(LocalStorage { root, calls: tokio::sync::Semaphore::new(CALLS) })) })
}

impl OutputBinding for LocalStorage {
    fn operations(&self) -> &[&'static str] {
        &OPERATIONS
    }

    fn invoke<'a>(&'a self, request: InvokeRequest) -> Fut<'a, Result<InvokeResponse, BindingError>> {
        Box::pin(async move {
            let unavailable = |e: &dyn std::fmt::Display| BindingError::Unavailable(e.to_string());
            let _place = self.calls.acquire().await.map_err(|e| unavailable(&e))?;
            let root = self.root.clone();
            tokio::task::spawn_blocking(move || invoke(&root, &request)).await.map_err(|e| unavailable(&e))?
        })
    }
}

fn invoke(root: &Root, request: &InvokeRequest) -> Result<InvokeResponse, BindingError> {
    let name = request.metadata.iter().find(|(key, _)| key.eq_ignore_ascii_case("fileName")).map(|(_, name)| name.as_str()).unwrap_or_default();
    match request.operation.as_str() {
        "create" => create(root, name, &request.data),
        "get" => get(root, name),
        "list" => list(root, name),
        "delete" => delete(root, name),
        other => Err(BindingError::Invalid(format!("unsupported operation {other}"))),
    }
}

impl From<PlaceError> for BindingError {
    fn from(error: PlaceError) -> Self {
        Self::Invalid(error.to_string())
    }
}

fn failed(what: &str, name: &str, error: &io::Error) -> BindingError {
    match error.kind() {
        io::ErrorKind::NotFound => BindingError::Invalid(format!("file not found: {name}")),
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidFilename => {
            BindingError::Invalid(format!("{what} {name}: {error}"))
        }
        _ => BindingError::Unavailable(format!("{what} {name}: {error}")),
    }
}

fn answer(data: Vec<u8>) -> InvokeResponse {
    InvokeResponse { data: Some(Bytes::from(data)), ..InvokeResponse::default() }
}

fn create(root: &Root, name: &str, data: &[u8]) -> Result<InvokeResponse, BindingError> {
    let made_up;
    let name = if name.is_empty() {
        made_up = uuid::Uuid::new_v4().to_string();
        &made_up
    } else {
        name
    };
    let path = root.file(name)?;
    let content = content(data);
    write(&path, &content).map_err(|e| failed("writing", name, &e))?;
    Ok(answer(serde_json::json!({ "fileName": root.name(&path) }).to_string().into_bytes()))
}

/// Dapr's rule: data in quotes (as JSON texts come over HTTP) loses them, and what then is base64 is decoded, whatever it was meant to be.
fn content(data: &[u8]) -> Vec<u8> {
    let unquoted = match data {
        [b'"', .., b'"'] => serde_json::from_slice::<String>(data).ok().map(String::into_bytes),
        [b'`', inside @ .., b'`'] if !inside.contains(&b'`') => Some(inside.to_vec()),
        _ => None,
    };
    let text = unquoted.unwrap_or_else(|| data.to_vec());
    let one_line: Vec<u8> = text.iter().copied().filter(|b| !matches!(b, b'\r' | b'\n')).collect();
    STANDARD.decode(one_line).unwrap_or(text)
}

/// Writes beside the file and renames, so that a reader sees the old or the new one, also after a power cut.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidFilename)?;
    std::fs::create_dir_all(folder)?;
    let beside = folder.join(format!(".{}.part", uuid::Uuid::new_v4()));
    let written = std::fs::File::create(&beside).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    let outcome = written.and_then(|()| std::fs::rename(&beside, path));
    if outcome.is_err() {
        // What could not be renamed is of no use; when it cannot be removed either, the first error tells more.
        let _ = std::fs::remove_file(&beside);
    }
    outcome
}

fn get(root: &Root, name: &str) -> Result<InvokeResponse, BindingError> {
    let path = root.file(name)?;
    let read = || -> io::Result<Vec<u8>> {
        let file = std::fs::File::open(&path)?;
        let facts = file.metadata()?;
        if !facts.is_file() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let mut content = Vec::with_capacity(usize::try_from(facts.len().min(MAX_READ_BYTES)).unwrap_or(0));
        file.take(MAX_READ_BYTES + 1).read_to_end(&mut content)?;
        Ok(content)
    };
    let content = read().map_err(|e| failed("reading", name, &e))?;
    if content.len() as u64 > MAX_READ_BYTES {
        return Err(BindingError::Invalid(format!("{name} has more than {MAX_READ_BYTES} bytes")));
    }
    Ok(answer(content))
}

fn list(root: &Root, name: &str) -> Result<InvokeResponse, BindingError> {
    let start = root.place(name)?;
    let mut files = Vec::new();
    let mut folders = vec![start];
    let mut looked_into = 0;
    while let Some(folder) = folders.pop() {
        looked_into += 1;
        let entries = std::fs::read_dir(&folder).map_err(|e| failed("listing", name, &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| failed("listing", name, &e))?;
            // The type of a link is link: it is named and not followed.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => files.push(entry.path().to_string_lossy().into_owned()),
                Err(_) => {} // gone since the folder was read
            }
            if files.len() > MAX_LISTED || looked_into + folders.len() > MAX_LISTED {
                return Err(BindingError::Invalid(format!("more than {MAX_LISTED} files or folders: name a folder that has fewer")));
            }
        }
    }
    files.sort();
    let json = if files.is_empty() { serde_json::Value::Null } else { files.into() };
    Ok(answer(json.to_string().into_bytes()))
}

fn delete(root: &Root, name: &str) -> Result<InvokeResponse, BindingError> {
    std::fs::remove_file(root.file(name)?).map_err(|e| failed("deleting", name, &e))?;
    Ok(InvokeResponse::default())
}

#[cfg(test)]
mod tests {
    use selvedge_conformance::Bench;

    use super::*;

    async fn open(bench: &Bench) -> Arc<dyn OutputBinding> {
        let path = bench.dir().join("files").display().to_string();
        binding(bench.context("bindings.localstorage", &[("rootPath", &path)])).await.unwrap().output.unwrap()
    }

    async fn call(binding: &Arc<dyn OutputBinding>, operation: &str, data: &[u8], name: Option<&str>) -> Result<Option<Bytes>, BindingError> {
        let metadata = name.map(|n| ("fileName".to_owned(), n.to_owned())).into_iter().collect();
        let request = InvokeRequest { operation: operation.into(), data: Bytes::copy_from_slice(data), metadata };
        binding.invoke(request).await.map(|r| r.data)
    }

    #[tokio::test]
    async fn it_passes_the_shared_suite() {
        let bench = Bench::new().await;
        selvedge_conformance::file_binding(&*open(&bench).await).await;
    }

    #[tokio::test]
    async fn data_loses_quotes_and_base64() {
        let bench = Bench::new().await;
        let binding = open(&bench).await;
        for (data, stored) in [
            (&b"\"hello world\""[..], &b"hello world"[..]),
            (b"\"aGVsbG8=\"", b"hello"),
            (b"aGVs\nbG8=", b"hello"),
            (b"{\"a\":\"b\"}", b"{\"a\":\"b\"}"),
            (b"\"a\\\"b\"", b"a\"b"),
            (b"`raw`", b"raw"),
            (b"", b""),
            (&[255, 0], &[255, 0]),
        ] {
            call(&binding, "create", data, Some("f")).await.unwrap();
            assert_eq!(call(&binding, "get", b"", Some("f")).await.unwrap().unwrap(), stored, "{data:?}");
        }
    }

    #[tokio::test]
    async fn a_file_without_name_gets_one_and_lists_are_absolute() {
        let bench = Bench::new().await;
        let binding = open(&bench).await;
        assert_eq!(call(&binding, "list", b"", None).await.unwrap().unwrap(), "null");
        let created = call(&binding, "create", b"x y", None).await.unwrap().unwrap();
        let created: serde_json::Value = serde_json::from_slice(&created).unwrap();
        let name = created["fileName"].as_str().unwrap().to_owned();
        assert_eq!(name.len(), 36);
        call(&binding, "create", b"x y", Some("a/b/c")).await.unwrap();
        let listed: Vec<String> = serde_json::from_slice(&call(&binding, "list", b"", None).await.unwrap().unwrap()).unwrap();
        let root = bench.dir().join("files").canonicalize().unwrap();
        let mut expected = [root.join(&name), root.join("a/b/c")].map(|p| p.display().to_string());
        expected.sort();
        assert_eq!(listed, expected);
        let listed: Vec<String> = serde_json::from_slice(&call(&binding, "list", b"", Some("a")).await.unwrap().unwrap()).unwrap();
        assert_eq!(listed.len(), 1);
    }

    #[tokio::test]
    async fn what_is_not_there_or_not_allowed_is_the_caller_s_error() {
        let bench = Bench::new().await;
        let binding = open(&bench).await;
        std::fs::write(bench.dir().join("secret"), "s").unwrap();
        for (operation, name) in [
            ("get", Some("none")),
            ("get", None),
            ("get", Some("../secret")),
            ("delete", Some("none")),
            ("delete", Some("../secret")),
            ("list", Some("none")),
            ("create", Some("..")),
            ("copy", Some("x")),
        ] {
            let outcome = call(&binding, operation, b"", name).await;
            assert!(matches!(outcome, Err(BindingError::Invalid(_))), "{operation} {name:?}: {outcome:?}");
        }
        call(&binding, "create", b"x", Some("../../inside")).await.unwrap();
        assert!(bench.dir().join("files/inside").exists() && bench.dir().join("secret").exists());
        assert!(crate::binding(bench.context("x", &[])).await.is_err());
    }
}
