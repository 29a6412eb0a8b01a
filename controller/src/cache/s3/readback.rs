//! Stored bytes read back, as a blocking reader for the check and the decoder.

use crate::cache::blocking::blocking;
use crate::cache::{ByteStream, CacheError};
use bytes::{Buf as _, Bytes};
use futures_util::StreamExt as _;
use std::io::{self, Read};
use tokio::sync::{Semaphore, mpsc};

/// Chunks between the network and the reader.
const QUEUE_CHUNKS: usize = 16;

/// Threads that read back at the same time: each waits for the network, and everything which waits for a disk shares
/// 512 of them.
const READERS_MAX: usize = 16;

pub(super) static READERS: Semaphore = Semaphore::const_new(READERS_MAX);

/// Threads that read back what untrusted builds sent, which may be of any length: nobody else waits for these.
const UNTRUSTED_READERS_MAX: usize = 4;

pub(super) static UNTRUSTED_READERS: Semaphore = Semaphore::const_new(UNTRUSTED_READERS_MAX);

/// A stream's bytes on a blocking thread.
struct Reader {
    queue: mpsc::Receiver<Result<Bytes, CacheError>>,
    current: Bytes,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.queue.blocking_recv() {
                Some(Ok(bytes)) => self.current = bytes,
                Some(Err(error)) => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, error)),
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..n]);
        Ok(n)
    }
}

/// Gives the bytes of `stream` to `work` on a blocking thread, one of `readers`.
pub(super) async fn read_blocking<T: Send + 'static>(
    readers: &Semaphore,
    mut stream: ByteStream,
    work: impl FnOnce(&mut dyn Read) -> T + Send + 'static,
) -> T {
    // Nobody closes the semaphore; without a permit there would merely be one thread more.
    let _permit = readers.acquire().await.ok();
    let (chunks, queue) = mpsc::channel(QUEUE_CHUNKS);
    let working = blocking(move || work(&mut Reader { queue, current: Bytes::new() }));
    let feeding = async move {
        while let Some(chunk) = stream.next().await {
            if chunks.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let ((), done) = tokio::join!(feeding, working);
    done
}
