//! A key of one's own, and the request to certify it.

use super::{PemPair, TlsError};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A fresh private key with the request (PKCS #10) that proves to have it. The key never leaves this process but into its file.
pub struct KeyRequest {
    key: KeyPair,
    csr: Vec<u8>,
}

impl KeyRequest {
    /// A fresh key.
    ///
    /// # Errors
    /// [`TlsError::Issue`] if there is no randomness.
    pub fn generate() -> Result<Self, TlsError> {
        let failed = |error: rcgen::Error| TlsError::Issue { subject: "a new key".to_owned(), why: error.to_string() };
        Self::of(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?)
    }

    fn of(key: KeyPair) -> Result<Self, TlsError> {
        let failed = |error: rcgen::Error| TlsError::Issue { subject: "a key".to_owned(), why: error.to_string() };
        // Who it is for is the authority's word, so the request names nobody.
        let csr = CertificateParams::default().serialize_request(&key).map_err(failed)?.der().to_vec();
        Ok(Self { key, csr })
    }

    /// A key that is there already.
    ///
    /// # Errors
    /// [`TlsError::BadPem`] if it is none; [`TlsError::Issue`].
    pub fn from_pem(key_pem: &str) -> Result<Self, TlsError> {
        let key = KeyPair::from_pem(key_pem)
            .map_err(|error| TlsError::BadPem { what: "the private key", why: error.to_string() })?;
        Self::of(key)
    }

    /// The key, PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The request, DER.
    pub fn csr(&self) -> &[u8] {
        &self.csr
    }

    /// The key with the certificate that came back for it.
    ///
    /// # Errors
    /// [`TlsError::BadPem`] if it is no certificate, or one for another key.
    pub fn certified(&self, cert_pem: &str) -> Result<PemPair, TlsError> {
        let bad = |why: String| TlsError::BadPem { what: "the certificate that the farm sent", why };
        let der = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
        let (_, cert) = X509Certificate::from_der(&der).map_err(|error| bad(error.to_string()))?;
        match cert.public_key().subject_public_key.data == self.key.public_key_raw() {
            true => Ok(PemPair { cert_pem: cert_pem.to_owned(), key_pem: self.key.serialize_pem() }),
            false => Err(bad("it is for another key".to_owned())),
        }
    }
}
