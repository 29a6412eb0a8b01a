//! An orderly stop is quick, whatever is open.

use crate::common::pipelines::ONE;
use crate::common::worker::lease;
use crate::common::{Controller, soon};
use railyard_proto::v1;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_service::tls::Role;
use std::time::Duration;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// How long a stop may take.
const QUICK: Duration = Duration::from_secs(5);

#[tokio::test]
async fn open_sessions_watchers_followers_and_log_streams_do_not_hold_up_a_stop() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(ONE, "1").await;
    let held = lease(&worker.order().await);
    let mut log = worker.log_stream().await;
    log.append(held, 0, b"so far\n").await.unwrap();
    let mut follower = person.read_log(&build, "work", 0, true).await;
    assert_eq!(follower.take(7).await, b"so far\n");
    let request = v1::GetBuildRequest { build: build.clone() };
    let mut watch = person.rpc.clone().watch_build(request).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    let idle = controller.browser();
    idle.get(format!("{}/healthz", controller.url)).send().await.unwrap();

    let stopped = tokio::time::timeout(QUICK, controller.stop()).await;
    let _stopped = stopped.expect("the stop took too long");
    worker.closed().await;
    follower.rest().await;
    // Whether the stream is ended or the connection cut: it is over.
    while let Ok(Some(_)) = soon("the watcher's end", watch.message()).await {}
}

#[tokio::test]
async fn streams_that_say_nothing_do_not_hold_up_a_stop() {
    let controller = Controller::start().await;
    let channel = controller.channel(Some((Role::Worker, "silent")));
    let (mut silent, mut again) = (WorkerServiceClient::new(channel.clone()), HealthClient::new(channel));
    let session = silent.session(tokio_stream::pending());
    let mut health = HealthClient::new(controller.channel(None));
    let mut watched = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    let stop = async {
        // The session has reached the controller when a later call on its connection was answered.
        again.check(HealthCheckRequest::default()).await.unwrap();
        tokio::time::timeout(QUICK, controller.stop()).await.expect("the stop took too long")
    };
    let (refused, _stopped) = tokio::join!(session, stop);
    assert!(refused.is_err());
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
}
