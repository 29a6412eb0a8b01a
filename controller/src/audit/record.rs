//! One record is one line: JSON, chained to the line before.
//!
//! ```text
//! {"seq":2,"at":"2026-11-22T01:50:59.123Z","by":"operator/olga",…,"prev":"HASH OF 1","hash":"HASH OF 2"}
//! ```
//!
//! The hash is the SHA-256 of the line without `,"hash":"…"`, exactly as its bytes stand there: no order of fields and no way of
//! writing JSON has to be agreed on, and no byte can change unseen.

use super::Entry;
use railyard_common::digest::Digest;
use railyard_common::time::Millis;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Longest line that is read: sixteen details and some more texts of 512 bytes each, every byte of which JSON may write as six.
pub(super) const LINE_MAX_BYTES: usize = 128 * 1024;

/// Before the hash at the end of a line, and behind it.
const HASH_OPENS: &str = ",\"hash\":\"";
const HASH_CLOSES: &str = "\"}";
const HASH_DIGITS: usize = 64;

/// A place in the chain: a record's number and its hash. Whoever keeps one can tell later that nothing up to there has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The record's number; 0 is the beginning, before the first.
    pub seq: u64,
    /// Its hash; zeros at the beginning.
    pub hash: Hash,
}

/// The SHA-256 of a record.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    const ZERO: Self = Self([0; 32]);

    fn of(bytes: &[u8]) -> Self {
        Self(*Digest::of(bytes).bytes())
    }

    /// 64 lower-case hex digits.
    fn parse(text: &str) -> Option<Self> {
        Some(Self(*Digest::from_hex(text).ok()?.bytes()))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Head {
    /// Before the first record.
    pub const START: Self = Self { seq: 0, hash: Hash::ZERO };
}

/// `SEQ:HASH`
impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

/// The text is no place in a chain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no head of an audit: expected SEQ:HASH, a number and 64 hex digits, as `railyard audit verify` prints it"
)]
pub struct BadHead(String);

impl FromStr for Head {
    type Err = BadHead;

    fn from_str(text: &str) -> Result<Self, BadHead> {
        let parse = || {
            let (seq, hash) = text.split_once(':')?;
            let is_number = !seq.is_empty() && seq.bytes().all(|b| b.is_ascii_digit());
            Some(Self { seq: seq.parse().ok().filter(|_| is_number)?, hash: Hash::parse(hash)? })
        };
        parse().ok_or_else(|| BadHead(text.to_owned()))
    }
}

/// A record without its hash, in the order of the line.
#[derive(Serialize)]
struct Body<'a> {
    seq: u64,
    at: String,
    by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<&'a str>,
    what: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    target: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    details: &'a BTreeMap<&'static str, String>,
    prev: String,
}

/// Appends the line of the record after `last` to `out`; gives its place.
pub(super) fn seal(entry: &Entry, at: Millis, last: Head, out: &mut Vec<u8>) -> Head {
    let from = entry.from.map(|ip| match entry.port {
        Some(port) => std::net::SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
    });
    let body = Body {
        seq: last.seq + 1,
        at: rfc3339(at),
        by: entry.by.text(),
        from,
        via: entry.via.as_deref(),
        what: entry.act.as_str(),
        target: &entry.target,
        outcome: entry.outcome.as_str(),
        reason: entry.outcome.reason(),
        details: &entry.details,
        prev: last.hash.to_string(),
    };
    let begin = out.len();
    serde_json::to_writer(&mut *out, &body).expect("texts and numbers are JSON, and memory takes them");
    let hash = Hash::of(&out[begin..]);
    out.pop();
    out.extend_from_slice(format!("{HASH_OPENS}{hash}{HASH_CLOSES}\n").as_bytes());
    Head { seq: body.seq, hash }
}

/// With milliseconds, in UTC.
pub(super) fn rfc3339(at: Millis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

/// A record as it is read back. What a later version writes besides is left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Record {
    /// Its number, from 1.
    pub seq: u64,
    /// When, RFC 3339 in UTC with milliseconds.
    pub at: String,
    /// `ROLE/NAME`, `nobody` or `controller`.
    pub by: String,
    /// Address and port of the one who asked; empty if nobody did.
    #[serde(default)]
    pub from: String,
    /// The certificate or token; empty if it is not known.
    #[serde(default)]
    pub via: String,
    /// A word of [`Act`](super::Act), or of a later version.
    pub what: String,
    /// What it was done to.
    #[serde(default)]
    pub target: String,
    /// `done`, `refused` or `failed`.
    pub outcome: String,
    /// Why it is not done.
    #[serde(default)]
    pub reason: String,
    /// Whatever else there is to say.
    #[serde(default)]
    pub details: BTreeMap<String, String>,
    /// The hash of the record before.
    pub prev: String,
    /// Its own.
    pub hash: String,
}

