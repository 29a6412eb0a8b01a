//! Looks at the frames of HTTP/2 as they come in, and counts those that bring nothing; and as they go out, to see what the
//! library holds against the client.
//!
//! A client can keep a server busy with settings, pings, resets and the like for ever, each of a few bytes, and none of them is
//! a request that anything else here would count. What breaks the protocol is no request either.

use super::bucket::Bucket;
use super::limits::{BYTES_PER_IDLE_FRAME, HTTP2_HEAD_READ_BYTES, IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SEC};
use crate::clock::runtime_now;
use std::time::Duration;

/// What a client says first, before any frame.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;
/// A head and what tells why a connection ended.
const SEEN_MAX_BYTES: usize = HEAD_BYTES + 8;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Length and last bytes of an answer that has nothing but `:status: 431`, which only the library gives: the whole head is
/// `48 83 69 90 ff` in HPACK, the first time on a connection.
const TOO_LARGE: (usize, u32) = (5, 0x83_69_90_ff);

/// What a client has done wrong, as frames show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// Its own frames: those that bring nothing. The connection ends.
    #[error("too many HTTP/2 frames that bring nothing")]
    Flood,
    /// Its own frames: more headers than anybody reads, as they come or decompressed.
    #[error("the head of a request is longer than {HTTP2_HEAD_READ_BYTES} bytes")]
    LongHead,
    /// The answer: no request is made of it, with the error code of HTTP/2.
    #[error("a stream breaks HTTP/2: {}", word(*.0))]
    Stream(u32),
    /// The answer: the connection is given up.
    #[error("the connection breaks HTTP/2: {}", word(*.0))]
    Connection(u32),
}

/// The code's name, of those that speak of a fault of the other side; RFC 9113, section 7.
fn word(code: u32) -> &'static str {
    match code {
        1 => "PROTOCOL_ERROR",
        3 => "FLOW_CONTROL_ERROR",
        4 => "SETTINGS_TIMEOUT",
        6 => "FRAME_SIZE_ERROR",
        9 => "COMPRESSION_ERROR",
        11 => "ENHANCE_YOUR_CALM",
        12 => "INADEQUATE_SECURITY",
        _ => "",
    }
}

/// The frames of one connection, in both directions.
#[derive(Debug)]
pub(super) struct Frames {
    asked: Walk,
    told: Walk,
    /// Of the head that has begun and not ended.
    head_bytes: Option<usize>,
    /// Heads that were told to be too long, and not yet answered.
    long_heads: u32,
    idle: Bucket,
    /// Bytes written that have not yet become a frame.
    written: usize,
}

impl Frames {
    pub(super) fn new() -> Self {
        let idle = Bucket::new(IDLE_FRAMES_BURST, IDLE_FRAMES_PER_SEC, runtime_now());
        Self {
            asked: Walk::after(PREFACE_BYTES),
            told: Walk::after(0),
            head_bytes: None,
            long_heads: 0,
            idle,
            written: 0,
        }
    }

