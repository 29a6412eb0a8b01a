//! rustls settings for both sides.

use super::{PemPair, TlsError};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// The one TLS provider of the farm.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A listener's settings: TLS 1.3, HTTP/1.1 and HTTP/2; a client may show a certificate, and then the farm's CA must
/// have signed it.
///
/// Whoever speaks both is taken at HTTP/1.1: those are browsers and tools that read the cache. gRPC speaks HTTP/2 only. So a
/// connection's protocol tells what it is for.
///
/// # Errors
/// [`TlsError`] that says which of the texts is wrong.
pub fn server_config(pair: &PemPair, ca_pem: &str) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca_pem)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| TlsError::BadPem { what: CA, why: error.to_string() })?;
    let (mut chain, key) = chain_and_key(pair)?;
    // Whoever joins with a token knows the CA by its fingerprint only, and learns it from here.
    chain.extend(CertificateDer::from_pem_slice(ca_pem.as_bytes()));
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    Ok(Arc::new(config))
}

/// A client's settings for those who bring their own sockets: trusts the farm's CA only, without ALPN.
///
/// # Errors
/// [`TlsError`] that says which of the texts is wrong.
pub fn client_config(ca_pem: &str, identity: Option<&PemPair>) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(ca_pem)?);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some(pair) => {
            let (chain, key) = chain_and_key(pair)?;
            Ok(builder.with_client_auth_cert(chain, key)?)
        }
    }
}

const CA: &str = "the farm's CA certificate";

/// The CA's certificates as trust anchors; at least one.
pub fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let bad = |why: String| TlsError::BadPem { what: CA, why };
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let cert = cert.map_err(|error| bad(error.to_string()))?;
        roots.add(cert).map_err(|error| bad(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(bad("there is no certificate in it".to_owned()));
    }
    Ok(roots)
}

fn chain_and_key(pair: &PemPair) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let bad = |what, error: rustls_pki_types::pem::Error| TlsError::BadPem { what, why: error.to_string() };
    let chain = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad("the certificate", error))?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).map_err(|error| bad("the private key", error))?;
    Ok((chain, key))
}
