//! Trust in an authority of which only the fingerprint is known: how somebody with a token meets the farm for the first time.

use super::{TlsError, provider};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, PeerIncompatible, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest as _, Sha256};
use std::sync::{Arc, OnceLock};

/// Verifies a server against the one authority with a fingerprint, which the server sends along, and remembers its certificate.
///
/// **Invariant:** what it remembers has the fingerprint, and the server's own certificate is signed by it and names the server.
#[derive(Debug)]
pub(crate) struct PinnedAuthority {
    fingerprint: [u8; 32],
    found: OnceLock<CertificateDer<'static>>,
    /// Whether some server showed itself without the authority.
    strange: OnceLock<()>,
}

impl PinnedAuthority {
    /// Trusts the authority whose certificate has this SHA-256.
    pub(crate) fn new(fingerprint: [u8; 32]) -> Arc<Self> {
        Arc::new(Self { fingerprint, found: OnceLock::new(), strange: OnceLock::new() })
    }

    /// TLS settings that trust it; no certificate of one's own.
    ///
    /// # Errors
    /// [`TlsError::Setup`].
    pub(crate) fn client_config(self: &Arc<Self>) -> Result<ClientConfig, TlsError> {
        Ok(ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(self.clone())
            .with_no_client_auth())
    }

    /// The authority's certificate, once a server has been verified.
    pub(crate) fn found(&self) -> Option<&CertificateDer<'static>> {
        self.found.get()
    }

    /// Whether a server was of another authority.
    pub(crate) fn met_a_stranger(&self) -> bool {
        self.strange.get().is_some()
    }
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let fits = |cert: &&CertificateDer<'_>| Sha256::digest(cert)[..] == self.fingerprint;
        let Some(authority) = intermediates.iter().find(fits) else {
            let _ = self.strange.set(());
            return Err(CertificateError::UnknownIssuer.into());
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)?;
        let _ = self.found.set(authority.clone().into_owned());
        Ok(verified)
    }

    /// Nobody speaks TLS 1.2 here.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
