//! The form of a record: format, checksum, JSON. Self-describing, so that old journals stay readable.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format that is written. Readers accept it and all before it.
///
/// 1: the first. 2: the same bytes, beside a mark that counts the records; events that readers of 1 do not know.
pub(super) const FORMAT: u8 = 2;
/// From this format on a tail has a mark.
pub(super) const FIRST_WITH_MARK: u8 = 2;

/// Bytes in front of the JSON: the format and the CRC-32 of the JSON, little endian.
const HEADER_BYTES: usize = 5;

/// Why a record cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadRecord {
    TooNew(u8),
    Corrupt(String),
}

pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT, 0, 0, 0, 0];
    // Events and snapshots hold nothing that JSON cannot: no maps with composite keys, no floats.
    serde_json::to_writer(&mut bytes, value).expect("journal records are plain JSON");
    let sum = crc32fast::hash(&bytes[HEADER_BYTES..]);
    bytes[1..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    bytes
}

/// The JSON of a record whose header and checksum are right.
pub(super) fn check(bytes: &[u8]) -> Result<&[u8], BadRecord> {
    let Some((header, json)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(BadRecord::Corrupt(format!("{} bytes are too few for a record", bytes.len())));
    };
    if header[0] == 0 {
        return Err(BadRecord::Corrupt("it has no format; zeros were never written".to_owned()));
    }
    let (want, have) = (u32::from_le_bytes([header[1], header[2], header[3], header[4]]), crc32fast::hash(json));
    if want != have {
        return Err(BadRecord::Corrupt(format!("its checksum is {have:08x}, {want:08x} was written")));
    }
    // After the checksum: a newer format whose checksum is elsewhere is not to be expected, a flipped bit is.
    if header[0] > FORMAT { Err(BadRecord::TooNew(header[0])) } else { Ok(json) }
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadRecord> {
    parse(check(bytes)?)
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
        let bytes = encode(&vec!["an event", "another"]);
        assert_eq!(decode::<Vec<String>>(&bytes).unwrap(), ["an event", "another"]);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<Vec<String>>(&bad).is_err(), "bit {bit}");
        }
        assert!(matches!(decode::<Vec<String>>(&bytes[..3]), Err(BadRecord::Corrupt(_))));
        assert!(matches!(decode::<Vec<String>>(&[0; 64]), Err(BadRecord::Corrupt(_))));
        assert_eq!(decode::<Vec<String>>(&[9, 0, 0, 0, 0]), Err(BadRecord::TooNew(9)));
    }
}
