//! `PUT`: one part of an upload, by signed URL only.

use super::Embedded;
use super::access::{Refusal, Target};
use super::signing::{PartRight, Right};
use super::uploads::{PartWriter, Written, etag};
use crate::cache::CacheError;
use crate::cache::blocking::blocking_join;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use railyard_service::listener::TooSlow;
use railyard_transfer::write_sparse;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// A sender that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What is gathered before a thread is asked to write it: a slow sender holds no thread while it sends.
const GATHER_BYTES: usize = 512 * 1024;
/// Threads that write parts at the same time, of the 512 that everything which waits for a disk shares.
const WRITERS_MAX: usize = 32;
/// What is read and thrown away after a refusal, so that the sender gets to see it instead of a broken connection.
const DRAIN_MAX_BYTES: usize = 64 * 1024 * 1024;
/// How long that may take.
const DRAIN_MAX: Duration = Duration::from_secs(30);

static WRITERS: Semaphore = Semaphore::const_new(WRITERS_MAX);

/// Why a part was not taken.
#[derive(Debug)]
enum Fault {
    Superseded,
    TooLong,
    Short(u64),
    Slow,
    BadDigest,
    Disk(io::Error),
}

/// A part as the request announces it.
struct Announced {
    crc32: u32,
    length: u64,
}

/// A part on its way to the disk.
struct Sink {
    writer: PartWriter,
    file: File,
    announced: Announced,
    hasher: crc32fast::Hasher,
    done: u64,
}

pub(super) async fn answer(
    cache: &Embedded,
    target: &Target,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let mut body = body.into_data_stream();
    let taken = match right(cache, target) {
        Ok(right) => take(cache, &right, headers, &mut body).await,
        Err(refusal) if refusal.expired => Err(refusal),
        // Whoever never had a signature is not listened to any further.
        Err(refusal) => return Err(refusal),
    };
    match taken {
        Ok(crc32) => Ok((StatusCode::OK, [(header::ETAG, format!("\"{}\"", etag(crc32)))]).into_response()),
        Err(refusal) => {
            // The refusal stands, however the draining ends.
            let _ = tokio::time::timeout(DRAIN_MAX, drain(&mut body)).await;
            Err(refusal)
        }
    }
}

/// What the URL allows, if its signature is good.
fn right<'a>(cache: &Embedded, target: &'a Target) -> Result<PartRight<'a>, Refusal> {
    let unsigned = || Refusal::new(StatusCode::FORBIDDEN, "AccessDenied: writing needs a signed URL");
    let path = target.path.as_ref().ok_or_else(unsigned)?;
    let upload_id = path.as_str().strip_prefix("uploads/").ok_or_else(unsigned)?;
    let query = &target.query;
    let (Some(number), Some(length), Some(crc32)) = (query.part, query.length, query.crc32) else {
        return Err(unsigned());
    };
    let right = PartRight { upload_id, number, length, crc32 };
    cache.allow_signed(target, Right::Part(right))?;
    Ok(right)
}

async fn take(
    cache: &Embedded,
    right: &PartRight<'_>,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<u32, Refusal> {
    let length = right.length;
    let announced = announced(headers, right)?;
    let writer = cache.uploads.write_part(right.upload_id, right.number).await?;
    if let Some(lease) = writer.lease() {
        cache.allow_lease(lease).await?;
    }
    let crc32 = receive(writer, announced, body).await.map_err(|fault| refusal(fault, length))?;
    tracing::debug!(upload = right.upload_id, part = right.number, bytes = length, "a part has arrived");
    Ok(crc32)
}

/// Takes the body until it ends, breaks or falls silent: the writing sees how much came. The next chunks come in while
/// the ones before are written.
async fn receive(writer: PartWriter, announced: Announced, body: &mut BodyDataStream) -> Result<u32, Fault> {
    let (superseded, crc32) = (writer.superseded.clone(), announced.crc32);
    let mut writing = write(move || Sink::open(writer, announced)).await;
    loop {
        let gathered = superseded.run_until_cancelled(gather(body)).await;
        // Waited for in any case: whoever takes over writes into the same place.
        let sink = blocking_join(writing).await?;
        let chunks = gathered.ok_or(Fault::Superseded)??;
        if chunks.is_empty() {
            let written = Arc::new(blocking_join(write(move || sink.finish()).await).await?);
            // Nobody waits for these: the end of the upload does what they have not done.
            let flushed = Arc::clone(&written);
            tokio::task::spawn_blocking(move || flushed.flush());
            tokio::task::spawn_blocking(move || written.look_ahead());
            return Ok(crc32);
        }
        writing = write(move || sink.write(&chunks)).await;
    }
}

/// The next chunks; none at the end, which may have come too early.
async fn gather(body: &mut BodyDataStream) -> Result<Vec<Bytes>, Fault> {
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while bytes < GATHER_BYTES {
        match tokio::time::timeout(SILENCE_MAX, body.next()).await {
            Ok(Some(Ok(chunk))) => {
                bytes += chunk.len();
                chunks.push(chunk);
            }
            Ok(Some(Err(error))) if is_too_slow(&error) => return Err(Fault::Slow),
            Ok(Some(Err(_)) | None) => break,
            Err(_) => return Err(Fault::Slow),
        }
    }
    Ok(chunks)
}

