//! The two small files beside the segments: the manifest (epoch, destinations) and the cursor pages. Both are JSON with a
//! checksum line before it, so that a person can read them and a torn one is found.

use serde::{Deserialize, Serialize};

/// What must survive for ids to stay unique and destinations to keep their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub version: u16,
    pub node: String,
    pub epoch: u32,
    /// Names by number; an empty name is a number that is free again.
    pub destinations: Vec<String>,
}

/// What every manifest begins with, whatever else a later version has in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestVersion {
    pub version: u16,
}

/// One destination's place in one lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CursorEntry {
    pub lane: String,
    pub destination: u16,
    pub low: u64,
    pub ahead: Vec<u64>,
    /// delivered, expired, evicted, aggregated.
    pub counts: [u64; 4],
    /// Accepted and dropped without being stored; part of both accepted and evicted in the ledger.
    pub dropped: u64,
    /// Accepted and delivered without being stored; part of both in the ledger.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub passed: u64,
    /// Base of a segment ahead of `low`, and how many records in it are finished that are not in `ahead`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<(u64, u64)>,
    /// Sequences ahead of `low`, from the first to before the second, in which everything is finished, and how many records that is
    /// beside those in `ahead` and `segments`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<(u64, u64, u64)>,
}

/// All cursors at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CursorPage {
    /// Grows with every page written; the higher of two valid ones counts.
    pub generation: u64,
    pub entries: Vec<CursorEntry>,
    /// Next sequence by lane, for lanes whose segments are all gone.
    pub next: Vec<(String, u64)>,
    /// Compacted segments that the counts know of: lane, base and mark.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compacted: Vec<(String, u64, u64)>,
    /// What stands in files for good, of the lanes that sync.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stood: Vec<Stood>,
}

/// How far the files of a lane were synced: what is missing of that later has vanished.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stood {
    pub lane: String,
    /// One past the last sequence.
    pub through: u64,
    /// Records accepted before it, ever, by number of the destination.
    pub accepted: Vec<(u16, u64)>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks so
fn is_zero(n: &u64) -> bool {
    *n == 0
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    // These structs have no map keys or floats, so serialising them to memory cannot fail.
    let body = serde_json::to_vec(value).unwrap_or_default();
    let mut out = format!("{:08x}\n", crc32fast::hash(&body)).into_bytes();
    out.extend_from_slice(&body);
    out
}

pub(crate) fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    let (sum, body) = bytes.split_at_checked(9)?;
    let sum = u32::from_str_radix(std::str::from_utf8(sum).ok()?.strip_suffix('\n')?, 16).ok()?;
    (crc32fast::hash(body) == sum).then(|| serde_json::from_slice(body).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_file_is_found() {
        let page = CursorPage {
            generation: 3,
            entries: vec![CursorEntry {
                lane: "default".into(),
                destination: 1,
                low: 5,
                ahead: vec![7],
                counts: [1, 2, 3, 4],
                dropped: 0,
                passed: 6,
                segments: vec![(8, 2)],
                runs: vec![(20, 30, 9)],
            }],
            next: vec![("default".into(), 9)],
            compacted: vec![("default".into(), 3, 1 << 32)],
            stood: vec![Stood { lane: "default".into(), through: 8, accepted: vec![(1, 7)] }],
        };
        let bytes = encode(&page);
        assert_eq!(decode::<CursorPage>(&bytes), Some(page));
        for cut in 0..bytes.len() {
            assert_eq!(decode::<CursorPage>(&bytes[..cut]), None);
        }
        assert_eq!(decode::<Manifest>(b"no checksum here"), None);
    }

    #[test]
    fn a_page_from_before_segments_were_counted_is_read() {
        let body =
            br#"{"generation":1,"entries":[{"lane":"a","destination":0,"low":5,"ahead":[7],"counts":[4,0,0,0],"dropped":0}],"next":[["a",9]]}"#;
        let mut file = format!("{:08x}\n", crc32fast::hash(body)).into_bytes();
        file.extend_from_slice(body);
        let page: CursorPage = decode(&file).unwrap();
        assert_eq!((page.entries[0].low, page.entries[0].segments.len(), page.entries[0].runs.len(), page.stood.len()), (5, 0, 0, 0));
    }
}
