//! Telling a client that it has reached a limit.

use super::ledger::Over;
use super::limits::{HTTP1_HEAD_MAX_BYTES, URL_MAX_BYTES};
use crate::rpc_error;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode, request};
use hyper::body::{Bytes, Frame, SizeHint};
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tonic::Code;

/// Whether the request is one of gRPC.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// The answer to a request over a limit: 429 with `Retry-After`, or RESOURCE_EXHAUSTED with the reason `busy`.
pub(super) fn over(over: Over, headers: &HeaderMap) -> Response {
    let wait = match over {
        Over::Rate { wait } => wait,
        Over::Arrivals | Over::Handshakes | Over::Connections | Over::Requests => Duration::from_secs(1),
    };
    // Whole seconds, and not none.
    let secs = wait.as_secs() + 1;
    let message = format!("{over} by this client; try again in {secs} s");
    if is_grpc(headers) {
        let mut status = rpc_error::refusal(Code::ResourceExhausted, rpc_error::BUSY, message);
        status.metadata_mut().insert("retry-after", secs.into());
        return status.into_http();
    }
    (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, secs.to_string())], format!("Busy: {message}\n")).into_response()
}

/// What is wrong with a request's head, if anything is. The buffer that it came through may have held more than it should.
pub(super) fn bad_head(head: &request::Parts) -> Option<Response> {
    let length = head.uri.path_and_query().map_or(0, |text| text.as_str().len());
    if length > URL_MAX_BYTES {
        let text = format!("UriTooLong: the URL has {length} bytes; the limit is {URL_MAX_BYTES}\n");
        return Some((StatusCode::URI_TOO_LONG, text).into_response());
    }
    let length: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (length > HTTP1_HEAD_MAX_BYTES).then(|| {
        let text = format!("HeadersTooLong: they have {length} bytes; the limit is {HTTP1_HEAD_MAX_BYTES}\n");
        (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text).into_response()
    })
}

/// What is wrong with the bytes of a connection that ended for that: they are no request, or one with too long a head.
pub(super) fn no_request(error: &(dyn Error + Send + Sync + 'static)) -> Option<String> {
    let error: &hyper::Error = error.downcast_ref()?;
    error.is_parse().then(|| error.to_string())
}

/// An answer that counts as running, in whatever counts, until all of it was sent.
pub(super) struct Held<Counts> {
    body: Body,
    _counts: Counts,
}

impl<Counts> Held<Counts> {
    pub(super) fn new(body: Body, counts: Counts) -> Self {
        Self { body, _counts: counts }
    }
}

impl<Counts: Unpin> hyper::body::Body for Held<Counts> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;

    #[test]
    fn the_answer_is_one_that_the_client_understands() {
        let rate = Over::Rate { wait: Duration::from_millis(200) };
        let answer = over(rate, &HeaderMap::new());
        assert_eq!(
            (answer.status(), &answer.headers()[RETRY_AFTER]),
            (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap())
        );
        let grpc = HeaderMap::from_iter([(CONTENT_TYPE, "application/grpc+proto".parse().unwrap())]);
        let answer = over(Over::Requests, &grpc);
        assert_eq!(answer.status(), StatusCode::OK);
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!((status.code(), rpc_error::reason_of(&status).as_deref()), (Code::ResourceExhausted, Some("busy")));
        assert_eq!(status.metadata().get("retry-after").unwrap(), "2");
    }
}
