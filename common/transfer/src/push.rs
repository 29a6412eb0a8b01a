//! A file into the cache, in parts to signed URLs.

use crate::crc32s::Crc32s;
use crate::error::{MoveError, TransferError, bare, refused};
use crate::hash::blocking;
use crate::meter::{Meter, telling, while_lively, while_progressing};
use crate::part::{Part, is_contradicted};
use crate::part_log::PartLog;
use crate::queue::Queue;
use crate::tries::{LastError, Tries};
use crate::{Progress, Transfer};
use futures_util::future::try_join_all;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use railyard_common::blob::{Blob, PartChecksum, PartSum, PartToSign};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Mutex;

/// URLs that are asked for at a time: enough that asking does not matter, and few enough that they are used while they are good.
const URLS_AT_A_TIME: usize = 32;

/// URLs of one part that may be expired when they are used: more of them, and the clocks of controller and cache disagree.
const RENEWALS_MAX: u32 = 3;

/// The stored bytes of a blob (compressed already if the blob is).
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// The file that holds them, and nothing else.
    pub file: &'a Path,
    /// What whoever has hashed it knows of it: its parts need not be read before they are sent.
    pub crc32s: Option<&'a Crc32s>,
}

impl<'a, P: AsRef<Path> + ?Sized> From<&'a P> for Stored<'a> {
    fn from(file: &'a P) -> Self {
        Self { file: file.as_ref(), crc32s: None }
    }
}

/// The right to send one blob: what the controller answered to `PrepareUpload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The upload that the parts belong to.
    pub upload_id: String,
    /// Length of every part but the last.
    pub part_bytes: u64,
    /// How the cache knows that a part is whole.
    pub checksum: PartChecksum,
}

/// Where signed URLs come from.
pub trait PartUrls: Sync {
    /// Why there are none.
    type Error: Send;

    /// Where these parts go, in their order. A URL is good for bytes with the part's checksum only.
    fn sign(&self, parts: Vec<PartToSign>) -> impl Future<Output = Result<Vec<String>, Self::Error>> + Send;
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

impl Transfer {
    /// Sends the stored bytes of `blob` as `ticket` says; parts that `log` knows are in the cache already.
    ///
    /// Parts go in parallel, each with its checksum, and are sent again on their own for as long as anything moves.
    /// `progress` is told stored bytes, those of earlier included.
    ///
    /// # Errors
    /// [`MoveError`]; the first part that fails for good ends the push.
    pub async fn push<'a, U: PartUrls>(
        &self,
        stored: impl Into<Stored<'a>>,
        blob: &Blob,
        ticket: &Ticket,
        urls: &U,
        log: &PartLog,
        progress: Progress<'_>,
    ) -> Result<Finished, MoveError<U::Error>> {
        let stored = stored.into();
        let opened = open_checked(stored.file, blob.stored_bytes).await?;
        let parts = parts(&opened, stored, blob.stored_bytes, ticket)?;
        let missing: Vec<Part<'_>> = parts.iter().filter(|part| log.etag(part.number).is_none()).cloned().collect();
        let total = Meter::default();
        total.add(blob.stored_bytes - missing.iter().map(|part| part.length).sum::<u64>());
        let last = LastError::default();
        let way = Way {
            transfer: self,
            checksum: ticket.checksum,
            urls: Book { urls, parts: &parts, unused: Mutex::default() },
            log,
            total: total.clone(),
            last: &last,
        };
        let queue = Queue::new(missing);
        let streams: Vec<_> = (0..self.settings.parallel_streams.max(1)).map(|_| way.send_all(&queue)).collect();
        let sending = try_join_all(streams);
        let deadline = self.settings.progress_deadline;
        let sending = while_progressing(sending, &total, deadline);
        let sent = telling(sending, &total, progress).await;
        let given_up = || last.take().unwrap_or(TransferError::Stalled { url: String::new(), after: deadline });
        let sent: BTreeMap<u32, String> = sent.ok_or_else(given_up)??.into_iter().flatten().collect();
        let etag = |part: &Part<'_>| sent.get(&part.number).map(String::as_str).or(log.etag(part.number));
        let etags = parts.iter().filter_map(etag).map(str::to_owned).collect();
        Ok(Finished { blob: *blob, upload_id: ticket.upload_id.clone(), etags })
    }
}

/// What all parts of a push share.
struct Way<'a, U> {
    transfer: &'a Transfer,
    checksum: PartChecksum,
    urls: Book<'a, U>,
    log: &'a PartLog,
    total: Meter,
    last: &'a LastError,
}

