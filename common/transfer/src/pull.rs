//! A blob out of the cache, into a file.

use crate::error::{TransferError, bare, refused};
use crate::landing::Landing;
use crate::tries::Tries;
use crate::{Progress, Transfer};
use bytes::{Buf as _, Bytes};
use http::StatusCode;
use http::header::{CONTENT_RANGE, RANGE};
use railyard_common::blob::{Blob, Encoding};
use reqwest::Response;
use std::path::Path;

/// How one request ended.
enum Ended {
    /// All stored bytes are there.
    Whole,
    /// The file cannot be written on; the landing knows why.
    LandingFailed,
}

impl Transfer {
    /// Fetches `blob` from the signed `url` into `dest`, decoded. `dest` appears only complete and verified.
    ///
    /// A connection that breaks is taken up where it ended; a plain blob also after a crash of this process, from `DEST.part`.
    /// `progress` is told stored bytes.
    ///
    /// # Errors
    /// [`TransferError::WrongDigest`] or [`TransferError::Corrupt`] (nothing is left behind), [`TransferError::Expired`],
    /// [`TransferError::DiskFull`] (`DEST.part` is left for the next try), or any other [`TransferError`].
    pub async fn pull(&self, url: &str, blob: &Blob, dest: &Path, progress: Progress<'_>) -> Result<(), TransferError> {
        let (landing, mut done) = Landing::open(blob, dest, bare(url)).await?;
        let mut tries = Tries::new(&self.settings);
        let mut stored_bytes = blob.stored_bytes;
        while done < stored_bytes {
            let before = done;
            match self.pull_from(url, blob, &landing, (&mut done, &mut stored_bytes), progress).await {
                Ok(Ended::Whole) => {}
                Ok(Ended::LandingFailed) => break,
                Err(error) => {
                    if done > before {
                        tries.progressed();
                    }
                    if let Err(error) = tries.pause(error).await {
                        landing.leave(&error).await;
                        return Err(error);
                    }
                }
            }
        }
        progress(done);
        landing.finish().await
    }

    /// Fetches the stored bytes from `done` on, and counts `done` up to `stored_bytes`.
    async fn pull_from(
        &self,
        url: &str,
        blob: &Blob,
        landing: &Landing,
        (done, stored_bytes): (&mut u64, &mut u64),
        progress: Progress<'_>,
    ) -> Result<Ended, TransferError> {
        let limit = self.settings.progress_timeout;
        let stalled = |_| TransferError::Stalled { url: bare(url), after: limit };
        let network = |error: reqwest::Error| TransferError::Network { url: bare(url), source: error.without_url() };

        let mut request = self.http.get(url);
        if *done > 0 {
            request = request.header(RANGE, format!("bytes={done}-"));
        }
        let mut answer = tokio::time::timeout(limit, request.send()).await.map_err(stalled)?.map_err(network)?;
        if !answer.status().is_success() {
            return Err(refused(bare(url), answer).await);
        }
        let start = starts_at(&answer, *done, url)?;
        if let (Encoding::Zstd, Some(length)) = (blob.encoding, answer.content_length()) {
            // Another host may have packed the same bytes in another way; what counts is what they unpack to.
            *stored_bytes = start.saturating_add(length);
        }
        let mut skip = *done - start;
        while let Some(mut bytes) =
            tokio::time::timeout(limit, answer.chunk()).await.map_err(stalled)?.map_err(network)?
        {
            skip_some(&mut bytes, &mut skip);
            if bytes.is_empty() {
                continue;
            }
            *done += bytes.len() as u64;
            if *done > *stored_bytes {
                let why = format!("it has more than the announced {stored_bytes} stored bytes");
                return Err(TransferError::Corrupt { url: bare(url), why });
            }
            if !landing.take(bytes).await {
                return Ok(Ended::LandingFailed);
            }
            progress(*done);
        }
        if *done == *stored_bytes {
            return Ok(Ended::Whole);
        }
        let why = format!("it ends after {done} of {stored_bytes} stored bytes");
        Err(TransferError::Corrupt { url: bare(url), why })
    }
}

/// Where the body begins in the object: 0 for a server that does not do ranges.
fn starts_at(answer: &Response, wanted: u64, url: &str) -> Result<u64, TransferError> {
    if answer.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(0);
    }
    let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    let start = range.strip_prefix("bytes ").and_then(|range| range.split('-').next()).and_then(|n| n.parse().ok());
    match start {
        Some(start) if start <= wanted => Ok(start),
        _ => Err(TransferError::Status {
            url: bare(url),
            status: answer.status().as_u16(),
            why: format!("asked for bytes from {wanted} on, got Content-Range `{range}`"),
        }),
    }
}

fn skip_some(bytes: &mut Bytes, skip: &mut u64) {
    let n = usize::try_from(*skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
    bytes.advance(n);
    *skip -= n as u64;
}
