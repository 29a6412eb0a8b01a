//! Log bytes on their way to stdout: one job as it is, several with names in front, or JSON lines.

use super::Console;
use super::ansi::{Filter, Keep};
use super::style::{Style, Tone};
use crate::failure::Failure;
use serde::Serialize;
use std::collections::BTreeMap;

/// Longest line that is kept back until its end comes; a longer one is shown in pieces.
const LINE_MAX_BYTES: usize = 64 * 1024;

/// Some bytes of one attempt's log.
#[derive(Debug)]
pub struct Piece<'a> {
    /// The job's name.
    pub job: &'a str,
    /// From 1.
    pub attempt: u32,
    /// Where the bytes begin in the log.
    pub offset: u64,
    /// The bytes.
    pub data: &'a [u8],
}

/// How the bytes are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As they are.
    Raw,
    /// Whole lines, each behind its job's name.
    Named {
        /// Of the longest name.
        width: usize,
    },
    /// One JSON object for each line.
    Json,
}

/// Turns pieces into what is printed. Nothing here writes.
#[derive(Debug)]
pub struct Printer {
    shape: Shape,
    style: Style,
    raw: Filter,
    lines: BTreeMap<(String, u32), Line>,
}

/// A line that has not ended.
#[derive(Debug)]
struct Line {
    offset: u64,
    bytes: Vec<u8>,
    filter: Filter,
}

/// What `-o json` prints for a line.
#[derive(Serialize)]
struct JsonLine<'a> {
    job: &'a str,
    attempt: u32,
    offset: u64,
    text: &'a str,
}

impl Printer {
    /// For stdout as `console` knows it.
    pub fn new(shape: Shape, style: Style) -> Self {
        Self { shape, style, raw: Filter::new(keep(style)), lines: BTreeMap::new() }
    }

    /// What to print for the piece.
    pub fn push(&mut self, piece: &Piece) -> Vec<u8> {
        let mut out = Vec::with_capacity(piece.data.len());
        match self.shape {
            Shape::Raw if self.style.terminal => self.raw.push(piece.data, &mut out),
            Shape::Raw => out.extend_from_slice(piece.data),
            Shape::Named { .. } | Shape::Json => self.push_lines(piece, &mut out),
        }
        out
    }

    /// What is left to print when an attempt's log has ended.
    pub fn end(&mut self, job: &str, attempt: u32) -> Vec<u8> {
        let mut out = Vec::new();
        match self.shape {
            Shape::Raw => self.raw.finish(&mut out),
            Shape::Named { .. } | Shape::Json => {
                if let Some(mut line) = self.lines.remove(&(job.to_owned(), attempt))
                    && !line.bytes.is_empty()
                {
                    self.emit(job, attempt, &mut line, &mut out);
                }
            }
        }
        out
    }

    fn push_lines(&mut self, piece: &Piece, out: &mut Vec<u8>) {
        let key = (piece.job.to_owned(), piece.attempt);
        let fresh = || Line { offset: piece.offset, bytes: Vec::new(), filter: Filter::new(keep(self.style)) };
        let mut line = self.lines.remove(&key).unwrap_or_else(fresh);
        let mut offset = piece.offset;
        for part in piece.data.split_inclusive(|byte| *byte == b'\n') {
            if line.bytes.is_empty() {
                line.offset = offset;
            }
            offset += part.len() as u64;
            line.bytes.extend_from_slice(part);
            if part.ends_with(b"\n") || line.bytes.len() >= LINE_MAX_BYTES {
                self.emit(piece.job, piece.attempt, &mut line, out);
            }
        }
        self.lines.insert(key, line);
    }

