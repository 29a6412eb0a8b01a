//! How a worker or a person with a token joins a farm, and renews what it got.
//!
//! ```text
//! token ─► fingerprint of the CA ─► TLS: the controller shows that CA ─► a key is made here ─► Enrol(token, request) ─► certificate
//! ```

use crate::channel::{self, ChannelError, Endpoint};
use crate::convert;
use crate::tls::{Identity, KeyRequest, PemPair, PinnedAuthority, TlsError};
use railyard_common::time::Millis;
use railyard_common::token::{BadToken, Token, TokenKind};
use railyard_proto::v1;
use railyard_proto::v1::access_service_client::AccessServiceClient;
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::Channel;
use tonic::{Request, Status};

/// How long a connection may take, and an answer.
const TIMEOUT: Duration = Duration::from_secs(15);

/// A certificate that the farm gave out.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// It, with its key.
    pub pair: PemPair,
    /// The farm's CA certificate.
    pub ca_pem: String,
    /// Whom it speaks for.
    pub identity: Identity,
    /// Until when.
    pub expires_at: Millis,
}

/// Nobody was let in.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token cannot be used.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// The URL or the settings are wrong.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// Keys or certificates are wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nobody answers there, or something else than TLS.
    #[error("cannot reach the controller at {url}: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// Somebody else answers there.
    #[error(
        "{url} is not the farm that this token is for: the CA that it shows is another one. Check the URL, and where the token \
         comes from; it was not sent"
    )]
    OtherFarm {
        /// Where.
        url: String,
    },
    /// It is the farm, under another name.
    #[error(
        "the controller's certificate does not fit {url}: {why}; add the name to `names` in the controller's settings"
    )]
    BadServer {
        /// Where.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The farm refuses.
    #[error("the farm refuses: {}", .0.message())]
    Refused(Box<Status>),
    /// It answered something else than it promises.
    #[error("the farm's answer cannot be used: {0}")]
    Answer(String),
}

/// Exchanges a one-time token for a certificate of a key that is made here.
///
/// # Errors
/// [`EnrolError`]. Unless it is [`EnrolError::Refused`] or later, the token was not sent anywhere.
pub async fn join(url: &str, token: &str) -> Result<Enrolled, EnrolError> {
    let key = KeyRequest::generate()?;
    join_with(url, token, &key, v1::JoinAs::Unspecified).await
}

/// The same with a key that is there: a farm whose answer was lost gives the same key another certificate. A token that is for
/// something else than `join_as` is refused, and stays good.
///
/// # Errors
/// As [`join`].
pub async fn join_with(url: &str, token: &str, key: &KeyRequest, join_as: v1::JoinAs) -> Result<Enrolled, EnrolError> {
    let token = Token::parse(token, TokenKind::Join)?;
    let fingerprint = token.ca().ok_or(BadToken::Damaged)?;
    let ca_pem = learn_ca(url, *fingerprint).await?;
    let endpoint = Endpoint { url: url.to_owned(), ca_pem: ca_pem.clone(), identity: None };
    let mut client = AccessServiceClient::new(channel::connect(&endpoint)?);
    let request = v1::EnrolRequest { token: token.reveal(), csr: key.csr().to_vec(), join_as: join_as.into() };
    let answer = client.enrol(timed(request)).await.map_err(|status| EnrolError::Refused(Box::new(status)))?;
    enrolled(answer.into_inner(), key)
}

/// A fresh certificate for the key, over a channel that shows the one that is still good.
///
/// # Errors
/// [`EnrolError`].
pub async fn renew(channel: Channel, key: &KeyRequest) -> Result<Enrolled, EnrolError> {
    let request = timed(v1::RenewRequest { csr: key.csr().to_vec() });
    let answer = AccessServiceClient::new(channel).renew(request).await;
    enrolled(answer.map_err(|status| EnrolError::Refused(Box::new(status)))?.into_inner(), key)
}

/// How long a certificate is good for in all, whatever the time is here.
///
/// # Errors
/// [`TlsError`] if it does not parse.
pub fn length(cert_pem: &str) -> Result<Duration, TlsError> {
    let (issued, expires) = crate::tls::term(cert_pem)?;
    Ok(Duration::from_millis(expires.since(issued)))
}

/// How old a certificate is, if the clock here is right.
///
/// # Errors
/// [`TlsError`] if it does not parse.
pub fn age(cert_pem: &str, now: Millis) -> Result<Duration, TlsError> {
    let (issued, _) = crate::tls::term(cert_pem)?;
    Ok(Duration::from_millis(now.since(issued)))
}

fn timed<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

fn enrolled(answer: v1::Certificate, key: &KeyRequest) -> Result<Enrolled, EnrolError> {
    let identity = answer.identity.parse().map_err(|error| EnrolError::Answer(format!("{error}")))?;
    let expires_at = answer.expires_at.as_ref().map(convert::millis);
    let expires_at = expires_at.ok_or_else(|| EnrolError::Answer("it does not say until when".to_owned()))?;
    Ok(Enrolled { pair: key.certified(&answer.cert_pem)?, ca_pem: answer.ca_pem, identity, expires_at })
}

/// The CA certificate with this fingerprint, from the controller at `url`, who proves to be certified by it.
async fn learn_ca(url: &str, fingerprint: [u8; 32]) -> Result<String, EnrolError> {
    let uri = channel::check_url(url)?;
    let unreachable = |why: String| EnrolError::Unreachable { url: url.to_owned(), why };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let name = ServerName::try_from(host.clone());
    let name = name.map_err(|error: InvalidDnsNameError| unreachable(error.to_string()))?;
    let authority = PinnedAuthority::new(fingerprint);
    let connector = TlsConnector::from(Arc::new(authority.client_config()?));
    let meeting = async {
        let tcp = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443))).await?;
        connector.connect(name, tcp).await.map(drop)
    };
    let met = tokio::time::timeout(TIMEOUT, meeting).await;
    match (met, authority.found()) {
        (Ok(Ok(())), Some(der)) => Ok(pem_of(der)),
        _ if authority.met_a_stranger() => Err(EnrolError::OtherFarm { url: url.to_owned() }),
        (Ok(Err(error)), _) if is_certificate_trouble(&error) => {
            Err(EnrolError::BadServer { url: url.to_owned(), why: error.to_string() })
        }
        (Ok(Err(error)), _) => Err(unreachable(error.to_string())),
        (Ok(Ok(())), None) => Err(unreachable("it showed no certificate".to_owned())),
        (Err(_), _) => Err(unreachable(format!("it did not answer within {} s", TIMEOUT.as_secs()))),
    }
}

fn is_certificate_trouble(error: &std::io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

fn pem_of(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap_or_default()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
