//! Who may call what, from outside. The table itself is tested beside it.

use crate::common::people::{Person, submission};
use crate::common::pipelines::ONE;
use crate::common::worker::{hello, report, succeeded};
use crate::common::{Controller, Worker, refused, soon};
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_service::tls::Role;
use tonic::Code;

const LEASE: v1::LeaseId = v1::LeaseId { job: 0, attempt: 1 };

/// Every call of the client service is refused in the same way.
async fn person_is_refused(person: &Person, code: Code, reason: &str, reads_too: bool) {
    let mut rpc = person.rpc.clone();
    let build = || v1::GetBuildRequest { build: "one/1".to_owned() };
    refused(rpc.submit(submission(ONE, "1")).await, code, reason);
    refused(person.cancel("one/1", "").await, code, reason);
    refused(rpc.retry(v1::RetryRequest { build: "one/1".to_owned(), step: String::new() }).await, code, reason);
    only_operators(person, code, reason).await;
    if !reads_too {
        return;
    }
    refused(rpc.get_farm(v1::GetFarmRequest::default()).await, code, reason);
    refused(rpc.plan(submission(ONE, "1")).await, code, reason);
    refused(rpc.list_builds(v1::ListBuildsRequest::default()).await, code, reason);
    refused(rpc.get_build(build()).await, code, reason);
    refused(rpc.watch_build(build()).await.map(drop), code, reason);
    refused(person.try_read_log("one/1", "work", 0, 0, false).await, code, reason);
    refused(person.sign("one/1", &[]).await, code, reason);
    refused(rpc.list_workers(v1::ListWorkersRequest {}).await, code, reason);
}

/// What operators may and nobody else is refused.
async fn only_operators(person: &Person, code: Code, reason: &str) {
    refused(person.approve("one/1", "").await, code, reason);
    let hold =
        v1::HoldWorkerRequest { worker: "anvil".to_owned(), kind: v1::HoldKind::Cordon.into(), ..Default::default() };
    refused(person.hold(hold).await, code, reason);
    refused(person.release("anvil").await, code, reason);
    let release = v1::SubmitRequest { priority: "release".to_owned(), ..submission(ONE, "1") };
    refused(person.try_submit(release).await, code, reason);
}

/// Every call of the worker service is refused in the same way.
async fn worker_is_refused(controller: &Controller, who: Option<(Role, &str)>, code: Code, reason: &str) {
    refused(Worker::connect(&controller.endpoint(who), hello("anvil")).await.map(|_| ()), code, reason);
    let mut rpc = WorkerServiceClient::new(controller.channel(who));
    refused(rpc.report(report(LEASE, succeeded())).await, code, reason);
    let upload = v1::PrepareUploadRequest { lease: Some(LEASE), ..Default::default() };
    refused(rpc.prepare_upload(upload).await, code, reason);
    let download = v1::PrepareDownloadRequest { lease: Some(LEASE), ..Default::default() };
    refused(rpc.prepare_download(download).await, code, reason);
    let batch = v1::LogBatch { lease: Some(LEASE), ..Default::default() };
    refused(rpc.append_log(tokio_stream::iter([batch])).await.map(drop), code, reason);
}

#[tokio::test]
async fn without_a_certificate_nothing_is_allowed() {
    let controller = Controller::start().await;
    let nobody = Person { rpc: ClientServiceClient::new(controller.channel(None)) };
    person_is_refused(&nobody, Code::Unauthenticated, "unauthenticated", true).await;
    worker_is_refused(&controller, None, Code::Unauthenticated, "unauthenticated").await;
}

#[tokio::test]
async fn a_worker_may_not_do_what_people_do_and_the_other_way_round() {
    let controller = Controller::start().await;
    let person = controller.person(Role::Worker, "anvil");
    person_is_refused(&person, Code::PermissionDenied, "forbidden", true).await;
    for role in [Role::Operator, Role::Submitter, Role::Viewer] {
        worker_is_refused(&controller, Some((role, "olga")), Code::PermissionDenied, "forbidden").await;
    }
}

