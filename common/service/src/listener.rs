//! The one TLS port: gRPC, cache and web on the same listener.
//!
//! Every connection is a task of the listener's own set. A peer that stalls costs a slot for a bounded time: in the
//! handshake, before its first request, in a request's head, in its body, and where it does not read the answer. What one
//! client may take is limited, whether it stalls or not: see [`Limits`]. After the shutdown signal nothing new is accepted,
//! running requests get [`DRAIN_DEADLINE`], and what is left then is cut.
//!
//! ```text
//! accept ─► a place for a handshake (per address) ─► TLS ─► a connection of the client (certificate or address)
//!        ─► bytes within limits ─► HTTP ─► a request of the client (rate, number) ─► its body within limits ─► the app
//! ```

mod asked;
mod bucket;
mod frames;
mod handshakes;
mod ledger;
mod limits;
mod line;
mod pace;
mod peer;
mod refuse;
mod source;

pub use limits::Limits;
pub use pace::TooSlow;
pub use peer::{BadRequests, Peer, Proof, ShutOut, WrongCertificates};
pub use source::Listener;

use crate::channel::{CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES};
use crate::tls::{Shown, shown};
use asked::Asked;
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use handshakes::{Handshake, Handshakes, Place};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use ledger::{Account, Client, Connected, Ledger, Over};
use limits::{
    CONNECTIONS_MAX, EARLY_RESETS_MAX, ERROR_RESETS_MAX, HTTP1_HEAD_MAX_BYTES, HTTP1_HEADERS_MAX,
    HTTP2_HEAD_READ_BYTES, NAMELESS_MAX, STREAMS_MAX, TELLING_MAX, TELLING_TIME,
};
use line::Line;
use pace::Paced;
use peer::Complaints;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt as _;

/// How long running requests may go on after the shutdown signal.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Wait after a failed accept, which mostly means that file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is served, and how much of it to whom.
#[derive(Clone, Debug)]
pub struct Serving {
    /// The routes.
    pub app: Router,
    /// HTTP/1.1 carries gigabytes to and from the cache: on another runtime, if there is one here, it takes no time from
    /// HTTP/2, which carries the farm's calls.
    pub bulk: Option<Handle>,
    /// Whoever it names loses the connection, with everything that runs on it.
    pub shut_out: ShutOut,
    /// Hears of certificates that are worth nothing.
    pub wrong_certificates: WrongCertificates,
    /// Hears of requests that never get to the app, and of connections on which there are none.
    pub bad_requests: BadRequests,
    /// What one client may take.
    pub limits: Limits,
}

/// Serves `app` on `tcp` until `shutdown`, then drains, with the default limits. See [`serve_within`].
///
/// # Errors
/// As [`serve_within`].
pub async fn serve(
    tcp: impl Listener,
    tls: Arc<rustls::ServerConfig>,
    app: Router,
    bulk: Option<Handle>,
    shut_out: ShutOut,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let (wrong_certificates, bad_requests) = (WrongCertificates::untold(), BadRequests::untold());
    let limits = Limits::default();
    let serving = Serving { app, bulk, shut_out, wrong_certificates, bad_requests, limits };
    serve_within(tcp, tls, serving, shutdown).await
}

/// Serves on `tcp` until `shutdown`, then drains. Returns when no connection is left or [`DRAIN_DEADLINE`] is over.
///
/// # Errors
/// If `tcp` is not a listening socket. A failed accept is retried; a connection's failure ends that connection only.
pub async fn serve_within(
    tcp: impl Listener,
    tls: Arc<rustls::ServerConfig>,
    serving: Serving,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_and_drain(tcp, tls, serving, shutdown, DRAIN_DEADLINE).await
}

