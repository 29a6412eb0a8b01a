//! Calls to the controller that act for a lease. Each is tried until it is answered: an outage is no reason to lose work. Only a cache
//! that has no room for an upload is waited for no longer than bytes are that do not move.

use futures_util::{Stream, poll};
use railyard_common::backoff::Backoff;
use railyard_common::blob::{Blob, PartChecksum, PartToSign};
use railyard_common::id::{LeaseId, SecretName};
use railyard_common::secret::SecretValue;
use railyard_proto::v1;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_service::channel::ChannelError;
use railyard_service::convert::{BadMessage, FromProto as _, ToProto as _, all, parsed, required};
use railyard_service::{MESSAGE_MAX_BYTES, rpc_error};
use railyard_transfer::{Finished, Ticket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, Streaming};

/// The waits between tries: soon after a hiccup, and not so long that a controller that is back is not noticed.
pub const RETRY: Backoff = Backoff { base_millis: 100, max_millis: 5_000 };

/// How long the controller may take for an answer. A report may have it complete many uploads.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// Blobs in one request: keeps a request with its signed URLs well below the message limit.
const BLOBS_PER_CALL: usize = 200;

/// Doubtful refusals in a row that are taken for final: about five minutes of them.
pub const DOUBTS_MAX: u32 = 64;

/// The controller refused for good.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// The lease is not ours any more.
    #[error("the lease is over")]
    Stale,
    /// Trying again would not help.
    #[error("the controller refused {call}: {}", status.message())]
    Refused {
        /// Which call.
        call: &'static str,
        /// Its answer.
        status: Box<Status>,
    },
    /// It answered something else than it promises.
    #[error("the controller's answer to {call} cannot be used")]
    Answer {
        /// Which call.
        call: &'static str,
        /// What is wrong with it.
        source: BadMessage,
    },
}

/// What to do with a blob that the cache should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Nothing: it is there, in this form.
    Present(Blob),
    /// Send it.
    Send(Ticket),
}

/// The controller, for one worker. Cheap to clone.
#[derive(Clone)]
pub struct Uplink {
    dial: Dial,
    channel: Arc<Mutex<Channel>>,
    jitter: Jitter,
    /// How long the cache may have no room for an upload.
    full_limit: Duration,
}

/// Makes a new channel to the controller.
type Dial = Arc<dyn Fn() -> Result<Channel, ChannelError> + Send + Sync>;

/// Random numbers that spread a crowd of workers: none of them need be hard to guess. Clones share one sequence.
#[derive(Clone, Debug)]
pub struct Jitter(Arc<AtomicU64>);

impl Jitter {
    /// Another sequence each time. Without entropy workers only crowd.
    pub fn random() -> Self {
        let mut bytes = [0; 8];
        Self::seeded(getrandom::fill(&mut bytes).map_or(0, |()| u64::from_le_bytes(bytes)))
    }

    /// The same sequence for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed)))
    }

    /// How long to wait before try `n`.
    pub fn pause(&self, n: u32) -> Duration {
        // SplitMix64: steps of an odd constant, mixed.
        let mut x = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_millis(RETRY.jittered_millis(n, x ^ (x >> 31)))
    }
}

impl Uplink {
    /// Calls over a channel that `dial` makes. For `full_limit` the cache may refuse to begin an upload (its disk is full, its store
    /// does not answer).
    ///
    /// # Errors
    /// As `dial`'s.
    pub fn new(
        dial: impl Fn() -> Result<Channel, ChannelError> + Send + Sync + 'static,
        jitter: Jitter,
        full_limit: Duration,
    ) -> Result<Self, ChannelError> {
        let channel = Arc::new(Mutex::new(dial()?));
        Ok(Self { dial: Arc::new(dial), channel, jitter, full_limit })
    }

