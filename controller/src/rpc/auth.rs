//! Who may call what: one table.

use axum::middleware::Next;
use axum::response::Response;
use railyard_common::id::WorkerName;
use railyard_service::listener::Peer;
use railyard_service::rpc_error;
use railyard_service::tls::{Identity, Role};
use tonic::{Code, Request, Status};

/// What a call does, for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Looks at builds, logs, artifacts, workers.
    Read,
    /// Submits, cancels, retries.
    Change,
    /// Approves, holds workers back, lets a build go before everything else, takes the whole state away as a backup.
    Operate,
    /// Runs jobs.
    Work,
}

/// The table: a role's row says what it may do.
fn may(role: Role, act: Act) -> bool {
    match role {
        Role::Viewer => act == Act::Read,
        Role::Submitter => matches!(act, Act::Read | Act::Change),
        Role::Operator => matches!(act, Act::Read | Act::Change | Act::Operate),
        Role::Worker => act == Act::Work,
    }
}

/// Paths of the farm's own calls begin so; health and reflection are for everybody.
const OWN_CALLS: &str = "/railyard.";

fn nobody() -> Status {
    let message = "this call needs a client certificate of the farm; set `cert` and `key` in the client settings";
    rpc_error::refusal(Code::Unauthenticated, rpc_error::UNAUTHENTICATED, message)
}

/// Turns away whoever shows no certificate by the headers alone: a service looks at the caller only when it has read the
/// whole message.
pub async fn gate(request: axum::extract::Request, next: Next) -> Response {
    let identified = request.extensions().get::<Peer>().is_some_and(|peer| peer.identity.is_some());
    if identified || !request.uri().path().starts_with(OWN_CALLS) {
        next.run(request).await
    } else {
        nobody().into_http()
    }
}

/// The caller, if it may do that.
pub(super) fn allow<T>(request: &Request<T>, act: Act) -> Result<Identity, Status> {
    let peer = request.extensions().get::<Peer>();
    let Some(identity) = peer.and_then(|peer| peer.identity.clone()) else { return Err(nobody()) };
    require(&identity, act, "do this")?;
    Ok(identity)
}

/// Refuses whoever may not do that; `what` says what it is.
pub(super) fn require(identity: &Identity, act: Act, what: &str) -> Result<(), Status> {
    if may(identity.role, act) {
        return Ok(());
    }
    let whose = if act == Act::Operate { "; it is the operator's" } else { "" };
    let message = format!("{} {} may not {what}{whose}", identity.role.as_str(), identity.name);
    Err(rpc_error::refusal(Code::PermissionDenied, rpc_error::FORBIDDEN, message))
}

/// The worker that calls.
pub(super) fn worker<T>(request: &Request<T>) -> Result<WorkerName, Status> {
    let identity = allow(request, Act::Work)?;
    identity.name.parse().map_err(super::bad_request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(identity: Option<Identity>) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(Peer { identity, ..Peer::nobody(([127, 0, 0, 1], 1).into()) });
        request
    }

    #[test]
    fn every_role_gets_its_row_and_nobody_gets_nothing() {
        for act in [Act::Read, Act::Change, Act::Operate, Act::Work] {
            assert_eq!(allow(&call(None), act).unwrap_err().code(), Code::Unauthenticated);
            for role in Role::ALL {
                let allowed = allow(&call(Some(Identity::new(role, "someone").unwrap())), act).is_ok();
                let want = match (role, act) {
                    (Role::Worker, Act::Work) => true,
                    (Role::Worker, _) | (_, Act::Work) => false,
                    (Role::Viewer, Act::Change) => false,
                    (role, Act::Operate) => role == Role::Operator,
                    (_, Act::Read | Act::Change) => true,
                };
                assert_eq!(allowed, want, "{role:?} {act:?}");
            }
        }
    }
}