/// Whether the listener has lost its patience with the sender.
fn is_too_slow(error: &axum::Error) -> bool {
    let mut error: Option<&dyn std::error::Error> = Some(error);
    std::iter::from_fn(|| {
        let this = error?;
        error = this.source();
        Some(this)
    })
    .any(<dyn std::error::Error>::is::<TooSlow>)
}

/// Starts a short piece of writing as soon as there is a thread for it.
async fn write<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    // Nobody closes the semaphore; without a permit there would merely be one thread more.
    let permit = WRITERS.acquire().await.ok();
    tokio::task::spawn_blocking(move || {
        let done = work();
        drop(permit);
        done
    })
}

fn refusal(fault: Fault, length: u64) -> Refusal {
    match fault {
        Fault::Superseded => Refusal::new(
            StatusCode::CONFLICT,
            "OperationAborted: the part is being sent again, or the upload completed",
        ),
        Fault::TooLong => too_long(length),
        Fault::Short(found) => {
            Refusal::new(StatusCode::BAD_REQUEST, format!("IncompleteBody: got {found} of {length} bytes"))
        }
        Fault::Slow => Refusal::new(StatusCode::REQUEST_TIMEOUT, "RequestTimeout: the bytes came too slowly"),
        Fault::BadDigest => {
            Refusal::new(StatusCode::BAD_REQUEST, "BadDigest: the bytes do not have the announced x-amz-checksum-crc32")
        }
        Fault::Disk(error) => CacheError::local("write", "a part".as_ref())(error).into(),
    }
}

fn too_long(length: u64) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("EntityTooLarge: this part has {length} bytes"))
}

/// What the headers say about the part, if it fits the URL.
fn announced(headers: &HeaderMap, right: &PartRight<'_>) -> Result<Announced, Refusal> {
    let length = right.length;
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, text);
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("content-length").map(str::parse::<u64>) {
        Some(Ok(announced)) if announced > length => return Err(too_long(length)),
        Some(Ok(announced)) if announced < length => return Err(refusal(Fault::Short(announced), length)),
        Some(Err(_)) => return Err(bad("InvalidRequest: Content-Length is not a number")),
        // Without one the length is counted.
        Some(Ok(_)) | None => {}
    }
    let crc32 = text("x-amz-checksum-crc32").ok_or_else(|| bad("InvalidDigest: a part needs x-amz-checksum-crc32"))?;
    let crc32 = STANDARD.decode(crc32).ok().and_then(|crc32| <[u8; 4]>::try_from(crc32).ok());
    let crc32 = crc32.ok_or_else(|| bad("InvalidDigest: x-amz-checksum-crc32 is not 4 bytes in base64"))?;
    match u32::from_be_bytes(crc32) {
        crc32 if crc32 == right.crc32 => Ok(Announced { crc32, length }),
        _ => Err(bad("InvalidDigest: this URL is good for bytes with another x-amz-checksum-crc32 only")),
    }
}

/// Whether the headers announce a thousand bytes whose checksum is 0.
pub(super) fn is_announced(headers: &HeaderMap) -> bool {
    announced(headers, &PartRight { upload_id: "", number: 1, length: 1_000, crc32: 0 }).is_ok()
}

impl Sink {
    fn open(writer: PartWriter, announced: Announced) -> Result<Self, Fault> {
        if writer.superseded.is_cancelled() {
            return Err(Fault::Superseded);
        }
        let file = writer.open().map_err(Fault::Disk)?;
        Ok(Self { writer, file, announced, hasher: crc32fast::Hasher::new(), done: 0 })
    }

    fn write(mut self, chunks: &[Bytes]) -> Result<Self, Fault> {
        // A chunk is hashed and written while it is in the processor's cache: that saves more than fewer calls do.
        let turn = self.writer.turn();
        for bytes in chunks {
            if self.writer.superseded.is_cancelled() {
                return Err(Fault::Superseded);
            }
            if self.done + bytes.len() as u64 > self.announced.length {
                return Err(Fault::TooLong);
            }
            let offset = self.writer.offset + self.done;
            self.hasher.update(bytes);
            let written = match self.writer.fresh {
                true => write_sparse(&self.file, bytes, offset),
                false => self.file.write_all_at(bytes, offset),
            };
            written.map_err(Fault::Disk)?;
            self.done += bytes.len() as u64;
        }
        drop(turn);
        Ok(self)
    }

    fn finish(self) -> Result<Written, Fault> {
        if self.writer.superseded.is_cancelled() {
            return Err(Fault::Superseded);
        }
        if self.done != self.announced.length {
            return Err(Fault::Short(self.done));
        }
        let crc32 = self.hasher.finalize();
        if crc32 != self.announced.crc32 {
            return Err(Fault::BadDigest);
        }
        self.writer.done(crc32).map_err(Fault::Disk)
    }
}

async fn drain(body: &mut BodyDataStream) {
    let mut drained = 0;
    while drained < DRAIN_MAX_BYTES
        && let Ok(Some(Ok(bytes))) = tokio::time::timeout(SILENCE_MAX, body.next()).await
    {
        drained += bytes.len();
    }
}
