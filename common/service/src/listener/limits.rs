//! What one client may take of the port.

use crate::channel::CONNECTION_WINDOW_BYTES;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Limits of one client: whoever a certificate speaks for, or else the address that the connection comes from (of IPv6 its
/// network, /64). They are far above what a worker, a dashboard or a script needs, and keep one client from taking the port
/// from all others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// TLS handshakes of one address at a time. Each costs the port a signature and 40 KiB; an honest one takes two round trips.
    pub handshakes_per_address: usize,
    /// New connections of one address in a second. As many as 32 seconds bring may come at once: a whole farm behind one
    /// address that comes back after an outage.
    pub arrivals_per_address_per_sec: u32,
    /// Connections of one address without a certificate at a time. Workers move their bytes over such, a few for each job.
    pub connections_per_address: u32,
    /// Connections of one certificate at a time. A worker has one; a script has one for each of its processes.
    pub connections_per_identity: u32,
    /// Requests of one client that are being answered at a time.
    pub requests_per_client: u32,
    /// Requests of one client in a second; those of four seconds may come at once. A worker of the fastest farm that was
    /// measured makes about a hundred.
    pub requests_per_client_per_sec: u32,
    /// How long a connection may take for its TLS handshake.
    pub handshake_secs: u64,
    /// How long a connection may stand open before its first request, and how long the head of a request may take. A
    /// connection without a certificate is closed after as long without a request.
    pub head_secs: u64,
    /// How long the port waits for 16 KiB of a request's body, and how long a message waits for others of its client that are
    /// half there. Between two messages of a stream of messages any time may pass.
    pub body_secs: u64,
    /// How long a client may take nothing of what it asked for.
    pub answer_secs: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            handshakes_per_address: 128,
            arrivals_per_address_per_sec: 500,
            connections_per_address: 1_024,
            connections_per_identity: 512,
            requests_per_client: 2_048,
            requests_per_client_per_sec: 2_000,
            handshake_secs: 10,
            head_secs: 30,
            body_secs: 60,
            answer_secs: 120,
        }
    }
}

impl Limits {
    pub(super) fn handshake(&self) -> Duration {
        Duration::from_secs(self.handshake_secs)
    }

    pub(super) fn head(&self) -> Duration {
        Duration::from_secs(self.head_secs)
    }

    pub(super) fn body(&self) -> Duration {
        Duration::from_secs(self.body_secs)
    }

    pub(super) fn answer(&self) -> Duration {
        Duration::from_secs(self.answer_secs)
    }
}

/// TLS handshakes at a time, of everybody: 40 MiB.
pub(super) const HANDSHAKES_MAX: usize = 1_024;
/// A handshake that is older than this gives way where others wait: an honest one is done by then.
pub(super) const HANDSHAKE_GRACE: Duration = Duration::from_secs(1);
/// Connections at a time: 10,000 workers, and as many again for people, transfers and reconnects.
pub(super) const CONNECTIONS_MAX: usize = 20_000;
/// Of these without a certificate: the rest is for those who belong to the farm.
pub(super) const NAMELESS_MAX: usize = 8_192;
/// Streams of one HTTP/2 connection at a time: a worker has a few per job.
pub(super) const STREAMS_MAX: u32 = 256;
/// Seconds of new connections that may come at once.
pub(super) const ARRIVALS_BURST_SECS: u32 = 32;
/// Seconds of requests that may come at once.
pub(super) const REQUESTS_BURST_SECS: u32 = 4;
/// Requests of one connection that are refused one after the other before it is cut: whoever heeds `Retry-After` never gets there.
pub(super) const REFUSALS_MAX: u32 = 1_000;
/// Connections at a time that stay open just to tell why they are refused; more are closed without a word.
pub(super) const TELLING_MAX: usize = 64;
/// How long one of these may take.
pub(super) const TELLING_TIME: Duration = Duration::from_secs(5);

/// The head of an HTTP/1 request, its URL included. What is longer is answered with 431. Bodies pass through the same buffer.
pub(super) const HTTP1_HEAD_MAX_BYTES: usize = 64 * 1024;
/// Headers of an HTTP/1 request.
pub(super) const HTTP1_HEADERS_MAX: usize = 100;
/// All headers of an HTTP/2 request together, decompressed: traces and certificates of proxies fit.
pub(super) const HTTP2_HEAD_MAX_BYTES: usize = 16 * 1024;
/// What is read of them: a head that is longer than it may be is seen here, and named. Beyond this the library answers 431 by
/// itself.
pub(super) const HTTP2_HEAD_READ_BYTES: u32 = 64 * 1024;
/// Longest URL: a signed one has some 500 bytes.
pub(super) const URL_MAX_BYTES: usize = 8 * 1024;
/// Streams of a connection that the client reset before they were looked at; then the connection goes ("rapid reset").
pub(super) const EARLY_RESETS_MAX: usize = 20;
/// Streams of a connection that were reset because of the client's errors; then the connection goes.
pub(super) const ERROR_RESETS_MAX: usize = 256;

/// Frames of an HTTP/2 connection that bring nothing (settings, pings, resets, updates of windows, continued headers) and may
/// come at once…
pub(super) const IDLE_FRAMES_BURST: u32 = 10_000;
/// …and in each second.
pub(super) const IDLE_FRAMES_PER_SEC: u32 = 1_000;
/// One more for as many bytes that the client was sent: it says that it has read them.
pub(super) const BYTES_PER_IDLE_FRAME: usize = 4 * 1024;

/// What a body must bring while it is waited for, for each [`Limits::body_secs`].
pub(super) const PACE_BYTES: usize = 16 * 1024;
/// Messages that are smaller are not counted against [`MESSAGES_MAX_BYTES`].
pub(super) const SMALL_MESSAGE_BYTES: usize = 64 * 1024;
/// Bytes of one client's messages that have begun and are not whole yet. Further ones wait, [`Limits::body_secs`] at most.
pub(super) const MESSAGES_MAX_BYTES: usize = 64 * 1024 * 1024;

const _: () = assert!(
    MESSAGES_MAX_BYTES >= crate::MESSAGE_MAX_BYTES && MESSAGES_MAX_BYTES >= CONNECTION_WINDOW_BYTES as usize,
    "one message must fit"
);