async fn serve_and_drain(
    tcp: impl Listener,
    tls: Arc<rustls::ServerConfig>,
    serving: Serving,
    shutdown: CancellationToken,
    deadline: Duration,
) -> io::Result<()> {
    tracing::debug!(address = %tcp.local_addr()?, "listening");
    let house = Arc::new(House::new(tls, serving, shutdown.clone()));
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            Some(ended) = tasks.join_next() => note_panic(ended),
            guest = house.accept(&tcp) => match guest {
                Ok(Some(guest)) => drop(tasks.spawn(Arc::clone(&house).entertain(guest))),
                // Its address has had enough.
                Ok(None) => {}
                // The peer gave up while it waited in the backlog.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection; trying again");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(tcp);
    let drained = async { while tasks.join_next().await.is_some() {} };
    if timeout(deadline, drained).await.is_err() {
        tracing::info!(connections = tasks.len(), "closing connections that are still busy");
        tasks.shutdown().await;
    }
    Ok(())
}

fn note_panic(ended: Result<(), JoinError>) {
    if ended.is_err_and(|error| error.is_panic()) {
        tracing::error!("a connection's task panicked; this is a bug, please report it with the lines above");
    }
}

/// What decides who comes in, and what all guests have in common.
struct House {
    acceptor: TlsAcceptor,
    app: Router,
    bulk: Option<Handle>,
    shut_out: ShutOut,
    wrong_certificates: WrongCertificates,
    bad_requests: BadRequests,
    limits: Arc<Limits>,
    shutdown: CancellationToken,
    ledger: Ledger,
    handshakes: Handshakes,
    connections: Arc<Semaphore>,
    nameless: Arc<Semaphore>,
    telling: Arc<Semaphore>,
}

impl House {
    fn new(tls: Arc<rustls::ServerConfig>, serving: Serving, shutdown: CancellationToken) -> Self {
        let Serving { app, bulk, shut_out, wrong_certificates, bad_requests, limits } = serving;
        let limits = Arc::new(limits);
        Self {
            acceptor: TlsAcceptor::from(tls),
            app,
            bulk,
            shut_out,
            wrong_certificates,
            bad_requests,
            ledger: Ledger::new(Arc::clone(&limits)),
            handshakes: Handshakes::new(limits.handshakes_per_address),
            limits,
            shutdown,
            connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            nameless: Arc::new(Semaphore::new(NAMELESS_MAX)),
            telling: Arc::new(Semaphore::new(TELLING_MAX)),
        }
    }

    /// The next connection, once there is room for it; `None` for one that is turned away. Can be dropped at any time
    /// without losing one.
    async fn accept<L: Listener>(&self, tcp: &L) -> io::Result<Option<Guest<L::Io>>> {
        let closed = || io::Error::other("the listener is closed");
        let connection = Arc::clone(&self.connections).acquire_owned().await.map_err(|_| closed())?;
        let place = self.handshakes.place().await.ok_or_else(closed)?;
        let (stream, addr) = tcp.accept().await?;
        let account = self.ledger.account(Client::at(addr.ip()));
        match self.begin(&account, place) {
            Ok(handshake) => Ok(Some(Guest { stream, addr, account, handshake, _connection: connection })),
            Err(over) => {
                account.tell(over, &self.complaints(Peer::nobody(addr)));
                Ok(None)
            }
        }
    }

    fn begin(&self, account: &Account, place: Place) -> Result<Handshake, Over> {
        account.arrive()?;
        self.handshakes.begin(account.client.clone(), place)
    }

    fn complaints(&self, about: Peer) -> Complaints {
        Complaints::new(about, self.bad_requests.clone())
    }

    async fn entertain<Io>(self: Arc<Self>, guest: Guest<Io>)
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Guest { stream, addr, account, handshake, _connection } = guest;
        let stranger = self.complaints(Peer::nobody(addr));
        let done = tokio::select! {
            biased;
            () = self.shutdown.cancelled() => return,
            () = handshake.cut.cancelled() => {
                return stranger.tell("handshake", "the TLS handshake did not go on, and gave way to another one");
            }
            done = timeout(self.limits.handshake(), self.acceptor.accept(stream)) => done,
        };
        drop(handshake);
        let stream = match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                match whose_fault(&error) {
                    Some(Fault::Certificate) => self.wrong_certificates.tell(addr, &error.to_string()),
                    Some(Fault::Handshake) => stranger.tell("handshake", &error.to_string()),
                    None => {}
                }
                return tracing::debug!(peer = %addr, %error, "TLS handshake failed");
            }
            Err(_) => return stranger.tell("handshake", "the TLS handshake did not come to its end in time"),
        };
        let peer =
            self.shown_by(&stream, addr).map_or_else(|| Peer::nobody(addr), |shown| Peer::certified(shown, addr));
        // Those without a name have fewer places than there are, and their address answers for them.
        let (account, place) = match &peer.identity {
            Some(identity) => (self.ledger.account(Client::known(identity)), Some(None)),
            None => (account, Arc::clone(&self.nameless).try_acquire_owned().ok().map(Some)),
        };
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let complaints = self.complaints(peer.clone());
        let line = Line::new(stream, is_http2, self.limits.answer(), complaints.clone());
        let connected = match place {
            Some(place) => account.connect().map(|connected| (connected, place)),
            None => Err(Over::Connections),
        };
        match connected {
            Ok(connected) => {
                let bulk = self.bulk.clone().filter(|_| !is_http2);
                let serving = Serve { house: self, peer, complaints, account, is_http2, connected }.run(line);
                match bulk {
                    // A panic there was logged there; this is the end of the connection in any case.
                    Some(bulk) => drop(AbortOnDropHandle::new(bulk.spawn(serving)).await),
                    None => serving.await,
                }
            }
            Err(over) => {
                account.tell(over, &complaints);
                self.turn_away(line, over, is_http2).await;
            }
        }
    }

    fn shown_by<Io>(&self, stream: &TlsStream<Io>, addr: SocketAddr) -> Option<Shown> {
        let certs = stream.get_ref().1.peer_certificates()?;
        // The farm's CA signed it, but for something else than a role: whoever shows it counts as nobody.
        let shown = shown(certs).inspect_err(|error| {
            tracing::warn!(peer = %addr, %error, "treating the peer as nobody");
            self.wrong_certificates.tell(addr, &error.to_string());
        });
        shown.ok()
    }

    /// Tells a client why it is not served, if there is room for that.
    async fn turn_away<Io>(&self, line: Line<Io>, over: Over, is_http2: bool)
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Ok(_telling) = self.telling.try_acquire() else { return };
        let told = CancellationToken::new();
        let (seen, service_told) = (told.clone(), told);
        let service = service_fn(move |request: Request<Incoming>| {
            service_told.cancel();
            let answer = refuse::over(over, request.headers());
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let builder = builder(is_http2, self.limits.head());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(line), service));
        let telling = async {
            tokio::select! {
                biased;
                () = seen.cancelled() => {}
                // Whatever went wrong, it is over.
                _ = connection.as_mut() => return,
            }
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        };
        let _ = timeout(TELLING_TIME, telling).await;
    }
}