    /// The connection seems dead: calls from now on go over a new one. What is open on the old one goes on or fails there:
    /// its keepalive sees to that, but takes longer than a short lease lives.
    pub fn renew(&self) {
        match (self.dial)() {
            Ok(fresh) => *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = fresh,
            Err(error) => tracing::warn!(%error, "no other connection can be set up; keeping the one that seems dead"),
        }
    }

    /// How long to wait before try `n`.
    pub fn pause(&self, n: u32) -> Duration {
        self.jitter.pause(n)
    }

    /// The client, for the streams.
    pub fn client(&self) -> WorkerServiceClient<Channel> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner).clone();
        WorkerServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX_BYTES)
            .max_encoding_message_size(MESSAGE_MAX_BYTES)
    }

    /// Asks which blobs the cache lacks. One answer for each blob, in order.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub async fn prepare_upload(&self, lease: LeaseId, blobs: &[Blob]) -> Result<Vec<Grant>, UplinkError> {
        self.ask_for_upload(lease, blobs, &[], false).await
    }

    /// The same when the store does not know some of the uploads any more: others are begun in their place.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub async fn prepare_upload_but(
        &self,
        lease: LeaseId,
        blobs: &[Blob],
        gone_upload_ids: &[String],
    ) -> Result<Vec<Grant>, UplinkError> {
        self.ask_for_upload(lease, blobs, gone_upload_ids, false).await
    }

    /// Those of the blobs that the cache has, as it has them. Nothing is begun for the others.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub async fn look(&self, lease: LeaseId, blobs: &[Blob]) -> Result<Vec<Blob>, UplinkError> {
        let grants = self.ask_for_upload(lease, blobs, &[], true).await?;
        let present = grants.into_iter().filter_map(|grant| match grant {
            Grant::Present(blob) => Some(blob),
            Grant::Send(_) => None,
        });
        Ok(present.collect())
    }

    async fn ask_for_upload(
        &self,
        lease: LeaseId,
        blobs: &[Blob],
        gone_upload_ids: &[String],
        look_only: bool,
    ) -> Result<Vec<Grant>, UplinkError> {
        const CALL: &str = "an upload";
        let mut grants = Vec::with_capacity(blobs.len());
        for blobs in blobs.chunks(BLOBS_PER_CALL) {
            let request = v1::PrepareUploadRequest {
                lease: Some(lease.to_proto()),
                blobs: all(blobs),
                gone_upload_ids: gone_upload_ids.to_vec(),
                look_only,
            };
            let response = self
                .persist(
                    Some(self.full_limit),
                    CALL,
                    || request.clone(),
                    |mut client, request| async move { client.prepare_upload(request).await },
                )
                .await?;
            expect_len(CALL, response.tickets.len(), blobs.len())?;
            for (ticket, blob) in response.tickets.into_iter().zip(blobs) {
                grants.push(grant(ticket, blob).map_err(|source| UplinkError::Answer { call: CALL, source })?);
            }
        }
        Ok(grants)
    }

    /// Signed URLs for parts of an upload, in their order.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub async fn sign_parts(
        &self,
        lease: LeaseId,
        blob: &Blob,
        upload_id: &str,
        parts: Vec<PartToSign>,
    ) -> Result<Vec<String>, UplinkError> {
        const CALL: &str = "the parts of an upload";
        let count = parts.len();
        let (lease, blob, upload_id) = (Some(lease.to_proto()), Some(blob.to_proto()), upload_id.to_owned());
        let request = v1::SignPartsRequest { lease, blob, upload_id, parts: all(&parts) };
        let response = self
            .persist(
                None,
                CALL,
                || request.clone(),
                |mut client, request| async move { client.sign_parts(request).await },
            )
            .await?;
        expect_len(CALL, response.urls.len(), count)?;
        Ok(response.urls)
    }

    /// Signed URLs to read blobs. One for each blob, in order.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub async fn prepare_download(&self, lease: LeaseId, blobs: &[Blob]) -> Result<Vec<String>, UplinkError> {
        const CALL: &str = "a download";
        let mut urls = Vec::with_capacity(blobs.len());
        for blobs in blobs.chunks(BLOBS_PER_CALL) {
            let request = v1::PrepareDownloadRequest { lease: Some(lease.to_proto()), blobs: all(blobs) };
            let response = self
                .persist(
                    None,
                    CALL,
                    || request.clone(),
                    |mut client, request| async move { client.prepare_download(request).await },
                )
                .await?;
            expect_len(CALL, response.urls.len(), blobs.len())?;
            urls.extend(response.urls);
        }
        Ok(urls)
    }

    /// The secrets of the lease's step.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub async fn fetch_secrets(&self, lease: LeaseId) -> Result<Vec<(SecretName, SecretValue)>, UplinkError> {
        const CALL: &str = "the secrets";
        let request = v1::FetchSecretsRequest { lease: Some(lease.to_proto()) };
        let response = self
            .persist(None, CALL, || request, |mut client, request| async move { client.fetch_secrets(request).await })
            .await?;
        // All of them first, so that all are wiped.
        let files = response.secrets.into_iter().map(|file| (file.name, SecretValue::new(file.value)));
        let files: Vec<(String, SecretValue)> = files.collect();
        let named = files.into_iter().map(|(name, value)| Ok((parsed("name", &name)?, value)));
        named.collect::<Result<_, _>>().map_err(|source| UplinkError::Answer { call: CALL, source })
    }

    /// Reports an attempt's end, until the controller has it.
    ///
    /// # Errors
    /// [`UplinkError`].
    pub async fn report(&self, report: &v1::ReportRequest) -> Result<(), UplinkError> {
        self.persist(
            None,
            "the report",
            || report.clone(),
            |mut client, request| async move { client.report(request).await },
        )
        .await?;
        Ok(())
    }

    /// Opens a log stream. Tried once: the log shipper has its own way to begin again.
    ///
    /// # Errors
    /// The status.
    pub async fn append_log(
        &self,
        batches: impl Stream<Item = v1::LogBatch> + Send + 'static,
    ) -> Result<Streaming<v1::LogAck>, Status> {
        let mut request = Request::new(batches);
        railyard_service::telemetry::inject(&tracing::Span::current(), request.metadata_mut());
        Ok(self.client().append_log(request).await?.into_inner())
    }

    /// Calls until there is an answer that means something; with `cache_limit`, for so long at most from when the cache could not.
    async fn persist<Q, A, F>(
        &self,
        cache_limit: Option<Duration>,
        call: &'static str,
        message: impl Fn() -> Q,
        send: impl Fn(WorkerServiceClient<Channel>, Request<Q>) -> F,
    ) -> Result<A, UplinkError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let (mut tries, mut doubts, mut given_up) = (0, 0, None);
        loop {
            let mut request = Request::new(message());
            request.set_timeout(ANSWER_TIMEOUT);
            railyard_service::telemetry::inject(&tracing::Span::current(), request.metadata_mut());
            let status = match send(self.client(), request).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            if is_stale(&status) {
                return Err(UplinkError::Stale);
            }
            doubts = match standing(&status) {
                Standing::Passing => 0,
                Standing::Doubtful => doubts + 1,
                Standing::Final => DOUBTS_MAX,
            };
            if doubts >= DOUBTS_MAX {
                return Err(UplinkError::Refused { call, status: Box::new(status) });
            }
            if let Some(limit) = cache_limit
                && given_up.is_none()
                && rpc_error::reason_of(&status).as_deref() == Some(rpc_error::CACHE)
            {
                tracing::warn!(call, why = status.message(), "the cache cannot take it now; trying on");
                given_up = Some(Box::pin(tokio::time::sleep(limit)));
            }
            if let Some(given_up) = &mut given_up
                && poll!(given_up).is_ready()
            {
                return Err(UplinkError::Refused { call, status: Box::new(status) });
            }
            tracing::debug!(call, %status, "a call to the controller failed; trying again");
            tries += 1;
            tokio::time::sleep(self.pause(tries)).await;
        }
    }
}

