//! The log's way to the controller: in order, each byte until it is durable there, over as many connections as it takes.

use super::Written;
use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::uplink::{DOUBTS_MAX, Standing, Uplink, is_passing, is_stale, standing};
use railyard_common::id::LeaseId;
use railyard_proto::v1;
use railyard_service::convert::ToProto as _;
use railyard_service::rpc_error;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// Bytes on their way that are not acknowledged yet: enough to keep a link busy, few enough to send again.
const IN_FLIGHT_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// Batches between this task and the connection.
const QUEUE_BATCHES: usize = 4;

/// How long the controller may take to acknowledge a batch before the connection counts as dead.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);

/// How shipping ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shipped {
    /// Everything is durable; so many bytes.
    Whole(u64),
    /// The controller takes no more than so many bytes, whatever the reason: the job's result is worth more than its log.
    Full(u64),
    /// The lease is not ours any more.
    Stale,
}

/// How one connection ended.
enum Ended {
    Whole,
    Full,
    Stale,
    /// Its bytes do not fit what the controller has: begin again from the start, it keeps what it knows.
    Gap,
    /// Refused with an answer, not by an outage.
    Refused(Box<Status>),
    Broken(String),
}

/// Sends the file `path` as it grows, in batches of at most `batch_bytes`, until it is closed and all is durable. A batch
/// that is not full waits `flush` for more.
///
/// # Errors
/// [`DiskError`] if the file cannot be read.
pub async fn ship(
    uplink: &Uplink,
    lease: LeaseId,
    path: &Path,
    mut written: watch::Receiver<Written>,
    batch_bytes: usize,
    flush: Duration,
) -> Result<Shipped, DiskError> {
    let file = Arc::new(File::open(path).map_err(DiskError::at("read", path))?);
    let mut durable = 0;
    let (mut tries, mut doubts) = (0, 0);
    loop {
        // No connection before there is something to send.
        if wait_for_more(&mut written, durable).await.is_none() {
            return Ok(Shipped::Whole(durable));
        }
        let before = durable;
        let mut batches = Batches { lease, file: file.clone(), path, sent: durable, batch_bytes, flush };
        let ended = connection(uplink, &mut batches, &mut written, &mut durable).await?;
        if durable > before {
            (tries, doubts) = (0, 0);
        }
        tries += 1;
        match ended {
            Ended::Whole => return Ok(Shipped::Whole(durable)),
            Ended::Full => return Ok(Shipped::Full(durable)),
            Ended::Stale => return Ok(Shipped::Stale),
            Ended::Gap => {
                doubts += 1;
                durable = 0;
            }
            Ended::Refused(status) => {
                tracing::warn!(%lease, durable, %status, "the controller refuses log bytes");
                doubts = if is_passing(&status) { doubts + 1 } else { DOUBTS_MAX };
            }
            Ended::Broken(why) => {
                tracing::debug!(%lease, durable, why, "the log's connection broke; trying again");
                doubts = 0;
            }
        }
        if doubts >= DOUBTS_MAX {
            tracing::error!(%lease, durable, "the rest of a log is given up: the controller does not take it");
            return Ok(Shipped::Full(durable));
        }
        tokio::time::sleep(uplink.pause(tries)).await;
    }
}

/// Waits until there is more than `have` bytes; `None` if there never will be.
async fn wait_for_more(written: &mut watch::Receiver<Written>, have: u64) -> Option<Written> {
    // The writer is gone without closing only when the attempt was dropped; then nothing will follow either.
    let now = *written.wait_for(|now| now.bytes > have || now.closed).await.ok()?;
    (now.bytes > have).then_some(now)
}

