//! Bodies that drip.

use super::attacker::{self, DATA, END_HEADERS, HEADERS, Http2, address, call, frame, rest};
use super::bystander::Bystander;
use super::{MIB, farm, resident_bytes};
use crate::common::pipelines::ONE;
use crate::common::transfers::blob_of;
use crate::common::until;
use crate::common::worker::lease;
use bytes::Bytes;
use railyard_common::blob::{PartSum, PartToSign};
use railyard_proto::v1;
use railyard_service::convert::ToProto as _;
use railyard_service::tls::Role;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tonic::{Code, Status};

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
    let part = PartToSign { number: 1, sum: PartSum::Crc32(0) };
    let parts = v1::SignPartsRequest {
        lease: Some(lease),
        blob: Some(blob.to_proto()),
        upload_id: ticket.upload_id,
        parts: vec![part.to_proto()],
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
    controller.audited(&["\"refused\"", "PUT /cache/", "408 Request Timeout"]).await;
    bystander.is_served().await;
    // The part is still free for the honest one.
    worker.succeed_with(lease, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_drips_is_cut() {
    let controller = farm(|_| {}).await;
    let mut bystander = Bystander::watch(&controller);
    // A stream of messages may be as quiet as it likes, for longer than it takes to lose patience with others.
    let mut worker = controller.worker("anvil").await;
    let mut http2 = Http2::connect(&controller, address(1), Some((Role::Operator, "mallory"))).await;
    for stream in [1, 3, 5] {
        http2.send(&frame(HEADERS, END_HEADERS, stream, &call("/railyard.v1.ClientService/Submit"))).await.unwrap();
        http2.send(&frame(DATA, 0, stream, &[0, 0, 1, 0, 0, 10])).await.unwrap();
        // An answer, though the message never ends.
        http2.wait_for(HEADERS, stream).await.unwrap();
    }
    bystander.is_served().await;
    let build = controller.operator().submit(ONE, "2").await;
    let order = worker.order().await;
    worker.succeed(lease(&order)).await;
    controller.operator().ended(&build).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_half_there_do_not_fill_the_memory() {
    // Long enough for all of it to come, if anybody took it.
    let controller = farm(|limits| limits.body_secs = 5).await;
    let mut bystander = Bystander::watch(&controller);
    let before = resident_bytes();
    let mut calls = tokio::task::JoinSet::new();
    let who = controller.endpoint(Some((Role::Operator, "mallory")));
    let mut tls = railyard_service::tls::client_config(&who.ca_pem, who.identity.as_ref()).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    // What is on its way on one connection is bounded as well.
    let connection = || {
        let builder = reqwest::Client::builder().tls_backend_preconfigured(tls.clone());
        builder.http2_prior_knowledge().build().unwrap()
    };
    let connections: Vec<_> = std::iter::repeat_with(connection).take(10).collect();
    // The client is in this process as well: all calls send the same bytes.
    let piece = Bytes::from(vec![0x0a; 1 << 20]);
    for http in connections.iter().cycle().take(100) {
        // 15 MiB are announced, and all but one of them sent.
        let head = Bytes::from([&[0][..], &(15_u32 << 20).to_be_bytes()].concat());
        let pieces = std::iter::once(head).chain(std::iter::repeat_n(piece.clone(), 14));
        let body = futures_util::stream::iter(pieces.map(Ok::<_, std::io::Error>));
        let body = futures_util::StreamExt::chain(body, futures_util::stream::pending());
        let request = http.post(format!("{}/railyard.v1.ClientService/Submit", controller.url));
        let request = request.header("content-type", "application/grpc").header("te", "trailers");
        calls.spawn(request.body(reqwest::Body::wrap_stream(body)).send());
    }
    bystander.is_served().await;
    // Each is answered, though none ever ends: those that have room when nothing more comes, the others when they have waited
    // for room as long.
    let (mut most, mut answered) = (0, [0, 0]);
    until("the end of all calls", || {
        most = most.max(resident_bytes());
        while let Some(call) = calls.try_join_next() {
            let headers = call.unwrap().unwrap().headers().clone();
            let status = Status::from_header_map(&headers).unwrap();
            match status.code() {
                Code::DeadlineExceeded => answered[0] += 1,
                Code::ResourceExhausted => answered[1] += 1,
                _ => panic!("{status:?}"),
            }
        }
        std::future::ready(calls.is_empty().then_some(()))
    })
    .await;
    assert!(answered[0] > 0 && answered[1] > 0, "{answered:?}");
    bystander.is_served().await;
    let grown = most.saturating_sub(before);
    assert!(grown < 300 * MIB, "{grown} bytes of {}", 100 * 15 * MIB);
}
