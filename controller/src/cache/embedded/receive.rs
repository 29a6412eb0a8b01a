//! `PUT`: one part of an upload, by signed URL only.

use super::Embedded;
use super::access::{Refusal, Target};
use super::signing::{PartRight, Right};
use super::uploads::PartWriter;
use crate::cache::CacheError;
use crate::cache::blocking::blocking_join;
use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt as _;
use md5::{Digest as _, Md5};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// A sender that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What is gathered before a thread is asked to write it: a slow sender holds no thread while it sends.
const GATHER_BYTES: usize = 256 * 1024;
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
    BadDigest,
    Disk(io::Error),
}

/// A part as the request announces it.
struct Announced {
    md5: [u8; 16],
    length: u64,
}

/// A part on its way to the disk.
struct Sink {
    writer: PartWriter,
    file: File,
    announced: Announced,
    hasher: Md5,
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
        Ok(md5) => Ok((StatusCode::OK, [(header::ETAG, format!("\"{}\"", hex::encode(md5)))]).into_response()),
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
    let (Some(number), Some(length)) = (target.query.part, target.query.length) else { return Err(unsigned()) };
    cache.allow_signed(target, Right::Part(PartRight { upload_id, number, length }))?;
    Ok(PartRight { upload_id, number, length })
}

async fn take(
    cache: &Embedded,
    right: &PartRight<'_>,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<[u8; 16], Refusal> {
    let length = right.length;
    let announced = announced(headers, length)?;
    let writer = cache.uploads.write_part(right.upload_id, right.number).await?;
    receive(writer, announced, body).await.map_err(|fault| refusal(fault, length))
}

/// Takes the body until it ends, breaks or falls silent: the writing sees how much came. The next chunks come in while
/// the ones before are written.
async fn receive(writer: PartWriter, announced: Announced, body: &mut BodyDataStream) -> Result<[u8; 16], Fault> {
    let superseded = writer.superseded.clone();
    let mut writing = write(move || Sink::open(writer, announced)).await;
    loop {
        let gathered = superseded.run_until_cancelled(gather(body)).await;
        // Waited for in any case: whoever takes over writes into the same place.
        let sink = blocking_join(writing).await?;
        let chunks = gathered.ok_or(Fault::Superseded)?;
        if chunks.is_empty() {
            return blocking_join(write(move || sink.finish()).await).await;
        }
        writing = write(move || sink.write(&chunks)).await;
    }
}

/// The next chunks; none at the end.
async fn gather(body: &mut BodyDataStream) -> Vec<Bytes> {
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while bytes < GATHER_BYTES
        && let Ok(Some(Ok(chunk))) = tokio::time::timeout(SILENCE_MAX, body.next()).await
    {
        bytes += chunk.len();
        chunks.push(chunk);
    }
    chunks
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
        Fault::BadDigest => {
            Refusal::new(StatusCode::BAD_REQUEST, "BadDigest: the bytes do not have the announced Content-MD5")
        }
        Fault::Disk(error) => CacheError::local("write", "a part".as_ref())(error).into(),
    }
}

fn too_long(length: u64) -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("EntityTooLarge: this part has {length} bytes"))
}

/// What the headers say about the part, if it fits the URL.
fn announced(headers: &HeaderMap, length: u64) -> Result<Announced, Refusal> {
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, text);
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("content-length").map(str::parse::<u64>) {
        Some(Ok(announced)) if announced > length => return Err(too_long(length)),
        Some(Ok(announced)) if announced < length => return Err(refusal(Fault::Short(announced), length)),
        Some(Err(_)) => return Err(bad("InvalidRequest: Content-Length is not a number")),
        // Without one the length is counted.
        Some(Ok(_)) | None => {}
    }
    let md5 = text("content-md5").ok_or_else(|| bad("InvalidDigest: a part needs Content-MD5"))?;
    let md5 = STANDARD.decode(md5).ok().and_then(|md5| <[u8; 16]>::try_from(md5).ok());
    let md5 = md5.ok_or_else(|| bad("InvalidDigest: Content-MD5 is not 16 bytes in base64"))?;
    Ok(Announced { md5, length })
}

impl Sink {
    fn open(writer: PartWriter, announced: Announced) -> Result<Self, Fault> {
        if writer.superseded.is_cancelled() {
            return Err(Fault::Superseded);
        }
        let file = writer.open().map_err(Fault::Disk)?;
        Ok(Self { writer, file, announced, hasher: Md5::new(), done: 0 })
    }

    fn write(mut self, chunks: &[Bytes]) -> Result<Self, Fault> {
        for bytes in chunks {
            if self.writer.superseded.is_cancelled() {
                return Err(Fault::Superseded);
            }
            if self.done + bytes.len() as u64 > self.announced.length {
                return Err(Fault::TooLong);
            }
            self.file.write_all_at(bytes, self.writer.offset + self.done).map_err(Fault::Disk)?;
            self.hasher.update(bytes);
            self.done += bytes.len() as u64;
        }
        Ok(self)
    }

    fn finish(self) -> Result<[u8; 16], Fault> {
        if self.writer.superseded.is_cancelled() {
            return Err(Fault::Superseded);
        }
        if self.done != self.announced.length {
            return Err(Fault::Short(self.done));
        }
        let md5 = self.hasher.finalize().into();
        if md5 != self.announced.md5 {
            return Err(Fault::BadDigest);
        }
        self.writer.done(&md5).map_err(Fault::Disk)?;
        Ok(md5)
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
