//! The simulated network behind the farm's own listener and channel.

use crate::scenario::Skew;
use http::Uri;
use hyper_util::rt::TokioIo;
use railyard_common::time::Millis;
use railyard_service::channel::{self, ChannelError, Endpoint};
use railyard_service::clock::Clock;
use railyard_service::listener::Listener;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
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

/// A wall-clock time of the controller in seconds since the simulation began; a clock that is behind gives less than nothing.
pub fn at(time: Millis) -> f64 {
    (time.0.cast_signed() - EPOCH_MILLIS.cast_signed()) as f64 / 1000.0
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

/// The clocks of a host.
#[derive(Debug, Default)]
pub struct HostClock {
    sim: Arc<SimClock>,
    skew: Skew,
}

impl HostClock {
    /// They go by the simulation's time, and wrong by `skew`.
    pub fn new(sim: Arc<SimClock>, skew: Skew) -> Self {
        Self { sim, skew }
    }
}

impl Clock for HostClock {
    fn now(&self) -> Millis {
        let since = u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX);
        Millis(EPOCH_MILLIS.saturating_add(since).saturating_add_signed(self.skew.wall_millis))
    }

    fn monotonic(&self) -> Duration {
        let micros = u64::try_from(self.sim.elapsed().as_micros()).unwrap_or(u64::MAX);
        let rate = 1_000_000_u64.saturating_add_signed(self.skew.rate_ppm);
        Duration::from_micros(u64::try_from(u128::from(micros) * u128::from(rate) / 1_000_000).unwrap_or(u64::MAX))
    }
}

/// The simulation's time, as every part of it may ask for it.
#[derive(Debug, Default)]
pub struct SimClock {
    last: AtomicU64,
}

impl SimClock {
    fn elapsed(&self) -> Duration {
        // Threads outside the simulation see the time at which it was last looked at.
        let now = turmoil::sim_elapsed().map(|now| u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
        Duration::from_micros(self.last.fetch_max(now.unwrap_or(0), Ordering::Relaxed).max(now.unwrap_or(0)))
    }
}
