//! The form of a record: format, checksum, JSON. Self-describing, so that old journals stay readable.
//!
//! ```text
//! 1, 2   format:u8  crc32(the rest):u32  JSON
//! 3      format:u8  crc32(the rest):u32  length of the JSON:u64  the JSON as a zstd frame
//! ```
//!
//! Numbers are little endian. Events of one round are much alike: a large record is a tenth of its JSON, which is what the disk
//! waits for.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::io::{BufWriter, IntoInnerError, Read as _};

/// The newest format that is read; all before it are read as well.
///
/// 1: the first. 2: the same bytes, beside a mark that counts the records; events that readers of 1 do not know. 3: compressed.
pub(super) const FORMAT: u8 = 3;
/// What a short record is written as: there is nothing to gain.
const PLAIN: u8 = 2;
/// From this format on a tail has a mark.
pub(super) const FIRST_WITH_MARK: u8 = 2;

/// From this length on, JSON is compressed.
const COMPRESS_FROM_BYTES: usize = 4096;
/// The fastest of zstd's usual levels: a sync is waited for, and so is this.
const LEVEL: i32 = 1;
/// The encoder is fed in pieces of this size: of JSON it would get single words.
const PIECE_BYTES: usize = 64 * 1024;

/// JSON of a farm gets about twenty times shorter; more than this is a guess that is not believed before it is seen.
const USUAL_RATIO: usize = 64;

/// Bytes in front: the format and the checksum.
const HEADER_BYTES: usize = 5;
/// And the length, where there is one.
const LENGTH_BYTES: usize = 8;
/// What has to be known of a record to tell the length of its JSON.
pub(super) const HEAD_BYTES: usize = HEADER_BYTES + LENGTH_BYTES;

/// Why a record cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadRecord {
    TooNew(u8),
    Corrupt(String),
}

/// A record whose header and checksum are right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Whole<'a> {
    json: Json<'a>,
    format: u8,
}

#[derive(Debug, PartialEq, Eq)]
enum Json<'a> {
    Plain(&'a [u8]),
    Zstd { frame: &'a [u8], bytes: usize },
}

/// A record, and the length of its JSON.
pub(super) fn encode<T: Serialize>(value: &T) -> (Vec<u8>, u64) {
    let mut record = vec![PLAIN, 0, 0, 0, 0];
    // Events and snapshots hold nothing that JSON cannot: no maps with composite keys, no floats.
    serde_json::to_writer(&mut record, value).expect("journal records are plain JSON");
    let json = &record[HEADER_BYTES..];
    let bytes = json.len() as u64;
    if json.len() >= COMPRESS_FROM_BYTES {
        let frame = zstd::bulk::compress(json, LEVEL).expect("zstd has memory for a frame");
        record.truncate(HEADER_BYTES);
        record[0] = FORMAT;
        record.extend_from_slice(&bytes.to_le_bytes());
        record.extend_from_slice(&frame);
    }
    (seal(record), bytes)
}

/// A record that is too long to have its JSON in memory at once.
pub(super) fn encode_large<T: Serialize>(value: &T) -> Vec<u8> {
    let start = vec![0; HEAD_BYTES];
    let encoder = zstd::Encoder::new(start, LEVEL).expect("zstd has memory for a frame");
    let mut pieces = Counted { inner: BufWriter::with_capacity(PIECE_BYTES, encoder), bytes: 0 };
    serde_json::to_writer(&mut pieces, value).expect("journal records are plain JSON");
    let Counted { inner, bytes } = pieces;
    let encoder = inner.into_inner().map_err(IntoInnerError::into_error).expect("memory takes every write");
    let mut record = encoder.finish().expect("memory takes every write");
    record[0] = FORMAT;
    record[HEADER_BYTES..HEAD_BYTES].copy_from_slice(&bytes.to_le_bytes());
    seal(record)
}

pub(super) fn seal(mut record: Vec<u8>) -> Vec<u8> {
    let sum = crc32fast::hash(&record[HEADER_BYTES..]);
    record[1..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    record
}

/// Counts what goes through.
struct Counted<W> {
    inner: W,
    bytes: u64,
}

impl<W: std::io::Write> std::io::Write for Counted<W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Whether a record is what was written; what it says is not looked at.
pub(super) fn check(record: &[u8]) -> Result<Whole<'_>, BadRecord> {
    let Some((header, rest)) = record.split_at_checked(HEADER_BYTES) else {
        return Err(BadRecord::Corrupt(format!("{} bytes are too few for a record", record.len())));
    };
    let format = header[0];
    if format == 0 {
        return Err(BadRecord::Corrupt("it has no format; zeros were never written".to_owned()));
    }
    let (want, have) = (u32::from_le_bytes([header[1], header[2], header[3], header[4]]), crc32fast::hash(rest));
    if want != have {
        return Err(BadRecord::Corrupt(format!("its checksum is {have:08x}, {want:08x} was written")));
    }
    // After the checksum: a newer format whose checksum is elsewhere is not to be expected, a flipped bit is.
    let json = match format {
        ..=PLAIN => Json::Plain(rest),
        FORMAT => {
            let Some((length, frame)) = rest.split_first_chunk::<LENGTH_BYTES>() else {
                return Err(BadRecord::Corrupt("it ends before its length".to_owned()));
            };
            let bytes = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            Json::Zstd { frame, bytes }
        }
        newer => return Err(BadRecord::TooNew(newer)),
    };
    Ok(Whole { json, format })
}

/// The length of the JSON of a record that begins like this and has so many bytes; nothing is checked.
pub(super) fn json_bytes(head: &[u8; HEAD_BYTES], record_bytes: u64) -> u64 {
    match (head[0], head[HEADER_BYTES..].first_chunk::<LENGTH_BYTES>()) {
        (FORMAT, Some(length)) => u64::from_le_bytes(*length),
        _ => record_bytes.saturating_sub(HEADER_BYTES as u64),
    }
}

impl<'a> Whole<'a> {
    /// Its format.
    pub(super) fn format(&self) -> u8 {
        self.format
    }

    /// The length of its JSON.
    pub(super) fn json_bytes(&self) -> u64 {
        match self.json {
            Json::Plain(json) => json.len() as u64,
            Json::Zstd { bytes, .. } => bytes as u64,
        }
    }

    /// Its JSON.
    pub(super) fn json(&self) -> Result<Cow<'a, [u8]>, BadRecord> {
        match self.json {
            Json::Plain(json) => Ok(Cow::Borrowed(json)),
            Json::Zstd { frame, bytes } => {
                let bad = |error: std::io::Error| BadRecord::Corrupt(format!("its zstd frame: {error}"));
                // The length is no promise: the format's byte is not part of the checksum.
                let mut json = Vec::with_capacity(bytes.min(frame.len().saturating_mul(USUAL_RATIO)));
                let decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(bad)?;
                decoder.take(bytes as u64).read_to_end(&mut json).map_err(bad)?;
                if json.len() != bytes {
                    return Err(BadRecord::Corrupt(format!("it has {} bytes of {bytes}", json.len())));
                }
                Ok(Cow::Owned(json))
            }
        }
    }
}