/// A connection that was accepted and has said nothing yet.
struct Guest<Io> {
    stream: Io,
    addr: SocketAddr,
    account: Arc<Account>,
    handshake: Handshake,
    _connection: OwnedSemaphorePermit,
}

/// What a client has done wrong, if a handshake failed for that.
enum Fault {
    /// Its certificate is worth nothing.
    Certificate,
    /// It speaks something else, or an older TLS.
    Handshake,
}

/// A client that goes, or does not like the certificate of the farm and says so, has done nothing wrong.
fn whose_fault(error: &io::Error) -> Option<Fault> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(_) => None,
        rustls::Error::InvalidCertificate(_) => Some(Fault::Certificate),
        _ => Some(Fault::Handshake),
    }
}

/// One connection, from its handshake to its end.
struct Serve {
    house: Arc<House>,
    peer: Peer,
    complaints: Complaints,
    account: Arc<Account>,
    is_http2: bool,
    /// Held while it lasts: that it is one of its client's, and one of the nameless.
    connected: (Connected, Option<OwnedSemaphorePermit>),
}

impl Serve {
    async fn run<Io>(self, line: Line<Io>)
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Self { house, peer, complaints, account, is_http2, connected } = self;
        let (addr, is_nameless) = (peer.addr, peer.identity.is_none());
        let shut_out = house.shut_out.of(&peer);
        let asked = Arc::new(Asked::new());
        let within = line.within();
        let guest = Answering {
            house: Arc::clone(&house),
            account,
            asked: Arc::clone(&asked),
            peer,
            complaints: complaints.clone(),
        };
        let guest = Arc::new(guest);
        let service = service_fn(move |request: Request<Incoming>| answer(Arc::clone(&guest), request));
        let builder = builder(is_http2, house.limits.head());
        let mut connection = pin!(builder.serve_connection(TokioIo::new(line), service));
        let done = tokio::select! {
            biased;
            () = shut_out => {
                tracing::info!(peer = %addr, "the peer is shut out; closing the connection");
                return;
            }
            done = connection.as_mut() => done,
            () = house.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = asked.too_quiet(house.limits.head(), is_nameless) => {
                if within.load(Ordering::Relaxed) {
                    complaints.tell("request", refuse::SLOW_HEAD);
                }
                tracing::debug!(peer = %addr, "no request; closing the connection");
                return;
            }
            () = asked.cut.cancelled() => {
                tracing::debug!(peer = %addr, "it goes on asking though it was refused; closing the connection");
                return;
            }
        };
        drop(connected);
        if let Err(error) = done {
            if let Some(why) = refuse::no_request(&*error, within.load(Ordering::Relaxed)) {
                complaints.tell("request", &why);
            }
            tracing::debug!(peer = %addr, error, "connection ended");
        }
    }
}

