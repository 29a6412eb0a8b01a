//! For the fuzz targets: lines of an audit, as somebody may have left them.

use super::record::{self, BadLine, Head};
use super::{Act, By, Entry};
use railyard_common::digest::Digest;
use railyard_common::time::Millis;

/// A line begins with this whose hash is to be made right: nobody guesses one.
const MADE: u8 = b'!';

/// Lines to begin with.
pub fn examples() -> Vec<Vec<u8>> {
    let entries = [
        Entry::new(Act::Submit).by(By::Controller).target("mini/1.0").detail("version", "1.0"),
        Entry::new(Act::Revoke).via("token 0123").refused("no \"such\" token\n"),
    ];
    let (mut last, mut lines) = (Head::START, Vec::new());
    for entry in entries {
        let mut line = Vec::new();
        last = record::seal(&entry, Millis(1_795_330_872_762), last, &mut line);
        line.pop();
        let body = line.len() - HASH_BYTES;
        lines.push([&[MADE][..], &line[..body], b"}"].concat());
        lines.push(line);
    }
    lines.push(last.to_string().into_bytes());
    lines
}

/// `,"hash":"` and 64 digits and `"}`.
const HASH_BYTES: usize = 9 + 64 + 2;

/// Checks a line, changes it, and reads it for people; says how far it came.
pub fn feed(bytes: &[u8]) -> String {
    let made;
    let line = match bytes {
        [MADE, body @ ..] => {
            let hash = Digest::of(body).hex();
            made = [body.strip_suffix(b"}").unwrap_or(body), b",\"hash\":\"", hash.as_bytes(), b"\"}"].concat();
            &made[..]
        }
        line => line,
    };
    if let Ok(head) = std::str::from_utf8(line).unwrap_or_default().parse::<Head>() {
        assert_eq!(head.to_string().parse(), Ok(head));
    }
    let checked = match record::check(line) {
        Ok(link) => {
            // Not a byte of it can be another.
            for at in [0, line.len() / 2, line.len() - 1] {
                let mut changed = line.to_vec();
                changed[at] ^= 1;
                assert!(record::check(&changed).is_err(), "{at}: {}", String::from_utf8_lossy(line));
            }
            assert_eq!(link.head.to_string().parse(), Ok(link.head));
            format!("good, {}", if link.prev == Head::START.hash { "the first" } else { "a later one" })
        }
        Err(BadLine::NoRecord(why)) => why,
        Err(BadLine::Changed(_)) => "changed".to_owned(),
    };
    let read = record::read(line).map_or_else(|why| why, |record| format!("{} details", record.details.len().min(3)));
    format!("{checked}; {read}")
}
