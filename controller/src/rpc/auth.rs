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
    /// Runs jobs.
    Work,
    /// Takes the whole state away.
    Administer,
}

/// The table: a role's row says what it may do.
fn may(role: Role, act: Act) -> bool {
    match role {
        Role::Viewer => act == Act::Read,
        Role::Submitter => matches!(act, Act::Read | Act::Change),
        Role::Operator => matches!(act, Act::Read | Act::Change | Act::Administer),
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
    if !may(identity.role, act) {
        let message = format!("{} {} may not do this", identity.role.as_str(), identity.name);
        return Err(rpc_error::refusal(Code::PermissionDenied, rpc_error::FORBIDDEN, message));
    }
    Ok(identity)
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
        request.extensions_mut().insert(Peer { identity, addr: ([127, 0, 0, 1], 1).into() });
        request
    }

    #[test]
    fn every_role_gets_its_row_and_nobody_gets_nothing() {
        for act in [Act::Read, Act::Change, Act::Work, Act::Administer] {
            assert_eq!(allow(&call(None), act).unwrap_err().code(), Code::Unauthenticated);
            for role in Role::ALL {
                let allowed = allow(&call(Some(Identity::new(role, "someone").unwrap())), act).is_ok();
                let want = match (role, act) {
                    (Role::Worker, Act::Work) => true,
                    (Role::Worker, _) | (_, Act::Work) => false,
                    (role, Act::Administer) => role == Role::Operator,
                    (Role::Viewer, Act::Change) => false,
                    (_, Act::Read | Act::Change) => true,
                };
                assert_eq!(allowed, want, "{role:?} {act:?}");
            }
        }
    }
}