/// What the requests of one connection have in common.
struct Answering {
    house: Arc<House>,
    account: Arc<Account>,
    asked: Arc<Asked>,
    peer: Peer,
    complaints: Complaints,
}

/// Hands a request to the app, if its client may ask one more.
async fn answer(guest: Arc<Answering>, request: Request<Incoming>) -> Result<Response, Infallible> {
    let Answering { house, account, asked, peer, complaints } = &*guest;
    // It is answered when the last byte of the answer is on its way, not when its head is.
    let counted = asked.begin();
    let running = match account.request() {
        Ok(running) => running,
        Err(over) => {
            account.tell(over, complaints);
            asked.refused();
            return Ok(refuse::over(over, request.headers()));
        }
    };
    let (mut head, body) = request.into_parts();
    if let Some((refusal, why)) = refuse::bad_head(&head) {
        complaints.tell(&format!("{} {}", head.method, head.uri.path()), &why);
        return Ok(refusal);
    }
    head.extensions.insert(peer.clone());
    let grpc = refuse::is_grpc(&head.headers).then_some(&**account);
    let body = Paced::new(body, house.limits.body(), grpc);
    let response = house.app.clone().oneshot(Request::from_parts(head, body)).await?;
    Ok(response.map(|body| Body::new(refuse::Held::new(body, (running, counted)))))
}

/// The protocol is the one that the TLS handshake agreed on, HTTP/1.1 if it agreed on none; sniffing it would wait for bytes
/// without a limit, and let a client choose HTTP/2 where its frames are not counted. (Who serves a connection *with upgrades*
/// has it sniffed, whatever the builder says.)
fn builder(http2: bool, head: Duration) -> auto::Builder<TokioExecutor> {
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(HTTP1_HEAD_MAX_BYTES)
        .max_headers(HTTP1_HEADERS_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HTTP2_HEAD_READ_BYTES)
        .max_pending_accept_reset_streams(EARLY_RESETS_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

#[cfg(test)]
mod tests;
