//! An orderly stop is quick, whatever is open.

use crate::common::pipelines::ONE;
use crate::common::worker::lease;
use crate::common::{Controller, soon};
use railyard_proto::v1;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_service::tls::Role;
use std::time::Duration;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

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
    let mut silent = WorkerServiceClient::new(controller.channel(Some((Role::Worker, "silent"))));
    let session = silent.session(tokio_stream::pending());
    let mut reflection = ServerReflectionClient::new(controller.channel(None));
    let asking = reflection.server_reflection_info(tokio_stream::pending());
    let mut health = HealthClient::new(controller.channel(None));
    let mut watched = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    watched.message().await.unwrap().unwrap();
    let stop = async {
        // Both calls have reached the controller when a later call on their connections was answered.
        let mut again = HealthClient::new(controller.channel(None));
        again.check(HealthCheckRequest::default()).await.unwrap();
        tokio::time::timeout(QUICK, controller.stop()).await.expect("the stop took too long")
    };
    let (_, _, _stopped) = tokio::join!(session, asking, stop);
}
