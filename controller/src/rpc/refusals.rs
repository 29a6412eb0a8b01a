//! Who is turned away, and what makes no sense, is recorded in one place, whichever part of the controller said so.

use crate::audit::{Act, Audit, By, Entry, Recorded};
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::{Frame, SizeHint};
use railyard_service::listener::Peer;
use railyard_service::rpc_error;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::{Code, Status};

/// A layer around everything that the controller serves: records every answer that says "you may not", or "that is nothing".
pub async fn note_refusals(State(audit): State<Audit>, mut request: Request, next: Next) -> Response {
    let recorded = Recorded::default();
    request.extensions_mut().insert(recorded.clone());
    let asked = Asked::of(&request);
    let is_grpc = asked.is_grpc;
    let note = Note { audit, recorded, asked };
    let mut response = next.run(request).await;
    if !is_grpc {
        note.http(response.status());
        return response;
    }
    if let Some(status) = ended(response.headers_mut()) {
        note.call(&status);
        return response;
    }
    // How the call ends is said behind its answers.
    response.map(|inner| Body::new(Trailing { inner, note: Some(note) }))
}

/// How a call ends, if that is said here. What the library could not read it refuses without a reason, and partly as a fault of
/// ours: everything that the farm itself refuses has one.
fn ended(headers: &mut HeaderMap) -> Option<Status> {
    let status = Status::from_header_map(headers)?;
    let code = match status.code() {
        Code::InvalidArgument | Code::Internal => Code::InvalidArgument,
        Code::OutOfRange => Code::OutOfRange,
        _ => return Some(status),
    };
    if rpc_error::reason_of(&status).is_some() {
        return Some(status);
    }
    let told = rpc_error::refusal(code, rpc_error::BAD_REQUEST, status.message());
    // A header can hold whatever it came from.
    told.add_header(headers).ok().map(|()| told)
}

/// Writes the record of a request, if it is one that was refused.
struct Note {
    audit: Audit,
    recorded: Recorded,
    asked: Asked,
}

impl Note {
    fn http(self, status: StatusCode) {
        let is_refusal = match status {
            // Whoever shows nothing is only asked for something: every client of a registry begins so.
            StatusCode::UNAUTHORIZED => self.asked.has_credentials,
            StatusCode::FORBIDDEN
            | StatusCode::BAD_REQUEST
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::URI_TOO_LONG
            | StatusCode::RANGE_NOT_SATISFIABLE
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => true,
            _ => false,
        };
        if is_refusal {
            self.write(&status.to_string());
        }
    }

    /// What the farm's state does not allow just now is no refusal in this sense: honest workers hear of stale leases. Those of others
    /// they never name.
    fn call(self, status: &Status) {
        use Code::{DataLoss, DeadlineExceeded, InvalidArgument, OutOfRange, PermissionDenied, Unauthenticated};
        let code = status.code();
        let is_bad = matches!(code, InvalidArgument | OutOfRange | DataLoss | DeadlineExceeded);
        if is_bad || matches!(code, PermissionDenied | Unauthenticated) || rpc_error::is_suspicious(status) {
            self.write(status.message());
        }
    }

    fn write(self, why: &str) {
        let Self { audit, recorded, asked } = self;
        if !recorded.is_marked() {
            audit.note(asked.entry(recorded.known()).refused(why));
        }
    }
}

/// The answers to a call, whose end may be a refusal.
struct Trailing {
    inner: Body,
    note: Option<Note>,
}

impl HttpBody for Trailing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut polled = Pin::new(&mut self.inner).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(status) = frame.trailers_mut().and_then(ended)
            && let Some(note) = self.note.take()
        {
            note.call(&status);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What is kept of a request until its answer is there.
struct Asked {
    peer: Option<Peer>,
    /// For HTTP with the method in front. Never the query: signatures stand there.
    path: String,
    is_grpc: bool,
    /// It showed something that is to say who it is.
    has_credentials: bool,
}

impl Asked {
    fn of(request: &Request) -> Self {
        let path = request.uri().path();
        let is_grpc = is_grpc(request.headers());
        Self {
            peer: request.extensions().get::<Peer>().cloned(),
            path: if is_grpc { path.to_owned() } else { format!("{} {path}", request.method()) },
            is_grpc,
            has_credentials: request.headers().contains_key(header::AUTHORIZATION),
        }
    }

    /// `known`: who it is, if the connection does not say.
    fn entry(self, known: Option<&Peer>) -> Entry {
        let method = self.path.rsplit('/').next().filter(|_| self.is_grpc).unwrap_or_default();
        let entry = Entry::new(act_of(method)).target(&self.path);
        match known.or(self.peer.as_ref()) {
            Some(peer) => entry.peer(peer),
            None => entry.by(By::Nobody),
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The act that a call would have been, where its name says it.
fn act_of(method: &str) -> Act {
    match method {
        "Submit" => Act::Submit,
        "Cancel" => Act::Cancel,
        "Approve" => Act::Approve,
        "Retry" => Act::Retry,
        // Or a drain, or to retire it: the call says that later, and all three begin so.
        "HoldWorker" => Act::Cordon,
        "ReleaseWorker" => Act::Uncordon,
        "PinBuild" => Act::Pin,
        "UnpinBuild" => Act::Unpin,
        "TagBuild" => Act::Tag,
        "PromoteBuild" => Act::Promote,
        "UntagBuild" => Act::Untag,
        "DeleteBuild" => Act::Delete,
        "Backup" => Act::Backup,
        "CreateToken" => Act::TokenCreate,
        "RevokeToken" => Act::TokenRevoke,
        "Enrol" => Act::Enrol,
        "Renew" => Act::Renew,
        "Revoke" => Act::Revoke,
        "SetSecret" => Act::SecretSet,
        "RemoveSecret" => Act::SecretRemove,
        "FetchSecrets" => Act::SecretGive,
        "PlanSweep" => Act::SweepPlan,
        "RunSweep" => Act::Sweep,
        "ResumeSweep" => Act::PolicyChange,
        _ => Act::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::table::TABLE;

    /// Calls that only look, or by which workers do their work.
    const NO_ACTS: [&str; 21] = [
        "GetFarm",
        "Plan",
        "ListBuilds",
        "GetBuild",
        "WatchBuild",
        "ReadLog",
        "SignArtifacts",
        "ListWorkers",
        "Session",
        "AppendLog",
        "PrepareUpload",
        "SignParts",
        "PrepareDownload",
        "Report",
        "ShowAudit",
        "VerifyAudit",
        "ListSecrets",
        "ListTokens",
        "Check",
        "Watch",
        "ServerReflectionInfo",
    ];

    #[test]
    fn every_call_that_changes_something_has_its_act() {
        let calls = TABLE.iter().map(|row| row.call).filter(|call| call.contains('.'));
        let methods: Vec<&str> = calls.filter_map(|call| call.rsplit('/').next()).collect();
        assert!(methods.len() > 40, "{methods:?}");
        for method in methods {
            assert_eq!(act_of(method) == Act::Refused, NO_ACTS.contains(&method), "{method}");
        }
    }
}
