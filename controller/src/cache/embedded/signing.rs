//! Signed URLs: who holds one may do exactly one thing until it expires.
//!
//! **Invariant:** the signature covers the method, the path, the expiry, and for a part its upload, number, length and checksum. What was
//! signed for a lease is good only while that lease lives: a part's upload knows its lease, a URL to read names it.

use super::uploads::etag;
use crate::cache::CacheError;
use hmac::{Hmac, KeyInit as _, Mac as _};
use railyard_common::id::LeaseId;
use railyard_common::time::Millis;
use sha2::Sha256;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

const KEY_BYTES: usize = 32;

/// The key that signs URLs.
pub(super) struct UrlKey([u8; KEY_BYTES]);

/// What a URL allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right<'a> {
    /// Fetch the object at this path. The method is exact: `GET` does not allow `HEAD`. With a lease, for its worker only as long
    /// as it lives.
    Read { method: &'a str, path: &'a str, lease: Option<LeaseId> },
    /// Send one part of an upload.
    Part(PartRight<'a>),
}

/// One part of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartRight<'a> {
    pub upload_id: &'a str,
    /// From 1.
    pub number: u32,
    /// Exact length of the part.
    pub length: u64,
    /// Of its bytes.
    pub crc32: u32,
}

/// Why a signature does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unsigned {
    Expired,
    Wrong,
}

impl UrlKey {
    /// One that is known.
    pub(super) fn of(key: [u8; KEY_BYTES]) -> Self {
        Self(key)
    }

    /// Reads the key, or makes one at first start.
    pub(super) fn open_or_create(file: &Path) -> Result<Self, CacheError> {
        match Self::open(file) {
            Err(CacheError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Self::create(file),
            opened => opened,
        }
    }

    fn open(file: &Path) -> Result<Self, CacheError> {
        let reading = || CacheError::local("read the key", file);
        let mode = fs::metadata(file).map_err(reading())?.permissions().mode();
        if mode & 0o077 != 0 {
            let why =
                format!("others can read the key {0}; `chmod 600 {0}`, or remove it to get a new one", file.display());
            return Err(CacheError::Config { why });
        }
        let text = fs::read_to_string(file).map_err(reading())?;
        let mut key = [0; KEY_BYTES];
        match hex::decode_to_slice(text.trim(), &mut key) {
            Ok(()) => Ok(Self(key)),
            Err(error) => {
                let why = format!("{} is not a key ({error}); remove it to get a new one", file.display());
                Err(CacheError::Config { why })
            }
        }
    }

    fn create(file: &Path) -> Result<Self, CacheError> {
        let writing = || CacheError::local("write the key", file);
        let mut key = [0; KEY_BYTES];
        getrandom::fill(&mut key).map_err(|error| writing()(io::Error::other(error)))?;
        let mut created = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(file) {
            Ok(created) => created,
            Err(error) => return Err(writing()(error)),
        };
        created.write_all(format!("{}\n", hex::encode(key)).as_bytes()).map_err(writing())?;
        created.sync_all().map_err(writing())?;
        Ok(Self(key))
    }

    /// The query that makes a URL good for `right`.
    pub(super) fn query(&self, right: Right<'_>, now: Millis, ttl: Duration) -> String {
        let ttl_millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let expires = now.plus(ttl_millis).0;
        let mut query = match right {
            Right::Read { lease: None, .. } => String::new(),
            Right::Read { lease: Some(lease), .. } => format!("lease={lease}&"),
            Right::Part(part) => format!("part={}&length={}&crc32={}&", part.number, part.length, etag(part.crc32)),
        };
        let signature = hex::encode(self.mac(right, expires).finalize().into_bytes());
        // Writing to a string cannot fail.
        let _ = write!(query, "expires={expires}&signature={signature}");
        query
    }

    /// Whether `signature` is good for `right` at `now`.
    pub(super) fn check(&self, right: Right<'_>, expires: u64, signature: &str, now: Millis) -> Result<(), Unsigned> {
        let signature = hex::decode(signature).map_err(|_| Unsigned::Wrong)?;
        self.mac(right, expires).verify_slice(&signature).map_err(|_| Unsigned::Wrong)?;
        if now.0 >= expires { Err(Unsigned::Expired) } else { Ok(()) }
    }

    fn mac(&self, right: Right<'_>, expires: u64) -> Hmac<Sha256> {
        // Neither methods, paths nor ids can have a line break, so that no two rights make the same text.
        let text = match right {
            Right::Read { method, path, lease: None } => format!("railyard-cache-1\n{method}\n{path}\n{expires}"),
            Right::Read { method, path, lease: Some(lease) } => {
                format!("railyard-cache-1\n{method}\n{path}\n{expires}\n{lease}")
            }
            Right::Part(PartRight { upload_id, number, length, crc32 }) => {
                format!("railyard-cache-1\nPUT\nuploads/{upload_id}\n{expires}\n{number}\n{length}\n{crc32}")
            }
        };
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(text.as_bytes());
        mac
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::id::JobId;

    const PART: PartRight = PartRight { upload_id: "ab", number: 3, length: 100, crc32: 0xabc };

    fn signature(query: &str) -> (u64, &str) {
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)).unwrap();
        (value("expires=").parse().unwrap(), value("signature="))
    }