    fn emit(&self, job: &str, attempt: u32, line: &mut Line, out: &mut Vec<u8>) {
        let mut bytes = std::mem::take(&mut line.bytes);
        if bytes.ends_with(b"\n") {
            bytes.pop();
        }
        match self.shape {
            Shape::Json => {
                let text = String::from_utf8_lossy(&bytes);
                let object = JsonLine { job, attempt, offset: line.offset, text: &text };
                // Strings and numbers always become JSON.
                out.extend(serde_json::to_vec(&object).unwrap_or_default());
                out.push(b'\n');
            }
            Shape::Named { width } => {
                let prefix = format!("{job:<width$} | ");
                let mut shown = bytes;
                if self.style.terminal {
                    let raw = std::mem::take(&mut shown);
                    line.filter.push(&raw, &mut shown);
                    line.filter.finish(&mut shown);
                }
                // A rewritten line has become several: each gets the name.
                for part in shown.split(|byte| *byte == b'\n') {
                    out.extend_from_slice(self.style.paint(Tone::Faint, &prefix).as_bytes());
                    out.extend_from_slice(part);
                    out.push(b'\n');
                }
            }
            Shape::Raw => out.extend(bytes),
        }
    }
}

impl Console {
    /// Writes the piece to stdout.
    ///
    /// # Errors
    /// As [`Console::print`].
    pub fn log(&self, printer: &mut Printer, piece: &Piece) -> Result<(), Failure> {
        self.write(&printer.push(piece))
    }
}

/// Someone who asked for no colours gets none from logs either.
fn keep(style: Style) -> Keep {
    if style.colour { Keep::Colours } else { Keep::Text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMINAL: Style = Style { terminal: true, colour: false };

    fn printed(shape: Shape, style: Style, pieces: &[(&str, &[u8])]) -> String {
        let mut printer = Printer::new(shape, style);
        let mut offsets: BTreeMap<&str, u64> = BTreeMap::new();
        let mut out = Vec::new();
        for (job, data) in pieces {
            let offset = offsets.entry(job).or_default();
            out.extend(printer.push(&Piece { job, attempt: 1, offset: *offset, data }));
            *offset += data.len() as u64;
        }
        for job in offsets.keys() {
            out.extend(printer.end(job, 1));
        }
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn one_job_in_a_pipe_is_untouched() {
        let raw = b"\x1b[2Ja\r\nb\x07";
        assert_eq!(printed(Shape::Raw, Style::PLAIN, &[("a", raw)]).as_bytes(), raw);
        assert_eq!(printed(Shape::Raw, TERMINAL, &[("a", raw)]), "a\nb");
    }

    #[test]
    fn lines_of_several_jobs_do_not_mix() {
        let pieces: [(&str, &[u8]); 5] =
            [("a", b"one"), ("long", b"x\ny"), ("a", b" half\ntwo\n"), ("long", b"y\n"), ("a", b"open end")];
        assert_eq!(
            printed(Shape::Named { width: 4 }, Style::PLAIN, &pieces),
            "long | x\na    | one half\na    | two\nlong | yy\na    | open end\n"
        );
    }

    #[test]
    fn json_lines_know_where_they_begin() {
        let pieces: [(&str, &[u8]); 2] = [("a", b"one\ntw"), ("a", b"o\n\xff\n")];
        assert_eq!(
            printed(Shape::Json, Style::PLAIN, &pieces),
            "{\"job\":\"a\",\"attempt\":1,\"offset\":0,\"text\":\"one\"}\n\
             {\"job\":\"a\",\"attempt\":1,\"offset\":4,\"text\":\"two\"}\n\
             {\"job\":\"a\",\"attempt\":1,\"offset\":8,\"text\":\"\u{fffd}\"}\n"
        );
    }

    #[test]
    fn a_line_without_end_is_shown_in_pieces() {
        let long = vec![b'x'; LINE_MAX_BYTES * 2 + 1];
        let chunks: Vec<(&str, &[u8])> = long.chunks(1000).map(|chunk| ("a", chunk)).collect();
        let text = printed(Shape::Named { width: 1 }, Style::PLAIN, &chunks);
        assert_eq!(text.lines().count(), 2);
    }
}
