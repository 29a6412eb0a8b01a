//! The tools of an attacker: connections from an address of its own, and frames made by hand.

use crate::common::Controller;
use crate::common::wait::LIMIT;
use railyard_service::tls::{Role, client_config};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
/// The error code of HTTP/2 for whoever asks for too much.
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// One loopback address of many; everybody else here is at 127.0.0.1.
pub fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 66, n)
}

/// What the kernel keeps for the farm while that does not read: little, so that what was sent was also taken.
const SEND_BUFFER_BYTES: u32 = 16 << 10;

/// A TCP connection from that address.
pub async fn tcp(controller: &Controller, from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let stream = socket.connect(controller.address()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A TLS connection from that address that speaks `protocol`.
pub async fn tls(
    controller: &Controller,
    from: Ipv4Addr,
    who: Option<(Role, &str)>,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let endpoint = controller.endpoint(who);
    let mut config = client_config(&endpoint.ca_pem, endpoint.identity.as_ref()).unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = controller.address().ip().into();
    TlsConnector::from(Arc::new(config)).connect(name, tcp(controller, from).await?).await
}

/// What comes until the farm closes the connection; it must, soon.
pub async fn rest<Io: tokio::io::AsyncRead + Unpin>(io: &mut Io) -> Vec<u8> {
    let mut bytes = Vec::new();
    // However it is cut.
    let _ = tokio::time::timeout(LIMIT, io.read_to_end(&mut bytes)).await.expect("the farm closes the connection");
    bytes
}

/// A frame of HTTP/2.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Headers as HPACK writes those that no table knows.
pub fn headers(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in pairs {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

fn text(block: &mut Vec<u8>, text: &str) {
    match text.len() {
        short @ ..127 => block.push(short.try_into().unwrap()),
        long => {
            block.push(127);
            let mut rest = long - 127;
            while rest >= 128 {
                block.push((rest % 128 + 128).try_into().unwrap());
                rest /= 128;
            }
            block.push(rest.try_into().unwrap());
        }
    }
    block.extend(text.as_bytes());
}

/// The headers of a request.
pub fn request(method: &str, path: &str) -> Vec<u8> {
    headers(&[(":method", method), (":scheme", "https"), (":authority", "farm"), (":path", path)])
}

/// The headers of a call.
pub fn call(path: &str) -> Vec<u8> {
    let mut block = request("POST", path);
    block.extend(headers(&[("content-type", "application/grpc"), ("te", "trailers")]));
    block
}

/// A connection that speaks HTTP/2 as its owner likes.
pub struct Http2(TlsStream<TcpStream>);

/// A frame that came.
pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Http2 {
    pub async fn connect(controller: &Controller, from: Ipv4Addr, who: Option<(Role, &str)>) -> Self {
        let mut tls = tls(controller, from, who, "h2").await.unwrap();
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut this = Self(tls);
        this.send(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
        this
    }

    pub async fn send(&mut self, frames: &[u8]) -> std::io::Result<()> {
        self.0.write_all(frames).await?;
        self.0.flush().await
    }

    /// Sends the same again and again, and reads what comes meanwhile, until the farm has had enough or so many were sent.
    /// Gives how many went out, and every frame that came.
    pub async fn flood(self, most: usize, mut make: impl FnMut(usize) -> Vec<u8>) -> (usize, Vec<Frame>) {
        let (mut from, mut to) = tokio::io::split(self.0);
        let mut sent = 0;
        let sending = async {
            while sent < most {
                let batch: Vec<u8> = (sent..(sent + 50).min(most)).flat_map(&mut make).collect();
                if to.write_all(&batch).await.is_err() || to.flush().await.is_err() {
                    return;
                }
                sent += 50;
            }
        };
        let mut came = Vec::new();
        let reading = async {
            let _ = from.read_to_end(&mut came).await;
        };
        let both = async {
            tokio::pin!(reading);
            tokio::select! {
                () = &mut reading => {}
                () = sending => reading.await,
            }
        };
        tokio::time::timeout(LIMIT, both).await.expect("the farm closes the connection");
        (sent, frames(&came))
    }

    /// The next frame.
    pub async fn next(&mut self) -> std::io::Result<Frame> {
        let mut head = [0; 9];
        tokio::time::timeout(LIMIT, self.0.read_exact(&mut head)).await.expect("a frame comes")?;
        let [a, b, c, kind, _, stream @ ..] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        self.0.read_exact(&mut payload).await?;
        Ok(Frame { kind, stream: u32::from_be_bytes(stream), payload })
    }

    /// The first frame of a kind on a stream.
    pub async fn wait_for(&mut self, kind: u8, stream: u32) -> std::io::Result<Frame> {
        loop {
            let frame = self.next().await?;
            if (frame.kind, frame.stream) == (kind, stream) {
                return Ok(frame);
            }
        }
    }
}

/// The frames in a stream of bytes; half a frame at its end is none.
fn frames(mut bytes: &[u8]) -> Vec<Frame> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, s1, s2, s3, s4, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        let stream = u32::from_be_bytes([*s1, *s2, *s3, *s4]);
        frames.push(Frame { kind: *kind, stream, payload: payload.to_vec() });
        bytes = rest;
    }
    frames
}

/// The error code of the last GOAWAY, if one came.
pub fn goodbye(frames: &[Frame]) -> Option<u32> {
    let last = frames.iter().rfind(|frame| frame.kind == GOAWAY)?;
    Some(u32::from_be_bytes(last.payload[4..8].try_into().unwrap()))
}
