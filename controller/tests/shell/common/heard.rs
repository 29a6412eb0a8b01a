//! Everything that the controller says to a worker, as it says it: headers, messages, trailers.

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::transport::{Channel, Error};
use tower::Service;

/// A connection that keeps what comes over it.
#[derive(Clone)]
pub struct Heard {
    channel: Channel,
    said: Said,
}

/// What was said so far.
#[derive(Clone, Default)]
pub struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    fn add(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }

    fn add_headers(&self, headers: &http::HeaderMap) {
        for (name, value) in headers {
            self.add(&[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\n"].concat());
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Heard {
    pub fn new(channel: Channel) -> Self {
        Self { channel, said: Said::default() }
    }

    pub fn said(&self) -> Said {
        self.said.clone()
    }
}

impl Service<http::Request<Body>> for Heard {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (answer, said) = (self.channel.call(request), self.said.clone());
        Box::pin(async move {
            let answer = answer.await?;
            said.add_headers(answer.headers());
            Ok(answer.map(|body| Body::new(HeardBody { body, said })))
        })
    }
}

struct HeardBody {
    body: Body,
    said: Said,
}

impl hyper::body::Body for HeardBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            frame.data_ref().into_iter().for_each(|bytes| self.said.add(bytes));
            frame.trailers_ref().into_iter().for_each(|trailers| self.said.add_headers(trailers));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
