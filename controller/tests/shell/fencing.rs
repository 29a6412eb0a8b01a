//! A lease is one worker's: nobody else reports, uploads or logs with it. What is reported must be in the cache.

use crate::common::pipelines::{ONE, PUBLISH};
use crate::common::transfers::{artifact, blob_of};
use crate::common::worker::{failed, hello, lease, report, succeeded};
use crate::common::{Controller, Worker, refused, until};
use railyard_common::blob::{Encoding, PartSum, PartToSign};
use railyard_proto::v1;
use railyard_service::convert::ToProto as _;
use tonic::Code;

/// A worker with the lease of the one job of `pipeline`.
async fn at_work(controller: &Controller, pipeline: &str) -> (String, Worker, v1::LeaseId) {
    let mut worker = controller.worker("anvil").await;
    let build = controller.operator().submit(pipeline, "1").await;
    let lease = lease(&worker.order().await);
    (build, worker, lease)
}

/// The upload of [`refused_for_all`], as the holder of the lease gets it and may use it.
async fn upload_of(holder: &Worker, lease: v1::LeaseId) -> String {
    let blob = blob_of(b"anything");
    let upload_id = holder.prepare_upload(lease, &[blob]).await.unwrap().remove(0).upload_id;
    let parts = sign_parts(lease, &upload_id);
    assert_eq!(holder.rpc.clone().sign_parts(parts).await.unwrap().into_inner().urls.len(), 1);
    upload_id
}

fn sign_parts(lease: v1::LeaseId, upload_id: &str) -> v1::SignPartsRequest {
    let (blob, upload_id) = (Some(blob_of(b"anything").to_proto()), upload_id.to_owned());
    let part = PartToSign { number: 1, sum: PartSum::Crc32(crc32fast::hash(b"anything")) }.to_proto();
    v1::SignPartsRequest { lease: Some(lease), blob, upload_id, parts: vec![part] }
}

async fn refused_for_all(worker: &Worker, lease: v1::LeaseId, upload_id: &str) {
    let blob = blob_of(b"anything");
    refused(worker.try_report(report(lease, succeeded())).await, Code::FailedPrecondition, "stale-lease");
    refused(worker.prepare_upload(lease, &[blob]).await, Code::FailedPrecondition, "stale-lease");
    refused(worker.log(lease, 0, b"forged\n").await, Code::FailedPrecondition, "stale-lease");
    let download = v1::PrepareDownloadRequest { lease: Some(lease), blobs: vec![blob.to_proto()] };
    refused(worker.rpc.clone().prepare_download(download).await, Code::FailedPrecondition, "stale-lease");
    let parts = sign_parts(lease, upload_id);
    refused(worker.rpc.clone().sign_parts(parts).await, Code::FailedPrecondition, "stale-lease");
    let secrets = v1::FetchSecretsRequest { lease: Some(lease) };
    refused(worker.rpc.clone().fetch_secrets(secrets).await, Code::FailedPrecondition, "stale-lease");
}

#[tokio::test]
async fn another_worker_can_do_nothing_with_a_lease() {
    let controller = Controller::start().await;
    let (build, worker, mine) = at_work(&controller, ONE).await;
    let mut other = controller.worker("hammer").await;
    let upload = upload_of(&worker, mine).await;
    refused_for_all(&other, mine, &upload).await;
    for call in ["Report", "PrepareUpload", "AppendLog", "PrepareDownload", "SignParts", "FetchSecrets"] {
        let call = format!("WorkerService/{call}\"");
        controller.audited(&["worker/hammer", &call, "\"refused\"", "is another worker's"]).await;
    }
    assert_eq!(other.beat(&[mine], v1::Phase::Run).await.lost, [mine]);
    let never = v1::LeaseId { job: mine.job, attempt: mine.attempt + 1 };
    refused_for_all(&worker, never, &upload).await;
    refused_for_all(&worker, v1::LeaseId { job: 4_711, attempt: 1 }, &upload).await;
    assert_eq!(controller.audit_lines(&["worker/anvil", "refused"]), 0, "what was never given may be forgotten");

    let person = controller.operator();
    assert_eq!(person.job(&build, "work@linux/amd64").await.state(), v1::JobState::Running);
    worker.log(mine, 0, b"mine\n").await.unwrap();
    worker.succeed(mine).await;
    person.ended(&build).await;
    assert_eq!(person.log(&build, "work", 0).await, b"mine\n");
    refused_for_all(&other, mine, &upload).await;
}

