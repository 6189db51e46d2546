use std::sync::{Arc, Mutex};
use std::time::Duration;

use selvedge::component::{ConfigurationHandler, ConfigurationItems, ConfigurationStore, Fut, Metadata, NotTaken};
use tokio::sync::mpsc;

/// Changes are awaited at most this long.
const PATIENCE: Duration = Duration::from_secs(30);

struct Told {
    sender: mpsc::UnboundedSender<ConfigurationItems>,
    /// Calls that are refused first.
    refusals: Mutex<usize>,
}

impl ConfigurationHandler for Told {
    fn changed<'a>(&'a self, items: ConfigurationItems) -> Fut<'a, Result<(), NotTaken>> {
        let mut refusals = self.refusals.lock().unwrap();
        let taken = if *refusals > 0 {
            *refusals -= 1;
            Err(NotTaken)
        } else {
            let _ = self.sender.send(items);
            Ok(())
        };
        Box::pin(std::future::ready(taken))
    }
}

fn handler(refusals: usize) -> (Arc<Told>, mpsc::UnboundedReceiver<ConfigurationItems>) {
    let (sender, told) = mpsc::unbounded_channel();
    (Arc::new(Told { sender, refusals: Mutex::new(refusals) }), told)
}

async fn next(told: &mut mpsc::UnboundedReceiver<ConfigurationItems>, what: &str) -> Vec<(String, String)> {
    let items = tokio::time::timeout(PATIENCE, told.recv()).await.unwrap_or_else(|_| panic!("{what} is told")).unwrap();
    values(items)
}

fn values(items: ConfigurationItems) -> Vec<(String, String)> {
    items.into_iter().map(|(k, i)| (k, i.value)).collect()
}

fn pairs(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

/// A configuration store gives some, all and missing keys, and tells subscribers of updates, inserts and deletions until they end.
/// `write` makes these keys and values all that there are.
pub async fn configuration(store: &dyn ConfigurationStore, write: impl Fn(&[(&str, &str)])) {
    let metadata = Metadata::new();
    let keys = |of: &[&str]| of.iter().map(|k| (*k).to_owned()).collect::<Vec<_>>();
    write(&[("a", "1"), ("b", "2"), ("c", "3")]);
    let get = async |of: &[&str]| values(store.get(&keys(of), &metadata).await.unwrap());
    assert_eq!(get(&["a", "c"]).await, pairs(&[("a", "1"), ("c", "3")]), "some");
    assert_eq!(get(&[]).await, pairs(&[("a", "1"), ("b", "2"), ("c", "3")]), "all");
    assert_eq!(get(&["nowhere", "b"]).await, pairs(&[("b", "2")]), "a missing key is left out");
    assert_eq!(get(&["nowhere"]).await, []);

    let (some, mut told_some) = handler(0);
    let (all, mut told_all) = handler(0);
    let (shy, mut told_shy) = handler(2);
    let some = store.subscribe(keys(&["a", "d"]), &metadata, some).await.unwrap();
    let all = store.subscribe(Vec::new(), &metadata, all).await.unwrap();
    let shy = store.subscribe(keys(&["a"]), &metadata, shy).await.unwrap();
    write(&[("a", "5"), ("b", "2"), ("c", "3")]);
    assert_eq!(next(&mut told_some, "an update").await, pairs(&[("a", "5")]), "what stood before is not told");
    assert_eq!(next(&mut told_all, "an update").await, pairs(&[("a", "5")]));
    assert_eq!(next(&mut told_shy, "an update that was not taken at first").await, pairs(&[("a", "5")]));
    write(&[("a", "5"), ("b", "2"), ("c", "3"), ("d", "4")]);
    assert_eq!(next(&mut told_some, "an insert").await, pairs(&[("d", "4")]));
    assert_eq!(next(&mut told_all, "an insert").await, pairs(&[("d", "4")]));
    write(&[("a", "5"), ("b", "2"), ("d", "4")]);
    assert_eq!(next(&mut told_all, "a deletion").await, pairs(&[("c", "")]), "a key that is gone has an empty item");
    some.close().await;
    drop(shy);
    write(&[("a", "6"), ("b", "2"), ("d", "4")]);
    assert_eq!(next(&mut told_all, "another update").await, pairs(&[("a", "6")]));
    all.close().await;
    write(&[("a", "7")]);
    assert_eq!(get(&["a"]).await, pairs(&[("a", "7")]));
    assert!(told_some.recv().await.is_none() && told_all.recv().await.is_none(), "silent after the end");
    assert!(told_shy.recv().await.is_none(), "a handle that is dropped ends its subscription");
}
