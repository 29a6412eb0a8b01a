//! A blob out of the cache, into a file.

use crate::chunks::Chunk;
use crate::error::{MoveError, TransferError, bare, refused};
use crate::follow::Tap;
use crate::hash::joined;
use crate::landing::{Form, Landing};
use crate::meter::{LIVELY_BYTES, Meter, telling, while_progressing};
use crate::queue::Queue;
use crate::source::{BlobUrls, Fixed, Source};
use crate::tries::{LastError, Tries};
use crate::{BUFFER_BYTES, Progress, Transfer};
use bytes::{Buf as _, Bytes};
use futures_util::future::try_join_all;
use http::StatusCode;
use http::header::{CONTENT_RANGE, RANGE};
use railyard_common::blob::{Blob, Encoding};
use reqwest::Response;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

/// Why chunks cannot be fetched as planned.
enum Detour<E> {
    /// It cannot be fetched at all.
    Failed(TransferError),
    /// There is no URL any more.
    NoUrl(E),
    /// It is stored in another length than was announced: another host has packed the same bytes in another way.
    OtherLength(u64),
    /// The server gives whole objects only.
    NoRanges,
}

impl<E> From<TransferError> for Detour<E> {
    fn from(error: TransferError) -> Self {
        Self::Failed(error)
    }
}

impl<E> From<MoveError<E>> for Detour<E> {
    fn from(error: MoveError<E>) -> Self {
        match error {
            MoveError::Transfer(error) => Self::Failed(error),
            MoveError::Urls(error) => Self::NoUrl(error),
        }
    }
}

impl Transfer {
    /// Fetches `blob` from the signed `url` into `dest`, in the form that is wanted. `dest` appears only complete and verified.
    ///
    /// Ranges are fetched in parallel, each again on its own for as long as anything moves. What was fetched of it before, also
    /// by a process that was killed, is taken from the [`Scratch`](crate::Scratch) beside it; another pull to the same
    /// `dest` is waited for. `progress` is told stored bytes.
    ///
    /// # Errors
    /// [`TransferError::WrongDigest`] or [`TransferError::Corrupt`] (nothing is left behind), [`TransferError::Expired`],
    /// [`TransferError::DiskFull`] (what came is left for the next try), or any other [`TransferError`].
    pub async fn pull(
        &self,
        url: &str,
        blob: &Blob,
        dest: &Path,
        form: Form,
        progress: Progress<'_>,
    ) -> Result<(), TransferError> {
        self.pull_from(&Fixed(url), blob, dest, form, None, progress).await.map_err(|error| match error {
            MoveError::Transfer(error) => error,
            MoveError::Urls(never) => match never {},
        })
    }

    /// The same from `urls`, of which the next one is taken when one has expired, for as long as anything comes; and while
    /// somebody hears the plain bytes. It hears them once: when they turn out wrong, it is dropped before they are fetched once
    /// more.
    ///
    /// # Errors
    /// As [`Transfer::pull`], and [`MoveError::Urls`].
    pub async fn pull_from<U: BlobUrls>(
        &self,
        urls: &U,
        blob: &Blob,
        dest: &Path,
        form: Form,
        mut tap: Option<Tap>,
        progress: Progress<'_>,
    ) -> Result<(), MoveError<U::Error>> {
        let source = Source::open(urls).await?;
        let mut stored_bytes = blob.stored_bytes;
        let mut ranges = true;
        let mut is_second = false;
        loop {
            let url = bare(&source.url().await);
            let landing = Landing::open(blob, stored_bytes, dest, form, tap.take(), url.clone()).await?;
            let Some(landing) = landing else {
                progress(blob.stored_bytes);
                return Ok(());
            };
            match self.fill(&source, &landing, ranges, stored_bytes, progress).await {
                Ok(()) => match landing.finish().await {
                    // Damaged on its way, or by a machine that died over an earlier try. Nothing of it is left.
                    Err(error) if !is_second && error.is_bad_content() => {
                        tracing::warn!(%error, "fetching it once more");
                        is_second = true;
                    }
                    done => return Ok(done?),
                },
                Err(Detour::OtherLength(length)) if blob.encoding == Encoding::Zstd && length != stored_bytes => {
                    landing.leave(true).await;
                    stored_bytes = length;
                }
                Err(Detour::OtherLength(length)) => {
                    landing.leave(true).await;
                    let why = format!("it has {length} stored bytes instead of {stored_bytes}");
                    return Err(TransferError::Corrupt { url, why }.into());
                }
                Err(Detour::NoRanges) => {
                    landing.leave(false).await;
                    ranges = false;
                }
                Err(Detour::Failed(error)) => {
                    landing.leave(error.is_bad_content()).await;
                    return Err(error.into());
                }
                Err(Detour::NoUrl(error)) => {
                    landing.leave(false).await;
                    return Err(MoveError::Urls(error));
                }
            }
        }
    }

