//! Jobs that wait for somebody to approve them.

use crate::common::worker::lease;
use crate::common::{Controller, refused};
use railyard_proto::v1;
use tonic::Code;

/// What goes to users is signed, and somebody has to say so.
const SIGNED: &str = "
name: signed
platforms: [linux/amd64]
steps:
  - name: image
    image: debian:bookworm
    script: image
  - name: sign
    image: debian:bookworm
    script: sign
    needs: [image]
    approval: '{{ version }} goes to users'
  - name: publish
    image: debian:bookworm
    script: publish
    needs: [sign]
    approval: true
";

#[tokio::test]
async fn a_job_waits_until_an_operator_approves_it() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(SIGNED, "1.0").await;
    let image = worker.order().await;
    let message = refused(person.approve(&build, "").await, Code::FailedPrecondition, "nothing-to-approve");
    assert!(message.contains("signed/1.0"), "{message}");
    let message = refused(person.approve(&build, "image").await, Code::NotFound, "no-such-job");
    assert!(message.contains("is to be approved"), "{message}");

    let watched = v1::GetBuildRequest { build: build.clone() };
    let mut watch = person.rpc.clone().watch_build(watched).await.unwrap().into_inner();
    worker.succeed(lease(&image)).await;
    let waits = person.job_is(&build, "sign@linux/amd64", v1::JobState::AwaitsApproval).await;
    assert_eq!(waits.why, "waits for approval (1.0 goes to users): railyard approve signed/1.0 sign@linux/amd64");
    let asked = waits.approval.unwrap();
    assert_eq!((asked.what.as_str(), asked.approved_by.as_str(), asked.approved_at), ("1.0 goes to users", "", None));

    assert_eq!(person.approve(&build, "").await.unwrap(), ["sign@linux/amd64"]);
    let sign = worker.order().await;
    assert_eq!(sign.job, "sign@linux/amd64");
    let job = person.job(&build, "sign@linux/amd64").await.approval.unwrap();
    assert_eq!((job.approved_by.as_str(), job.approved_at.is_some()), ("olga", true));

    // Before it waits, too; then it does not stop there.
    assert_eq!(person.approve(&build, "publish").await.unwrap(), ["publish@linux/amd64"]);
    assert_eq!(person.approve(&build, "publish@linux/amd64").await.unwrap(), [""; 0]);
    worker.succeed(lease(&sign)).await;
    let publish = worker.order().await;
    worker.succeed(lease(&publish)).await;
    let view = person.ended(&build).await;
    assert_eq!(view.state(), v1::BuildState::Succeeded);
    assert!(view.jobs[0].approval.is_none());
    let manifest = controller.cached_json("builds/signed/1.0/build.json").await;
    assert_eq!((&manifest["jobs"][1]["approved"]["by"], &manifest["priority"]), (&"olga".into(), &"manual".into()));
    assert!(manifest["jobs"][0]["approved"].is_null());

    // Whoever watched saw it wait, and saw it approved.
    let mut seen = Vec::new();
    while let Some(view) = watch.message().await.unwrap() {
        let sign = &view.jobs[1];
        seen.push((sign.state(), sign.approval.as_ref().is_some_and(|approval| !approval.approved_by.is_empty())));
    }
    assert!(seen.contains(&(v1::JobState::Succeeded, true)), "{seen:?}");
}

#[tokio::test]
async fn what_nobody_approves_can_be_cancelled() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(SIGNED, "1.0").await;
    let image = worker.order().await;
    worker.succeed(lease(&image)).await;
    person.job_is(&build, "sign@linux/amd64", v1::JobState::AwaitsApproval).await;
    assert_eq!(person.cancel_jobs(&build, "sign", "").await.unwrap(), ["sign@linux/amd64"]);
    let view = person.ended(&build).await;
    let sign = &view.jobs[1];
    assert_eq!((sign.state(), sign.cancel_reason.as_str()), (v1::JobState::Cancelled, "cancelled by olga"));
    assert!(sign.ended_at.is_some());
    assert_eq!(view.jobs[2].state(), v1::JobState::Skipped);
    refused(person.approve(&build, "sign").await, Code::FailedPrecondition, "nothing-to-approve");
}

#[tokio::test]
async fn the_plan_says_what_will_have_to_be_approved() {
    let controller = Controller::start().await;
    let plan = controller.operator().plan(SIGNED).await;
    let asked: Vec<_> = plan.jobs.iter().map(|job| job.approval.as_ref().map(|it| it.what.as_str())).collect();
    assert_eq!(asked, [None, Some("1 goes to users"), Some("")]);
}
