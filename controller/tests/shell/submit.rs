//! Submitting: idempotence, versions, mistakes in the pipeline, and names that do not exist.

use crate::common::people::submission;
use crate::common::pipelines::{CHAIN, ONE};
use crate::common::worker::{failed, lease, report};
use crate::common::{Controller, refused};
use futures_util::future::join_all;
use railyard_proto::v1;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::tls::Role;
use std::collections::BTreeSet;
use tonic::Code;

#[tokio::test]
async fn the_same_key_is_the_same_build() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let request = v1::SubmitRequest { idempotency_key: "ci-run-77".to_owned(), ..submission(ONE, "") };
    let first = person.try_submit(request.clone()).await.unwrap();
    let again = person.try_submit(request.clone()).await.unwrap();
    assert_eq!((first.existing, again.existing), (false, true));
    assert_eq!(first.build, again.build);
    let all = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    assert_eq!(all.len(), 1);

    let other = v1::SubmitRequest { idempotency_key: "ci-run-78".to_owned(), ..request };
    assert!(!person.try_submit(other).await.unwrap().existing);
}

/// Somebody tagged a build with what would be the version of one that is submitted in these seconds.
#[tokio::test]
async fn a_version_that_the_farm_chooses_is_no_tag() {
    const SECONDS: u64 = 60;
    let controller = Controller::start().await;
    let person = controller.operator();
    let first = person.submit(ONE, "1").await;
    let now = i64::try_from(SystemClock.now().0 / 1000).unwrap();
    let names = (now..)
        .take(SECONDS as usize)
        .map(|second| jiff::Timestamp::from_second(second).unwrap().strftime("%Y%m%d.%H%M%S").to_string());
    let names: Vec<String> = names.collect();
    for tag in &names {
        let request = v1::TagBuildRequest { build: first.clone(), tag: tag.clone() };
        person.rpc.clone().tag_build(request).await.unwrap();
    }
    let build = person.submit(ONE, "").await;
    let version = build.strip_prefix("one/").unwrap();
    assert!(names.iter().any(|name| version == format!("{name}.1")), "{version}");
}

/// A client whose answer was lost repeats what it said; one that says something else has taken the wrong key.
#[tokio::test]
async fn a_key_with_another_request_is_refused() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let request = v1::SubmitRequest { idempotency_key: "ci-run-77".to_owned(), ..submission(CHAIN, "") };
    let made = person.try_submit(request.clone()).await.unwrap();
    let mut same = request.clone();
    (same.file_name, same.priority) = ("./chain.yaml".to_owned(), "manual".to_owned());
    let again = person.try_submit(same).await.unwrap();
    assert_eq!((again.build.as_str(), again.existing), (made.build.as_str(), true));

    let other_params = [("flavour".to_owned(), "strange".to_owned())].into();
    for other in [
        v1::SubmitRequest { version: "1".to_owned(), ..request.clone() },
        v1::SubmitRequest { params: other_params, ..request.clone() },
        v1::SubmitRequest { priority: "change".to_owned(), ..request.clone() },
        v1::SubmitRequest { pipeline: CHAIN.replace("make base", "make all"), ..request.clone() },
    ] {
        let message = refused(person.try_submit(other).await, Code::AlreadyExists, "key-reused");
        assert!(message.contains("ci-run-77") && message.contains(&made.build), "{message}");
    }
    let all = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    assert_eq!(all.len(), 1);
}

#[tokio::test]
async fn a_key_is_its_submitter_s_and_its_pipeline_s() {
    let controller = Controller::start().await;
    let keyed = |pipeline: &str| v1::SubmitRequest { idempotency_key: "42".to_owned(), ..submission(pipeline, "") };
    let (one, other) = (controller.person(Role::Submitter, "ci"), controller.person(Role::Submitter, "nightly"));
    let mut builds = BTreeSet::new();
    for made in [one.try_submit(keyed(ONE)), other.try_submit(keyed(ONE)), one.try_submit(keyed(CHAIN))] {
        let made = made.await.unwrap();
        assert!(!made.existing && builds.insert(made.build.clone()), "{made:?}");
    }
    assert!(one.try_submit(keyed(ONE)).await.unwrap().existing);
}

#[tokio::test]
async fn a_list_of_builds_has_the_jobs_but_not_what_they_say() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(ONE, "1").await;
    let mut request = report(lease(&worker.order().await), failed("a long story"));
    request.outcome.as_mut().unwrap().log_tail = vec!["its last line".to_owned()];
    worker.try_report(request).await.unwrap();
    let whole = person.ended(&build).await.jobs[0].attempts[0].outcome.clone().unwrap();
    assert_eq!((whole.message.as_str(), whole.log_tail.len()), ("a long story", 1));

    let list = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner();
    let job = &list.builds[0].jobs[0];
    let brief = job.attempts[0].outcome.as_ref().unwrap();
    assert_eq!((job.state(), brief.kind(), brief.exit_code), (v1::JobState::Failed, whole.kind(), whole.exit_code));
    assert_eq!((brief.message.as_str(), brief.log_tail.len(), job.why.as_str()), ("", 0, ""));
}

#[tokio::test]
async fn submits_without_a_version_at_the_same_moment_each_get_their_own() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let submits = (0..24).map(|_| person.try_submit(submission(ONE, "")));
    let builds: BTreeSet<String> = join_all(submits).await.into_iter().map(|made| made.unwrap().build).collect();
    assert_eq!(builds.len(), 24);
}

#[tokio::test]
async fn a_version_is_taken_once() {
    let controller = Controller::start().await;
    let person = controller.operator();
    person.submit(ONE, "1.0").await;
    let message = refused(person.try_submit(submission(ONE, "1.0")).await, Code::AlreadyExists, "build-exists");
    assert!(message.contains("one/1.0") && message.contains("choose another version"), "{message}");
}