/// Whether the refusal says that the lease is over.
pub fn is_stale(status: &Status) -> bool {
    rpc_error::reason_of(status).as_deref() == Some(rpc_error::STALE_LEASE)
}

/// What a refusal means for the next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// An outage, or a busy controller: it passes.
    Passing,
    /// Something went wrong over there. It may pass; if it does not, waiting on would only hide it.
    Doubtful,
    /// The same call is refused again.
    Final,
}

/// What a refusal means for the next try.
pub fn standing(status: &Status) -> Standing {
    match rpc_error::reason_of(status).as_deref() {
        Some(
            rpc_error::BUSY | rpc_error::STANDSTILL | rpc_error::STOPPING | rpc_error::CACHE | rpc_error::NAME_TAKEN,
        ) => Standing::Passing,
        Some(rpc_error::INTERNAL) => Standing::Doubtful,
        Some(_) => Standing::Final,
        // Without a reason it does not come from the controller's own code, but from the layers below, there or here.
        None => match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted | Code::ResourceExhausted => {
                Standing::Passing
            }
            // What a connection that breaks half-way may be told as; and what a bug may be told as.
            Code::Unknown | Code::Internal => Standing::Doubtful,
            // A message that is too large is "out of range".
            _ => Standing::Final,
        },
    }
}