#[tokio::test]
async fn an_attempt_that_was_given_away_can_do_nothing_with_its_lease() {
    let controller = Controller::start().await;
    let (build, worker, first) = at_work(&controller, ONE).await;
    worker.log(first, 0, b"the first\n").await.unwrap();
    let upload = upload_of(&worker, first).await;
    // The machine was restarted: the job is free at once, and may well come back to the same worker.
    drop(worker);
    let mut worker = until_free(&controller).await;
    let second = lease(&worker.order().await);
    assert_eq!((second.job, second.attempt), (first.job, first.attempt + 1));
    refused_for_all(&worker, first, &upload).await;
    assert_eq!(worker.beat(&[first, second], v1::Phase::Run).await.lost, [first]);
    // The last refusal is written behind all those that were to be written.
    refused(worker.try_report(v1::ReportRequest::default()).await, Code::InvalidArgument, "bad-request");
    controller.audited(&["worker/anvil", "WorkerService/Report\"", "names no lease"]).await;
    assert_eq!(controller.audit_lines(&["worker/anvil", "refused"]), 1, "its own old leases are no lines");
    worker.succeed(second).await;
    let job = controller.operator().ended(&build).await.jobs.remove(0);
    let kinds: Vec<_> = job.attempts.iter().map(|attempt| attempt.outcome.as_ref().unwrap().kind()).collect();
    assert_eq!(kinds, [v1::OutcomeKind::Lost, v1::OutcomeKind::Succeeded]);
}

/// The worker of [`at_work`] after a restart of its machine, as soon as its name is free.
async fn until_free(controller: &Controller) -> Worker {
    let person = controller.operator();
    until("the disconnect", async || (!person.workers().await[0].connected).then_some(())).await;
    controller.worker_saying(v1::Hello { boot_id: "boot-2".to_owned(), ..hello("anvil") }).await
}

#[tokio::test]
async fn a_repeated_report_is_accepted_and_a_changed_one_is_not() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller, ONE).await;
    worker.succeed(lease).await;
    worker.succeed(lease).await;
    let changed = worker.try_report(report(lease, failed("on second thoughts"))).await;
    refused(changed, Code::FailedPrecondition, "stale-lease");
    let view = controller.operator().ended(&build).await;
    assert_eq!((view.state(), view.jobs[0].attempts.len()), (v1::BuildState::Succeeded, 1));
}

#[tokio::test]
async fn a_report_of_what_was_never_uploaded_is_refused_and_the_lease_lives() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller, PUBLISH).await;
    let missing = blob_of(b"only promised").to_proto();
    let mut request = report(lease, succeeded());
    request.artifacts = vec![artifact("out/a", &missing)];
    let message = refused(worker.try_report(request.clone()).await, Code::FailedPrecondition, "bad-upload");
    assert!(message.contains("out/a") && message.contains(&missing.digest), "{message}");

    // An upload that was begun, and whose part never came.
    let ticket = worker.prepare_upload(lease, &[blob_of(b"only promised")]).await.unwrap().remove(0);
    let empty = v1::FinishedUpload { blob: Some(missing), upload_id: ticket.upload_id, etags: Vec::new() };
    request.uploads = vec![empty.clone()];
    refused(worker.try_report(request.clone()).await, Code::DataLoss, "bad-upload");
    request.uploads = vec![v1::FinishedUpload { upload_id: "0123456789abcdef".to_owned(), ..empty }];
    refused(worker.try_report(request).await, Code::NotFound, "not-found");

    worker.succeed_with(lease, &[("out/a", b"only promised")]).await;
    assert_eq!(controller.operator().ended(&build).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn a_corrupt_upload_is_refused_and_the_lease_lives() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller, PUBLISH).await;
    let sent = worker.upload_as(lease, b"the right bytes", b"the wrong bytes").await;
    let mut request = report(lease, succeeded());
    request.artifacts = vec![artifact("out/a", &sent.blob)];
    request.uploads = Vec::from_iter(sent.upload);
    let message = refused(worker.try_report(request).await, Code::DataLoss, "bad-upload");
    assert!(message.contains("corrupt"), "{message}");
    controller.audited(&["worker/anvil", "WorkerService/Report", "\"refused\"", "corrupt"]).await;

    worker.succeed_with(lease, &[("out/a", b"the right bytes")]).await;
    assert_eq!(controller.operator().ended(&build).await.state(), v1::BuildState::Succeeded);
    assert_eq!(controller.cached("images/1/a").await.unwrap(), "the right bytes");
}

#[tokio::test]
async fn a_wrong_size_of_a_blob_is_refused() {
    let controller = Controller::start().await;
    let (_, worker, lease) = at_work(&controller, PUBLISH).await;
    let sent = worker.upload(lease, b"12345").await;
    let mut request = report(lease, succeeded());
    request.artifacts = vec![artifact("out/a", &v1::Blob { size_bytes: 6, stored_bytes: 6, ..sent.blob.clone() })];
    request.uploads = Vec::from_iter(sent.upload);
    let message = refused(worker.try_report(request).await, Code::DataLoss, "bad-upload");
    assert!(message.contains("5 bytes") && message.contains("6 were reported"), "{message}");

    // The same when the cache holds it compressed.
    let plain = b"railyard ".repeat(1_000);
    let packed = zstd::bulk::compress(&plain, 3).unwrap();
    let mut blob = blob_of(&plain);
    (blob.encoding, blob.stored_bytes) = (Encoding::Zstd, packed.len() as u64);
    let upload = worker.upload_stored(lease, blob, &packed).await.upload.unwrap();
    let mut request = report(lease, succeeded());
    request.uploads = vec![upload];
    request.artifacts = vec![artifact("out/a", &v1::Blob { size_bytes: 7, ..blob.to_proto() })];
    refused(worker.try_report(request).await, Code::DataLoss, "bad-upload");
}

