//! Who a certificate speaks for.

use super::TlsError;
use railyard_common::identity::{BadIdentity, Identity, SCHEME};
use railyard_common::time::Millis;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

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
