//! The bytes of a connection, within limits: frames that bring nothing are counted, what breaks the protocol is told, and a
//! client that takes nothing of what it asked for is cut.

use super::frames::Frames;
use super::peer::Complaints;
use crate::clock::runtime_now;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

/// A connection.
pub(super) struct Line<Io> {
    io: Io,
    /// Of HTTP/2.
    frames: Option<Frames>,
    complaints: Complaints,
    within: Arc<AtomicBool>,
    patience: Duration,
    /// Set while nothing could be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<Io> Line<Io> {
    pub(super) fn new(io: Io, http2: bool, patience: Duration, complaints: Complaints) -> Self {
        Self { io, frames: http2.then(Frames::new), complaints, within: Arc::default(), patience, stalled: None }
    }

    /// Whether the client has begun to say something since the last answer and has not ended it.
    pub(super) fn within(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.within)
    }

    /// Takes note of bytes that came in.
    fn heard(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(frames) = &mut self.frames else {
            if !bytes.is_empty() {
                self.within.store(true, Ordering::Relaxed);
            }
            return Ok(());
        };
        let noted = frames.read(bytes, |fault| self.complaints.fault(fault));
        self.within.store(frames.is_within(), Ordering::Relaxed);
        noted.map_err(|fault| {
            self.complaints.fault(fault);
            io::Error::other(fault)
        })
    }

    /// Takes note of bytes that went out.
    fn said(&mut self, bytes: &[u8]) {
        match &mut self.frames {
            Some(frames) => frames.wrote(bytes, |fault| self.complaints.fault(fault)),
            None => self.within.store(false, Ordering::Relaxed),
        }
    }

    /// What a write gave; one that has not given anything for too long is an error.
    fn wrote(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if done.is_ready() {
            self.stalled = None;
            return done;
        }
        let until = runtime_now() + self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(until)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read what it asked for")))
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Line<Io> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let noted = self.heard(&buf.filled()[before..]);
        if noted.is_err() {
            // Who gets an error gets no bytes.
            buf.set_filled(before);
        }
        Poll::Ready(noted)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Line<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write(cx, bytes);
        if let Poll::Ready(Ok(written)) = done {
            self.said(&bytes[..written]);
        }
        self.wrote(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
        if let Poll::Ready(Ok(mut written)) = done {
            for bytes in bytes {
                let now = written.min(bytes.len());
                self.said(&bytes[..now]);
                written -= now;
            }
        }
        self.wrote(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_flush(cx);
        self.wrote(cx, done.map_ok(|()| 0)).map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_shutdown(cx);
        self.wrote(cx, done.map_ok(|()| 0)).map_ok(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::{BadRequests, Peer};
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    fn nobody() -> Peer {
        Peer::nobody(([127, 0, 0, 1], 9).into())
    }

    fn untold() -> Complaints {
        Complaints::new(nobody(), BadRequests::untold())
    }

    #[tokio::test]
    async fn what_has_begun_is_known_until_it_is_answered() {
        let (near, mut far) = duplex(1_000);
        let mut line = Line::new(near, false, Duration::from_secs(10), untold());
        let within = line.within();
        assert!(!within.load(Ordering::Relaxed));
        far.write_all(b"GET").await.unwrap();
        line.read_exact(&mut [0; 3]).await.unwrap();
        assert!(within.load(Ordering::Relaxed));
        line.write_all(b"HTTP/1.1 204").await.unwrap();
        assert!(!within.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_cut_and_who_reads_slowly_is_not() {
        let (near, mut far) = duplex(10);
        let mut line = Line::new(near, false, Duration::from_secs(10), untold());
        let sending = crate::task::spawn("sender", async move { line.write_all(&[7; 100]).await });
        let mut some = [0; 10];
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(9)).await;
            far.read_exact(&mut some).await.unwrap();
        }
        assert_eq!(sending.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_the_connection() {
        let (near, mut far) = duplex(1 << 20);
        let told = Arc::<Mutex<Vec<String>>>::default();
        let hear = Arc::clone(&told);
        let to = BadRequests::told_to(move |_, what, why| hear.lock().unwrap().push(format!("{what}: {why}")));
        let complaints = Complaints::new(nobody(), to);
        let mut line = Line::new(near, true, Duration::from_secs(10), complaints);
        far.write_all(&[b'P'; 24]).await.unwrap();
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        far.write_all(&ping.repeat(20_000)).await.unwrap();
        let mut bytes = Vec::new();
        assert!(line.read_to_end(&mut bytes).await.unwrap_err().to_string().contains("bring nothing"));
        assert!(bytes.len() < 12_000 * ping.len());
        assert_eq!(*told.lock().unwrap(), ["connection: too many HTTP/2 frames that bring nothing"]);
    }
}
