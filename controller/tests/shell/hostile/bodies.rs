//! Bodies that drip.

use super::attacker::{self, DATA, END_HEADERS, HEADERS, Http2, address, call, frame, rest};
use super::bystander::Bystander;
use super::{MIB, farm, resident_bytes};
use crate::common::people::submission;
use crate::common::pipelines::ONE;
use crate::common::transfers::blob_of;
use crate::common::worker::lease;
use railyard_proto::v1;
use railyard_service::convert::ToProto as _;
use railyard_service::tls::Role;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_drips_is_cut() {
    let controller = farm(|_| {}).await;
    let mut bystander = Bystander::watch(&controller);
    let mut worker = controller.worker("anvil").await;
    controller.operator().submit(ONE, "1").await;
    let lease = lease(&worker.order().await);
    let bytes = vec![7; 1 << 20];
    let blob = blob_of(&bytes);
    let ticket = worker.prepare_upload(lease, &[blob]).await.unwrap().remove(0);
    let parts = v1::SignPartsRequest {
        lease: Some(lease),
        blob: Some(blob.to_proto()),
        upload_id: ticket.upload_id,
        parts: vec![1],
    };
    let url = worker.rpc.clone().sign_parts(parts).await.unwrap().into_inner().urls.remove(0);
    let path = url.strip_prefix(&controller.url).unwrap();
    let tls = attacker::tls(&controller, address(1), None, "http/1.1").await.unwrap();
    let (mut from, mut to) = tokio::io::split(tls);
    let head = format!(
        "PUT {path} HTTP/1.1\r\nHost: farm\r\nContent-Length: {}\r\nx-amz-checksum-crc32: AAAAAA==\r\n\r\n",
        bytes.len()
    );
    to.write_all(head.as_bytes()).await.unwrap();
    let drip = async {
        while to.write_all(b"x").await.is_ok() && to.flush().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        bytes = rest(&mut from) => String::from_utf8_lossy(&bytes).into_owned(),
        () = drip => unreachable!("a drip never ends"),
    };
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    bystander.is_served().await;
    // The part is still free for the honest one.
    worker.succeed_with(lease, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_drips_is_cut() {
    let controller = farm(|_| {}).await;
    let mut bystander = Bystander::watch(&controller);
    let mut http2 = Http2::connect(&controller, address(1), Some((Role::Operator, "mallory"))).await;
    http2.send(&frame(HEADERS, END_HEADERS, 1, &call("/railyard.v1.ClientService/Submit"))).await.unwrap();
    http2.send(&frame(DATA, 0, 1, &[0, 0, 1, 0, 0, 10])).await.unwrap();
    // An answer, though the message never ends.
    http2.wait_for(HEADERS, 1).await.unwrap();
    bystander.is_served().await;
    // A stream of messages may be as quiet as it likes.
    let worker = controller.worker("anvil").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let build = controller.operator().try_submit(submission(ONE, "2")).await.unwrap().build;
    let mut worker = worker;
    let order = worker.order().await;
    worker.succeed(lease(&order)).await;
    controller.operator().ended(&build).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_half_there_do_not_fill_the_memory() {
    let controller = farm(|limits| limits.body_secs = 20).await;
    let mut bystander = Bystander::watch(&controller);
    let before = resident_bytes();
    let mut open = Vec::new();
    let who = controller.endpoint(Some((Role::Operator, "mallory")));
    let mut tls = railyard_service::tls::client_config(&who.ca_pem, who.identity.as_ref()).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).http2_prior_knowledge().build().unwrap();
    for _ in 0..100 {
        // 15 MiB are announced, and all but the last byte sent.
        let head = [&[0][..], &(15_u32 << 20).to_be_bytes()].concat();
        let pieces = std::iter::once(head).chain(std::iter::repeat_n(vec![0x0a; 1 << 20], 14));
        let body = futures_util::stream::iter(pieces.map(Ok::<_, std::io::Error>));
        let body = futures_util::StreamExt::chain(body, futures_util::stream::pending());
        let request = http.post(format!("{}/railyard.v1.ClientService/Submit", controller.url));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        open.push(railyard_service::task::spawn("call", request.body(reqwest::Body::wrap_stream(body)).send()));
    }
    bystander.is_served().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    bystander.is_served().await;
    let grown = resident_bytes().saturating_sub(before);
    open.iter().for_each(tokio::task::JoinHandle::abort);
    assert!(grown < 300 * MIB, "{grown} bytes of {}", 100 * 15 * MIB);
}