    /// Fetches what is missing.
    async fn fill<U: BlobUrls>(
        &self,
        source: &Source<'_, U>,
        landing: &Landing,
        ranges: bool,
        stored_bytes: u64,
        progress: Progress<'_>,
    ) -> Result<(), Detour<U::Error>> {
        let total = Meter::default();
        total.add(landing.landed_bytes());
        let last = LastError::default();
        let way = Way { transfer: self, source, landing, ranges, stored_bytes, total: total.clone(), last: &last };
        let streams = if ranges { self.settings.parallel_streams.max(1) } else { 1 };
        let queue = Queue::new(landing.missing());
        let fetching: Vec<_> = (0..streams).map(|_| way.fetch_all(&queue)).collect();
        let fetching = try_join_all(fetching);
        let deadline = self.settings.progress_deadline;
        let fetching = while_progressing(fetching, &total, deadline);
        if let Some(fetched) = telling(fetching, &total, progress).await {
            return fetched.map(drop);
        }
        let url = bare(&source.url().await);
        Err(last.take().unwrap_or(TransferError::Stalled { url, after: deadline }).into())
    }
}

/// What all chunks of a pull share.
struct Way<'a, U> {
    transfer: &'a Transfer,
    source: &'a Source<'a, U>,
    landing: &'a Landing,
    ranges: bool,
    stored_bytes: u64,
    total: Meter,
    last: &'a LastError,
}

impl<U: BlobUrls> Way<'_, U> {
    /// One stream: fetches one chunk after the other until nobody has any left.
    async fn fetch_all(&self, queue: &Queue<Chunk>) -> Result<(), Detour<U::Error>> {
        while let Some(chunk) = queue.next() {
            self.fetch(chunk).await?;
        }
        Ok(())
    }

    /// Fetches a chunk until it has landed.
    async fn fetch(&self, chunk: Chunk) -> Result<(), Detour<U::Error>> {
        let mut tries = Tries::new(&self.transfer.settings, self.last);
        // Of an earlier process there may be something where this one writes.
        let mut fresh = !self.landing.resumed;
        let mut done = 0;
        loop {
            if self.landing.is_spoilt() {
                // Found wrong already; the end of the landing says how.
                return Ok(());
            }
            let before = done;
            let url = self.source.url().await;
            let memory = self.transfer.stream().await;
            let fetched = self.try_fetch(&url, chunk, &mut done, fresh).await;
            // Others may move while this one waits.
            drop(memory);
            match fetched {
                Ok(()) => return Ok(self.landing.land(chunk)?),
                Err(Detour::Failed(error)) => {
                    if done > before {
                        tries.progressed();
                    }
                    fresh = false;
                    match error {
                        TransferError::Expired { .. } => self.source.renew(&url, self.total.read(), error).await?,
                        error => tries.pause(error).await?,
                    }
                }
                Err(detour) => return Err(detour),
            }
        }
    }

    /// Fetches a chunk from `done` of its bytes on.
    async fn try_fetch(&self, url: &str, chunk: Chunk, done: &mut u64, fresh: bool) -> Result<(), Detour<U::Error>> {
        let limit = self.transfer.settings.stall_timeout;
        let start = chunk.offset + *done;
        let mut request = self.transfer.http.get(url);
        if self.ranges {
            request = request.header(RANGE, format!("bytes={start}-{}", chunk.offset + chunk.length - 1));
        }
        let answer = tokio::time::timeout(limit, request.send()).await.map_err(|_| stalled(url, limit))?;
        let answer = answer.map_err(|error| network(url, error))?;
        if !answer.status().is_success() {
            let length = (answer.status() == StatusCode::RANGE_NOT_SATISFIABLE).then(|| length_behind_its_end(&answer));
            let refused = tokio::time::timeout(limit, refused(bare(url), answer)).await;
            let refused = refused.unwrap_or_else(|_| stalled(url, limit));
            return Err(match length.flatten().or_else(|| refused.object_bytes()) {
                Some(length) if length != self.stored_bytes => Detour::OtherLength(length),
                _ => refused.into(),
            });
        }
        let skip = self.starts_at(url, &answer, start)?;
        let window = Box::pin(tokio::time::sleep(limit));
        let left = chunk.length - *done;
        let total = &self.total;
        let mut body = Body { url, total, answer, limit, window, lively: 0, skip, left };
        let mut writing: Option<(u64, JoinHandle<io::Result<()>>)> = None;
        loop {
            let (bytes, end) = body.gather().await;
            // Waited for in any case: what counts as done must be in the file.
            if let Some((length, written)) = writing.take() {
                joined(written).await.map_err(self.landing.local())?;
                *done += length;
            }
            if !bytes.is_empty() {
                let length = bytes.iter().map(|bytes| bytes.len() as u64).sum();
                writing = Some((length, self.landing.write(bytes, chunk.offset + *done, fresh)));
            } else if body.left == 0 {
                return Ok(());
            }
            if let Err(error) = end {
                if let Some((length, written)) = writing {
                    joined(written).await.map_err(self.landing.local())?;
                    *done += length;
                }
                return Err(error.into());
            }
        }
    }

    /// How many bytes of the answer come before the one that was asked for; checks that it is the right object's.
    fn starts_at(&self, url: &str, answer: &Response, wanted: u64) -> Result<u64, Detour<U::Error>> {
        let told = |length: Option<u64>| match length {
            Some(length) if length != self.stored_bytes => Err(Detour::OtherLength(length)),
            _ => Ok(()),
        };
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            told(answer.content_length())?;
            let whole = self.landing.missing().len() <= 1 || !self.ranges;
            // Bytes that are skipped are no problem for one who fetches the whole object anyway.
            return if whole { Ok(wanted) } else { Err(Detour::NoRanges) };
        }
        let range = answer.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
        let parsed = range.strip_prefix("bytes ").and_then(|range| {
            let (span, length) = range.split_once('/')?;
            Some((span.split('-').next()?.parse::<u64>().ok()?, length.parse::<u64>().ok()))
        });
        match parsed {
            Some((start, length)) if start <= wanted => told(length).map(|()| wanted - start),
            _ => Err(Detour::Failed(TransferError::Status {
                url: bare(url),
                status: answer.status().as_u16(),
                why: format!("asked for bytes from {wanted} on, got Content-Range `{range}`"),
            })),
        }
    }
}