#[tokio::test]
async fn a_bad_pipeline_is_refused_with_the_place_of_every_mistake() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let text = "name: bad\nplatforms: [linux/amd64]\nsteps:\n  - name: a\n    image: x\n    script: s\n    needs: [nobody]\n    colour: red\n";
    let request = v1::SubmitRequest { file_name: "ci/build.yaml".to_owned(), ..submission(text, "1") };
    let message = refused(person.try_submit(request.clone()).await, Code::InvalidArgument, "bad-pipeline");
    assert!(message.contains("ci/build.yaml:8:5: ") && message.contains("colour"), "{message}");
    let planned = person.rpc.clone().plan(request).await;
    assert_eq!(refused(planned, Code::InvalidArgument, "bad-pipeline"), message);
    let all = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    assert!(all.is_empty());

    let unknown_param =
        v1::SubmitRequest { params: [("flavor".to_owned(), "x".to_owned())].into(), ..submission(CHAIN, "1") };
    let message = refused(person.try_submit(unknown_param).await, Code::InvalidArgument, "bad-pipeline");
    assert!(message.contains("flavor"), "{message}");
}

#[tokio::test]
async fn bad_fields_of_a_submit_are_named() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let bad_version = submission(ONE, "../../etc");
    let bad_platform = v1::SubmitRequest { platforms: vec!["plan9/mips".to_owned()], ..submission(ONE, "1") };
    let bad_priority = v1::SubmitRequest { priority: "urgent".to_owned(), ..submission(ONE, "1") };
    let long_key = v1::SubmitRequest { idempotency_key: "k".repeat(300), ..submission(ONE, "1") };
    for (request, word) in
        [(bad_version, "../../etc"), (bad_platform, "plan9/mips"), (bad_priority, "urgent"), (long_key, "256")]
    {
        let message = refused(person.try_submit(request).await, Code::InvalidArgument, "bad-request");
        assert!(message.contains(word), "{message}");
    }
}

#[tokio::test]
async fn the_plan_tells_the_jobs_and_what_will_wait_and_changes_nothing() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let plan = person.rpc.clone().plan(submission(CHAIN, "1")).await.unwrap().into_inner();
    let names: Vec<_> = plan.jobs.iter().map(|job| job.name.as_str()).collect();
    assert_eq!(names, ["base@linux/amd64", "disk@linux/amd64", "test@linux/amd64"]);
    assert_eq!((plan.jobs[1].needs[0].as_str(), plan.jobs[0].image.as_str()), ("base@linux/amd64", "debian:plain"));
    assert!(plan.warnings[0].contains("no worker is connected"), "{:?}", plan.warnings);
    assert_eq!(plan.jobs[0].workers, [""; 0]);

    let _worker = controller.worker("anvil").await;
    let plan = person.rpc.clone().plan(submission(CHAIN, "1")).await.unwrap().into_inner();
    assert_eq!((plan.jobs[0].workers.as_slice(), plan.warnings.len()), (["anvil".to_owned()].as_slice(), 0));
    refused(person.try_build("chain/1").await, Code::NotFound, "unknown-build");
}

#[tokio::test]
async fn a_build_for_a_platform_without_workers_says_so_at_submit_and_after() {
    let controller = Controller::start().await;
    let _worker = controller.worker("anvil").await;
    let person = controller.operator();
    let arm = ONE.replace("linux/amd64", "linux/arm64");
    let made = person.try_submit(submission(&arm, "1")).await.unwrap();
    assert_eq!(made.warnings, ["no connected worker offers linux/arm64: work@linux/arm64 will wait"]);
    let job = person.job(&made.build, "work@linux/arm64").await;
    assert_eq!((job.state(), job.why.as_str()), (v1::JobState::Queued, "no connected worker offers linux/arm64"));
}

#[tokio::test]
async fn what_does_not_exist_is_said_with_a_reason() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    for build in ["one/9", "one"] {
        refused(person.try_build(build).await, Code::NotFound, "unknown-build");
        refused(person.cancel(build, "").await, Code::NotFound, "unknown-build");
        refused(person.sign(build, &[]).await, Code::NotFound, "unknown-build");
        refused(person.try_read_log(build, "work", 0, 0, true).await, Code::NotFound, "unknown-build");
        let watched = person.rpc.clone().watch_build(v1::GetBuildRequest { build: build.to_owned() }).await;
        refused(watched.map(drop), Code::NotFound, "unknown-build");
    }
    refused(person.try_build("One/1/2").await, Code::InvalidArgument, "bad-request");

    let build = person.submit(ONE, "1").await;
    let order = worker.order().await;
    refused(person.try_read_log(&build, "play", 0, 0, false).await, Code::NotFound, "unknown-job");
    refused(person.try_read_log(&build, "work", 7, 0, false).await, Code::NotFound, "not-found");
    refused(person.try_read_log(&build, "../etc", 0, 0, false).await, Code::InvalidArgument, "bad-request");
    refused(person.sign(&build, &["*.iso"]).await, Code::NotFound, "not-found");
    let retry = |step: &str| v1::RetryRequest { build: build.clone(), step: step.to_owned() };
    refused(person.rpc.clone().retry(retry("")).await, Code::FailedPrecondition, "build-runs");

    worker.succeed(lease(&order)).await;
    person.ended(&build).await;
    refused(person.cancel(&build, "too late").await, Code::FailedPrecondition, "build-ended");
    refused(person.rpc.clone().retry(retry("")).await, Code::FailedPrecondition, "build-succeeded");
}
