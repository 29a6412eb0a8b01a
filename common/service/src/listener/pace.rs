//! The body of a request, within limits: what is waited for must come, and messages that are half there must not fill the memory.

use super::ledger::Account;
use super::limits::{MESSAGES_MAX_BYTES, PACE_BYTES, SMALL_MESSAGE_BYTES};
use crate::clock::runtime_now;
use crate::rpc_error;
use hyper::body::{Body, Bytes, Frame, SizeHint};
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::PollSemaphore;
use tonic::Code;

type BoxError = Box<dyn Error + Send + Sync>;

/// The body came too slowly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body of the request came too slowly")]
pub struct TooSlow;

/// A body.
pub(super) struct Paced<B> {
    body: B,
    pace: Pace,
    /// Of gRPC.
    messages: Option<Messages>,
    /// Came, and waits for room for the message that begins in it.
    held: Option<Bytes>,
    /// How long it has waited for that.
    wait: Pace,
}

impl<B> Paced<B> {
    /// A body that must come at least as fast as `patience` says: the whole of it, or with `grpc` each message.
    pub(super) fn new(body: B, patience: Duration, grpc: Option<&Account>) -> Self {
        let messages = grpc.map(|account| Messages::new(PollSemaphore::new(Arc::clone(&account.messages))));
        Self { body, pace: Pace::new(patience), messages, held: None, wait: Pace::new(patience) }
    }

    /// Others of the client's have begun before and do not end.
    fn no_room() -> BoxError {
        let message = format!(
            "{} MiB of this client's messages have begun and are not whole; send them to their end, or fewer at a time",
            MESSAGES_MAX_BYTES >> 20
        );
        rpc_error::refusal(Code::ResourceExhausted, rpc_error::BUSY, message).into()
    }

    /// gRPC hands a status on to the client as it is.
    fn too_slow(&self) -> BoxError {
        let status = || rpc_error::refusal(Code::DeadlineExceeded, rpc_error::TOO_SLOW, TooSlow.to_string());
        if self.messages.is_some() { status().into() } else { TooSlow.into() }
    }
}

impl<B> Body for Paced<B>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.held.is_none() {
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Pending if this.messages.as_ref().is_some_and(Messages::is_between) => {
                    this.pace.rest();
                    return Poll::Pending;
                }
                Poll::Pending => {
                    ready!(this.pace.poll_wait(cx));
                    return Poll::Ready(Some(Err(this.too_slow())));
                }
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => {
                        this.pace.got(bytes.len());
                        if let Some(messages) = &mut this.messages {
                            messages.read(&bytes);
                        }
                        this.held = Some(bytes);
                    }
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => return Poll::Ready(None),
            }
        }
        if let Some(messages) = &mut this.messages {
            if messages.poll_room(cx).is_pending() {
                ready!(this.wait.poll_wait(cx));
                return Poll::Ready(Some(Err(Self::no_room())));
            }
            this.wait.rest();
        }
        Poll::Ready(this.held.take().map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// How long was waited, and for how much.
struct Pace {
    patience: Duration,
    /// Since the last [`PACE_BYTES`]; only what the reader really waited.
    waited: Duration,
    bytes: usize,
    since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn new(patience: Duration) -> Self {
        Self { patience, waited: Duration::ZERO, bytes: 0, since: None, alarm: None }
    }

    /// Nothing is waited for now.
    fn rest(&mut self) {
        (self.waited, self.bytes, self.since) = (Duration::ZERO, 0, None);
    }

    fn got(&mut self, bytes: usize) {
        self.waited += self.since.take().map_or(Duration::ZERO, |since| runtime_now().saturating_duration_since(since));
        self.bytes += bytes;
        if self.bytes >= PACE_BYTES {
            self.rest();
        }
    }

    /// Ready when it was waited for too long.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = runtime_now();
        let since = *self.since.get_or_insert(now);
        let until = since + self.patience.saturating_sub(self.waited);
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if alarm.deadline() != until {
            alarm.as_mut().reset(until);
        }
        alarm.as_mut().poll(cx)
    }
}

