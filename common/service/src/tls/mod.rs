//! The farm's own public key infrastructure: who is who, and how connections prove it.
//!
//! One authority signs everything. A server's certificate names its hosts; a client's certificate names a role and a
//! name in one URI (`railyard://worker/rack-3`). TLS 1.3 only, with ring.
//!
//! **Invariant:** a private key is never in a file that others can read, not even for a moment.

mod authority;
mod config;
mod files;
mod identity;
mod pinned;
mod request;
#[cfg(test)]
mod tests;

pub use authority::{Authority, CLIENT_VALIDITY_SECS, Certified};
pub(crate) use config::roots;
pub use config::{client_config, provider, server_config};
pub use files::{PemPair, write_public, write_secret};
pub use identity::{Shown, fingerprint, identity_of_pem, secs_left, shown, term};
pub(crate) use pinned::PinnedAuthority;
pub use railyard_common::identity::{Identity, Role};
pub use request::KeyRequest;

use std::path::PathBuf;

/// Keys or certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file has not what it should have.
    #[error("{}: {why}", path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        why: String,
    },
    /// A PEM text has not what it should have.
    #[error("{what} is not usable: {why}")]
    BadPem {
        /// Which one: "the farm's CA certificate", …
        what: &'static str,
        /// What is wrong.
        why: String,
    },
    /// A certificate cannot be made.
    #[error("cannot issue a certificate for {subject}: {why}")]
    Issue {
        /// For whom.
        subject: String,
        /// Why not.
        why: String,
    },
    /// The peer's certificate says nothing about a role, or nothing that makes sense.
    #[error("the peer's certificate names no role: {why}")]
    NoIdentity {
        /// What is wrong.
        why: String,
    },
    /// rustls refuses the set of keys, certificates and settings.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
}