    #[test]
    fn a_url_is_good_for_one_thing_until_it_expires() {
        let key = UrlKey([7; 32]);
        let right = Right::Part(PART);
        let query = key.query(right, Millis(1_000), Duration::from_secs(1));
        let (expires, signature) = signature(&query);
        assert_eq!(expires, 2_000);
        assert!(query.starts_with("part=3&length=100&crc32=00000abc&expires="), "{query}");
        assert_eq!(key.check(right, expires, signature, Millis(1_999)), Ok(()));
        assert_eq!(key.check(right, expires, signature, Millis(2_000)), Err(Unsigned::Expired));
        for other in [
            Right::Part(PartRight { upload_id: "ac", ..PART }),
            Right::Part(PartRight { number: 4, ..PART }),
            Right::Part(PartRight { length: 101, ..PART }),
            Right::Part(PartRight { crc32: 0xabd, ..PART }),
            Right::Read { method: "PUT", path: "uploads/ab", lease: None },
            Right::Read { method: "GET", path: "uploads/ab", lease: None },
        ] {
            assert_eq!(key.check(other, expires, signature, Millis(0)), Err(Unsigned::Wrong), "{other:?}");
        }
        assert_eq!(key.check(right, expires + 1, signature, Millis(0)), Err(Unsigned::Wrong));
        assert_eq!(UrlKey([8; 32]).check(right, expires, signature, Millis(0)), Err(Unsigned::Wrong));
    }

    #[test]
    fn a_url_for_a_lease_is_good_for_that_lease() {
        let key = UrlKey([7; 32]);
        let lease = |job| Some(LeaseId { job: JobId(job), attempt: 1 });
        let right = |lease| Right::Read { method: "GET", path: "blobs/x", lease };
        let query = key.query(right(lease(3)), Millis(1_000), Duration::from_secs(1));
        assert!(query.contains("lease=j3.1&"), "{query}");
        let (expires, signature) = signature(&query);
        assert_eq!(key.check(right(lease(3)), expires, signature, Millis(0)), Ok(()));
        for other in [lease(4), None] {
            assert_eq!(key.check(right(other), expires, signature, Millis(0)), Err(Unsigned::Wrong), "{other:?}");
        }
    }

    #[test]
    fn the_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("cache.key");
        let first = UrlKey::open_or_create(&file).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(UrlKey::open_or_create(&file).unwrap().0, first.0);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(UrlKey::open_or_create(&file), Err(CacheError::Config { .. })));
    }
}