impl<U: PartUrls> Way<'_, U> {
    /// One stream: sends one part after the other until nobody has any left; their numbers and ETags.
    async fn send_all(&self, queue: &Queue<Part<'_>>) -> Result<Vec<(u32, String)>, MoveError<U::Error>> {
        let mut sent = Vec::new();
        while let Some(part) = queue.next() {
            sent.push((part.number, self.send(&part).await?));
        }
        Ok(sent)
    }

    /// Sends a part until the cache has it; its ETag.
    async fn send(&self, part: &Part<'_>) -> Result<String, MoveError<U::Error>> {
        let mut tries = Tries::new(&self.transfer.settings, self.last);
        let mut renewals = 0;
        let mut memory = self.transfer.stream().await;
        let mut sum = match part.known {
            Some(sum) => sum,
            None => part.sum(self.checksum).await?,
        };
        let mut url = self.urls.of(part, sum).await?;
        loop {
            let sent = Meter::default();
            let error = match self.try_send(part, sum, &url, &sent).await {
                Ok(etag) => {
                    self.log.note(part.number, &etag);
                    return Ok(etag);
                }
                Err(error) => error,
            };
            self.total.take_back(sent.read());
            match error {
                TransferError::Expired { .. } if renewals < RENEWALS_MAX => {
                    renewals += 1;
                    url = self.urls.of(part, sum).await?;
                }
                error => {
                    // Others may move meanwhile.
                    drop(memory);
                    tries.pause(error).await?;
                    memory = self.transfer.stream().await;
                    // Should the memory or the disk have lied once, it need not lie twice.
                    let again = part.sum(self.checksum).await?;
                    if again != sum {
                        sum = again;
                        url = self.urls.of(part, sum).await?;
                    }
                }
            }
        }
    }

    async fn try_send(&self, part: &Part<'_>, sum: PartSum, to: &str, sent: &Meter) -> Result<String, TransferError> {
        let url = || bare(to);
        let limit = self.transfer.settings.stall_timeout;
        let (name, value) = sum.header();
        let body = reqwest::Body::wrap_stream(part.body(sent.clone(), self.total.clone()));
        let request = self
            .transfer
            .http
            .put(to)
            .header(CONTENT_LENGTH, part.length)
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(name, value)
            .body(body);
        let answer = while_lively(request.send(), sent, limit)
            .await
            .ok_or_else(|| TransferError::Stalled { url: url(), after: limit })?
            .map_err(|error| TransferError::Network { url: url(), source: error.without_url() })?;
        if !answer.status().is_success() {
            return Err(tokio::time::timeout(limit, refused(url(), answer))
                .await
                .unwrap_or(TransferError::Stalled { url: url(), after: limit }));
        }
        let headers = answer.headers().clone();
        // Whatever it says: read to its end, so that the connection serves the next part.
        let _ = tokio::time::timeout(limit, answer.bytes()).await;
        let etag = headers.get(ETAG).and_then(|etag| etag.to_str().ok()).ok_or_else(|| TransferError::Status {
            url: url(),
            status: 200,
            why: "the answer has no ETag".to_owned(),
        })?;
        if is_contradicted(sum, etag, &headers) {
            let why = format!("the cache stored a part with ETag {etag}, which is not its MD5");
            return Err(TransferError::Damaged { url: url(), why });
        }
        Ok(etag.to_owned())
    }
}

/// URLs, asked for as they are needed.
struct Book<'a, U> {
    urls: &'a U,
    /// All of them, in order.
    parts: &'a [Part<'a>],
    /// Those that nobody has taken yet.
    unused: Mutex<BTreeMap<u32, String>>,
}

impl<U: PartUrls> Book<'_, U> {
    /// A URL for a part with this checksum: another one each time it is asked for.
    async fn of(&self, part: &Part<'_>, sum: PartSum) -> Result<String, MoveError<U::Error>> {
        if part.known != Some(sum) {
            let urls = self.sign(vec![PartToSign { number: part.number, sum }]).await?;
            return urls.into_values().next().ok_or_else(|| none_for(part.number));
        }
        // Those of the next parts come along.
        let mut unused = self.unused.lock().await;
        if let Some(url) = unused.remove(&part.number) {
            return Ok(url);
        }
        let from_here = self.parts.iter().skip_while(|next| next.number < part.number).take(URLS_AT_A_TIME);
        let wanted = from_here.filter_map(|next| Some(PartToSign { number: next.number, sum: next.known? }));
        unused.extend(self.sign(wanted.collect()).await?);
        unused.remove(&part.number).ok_or_else(|| none_for(part.number))
    }

    async fn sign(&self, wanted: Vec<PartToSign>) -> Result<BTreeMap<u32, String>, MoveError<U::Error>> {
        let urls = self.urls.sign(wanted.clone()).await.map_err(MoveError::Urls)?;
        Ok(wanted.iter().map(|part| part.number).zip(urls).collect())
    }
}

fn none_for<E>(number: u32) -> MoveError<E> {
    let why = format!("the controller gave no URL for part {number}");
    TransferError::BadTicket { why }.into()
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
    stored: Stored<'a>,
    stored_bytes: u64,
    ticket: &Ticket,
) -> Result<Vec<Part<'a>>, TransferError> {
    if stored_bytes == 0 {
        return Ok(Vec::new());
    }
    let count = stored_bytes.checked_div(ticket.part_bytes).and(Some(stored_bytes.div_ceil(ticket.part_bytes.max(1))));
    let Some(count) = count.and_then(|count| u32::try_from(count).ok()) else {
        let why = format!("{stored_bytes} bytes cannot go in parts of {}", ticket.part_bytes);
        return Err(TransferError::BadTicket { why });
    };
    let cut = |number: u32| {
        let offset = u64::from(number - 1) * ticket.part_bytes;
        let length = ticket.part_bytes.min(stored_bytes - offset);
        let crc32 = stored.crc32s.and_then(|crc32s| crc32s.of(offset, length));
        let known = crc32.filter(|_| ticket.checksum == PartChecksum::Crc32).map(PartSum::Crc32);
        Part { file: Arc::clone(file), path: stored.file, number, offset, length, crc32, known }
    };
    Ok((1..=count).map(cut).collect())
}
