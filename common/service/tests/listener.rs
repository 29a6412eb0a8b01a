//! Real TLS on loopback: gRPC and HTTP/1.1 on one port, who is let in, and how it stops.

use axum::routing::get;
use axum::{Extension, Router};
use railyard_service::channel::{Endpoint, connect, http_client};
use railyard_service::listener::{BadRequests, Limits, Peer, Serving, ShutOut, WrongCertificates, serve_within};
use railyard_service::task;
use railyard_service::tls::{Authority, Identity, PemPair, Role, client_config, provider, server_config};
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// A farm's authority and a listener of its own.
struct Farm {
    authority: Authority,
    addr: SocketAddr,
    shutdown: CancellationToken,
    served: JoinHandle<io::Result<()>>,
    dir: tempfile::TempDir,
}

impl Farm {
    async fn start(app: Router) -> Self {
        Self::start_with(app, None).await
    }

    async fn start_with(app: Router, bulk: Option<tokio::runtime::Handle>) -> Self {
        Self::start_serving(Serving {
            app,
            bulk,
            shut_out: ShutOut::nobody(),
            wrong_certificates: WrongCertificates::untold(),
            bad_requests: BadRequests::untold(),
            limits: Limits::default(),
        })
        .await
    }

    async fn start_serving(serving: Serving) -> Self {
        // Every process does this first; another test may have been faster.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path(), "test").unwrap();
        let pair = authority.issue_server(&["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let tls = server_config(&pair, authority.ca_pem()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let served = task::spawn("listener", serve_within(tcp, tls, serving, shutdown.clone()));
        Self { authority, addr, shutdown, served, dir }
    }

    fn worker(&self) -> PemPair {
        self.authority.issue_client(&Identity::new(Role::Worker, "rack-3").unwrap(), 600).unwrap()
    }

    fn endpoint(&self, identity: Option<PemPair>) -> Endpoint {
        Endpoint { url: format!("https://{}", self.addr), ca_pem: self.authority.ca_pem().to_owned(), identity }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.addr)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.served.await.unwrap().unwrap();
    }
}

/// The health service; the last peer that called it is left in `seen`.
fn health(seen: Arc<Mutex<Option<Peer>>>) -> Router {
    let (_, server) = tonic_health::server::health_reporter();
    let note = move |request: tonic::Request<()>| {
        *seen.lock().unwrap() = request.extensions().get::<Peer>().cloned();
        Ok(request)
    };
    tonic::service::Routes::new(InterceptedService::new(server, note)).prepare().into_axum_router()
}

async fn check(endpoint: &Endpoint) -> Result<(), tonic::Status> {
    let mut client = HealthClient::new(connect(endpoint).unwrap());
    client.check(HealthCheckRequest { service: String::new() }).await.map(drop)
}

async fn whoami(Extension(peer): Extension<Peer>, request: axum::extract::Request) -> String {
    let name = peer.identity.map_or("nobody".to_owned(), |identity| identity.to_string());
    format!("{name} over {:?}", request.version())
}

fn app() -> Router {
    Router::new().route("/whoami", get(whoami))
}

#[tokio::test]
async fn grpc_and_http_share_the_port_and_know_the_peer() {
    let seen = Arc::default();
    let farm = Farm::start(app().merge(health(Arc::clone(&seen)))).await;

    check(&farm.endpoint(Some(farm.worker()))).await.unwrap();
    let peer = seen.lock().unwrap().take().unwrap();
    assert_eq!(peer.identity, Some(Identity::new(Role::Worker, "rack-3").unwrap()));
    assert!(peer.addr.ip().is_loopback());

    check(&farm.endpoint(None)).await.unwrap();
    assert_eq!(seen.lock().unwrap().take().unwrap().identity, None);

    let by_name = Endpoint { url: format!("https://localhost:{}", farm.addr.port()), ..farm.endpoint(None) };
    check(&by_name).await.unwrap();

    let http = http_client(&farm.endpoint(None)).unwrap();
    let answer = http.get(farm.url("/whoami")).send().await.unwrap().text().await.unwrap();
    assert_eq!(answer, "nobody over HTTP/1.1");
    farm.stop().await;
}

#[tokio::test]
async fn http2_is_agreed_on_with_a_client_that_offers_it() {
    let farm = Farm::start(app()).await;
    let mut config = client_config(farm.authority.ca_pem(), Some(&farm.worker())).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let http = reqwest::Client::builder().tls_backend_preconfigured(config).build().unwrap();
    let answer = http.get(farm.url("/whoami")).send().await.unwrap().text().await.unwrap();
    assert_eq!(answer, "worker/rack-3 over HTTP/2.0");
    farm.stop().await;
}

#[tokio::test]
async fn strangers_are_refused_on_both_sides() {
    let seen = Arc::default();
    let farm = Farm::start(health(Arc::clone(&seen))).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Authority::open_or_create(elsewhere.path(), "elsewhere").unwrap();

    let stranger = foreign.issue_client(&Identity::new(Role::Operator, "mallory").unwrap(), 600).unwrap();
    check(&farm.endpoint(Some(stranger))).await.unwrap_err();

    let server_as_client = farm.authority.issue_server(&["localhost".to_owned()]).unwrap();
    check(&farm.endpoint(Some(server_as_client))).await.unwrap_err();

    let expired = expired_worker(&farm);
    check(&farm.endpoint(Some(expired))).await.unwrap_err();

    let misled = Endpoint { ca_pem: foreign.ca_pem().to_owned(), ..farm.endpoint(None) };
    let error = check(&misled).await.unwrap_err();
    assert!(chain(&error).contains("UnknownIssuer"), "{}", chain(&error));
    let error = http_client(&misled).unwrap().get(farm.url("/")).send().await.unwrap_err();
    assert!(chain(&error).contains("UnknownIssuer"), "{}", chain(&error));

    assert!(seen.lock().unwrap().is_none(), "no call got through");
    farm.stop().await;
}

/// A worker's certificate of the right authority whose time is over.
fn expired_worker(farm: &Farm) -> PemPair {
    let uri = Identity::new(Role::Worker, "rack-3").unwrap().uri();
    client_of_farm(farm, Some(uri), 2020)
}

/// A client's certificate of the right authority, good to the second day of a year.
fn client_of_farm(farm: &Farm, uri: Option<String>, year: i32) -> PemPair {
    let ca_key = rcgen::KeyPair::from_pem(&std::fs::read_to_string(farm.dir.path().join("ca.key")).unwrap()).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(farm.authority.ca_pem(), ca_key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.subject_alt_names = uri.into_iter().map(|uri| rcgen::SanType::URI(uri.try_into().unwrap())).collect();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(year, 1, 2);
    let key = rcgen::KeyPair::generate().unwrap();
    let cert_pem = params.signed_by(&key, &issuer).unwrap().pem();
    PemPair { cert_pem, key_pem: key.serialize_pem() }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let farm = Farm::start(app()).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls_pki_types::pem::PemObject::from_pem_slice(farm.authority.ca_pem().as_bytes()).unwrap()).unwrap();
    let old = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(farm.addr).await.unwrap();
    let error = TlsConnector::from(Arc::new(old)).connect(farm.addr.ip().into(), stream).await.unwrap_err();
    assert!(error.to_string().contains("ProtocolVersion"), "{error}");
    farm.stop().await;
}

#[tokio::test]
async fn a_stalled_handshake_or_noise_holds_up_nobody() {
    let farm = Farm::start(app()).await;
    let _silent = TcpStream::connect(farm.addr).await.unwrap();
    let mut noisy = TcpStream::connect(farm.addr).await.unwrap();
    noisy.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert, or a reset because unread bytes were thrown away; no HTTP either way.
    let _ = noisy.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
    let http = http_client(&farm.endpoint(None)).unwrap();
    assert!(http.get(farm.url("/whoami")).send().await.unwrap().status().is_success());
    farm.stop().await;
}

#[tokio::test]
async fn a_running_request_ends_well_after_the_shutdown_signal() {
    let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (at_start, at_end) = (Arc::clone(&begun), Arc::clone(&release));
    let slow = move || async move {
        at_start.notify_one();
        at_end.notified().await;
        "done"
    };
    let farm = Farm::start(Router::new().route("/slow", get(slow))).await;
    let http = http_client(&farm.endpoint(None)).unwrap();
    let request = task::spawn("request", http.get(farm.url("/slow")).send());
    begun.notified().await;

    farm.shutdown.cancel();
    while TcpStream::connect(farm.addr).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!farm.served.is_finished(), "it waits for the request");
    release.notify_one();
    assert_eq!(request.await.unwrap().unwrap().text().await.unwrap(), "done");
    farm.stop().await;
}

