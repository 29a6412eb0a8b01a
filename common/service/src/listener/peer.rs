//! Who is at the other end of a connection, and for how long.

use super::frames::Fault;
use crate::tls::{Identity, Shown};
use futures_util::future::BoxFuture;
use railyard_common::time::Millis;
use railyard_common::token::TokenId;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// Who is at the other end; in the extensions of every request.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it is; `None` if it showed nothing that tells.
    pub identity: Option<Identity>,
    /// What it showed for that.
    pub proof: Option<Proof>,
    /// Where it comes from.
    pub addr: SocketAddr,
}

/// What somebody shows to be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// A certificate of the farm's CA.
    Certificate {
        /// When it was issued.
        issued: Millis,
        /// The SHA-256 of it, as hex.
        fingerprint: String,
    },
    /// A bearer token.
    Token(TokenId),
}

impl Peer {
    /// Somebody at `addr` who showed nothing.
    pub fn nobody(addr: SocketAddr) -> Self {
        Self { identity: None, proof: None, addr }
    }

    /// Whoever a certificate speaks for, at `addr`.
    pub fn certified(shown: Shown, addr: SocketAddr) -> Self {
        let Shown { identity, issued, fingerprint } = shown;
        Self { identity: Some(identity), proof: Some(Proof::Certificate { issued, fingerprint }), addr }
    }
}

type Hear = dyn Fn(SocketAddr, &str) + Send + Sync;

/// Hears of certificates that are worth nothing: where they were shown, and why they are not. Who shows one is not served; one
/// of the farm's that is for something else than a role makes its holder nobody.
#[derive(Clone)]
pub struct WrongCertificates(Arc<Hear>);

impl WrongCertificates {
    /// `hear` is told; it must not wait for anything.
    pub fn told_to(hear: impl Fn(SocketAddr, &str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Nobody hears of them.
    pub fn untold() -> Self {
        Self::told_to(|_, _| {})
    }

    pub(super) fn tell(&self, from: SocketAddr, why: &str) {
        (self.0)(from, why);
    }
}

impl fmt::Debug for WrongCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WrongCertificates")
    }
}

type HearRequest = dyn Fn(&Peer, &str, &str) + Send + Sync;

/// Hears of requests and connections that are refused before anybody who serves sees them: whose they are, what they are as far
/// as that can be said (`handshake`, `connection`, `request`, or a method and a path), and what is wrong with them.
#[derive(Clone)]
pub struct BadRequests(Arc<HearRequest>);

impl BadRequests {
    /// `hear` is told; it must not wait for anything.
    pub fn told_to(hear: impl Fn(&Peer, &str, &str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    /// Nobody hears of them.
    pub fn untold() -> Self {
        Self::told_to(|_, _, _| {})
    }

    pub(super) fn tell(&self, from: &Peer, what: &str, why: &str) {
        (self.0)(from, what, why);
    }
}

impl fmt::Debug for BadRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BadRequests")
    }
}

/// What one client has done wrong goes this way.
#[derive(Clone, Debug)]
pub(super) struct Complaints {
    about: Peer,
    to: BadRequests,
}

impl Complaints {
    pub(super) fn new(about: Peer, to: BadRequests) -> Self {
        Self { about, to }
    }

    pub(super) fn tell(&self, what: &str, why: &str) {
        self.to.tell(&self.about, what, why);
    }

    /// What its frames have shown.
    pub(super) fn fault(&self, fault: Fault) {
        let what = match fault {
            Fault::Flood | Fault::Connection(_) => "connection",
            Fault::LongHead | Fault::Stream(_) => "request",
        };
        self.tell(what, &fault.to_string());
    }
}

type When = dyn Fn(&Peer) -> BoxFuture<'static, ()> + Send + Sync;

/// Tells when a peer is not to be served any more: the future ends then, at once if it is so already.
#[derive(Clone)]
pub struct ShutOut(Arc<When>);

impl ShutOut {
    /// As `when` says.
    pub fn when(when: impl Fn(&Peer) -> BoxFuture<'static, ()> + Send + Sync + 'static) -> Self {
        Self(Arc::new(when))
    }

    /// Ends when `peer` is not to be served any more.
    pub(super) fn of(&self, peer: &Peer) -> BoxFuture<'static, ()> {
        (self.0)(peer)
    }

    /// Whoever came in may stay.
    pub fn nobody() -> Self {
        Self::when(|_| Box::pin(std::future::pending()))
    }
}

impl fmt::Debug for ShutOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ShutOut")
    }
}
