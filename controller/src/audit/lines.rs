//! A segment, line by line, with a limit on each.

use super::AuditError;
use super::record::LINE_MAX_BYTES;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// What stands between two line ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A line without its end.
    Whole(&'a [u8]),
    /// Longer than any record; its text is skipped.
    TooLong,
    /// So many bytes at the end of the file, without a line end.
    Torn(u64),
}

/// An open segment.
pub(super) struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    line: Vec<u8>,
    /// Where the next line begins.
    offset: u64,
}

impl Lines {
    /// Begins at `offset`, which must be the begin of a line.
    pub(super) fn open(path: &Path, offset: u64) -> Result<Self, AuditError> {
        let mut file = File::open(path).map_err(AuditError::io("open", path))?;
        file.seek(SeekFrom::Start(offset)).map_err(AuditError::io("read", path))?;
        let reader = BufReader::with_capacity(BUFFER_BYTES, file);
        Ok(Self { path: path.to_owned(), reader, line: Vec::new(), offset })
    }

    /// Where the next line begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next line; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Line<'_>>, AuditError> {
        self.line.clear();
        let (mut bytes, mut is_long) = (0, false);
        loop {
            let mut limited = self.reader.by_ref().take(LINE_MAX_BYTES as u64);
            let read = limited.read_until(b'\n', &mut self.line).map_err(AuditError::io("read", &self.path))?;
            bytes += read as u64;
            let has_end = self.line.last() == Some(&b'\n');
            if read == 0 || (!has_end && read < LINE_MAX_BYTES) {
                // Not a step forward: what is torn may become whole.
                return Ok(Some(Line::Torn(bytes)).filter(|_| bytes > 0));
            }
            if has_end {
                self.offset += bytes;
                let text = &self.line[..self.line.len() - 1];
                return Ok(Some(if is_long { Line::TooLong } else { Line::Whole(text) }));
            }
            is_long = true;
            self.line.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_an_end_and_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for long in [LINE_MAX_BYTES, LINE_MAX_BYTES + 1, 3 * LINE_MAX_BYTES] {
            let long = "x".repeat(long);
            std::fs::write(&path, format!("a\n\n{long}\nb\nc")).unwrap();
            let mut lines = Lines::open(&path, 0).unwrap();
            assert_eq!(lines.next().unwrap(), Some(Line::Whole(b"a")));
            assert_eq!(lines.next().unwrap(), Some(Line::Whole(b"")));
            assert_eq!(lines.next().unwrap(), Some(Line::TooLong));
            let offset = lines.offset();
            assert_eq!(lines.next().unwrap(), Some(Line::Whole(b"b")));
            assert_eq!(lines.next().unwrap(), Some(Line::Torn(1)));
            let mut again = Lines::open(&path, offset).unwrap();
            assert_eq!(again.next().unwrap(), Some(Line::Whole(b"b")));
        }
    }
}
