//! The bytes of a connection, within limits: frames that bring nothing are counted, and a client that takes nothing of what it
//! asked for is cut.

use super::frames::Frames;
use crate::clock::runtime_now;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

/// A connection.
pub(super) struct Line<Io> {
    io: Io,
    /// Of HTTP/2.
    frames: Option<Frames>,
    patience: Duration,
    /// Set while nothing could be written.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<Io> Line<Io> {
    pub(super) fn new(io: Io, http2: bool, patience: Duration) -> Self {
        Self { io, frames: http2.then(Frames::new), patience, stalled: None }
    }

    /// What a write gave; one that has not given anything for too long is an error.
    fn wrote(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(done) = done {
            self.stalled = None;
            if let (Ok(bytes), Some(frames)) = (&done, &mut self.frames) {
                frames.wrote(*bytes);
            }
            return Poll::Ready(done);
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
        let Some(frames) = &mut self.frames else { return Poll::Ready(Ok(())) };
        let noted = frames.read(&buf.filled()[before..]).map_err(io::Error::other);
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
        self.wrote(cx, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write_vectored(cx, bytes);
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
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    #[tokio::test(start_paused = true)]
    async fn who_does_not_read_is_cut_and_who_reads_slowly_is_not() {
        let (near, mut far) = duplex(10);
        let mut line = Line::new(near, false, Duration::from_secs(10));
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
        let mut line = Line::new(near, true, Duration::from_secs(10));
        far.write_all(&[b'P'; 24]).await.unwrap();
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        far.write_all(&ping.repeat(20_000)).await.unwrap();
        let mut bytes = Vec::new();
        assert!(line.read_to_end(&mut bytes).await.unwrap_err().to_string().contains("bring nothing"));
        assert!(bytes.len() < 12_000 * ping.len());
    }
}
