//! Records of the journal, from any bytes: see [`crate::fuzz`].

use super::record::{self, BadRecord};
use super::snapshot_file;
use railyard_core::Event;
use serde::Serialize;

/// A record: as it is, or with the checksum that it should have. The first byte chooses, and what it is a record of.
pub fn record(bytes: &[u8]) -> String {
    let Some((how, bytes)) = bytes.split_first() else { return "empty".to_owned() };
    let mut record = bytes.to_vec();
    if how & 1 == 1 && record.len() >= 5 {
        record = record::seal(record);
    }
    if how & 2 == 0 {
        return said(&record::decode::<Vec<Event>>(&record).map(|batch| batch.len().min(3)), |_| {
            let batch: Vec<Event> = record::decode(&record)?;
            same_again(&batch, &record::encode(&batch).0)
        });
    }
    said(&snapshot_file::parse(&record), |snapshot| {
        let again = snapshot_file::parse(&record::encode_large(snapshot))?;
        assert_eq!(json(&again), json(snapshot));
        Ok(())
    })
}

fn same_again(batch: &Vec<Event>, record: &[u8]) -> Result<(), BadRecord> {
    assert_eq!(&record::decode::<Vec<Event>>(record)?, batch);
    Ok(())
}

fn json<T: Serialize>(value: &T) -> serde_json::Value {
    serde_json::to_value(value).expect("what is journaled is plain JSON")
}

fn said<T: std::fmt::Debug>(read: &Result<T, BadRecord>, again: impl FnOnce(&T) -> Result<(), BadRecord>) -> String {
    match read {
        Ok(value) => {
            again(value).expect("what was read is written and read again");
            "read".to_owned()
        }
        Err(bad) => format!("{bad:?}"),
    }
}

/// A record of a batch without events, and one that is compressed, for the fuzz target to begin with.
pub fn examples() -> Vec<Vec<u8>> {
    let plain = record::encode(&Vec::<Event>::new()).0;
    let packed = record::encode_large(&Vec::<Event>::new());
    let snapshot = record::encode_large(&railyard_core::Farm::default().snapshot());
    let with = |how: u8, record: Vec<u8>| [vec![how], record].concat();
    vec![with(0, plain.clone()), with(1, plain), with(1, packed), with(3, snapshot)]
}