    /// Takes note of bytes that came in.
    pub(super) fn read(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Fault)) -> Result<(), Fault> {
        while let Some(seen) = self.asked.next(&mut bytes) {
            self.frame(seen, &mut tell)?;
        }
        Ok(())
    }

    fn frame(&mut self, seen: Seen, tell: &mut impl FnMut(Fault)) -> Result<(), Fault> {
        let before = match seen.kind {
            HEADERS => Some(0),
            CONTINUATION => self.head_bytes,
            _ => None,
        };
        if let Some(before) = before {
            let most = HTTP2_HEAD_READ_BYTES as usize;
            let length = before.saturating_add(seen.length);
            if before <= most && length > most {
                self.long_heads += 1;
                tell(Fault::LongHead);
            }
            self.head_bytes = (seen.flags & END_HEADERS == 0).then_some(length);
        }
        match seen.kind {
            HEADERS => Ok(()),
            DATA if seen.length > 0 => Ok(()),
            _ => self.idle.take(runtime_now()).map_err(|_: Duration| Fault::Flood),
        }
    }

    /// Whether something has begun that is not whole.
    pub(super) fn is_within(&self) -> bool {
        self.head_bytes.is_some() || self.asked.is_within()
    }

    /// Takes note of bytes that went out.
    pub(super) fn wrote(&mut self, mut bytes: &[u8], mut tell: impl FnMut(Fault)) {
        self.written += bytes.len();
        let frames = self.written / BYTES_PER_IDLE_FRAME;
        if frames > 0 {
            self.written %= BYTES_PER_IDLE_FRAME;
            self.idle.give(u32::try_from(frames).unwrap_or(u32::MAX));
        }
        while let Some(seen) = self.told.next(&mut bytes) {
            match seen.kind {
                RST_STREAM if !word(seen.code).is_empty() => tell(Fault::Stream(seen.code)),
                GOAWAY if !word(seen.code).is_empty() => tell(Fault::Connection(seen.code)),
                HEADERS if seen.flags & END_STREAM != 0 && (seen.length, seen.code) == TOO_LARGE => {
                    match self.long_heads.checked_sub(1) {
                        Some(others) => self.long_heads = others,
                        // It was short enough as it came.
                        None => tell(Fault::LongHead),
                    }
                }
                _ => {}
            }
        }
    }
}

/// One frame.
#[derive(Clone, Copy, Debug)]
struct Seen {
    kind: u8,
    flags: u8,
    length: usize,
    /// Of those that end something, why; of headers, what they begin with.
    code: u32,
}

/// The place in a stream of frames.
#[derive(Debug)]
struct Walk {
    seen: [u8; SEEN_MAX_BYTES],
    /// Bytes of it that have come…
    filled: usize,
    /// …and that are wanted.
    wanted: usize,
    /// Bytes that belong to what is known already.
    skip: usize,
}

impl Walk {
    fn after(skip: usize) -> Self {
        Self { seen: [0; SEEN_MAX_BYTES], filled: 0, wanted: HEAD_BYTES, skip }
    }

    fn is_within(&self) -> bool {
        self.filled > 0 || self.skip > 0
    }

