//! The place file of a log, from any bytes: see [`crate::fuzz`].

use super::place::Place;
use crate::runtime::Source;
use std::os::unix::fs::FileExt as _;

/// The length of the log in eight bytes, and then the file.
pub fn place(bytes: &[u8]) -> String {
    let (length, bytes) = bytes.split_first_chunk::<8>().unwrap_or((&[0; 8], bytes));
    let file = tempfile::tempfile().expect("a test has a directory");
    file.write_all_at(bytes, 0).expect("a test has a disk");
    let mut place = match Place::read(&file) {
        Ok(place) => place,
        Err(error) => return format!("{:?} {error}", error.kind()),
    };
    place.write(&file).expect("a test has a disk");
    assert_eq!(Place::read(&file).ok().as_ref(), Some(&place));
    let taken = place.taken(u64::from_le_bytes(*length)).is_some();
    let news = [Source::Stdout, Source::Stderr].map(|source| place.learn(source, bytes));
    format!("{:?} {taken} {news:?}", place.author)
}
