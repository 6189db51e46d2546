use bytes::Bytes;
use selvedge::component::{Table, Tables};

async fn rows(table: &dyn Table) -> Vec<(String, Bytes)> {
    let mut rows = table.load().await.unwrap();
    rows.sort();
    rows
}

/// Tables keep rows by key, apart from each other; of two writes of one key the one that was called later counts.
pub async fn tables(tables: &dyn Tables) {
    let (a, b) = (tables.open("suite_a").await.unwrap(), tables.open("suite_b").await.unwrap());
    assert!(rows(&*a).await.is_empty(), "a new table is empty");

    a.put("k", Bytes::from_static(b"1")).await.unwrap();
    a.put("k", Bytes::from_static(b"2")).await.unwrap();
    a.put("", Bytes::new()).await.unwrap();
    a.put("ü/'\"%", Bytes::from_static(&[0, 255])).await.unwrap();
    assert_eq!(
        rows(&*a).await,
        [("".to_owned(), Bytes::new()), ("k".to_owned(), Bytes::from_static(b"2")), ("ü/'\"%".to_owned(), Bytes::from_static(&[0, 255]))]
    );
    assert!(rows(&*b).await.is_empty(), "tables are apart");

    a.delete("k").await.unwrap();
    a.delete("k").await.unwrap();
    assert_eq!(rows(&*a).await.len(), 2);
    assert_eq!(rows(&*tables.open("suite_a").await.unwrap()).await.len(), 2, "opened again it is the same table");

    // Order of calls, not of polls.
    let first = b.put("k", Bytes::from_static(b"first"));
    let second = b.put("k", Bytes::from_static(b"second"));
    let third = b.delete("gone");
    second.await.unwrap();
    third.await.unwrap();
    first.await.unwrap();
    assert_eq!(rows(&*b).await, [("k".to_owned(), Bytes::from_static(b"second"))]);
    let put = b.put("k", Bytes::from_static(b"third"));
    b.delete("k").await.unwrap();
    put.await.unwrap();
    assert!(rows(&*b).await.is_empty());
}
