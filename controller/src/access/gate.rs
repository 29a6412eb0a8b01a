//! What every request passes first: who is it, and may they?

use super::guesses::Guesses;
use super::revoked::is_revoked;
use super::table::{self, Refused};
use crate::audit::{self, Audit, Recorded};
use crate::driver::Handle;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use railyard_common::time::Millis;
use railyard_common::token::{Token, TokenId, TokenKind};
use railyard_core::Access;
use railyard_service::clock::Clock;
use railyard_service::listener::{Peer, Proof};
use railyard_service::rpc_error;
use railyard_service::tls::Identity;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::watch;
use tonic::{Code, Status};

/// The gate. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    access: watch::Receiver<Arc<Access>>,
    clock: Arc<dyn Clock>,
    guesses: Arc<Guesses>,
    audit: Audit,
}

impl Gate {
    /// Lets those in whom the table and `farm`'s tokens let in.
    pub fn new(farm: &Handle, clock: Arc<dyn Clock>, guesses: Arc<Guesses>, audit: Audit) -> Self {
        Self { access: farm.access(), clock, guesses, audit }
    }

    /// Finds out who it is; that is in the request's extensions then. Gives until when an answer may go on.
    fn admit(&self, request: &mut Request) -> Result<Option<Pass>, Status> {
        let peer = request.extensions().get::<Peer>().cloned();
        let mut peer = peer.unwrap_or_else(|| Peer::nobody(SocketAddr::from(([0, 0, 0, 0], 0))));
        if is_revoked(&self.access.borrow(), &peer) {
            return Err(revoked());
        }
        let mut pass = None;
        if let Some(shown) = token_of(request.headers()) {
            let recorded = request.extensions().get::<Recorded>().cloned().unwrap_or_default();
            let (identity, id, until) = self.believe(&shown?, peer.addr, &recorded)?;
            peer = Peer { identity: Some(identity), proof: Some(Proof::Token(id)), ..peer };
            recorded.know(&peer);
            pass = Some(Pass { id, until });
        }
        // Whatever may answer there one day, the table says nothing about it.
        let call = call_of(request).ok_or_else(nothing_here)?;
        match table::refuses(&call, peer.identity.as_ref()) {
            None => {
                request.extensions_mut().insert(peer);
                Ok(pass)
            }
            Some(Refused::Nobody) => Err(nobody()),
            Some(Refused::Forbidden(why)) => Err(forbidden(why)),
            Some(Refused::NoRow) => Err(forbidden(format!("nobody may call {call}"))),
        }
    }

    /// Whom a bearer token stands for, and until when.
    fn believe(
        &self,
        shown: &str,
        from: SocketAddr,
        recorded: &Recorded,
    ) -> Result<(Identity, TokenId, Millis), Status> {
        let now = self.clock.now();
        too_often(&self.guesses, from, now).inspect_err(|status| {
            note_failure(&self.audit, from, None, status.message(), recorded);
        })?;
        let wrong = |id: Option<TokenId>, why: String| {
            self.guesses.wrong(from, now);
            note_failure(&self.audit, from, id, &why, recorded);
            rpc_error::refusal(Code::Unauthenticated, rpc_error::UNAUTHENTICATED, why)
        };
        let token = Token::parse(shown, TokenKind::Bearer).map_err(|error| wrong(None, error.to_string()))?;
        let access = self.access.borrow();
        let known = access.check(now, token.id, token.hash());
        let known = known.map_err(|refusal| wrong(Some(token.id), refusal.to_string()))?;
        Ok((known.identity.clone(), token.id, known.expires_at))
    }

    /// Ends when the pass is worth nothing any more.
    async fn until_over(self, pass: Pass) {
        let mut access = self.access;
        let left = Duration::from_millis(pass.until.since(self.clock.now()));
        let gone = access.wait_for(|access| access.tokens().all(|token| token.id != pass.id));
        // Out of time, taken back, or the farm has stopped: over in any case.
        let _ = tokio::time::timeout(left, gone).await;
    }
}

/// A bearer token lets in, until a time.
#[derive(Clone, Copy, Debug)]
struct Pass {
    id: TokenId,
    until: Millis,
}

/// The middleware around every route.
pub async fn gate(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    let is_grpc = is_grpc(request.headers());
    match gate.admit(&mut request) {
        Ok(None) => next.run(request).await,
        Ok(Some(pass)) => {
            let over: Over = Box::pin(gate.until_over(pass));
            next.run(request).await.map(|inner| Body::new(Ending { inner, over: Some(over) }))
        }
        Err(status) if is_grpc => status.into_http(),
        Err(status) => plain(&status),
    }
}

