//! Who a certificate speaks for.

use super::TlsError;
use railyard_common::identity::{BadIdentity, Identity, SCHEME};
use railyard_common::time::Millis;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a peer's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Whom it speaks for.
    pub identity: Identity,
    /// When it was issued.
    pub issued: Millis,
    /// The SHA-256 of it, as hex.
    pub fingerprint: String,
}

/// Bytes of a serial number: when the certificate was issued, then chance.
pub(super) const SERIAL_LEN: usize = 16;
/// Bytes of the time in it: milliseconds until the year 10889, and never negative.
pub(super) const SERIAL_TIME_LEN: usize = 6;

/// To the millisecond, as the authority wrote it; of a certificate that another one made, as its first day says.
fn issued(cert: &X509Certificate<'_>) -> Millis {
    let serial = cert.raw_serial();
    match serial.first_chunk::<SERIAL_TIME_LEN>() {
        Some(time) if serial.len() == SERIAL_LEN => {
            Millis(time.iter().fold(0, |millis, byte| millis << 8 | u64::from(*byte)))
        }
        _ => Millis(u64::try_from(cert.validity().not_before.timestamp()).unwrap_or_default().saturating_mul(1000)),
    }
}

/// Whom the peer's certificate chain (leaf first) speaks for. TLS has checked already that the farm's CA signed it.
///
/// # Errors
/// [`TlsError::NoIdentity`] unless exactly one `railyard://` URI is among the leaf's alternative names.
pub fn shown(certs: &[CertificateDer<'_>]) -> Result<Shown, TlsError> {
    let no = |why: String| TlsError::NoIdentity { why };
    let der = certs.first().ok_or_else(|| no("no certificate was shown".to_owned()))?;
    let (_, leaf) = X509Certificate::from_der(der).map_err(|error| no(format!("it does not parse: {error}")))?;
    let names = leaf.subject_alternative_name().map_err(|error| no(format!("its names do not parse: {error}")))?;
    let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => {
            let identity = uri.parse().map_err(|error: BadIdentity| no(error.to_string()))?;
            Ok(Shown { identity, issued: issued(&leaf), fingerprint: hex::encode(Sha256::digest(der)) })
        }
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

/// Whom the first certificate in a PEM text speaks for.
///
/// # Errors
/// [`TlsError::BadPem`] if there is none, [`TlsError::NoIdentity`] if it speaks for nobody.
pub fn identity_of_pem(cert_pem: &str) -> Result<Identity, TlsError> {
    let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes())
        .map_err(|error| TlsError::BadPem { what: "the certificate", why: error.to_string() })?;
    Ok(shown(&[cert])?.identity)
}

/// When the first certificate in a PEM text was issued, and when it expires.
///
/// # Errors
/// [`TlsError::BadPem`] if there is none.
pub fn term(cert_pem: &str) -> Result<(Millis, Millis), TlsError> {
    let bad = |why: String| TlsError::BadPem { what: "the certificate", why };
    let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
    let (_, cert) = X509Certificate::from_der(&cert).map_err(|error| bad(error.to_string()))?;
    let not_after = u64::try_from(cert.validity().not_after.timestamp()).unwrap_or_default();
    Ok((issued(&cert), Millis(not_after.saturating_mul(1000))))
}

/// For how many seconds from `now` on the first certificate in a PEM text is good; 0 if it has expired.
///
/// # Errors
/// [`TlsError::BadPem`] if there is none.
pub fn secs_left(cert_pem: &str, now: Millis) -> Result<u64, TlsError> {
    let (_, expires) = term(cert_pem)?;
    Ok(expires.since(now) / 1000)
}