/// One stream, until it breaks or everything is through.
async fn connection(
    uplink: &Uplink,
    batches: &mut Batches<'_>,
    written: &mut watch::Receiver<Written>,
    durable: &mut u64,
) -> Result<Ended, DiskError> {
    let (queue, receiver) = mpsc::channel(QUEUE_BATCHES);
    // The controller answers the headers when it likes; the first batch must not wait for that.
    let mut acks = Acks::Opening(Box::pin(uplink.append_log(ReceiverStream::new(receiver))));
    loop {
        let now = *written.borrow_and_update();
        if now.closed && *durable >= now.bytes {
            return Ok(Ended::Whole);
        }
        let may_send = batches.sent < now.bytes && batches.sent - *durable < IN_FLIGHT_MAX_BYTES;
        tokio::select! {
            biased;
            ack = acks.next() => match ack {
                Ok(offset) => {
                    // More than was sent is there if an earlier process has sent it. It was the same.
                    *durable = (*durable).max(offset.min(now.bytes));
                    batches.sent = batches.sent.max(*durable);
                }
                Err(status) => return Ok(ended(&status)),
            },
            permit = queue.reserve(), if may_send => {
                let Ok(permit) = permit else { return Ok(Ended::Broken("the stream was closed".to_owned())) };
                permit.send(batches.next(written).await?);
            }
            // Only when there is nothing to send: a log that grows must not put off the timeout below.
            _ = written.changed(), if !now.closed && batches.sent >= now.bytes => {}
            () = tokio::time::sleep(ACK_TIMEOUT), if batches.sent > *durable => {
                return Ok(Ended::Broken("nothing was acknowledged for too long".to_owned()));
            }
        }
    }
}

fn ended(status: &Status) -> Ended {
    if is_stale(status) {
        return Ended::Stale;
    }
    match rpc_error::reason_of(status).as_deref() {
        Some(rpc_error::LOG_FULL) => Ended::Full,
        Some(rpc_error::LOG_GAP) => Ended::Gap,
        _ => match standing(status) {
            Standing::Passing => Ended::Broken(status.to_string()),
            Standing::Doubtful | Standing::Final => Ended::Refused(Box::new(status.clone())),
        },
    }
}

/// The acks of a stream that may not have been answered yet.
enum Acks<F> {
    Opening(F),
    Open(Box<Streaming<v1::LogAck>>),
}

impl<F: Future<Output = Result<Streaming<v1::LogAck>, Status>> + Unpin> Acks<F> {
    /// The next durable offset. Safe to drop half-way.
    async fn next(&mut self) -> Result<u64, Status> {
        loop {
            match self {
                Self::Opening(opening) => {
                    let stream = opening.await?;
                    *self = Self::Open(Box::new(stream));
                }
                Self::Open(stream) => {
                    let ack = stream.message().await?;
                    return ack.map(|ack| ack.durable_offset).ok_or_else(|| Status::unavailable("the stream ended"));
                }
            }
        }
    }
}

/// Reads the file batch by batch.
struct Batches<'a> {
    lease: LeaseId,
    file: Arc<File>,
    path: &'a Path,
    /// Offset of the next batch.
    sent: u64,
    batch_bytes: usize,
    flush: Duration,
}

impl Batches<'_> {
    async fn next(&mut self, written: &mut watch::Receiver<Written>) -> Result<v1::LogBatch, DiskError> {
        let full = self.sent + self.batch_bytes as u64;
        // What follows at once goes along; nobody reads a line that fast. An error means the end, as does a timeout.
        let _ = tokio::time::timeout(self.flush, written.wait_for(|now| now.closed || now.bytes >= full)).await;
        let available = written.borrow_and_update().bytes - self.sent;
        let length = usize::try_from(available).unwrap_or(usize::MAX).min(self.batch_bytes);
        let (file, sent) = (self.file.clone(), self.sent);
        let data = blocking(move || {
            let mut data = vec![0; length];
            file.read_exact_at(&mut data, sent).map(|()| data)
        });
        let data = data.await.map_err(DiskError::at("read", self.path))?;
        let batch = v1::LogBatch { lease: Some(self.lease.to_proto()), offset: self.sent, data: data.into() };
        self.sent += length as u64;
        Ok(batch)
    }
}
