//! The messages of the engine's log, from any bytes: see [`crate::fuzz`].

use super::engine_log::Lines;
use super::{Chunk, Source};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};

/// A byte that says the stream and the length, and as many bytes, again and again.
pub fn output(mut bytes: &[u8]) -> String {
    let (mut messages, mut sent) = (Vec::new(), 0);
    while let [head, rest @ ..] = bytes {
        let source = if head & 1 == 0 { Source::Stdout } else { Source::Stderr };
        // Long messages are what it is about: the engine cuts lines at 16 KiB.
        let length = if head & 2 == 0 { usize::from(head >> 2) } else { 16 * 1024 };
        let (text, rest) = rest.split_at(length.min(rest.len()));
        let mut message = text.to_vec();
        if head & 2 != 0 {
            message.resize(length, b'x');
        }
        sent += message.iter().position(|byte| *byte == b' ').map_or(0, |at| message.len() - at - 1);
        messages.push(Ok(Chunk { source, bytes: Bytes::from(message) }));
        bytes = rest;
    }
    let count = messages.len();
    let output = Lines::new(stream::iter(messages).boxed()).into_output();
    let chunks = output.collect::<Vec<_>>().now_or_never().expect("nothing is waited for");
    let came: usize = chunks.iter().flatten().map(|chunk| chunk.bytes.len()).sum();
    // Every byte, and at most a newline for each message.
    assert!((sent..=sent + count).contains(&came), "{sent} bytes of {count} messages became {came}");
    let shape = chunks.iter().flatten().take(12).map(|chunk| match (chunk.source, &*chunk.bytes) {
        (Source::Stdout, b"\n") => 'n',
        (Source::Stderr, b"\n") => 'N',
        (Source::Stdout, bytes) => {
            if bytes.len() < 1_000 {
                'o'
            } else {
                'O'
            }
        }
        (Source::Stderr, bytes) => {
            if bytes.len() < 1_000 {
                'e'
            } else {
                'E'
            }
        }
    });
    shape.collect()
}
