//! Bytes between a host and the cache: hash and compress files, push them in parts to signed URLs, pull them back.
//!
//! The two backends of the cache speak the same dialect (signed `PUT` per part with `Content-MD5`, `GET` with `Range`),
//! so nothing here knows which of them it talks to.
//!
//! **Invariant:** a pulled file gets its name only after its size and SHA-256 were found right; what was not verified
//! lies beside it as `NAME.part` and is never taken for the real thing.

mod compress;
mod error;
mod hash;
mod landing;
mod meter;
mod pull;
mod push;
mod tries;

pub use compress::{Memory, Press, Pressed, Sum, Want, compress_zstd, pays};
pub use error::TransferError;
pub use hash::hash_file;
pub use push::{Finished, Ticket};

use railyard_common::backoff::Backoff;
use std::time::Duration;

/// Told the number of bytes done so far. It may step back when a part is sent again.
pub type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// A [`Progress`] for those who do not look.
pub fn silent(_bytes: u64) {}

/// How bytes are moved.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Parts of one file that are sent at the same time. Each holds one read buffer, not the whole part.
    pub parallel_parts: usize,
    /// Tries of one request without any progress before the transfer fails.
    pub attempts: u32,
    /// A request that moves no byte for so long has failed. A slow one that moves some has not.
    pub progress_timeout: Duration,
    /// The waits between tries.
    pub backoff: Backoff,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            parallel_parts: 4,
            attempts: 6,
            progress_timeout: Duration::from_secs(60),
            backoff: Backoff { base_millis: 200, max_millis: 10_000 },
        }
    }
}

/// Pushes and pulls. Cheap to clone: the connections are shared.
#[derive(Clone, Debug)]
pub struct Transfer {
    http: reqwest::Client,
    settings: Settings,
}

impl Transfer {
    /// Transfers over `http`.
    pub fn new(http: reqwest::Client, settings: Settings) -> Self {
        Self { http, settings }
    }
}
