//! Looks at the frames of HTTP/2 as they come in, and counts those that bring nothing.
//!
//! A client can keep a server busy with settings, pings, resets and the like for ever, each of a few bytes, and none of them is
//! a request that anything else here would count.

use super::bucket::Bucket;
use super::limits::{BYTES_PER_IDLE_FRAME, IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SEC};
use crate::clock::runtime_now;
use std::time::Duration;

/// What a client says first, before any frame.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;

/// The place in the stream of frames.
#[derive(Debug)]
pub(super) struct Frames {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that have come.
    filled: usize,
    /// Bytes that belong to what is known already.
    skip: usize,
    idle: Bucket,
    /// Bytes written that have not yet become a frame.
    written: usize,
}

/// There were too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many HTTP/2 frames that bring nothing")]
pub(super) struct Flood;

impl Frames {
    pub(super) fn new() -> Self {
        let idle = Bucket::new(IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SEC, runtime_now());
        Self { head: [0; HEAD_BYTES], filled: 0, skip: PREFACE_BYTES, idle, written: 0 }
    }

    /// Takes note of bytes that came in.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (HEAD_BYTES - self.filled).min(bytes.len());
            self.head[self.filled..self.filled + wanted].copy_from_slice(&bytes[..wanted]);
            self.filled += wanted;
            bytes = &bytes[wanted..];
            if self.filled == HEAD_BYTES {
                self.filled = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), Flood> {
        let [a, b, c, kind, ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.skip = length;
        match kind {
            HEADERS => Ok(()),
            DATA if length > 0 => Ok(()),
            _ => self.idle.take(runtime_now()).map_err(|_: Duration| Flood),
        }
    }

    /// Takes note of bytes that went out.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        let frames = self.written / BYTES_PER_IDLE_FRAME;
        if frames > 0 {
            self.written %= BYTES_PER_IDLE_FRAME;
            self.idle.give(u32::try_from(frames).unwrap_or(u32::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, 0, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + payload, 6);
        frame
    }

    fn started() -> Frames {
        let mut frames = Frames::new();
        frames.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        frames
    }

    /// How many frames of a kind pass at once, of so many.
    fn passed(frames: &mut Frames, kind: u8, payload: usize, of: usize) -> usize {
        (0..of).take_while(|_| frames.read(&frame(kind, payload)).is_ok()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn frames_that_bring_something_are_free_and_others_are_not() {
        let burst = IDLE_FRAMES_BURST as usize;
        for (kind, payload) in [(DATA, 1), (HEADERS, 5)] {
            assert_eq!(passed(&mut started(), kind, payload, 3 * burst), 3 * burst);
        }
        for (kind, payload) in [(DATA, 0), (2, 5), (3, 4), (4, 0), (6, 8), (8, 4), (9, 3), (200, 0)] {
            assert_eq!(passed(&mut started(), kind, payload, 3 * burst), burst, "kind {kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_reads_may_say_so() {
        let mut frames = started();
        assert_eq!(passed(&mut frames, 8, 4, 20_000), IDLE_FRAMES_BURST as usize);
        frames.wrote(10 * BYTES_PER_IDLE_FRAME - 1);
        frames.wrote(1);
        assert_eq!(passed(&mut frames, 8, 4, 20_000), 10);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(passed(&mut frames, 8, 4, 20_000), IDLE_FRAMES_PER_SEC as usize);
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_makes_no_difference(
            sizes in prop::collection::vec((0_u8..10, 0_usize..40), 0..40),
            cuts in prop::collection::vec(1_usize..50, 1..40),
        ) {
            let bytes: Vec<u8> = sizes.iter().flat_map(|(kind, payload)| frame(*kind, *payload)).collect();
            let idle = sizes.iter().filter(|(kind, payload)| !(*kind == HEADERS || *kind == DATA && *payload > 0)).count();
            let mut frames = started();
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                prop_assert!(frames.read(now).is_ok());
                rest = later;
            }
            prop_assert_eq!((frames.skip, frames.filled), (0, 0));
            let left = (0..).take_while(|_| frames.idle.take(runtime_now()).is_ok()).count();
            // Time goes by, and a bucket fills.
            prop_assert!(left >= IDLE_FRAMES_BURST as usize - idle);
        }
    }
}
