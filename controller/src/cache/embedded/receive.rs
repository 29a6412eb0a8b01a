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
use std::io;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;
use tokio::sync::mpsc;

/// A sender that is silent for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Chunks between the network and the disk.
const QUEUE_CHUNKS: usize = 16;
/// What is read and thrown away after a refusal, so that the sender gets to see it instead of a broken connection.
const DRAIN_MAX_BYTES: usize = 64 * 1024 * 1024;

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

pub(super) async fn answer(
    cache: &Embedded,
    target: &Target,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let mut body = body.into_data_stream();
    let taken = take(cache, target, headers, &mut body).await;
    match taken {
        Ok(md5) => Ok((StatusCode::OK, [(header::ETAG, format!("\"{}\"", hex::encode(md5)))]).into_response()),
        Err(refusal) => {
            drain(&mut body).await;
            Err(refusal)
        }
    }
}

async fn take(
    cache: &Embedded,
    target: &Target,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<[u8; 16], Refusal> {
    let unsigned = || Refusal::new(StatusCode::FORBIDDEN, "AccessDenied: writing needs a signed URL");
    let path = target.path.as_ref().ok_or_else(unsigned)?;
    let upload_id = path.as_str().strip_prefix("uploads/").ok_or_else(unsigned)?;
    let (Some(number), Some(length)) = (target.query.part, target.query.length) else { return Err(unsigned()) };
    cache.allow_signed(target, Right::Part(PartRight { upload_id, number, length }))?;

    let announced = announced(headers, length)?;
    let writer = cache.uploads.write_part(upload_id, number).await?;
    let superseded = writer.superseded.clone();
    let (chunks, queue) = mpsc::channel(QUEUE_CHUNKS);
    let writing = tokio::task::spawn_blocking(move || write(&writer, &announced, queue));
    let feeding = feed(body, chunks);
    tokio::select! {
        biased;
        () = superseded.cancelled() => {}
        () = feeding => {}
    }
    let written = blocking_join(writing).await;
    written.map_err(|fault| refusal(fault, length))
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

/// Hands the body on until it ends, breaks or falls silent: the writer sees how much came.
async fn feed(body: &mut BodyDataStream, chunks: mpsc::Sender<Bytes>) {
    while let Ok(Some(Ok(bytes))) = tokio::time::timeout(SILENCE_MAX, body.next()).await {
        if chunks.send(bytes).await.is_err() {
            return;
        }
    }
}

fn write(writer: &PartWriter, announced: &Announced, mut queue: mpsc::Receiver<Bytes>) -> Result<[u8; 16], Fault> {
    if writer.superseded.is_cancelled() {
        return Err(Fault::Superseded);
    }
    let file = writer.open().map_err(Fault::Disk)?;
    let mut hasher = Md5::new();
    let mut done = 0;
    while let Some(bytes) = queue.blocking_recv() {
        if writer.superseded.is_cancelled() {
            return Err(Fault::Superseded);
        }
        if done + bytes.len() as u64 > announced.length {
            return Err(Fault::TooLong);
        }
        file.write_all_at(&bytes, writer.offset + done).map_err(Fault::Disk)?;
        hasher.update(&bytes);
        done += bytes.len() as u64;
    }
    if writer.superseded.is_cancelled() {
        return Err(Fault::Superseded);
    }
    if done != announced.length {
        return Err(Fault::Short(done));
    }
    let md5 = hasher.finalize().into();
    if md5 != announced.md5 {
        return Err(Fault::BadDigest);
    }
    writer.done(&md5).map_err(Fault::Disk)?;
    Ok(md5)
}

async fn drain(body: &mut BodyDataStream) {
    let mut drained = 0;
    while drained < DRAIN_MAX_BYTES
        && let Ok(Some(Ok(bytes))) = tokio::time::timeout(SILENCE_MAX, body.next()).await
    {
        drained += bytes.len();
    }
}