fn stalled(url: &str, after: Duration) -> TransferError {
    TransferError::Stalled { url: bare(url), after }
}

fn network(url: &str, error: reqwest::Error) -> TransferError {
    TransferError::Network { url: bare(url), source: error.without_url() }
}

/// How long an object is, when more than that was asked for: `Content-Range: bytes */LENGTH`, RFC 9110, 15.5.17.
fn length_behind_its_end(answer: &Response) -> Option<u64> {
    answer.headers().get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes */")?.parse().ok()
}

/// The body of an answer, as far as it is wanted.
struct Body<'a> {
    url: &'a str,
    /// Told what comes.
    total: &'a Meter,
    answer: Response,
    limit: Duration,
    /// Ends when the connection counts as dead.
    window: Pin<Box<Sleep>>,
    /// Bytes that came in this window: enough of them begin another.
    lively: u64,
    /// Bytes that come first and are not wanted.
    skip: u64,
    /// Bytes that are wanted.
    left: u64,
}

impl Body<'_> {
    /// The next bytes, none when all have come; and why there will be no more.
    async fn gather(&mut self) -> (Vec<Bytes>, Result<(), TransferError>) {
        let (mut gathered, mut length) = (Vec::new(), 0);
        // The disk may have been waited for, which is not the connection's fault.
        self.begin_window();
        while self.left > 0 && length < BUFFER_BYTES {
            let mut bytes = match self.next().await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => {
                    let (got, expected) = (length as u64, self.left + length as u64);
                    return (gathered, Err(TransferError::Truncated { url: bare(self.url), got, expected }));
                }
                Err(error) => return (gathered, Err(error)),
            };
            let skipped = usize::try_from(self.skip).map_or(bytes.len(), |skip| skip.min(bytes.len()));
            bytes.advance(skipped);
            self.skip -= skipped as u64;
            bytes.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left -= bytes.len() as u64;
            length += bytes.len();
            self.total.add(bytes.len() as u64);
            if !bytes.is_empty() {
                gathered.push(bytes);
            }
        }
        (gathered, Ok(()))
    }

    fn begin_window(&mut self) {
        self.lively = 0;
        self.window.set(tokio::time::sleep(self.limit));
    }

    async fn next(&mut self) -> Result<Option<Bytes>, TransferError> {
        tokio::select! {
            biased;
            next = self.answer.chunk() => {
                let next = next.map_err(|error| network(self.url, error))?;
                self.lively += next.as_ref().map_or(0, |bytes| bytes.len() as u64);
                if self.lively >= LIVELY_BYTES {
                    self.begin_window();
                }
                Ok(next)
            }
            () = &mut self.window => Err(stalled(self.url, self.limit)),
        }
    }
}
