//! Follows bytes that land: hashes them as soon as there is no gap before them, decoded if they are stored compressed, so
//! that the digest is known shortly after the last byte came.

use crate::hash::{Hasher, READ_BYTES};
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use zstd::stream::write::Decoder;

/// Hears the plain bytes of a blob in their order while they land, before anybody knows whether they are the right ones. `false`
/// if it wants no more of them. Whoever makes it wait makes the verdict wait, and nothing else.
pub type Tap = Box<dyn FnMut(&[u8]) -> bool + Send>;

/// Why landed bytes are no good.
pub(crate) enum Fault {
    Local(io::Error),
    /// More bytes than announced, fewer, or bytes that do not decode.
    Content(String),
    /// Other bytes than were asked for.
    Digest(Digest),
}

/// Where plain bytes go: into the digest, and into a file if they are not in one yet.
pub(crate) struct Plain {
    hasher: Hasher,
    limit: u64,
    file: Option<File>,
    tap: Option<Tap>,
}

impl Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.hasher.bytes() + bytes.len() as u64 > self.limit {
            // A small compressed file can hold any number of bytes; none beyond the announced ones are written.
            return Err(io::Error::other(TooLong(self.limit)));
        }
        if let Some(file) = &self.file {
            crate::landing::write_sparse(file, bytes, self.hasher.bytes())?;
        }
        self.tap.take_if(|tap| !tap(bytes));
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("it has more than the announced {0} bytes")]
struct TooLong(u64);

enum Sink {
    Plain(Plain),
    Zstd(Box<Decoder<'static, Plain>>),
}

/// Reads `stored` up to each mark that comes, until there are no more marks. The digest must be the blob's then, if
/// `stored_bytes` were there in the end; else nobody wants to know.
///
/// `plain` is where the decoded bytes go, if they are wanted in a file, and who hears them.
pub(crate) fn follow(
    stored: &Arc<File>,
    blob: &Blob,
    stored_bytes: u64,
    (plain, tap): (Option<File>, Option<Tap>),
    marks: &Receiver<u64>,
) -> Result<(), Fault> {
    let plain = Plain { hasher: Hasher::default(), limit: blob.size_bytes, file: plain, tap };
    let mut sink = match blob.encoding {
        Encoding::Identity => Sink::Plain(plain),
        Encoding::Zstd => Sink::Zstd(Box::new(Decoder::new(plain).map_err(Fault::Local)?)),
    };
    let mut buffer = vec![0; READ_BYTES];
    let mut done = 0;
    while let Ok(mark) = marks.recv() {
        let mut next = Piece { file: stored, offset: done, left: mark - done };
        match &mut sink {
            // Nobody but the digest wants them.
            Sink::Plain(plain) if plain.tap.is_none() => {
                plain.hasher.update_from(&mut next, |_| {}).map_err(Fault::Local)?
            }
            Sink::Plain(plain) => pass(&mut next, &mut buffer, plain)?,
            Sink::Zstd(decoder) => pass(&mut next, &mut buffer, decoder)?,
        }
        done = mark;
    }
    if done < stored_bytes {
        return Ok(());
    }
    let plain = match sink {
        Sink::Plain(plain) => plain,
        Sink::Zstd(mut decoder) => {
            decoder.flush().map_err(fault)?;
            decoder.into_inner()
        }
    };
    let length = plain.hasher.bytes();
    if length != blob.size_bytes {
        return Err(Fault::Content(format!("expected {} bytes, got {length}", blob.size_bytes)));
    }
    if let Some(file) = &plain.file {
        // What ends in zeros was not written to its end.
        file.set_len(length).map_err(Fault::Local)?;
    }
    let found = plain.hasher.finish();
    if found == blob.digest { Ok(()) } else { Err(Fault::Digest(found)) }
}

/// Bytes of a file that are there.
struct Piece<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Piece<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let n = self.file.read_at(&mut buffer[..most], self.offset)?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        (self.offset, self.left) = (self.offset + n as u64, self.left - n as u64);
        Ok(n)
    }
}

fn pass(from: &mut Piece<'_>, buffer: &mut [u8], to: &mut impl Write) -> Result<(), Fault> {
    while from.left > 0 {
        let n = from.read(buffer).map_err(Fault::Local)?;
        to.write_all(&buffer[..n]).map_err(fault)?;
    }
    Ok(())
}

/// The decoder reports bad frames as I/O errors without a system error number; the disk's have one.
fn fault(error: io::Error) -> Fault {
    if error.raw_os_error().is_some() { Fault::Local(error) } else { Fault::Content(error.to_string()) }
}