#[tokio::test]
async fn a_wrong_url_is_explained() {
    let dir = tempfile::tempdir().unwrap();
    let ca_pem = Authority::open_or_create(dir.path(), "test").unwrap().ca_pem().to_owned();
    for (url, why) in [
        ("http://farm:7411", "it does not start with https://"),
        ("farm:7411", "it does not start with https://"),
        ("https://farm:7411/x", "it has a path"),
        ("", "empty"),
    ] {
        let endpoint = Endpoint { url: url.to_owned(), ca_pem: ca_pem.clone(), identity: None };
        let error = connect(&endpoint).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("expected https://HOST:PORT"), "{error}");
    }
    let without_ca = Endpoint { url: "https://farm:7411".to_owned(), ca_pem: String::new(), identity: None };
    assert!(connect(&without_ca).unwrap_err().to_string().contains("the farm's CA certificate"));
}

/// Whoever speaks both protocols is served at HTTP/1.1, and on the other runtime; gRPC stays on the farm's own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_moved_on_threads_of_their_own() {
    let bulk =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).thread_name("bulk").enable_all().build().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let noted = move || {
        note.lock().unwrap().push(std::thread::current().name().unwrap_or_default().to_owned());
        async { "ok" }
    };
    let app = Router::new().route("/bytes", axum::routing::get(noted.clone())).fallback(noted);
    let farm = Farm::start_with(app, Some(bulk.handle().clone())).await;
    let ca = reqwest::Certificate::from_pem(farm.authority.ca_pem().as_bytes()).unwrap();
    let both = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let answer = both.get(farm.url("/bytes")).send().await.unwrap();
    assert_eq!(answer.version(), reqwest::Version::HTTP_11);
    // Not a call that anybody serves here; what matters is where it was looked at.
    check(&farm.endpoint(None)).await.unwrap_err();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], "bulk");
    assert_ne!(seen[1], "bulk");
    farm.stop().await;
    bulk.shutdown_background();
}

