//! Who is turned away is recorded in one place, whichever part of the controller did it.

use crate::audit::{Act, Audit, By, Entry, Recorded};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use railyard_service::listener::Peer;
use tonic::{Code, Status};

/// A layer around everything that the controller serves: records every answer that says "you may not".
pub async fn note_refusals(State(audit): State<Audit>, mut request: Request, next: Next) -> Response {
    let recorded = Recorded::default();
    request.extensions_mut().insert(recorded.clone());
    let asked = Asked::of(&request);
    let response = next.run(request).await;
    if let Some(why) = asked.why_refused(&response).filter(|_| !recorded.is_marked()) {
        audit.note(asked.entry(recorded.known()).refused(why));
    }
    response
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

    fn why_refused(&self, response: &Response) -> Option<String> {
        if self.is_grpc {
            let status = Status::from_header_map(response.headers())?;
            let is_refusal = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated);
            return is_refusal.then(|| status.message().to_owned());
        }
        // Whoever shows nothing is only asked for something: every client of a registry begins so.
        let status = response.status();
        let is_refusal =
            status == StatusCode::FORBIDDEN || (status == StatusCode::UNAUTHORIZED && self.has_credentials);
        is_refusal.then(|| status.to_string())
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
    const NO_ACTS: [&str; 22] = [
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
        "PlanSweep",
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
