//! Watching a build: it as it is, each change, and its end.

use crate::common::pipelines::{CHAIN, ONE};
use crate::common::worker::{failed, hello, lease, report};
use crate::common::{Controller, soon};
use railyard_proto::v1;
use tonic::Streaming;

async fn next(watch: &mut Streaming<v1::BuildView>) -> Option<v1::BuildView> {
    soon("a change of the build", watch.message()).await.unwrap()
}

/// The first view, old ones passed over, in which the job is as wanted.
async fn until_job(watch: &mut Streaming<v1::BuildView>, index: usize, wanted: v1::JobState) -> v1::BuildView {
    loop {
        let view = next(watch).await.expect("the build goes on");
        if view.jobs[index].state() == wanted {
            return view;
        }
    }
}

#[tokio::test]
async fn a_watcher_hears_that_a_job_waits_for_another_reason() {
    let controller = Controller::start().await;
    let person = controller.operator();
    // Its one slot is taken by another build.
    let capacity = v1::Capacity { slots: 1, ..hello("anvil").capacity.unwrap() };
    let mut anvil = controller.worker_saying(v1::Hello { capacity: Some(capacity), ..hello("anvil") }).await;
    person.submit(ONE, "1").await;
    let _ = anvil.order().await;
    let build = person.submit(ONE, "2").await;
    let mut watch = person.rpc.clone().watch_build(v1::GetBuildRequest { build }).await.unwrap().into_inner();
    until_reason(&mut watch, "needs 1 slot; anvil has 0 free").await;

    let cordon = v1::HoldWorkerRequest {
        worker: "anvil".to_owned(),
        kind: v1::HoldKind::Cordon.into(),
        why: "new disk".to_owned(),
        ..Default::default()
    };
    person.hold(cordon.clone()).await.unwrap();
    until_reason(&mut watch, "anvil is cordoned by olga (new disk)").await;
    person.hold(v1::HoldWorkerRequest { kind: v1::HoldKind::Drain.into(), ..cordon }).await.unwrap();
    until_reason(&mut watch, "anvil is draining by olga (new disk)").await;
    person.release("anvil").await.unwrap();
    until_reason(&mut watch, "needs 1 slot; anvil has 0 free").await;
    anvil.say(v1::worker_message::Kind::Draining(v1::Draining {})).await;
    until_reason(&mut watch, "anvil is being stopped").await;
    drop(anvil);
    until_reason(&mut watch, "no worker is connected").await;
    let arm64 = v1::PlatformOffer { platform: "linux/arm64".to_owned(), emulated: false };
    let _hammer = controller.worker_saying(v1::Hello { platforms: vec![arm64], ..hello("hammer") }).await;
    until_reason(&mut watch, "no connected worker offers linux/amd64").await;
}

/// The first view, old ones passed over, whose first job waits for this.
async fn until_reason(watch: &mut Streaming<v1::BuildView>, wanted: &str) {
    loop {
        let view = next(watch).await.expect("the build goes on");
        if view.jobs[0].why.contains(wanted) {
            return;
        }
    }
}

#[tokio::test]
async fn a_watcher_sees_each_change_and_the_end() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let build = person.submit(CHAIN, "1").await;
    // By the pipeline's name: its newest build.
    let request = v1::GetBuildRequest { build: "chain".to_owned() };
    let mut watch = person.rpc.clone().watch_build(request.clone()).await.unwrap().into_inner();
    let first = next(&mut watch).await.unwrap();
    assert_eq!((first.build.as_str(), first.state()), (build.as_str(), v1::BuildState::Running));
    assert_eq!(first.jobs[0].state(), v1::JobState::Queued);

    let mut worker = controller.worker("anvil").await;
    let order = worker.order().await;
    until_job(&mut watch, 0, v1::JobState::Running).await;
    worker.beat(&[lease(&order)], v1::Phase::Run).await;
    let running = next(&mut watch).await.unwrap();
    assert_eq!(running.jobs[0].attempts[0].phase(), v1::Phase::Run);
    // Another build's changes are not ours.
    let other = person.submit(&CHAIN.replace("name: chain", "name: other"), "1").await;
    worker.try_report(report(lease(&order), failed("no"))).await.unwrap();

    let mut last = next(&mut watch).await.unwrap();
    while let Some(view) = next(&mut watch).await {
        assert_ne!(view, last, "the same view twice");
        last = view;
    }
    assert_eq!((last.build.as_str(), last.state()), (build.as_str(), v1::BuildState::Failed));
    assert!(last.ended_at.is_some());
    assert_ne!(other, last.build);

    // Watching what is over gives it once.
    let mut watch = person.rpc.clone().watch_build(request).await.unwrap().into_inner();
    assert_eq!(next(&mut watch).await.unwrap(), last);
    assert!(next(&mut watch).await.is_none());
}
