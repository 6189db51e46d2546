//! What can still be read behind a damaged record.

use std::io;
use std::ops::Range;

use super::codec::{self, FRAME_BYTES};
use super::storage::StoredFile;

/// Looked through at once.
const CHUNK: usize = 64 << 10;
/// Length, checksum, and the sequence that a body begins with.
const HEAD: usize = FRAME_BYTES + 8;

/// A length that a record may have, and a sequence that may stand there.
fn plausible(head: &[u8], largest: usize, sequences: &Range<u64>) -> Option<usize> {
    let length = u32::from_le_bytes(head.get(..4)?.try_into().ok()?) as usize;
    let sequence = u64::from_le_bytes(head.get(FRAME_BYTES..HEAD)?.try_into().ok()?);
    (length > 8 && length <= largest && sequences.contains(&sequence)).then_some(FRAME_BYTES + length)
}

/// The sequence of the record here, if one of these sequences stands here and checks out.
fn checks_out(file: &dyn StoredFile, offset: u64, end: u64, largest: usize, sequences: &Range<u64>) -> io::Result<Option<u64>> {
    let mut head = [0; HEAD];
    if file.read_at(offset, &mut head)? < HEAD {
        return Ok(None);
    }
    let Some(length) = plausible(&head, largest, sequences).filter(|l| offset + *l as u64 <= end) else { return Ok(None) };
    let mut frame = vec![0; length];
    let filled = file.read_at(offset, &mut frame)?;
    Ok(codec::decode_record(&frame[..filled], largest).ok().map(|(record, _)| record.sequence))
}

/// The offset of the next record that checks out behind the damaged one at `offset`, up to `end`, with one of these sequences, the first of
/// which is the damaged one's. Where its length says that the next one begins is tried first, and believed only if that is the very next
/// sequence: the damage may be in the length, and lead over records that are well. Else every offset is tried, which reads the rest of the
/// segment once.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn next_record(file: &dyn StoredFile, offset: u64, end: u64, largest: usize, sequences: &Range<u64>) -> io::Result<Option<u64>> {
    let mut length = [0; 4];
    if file.read_at(offset, &mut length)? == 4 {
        let next = offset + FRAME_BYTES as u64 + u64::from(u32::from_le_bytes(length));
        let follows = next > offset + FRAME_BYTES as u64 && next < end;
        if follows && checks_out(file, next, end, largest, sequences)?.is_some_and(|found| found <= sequences.start + 1) {
            return Ok(Some(next));
        }
    }
    let mut from = offset + 1;
    let mut buffer = vec![0; CHUNK];
    while from + (HEAD as u64) <= end {
        let want = CHUNK.min((end - from) as usize);
        let filled = file.read_at(from, &mut buffer[..want])?;
        if filled < HEAD {
            break;
        }
        for (at, head) in buffer[..filled].windows(HEAD).enumerate() {
            if plausible(head, largest, sequences).is_some() && checks_out(file, from + at as u64, end, largest, sequences)?.is_some() {
                return Ok(Some(from + at as u64));
            }
        }
        from += (filled - HEAD + 1) as u64;
    }
    Ok(None)
}
