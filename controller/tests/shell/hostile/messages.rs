//! Messages that are none.

use super::bystander::Bystander;
use super::farm;
use crate::common::{refused, soon};
use bytes::{Buf as _, BufMut as _, Bytes};
use http::uri::PathAndQuery;
use prost::Message as _;
use railyard_proto::v1;
use railyard_service::rpc_error;
use railyard_service::tls::Role;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// Bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// Every call that the farm describes.
fn calls() -> Vec<PathAndQuery> {
    let described =
        [v1::DESCRIPTORS, tonic_health::pb::FILE_DESCRIPTOR_SET, tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET];
    let files = described.iter().flat_map(|set| prost_types::FileDescriptorSet::decode(*set).unwrap().file);
    let mut calls = Vec::new();
    for file in files {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                calls.push(path.parse().unwrap());
            }
        }
    }
    calls
}

/// What a call with this message ends with; the first message of the answer ends it as well.
async fn end(channel: &Channel, path: &PathAndQuery, message: Bytes) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let request = Request::new(tokio_stream::once(message));
    client.streaming(request, path.clone(), Raw).await?.into_inner().message().await.map(drop)
}

/// What is no message of any kind.
fn undecodable() -> Vec<Vec<u8>> {
    vec![
        vec![0xff; 50],
        // A field that is longer than the message, and one that is longer than anything.
        vec![0x0a, 100, b'x'],
        vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        // A number that is cut off, a group without an end, and a kind of field that there is not.
        vec![0x08, 0x01, 0x11, 1, 2, 3],
        vec![0x0b; 1_000],
        vec![0x0e],
    ]
}

/// What may be a message of some kind.
fn dubious() -> Vec<Vec<u8>> {
    let nested = |depth: usize, tag: u8| {
        let mut message: Vec<u8> = Vec::new();
        for _ in 0..depth {
            let length = message.len();
            let mut outer = vec![tag];
            prost::encode_length_delimiter(length, &mut outer).unwrap();
            outer.extend(message);
            message = outer;
        }
        message
    };
    let mut random = fastrand::Rng::with_seed(7);
    let mut messages = vec![
        vec![],
        // Not UTF-8.
        vec![0x0a, 2, 0xc3, 0x28],
        nested(200, 0x0a),
        nested(50, 0x12),
        // A list of empty messages.
        [0x12, 0x00].repeat(50_000),
        [0x1a, 0x00].repeat(50_000),
    ];
    for _ in 0..20 {
        messages.push((0..random.usize(1..200)).map(|_| random.u8(..)).collect());
    }
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_do_not_parse_are_refused_by_every_call() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        before(panic);
    }));
    let controller = farm(|limits| limits.body_secs = 20).await;
    let mut bystander = Bystander::watch(&controller);
    let messages: Vec<(Bytes, bool)> = undecodable().into_iter().map(|bytes| (bytes.into(), true)).collect();
    let messages: Vec<_> =
        messages.into_iter().chain(dubious().into_iter().map(|bytes| (bytes.into(), false))).collect();
    let calls = calls();
    assert!(calls.len() > 20, "{calls:?}");
    for who in [(Role::Operator, "mallory"), (Role::Worker, "mallory")] {
        let channel = controller.channel(Some(who));
        for path in &calls {
            for (message, is_none) in &messages {
                let Err(status) = soon("an end", end(&channel, path, message.clone())).await else {
                    // What parses may be served: an empty message is a fine question. The library's reflection ends its stream
                    // without a word.
                    assert!(!is_none || path.path().contains("ServerReflection"), "{path} {who:?} {message:?}");
                    continue;
                };
                let (code, reason) = (status.code(), rpc_error::reason_of(&status));
                let what = format!("{path} {who:?} {:?}: {status:?}", &message[..message.len().min(20)]);
                // Nobody's own fault is the farm's.
                use Code::{Aborted, DataLoss, Internal, Unavailable, Unknown};
                assert!(!matches!(code, Unknown | DataLoss | Unavailable | Aborted | Internal), "{what}");
                assert!(reason.is_some() || path.path().starts_with("/grpc."), "{what}");
                if *is_none {
                    let is_told = code == Code::InvalidArgument && reason.as_deref() == Some(rpc_error::BAD_REQUEST);
                    assert!(is_told || code == Code::PermissionDenied, "{what}");
                }
            }
        }
    }
    bystander.is_served().await;
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_decode_is_recorded() {
    let controller = farm(|_| {}).await;
    for (role, call, what) in [
        (Role::Operator, "/railyard.v1.ClientService/Plan", "refused"),
        (Role::Operator, "/railyard.v1.ClientService/Submit", "submit"),
        (Role::Operator, "/railyard.v1.AdminService/RunSweep", "sweep"),
        (Role::Worker, "/railyard.v1.WorkerService/Session", "refused"),
        // Said at the end of the answers.
        (Role::Worker, "/railyard.v1.WorkerService/AppendLog", "refused"),
        (Role::Worker, "/grpc.health.v1.Health/Check", "refused"),
    ] {
        let channel = controller.channel(Some((role, "mallory")));
        let ended = end(&channel, &call.parse().unwrap(), Bytes::from_static(&[0xff; 50])).await;
        refused(ended, Code::InvalidArgument, "bad-request");
        let (by, what) = (format!("{role}/mallory"), format!("\"what\":\"{what}\""));
        controller.audited(&[&by, &what, call, "\"outcome\":\"refused\""]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_too_big_are_refused_before_they_come() {
    let controller = farm(|limits| limits.body_secs = 20).await;
    let mut bystander = Bystander::watch(&controller);
    for (who, path, length) in [
        (Some((Role::Operator, "mallory")), "/railyard.v1.ClientService/Submit", 17 << 20),
        (Some((Role::Operator, "mallory")), "/railyard.v1.ClientService/Submit", u32::MAX),
        (Some((Role::Worker, "mallory")), "/railyard.v1.WorkerService/Session", u32::MAX),
        (None, "/grpc.health.v1.Health/Check", 1 << 20),
        (None, "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", 1 << 20),
    ] {
        let endpoint = controller.endpoint(who);
        let mut tls = railyard_service::tls::client_config(&endpoint.ca_pem, endpoint.identity.as_ref()).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).http2_prior_knowledge().build().unwrap();
        let head = [&[0][..], &length.to_be_bytes()].concat();
        let body = futures_util::StreamExt::chain(
            futures_util::stream::iter([Ok::<_, std::io::Error>(head)]),
            futures_util::stream::pending(),
        );
        let call = http.post(format!("{}{path}", controller.url)).header("content-type", "application/grpc");
        let call = call.header("te", "trailers").body(reqwest::Body::wrap_stream(body)).send();
        let answer = soon("the refusal", call).await.unwrap();
        let mut status = answer.headers().get("grpc-status").cloned();
        if status.is_none() {
            // A stream that had begun says it at its end, which this client does not show; it ends without a message.
            assert_eq!(soon("the end", answer.bytes()).await.unwrap_or_default(), Bytes::new());
            status = Some("11".parse().unwrap());
        }
        assert_eq!(status.unwrap(), "11", "{path}: out of range");
        if !path.contains("ServerReflection") {
            controller.audited(&[path, "\"outcome\":\"refused\""]).await;
        }
    }
    bystander.is_served().await;
}
