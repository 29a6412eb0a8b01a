//! Where connections come from.

use std::io;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// How long bytes may lie in the kernel that the other side does not take.
const UNACKED_MAX_MILLIS: u32 = 120_000;
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
        // Both fail only on a connection that is dead already, which the handshake will find.
        let _ = stream.set_nodelay(true);
        // Also of a connection that was closed here: what lies in the kernel to be sent would otherwise stay for a long time.
        let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKED_MAX_MILLIS);
        Ok((stream, addr))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}