    /// The next frame, as soon as its head is there; takes what it needs off `bytes`.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Seen> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = &bytes[skipped..];
        loop {
            let taken = (self.wanted - self.filled).min(bytes.len());
            self.seen[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
            self.filled += taken;
            *bytes = &bytes[taken..];
            if self.filled < self.wanted {
                return None;
            }
            let [a, b, c, kind, flags, ..] = self.seen;
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            let reason = match kind {
                RST_STREAM => 4,
                GOAWAY => 8,
                HEADERS => TOO_LARGE.0,
                _ => 0,
            };
            let wanted = HEAD_BYTES + length.min(reason);
            if wanted > self.wanted {
                self.wanted = wanted;
                continue;
            }
            let code = match self.seen[..wanted] {
                [.., a, b, c, d] if wanted > HEAD_BYTES => u32::from_be_bytes([a, b, c, d]),
                _ => 0,
            };
            (self.filled, self.wanted, self.skip) = (0, HEAD_BYTES, length + HEAD_BYTES - wanted);
            return Some(Seen { kind, flags, length, code });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, payload: usize) -> Vec<u8> {
        flagged(kind, 0, &vec![6; payload])
    }

    fn flagged(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        frame.extend(payload);
        frame
    }

    fn untold(fault: Fault) {
        panic!("{fault}");
    }

    fn started() -> Frames {
        let mut frames = Frames::new();
        frames.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", untold).unwrap();
        frames
    }

    /// How many frames of a kind pass at once, of so many.
    fn passed(frames: &mut Frames, kind: u8, payload: usize, of: usize) -> usize {
        (0..of).take_while(|_| frames.read(&frame(kind, payload), untold).is_ok()).count()
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
        let answer = frame(DATA, 10 * BYTES_PER_IDLE_FRAME - HEAD_BYTES);
        let (most, last) = answer.split_at(answer.len() - 1);
        frames.wrote(most, untold);
        frames.wrote(last, untold);
        assert_eq!(passed(&mut frames, 8, 4, 20_000), 10);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(passed(&mut frames, 8, 4, 20_000), IDLE_FRAMES_PER_SEC as usize);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_is_too_long_however_it_is_cut_and_is_told_once() {
        let most = HTTP2_HEAD_READ_BYTES as usize;
        for (parts, wanted) in [
            (vec![most], 0),
            (vec![most + 1], 1),
            (vec![most / 2, most / 2], 0),
            (vec![most / 2, most / 2, 1, most], 1),
        ] {
            let (mut frames, mut told) = (started(), Vec::new());
            for head in 0..2 {
                for (n, part) in parts.iter().enumerate() {
                    let kind = if n == 0 { HEADERS } else { CONTINUATION };
                    let flags = if n + 1 == parts.len() { END_HEADERS } else { 0 };
                    let bytes = flagged(kind, flags, &vec![7; *part]);
                    frames.read(&bytes[..bytes.len() - 1], |fault| told.push(fault)).unwrap();
                    assert!(frames.is_within());
                    frames.read(&bytes[bytes.len() - 1..], untold).unwrap();
                    assert_eq!(frames.is_within(), flags == 0);
                }
                assert_eq!(told, vec![Fault::LongHead; wanted * (head + 1)], "{parts:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_is_long_only_decompressed_is_told_by_its_answer() {
        let answer = flagged(HEADERS, END_STREAM | END_HEADERS, &[0x48, 0x83, 0x69, 0x90, 0xff]);
        // With anything besides, it is ours.
        let ours = flagged(HEADERS, END_HEADERS, &[0x48, 0x83, 0x69, 0x90, 0xff, 0x5f]);
        let trailers = flagged(HEADERS, END_STREAM | END_HEADERS, &[0xbe]);
        let (mut frames, mut told) = (started(), Vec::new());
        let bytes = [ours, trailers, answer.clone()].concat();
        for byte in &bytes {
            frames.wrote(std::slice::from_ref(byte), |fault| told.push(fault));
        }
        assert_eq!(told, [Fault::LongHead]);
        // One that was told as it came is not told again.
        let long = flagged(HEADERS, END_HEADERS, &vec![7; HTTP2_HEAD_READ_BYTES as usize + 1]);
        frames.read(&long, |fault| told.push(fault)).unwrap();
        frames.wrote(&answer, |fault| told.push(fault));
        assert_eq!(told, [Fault::LongHead; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_library_holds_against_a_client_is_told() {
        let goodbye = |code: u8| flagged(GOAWAY, 0, &[0, 0, 0, 9, 0, 0, 0, code, b'w', b'h', b'y']);
        let reset = |code: u8| flagged(RST_STREAM, 0, &[0, 0, 0, code]);
        let bytes = [
            frame(HEADERS, 40),
            reset(1),
            // It is cancelled, or over: nobody's fault.
            reset(8),
            goodbye(0),
            frame(DATA, 3),
            goodbye(11),
            reset(6),
        ]
        .concat();
        let wanted = [Fault::Stream(1), Fault::Connection(11), Fault::Stream(6)];
        for cut in 1..bytes.len() {
            let (mut frames, mut told) = (Frames::new(), Vec::new());
            for bytes in bytes.chunks(cut) {
                frames.wrote(bytes, |fault| told.push(fault));
            }
            assert_eq!(told, wanted, "cut after {cut}");
        }
        assert_eq!(Fault::Connection(11).to_string(), "the connection breaks HTTP/2: ENHANCE_YOUR_CALM");
        // Shorter than it must be.
        Frames::new().wrote(&flagged(GOAWAY, 0, &[1]), untold);
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
                let read = frames.read(now, untold);
                prop_assert!(read.is_ok());
                rest = later;
            }
            prop_assert!(!frames.asked.is_within());
            let left = (0..).take_while(|_| frames.idle.take(runtime_now()).is_ok()).count();
            // Time goes by, and a bucket fills.
            prop_assert!(left >= IDLE_FRAMES_BURST as usize - idle);
        }
    }
}
