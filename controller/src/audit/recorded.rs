//! What the parts of the controller that a request goes through tell the one that records its refusal.

use railyard_service::listener::Peer;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// In the extensions of every request. Whoever turns a request away and records that with more than its path marks it, and the
/// layer around everything does not record it again.
#[derive(Clone, Debug, Default)]
pub struct Recorded(Arc<Inside>);

#[derive(Debug, Default)]
struct Inside {
    is_marked: AtomicBool,
    peer: OnceLock<Peer>,
}

impl Recorded {
    /// The refusal of this request is recorded.
    pub fn mark(&self) {
        self.0.is_marked.store(true, Ordering::Relaxed);
    }

    /// Whether it is.
    pub fn is_marked(&self) -> bool {
        self.0.is_marked.load(Ordering::Relaxed)
    }

    /// Who it is turned out to be by what the request shows, not the connection.
    pub fn know(&self, peer: &Peer) {
        // The first answer is the one that the request was let in with.
        let _ = self.0.peer.set(peer.clone());
    }

    /// Who that is.
    pub fn known(&self) -> Option<&Peer> {
        self.0.peer.get()
    }
}
