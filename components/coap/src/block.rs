//! Block-wise transfer (RFC 7959): the option, bodies that come in blocks, bodies that go in blocks.

use std::collections::HashMap;
use std::net::SocketAddr;

use selvedge::time::Monotonic;

use crate::settings::{EXCHANGE_LIFETIME, MAX_SZX, MAX_UPLOADS, MAX_UPLOADS_PER_PEER, Settings, UPLOAD_IDLE};

/// A Block1 or Block2 option (section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// Number of the block, below 2^20.
    pub number: u32,
    /// More blocks follow.
    pub more: bool,
    /// Size as exponent: 2^(szx+4) bytes, 0 to 6.
    pub szx: u8,
}

impl Block {
    /// Reads the value of the option; none when it is longer than three bytes or the size is the reserved one.
    pub(crate) fn from_value(value: &[u8]) -> Option<Self> {
        let number = crate::packet::uint(value).filter(|_| value.len() <= 3)?;
        let szx = (number & 7) as u8;
        (szx <= MAX_SZX).then_some(Self { number: number >> 4, more: number & 8 != 0, szx })
    }

    pub(crate) fn value(self) -> u32 {
        self.number << 4 | u32::from(self.more) << 3 | u32::from(self.szx)
    }

    /// Size in bytes.
    pub(crate) fn size(self) -> usize {
        1 << (self.szx + 4)
    }

    /// Where the block begins in the body. At most 2^30.
    pub(crate) fn offset(self) -> usize {
        self.number as usize * self.size()
    }
}

/// The part of a body that goes into one message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Slice {
    /// From where to where.
    pub range: std::ops::Range<usize>,
    /// Option to send with it; none when the body goes whole.
    pub block: Option<Block>,
}

/// Cuts the asked block out of a body of `length` bytes, with blocks no larger than `largest` allows. None when the
/// body ends before it.
pub(crate) fn slice(length: usize, asked: Option<Block>, largest: u8) -> Option<Slice> {
    let szx = asked.map_or(largest, |block| block.szx.min(largest));
    let size = 1usize << (szx + 4);
    // A smaller size than was asked for keeps the place in the body (section 2.4).
    let offset = asked.map_or(0, Block::offset);
    if offset > 0 && offset >= length {
        return None;
    }
    if asked.is_none() && length <= size {
        return Some(Slice { range: 0..length, block: None });
    }
    let end = length.min(offset + size);
    Some(Slice { range: offset..end, block: Some(Block { number: (offset / size) as u32, more: end < length, szx }) })
}

/// What became of a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    /// The next one may come.
    Continue,
    /// That was the last; this is the body.
    Complete(Vec<u8>),
    /// It does not follow what is there, or nothing is there.
    Incomplete,
    /// The body passes the limit.
    TooLarge,
    /// A block that is not the last must be full.
    BadSize,
    /// No room for another upload now.
    Busy,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct UploadKey {
    pub peer: SocketAddr,
    pub method: u8,
    /// Path and query: what names the body.
    pub target: String,
}

#[derive(Debug)]
struct Assembly {
    body: Vec<u8>,
    format: Option<u16>,
    touched: Monotonic,
}

/// A block that came with a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    pub block: Block,
    pub payload: &'a [u8],
    pub format: Option<u16>,
    /// Size1: what the peer says the body will have.
    pub announced: Option<u32>,
}

/// Bodies under way, in order only (section 2.5 lets a server ask for that).
#[derive(Debug)]
pub(crate) struct Uploads {
    assemblies: HashMap<UploadKey, Assembly>,
    bytes: usize,
    body_limit: usize,
    bytes_limit: usize,
}