#[tokio::test]
async fn a_viewer_reads_and_a_submitter_submits() {
    let controller = Controller::start().await;
    let viewer = controller.person(Role::Viewer, "victor");
    person_is_refused(&viewer, Code::PermissionDenied, "forbidden", false).await;
    let submitter = controller.person(Role::Submitter, "ci");
    only_operators(&submitter, Code::PermissionDenied, "forbidden").await;
    for (version, priority) in ["manual", "schedule", "change"].iter().enumerate() {
        let version = (version + 2).to_string();
        let request = v1::SubmitRequest { priority: (*priority).to_owned(), ..submission(ONE, &version) };
        let build = submitter.try_submit(request).await.unwrap().build;
        assert_eq!(submitter.build(&build).await.priority, *priority);
    }
    let build = submitter.submit(ONE, "1").await;
    submitter.cancel(&build, "").await.unwrap();
    submitter.ended(&build).await;
    let retry = v1::RetryRequest { build: build.clone(), step: String::new() };
    submitter.rpc.clone().retry(retry).await.unwrap();
    assert_eq!(viewer.build(&build).await.submitted_by, "ci");
    let farm = v1::GetFarmRequest { client_version: "0".to_owned(), protocol: railyard_common::PROTOCOL };
    assert_eq!(viewer.rpc.clone().get_farm(farm).await.unwrap().into_inner().identity, "viewer victor");
}

#[tokio::test]
async fn a_certificate_of_another_farm_does_not_get_through_the_handshake() {
    let (controller, other) = (Controller::start().await, Controller::start().await);
    let mut endpoint = controller.endpoint(None);
    endpoint.identity = other.endpoint(Some((Role::Operator, "olga"))).identity;
    let channel = railyard_service::channel::connect(&endpoint).unwrap();
    let person = Person { rpc: ClientServiceClient::new(channel) };
    let status = person.try_submit(submission(ONE, "1")).await.unwrap_err();
    assert_eq!(railyard_service::rpc_error::reason_of(&status), None, "{status:?}");
    assert!(controller.operator().try_build("one/1").await.is_err());
}

#[tokio::test]
async fn clients_of_another_protocol_are_told_so() {
    let controller = Controller::start().await;
    let mut rpc = controller.operator().rpc;
    let newer = v1::GetFarmRequest { client_version: "9.9.9".to_owned(), protocol: 99 };
    let message = refused(rpc.get_farm(newer).await, Code::FailedPrecondition, "protocol");
    assert!(message.contains("the client 9.9.9 speaks protocol 99") && message.contains("upgrade"), "{message}");
}

#[tokio::test]
async fn without_a_certificate_a_message_is_not_even_read() {
    let controller = Controller::start().await;
    let endpoint = controller.endpoint(None);
    let mut tls = railyard_service::tls::client_config(&endpoint.ca_pem, None).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).http2_prior_knowledge().build().unwrap();
    let endless = futures_util::stream::pending::<Result<Vec<u8>, std::io::Error>>();
    let call = http.post(format!("{}/railyard.v1.ClientService/Submit", controller.url));
    let call = call.header("content-type", "application/grpc").header("te", "trailers");
    let answer = soon("the refusal", call.body(reqwest::Body::wrap_stream(endless)).send()).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], (Code::Unauthenticated as i32).to_string().as_str());
}

#[tokio::test]
async fn messages_beyond_the_limits_are_refused() {
    let controller = Controller::start().await;
    let bad = |hello: v1::Hello| async { controller.try_worker("anvil", hello).await.map(|_| ()) };
    let labels = (0..1_000).map(|n| (n.to_string(), String::new())).collect();
    let platforms = vec![v1::PlatformOffer { platform: "linux/amd64".to_owned(), emulated: false }; 1_000];
    for (hello, word) in [
        (v1::Hello { labels, ..hello("anvil") }, "labels"),
        (v1::Hello { platforms, ..hello("anvil") }, "platforms"),
        (v1::Hello { boot_id: "b".repeat(10_000), ..hello("anvil") }, "boot_id"),
        (v1::Hello { held: vec![LEASE; 20_000], ..hello("anvil") }, "held"),
    ] {
        let message = refused(bad(hello).await, Code::InvalidArgument, "bad-request");
        assert!(message.contains(word), "{message}");
    }
    let mut worker = controller.worker("anvil").await;
    let person = controller.operator();
    let build = person.submit(ONE, "1").await;
    let lease = crate::common::worker::lease(&worker.order().await);
    let message = refused(person.cancel(&build, &"r".repeat(1 << 20)).await, Code::InvalidArgument, "bad-request");
    assert!(message.contains("reason"), "{message}");
    let blobs = vec![v1::Blob::default(); 20_000];
    let upload = v1::PrepareUploadRequest { lease: Some(lease), blobs, ..Default::default() };
    let message = refused(worker.rpc.clone().prepare_upload(upload).await, Code::InvalidArgument, "bad-request");
    assert!(message.contains("blobs"), "{message}");
    worker.succeed(lease).await;
}
