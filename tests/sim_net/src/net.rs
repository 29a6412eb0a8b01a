//! The simulated network behind the farm's own listener and channel.

use http::Uri;
use hyper_util::rt::TokioIo;
use railyard_common::time::Millis;
use railyard_service::channel::{self, ChannelError, Endpoint};
use railyard_service::clock::Clock;
use railyard_service::listener::Listener;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::transport::Channel;
use turmoil::net::{TcpListener, TcpStream};

/// The controller's host.
pub const CONTROLLER: &str = "controller";
/// Its port.
pub const PORT: u16 = 7411;

/// When simulations begin: any day will do.
const EPOCH_MILLIS: u64 = 1_790_000_000_000;

/// A wall-clock time as seconds of the simulation.
pub fn at(time: Millis) -> f64 {
    Duration::from_millis(time.0.saturating_sub(EPOCH_MILLIS)).as_secs_f64()
}

/// Accepts simulated connections.
pub struct SimListener(TcpListener);

impl SimListener {
    /// Listens at the farm's port of the host that asks.
    ///
    /// # Errors
    /// If somebody else does.
    pub async fn bind() -> io::Result<Self> {
        Ok(Self(TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await?))
    }
}

impl Listener for SimListener {
    type Io = TcpStream;

    fn accept(&self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send {
        self.0.accept()
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A channel to the controller over the simulated network; TLS and everything above it are those of production.
///
/// # Errors
/// As [`channel::connect`].
pub fn connect(endpoint: &Endpoint) -> Result<Channel, ChannelError> {
    channel::connect_over(endpoint, tower::service_fn(dial))
}

async fn dial(uri: Uri) -> io::Result<TokioIo<TcpStream>> {
    let host = uri.host().ok_or_else(|| io::Error::other("the URL has no host"))?.to_owned();
    let port = uri.port_u16().unwrap_or(PORT);
    Ok(TokioIo::new(TcpStream::connect((host, port)).await?))
}

/// A clock that goes wrong.
#[derive(Debug, Default)]
pub struct SlowClock(SimClock);

impl Clock for SlowClock {
    fn now(&self) -> Millis {
        self.0.now()
    }

    fn monotonic(&self) -> Duration {
        self.0.monotonic() / 2
    }
}

/// The simulation's time: one for all hosts, since none of them compares its own with another's.
#[derive(Debug, Default)]
pub struct SimClock {
    last: AtomicU64,
}

impl Clock for SimClock {
    fn now(&self) -> Millis {
        Millis(EPOCH_MILLIS + u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        // Threads outside the simulation see the time at which it was last looked at.
        let now = turmoil::sim_elapsed().map(|now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
        Duration::from_micros(self.last.fetch_max(now.unwrap_or(0), Ordering::Relaxed).max(now.unwrap_or(0)))
    }
}
