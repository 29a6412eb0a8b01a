//! Cancelling: what runs is told, what waits ends, and the build ends when the last report is in.

use crate::common::pipelines::{CHAIN, ONE, SHORT_LEASE};
use crate::common::transfers::artifact;
use crate::common::worker::{cancelled, hello, lease, report, succeeded};
use crate::common::{Controller, refused, until};
use railyard_proto::v1;
use tonic::Code;

#[tokio::test]
async fn a_cancel_reaches_the_worker_and_the_build_ends_with_its_report() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(CHAIN, "1").await;
    let order = worker.order().await;
    person.cancel(&build, "wrong branch").await.unwrap();
    let told = worker.cancel().await;
    assert_eq!((told.lease, told.reason.as_str()), (order.lease, "wrong branch (cancelled by olga)"));
    let states = person.states(&build).await;
    assert_eq!(states["base@linux/amd64"], v1::JobState::Running);
    assert_eq!(states["disk@linux/amd64"], v1::JobState::Cancelled);
    // Again is fine, and changes nothing.
    person.cancel(&build, "really").await.unwrap();

    worker.try_report(report(lease(&order), cancelled("stopped: wrong branch"))).await.unwrap();
    let view = person.ended(&build).await;
    assert_eq!(view.state(), v1::BuildState::Cancelled);
    assert!(view.jobs.iter().all(|job| job.state() == v1::JobState::Cancelled));
    assert_eq!(controller.cached_json("builds/chain/1/build.json").await["verdict"], "cancelled");
    assert_eq!(worker.build_over().await, build);
}

#[tokio::test]
async fn a_build_that_waits_ends_at_once() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let build = person.submit(ONE, "1").await;
    person.cancel(&build, "").await.unwrap();
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Cancelled);
    let mut worker = controller.worker("anvil").await;
    let next = person.submit(ONE, "2").await;
    assert_eq!(worker.order().await.build, next);
}

#[tokio::test]
async fn a_worker_that_was_away_is_told_when_it_comes_back() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(ONE, "1").await;
    let held = lease(&worker.order().await);
    drop(worker);
    until("the disconnect", async || (!person.workers().await[0].connected).then_some(())).await;
    person.cancel(&build, "not needed").await.unwrap();
    let mut worker = controller.worker_saying(v1::Hello { held: vec![held], ..hello("anvil") }).await;
    assert_eq!(worker.welcome.held, [held]);
    let told = worker.cancel().await;
    assert_eq!((told.lease, told.reason.as_str()), (Some(held), "not needed (cancelled by olga)"));
    worker.try_report(report(held, cancelled("stopped"))).await.unwrap();
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Cancelled);
}

#[tokio::test]
async fn a_worker_that_never_comes_back_does_not_hold_up_the_end() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(SHORT_LEASE, "1").await;
    let _ = worker.order().await;
    drop(worker);
    person.cancel(&build, "").await.unwrap();
    let view = person.ended(&build).await;
    assert_eq!(view.state(), v1::BuildState::Cancelled);
    assert_eq!(view.jobs[0].attempts.len(), 1);
}

#[tokio::test]
async fn a_success_that_beats_the_cancel_counts_and_nothing_new_starts() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(CHAIN, "1").await;
    let held = lease(&worker.order().await);
    person.cancel(&build, "").await.unwrap();
    let (image, uploads) = worker.image(held, b"{}", &[]).await;
    let mut done = v1::ReportRequest { image: Some(image), uploads, ..report(held, succeeded()) };
    for path in ["pkg/a.deb", "packages.txt"] {
        let sent = worker.upload(held, path.as_bytes()).await;
        done.artifacts.push(artifact(path, &sent.blob));
        done.uploads.extend(sent.upload);
    }
    worker.try_report(done).await.unwrap();
    let view = person.ended(&build).await;
    assert_eq!((view.state(), view.jobs[0].state()), (v1::BuildState::Cancelled, v1::JobState::Succeeded));
    assert_eq!(controller.cached("images/amd64/1/SHA256SUMS").await, None);
}

#[tokio::test]
async fn one_job_is_cancelled_and_what_needs_it_is_skipped() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let pipeline = format!("{CHAIN}  - name: lint\n    image: x\n    script: lint\n");
    let build = person.submit(&pipeline, "1").await;
    let (first, second) = (worker.order().await, worker.order().await);
    let (base, lint) = if first.job == "base@linux/amd64" { (first, second) } else { (second, first) };

    assert_eq!(person.cancel_jobs(&build, "base@linux/amd64", "not needed").await.unwrap(), ["base@linux/amd64"]);
    let told = worker.cancel().await;
    assert_eq!((told.lease, told.reason.as_str()), (base.lease, "not needed (cancelled by olga)"));
    let stopping = person.job(&build, "base@linux/amd64").await;
    assert_eq!(
        (stopping.state(), stopping.cancel_reason.as_str()),
        (v1::JobState::Running, "not needed (cancelled by olga)")
    );
    // Again is fine, and changes nothing.
    assert_eq!(person.cancel_jobs(&build, "base", "really").await.unwrap(), [""; 0]);
    let message = refused(person.cancel_jobs(&build, "packages", "").await, Code::NotFound, "no-such-job");
    assert!(message.contains("`packages`") && message.contains("railyard show chain/1"), "{message}");
    refused(person.cancel_jobs(&build, "Base!", "").await, Code::InvalidArgument, "bad-request");

    worker.try_report(report(lease(&base), cancelled("stopped"))).await.unwrap();
    let states = person.states(&build).await;
    assert_eq!(
        (states["base@linux/amd64"], states["disk@linux/amd64"]),
        (v1::JobState::Cancelled, v1::JobState::Skipped)
    );
    assert_eq!(person.job(&build, "disk@linux/amd64").await.why, "base@linux/amd64 did not succeed");
    // The build goes on without them.
    assert_eq!(states["lint@linux/amd64"], v1::JobState::Running);
    worker.succeed(lease(&lint)).await;
    let view = person.ended(&build).await;
    assert_eq!((view.state(), view.cancel_reason.as_str()), (v1::BuildState::Cancelled, ""));
    assert_eq!(view.jobs[0].attempts.len(), 1);
    let manifest = controller.cached_json("builds/chain/1/build.json").await;
    assert_eq!(manifest["jobs"][0]["cancel_reason"], "not needed (cancelled by olga)");
    assert!(view.jobs[0].ended_at.is_some());
}
