//! A build from submit to its manifest.

use crate::common::pipelines::CHAIN;
use crate::common::transfers::{artifact, blob_of};
use crate::common::worker::{failed, lease, report, succeeded};
use crate::common::{Controller, Worker};
use railyard_proto::v1;
use railyard_proto::v1::lease_order::Image as OrderImage;

const DISK: &[u8] = b"a disk that boots";
const PACKAGES: &[u8] = b"busybox 1.36\nlinux 6.1\n";

/// Does the job `base` of [`CHAIN`] as its report must be: files and an image.
async fn do_base(worker: &Worker, order: &v1::LeaseOrder) -> v1::Image {
    let lease = lease(order);
    let (image, uploads) = worker.image(lease, b"{\"config\": 1}", &[b"layer one", b"layer two"]).await;
    let mut request = report(lease, succeeded());
    request.uploads = uploads;
    request.image = Some(image.clone());
    for (path, bytes) in [("packages.txt", PACKAGES), ("pkg/busybox.deb", b"a package")] {
        let sent = worker.upload(lease, bytes).await;
        request.artifacts.push(artifact(path, &sent.blob));
        request.uploads.extend(sent.upload);
    }
    worker.try_report(request).await.unwrap();
    image
}

#[tokio::test]
async fn what_a_job_leaves_travels_to_the_next_ones_and_ends_in_the_cache() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(CHAIN, "1.0.0").await;
    assert_eq!(build, "chain/1.0.0");

    let base = worker.order().await;
    assert_eq!((base.build.as_str(), base.job.as_str(), base.ttl_millis), ("chain/1.0.0", "base@linux/amd64", 120_000));
    assert_eq!(base.image, Some(OrderImage::Registry("debian:plain".to_owned())));
    assert_eq!(base.run.as_ref().unwrap().script, "make base");
    assert!(!base.traceparent.is_empty());
    worker.beat(&[lease(&base)], v1::Phase::Run).await;
    assert_eq!(person.job(&build, "base@linux/amd64").await.attempts[0].phase(), v1::Phase::Run);
    let image = do_base(&worker, &base).await;

    let disk = worker.order().await;
    assert_eq!(disk.job, "disk@linux/amd64");
    assert_eq!(disk.image, Some(OrderImage::Committed(image)));
    let [input] = disk.inputs.as_slice() else { panic!("{:?}", disk.inputs) };
    assert_eq!(input.mount_path, "/inputs/base/packages.txt");
    let wanted = input.artifact.as_ref().and_then(|artifact| artifact.blob.as_ref()).unwrap();
    assert_eq!(worker.download(lease(&disk), wanted).await, PACKAGES);
    worker.succeed_with(lease(&disk), &[("out/disk.raw", DISK)]).await;

    let test = worker.order().await;
    assert_eq!((test.job.as_str(), test.inputs[0].mount_path.as_str()), ("test@linux/amd64", "/image/out/disk.raw"));
    worker.succeed(lease(&test)).await;

    let view = person.ended(&build).await;
    assert_eq!(view.state(), v1::BuildState::Succeeded, "{view:?}");
    assert_eq!(worker.build_over().await, build);
    assert!(view.jobs.iter().all(|job| job.state() == v1::JobState::Succeeded));
    assert_eq!((view.submitted_by.as_str(), view.finalize_error.as_str()), ("olga", ""));
    check_cache(&controller).await;
}

