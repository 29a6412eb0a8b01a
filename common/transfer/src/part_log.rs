//! Which parts of an upload are in the cache, for a process that goes on with it.
//!
//! One small text file: the upload's id, then a line for each part. Nothing is flushed: a process that is killed leaves what
//! it wrote, and a machine that dies takes the upload's lease along.

use crate::error::TransferError;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// The parts of one upload that need not be sent again.
#[derive(Debug, Default)]
pub struct PartLog {
    done: BTreeMap<u32, String>,
    file: Option<File>,
}

impl PartLog {
    /// What is known of upload `upload_id` in file `path`. What it holds of another upload is forgotten.
    ///
    /// # Errors
    /// [`TransferError::Io`] or [`TransferError::DiskFull`].
    pub fn open(path: &Path, upload_id: &str) -> Result<Self, TransferError> {
        let open = || {
            let text = match fs::read_to_string(path) {
                Ok(text) => text,
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                    String::new()
                }
                Err(error) => return Err(error),
            };
            if let Some(done) = parse(&text, upload_id) {
                let mut file = File::options().append(true).open(path)?;
                if !text.ends_with('\n') {
                    // The line that the last process died over.
                    file.write_all(b"\n")?;
                }
                return Ok(Self { done, file: Some(file) });
            }
            fs::write(path, format!("{upload_id}\n"))?;
            Ok(Self { done: BTreeMap::new(), file: Some(File::options().append(true).open(path)?) })
        };
        open().map_err(TransferError::local("write", path))
    }

    /// Nothing was sent before, and nothing is kept for later.
    pub fn unkept() -> Self {
        Self::default()
    }

    /// The ETag of a part that is in the cache.
    pub(crate) fn etag(&self, number: u32) -> Option<&str> {
        self.done.get(&number).map(String::as_str)
    }

    /// A part is in the cache now.
    pub(crate) fn note(&self, number: u32, etag: &str) {
        let Some(mut file) = self.file.as_ref() else { return };
        // One write, so that lines of parts that end together do not mix.
        if let Err(error) = file.write_all(format!("{number} {etag}\n").as_bytes()) {
            tracing::warn!(%error, "cannot note a part that was sent; a restart would send it again");
        }
    }
}

/// The parts, if the text is about that upload.
fn parse(text: &str, upload_id: &str) -> Option<BTreeMap<u32, String>> {
    let (id, rest) = text.split_once('\n')?;
    if id != upload_id {
        return None;
    }
    // The last line counts only with its end.
    let whole = rest.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let part = |line: &str| {
        let (number, etag) = line.split_once(' ')?;
        Some((number.parse().ok()?, etag.to_owned()))
    };
    Some(whole.lines().filter_map(part).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_with_the_same_upload_only_and_drops_a_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("parts");
        let log = PartLog::open(&path, "one").unwrap();
        log.note(3, "\"c\"");
        log.note(1, "\"a\"");
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"2 \"tor").unwrap();
        let log = PartLog::open(&path, "one").unwrap();
        assert_eq!([log.etag(1), log.etag(2), log.etag(3)], [Some("\"a\""), None, Some("\"c\"")]);
        log.note(2, "\"b\"");
        assert_eq!(PartLog::open(&path, "one").unwrap().etag(2), Some("\"b\""));
        assert_eq!(PartLog::open(&path, "two").unwrap().etag(1), None);
        assert_eq!(PartLog::open(&path, "one").unwrap().etag(1), None, "forgotten");
    }
}
