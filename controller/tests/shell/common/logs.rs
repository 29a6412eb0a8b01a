//! Logs on their way in and out.

use super::people::Person;
use super::{Worker, soon};
use bytes::Bytes;
use railyard_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

/// A worker's open log stream.
pub struct LogStream {
    to: mpsc::Sender<v1::LogBatch>,
    from: Streaming<v1::LogAck>,
}

impl Worker {
    pub async fn log_stream(&self) -> LogStream {
        let (to, outbound) = mpsc::channel(16);
        let from = soon("the log stream", self.rpc.clone().append_log(ReceiverStream::new(outbound))).await;
        LogStream { to, from: from.unwrap().into_inner() }
    }

    /// Sends bytes that begin at `offset`; gives how many are durable.
    pub async fn log(&self, lease: v1::LeaseId, offset: u64, data: &[u8]) -> Result<u64, Status> {
        self.log_stream().await.append(lease, offset, data).await
    }
}

impl LogStream {
    pub async fn append(&mut self, lease: v1::LeaseId, offset: u64, data: &[u8]) -> Result<u64, Status> {
        self.send(lease, offset, data).await;
        self.ack().await
    }

    pub async fn send(&self, lease: v1::LeaseId, offset: u64, data: &[u8]) {
        let batch = v1::LogBatch { lease: Some(lease), offset, data: Bytes::copy_from_slice(data) };
        self.to.send(batch).await.expect("the log stream is open");
    }

    pub async fn ack(&mut self) -> Result<u64, Status> {
        let ack = soon("the ack of a log batch", self.from.message()).await?;
        Ok(ack.expect("the log stream is open").durable_offset)
    }
}

/// Somebody who reads a log: every chunk must continue where the last one ended.
pub struct Reader {
    chunks: Streaming<v1::LogChunk>,
    next: u64,
}

impl Person {
    pub async fn read_log(&self, build: &str, job: &str, offset: u64, follow: bool) -> Reader {
        self.try_read_log(build, job, 0, offset, follow).await.unwrap()
    }

    pub async fn try_read_log(
        &self,
        build: &str,
        job: &str,
        attempt: u32,
        offset: u64,
        follow: bool,
    ) -> Result<Reader, Status> {
        let request = v1::ReadLogRequest { build: build.to_owned(), job: job.to_owned(), attempt, offset, follow };
        let chunks = soon("the answer to a log reader", self.rpc.clone().read_log(request)).await?.into_inner();
        Ok(Reader { chunks, next: offset })
    }

    /// A log as it is now.
    pub async fn log(&self, build: &str, job: &str, offset: u64) -> Vec<u8> {
        self.read_log(build, job, offset, false).await.rest().await
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Reader {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        let chunk = soon("the next piece of a log", self.chunks.message()).await.unwrap()?;
        assert_eq!(chunk.offset, self.next, "a gap or a repetition");
        self.next += chunk.data.len() as u64;
        Some(chunk.data)
    }

    /// Reads until it has `length` bytes more.
    pub async fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            bytes.extend(self.next().await.expect("the log goes on"));
        }
        bytes
    }

    /// Everything to the end.
    pub async fn rest(mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.next().await {
            bytes.extend(chunk);
        }
        bytes
    }
}
