//! The file that is read and the one that is written: both are counted, and hashed where that is wanted.

use super::Sum;
use crate::hash::Hasher;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Says that nobody wants the result any more.
#[derive(Clone, Debug)]
pub(super) struct Stop(Arc<AtomicBool>);

/// Stops the work when it is dropped.
pub(super) struct StopsWhenDropped(Stop);

impl Stop {
    pub(super) fn new() -> (Self, StopsWhenDropped) {
        let stop = Self(Arc::default());
        (stop.clone(), StopsWhenDropped(stop))
    }
}

impl Drop for StopsWhenDropped {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// A file on its way into a codec. It gives no more than it had at first: one that grows is found out at the end.
pub(super) struct Source {
    file: File,
    expected: u64,
    seen: u64,
    /// It ended before it should.
    short: bool,
    hasher: Option<Hasher>,
    failed: Option<io::Error>,
    stop: Stop,
    progress: Box<dyn Fn(u64) + Send>,
}

impl Source {
    pub(super) fn new(file: File, hashed: bool, stop: Stop, progress: Box<dyn Fn(u64) + Send>) -> Self {
        let hasher = hashed.then(Hasher::default);
        Self { file, expected: 0, seen: 0, short: false, hasher, failed: None, stop, progress }
    }

    /// Its length.
    pub(super) fn open(&mut self) -> io::Result<u64> {
        self.expected = self.file.metadata()?.len();
        Ok(self.expected)
    }

    pub(super) fn expected(&self) -> u64 {
        self.expected
    }

    /// How many bytes there were.
    pub(super) fn seen(&self) -> u64 {
        self.seen
    }

    /// Whether it has another length than it had at first.
    pub(super) fn changed(&self) -> bool {
        self.short || self.seen > self.expected
    }

    /// Why it could not be read, once.
    pub(super) fn failed(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    pub(super) fn finish(self) -> Sum {
        Sum { digest: self.hasher.map(Hasher::finish), bytes: self.seen }
    }

    /// Fills `to` with the next `most` bytes, or with what is left.
    pub(super) fn read_block(&mut self, most: usize, to: &mut Vec<u8>) -> io::Result<()> {
        let start = to.len();
        to.resize(start + most, 0);
        let mut end = start;
        while end < to.len() {
            match self.read(&mut to[end..])? {
                0 => break,
                n => end += n,
            }
        }
        to.truncate(end);
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.0.load(Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "nobody wants the compressed file any more"));
        }
        if self.seen == self.expected {
            // One byte more is a file that has grown.
            let more = read_whole(&mut self.file, &mut [0])?;
            self.seen += more as u64;
            return Ok(0);
        }
        let left = usize::try_from(self.expected.saturating_sub(self.seen)).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let n = read_whole(&mut self.file, &mut buffer[..most])?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..n]);
        }
        self.short = n == 0 && most > 0;
        self.seen += n as u64;
        (self.progress)(self.seen);
        Ok(n)
    }
}

fn read_whole(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.seen > self.expected {
            return Ok(0);
        }
        self.read_some(buffer).map_err(|error| {
            self.failed = Some(error);
            io::Error::other("the file cannot be read")
        })
    }
}

/// A compressed file.
pub(super) struct Sink {
    file: File,
    written: u64,
    hasher: Option<Hasher>,
}

impl Sink {
    pub(super) fn new(file: File, hashed: bool) -> Self {
        Self { file, written: 0, hasher: hashed.then(Hasher::default) }
    }

    pub(super) fn finish(self) -> io::Result<Sum> {
        Ok(Sum { digest: self.hasher.map(Hasher::finish), bytes: self.written })
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&bytes[..n]);
        }
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
