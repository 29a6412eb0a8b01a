//! Whoever is revoked is cut off at once.

use crate::driver::Handle;
use railyard_core::Access;
use railyard_service::listener::{Peer, Proof, ShutOut};
use std::sync::Arc;
use tokio::sync::watch;

/// Connections of those whose certificate is worth nothing any more. A bearer token comes with each call, and is looked at there.
pub fn shut_out(farm: &Handle) -> ShutOut {
    let access = farm.access();
    ShutOut::when(move |peer| Box::pin(until_revoked(access.clone(), peer.clone())))
}

async fn until_revoked(mut access: watch::Receiver<Arc<Access>>, peer: Peer) {
    // An error means that the driver is gone; then the listener ends as well.
    if access.wait_for(|access| is_revoked(access, &peer)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn is_revoked(access: &Access, peer: &Peer) -> bool {
    match (&peer.identity, &peer.proof) {
        (Some(identity), Some(Proof::Certificate { issued, .. })) => access.is_revoked(identity, *issued),
        _ => false,
    }
}
