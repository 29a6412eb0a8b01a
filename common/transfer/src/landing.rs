//! Where pulled bytes land: decoded, hashed and written on a blocking thread, then checked and renamed.

use crate::error::TransferError;
use crate::hash::{blocking, joined, read_all};
use bytes::Bytes;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use sha2::{Digest as _, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use zstd::stream::write::Decoder;

/// Chunks between the network and the disk: enough to keep both busy.
const QUEUE_CHUNKS: usize = 16;

/// A file that bytes are pulled into.
pub(crate) struct Landing {
    chunks: mpsc::Sender<Bytes>,
    writer: JoinHandle<Result<Hashed, Fault>>,
    blob: Blob,
    dest: PathBuf,
    part: PathBuf,
    url: String,
}

/// Why landed bytes are no good.
enum Fault {
    Local(io::Error),
    /// More bytes than announced, or bytes that do not decode.
    Content(String),
    /// Other bytes than were asked for.
    Digest(Digest),
}

impl Landing {
    /// Opens `DEST.part`. Returns how many stored bytes it holds already: a plain file that was interrupted goes on
    /// where it ended.
    pub(crate) async fn open(blob: &Blob, dest: &Path, url: String) -> Result<(Self, u64), TransferError> {
        let mut part = dest.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        let (blob, opening) = (*blob, part.clone());
        let (sink, kept) =
            blocking(move || open_sink(&blob, &opening).map_err(TransferError::local("write", &opening))).await?;
        let (chunks, queue) = mpsc::channel(QUEUE_CHUNKS);
        let writer = tokio::task::spawn_blocking(move || write(sink, queue));
        Ok((Self { chunks, writer, blob, dest: dest.to_owned(), part, url }, kept))
    }

    /// Takes the next stored bytes. `false` if the writer has failed: [`Landing::finish`] tells why.
    pub(crate) async fn take(&self, bytes: Bytes) -> bool {
        self.chunks.send(bytes).await.is_ok()
    }

    /// Checks what landed and gives it its name.
    pub(crate) async fn finish(self) -> Result<(), TransferError> {
        let Self { chunks, writer, blob, dest, part, url } = self;
        drop(chunks);
        let written = joined(writer).await;
        let checked = blocking(move || check(written?, &blob)).await;
        // Names are changed here and not on the other thread, so that a pull that is dropped changes none afterwards: by
        // then the next one may be writing a file of the same name. The file stays open, and locked, until it is done.
        let error = match checked {
            Ok(_file) => return fs::rename(&part, &dest).map_err(TransferError::local("write", &dest)),
            Err(Fault::Local(error)) => return Err(TransferError::local("write", &part)(error)),
            Err(Fault::Content(why)) => TransferError::Corrupt { url, why },
            Err(Fault::Digest(found)) => TransferError::WrongDigest { url, expected: blob.digest, found },
        };
        // The error says that the bytes are bad; that they also cannot be removed adds nothing.
        let _ = fs::remove_file(&part);
        Err(error)
    }
}

/// Checks size and digest, and puts the bytes on the disk.
fn check(hashed: Hashed, blob: &Blob) -> Result<File, Fault> {
    if hashed.length != blob.size_bytes {
        return Err(Fault::Content(format!("expected {} bytes, got {}", blob.size_bytes, hashed.length)));
    }
    let found = Digest::finish(hashed.hasher);
    if found != blob.digest {
        return Err(Fault::Digest(found));
    }
    hashed.file.sync_data().map_err(Fault::Local)?;
    Ok(hashed.file)
}

impl Landing {
    /// Ends a pull that failed: waits until nobody writes any more, and removes what is there if it is worth nothing.
    pub(crate) async fn leave(self, error: &TransferError) {
        drop(self.chunks);
        // Both errors are told already by the one that ended the pull.
        let _ = joined(self.writer).await;
        if matches!(error, TransferError::Corrupt { .. }) {
            let _ = tokio::fs::remove_file(&self.part).await;
        }
    }
}

/// A file and the digest of what is in it.
struct Hashed {
    file: File,
    hasher: Sha256,
    length: u64,
    limit: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.length + bytes.len() as u64 > self.limit {
            // A small compressed file can hold any number of bytes; none beyond the announced ones are written.
            return Err(io::Error::other(TooLong(self.limit)));
        }
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.length += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it has more than the announced {0} bytes")]
struct TooLong(u64);

enum Sink {
    Plain(Hashed),
    Zstd(Box<Decoder<'static, Hashed>>),
}

fn open_sink(blob: &Blob, part: &Path) -> io::Result<(Sink, u64)> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(part)?;
    // A pull that was dropped may still be writing its last chunks; it lets go when its thread ends.
    file.lock()?;
    let mut hasher = Sha256::new();
    let mut length = 0;
    let resumable = blob.encoding == Encoding::Identity && file.metadata()?.len() <= blob.size_bytes;
    if resumable {
        length = read_all(&mut file, |bytes| hasher.update(bytes))?;
    } else {
        file.set_len(0)?;
    }
    let hashed = Hashed { file, hasher, length, limit: blob.size_bytes };
    match blob.encoding {
        Encoding::Identity => Ok((Sink::Plain(hashed), length)),
        Encoding::Zstd => Ok((Sink::Zstd(Box::new(Decoder::new(hashed)?)), 0)),
    }
}

fn write(mut sink: Sink, mut queue: mpsc::Receiver<Bytes>) -> Result<Hashed, Fault> {
    while let Some(bytes) = queue.blocking_recv() {
        let done = match &mut sink {
            Sink::Plain(file) => file.write_all(&bytes),
            Sink::Zstd(decoder) => decoder.write_all(&bytes),
        };
        done.map_err(fault)?;
    }
    match sink {
        Sink::Plain(file) => Ok(file),
        Sink::Zstd(mut decoder) => {
            decoder.flush().map_err(fault)?;
            Ok(decoder.into_inner())
        }
    }
}

/// The decoder reports bad frames as I/O errors without a system error number; the disk's have one.
fn fault(error: io::Error) -> Fault {
    if error.raw_os_error().is_some() { Fault::Local(error) } else { Fault::Content(error.to_string()) }
}