pub(super) fn decode<T: DeserializeOwned>(record: &[u8]) -> Result<T, BadRecord> {
    parse(&check(record)?.json()?)
}

/// What the JSON of a record says.
pub(super) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, BadRecord> {
    serde_json::from_slice(json).map_err(|error| BadRecord::Corrupt(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_found() {
        let long: Vec<String> = (0..2_000).map(|n| format!("event {n}")).collect();
        for value in [vec!["an event".to_owned(), "another".to_owned()], long] {
            let (record, _) = encode(&value);
            assert_eq!(decode::<Vec<String>>(&record).unwrap(), value);
            for bit in 0..record.len() * 8 {
                let mut bad = record.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(decode::<Vec<String>>(&bad).is_err(), "bit {bit}");
            }
            for len in 0..record.len().min(64) {
                assert!(matches!(decode::<Vec<String>>(&record[..len]), Err(BadRecord::Corrupt(_))));
            }
        }
        assert!(matches!(decode::<Vec<String>>(&[0; 64]), Err(BadRecord::Corrupt(_))));
        assert_eq!(decode::<Vec<String>>(&[9, 0, 0, 0, 0]), Err(BadRecord::TooNew(9)));
    }

    #[test]
    fn a_long_record_is_short_and_tells_its_length() {
        let events: Vec<String> = (0..2_000).map(|n| format!("event {n}")).collect();
        let json = serde_json::to_vec(&events).unwrap();
        for record in [encode(&events).0, encode_large(&events)] {
            assert!(record.len() < json.len() / 2, "{} of {}", record.len(), json.len());
            let whole = check(&record).unwrap();
            assert_eq!((whole.format(), whole.json_bytes()), (FORMAT, json.len() as u64));
            assert_eq!(*whole.json().unwrap(), json[..]);
            assert_eq!(json_bytes(record.first_chunk().unwrap(), record.len() as u64), json.len() as u64);
        }
        assert_eq!(check(&encode(&"short").0).unwrap().format(), PLAIN);
    }
}
