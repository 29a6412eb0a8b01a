//! The one TLS port: gRPC, cache and web on the same listener.
//!
//! Every connection is a task of the listener's own set. A peer that stalls costs a slot for a bounded time: in the
//! handshake, before its first request, in a request's head. After the shutdown signal nothing new is accepted, running
//! requests get [`DRAIN_DEADLINE`], and what is left then is cut.

use crate::channel::{CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT, STREAM_WINDOW_BYTES};
use crate::tls::{Identity, Shown, shown};
use axum::Router;
use axum::extract::Request;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use railyard_common::time::Millis;
use railyard_common::token::TokenId;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
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

/// TLS handshakes at a time: each costs a signature, about a tenth of a millisecond, and the rest wait in the backlog.
const HANDSHAKES_MAX: usize = 256;
/// Connections at a time: 10,000 workers, and as many again for people, transfers and reconnects.
const CONNECTIONS_MAX: usize = 20_000;
/// A handshake takes two round trips; who needs longer is stalling.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may stand open before its first request, and an HTTP/1 connection between two.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// Streams of one HTTP/2 connection at a time: a worker has a few per job.
const STREAMS_MAX: u32 = 256;
/// Wait after a failed accept, which mostly means that file descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it is; `None` if it showed nothing that tells.
    pub identity: Option<Identity>,
    /// What it showed for that.
    pub proof: Option<Proof>,
    /// Where it comes from.
    pub addr: SocketAddr,
}

/// What somebody shows to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A certificate of the farm's CA.
    Certificate {
        /// When it was issued.
        issued: Millis,
        /// The SHA-256 of it, as hex.
        fingerprint: String,
    },
    /// A bearer token.
    Token(TokenId),
}

impl Peer {
    /// Somebody at `addr` who showed nothing.
    pub fn nobody(addr: SocketAddr) -> Self {
        Self { identity: None, proof: None, addr }
    }

    /// Whoever a certificate speaks for, at `addr`.
    pub fn certified(shown: Shown, addr: SocketAddr) -> Self {
        let Shown { identity, issued, fingerprint } = shown;
        Self { identity: Some(identity), proof: Some(Proof::Certificate { issued, fingerprint }), addr }
    }
}

/// Tells when a peer is not to be served any more: the future ends then, at once if it is so already.
#[derive(Clone)]
pub struct ShutOut(Arc<dyn Fn(&Peer) -> BoxFuture<'static, ()> + Send + Sync>);

impl ShutOut {
    /// As `when` says.
    pub fn when(when: impl Fn(&Peer) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(when))
    }

    /// Whoever came in may stay.
    pub fn nobody() -> Self {
        Self::when(|_| Box::pin(std::future::pending()))
    }
}

impl fmt::Debug for ShutOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShutOut")
    }
}

/// Where connections come from: TCP sockets, or a simulated network.
pub trait Listener: Send + Sync + 'static {
    /// One connection's bytes.
    type Io: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection, and where it comes from. Can be dropped at any time without losing one.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Io, SocketAddr)>> + Send;

    /// Where it listens.
    ///
    /// # Errors
    /// If the socket is none that listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

impl Listener for TcpListener {
    type Io = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, addr) = TcpListener::accept(self).await?;
        // Fails only on a connection that is dead already, which the handshake will find.
        let _ = stream.set_nodelay(true);
        Ok((stream, addr))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

/// Serves `app` on `tcp` until `shutdown`, then drains. Returns when no connection is left or [`DRAIN_DEADLINE`] is over.
///
/// HTTP/1.1 carries gigabytes to and from the cache: with `bulk`, another runtime, it is served there, and takes no time from
/// HTTP/2, which carries the farm's calls. Whoever `shut_out` names loses the connection, with everything that runs on it.
///
/// # Errors
/// If `tcp` is not a listening socket. A failed accept is retried; a connection's failure ends that connection only.
pub async fn serve(
    tcp: impl Listener,
    tls: Arc<rustls::ServerConfig>,
    app: Router,
    bulk: Option<Handle>,
    shut_out: ShutOut,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_and_drain(tcp, tls, House { app, bulk, shut_out, shutdown }, DRAIN_DEADLINE).await
}

