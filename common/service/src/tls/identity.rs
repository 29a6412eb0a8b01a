//! Who a certificate speaks for.

use super::TlsError;
use railyard_common::time::Millis;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a certificate lets its holder do. Which call needs which role is the controller's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs jobs.
    Worker,
    /// Submits and cancels builds, and reads.
    Submitter,
    /// Everything that people may do.
    Operator,
    /// Reads.
    Viewer,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 4] = [Role::Worker, Role::Submitter, Role::Operator, Role::Viewer];

    /// The word in certificates and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Submitter => "submitter",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A role and a name, written `railyard://ROLE/NAME` in a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// What the holder may do.
    pub role: Role,
    /// Who it is. A worker's is its worker name.
    pub name: String,
}

/// The text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identity: {why}")]
pub struct BadIdentity {
    text: String,
    why: &'static str,
}

/// The scheme of an identity's URI.
const SCHEME: &str = "railyard://";
/// Longest name: worker names have 63, people's names and mail addresses fit easily.
const NAME_MAX_LEN: usize = 128;

impl Identity {
    /// An identity with a checked name.
    ///
    /// # Errors
    /// [`BadIdentity`] if the name is empty, longer than 128 or has other characters than letters, digits and `.-_@`.
    pub fn new(role: Role, name: impl Into<String>) -> Result<Self, BadIdentity> {
        let name = name.into();
        let usable = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@');
        if name.is_empty() || name.len() > NAME_MAX_LEN || !name.bytes().all(usable) {
            let why = "a name is 1 to 128 letters, digits, `.`, `-`, `_` or `@`";
            return Err(BadIdentity { text: name, why });
        }
        Ok(Self { role, name })
    }

    /// As certificates carry it.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}/{}", self.role, self.name)
    }
}

/// `ROLE/NAME`, for people.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

/// From a URI.
impl FromStr for Identity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let bad = |why| BadIdentity { text: text.to_owned(), why };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| bad("expected railyard://ROLE/NAME"))?;
        let (role, name) = rest.split_once('/').ok_or_else(|| bad("expected railyard://ROLE/NAME"))?;
        let role = Role::ALL.into_iter().find(|known| known.as_str() == role);
        let role = role.ok_or_else(|| bad("the role is none of worker, submitter, operator, viewer"))?;
        Self::new(role, name)
    }
}

/// Whom the peer's certificate chain (leaf first) speaks for. TLS has checked already that the farm's CA signed it.
///
/// # Errors
/// [`TlsError::NoIdentity`] unless exactly one `railyard://` URI is among the leaf's alternative names.
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Result<Identity, TlsError> {
    let no = |why: String| TlsError::NoIdentity { why };
    let leaf = certs.first().ok_or_else(|| no("no certificate was shown".to_owned()))?;
    let (_, leaf) = X509Certificate::from_der(leaf).map_err(|error| no(format!("it does not parse: {error}")))?;
    let names = leaf.subject_alternative_name().map_err(|error| no(format!("its names do not parse: {error}")))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|error: BadIdentity| no(error.to_string())),
        (None, _) => Err(no("it has no railyard:// name; servers' certificates have none".to_owned())),
        (Some(first), Some(second)) => Err(no(format!("it has two: {first} and {second}"))),
    }
}

/// The SHA-256 of the first certificate in a PEM text, as hex: what people compare to know that a CA is theirs.
///
/// # Errors
/// [`TlsError::BadPem`] if there is none.
pub fn fingerprint(cert_pem: &str) -> Result<String, TlsError> {
    let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|error| TlsError::BadPem { what: "the certificate", why: error.to_string() })?;
    Ok(hex::encode(Sha256::digest(&cert)))
}

/// For how many seconds from `now` on the first certificate in a PEM text is good; 0 if it has expired.
///
/// # Errors
/// [`TlsError::BadPem`] if there is none.
pub fn secs_left(cert_pem: &str, now: Millis) -> Result<u64, TlsError> {
    let bad = |why: String| TlsError::BadPem { what: "the certificate", why };
    let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
    let (_, cert) = X509Certificate::from_der(&cert).map_err(|error| bad(error.to_string()))?;
    let not_after = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or_default();
    Ok(not_after.saturating_sub(now.0 / 1000))
}
