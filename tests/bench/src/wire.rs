//! The little of MQTT 3.1.1 that a load needs: bytes in, bytes out, no sockets.

/// Bytes at the front of every payload: run, connection, number (u32 each), four unused, time (u64).
pub const STAMP_BYTES: usize = 24;

/// What a payload says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which run of the load sent it; others are not counted.
    pub run: u32,
    /// Which connection of the load.
    pub connection: u32,
    /// Counts up from 0 within a connection.
    pub number: u32,
    /// When it was sent, in nanoseconds since the tool started.
    pub sent_ns: u64,
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend_from_slice(&(s.len() as u16).to_be_bytes());
    out.extend_from_slice(s.as_bytes());
}

fn head(out: &mut Vec<u8>, first: u8, mut length: usize) {
    out.push(first);
    loop {
        let byte = (length % 128) as u8;
        length /= 128;
        out.push(if length > 0 { byte | 128 } else { byte });
        if length == 0 {
            return;
        }
    }
}

/// CONNECT with a clean session and no keep-alive.
pub fn connect(out: &mut Vec<u8>, client: &str) {
    head(out, 0x10, 12 + client.len());
    text(out, "MQTT");
    out.extend_from_slice(&[4, 2, 0, 0]);
    text(out, client);
}

/// SUBSCRIBE with quality 0: the sink counts by itself, and the cloud's broker has less to do beside what is measured.
pub fn subscribe(out: &mut Vec<u8>, filter: &str) {
    head(out, 0x82, 5 + filter.len());
    out.extend_from_slice(&[0, 1]);
    text(out, filter);
    out.push(0);
}

/// PUBLISH of quality 1 with a stamped payload of `size` bytes (at least [`STAMP_BYTES`]).
pub fn publish(out: &mut Vec<u8>, topic: &str, id: u16, stamp: Stamp, size: usize) {
    assert!(size >= STAMP_BYTES, "a payload of {size} bytes has no room for its stamp");
    head(out, 0x32, 4 + topic.len() + size);
    text(out, topic);
    out.extend_from_slice(&id.to_be_bytes());
    let end = out.len() + size;
    for n in [stamp.run, stamp.connection, stamp.number, 0] {
        out.extend_from_slice(&n.to_be_bytes());
    }
    out.extend_from_slice(&stamp.sent_ns.to_be_bytes());
    out.resize(end, b'x');
}

/// The first whole packet: first byte, body, and how many bytes it takes. Nothing when more must be read first.
pub fn packet(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let mut length = 0usize;
    for (i, byte) in bytes.iter().skip(1).take(4).enumerate() {
        length |= usize::from(byte & 127) << (7 * i);
        if byte & 128 == 0 {
            let body = bytes.get(2 + i..2 + i + length)?;
            return Some((bytes[0], body, 2 + i + length));
        }
    }
    None
}

/// Reads the stamp of a PUBLISH's body; nothing for payloads that the load did not make.
pub fn stamp(first: u8, body: &[u8]) -> Option<Stamp> {
    let topic = usize::from(u16::from_be_bytes(body.get(..2)?.try_into().ok()?));
    let payload = body.get(2 + topic + if first & 6 == 0 { 0 } else { 2 }..)?;
    let word = |i: usize| Some(u32::from_be_bytes(payload.get(4 * i..4 * i + 4)?.try_into().ok()?));
    Some(Stamp { run: word(0)?, connection: word(1)?, number: word(2)?, sent_ns: (u64::from(word(4)?) << 32) | u64::from(word(5)?) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_read_again_with_its_stamp() {
        let sent = Stamp { run: 2, connection: 77, number: 123_456, sent_ns: 0x1_2345_6789_abcd };
        let mut bytes = Vec::new();
        publish(&mut bytes, "bench/77", 9, sent, 200);
        let (first, body, taken) = packet(&bytes).unwrap();
        assert_eq!((taken, stamp(first, body)), (bytes.len(), Some(sent)));
        assert_eq!(body.len() - 2 - "bench/77".len() - 2, 200, "the payload has its size");
    }

    #[test]
    fn a_part_of_a_packet_waits_for_the_rest() {
        let mut bytes = Vec::new();
        publish(&mut bytes, "t", 1, Stamp { run: 1, connection: 0, number: 0, sent_ns: 0 }, 200);
        for n in 0..bytes.len() {
            assert_eq!(packet(&bytes[..n]), None, "{n} bytes");
        }
    }

    #[test]
    fn a_payload_of_others_has_no_stamp() {
        assert_eq!(stamp(0x30, &[0, 1, b't', 1, 2, 3]), None);
        assert_eq!(stamp(0x30, &[0, 9, b't']), None);
    }
}
