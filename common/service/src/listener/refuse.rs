//! Telling a client that it has reached a limit.

use super::ledger::Over;
use super::limits::{HTTP1_HEAD_MAX_BYTES, HTTP2_HEAD_MAX_BYTES, URL_MAX_BYTES};
use crate::rpc_error;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, StatusCode, Version, request};
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

/// The answer to a request whose head is wrong, and what is wrong with it. The buffer that it came through may have held more
/// than it should.
pub(super) fn bad_head(head: &request::Parts) -> Option<(Response, String)> {
    let (status, text) = too_long(head)?;
    let answer = if is_grpc(&head.headers) {
        rpc_error::refusal(Code::InvalidArgument, rpc_error::BAD_REQUEST, text.clone()).into_http()
    } else {
        (status, format!("{text}\n")).into_response()
    };
    Some((answer, format!("{status}: {text}")))
}

fn too_long(head: &request::Parts) -> Option<(StatusCode, String)> {
    let length = head.uri.path_and_query().map_or(0, |text| text.as_str().len());
    if length > URL_MAX_BYTES {
        let text = format!("UriTooLong: the URL has {length} bytes; the limit is {URL_MAX_BYTES}");
        return Some((StatusCode::URI_TOO_LONG, text));
    }
    let most = if head.version == Version::HTTP_2 { HTTP2_HEAD_MAX_BYTES } else { HTTP1_HEAD_MAX_BYTES };
    let length: usize = head.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    (length > most).then(|| {
        let text = format!("HeadersTooLong: they have {length} bytes; the limit is {most}");
        (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text)
    })
}

/// What is wrong with the bytes of a connection that ended for that: they are no request, one with too long a head, or one
/// whose head was begun (`within`) and did not end.
pub(super) fn no_request(error: &(dyn Error + Send + Sync + 'static), within: bool) -> Option<String> {
    let error: &hyper::Error = error.downcast_ref()?;
    if error.is_timeout() && within {
        return Some(SLOW_HEAD.to_owned());
    }
    error.is_parse().then(|| error.to_string())
}

/// Of a request that begins and does not go on.
pub(super) const SLOW_HEAD: &str = "the head of a request did not come to its end in time";

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
