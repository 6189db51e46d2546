use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use selvedge::component::{
    BindingError, BindingHandler, BindingReading, Fut, HandlerError, InputBinding, InvokeRequest, InvokeResponse, Metadata, OutputBinding,
};
use tokio::sync::watch;

/// Events are awaited at most this long (of the runtime's time, which tests may pause).
const PATIENCE: Duration = Duration::from_secs(60);

struct Counting(watch::Sender<usize>);

impl BindingHandler for Counting {
    fn handle<'a>(&'a self, _: BindingReading) -> Fut<'a, Result<Option<Bytes>, HandlerError>> {
        self.0.send_modify(|n| *n += 1);
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// An input binding whose source gives events by itself hands them out until its handle is closed, and again when read again.
pub async fn input_binding(binding: Arc<dyn InputBinding>) {
    for round in ["at first", "when read again"] {
        let handler = Arc::new(Counting(watch::channel(0).0));
        let handle = binding.read(handler.clone()).await.unwrap();
        let mut counted = handler.0.subscribe();
        let waited = tokio::time::timeout(PATIENCE, counted.wait_for(|n| *n >= 2)).await;
        assert!(waited.is_ok(), "events come {round}");
        handle.close().await;
        let at_close = *handler.0.borrow();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(*handler.0.borrow(), at_close, "no events after the close");
    }
    binding.close().await;
}

async fn invoke(binding: &dyn OutputBinding, operation: &str, data: &[u8], metadata: &[(&str, &str)]) -> Result<InvokeResponse, BindingError> {
    let metadata: Metadata = metadata.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    binding.invoke(InvokeRequest { operation: operation.into(), data: Bytes::copy_from_slice(data), metadata }).await
}

/// What holds for every output binding.
pub async fn output_binding(binding: &dyn OutputBinding) {
    let operations = binding.operations();
    assert!(!operations.is_empty(), "a binding lists what it can do");
    assert!(operations.iter().all(|o| !o.is_empty() && o.to_ascii_lowercase() == **o), "operations are in small letters: {operations:?}");
    let unknown = invoke(binding, "no-such-operation", b"", &[]).await;
    assert!(matches!(unknown, Err(BindingError::Invalid(_))), "an operation that it does not list is refused: {unknown:?}");
}

/// An output binding that keeps files: create, get, list, delete.
pub async fn file_binding(binding: &dyn OutputBinding) {
    output_binding(binding).await;
    assert_eq!(binding.operations(), ["create", "get", "list", "delete"]);
    let name = [("fileName", "folder/suite.txt")];
    let data = b"some text, with \"quotes\" in the middle";
    let created = invoke(binding, "create", data, &name).await.unwrap();
    assert!(created.data.is_some_and(|d| String::from_utf8_lossy(&d).contains("suite.txt")), "the answer names the file");
    assert_eq!(invoke(binding, "get", b"", &name).await.unwrap().data.as_deref(), Some(&data[..]), "the same bytes");
    let listed = invoke(binding, "list", b"", &[]).await.unwrap().data.unwrap();
    assert!(String::from_utf8_lossy(&listed).contains("suite.txt"));
    invoke(binding, "create", b"second", &name).await.unwrap();
    assert_eq!(invoke(binding, "get", b"", &name).await.unwrap().data.as_deref(), Some(&b"second"[..]), "a later one replaces it");
    invoke(binding, "delete", b"", &name).await.unwrap();
    let gone = invoke(binding, "get", b"", &name).await;
    assert!(gone.is_err() || gone.is_ok_and(|r| r.data.is_none()), "nothing after the deletion");
    binding.close().await;
}