impl Uploads {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { assemblies: HashMap::new(), bytes: 0, body_limit: settings.body_bytes, bytes_limit: settings.upload_bytes }
    }

    pub(crate) fn offer(&mut self, now: Monotonic, key: UploadKey, part: Part<'_>) -> Upload {
        self.expire(now);
        let Part { block, payload, .. } = part;
        if block.more && payload.len() != block.size() {
            return Upload::BadSize;
        }
        if payload.len() > block.size() {
            return Upload::BadSize;
        }
        if block.offset() + payload.len() > self.body_limit || part.announced.is_some_and(|size| size as usize > self.body_limit) {
            self.remove(&key);
            return Upload::TooLarge;
        }
        if block.number == 0 {
            self.remove(&key); // it begins anew
            if !block.more {
                return Upload::Complete(payload.to_vec());
            }
            if !self.make_room(now, key.peer, payload.len()) {
                return Upload::Busy;
            }
            self.bytes += payload.len();
            self.assemblies.insert(key, Assembly { body: payload.to_vec(), format: part.format, touched: now });
            return Upload::Continue;
        }
        let Some(assembly) = self.assemblies.get_mut(&key) else { return Upload::Incomplete };
        if assembly.format != part.format {
            self.remove(&key);
            return Upload::Incomplete;
        }
        assembly.touched = now;
        // The answer to the block was lost and the peer sent it under a new message id.
        if block.more && block.offset() + payload.len() == assembly.body.len() && assembly.body.ends_with(payload) {
            return Upload::Continue;
        }
        if block.offset() != assembly.body.len() {
            self.remove(&key);
            return Upload::Incomplete;
        }
        if self.bytes + payload.len() > self.bytes_limit {
            self.remove(&key);
            return Upload::Busy;
        }
        assembly.body.extend_from_slice(payload);
        self.bytes += payload.len();
        if block.more { Upload::Continue } else { self.remove(&key).map_or(Upload::Incomplete, Upload::Complete) }
    }

    fn remove(&mut self, key: &UploadKey) -> Option<Vec<u8>> {
        let gone = self.assemblies.remove(key)?;
        self.bytes -= gone.body.len();
        Some(gone.body)
    }

    /// One more upload for the peer: gives up the one idle for longest where a bound is met, if it has been idle long enough.
    fn make_room(&mut self, now: Monotonic, peer: SocketAddr, bytes: usize) -> bool {
        loop {
            let of_peer = self.assemblies.keys().filter(|k| k.peer == peer).count() >= MAX_UPLOADS_PER_PEER;
            if !of_peer && self.assemblies.len() < MAX_UPLOADS && self.bytes + bytes <= self.bytes_limit {
                return true;
            }
            let idle = self.assemblies.iter().filter(|(k, a)| (!of_peer || k.peer == peer) && now.since(a.touched) >= UPLOAD_IDLE);
            let Some(oldest) = idle.min_by_key(|(_, a)| a.touched).map(|(k, _)| k.clone()) else { return false };
            self.remove(&oldest);
        }
    }

    /// Gives up what has had no block for EXCHANGE_LIFETIME (section 2.5 leaves the time to the server).
    pub(crate) fn expire(&mut self, now: Monotonic) {
        let bytes = &mut self.bytes;
        self.assemblies.retain(|_, a| {
            let keep = now.since(a.touched) < EXCHANGE_LIFETIME;
            if !keep {
                *bytes -= a.body.len();
            }
            keep
        });
    }

    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        (self.assemblies.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn key(port: u16, target: &str) -> UploadKey {
        UploadKey { peer: SocketAddr::from(([127, 0, 0, 1], port)), method: 2, target: target.into() }
    }

    fn part(number: u32, more: bool, payload: &[u8]) -> Part<'_> {
        Part { block: Block { number, more, szx: 0 }, payload, format: None, announced: None }
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    #[test]
    fn option_values_round_trip_and_the_reserved_size_is_none() {
        for block in
            [Block { number: 0, more: false, szx: 0 }, Block { number: 5, more: true, szx: 6 }, Block { number: 0xF_FFFF, more: true, szx: 2 }]
        {
            let value = block.value().to_be_bytes();
            assert_eq!(Block::from_value(&value[1..]), Some(block));
        }
        assert_eq!(Block::from_value(&[]), Some(Block { number: 0, more: false, szx: 0 }));
        assert_eq!(Block::from_value(&[7]), None);
        assert_eq!(Block::from_value(&[0; 4]), None);
    }

    #[test]
    fn bodies_are_cut_into_the_blocks_that_are_asked_for() {
        let ask = |number, szx| Some(Block { number, more: false, szx });
        assert_eq!(slice(10, None, 6), Some(Slice { range: 0..10, block: None }));
        assert_eq!(slice(0, ask(0, 6), 6), Some(Slice { range: 0..0, block: ask(0, 6) }));
        assert_eq!(slice(40, ask(1, 0), 6), Some(Slice { range: 16..32, block: Some(Block { number: 1, more: true, szx: 0 }) }));
        assert_eq!(slice(40, ask(2, 0), 6), Some(Slice { range: 32..40, block: ask(2, 0) }));
        assert_eq!(slice(40, ask(3, 0), 6), None);
        // The peer asks for larger blocks than it gets: the place stays, the number changes.
        assert_eq!(slice(300, ask(1, 4), 3), Some(Slice { range: 256..300, block: Some(Block { number: 2, more: false, szx: 3 }) }));
    }

    #[test]
    fn blocks_in_order_make_a_body() {
        let mut uploads = Uploads::new(&Settings::default());
        assert_eq!(uploads.offer(at(0), key(1, "a"), part(0, true, &[1; 16])), Upload::Continue);
        assert_eq!(uploads.offer(at(1), key(1, "b"), part(0, true, &[9; 16])), Upload::Continue);
        assert_eq!(uploads.offer(at(1), key(1, "a"), part(1, true, &[2; 16])), Upload::Continue);
        assert_eq!(uploads.offer(at(2), key(1, "a"), part(1, true, &[2; 16])), Upload::Continue, "sent again under another id");
        let Upload::Complete(body) = uploads.offer(at(2), key(1, "a"), part(2, false, &[3; 3])) else { panic!("not complete") };
        assert_eq!(body, [vec![1; 16], vec![2; 16], vec![3; 3]].concat());
        assert_eq!(uploads.held(), (1, 16));
        assert_eq!(uploads.offer(at(3), key(1, "a"), part(2, false, &[3; 3])), Upload::Incomplete);
        assert_eq!(uploads.offer(at(3), key(1, "b"), part(2, true, &[3; 16])), Upload::Incomplete, "one is missing");
        assert_eq!(uploads.held(), (0, 0));
    }

    #[test]
    fn bounds_hold_and_nothing_leaks() {
        let settings = Settings { body_bytes: 40, upload_bytes: 64, ..Settings::default() };
        let mut uploads = Uploads::new(&settings);
        assert_eq!(uploads.offer(at(0), key(1, "a"), part(0, true, &[1; 15])), Upload::BadSize);
        assert_eq!(uploads.offer(at(0), key(1, "a"), Part { announced: Some(41), ..part(0, true, &[1; 16]) }), Upload::TooLarge);
        assert_eq!(uploads.offer(at(0), key(1, "a"), part(0, true, &[1; 16])), Upload::Continue);
        assert_eq!(uploads.offer(at(0), key(1, "a"), part(1, true, &[1; 16])), Upload::Continue);
        assert_eq!(uploads.offer(at(0), key(1, "a"), part(2, true, &[1; 16])), Upload::TooLarge);
        assert_eq!(uploads.held(), (0, 0));
        for n in 0..4 {
            assert_eq!(uploads.offer(at(0), key(1, &n.to_string()), part(0, true, &[1; 16])), Upload::Continue);
        }
        assert_eq!(uploads.offer(at(1), key(2, "x"), part(0, true, &[1; 16])), Upload::Busy, "bytes are used up");
        assert_eq!(uploads.offer(at(1), key(1, "x"), part(0, true, &[1; 16])), Upload::Busy, "the peer has its share");
        assert_eq!(uploads.offer(at(6), key(2, "x"), part(0, true, &[1; 16])), Upload::Continue, "an idle one gave way");
        uploads.expire(at(600));
        assert_eq!(uploads.held(), (0, 0));
    }
}
