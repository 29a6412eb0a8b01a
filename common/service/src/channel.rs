//! The way to the controller: a gRPC channel over mutual TLS, and an HTTP client for signed URLs.

use crate::tls::{PemPair, TlsError, provider, roots};
use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::ClientConfig;
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tower::Service;

/// How often an HTTP/2 connection is pinged, also while idle: middleboxes forget quiet connections, and a dead peer must
/// be noticed well before a lease of two minutes is over.
pub(crate) const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// How long a ping may stay unanswered before the connection counts as dead.
pub(crate) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/2 flow-control window of a stream, both ways: two log batches of 1 MiB flow without waiting for an update.
pub(crate) const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;
/// And of a connection: a few streams at full speed.
pub(crate) const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// How long a connection may take to be made, the TLS handshake included: within a farm's network it takes milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an unused HTTP connection is kept: less than the listener keeps it, so that no request meets a closing door.
const HTTP_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Where a controller is, and how to prove who is who.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `https://HOST:PORT`; the host may be an IP address.
    pub url: String,
    /// The farm's CA, the only one that is trusted for the controller.
    pub ca_pem: String,
    /// What this side shows; readers may need none.
    pub identity: Option<PemPair>,
}

/// The endpoint's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The URL is wrong.
    #[error("`{url}` is not a controller's URL: {why}; expected https://HOST:PORT")]
    BadUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Certificates or keys are wrong.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The gRPC library refuses the settings.
    #[error("cannot set up the connection to {url}")]
    Setup {
        /// The controller.
        url: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The HTTP library refuses the settings.
    #[error("cannot set up the HTTP client")]
    Http(#[from] reqwest::Error),
}

/// A channel to the controller. Connects at the first call, and again whenever the connection is lost.
///
/// # Errors
/// [`ChannelError`] for settings that cannot work; an unreachable controller shows at the first call.
pub fn connect(endpoint: &Endpoint) -> Result<Channel, ChannelError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // For each address of the host: one that does not answer must not use up the time of the next.
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connect_over(endpoint, tcp)
}

/// The same over connections that `connector` makes; TLS is put on top of them.
///
/// A connector of its own is what makes the gRPC library limit the time of the TLS handshake, and not that of the TCP
/// connection only: a controller whose host answers while the process hangs would otherwise be waited for without an end.
///
/// # Errors
/// As [`connect`].
pub fn connect_over<C>(endpoint: &Endpoint, connector: C) -> Result<Channel, ChannelError>
where
    C: Service<Uri> + Send + 'static,
    C::Response: Read + Write + Send + Unpin,
    C::Future: Send,
    Box<dyn std::error::Error + Send + Sync>: From<C::Error> + Send,
{
    check_url(&endpoint.url)?;
    // Names the faulty text; tonic would only say that something is wrong.
    crate::tls::client_config(&endpoint.ca_pem, endpoint.identity.as_ref())?;
    let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&endpoint.ca_pem));
    if let Some(pair) = &endpoint.identity {
        tls = tls.identity(Identity::from_pem(&pair.cert_pem, &pair.key_pem));
    }
    let setup = |source| ChannelError::Setup { url: endpoint.url.clone(), source };
    let channel = Channel::from_shared(endpoint.url.clone())
        .map_err(|error| ChannelError::BadUrl { url: endpoint.url.clone(), why: error.to_string() })?
        .tls_config(tls)
        .map_err(setup)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(connector);
    Ok(channel)
}

/// An HTTP client for signed URLs, which may point at the controller or at a public object store: it trusts the farm's
/// CA and the system's, and shows no certificate.
///
/// It speaks HTTP/1.1, so that parallel parts go over parallel connections instead of sharing one flow-control window.
/// It sets no limit to a whole request, which may carry gigabytes; its user watches progress.
///
/// # Errors
/// [`ChannelError`].
pub fn http_client(endpoint: &Endpoint) -> Result<reqwest::Client, ChannelError> {
    let mut roots = roots(&endpoint.ca_pem)?;
    // A host without any system roots still reaches the farm's own cache, and one bad file does not spoil the others.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(TlsError::from)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(HTTP_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .user_agent(concat!("railyard/", env!("CARGO_PKG_VERSION")))
        .build()?;
    Ok(client)
}

/// Checks that a URL is one of a controller: `https://HOST:PORT`.
///
/// # Errors
/// [`ChannelError::BadUrl`].
pub fn check_url(url: &str) -> Result<http::Uri, ChannelError> {
    let bad = |why: &str| ChannelError::BadUrl { url: url.to_owned(), why: why.to_owned() };
    let uri: http::Uri = url.parse().map_err(|error: http::uri::InvalidUri| bad(&error.to_string()))?;
    if uri.scheme_str() != Some("https") {
        return Err(bad("it does not start with https://"));
    }
    if uri.host().is_none_or(str::is_empty) {
        return Err(bad("it has no host"));
    }
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad("it has a path"));
    }
    Ok(uri)
}