/// An answer that takes its time: a line each quarter of a second.
const SLOW_LINES: u32 = 16;

async fn slow() -> axum::body::Body {
    let every = tokio::time::interval(Duration::from_millis(250));
    let lines = futures_util::stream::unfold((every, 0), async |(mut every, sent)| {
        every.tick().await;
        (sent < SLOW_LINES).then(|| (Ok::<_, io::Error>(format!("line {sent}\n")), (every, sent + 1)))
    });
    axum::body::Body::from_stream(lines)
}

#[tokio::test]
async fn a_long_answer_is_sent_to_its_end_to_whoever_shows_no_certificate() {
    // Four times as long as a connection may stand open without a request.
    let limits = Limits { head_secs: 1, ..Limits::default() };
    let app = Router::new().route("/slow", get(slow));
    let farm = Farm::start_serving(Serving {
        app,
        bulk: None,
        shut_out: ShutOut::nobody(),
        wrong_certificates: WrongCertificates::untold(),
        bad_requests: BadRequests::untold(),
        limits,
    })
    .await;
    for protocol in ["http/1.1", "h2"] {
        let mut config = client_config(farm.authority.ca_pem(), None).unwrap();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let http = reqwest::Client::builder().tls_backend_preconfigured(config).build().unwrap();
        let answer = http.get(farm.url("/slow")).send().await.unwrap().text().await;
        let answer = answer.unwrap_or_else(|error| panic!("{protocol}: cut: {}", chain(&error)));
        assert_eq!(answer.lines().count(), SLOW_LINES as usize, "{protocol}");
    }
    farm.stop().await;
}

#[tokio::test]
async fn certificates_that_are_worth_nothing_are_told() {
    let told = Arc::<Mutex<Vec<(SocketAddr, String)>>>::default();
    let hear = Arc::clone(&told);
    let wrong_certificates = WrongCertificates::told_to(move |from, why| {
        hear.lock().unwrap().push((from, why.to_owned()));
    });
    let (app, bulk, shut_out, limits) = (app(), None, ShutOut::nobody(), Limits::default());
    let bad_requests = BadRequests::untold();
    let serving = Serving { app, bulk, shut_out, wrong_certificates, bad_requests, limits };
    let farm = Farm::start_serving(serving).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let foreign = Authority::open_or_create(elsewhere.path(), "elsewhere").unwrap();
    let foreign = foreign.issue_client(&Identity::new(Role::Operator, "mallory").unwrap(), 600).unwrap();
    for (what, pair, word) in [
        ("good", Some(farm.worker()), None),
        ("none", None, None),
        ("expired", Some(expired_worker(&farm)), Some("expired")),
        ("foreign", Some(foreign), Some("UnknownIssuer")),
        ("for no role", Some(client_of_farm(&farm, None, 2100)), Some("no role")),
    ] {
        let mut config = client_config(farm.authority.ca_pem(), pair.as_ref()).unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(farm.addr).await.unwrap();
        let from = stream.local_addr().unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        if let Ok(mut stream) = connector.connect(farm.addr.ip().into(), stream).await {
            // The server's verdict comes before its answer, or instead of it.
            let _ = stream.write_all(b"GET /whoami HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        let heard: Vec<_> = std::mem::take(&mut *told.lock().unwrap());
        let heard: Vec<_> = heard.iter().map(|(from, why)| (*from, why.as_str())).collect();
        match (word, &heard[..]) {
            (None, []) => {}
            (Some(word), [(at, why)]) if *at == from && why.contains(word) => {}
            _ => panic!("{what}: {heard:?}"),
        }
    }
    farm.stop().await;
}