/// The messages of a gRPC body: a flag, four bytes of length, and as many bytes.
struct Messages {
    /// Bytes of a message's head that have come.
    head: usize,
    length: u32,
    /// Bytes of the message that have not come.
    left: usize,
    room: PollSemaphore,
    /// Pieces of room that the message which has begun still needs.
    wanted: u32,
    taken: Option<OwnedSemaphorePermit>,
}

const HEAD_BYTES: usize = 5;

impl Messages {
    fn new(room: PollSemaphore) -> Self {
        Self { head: 0, length: 0, left: 0, room, wanted: 0, taken: None }
    }

    /// Whether the next byte begins a message, or the head that has begun says nothing yet.
    fn is_between(&self) -> bool {
        self.head == 0 && self.left == 0
    }

    /// Takes note of bytes that came. Of the messages in them only the last one can be unfinished.
    fn read(&mut self, mut bytes: &[u8]) {
        while let [first, rest @ ..] = bytes {
            if self.left > 0 {
                let now = self.left.min(bytes.len());
                self.left -= now;
                bytes = &bytes[now..];
                if self.left == 0 {
                    self.done();
                }
                continue;
            }
            // The first byte is the flag.
            self.length = if self.head == 0 { 0 } else { self.length << 8 | u32::from(*first) };
            self.head += 1;
            bytes = rest;
            if self.head == HEAD_BYTES {
                self.head = 0;
                self.left = usize::try_from(self.length).unwrap_or(usize::MAX);
                self.begin();
            }
        }
    }

    fn begin(&mut self) {
        if self.left >= SMALL_MESSAGE_BYTES {
            // Whoever announces more than any message may have is refused by whoever reads it.
            let pieces = self.left.min(MESSAGES_MAX_BYTES) / SMALL_MESSAGE_BYTES;
            self.wanted = u32::try_from(pieces).unwrap_or(u32::MAX);
        }
    }

    fn done(&mut self) {
        self.wanted = 0;
        self.taken = None;
    }

