//! An orderly stop and a start on the same data: builds, leases, logs and half-done uploads go on.

use crate::common::pipelines::{CHAIN, ONE, SHORT_LEASE};
use crate::common::transfers::artifact;
use crate::common::worker::{hello, lease, report, succeeded};
use crate::common::{Controller, soon};
use railyard_proto::v1;
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_restart_in_the_middle_of_a_build_costs_nothing() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(CHAIN, "1").await;
    let held = lease(&worker.order().await);
    worker.log(held, 0, b"before\n").await.unwrap();
    let deb = worker.upload(held, b"a package").await;
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;

    worker.closed().await;
    // The same clients as before: they find the controller again by themselves.
    assert_eq!(person.job(&build, "base@linux/amd64").await.state(), v1::JobState::Running);
    assert!(!person.workers().await[0].connected);
    let builds = vec![build.clone()];
    let mut worker = controller.worker_saying(v1::Hello { held: vec![held], builds, ..hello("anvil") }).await;
    assert_eq!((worker.welcome.held.as_slice(), worker.welcome.builds_over.len()), ([held].as_slice(), 0));
    assert!(worker.beat(&[held], v1::Phase::Upload).await.lost.is_empty());
    assert_eq!(worker.log(held, 0, b"before\nafter\n").await.unwrap(), 13);
    let (image, uploads) = worker.image(held, b"{}", &[b"layer"]).await;
    let list = worker.upload(held, b"list").await;
    let mut request = v1::ReportRequest { image: Some(image), uploads, ..report(held, succeeded()) };
    request.artifacts = vec![artifact("pkg/a.deb", &deb.blob), artifact("packages.txt", &list.blob)];
    request.uploads.extend(deb.upload.into_iter().chain(list.upload));
    worker.try_report(request).await.unwrap();

    let disk = lease(&worker.order().await);
    worker.succeed_with(disk, &[("out/disk.raw", b"disk")]).await;
    let test = lease(&worker.order().await);
    worker.succeed(test).await;
    let view = person.ended(&build).await;
    assert_eq!(view.state(), v1::BuildState::Succeeded);
    assert!(view.jobs.iter().all(|job| job.attempts.len() == 1));
    assert_eq!(person.log(&build, "base", 0).await, b"before\nafter\n");
}

#[tokio::test]
async fn ended_builds_keys_and_logs_are_there_after_a_restart() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let request = v1::SubmitRequest { idempotency_key: "k".to_owned(), ..crate::common::people::submission(ONE, "1") };
    let build = person.try_submit(request.clone()).await.unwrap().build;
    let held = lease(&worker.order().await);
    worker.log(held, 0, b"all of it\n").await.unwrap();
    worker.succeed(held).await;
    let before = person.ended(&build).await;
    // Stopped at once: the log may be filed now or at the next start.
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;
    let person = controller.operator();
    assert_eq!(person.build(&build).await, before);
    assert!(person.try_submit(request).await.unwrap().existing);
    assert_eq!(person.read_log(&build, "work", 0, true).await.rest().await, b"all of it\n");
    let mut worker = controller.worker("anvil").await;
    let next = person.submit(ONE, "2").await;
    let order = worker.order().await;
    assert_eq!(order.build, next);
    assert!(lease(&order).job > held.job, "job numbers are never used again");
}

#[tokio::test]
async fn a_lease_that_nobody_takes_up_again_expires_after_a_restart() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(SHORT_LEASE, "1").await;
    let first = lease(&worker.order().await);
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;
    let mut other = controller.worker("hammer").await;
    let again = lease(&other.order().await);
    assert_eq!((again.job, again.attempt), (first.job, 2));
    let job = controller.operator().job(&build, "work@linux/amd64").await;
    assert_eq!(job.attempts[0].outcome.as_ref().unwrap().reason, "worker-gone");
}

#[tokio::test]
async fn a_second_controller_on_the_same_data_changes_nothing() {
    let controller = Controller::start().await;
    let underway = controller.data_dir().join("cache/uploads/tmp-underway");
    std::fs::write(&underway, b"a file of the first one, on its way").unwrap();
    let server = controller.data_dir().join("pki/server.pem");
    let before = std::fs::read(&server).unwrap();
    let (tx, _ready) = tokio::sync::oneshot::channel();
    let second = railyard_controller::run(controller.config.clone(), CancellationToken::new(), tx);
    let error = format!("{:#}", soon("the refusal", second).await.unwrap_err());
    assert!(error.contains("journal"), "{error}");
    assert!(underway.exists(), "the second controller swept the first one's files");
    assert_eq!(std::fs::read(&server).unwrap(), before);
}