#[tokio::test]
async fn an_artifact_that_is_no_output_of_the_step_is_refused() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller, PUBLISH).await;
    let sent = worker.upload(lease, b"secret").await;
    let mut request = report(lease, succeeded());
    request.uploads = Vec::from_iter(sent.upload);
    for (path, word) in [("etc/passwd", "etc/passwd is not an output of make"), ("out/../x", "..")] {
        request.artifacts = vec![artifact(path, &sent.blob)];
        let message = refused(worker.try_report(request.clone()).await, Code::InvalidArgument, "bad-request");
        assert!(message.contains(word), "{message}");
    }
    request.artifacts = vec![artifact("out/a", &sent.blob), artifact("out/a", &sent.blob)];
    let message = refused(worker.try_report(request.clone()).await, Code::InvalidArgument, "bad-request");
    assert!(message.contains("out/a") && message.contains("twice"), "{message}");

    // Where it is published is the plan's to say, not the worker's.
    let claimed = v1::Artifact { published: "images/1/other".to_owned(), ..artifact("out/a", &sent.blob) };
    request.artifacts = vec![claimed];
    worker.try_report(request).await.unwrap();
    let view = controller.operator().ended(&build).await;
    assert_eq!(view.jobs[0].artifacts[0].published, "images/1/a");
}

#[tokio::test]
async fn a_success_without_what_the_step_promises_is_refused_and_the_lease_lives() {
    let controller = Controller::start().await;
    let pipeline = PUBLISH.to_owned() + "      - path: notes.txt\n        optional: true\n";
    let (build, worker, lease) = at_work(&controller, &pipeline).await;
    let message = refused(worker.try_report(report(lease, succeeded())).await, Code::InvalidArgument, "bad-request");
    assert!(message.contains("out/*"), "{message}");
    worker.succeed_with(lease, &[("out/a", b"as promised")]).await;
    assert_eq!(controller.operator().ended(&build).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn only_what_the_order_names_can_be_fetched() {
    let controller = Controller::start().await;
    let (_, worker, lease) = at_work(&controller, ONE).await;
    let sent = worker.upload(lease, b"of somebody else").await;
    let download = v1::PrepareDownloadRequest { lease: Some(lease), blobs: vec![sent.blob.clone()] };
    let message = refused(worker.rpc.clone().prepare_download(download).await, Code::PermissionDenied, "forbidden");
    assert!(message.contains(&sent.blob.digest), "{message}");
}

#[tokio::test]
async fn a_blob_that_is_there_is_not_sent_again() {
    let controller = Controller::start().await;
    let (build, mut worker, first) = at_work(&controller, PUBLISH).await;
    worker.succeed_with(first, &[("out/a", b"the same"), ("out/b", b"the same"), ("out/empty", b"")]).await;
    let person = controller.operator();
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    person.submit(PUBLISH, "2").await;
    let second = lease(&worker.order().await);
    for bytes in [b"the same".as_slice(), b""] {
        assert!(worker.upload(second, bytes).await.upload.is_none());
    }
}

#[tokio::test]
async fn a_step_that_commits_must_report_its_image_and_no_other_may() {
    let controller = Controller::start().await;
    let committing = ONE.to_owned() + "    commit: true\n";
    let (build, worker, lease) = at_work(&controller, &committing).await;
    let message = refused(worker.try_report(report(lease, succeeded())).await, Code::InvalidArgument, "bad-request");
    assert!(message.contains("commits its image"), "{message}");
    let (image, uploads) = worker.image(lease, b"{}", &[b"layer"]).await;
    let absent = v1::Image { layers: vec![blob_of(b"no such layer").to_proto()], ..image.clone() };
    let request = v1::ReportRequest { image: Some(absent), uploads: uploads.clone(), ..report(lease, succeeded()) };
    let message = refused(worker.try_report(request).await, Code::FailedPrecondition, "bad-upload");
    assert!(message.contains("layer 0"), "{message}");
    let request = v1::ReportRequest { image: Some(image), uploads, ..report(lease, succeeded()) };
    worker.try_report(request).await.unwrap();
    assert!(controller.operator().ended(&build).await.jobs[0].image.is_some());
}