    /// Ready when there is room for the message that has begun.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.wanted > 0 {
            // `None` only from a semaphore that was closed, which nobody does.
            self.taken = ready!(self.room.poll_acquire_many(cx, self.wanted));
            self.wanted = 0;
        }
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::{Client, Ledger};
    use super::*;
    use axum::body::Body as AnyBody;
    use proptest::prelude::*;
    use tokio::sync::{Semaphore, mpsc};
    use tokio_stream::wrappers::ReceiverStream;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A body that the test sends piece by piece.
    fn stream_of() -> (mpsc::Sender<Result<Bytes, std::io::Error>>, AnyBody) {
        let (to, from) = mpsc::channel(64);
        (to, AnyBody::from_stream(ReceiverStream::new(from)))
    }

    /// The next bytes of a body.
    async fn next(body: &mut Paced<AnyBody>) -> Result<Option<Bytes>, String> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.transpose().map(|frame| frame.and_then(|frame| frame.into_data().ok())).map_err(|e| e.to_string())
    }

    fn account() -> Arc<Account> {
        Ledger::new(Arc::default()).account(Client::at([192, 0, 2, 1].into()))
    }

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
        bytes.resize(HEAD_BYTES + length, 1);
        bytes
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_cut_and_one_that_is_merely_slow_is_not() {
        let (to, body) = stream_of();
        let mut body = Paced::new(body, PATIENCE, None);
        let slow = crate::task::spawn("slow", async move {
            for _ in 0..100 {
                tokio::time::sleep(PATIENCE / 20).await;
                to.send(Ok(Bytes::from(vec![0; PACE_BYTES / 10]))).await.unwrap();
            }
            loop {
                tokio::time::sleep(PATIENCE / 10).await;
                if to.send(Ok(Bytes::from_static(b"drip"))).await.is_err() {
                    return;
                }
            }
        });
        let begun = runtime_now();
        let mut got = 0;
        let ended = loop {
            match next(&mut body).await {
                Ok(bytes) => got += bytes.unwrap().len(),
                Err(error) => break error,
            }
        };
        assert_eq!(ended, TooSlow.to_string());
        assert!(got >= 100 * (PACE_BYTES / 10) && runtime_now() - begun < 8 * PATIENCE, "{got}");
        drop(body);
        slow.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_its_time_is_not_the_sender_s_fault() {
        let (to, body) = stream_of();
        let mut body = Paced::new(body, PATIENCE, None);
        for _ in 0..10 {
            to.send(Ok(Bytes::from_static(b"x"))).await.unwrap();
            tokio::time::sleep(PATIENCE).await;
            assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn between_messages_any_time_may_pass_and_within_one_it_may_not() {
        let (to, body) = stream_of();
        let mut body = Paced::new(body, PATIENCE, Some(&account()));
        let sending = crate::task::spawn("sender", async move {
            for _ in 0..3 {
                tokio::time::sleep(100 * PATIENCE).await;
                to.send(Ok(message(10).into())).await.unwrap();
            }
            to.send(Ok(message(10)[..12].to_vec().into())).await.unwrap();
            to.closed().await;
        });
        for _ in 0..3 {
            assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 15);
        }
        assert_eq!(next(&mut body).await.unwrap().unwrap().len(), 12);
        let begun = runtime_now();
        assert!(next(&mut body).await.unwrap_err().contains(&TooSlow.to_string()));
        assert!(runtime_now() - begun <= PATIENCE * 2);
        drop(body);
        sending.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn big_messages_that_have_begun_share_the_room_of_their_client() {
        let account = account();
        let half = MESSAGES_MAX_BYTES / 2;
        let mut open = Vec::new();
        for _ in 0..3 {
            let (to, body) = stream_of();
            to.send(Ok(message(half)[..100].to_vec().into())).await.unwrap();
            open.push((to, Paced::new(body, PATIENCE, Some(&account))));
        }
        let (to, third) = &mut open.remove(2);
        for (_, body) in &mut open {
            assert_eq!(next(body).await.unwrap().unwrap().len(), 100);
        }
        // Whoever asks for room in vain is told so, in time for others to come after it.
        let (late, body) = stream_of();
        late.send(Ok(message(half)[..100].to_vec().into())).await.unwrap();
        let (begun, mut fourth) = (runtime_now(), Paced::new(body, PATIENCE, Some(&account)));
        let refused = next(&mut fourth).await.unwrap_err();
        assert!(refused.contains("64 MiB of this client's messages") && runtime_now() - begun <= PATIENCE, "{refused}");
        drop(fourth);
        let soon = Duration::from_secs(5);
        assert!(tokio::time::timeout(soon, next(third)).await.is_err(), "there is no room for a third");
        // A small one needs none.
        let (small_to, small) = stream_of();
        small_to.send(Ok(message(10).into())).await.unwrap();
        assert!(next(&mut Paced::new(small, PATIENCE, Some(&account))).await.unwrap().is_some());
        open.pop();
        assert_eq!(next(third).await.unwrap().unwrap().len(), 100);
        // What follows of a message that has its room comes through; at its end the room is free.
        to.send(Ok(message(half)[100..].to_vec().into())).await.unwrap();
        assert!(next(third).await.unwrap().is_some());
        drop(open);
        assert_eq!(account.messages.available_permits(), MESSAGES_MAX_BYTES / SMALL_MESSAGE_BYTES);
    }

    proptest! {
        #[test]
        fn how_bytes_are_cut_makes_no_difference(
            lengths in prop::collection::vec(0_usize..300, 0..20),
            cuts in prop::collection::vec(1_usize..100, 1..20),
        ) {
            let bytes: Vec<u8> = lengths.iter().flat_map(|length| message(*length)).collect();
            let mut messages = Messages::new(PollSemaphore::new(Arc::new(Semaphore::new(1))));
            let (mut rest, mut cuts) = (bytes.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                messages.read(now);
                rest = later;
            }
            prop_assert!(messages.is_between());
        }
    }
}
