//! Too many connections, and connections that do not go on.

use super::attacker::{self, address, rest};
use super::bystander::Bystander;
use super::{MIB, farm, resident_bytes};
use crate::common::people::Person;
use crate::common::{Controller, refused, soon};
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_service::tls::{Role, provider};
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stall_keep_nobody_out() {
    let controller = farm(|limits| limits.handshake_secs = 20).await;
    let mut bystander = Bystander::watch(&controller);
    bystander.is_served().await;
    let before = resident_bytes();
    // From twenty addresses: more than there are places for everybody together.
    let mut stalling = Vec::new();
    for n in 1..=20 {
        for _ in 0..100 {
            stalling.push(attacker::tcp(&controller, address(n)).await.unwrap());
        }
    }
    bystander.is_served().await;
    // And from one, which may have only some of them.
    for _ in 0..1_000 {
        stalling.push(attacker::tcp(&controller, address(100)).await.unwrap());
    }
    bystander.is_served().await;
    let last = &mut stalling.last_mut().unwrap();
    // Perhaps in the middle of a record, perhaps after an alert.
    let _ = last.write_all(&[22, 3, 1, 2, 0]).await;
    assert_eq!(rest(last).await, b"", "it was answered");
    // Of whom does not matter: a flood is written as its first few, and their number.
    controller.audited(&["127.0.66.", "\"refused\"", "\"target\":\"handshake\"", "gave way"]).await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 200 * MIB, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_takes_no_longer_than_it_may() {
    let controller = farm(|limits| limits.handshake_secs = 1).await;
    let mut bystander = Bystander::watch(&controller);
    let mut dripping = attacker::tcp(&controller, address(1)).await.unwrap();
    // A record that is announced and comes byte by byte.
    dripping.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    let (mut from, mut to) = dripping.split();
    let drip = async {
        while to.write_all(&[1]).await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = rest(&mut from) => {}
        () = drip => {}
    }
    bystander.is_served().await;
    controller.audited(&[&address(1).to_string(), "\"refused\"", "\"target\":\"handshake\"", "in time"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_tls_is_recorded_and_who_just_looks_whether_somebody_is_there_is_not() {
    let controller = farm(|_| {}).await;
    // As load balancers do.
    drop(attacker::tcp(&controller, address(1)).await.unwrap());
    let mut plain = attacker::tcp(&controller, address(2)).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nHost: farm\r\n\r\n").await.unwrap();
    rest(&mut plain).await;
    controller.audited(&[&address(2).to_string(), "\"refused\"", "\"target\":\"handshake\""]).await;
    assert_eq!(controller.audit_lines(&["\"refused\""]), 1);
}

#[tokio::test]
async fn an_older_tls_is_refused() {
    let controller = Controller::start().await;
    // Whoever the server is: it must not come to that.
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let tcp = attacker::tcp(&controller, address(1)).await.unwrap();
    let connecting = TlsConnector::from(Arc::new(config)).connect(controller.address().ip().into(), tcp);
    let error = soon("the refusal", connecting).await.unwrap_err().to_string();
    assert!(error.contains("ProtocolVersion"), "{error}");
    controller.audited(&[&address(1).to_string(), "\"refused\"", "\"target\":\"handshake\""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_certificate_has_so_many_connections_and_no_more() {
    let controller = farm(|limits| limits.connections_per_identity = 4).await;
    let mut bystander = Bystander::watch(&controller);
    let endpoint = controller.endpoint(Some((Role::Viewer, "greedy")));
    let connect = || Person { rpc: ClientServiceClient::new(railyard_service::channel::connect(&endpoint).unwrap()) };
    let ask =
        async |person: &Person| soon("an answer", person.rpc.clone().list_workers(v1::ListWorkersRequest {})).await;
    let mut held = Vec::new();
    for _ in 0..4 {
        let person = connect();
        ask(&person).await.unwrap();
        held.push(person);
    }
    let message = refused(ask(&connect()).await, Code::ResourceExhausted, "busy");
    assert!(message.contains("too many connections"), "{message}");
    bystander.is_served().await;
    // Those that it has go on, and one that it gives up is free for another.
    ask(&held[0]).await.unwrap();
    held.pop();
    crate::common::until("room for another connection", async || ask(&connect()).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_without_a_certificate_has_so_many_connections_and_no_more() {
    let controller = farm(|limits| {
        limits.connections_per_address = 50;
        limits.head_secs = 20;
    })
    .await;
    let mut bystander = Bystander::watch(&controller);
    let mut held = Vec::new();
    for _ in 0..50 {
        held.push(attacker::tls(&controller, address(1), None, "http/1.1").await.unwrap());
    }
    let mut one_more = attacker::tls(&controller, address(1), None, "http/1.1").await.unwrap();
    one_more.write_all(b"GET /healthz HTTP/1.1\r\nHost: farm\r\n\r\n").await.unwrap();
    let answer = String::from_utf8(rest(&mut one_more).await).unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 429") && answer.contains("retry-after: 2"), "{answer}");
    bystander.is_served().await;
    // Another address is another client, and so is somebody of the farm at the same one.
    for (from, who) in [(address(2), None), (address(1), Some((Role::Viewer, "victor")))] {
        let mut other = attacker::tls(&controller, from, who, "http/1.1").await.unwrap();
        other.write_all(b"GET /healthz HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(rest(&mut other).await.starts_with(b"HTTP/1.1 200"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_comes_and_goes_is_slowed_down() {
    let controller = farm(|limits| limits.arrivals_per_address_per_sec = 2).await;
    let mut bystander_elsewhere = Vec::new();
    let mut closed = 0;
    for _ in 0..200 {
        let mut tcp = attacker::tcp(&controller, address(1)).await.unwrap();
        let mut byte = [0];
        // A connection that is let in waits for a handshake; one that is not is closed at once.
        let read = tokio::time::timeout(std::time::Duration::from_millis(20), tcp.read(&mut byte)).await;
        closed += usize::from(read.is_ok());
        bystander_elsewhere.push(tcp);
    }
    assert!(closed >= 100, "only {closed} of 200 were turned away");
    controller.audited(&[&address(1).to_string(), "\"refused\"", "too many new connections"]).await;
    let mut other = attacker::tls(&controller, address(2), None, "http/1.1").await.unwrap();
    other.write_all(b"GET /healthz HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n").await.unwrap();
    assert!(rest(&mut other).await.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_s_idle_connections_are_closed() {
    let controller = farm(|_| {}).await;
    let mut idle = attacker::Http2::connect(&controller, address(1), None).await;
    idle.send(&attacker::frame(
        attacker::HEADERS,
        attacker::END_HEADERS | attacker::END_STREAM,
        1,
        &attacker::request("GET", "/healthz"),
    ))
    .await
    .unwrap();
    idle.wait_for(attacker::HEADERS, 1).await.unwrap();
    // It answers what it is asked, and asks for nothing more.
    while idle.next().await.is_ok() {}
}