/// Refuses whoever was wrong too often of late.
pub fn too_often(guesses: &Guesses, from: SocketAddr, now: Millis) -> Result<(), Status> {
    let Some(secs) = guesses.wait_secs(from, now) else { return Ok(()) };
    let message = format!("too many wrong tokens came from this address; wait {secs} s");
    Err(rpc_error::refusal(Code::ResourceExhausted, rpc_error::BUSY, message))
}

/// Has it recorded that somebody showed a token that is worth nothing, or comes again too soon after such.
pub fn note_failure(audit: &Audit, from: SocketAddr, id: Option<TokenId>, why: &str, recorded: &Recorded) {
    let target = id.map_or_else(|| "token".to_owned(), |id| format!("token:{id}"));
    let entry = audit::Entry::new(audit::Act::LoginFailure).peer(&Peer::nobody(from)).target(target);
    audit.note(entry.refused(why));
    recorded.mark();
}

/// A caller whose certificate is worth nothing any more.
pub fn revoked() -> Status {
    let message = "this certificate was revoked; whoever is to come back needs a new token (`railyard token create`)";
    rpc_error::refusal(Code::Unauthenticated, rpc_error::REVOKED, message)
}

/// A caller who showed nothing.
pub fn nobody() -> Status {
    let message = "this call needs a client certificate of the farm or a bearer token; `railyard login` gets you one, or set \
                   `cert` and `key` in the client settings";
    rpc_error::refusal(Code::Unauthenticated, rpc_error::UNAUTHENTICATED, message)
}

/// Not for this caller.
pub fn forbidden(why: impl Into<String>) -> Status {
    rpc_error::refusal(Code::PermissionDenied, rpc_error::FORBIDDEN, why)
}

/// What browsers, curl and container engines understand: they send a bearer token as the password. The scheme `Bearer` means
/// another thing to container engines: they would look for a service that gives out tokens.
pub const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"railyard\"");

/// No route leads there.
fn nothing_here() -> Status {
    rpc_error::refusal(Code::Unimplemented, rpc_error::NOT_FOUND, "nothing is served here")
}

/// As people with a browser or curl see it.
fn plain(status: &Status) -> Response {
    let code = match status.code() {
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_FOUND,
        _ => StatusCode::FORBIDDEN,
    };
    let mut response = (code, format!("{}\n", status.message())).into_response();
    if code == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
    }
    response
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The row that is to be looked at: the method of a gRPC call, the route of another request. `None` where nobody answers.
fn call_of(request: &Request) -> Option<String> {
    let route = request.extensions().get::<MatchedPath>()?.as_str();
    let is_service = route.starts_with("/railyard.") || route.starts_with("/grpc.");
    Some(if is_service { request.uri().path() } else { route }.to_owned())
}

/// The token in the header `Authorization`, if there is one: as `Bearer TOKEN`, or as the password of `Basic`, which is all
/// that some clients can be told.
fn token_of(headers: &HeaderMap) -> Option<Result<String, Status>> {
    let value = headers.get(header::AUTHORIZATION)?;
    Some(parse_authorization(value.to_str().unwrap_or_default()).ok_or_else(|| {
        let message = "the header `authorization` is neither `Bearer TOKEN` nor `Basic` with a token as the password";
        rpc_error::refusal(Code::Unauthenticated, rpc_error::UNAUTHENTICATED, message)
    }))
}

pub(super) fn parse_authorization(value: &str) -> Option<String> {
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    let decoded = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(rest.trim()).ok()).flatten()?;
    let (_, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(password.to_owned())
}

type Over = Pin<Box<dyn Future<Output = ()> + Send>>;

/// An answer that ends when the token it was asked for with is worth nothing any more.
struct Ending {
    inner: Body,
    over: Option<Over>,
}

impl HttpBody for Ending {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let Some(over) = &mut self.over else { return Poll::Ready(None) };
        if over.as_mut().poll(cx).is_ready() {
            self.over = None;
            return Poll::Ready(Some(Err(axum::Error::new("the token is worth nothing any more"))));
        }
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_as_bearer_or_as_a_password() {
        let basic = format!("Basic {}", STANDARD.encode("ana:railyard-bearer-x"));
        for value in ["Bearer railyard-bearer-x", "bearer  railyard-bearer-x ", &basic] {
            assert_eq!(parse_authorization(value).as_deref(), Some("railyard-bearer-x"), "{value}");
        }
        let unusable = ["", "Bearer", "Digest x", "Basic ???", "Basic YW5h"];
        assert!(unusable.iter().all(|value| parse_authorization(value).is_none()));
    }
}
