//! Who calls. Whether they may is decided before ([`crate::access`]); what is left is what depends on the request itself.

use crate::access::{self, forbidden, table};
use railyard_common::id::{PipelineName, WorkerName};
use railyard_service::listener::Peer;
use railyard_service::rpc_error;
use railyard_service::tls::{Identity, Role};
use tonic::{Code, Request, Status};

/// The caller.
pub(super) fn caller<T>(request: &Request<T>) -> Result<Identity, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.and_then(|peer| peer.identity.clone()).ok_or_else(access::nobody)
}

/// Where the call comes from, and what was shown for it.
pub(super) fn peer<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request.extensions().get::<Peer>().cloned();
    let strange = || rpc_error::refusal(Code::Internal, rpc_error::INTERNAL, "the call came from nowhere");
    peer.ok_or_else(strange)
}

/// Refuses whoever may not do what a row of the table names.
pub(super) fn require(identity: &Identity, rule: &str) -> Result<(), Status> {
    match table::refuses(rule, Some(identity)) {
        None => Ok(()),
        Some(table::Refused::Forbidden(why)) => Err(forbidden(why)),
        Some(_) => Err(forbidden(format!("nobody may {rule}"))),
    }
}

/// Refuses whoever is limited to other pipelines.
pub(super) fn in_scope(identity: &Identity, pipeline: &PipelineName) -> Result<(), Status> {
    if identity.limits.allow_pipeline(pipeline) {
        return Ok(());
    }
    let own: Vec<&str> = identity.limits.pipelines.iter().map(PipelineName::as_str).collect();
    let message = format!(
        "{} {} is limited to {}, and pipeline {pipeline} is not among them",
        identity.role,
        identity.name,
        own.join(", ")
    );
    Err(forbidden(message))
}

/// The worker that calls.
pub(super) fn worker<T>(request: &Request<T>) -> Result<WorkerName, Status> {
    let identity = caller(request)?;
    if identity.role != Role::Worker {
        return Err(forbidden(format!("{} {} is no worker", identity.role, identity.name)));
    }
    identity.name.parse().map_err(super::bad_request)
}
