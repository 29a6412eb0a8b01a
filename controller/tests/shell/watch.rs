//! Watching a build: it as it is, each change, and its end.

use crate::common::pipelines::CHAIN;
use crate::common::worker::{failed, lease, report};
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
