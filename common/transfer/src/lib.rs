//! Bytes between a host and the cache: hash and compress files, push them in parts to signed URLs, pull them back.
//!
//! The two backends of the cache speak the same dialect (signed `PUT` per part with a checksum, `GET` with `Range`), so
//! nothing here knows which of them it talks to.
//!
//! **Invariant:** a pulled file gets its name only after its size and SHA-256 were found right; what was not verified
//! lies beside it under a name that no artifact has ([`Scratch`]) and is never taken for the real thing.

mod chunks;
mod compress;
mod crc32s;
mod error;
mod follow;
mod hash;
mod landing;
mod memory;
mod meter;
mod part;
mod part_log;
mod pull;
mod push;
mod queue;
mod read;
mod scratch;
mod source;
mod tries;

pub use compress::{Press, Pressed, Room, Sum, Want, compress_zstd, pays};
pub use crc32s::Crc32s;
pub use error::{MoveError, TransferError};
pub use follow::Tap;
pub use hash::{Hashed, Hasher, hash_beside, hash_file};
pub use landing::{Form, write_sparse};
pub use memory::Memory;
pub use part_log::PartLog;
pub use push::{Finished, PartUrls, Stored, Ticket};
pub use read::read_pieces;
pub use scratch::Scratch;
pub use source::BlobUrls;

use railyard_common::backoff::Backoff;
use std::time::Duration;

/// Told the number of bytes done so far. It may step back when a part is sent again.
pub type Progress<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// A [`Progress`] for those who do not look.
pub fn silent(_bytes: u64) {}

/// What one stream of bytes may hold in memory: two buffers of [`BUFFER_BYTES`] between disk and network, and what the HTTP
/// and TLS layers below keep of it.
const STREAM_BYTES: u64 = 4 * 1024 * 1024;

/// What goes to the disk or comes from it at once: big enough that the switch between threads does not matter.
const BUFFER_BYTES: usize = 512 * 1024;

/// How bytes are moved.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Streams of one file at the same time.
    pub parallel_streams: usize,
    /// Memory for everything in flight, whatever the number and size of the files: streams wait for it.
    pub memory_bytes: u64,
    /// A request that moves next to nothing for so long has failed, and is sent again over another connection.
    pub stall_timeout: Duration,
    /// A transfer of which nothing new has moved for so long is given up, whatever stood in its way.
    pub progress_deadline: Duration,
    /// The waits between tries.
    pub backoff: Backoff,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            parallel_streams: 4,
            memory_bytes: 256 * 1024 * 1024,
            stall_timeout: Duration::from_secs(30),
            progress_deadline: Duration::from_secs(600),
            backoff: Backoff { base_millis: 200, max_millis: 10_000 },
        }
    }
}

/// Pushes and pulls. Cheap to clone: the connections are shared, and the memory.
#[derive(Clone, Debug)]
pub struct Transfer {
    http: reqwest::Client,
    settings: Settings,
    memory: Memory,
}

impl Transfer {
    /// Transfers over `http`.
    pub fn new(http: reqwest::Client, settings: Settings) -> Self {
        Self::within(http, settings, Memory::new(settings.memory_bytes))
    }

    /// The same within memory that others use as well.
    pub fn within(http: reqwest::Client, settings: Settings, memory: Memory) -> Self {
        Self { http, settings, memory }
    }

    /// Waits for the memory of one stream.
    async fn stream(&self) -> memory::Held {
        self.memory.take(STREAM_BYTES).await
    }
}