async fn serve_and_drain(
    tcp: impl Listener,
    tls: Arc<rustls::ServerConfig>,
    house: House,
    deadline: Duration,
) -> io::Result<()> {
    tracing::debug!(address = %tcp.local_addr()?, "listening");
    let door = Door {
        acceptor: TlsAcceptor::from(tls),
        handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
    };
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = house.shutdown.cancelled() => break,
            Some(ended) = tasks.join_next() => note_panic(ended),
            guest = door.accept(&tcp) => match guest {
                Ok(guest) => {
                    tasks.spawn(guest.entertain(door.acceptor.clone(), house.clone()));
                }
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

/// What every connection is given.
#[derive(Clone)]
struct House {
    app: Router,
    bulk: Option<Handle>,
    shut_out: ShutOut,
    shutdown: CancellationToken,
}

/// What decides who comes in.
struct Door {
    acceptor: TlsAcceptor,
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl Door {
    /// The next connection, once there is room for it. Can be dropped at any time without losing one.
    async fn accept<L: Listener>(&self, tcp: &L) -> io::Result<Guest<L::Io>> {
        let closed = |_| io::Error::other("the listener is closed");
        let connection = Arc::clone(&self.connections).acquire_owned().await.map_err(closed)?;
        let handshake = Arc::clone(&self.handshakes).acquire_owned().await.map_err(closed)?;
        let (stream, addr) = tcp.accept().await?;
        Ok(Guest { stream, addr, handshake, _connection: connection })
    }
}

/// A connection that was accepted and has said nothing yet.
struct Guest<Io> {
    stream: Io,
    addr: SocketAddr,
    handshake: OwnedSemaphorePermit,
    _connection: OwnedSemaphorePermit,
}

impl<Io: AsyncRead + AsyncWrite + Send + Unpin + 'static> Guest<Io> {
    async fn entertain(self, acceptor: TlsAcceptor, house: House) {
        let addr = self.addr;
        let handshake = tokio::select! {
            biased;
            () = house.shutdown.cancelled() => return,
            done = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(self.stream)) => done,
        };
        drop(self.handshake);
        match handshake {
            Ok(Ok(stream)) => {
                let peer =
                    shown_by(&stream, addr).map_or_else(|| Peer::nobody(addr), |shown| Peer::certified(shown, addr));
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                let bulk = house.bulk.clone();
                let serving = serve_connection(stream, peer, house);
                match bulk.filter(|_| !is_http2) {
                    // A panic there was logged there; this is the end of the connection in any case.
                    Some(bulk) => drop(AbortOnDropHandle::new(bulk.spawn(serving)).await),
                    None => serving.await,
                }
            }
            Ok(Err(error)) => tracing::debug!(peer = %addr, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(peer = %addr, "TLS handshake took too long"),
        }
    }
}

fn shown_by<Io>(stream: &TlsStream<Io>, addr: SocketAddr) -> Option<Shown> {
    let certs = stream.get_ref().1.peer_certificates()?;
    // The farm's CA signed it, but for something else than a role: whoever shows it counts as nobody.
    shown(certs).inspect_err(|error| tracing::warn!(peer = %addr, %error, "treating the peer as nobody")).ok()
}

async fn serve_connection<Io>(stream: TlsStream<Io>, peer: Peer, house: House)
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let House { app, shut_out, shutdown, .. } = house;
    let (addr, shut_out) = (peer.addr, shut_out.0(&peer));
    let first_request = CancellationToken::new();
    let seen = first_request.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        seen.cancel();
        request.extensions_mut().insert(peer.clone());
        app.clone().oneshot(request)
    });
    let builder = builder(stream.get_ref().1.alpn_protocol() == Some(b"h2"));
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let done = tokio::select! {
        biased;
        () = shut_out => {
            tracing::info!(peer = %addr, "the peer is shut out; closing the connection");
            return;
        }
        done = connection.as_mut() => done,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = too_quiet(first_request) => {
            tracing::debug!(peer = %addr, "no request; closing the connection");
            return;
        }
    };
    if let Err(error) = done {
        tracing::debug!(peer = %addr, error, "connection ended");
    }
}

/// Ends when no first request came in time; never, once it came.
async fn too_quiet(first_request: CancellationToken) {
    if timeout(HEADER_TIMEOUT, first_request.cancelled()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// The protocol is the one that the TLS handshake agreed on; sniffing it would wait for bytes without a limit.
fn builder(http2: bool) -> auto::Builder<TokioExecutor> {
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task;
    use crate::tls::{Authority, client_config, server_config};
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn a_request_without_an_end_is_cut_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path(), "test").unwrap();
        let pair = authority.issue_server(&["127.0.0.1".to_owned()]).unwrap();
        let tls = server_config(&pair, authority.ca_pem()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let (shutdown, begun) = (CancellationToken::new(), CancellationToken::new());
        let reached = begun.clone();
        let endless = move || async move {
            reached.cancel();
            std::future::pending::<()>().await;
        };
        let app = Router::new().route("/", get(endless));
        let (bulk, shut_out) = (None, ShutOut::nobody());
        let house = House { app, bulk, shut_out, shutdown: shutdown.clone() };
        let served = serve_and_drain(tcp, tls, house, Duration::from_millis(50));
        let served = task::spawn("listener", served);

        let config = Arc::new(client_config(authority.ca_pem(), None).unwrap());
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = addr.ip().into();
        let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
        begun.cancelled().await;
        shutdown.cancel();
        served.await.unwrap().unwrap();
        let mut answer = Vec::new();
        // Cut without a close_notify: an error or an end, but no answer.
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(answer, b"");
    }
}