/// A line that hangs together.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// The record's own place.
    pub(super) head: Head,
    /// The hash that it names as that of the record before.
    pub(super) prev: Hash,
}

/// What is wrong with a line by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadLine {
    /// It is no record at all.
    NoRecord(String),
    /// It has the form of one, with this number and hash, but not the content that was hashed.
    Changed(Head),
}

/// What the chain needs of a record.
#[derive(Deserialize)]
struct Chained {
    seq: u64,
    prev: String,
}

/// Checks one line, without its end, against its own hash.
pub(super) fn check(line: &[u8]) -> Result<Link, BadLine> {
    let no = |why: &str| BadLine::NoRecord(why.to_owned());
    let end = HASH_OPENS.len() + HASH_DIGITS + HASH_CLOSES.len();
    let cut = line.len().checked_sub(end).ok_or_else(|| no("it is too short"))?;
    let (body, hash) = line.split_at(cut);
    let hash = std::str::from_utf8(hash)
        .ok()
        .and_then(|text| Hash::parse(text.strip_prefix(HASH_OPENS)?.strip_suffix(HASH_CLOSES)?));
    let hash = hash.ok_or_else(|| no("it does not end in a hash"))?;
    let mut whole = body.to_vec();
    whole.push(b'}');
    let chained = serde_json::from_slice::<Chained>(&whole);
    if Hash::of(&whole) != hash {
        return Err(
            chained.map_or_else(|_| no("it is no JSON"), |chained| BadLine::Changed(Head { seq: chained.seq, hash }))
        );
    }
    let chained = chained.map_err(|error| BadLine::NoRecord(error.to_string()))?;
    let prev = Hash::parse(&chained.prev).ok_or_else(|| no("its `prev` is no hash"))?;
    Ok(Link { head: Head { seq: chained.seq, hash }, prev })
}

/// Reads a record for people, whether or not its hash is right.
pub(super) fn read(line: &[u8]) -> Result<Record, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::{Act, By};
    use super::*;
    use railyard_service::tls::{Identity, Role};

    fn entry() -> Entry {
        let olga = Identity::new(Role::Operator, "olga").unwrap();
        Entry::new(Act::Cancel)
            .by(By::Somebody(olga))
            .via("cert:ab")
            .target("mini/1\n{\"seq\":9}")
            .detail("reason", "\u{2028}\0wrong\r\n")
    }

    #[test]
    fn a_line_is_what_it_is_documented_to_be() {
        let mut out = Vec::new();
        let head = seal(&entry(), Millis(1_763_776_259_123), Head::START, &mut out);
        let line = String::from_utf8(out).unwrap();
        let want = format!(
            "{{\"seq\":1,\"at\":\"2025-11-22T01:50:59.123Z\",\"by\":\"operator/olga\",\"via\":\"cert:ab\",\
             \"what\":\"cancel\",\"target\":\"mini/1\\n{{\\\"seq\\\":9}}\",\"outcome\":\"done\",\
             \"details\":{{\"reason\":\"\u{2028}\\u0000wrong\\r\\n\"}},\"prev\":\"{}\",\"hash\":\"{}\"}}\n",
            Hash::ZERO,
            head.hash
        );
        assert_eq!(line, want);
        let record = read(line.trim_end().as_bytes()).unwrap();
        assert_eq!((record.seq, record.target.as_str()), (1, "mini/1\n{\"seq\":9}"));
        assert_eq!(record.hash, head.hash.to_string());
    }

    #[test]
    fn lines_are_chained_and_every_byte_counts() {
        let mut out = Vec::new();
        let one = seal(&entry(), Millis(1), Head::START, &mut out);
        let begin = out.len();
        let two = seal(&entry().refused("no"), Millis(2), one, &mut out);
        let line = &out[begin..out.len() - 1];
        let link = check(line).unwrap();
        assert_eq!((link.head, link.prev), (two, one.hash));
        for at in 0..line.len() {
            for bit in 0..8 {
                let mut bad = line.to_vec();
                bad[at] ^= 1 << bit;
                assert!(check(&bad).is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn a_head_is_read_as_it_is_written() {
        let head = seal(&entry(), Millis(1), Head::START, &mut Vec::new());
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in ["", "1", "1:", ":", "x:00", "+1:00", &format!("{head}0"), &head.to_string().to_uppercase()] {
            assert!(bad.parse::<Head>().is_err(), "{bad}");
        }
    }
}