/// Whether the same call may be answered later.
pub fn is_passing(status: &Status) -> bool {
    standing(status) != Standing::Final
}

fn expect_len(call: &'static str, got: usize, want: usize) -> Result<(), UplinkError> {
    if got == want {
        return Ok(());
    }
    let source = BadMessage::new("", format!("it has {got} entries for {want} blobs"));
    Err(UplinkError::Answer { call, source })
}

fn grant(ticket: v1::UploadTicket, asked: &Blob) -> Result<Grant, BadMessage> {
    if ticket.present {
        let blob: Blob = required("blob", ticket.blob)?;
        if blob.digest != asked.digest {
            return Err(BadMessage::new(
                "blob.digest",
                format!("it is {}, asked for was {}", blob.digest, asked.digest),
            ));
        }
        return Ok(Grant::Present(blob));
    }
    let checksum = PartChecksum::from_proto(ticket.checksum).map_err(|bad| bad.within("checksum"))?;
    let v1::UploadTicket { upload_id, part_bytes, .. } = ticket;
    Ok(Grant::Send(Ticket { upload_id, part_bytes, checksum }))
}

/// A finished upload in the protocol's form.
pub fn finished_upload(finished: Finished) -> v1::FinishedUpload {
    let Finished { blob, upload_id, etags } = finished;
    v1::FinishedUpload { blob: Some(blob.to_proto()), upload_id, etags }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outages_pass_and_what_is_wrong_with_a_message_does_not() {
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled] {
            assert_eq!(standing(&Status::new(code, "")), Standing::Passing, "{code:?}");
        }
        for code in [Code::OutOfRange, Code::InvalidArgument, Code::PermissionDenied, Code::FailedPrecondition] {
            assert_eq!(standing(&Status::new(code, "")), Standing::Final, "{code:?}");
        }
        let reason = |reason| standing(&rpc_error::refusal(Code::Unavailable, reason, ""));
        assert_eq!(reason(rpc_error::BUSY), Standing::Passing);
        assert_eq!(reason(rpc_error::STANDSTILL), Standing::Passing);
        assert_eq!(reason(rpc_error::NAME_TAKEN), Standing::Passing);
        assert_eq!(reason(rpc_error::INTERNAL), Standing::Doubtful);
        assert_eq!(reason(rpc_error::BAD_UPLOAD), Standing::Final);
    }
}
