//! A file into the cache, in parts to signed URLs.

use crate::error::{TransferError, bare, refused};
use crate::hash::{READ_BYTES, blocking};
use crate::meter::{Meter, telling, while_moving};
use crate::tries::Tries;
use crate::{Progress, Transfer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use md5::{Digest as _, Md5};
use railyard_common::blob::Blob;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The right to send one blob: what the controller answered to `PrepareUpload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The upload that the parts belong to.
    pub upload_id: String,
    /// Length of every part but the last.
    pub part_bytes: u64,
    /// Where part N (from 1) goes: `part_urls[N - 1]`.
    pub part_urls: Vec<String>,
}

/// A blob whose parts are all in the cache. The controller completes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// What was sent.
    pub blob: Blob,
    /// Of the ticket.
    pub upload_id: String,
    /// What the cache answered to each part, in order.
    pub etags: Vec<String>,
}

/// One part of a file.
struct Part<'a> {
    file: Arc<File>,
    path: &'a Path,
    url: &'a str,
    offset: u64,
    length: u64,
}

impl Transfer {
    /// Sends `file`, the stored bytes of `blob` (compressed already if the blob is), to the URLs of `ticket`.
    ///
    /// Parts go in parallel, each with its `Content-MD5`, and are sent again on their own. Memory is bounded by
    /// `parallel_parts` read buffers.
    ///
    /// # Errors
    /// Any [`TransferError`]; the first part that fails for good ends the push.
    pub async fn push(
        &self,
        file: &Path,
        blob: &Blob,
        ticket: &Ticket,
        progress: Progress<'_>,
    ) -> Result<Finished, TransferError> {
        let opened = open_checked(file, blob.stored_bytes).await?;
        let meter = Meter::default();
        let parts = parts(&opened, file, blob.stored_bytes, ticket)?;
        // Futures, not a stream that makes them: a closure over borrowed parts would keep callers from spawning this.
        let sending: Vec<_> = parts.into_iter().map(|part| self.push_part(part, &meter)).collect();
        let sending = stream::iter(sending).buffered(self.settings.parallel_parts.max(1)).try_collect();
        let etags = telling(sending, &meter, progress).await?;
        Ok(Finished { blob: *blob, upload_id: ticket.upload_id.clone(), etags })
    }

    async fn push_part(&self, part: Part<'_>, total: &Meter) -> Result<String, TransferError> {
        let mut tries = Tries::new(&self.settings);
        loop {
            let sent = Meter::default();
            match self.try_part(&part, &sent, total).await {
                Ok(etag) => return Ok(etag),
                Err(error) => {
                    total.take_back(sent.read());
                    tries.pause(error).await?;
                }
            }
        }
    }

    async fn try_part(&self, part: &Part<'_>, sent: &Meter, total: &Meter) -> Result<String, TransferError> {
        let url = || bare(part.url);
        let limit = self.settings.progress_timeout;
        // Hashed anew for each try: should the memory or the disk have lied once, it need not lie twice.
        let md5 = part.md5().await?;
        let body = reqwest::Body::wrap_stream(part.body(sent.clone(), total.clone()));
        let request = self
            .http
            .put(part.url)
            .header(CONTENT_LENGTH, part.length)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header("content-md5", STANDARD.encode(md5))
            .body(body);
        let answer = while_moving(request.send(), sent, limit)
            .await
            .ok_or_else(|| TransferError::Stalled { url: url(), after: limit })?
            .map_err(|error| TransferError::Network { url: url(), source: error.without_url() })?;
        if !answer.status().is_success() {
            return Err(refused(url(), answer).await);
        }
        let etag = answer.headers().get(ETAG).and_then(|etag| etag.to_str().ok());
        etag.map(str::to_owned).ok_or_else(|| TransferError::Status {
            url: url(),
            status: answer.status().as_u16(),
            why: "the answer has no ETag".to_owned(),
        })
    }
}

/// The opened file, if it has the length that was announced.
async fn open_checked(path: &Path, expected: u64) -> Result<Arc<File>, TransferError> {
    let path = path.to_owned();
    blocking(move || {
        let open = || {
            let file = File::open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, found) = open().map_err(TransferError::local("read", &path))?;
        if found == expected { Ok(Arc::new(file)) } else { Err(TransferError::Changed { path, expected, found }) }
    })
    .await
}

/// The parts of a file as the ticket cuts it.
fn parts<'a>(
    file: &Arc<File>,
    path: &'a Path,
    stored_bytes: u64,
    ticket: &'a Ticket,
) -> Result<Vec<Part<'a>>, TransferError> {
    let needed = if ticket.part_bytes == 0 { 0 } else { stored_bytes.div_ceil(ticket.part_bytes) };
    if needed != ticket.part_urls.len() as u64 || (stored_bytes > 0 && ticket.part_bytes == 0) {
        let why = format!(
            "{stored_bytes} bytes in parts of {} need {needed} URLs, it has {}",
            ticket.part_bytes,
            ticket.part_urls.len()
        );
        return Err(TransferError::BadTicket { why });
    }
    let cut = |(offset, url): (u64, &'a String)| Part {
        file: Arc::clone(file),
        path,
        url,
        offset,
        length: ticket.part_bytes.min(stored_bytes - offset),
    };
    Ok((0..needed).map(|n| n * ticket.part_bytes).zip(&ticket.part_urls).map(cut).collect())
}

impl Part<'_> {
    async fn md5(&self) -> Result<[u8; 16], TransferError> {
        let (file, offset, length) = (Arc::clone(&self.file), self.offset, self.length);
        let hash = move || {
            let mut hasher = Md5::new();
            let mut buffer = vec![0; READ_BYTES];
            let mut done = 0;
            while done < length {
                let n = next_bytes(length - done);
                file.read_exact_at(&mut buffer[..n], offset + done)?;
                hasher.update(&buffer[..n]);
                done += n as u64;
            }
            Ok(hasher.finalize().into())
        };
        blocking(hash).await.map_err(|error: io::Error| self.unreadable(error))
    }

    fn unreadable(&self, error: io::Error) -> TransferError {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => TransferError::Changed {
                path: PathBuf::from(self.path),
                expected: self.offset + self.length,
                found: self.file.metadata().map_or(0, |metadata| metadata.len()),
            },
            _ => TransferError::local("read", self.path)(error),
        }
    }

    /// The bytes of the part. A byte counts as moved when the connection asks for the next ones.
    fn body(&self, sent: Meter, total: Meter) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let (file, offset, length) = (Arc::clone(&self.file), self.offset, self.length);
        stream::try_unfold(0, move |done: u64| {
            let (file, sent, total) = (Arc::clone(&file), sent.clone(), total.clone());
            async move {
                if done == length {
                    return Ok(None);
                }
                let n = next_bytes(length - done);
                let bytes = blocking(move || {
                    let mut buffer = vec![0; n];
                    file.read_exact_at(&mut buffer, offset + done).map(|()| Bytes::from(buffer))
                })
                .await?;
                sent.add(n as u64);
                total.add(n as u64);
                Ok(Some((bytes, done + n as u64)))
            }
        })
    }
}

/// How much of `left` to read at once.
fn next_bytes(left: u64) -> usize {
    usize::try_from(left).map_or(READ_BYTES, |left| left.min(READ_BYTES))
}
