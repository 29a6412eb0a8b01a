//! A container's output as the Docker engine writes it down, made exact again.
//!
//! The engine cuts output into lines, and lines above 16 KiB into parts of that size. Its log driver `local` keeps every
//! byte but one: older engines (20.10 does) leave out the newline behind the last part of a long line. With timestamps
//! asked for, every message is a frame of its own even if it is empty, and the missing newline can be told:
//! a part is followed by parts until one is shorter; and only the end of the output is not the end of a line.
//!
//! One thing cannot be told: a last line above 16 KiB, and no newline behind it. It gets one.

use super::{Chunk, Output, RuntimeError, Source};
use bollard::models::HostConfigLogConfig;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, stream};
use std::collections::{HashMap, VecDeque};

/// The engine cuts a line into parts of this size.
const PART_BYTES: usize = 16 * 1024;

/// What the engine writes for every line besides the line: time, stream, lengths. With lines of a usual length the log is
/// not much more than twice its text.
const OVERHEAD_FACTOR: u64 = 2;

/// The smallest log: room for many short lines.
const LOG_MIN_BYTES: u64 = 64 * 1024 * 1024;

/// The driver that keeps `log_bytes` of output: every byte as it was, in one file that is not compressed.
pub(super) fn driver(log_bytes: u64) -> HostConfigLogConfig {
    let max_bytes = log_bytes.saturating_mul(OVERHEAD_FACTOR).saturating_add(LOG_MIN_BYTES);
    let options = [("max-size", max_bytes.to_string()), ("max-file", "1".to_owned()), ("compress", "false".to_owned())];
    let config = options.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<HashMap<_, _>>();
    HostConfigLogConfig { typ: Some("local".to_owned()), config: Some(config) }
}

/// The messages of a log that was asked for with timestamps.
pub(super) struct Lines {
    messages: BoxStream<'static, Result<Chunk, RuntimeError>>,
    streams: [Line; 2],
    ready: VecDeque<Chunk>,
    ended: bool,
}

/// Where a stream is in its line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Line {
    /// At its start, or so it looks.
    #[default]
    Start,
    /// Parts of it have come, and more will.
    Parts,
    /// Its last part has come, without a newline.
    Unended,
}

impl Line {
    /// A message has come. Whether a newline was missing before it.
    fn next(&mut self, message: &[u8]) -> bool {
        let missing = *self == Self::Unended;
        *self = match (*self, message) {
            (_, [.., b'\n']) => Self::Start,
            (_, part) if part.len() >= PART_BYTES => Self::Parts,
            (Self::Parts, _) => Self::Unended,
            (Self::Start | Self::Unended, _) => Self::Start,
        };
        missing
    }
}

impl Lines {
    pub(super) fn new(messages: BoxStream<'static, Result<Chunk, RuntimeError>>) -> Self {
        Self { messages, streams: [Line::Start; 2], ready: VecDeque::new(), ended: false }
    }

    /// The output as the container wrote it.
    pub(super) fn into_output(self) -> Output {
        stream::unfold(self, |mut lines| async { Some((lines.next().await?, lines)) }).boxed()
    }

    async fn next(&mut self) -> Option<Result<Chunk, RuntimeError>> {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Some(Ok(ready));
            }
            if self.ended {
                return None;
            }
            match self.messages.next().await {
                Some(Ok(message)) => self.hear(message),
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                None => {
                    self.ended = true;
                    let unended = [Source::Stdout, Source::Stderr].into_iter().zip(self.streams);
                    self.ready
                        .extend(unended.filter(|(_, line)| *line == Line::Unended).map(|(source, _)| newline(source)));
                }
            }
        }
    }

    fn hear(&mut self, message: Chunk) {
        let Chunk { source, bytes } = message;
        let text = bytes.iter().position(|byte| *byte == b' ').map_or(Bytes::new(), |end| bytes.slice(end + 1..));
        let line = &mut self.streams[usize::from(source == Source::Stderr)];
        if line.next(&text) {
            self.ready.push_back(newline(source));
        }
        if !text.is_empty() {
            self.ready.push_back(Chunk { source, bytes: text });
        }
    }
}

fn newline(source: Source) -> Chunk {
    Chunk { source, bytes: Bytes::from_static(b"\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(messages: &[(Source, &str)]) -> (String, String) {
        let stamped = messages.iter().map(|(source, text)| {
            Ok(Chunk { source: *source, bytes: Bytes::from(format!("2026-11-21T12:58:11.591925975Z {text}")) })
        });
        let output = Lines::new(stream::iter(stamped.collect::<Vec<_>>()).boxed()).into_output();
        let chunks: Vec<Chunk> = output.map(|chunk| chunk.unwrap()).collect().await;
        let of = |wanted| {
            let bytes = chunks.iter().filter(|chunk| chunk.source == wanted).flat_map(|chunk| chunk.bytes.to_vec());
            String::from_utf8(bytes.collect()).unwrap()
        };
        (of(Source::Stdout), of(Source::Stderr))
    }

    #[tokio::test]
    async fn long_lines_get_their_newline_back_and_the_last_line_gets_none() {
        use Source::{Stderr, Stdout};
        let part = "x".repeat(PART_BYTES);
        let old = [
            (Stdout, "one\n"),
            (Stdout, part.as_str()),
            (Stdout, part.as_str()),
            (Stderr, "\n"),
            (Stdout, "rest"),
            (Stdout, "two\n"),
            (Stdout, part.as_str()),
            (Stdout, ""),
            (Stdout, "no newline"),
        ];
        let want = format!("one\n{part}{part}rest\ntwo\n{part}\nno newline");
        assert_eq!(read(&old).await, (want.clone(), "\n".to_owned()));
        let new =
            [(Stdout, part.as_str()), (Stdout, "rest\n"), (Stdout, part.as_str()), (Stdout, "\n"), (Stdout, "end")];
        assert_eq!(read(&new).await.0, format!("{part}rest\n{part}\nend"));
        assert_eq!(read(&[(Stdout, part.as_str()), (Stdout, "rest")]).await.0, format!("{part}rest\n"));
    }
}
