//! Whoever is revoked is cut off at once.

use crate::driver::Handle;
use railyard_core::Access;
use railyard_service::listener::{Peer, Proof, ShutOut};
use std::sync::Arc;
use tokio::sync::watch;

/// Connections of those whose certificate is worth nothing any more from now on. Who comes with one that was revoked before is
/// told so by the gate, and so is whoever shows a bearer token: that comes with each call.
pub fn shut_out(farm: &Handle) -> ShutOut {
    let access = farm.access();
    ShutOut::when(move |peer| Box::pin(until_revoked(access.clone(), peer.clone())))
}

async fn until_revoked(mut access: watch::Receiver<Arc<Access>>, peer: Peer) {
    // It may say why it came.
    let was = is_revoked(&access.borrow_and_update(), &peer);
    // An error means that the driver is gone; then the listener ends as well.
    if was || access.wait_for(|access| is_revoked(access, &peer)).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Whether what the peer showed is worth nothing.
pub fn is_revoked(access: &Access, peer: &Peer) -> bool {
    match (&peer.identity, &peer.proof) {
        (Some(identity), Some(Proof::Certificate { issued, .. })) => access.is_revoked(identity, *issued),
        _ => false,
    }
}
