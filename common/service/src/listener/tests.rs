//! The end of the listener.

use super::*;
use crate::task;
use crate::tls::{Authority, client_config, server_config};
use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn a_request_without_an_end_is_cut_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open_or_create(dir.path(), "test").unwrap();
    let pair = authority.issue_server(&["127.0.0.1".to_owned()]).unwrap();
    let tls = server_config(&pair, authority.ca_pem()).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let (shutdown, begun) = (CancellationToken::new(), CancellationToken::new());
    let reached = begun.clone();
    let endless = move || async move {
        reached.cancel();
        std::future::pending::<()>().await;
    };
    let app = Router::new().route("/", get(endless));
    let serving = Serving {
        app,
        bulk: None,
        shut_out: ShutOut::nobody(),
        wrong_certificates: WrongCertificates::untold(),
        bad_requests: BadRequests::untold(),
        limits: Limits::default(),
    };
    let served = serve_and_drain(tcp, tls, serving, shutdown.clone(), Duration::from_millis(50));
    let served = task::spawn("listener", served);

    let config = Arc::new(client_config(authority.ca_pem(), None).unwrap());
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = addr.ip().into();
    let mut stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").await.unwrap();
    begun.cancelled().await;
    shutdown.cancel();
    served.await.unwrap().unwrap();
    let mut answer = Vec::new();
    // Cut without a close_notify: an error or an end, but no answer.
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer, b"");
}