async fn check_cache(controller: &Controller) {
    let manifest = controller.cached_json("builds/chain/1.0.0/build.json").await;
    assert_eq!(manifest["verdict"], "succeeded");
    assert_eq!(manifest["params"]["flavour"], "plain");
    let jobs = manifest["jobs"].as_array().unwrap();
    let names: Vec<_> = jobs.iter().map(|job| job["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["base@linux/amd64", "disk@linux/amd64", "test@linux/amd64"]);
    assert_eq!(jobs[0]["image"]["layers"].as_array().unwrap().len(), 2);
    assert_eq!(jobs[0]["artifacts"][0]["published"], "images/amd64/1.0.0/packages.txt");
    assert_eq!(jobs[0]["attempts"][0]["worker"], "anvil");

    let index = controller.cached_json("builds/chain/builds.json").await;
    assert_eq!(
        (&index["builds"][0]["version"], &index["builds"][0]["verdict"]),
        (&"1.0.0".into(), &"succeeded".into())
    );
    assert_eq!(controller.cached_json("builds/chain/latest.json").await["version"], "1.0.0");

    assert_eq!(controller.cached("images/amd64/1.0.0/packages.txt").await.unwrap().as_bytes(), PACKAGES);
    assert_eq!(controller.cached("images/amd64/1.0.0/disk.raw").await.unwrap().as_bytes(), DISK);
    let sums = controller.cached("images/amd64/1.0.0/SHA256SUMS").await.unwrap();
    let line = |bytes: &[u8], name: &str| format!("{}  {name}\n", blob_of(bytes).digest.hex());
    assert_eq!(sums, line(DISK, "disk.raw") + &line(PACKAGES, "packages.txt"));
}

#[tokio::test]
async fn artifacts_are_found_by_path_name_and_job_and_fetched_without_a_certificate() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(CHAIN, "2").await;
    let order = worker.order().await;
    do_base(&worker, &order).await;
    let disk = lease(&worker.order().await);
    worker.succeed_with(disk, &[("out/disk.raw", DISK)]).await;
    let test = lease(&worker.order().await);
    worker.succeed(test).await;
    person.ended(&build).await;

    assert_eq!(person.sign(&build, &[]).await.unwrap().len(), 3);
    for paths in ["out/disk.raw", "disk.raw", "*.raw", "images/amd64/2/disk.raw", "disk@linux/amd64/out/*"] {
        let signed = person.sign(&build, &[paths]).await.unwrap();
        let [one] = signed.as_slice() else { panic!("{paths}: {signed:?}") };
        assert_eq!(
            (one.job.as_str(), one.artifact.as_ref().unwrap().path.as_str()),
            ("disk@linux/amd64", "out/disk.raw")
        );
        let fetched = worker.http.get(&one.url).send().await.unwrap();
        assert_eq!((fetched.status().as_u16(), fetched.bytes().await.unwrap().as_ref()), (200, DISK), "{paths}");
    }
    let unsigned = format!("{}/cache/images/amd64/2/disk.raw", controller.url);
    assert_eq!(worker.http.get(unsigned).send().await.unwrap().status(), 401);
}

#[tokio::test]
async fn a_failing_step_fails_the_build_and_skips_what_follows() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(CHAIN, "3").await;
    let order = worker.order().await;
    worker.try_report(report(lease(&order), failed("make: *** [all] Error 2"))).await.unwrap();

    let view = person.ended(&build).await;
    assert_eq!(view.state(), v1::BuildState::Failed);
    let states = person.states(&build).await;
    assert_eq!(states["base@linux/amd64"], v1::JobState::Failed);
    assert_eq!(states["test@linux/amd64"], v1::JobState::Skipped);
    let outcome = view.jobs[0].attempts[0].outcome.as_ref().unwrap();
    assert_eq!((outcome.reason.as_str(), outcome.message.as_str()), ("exit-code", "make: *** [all] Error 2"));
    assert_eq!(controller.cached_json("builds/chain/3/build.json").await["verdict"], "failed");
    assert_eq!(controller.cached("builds/chain/latest.json").await, None);
}

#[tokio::test]
async fn a_retry_runs_what_did_not_succeed_and_keeps_the_rest() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(CHAIN, "4").await;
    let order = worker.order().await;
    do_base(&worker, &order).await;
    let disk = worker.order().await;
    worker.try_report(report(lease(&disk), failed("no space"))).await.unwrap();
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Failed);

    let request = v1::RetryRequest { build: build.clone(), step: String::new() };
    let again = person.rpc.clone().retry(request).await.unwrap().into_inner().jobs;
    assert_eq!(again, ["disk@linux/amd64", "test@linux/amd64"]);
    let disk = worker.order().await;
    assert_eq!((disk.job.as_str(), lease(&disk).attempt), ("disk@linux/amd64", 2));
    worker.succeed_with(lease(&disk), &[("out/disk.raw", DISK)]).await;
    let test = lease(&worker.order().await);
    worker.succeed(test).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    check_verdicts(&controller, &[("4", "succeeded")]).await;
}

async fn check_verdicts(controller: &Controller, wanted: &[(&str, &str)]) {
    let index = controller.cached_json("builds/chain/builds.json").await;
    let builds = index["builds"].as_array().unwrap();
    let found: Vec<_> =
        builds.iter().map(|b| (b["version"].as_str().unwrap(), b["verdict"].as_str().unwrap())).collect();
    assert_eq!(found, wanted);
}

#[tokio::test]
async fn an_input_that_an_earlier_job_did_not_leave_fails_the_job_by_name() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let pipeline = ["pkg/*.deb", "packages.txt"].iter().fold(CHAIN.to_owned(), |pipeline, path| {
        let output = format!("      - path: {path}\n");
        pipeline.replace(&output, &format!("{output}        optional: true\n"))
    });
    let build = person.submit(&pipeline, "5").await;
    let order = worker.order().await;
    let (image, uploads) = worker.image(lease(&order), b"{}", &[b"layer"]).await;
    let request = v1::ReportRequest { image: Some(image), uploads, ..report(lease(&order), succeeded()) };
    worker.try_report(request).await.unwrap();
    let view = person.ended(&build).await;
    let outcome = view.jobs[1].attempts[0].outcome.as_ref().unwrap();
    assert_eq!((view.state(), outcome.reason.as_str()), (v1::BuildState::Failed, "input-missing"));
    assert!(outcome.message.contains("packages.txt"), "{}", outcome.message);
}
