//! Sessions: who may open one, what comes first, and what becomes of one that is replaced or does not listen.

use crate::common::pipelines::{CHAIN, ONE};
use crate::common::worker::{hello, lease};
use crate::common::{Controller, Worker, refused, soon, until};
use railyard_proto::v1;
use railyard_proto::v1::worker_message::Kind as Say;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_service::channel::{self, Endpoint};
use railyard_service::task;
use railyard_service::tls::Role;
use std::time::Duration;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

/// A hello that is refused.
async fn refused_hello(controller: &Controller, hello: v1::Hello, code: Code, reason: &str) -> String {
    refused(controller.try_worker("anvil", hello).await.map(|_| ()), code, reason)
}

#[tokio::test]
async fn a_hello_is_checked() {
    let controller = Controller::start().await;
    let other_name = v1::Hello { worker: "hammer".to_owned(), ..hello("anvil") };
    let message = refused_hello(&controller, other_name, Code::PermissionDenied, "forbidden").await;
    assert!(message.contains("anvil's") && message.contains("hammer"), "{message}");

    let newer = v1::Hello { protocol: 99, version: "9.9.9".to_owned(), ..hello("anvil") };
    let message = refused_hello(&controller, newer, Code::FailedPrecondition, "protocol").await;
    for part in ["worker anvil 9.9.9", "protocol 99", "upgrade"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let no_capacity = v1::Hello { capacity: None, ..hello("anvil") };
    let message = refused_hello(&controller, no_capacity, Code::InvalidArgument, "bad-request").await;
    assert!(message.contains("capacity"), "{message}");
    let odd = vec![v1::PlatformOffer { platform: "plan9/mips".to_owned(), emulated: false }];
    let odd = v1::Hello { platforms: odd, ..hello("anvil") };
    let message = refused_hello(&controller, odd, Code::InvalidArgument, "bad-request").await;
    assert!(message.contains("plan9/mips"), "{message}");
    let builds = v1::Hello { builds: vec!["../..".to_owned()], ..hello("anvil") };
    refused_hello(&controller, builds, Code::InvalidArgument, "bad-request").await;
    assert!(controller.operator().workers().await.is_empty());

    let older = v1::Hello { protocol: railyard_common::OLDEST_WORKER_PROTOCOL - 1, ..hello("anvil") };
    refused_hello(&controller, older, Code::FailedPrecondition, "protocol").await;
    let oldest = v1::Hello { protocol: railyard_common::OLDEST_WORKER_PROTOCOL, ..hello("anvil") };
    controller.worker_saying(oldest).await;
}

#[tokio::test]
async fn the_first_message_is_a_hello() {
    let controller = Controller::start().await;
    let mut rpc = WorkerServiceClient::new(controller.channel(Some((Role::Worker, "anvil"))));
    let drain = v1::WorkerMessage { kind: Some(Say::Draining(v1::Draining {})) };
    let answer = soon("the refusal", rpc.session(tokio_stream::iter([drain]))).await;
    refused(answer.map(drop), Code::InvalidArgument, "bad-request");
    let answer = soon("the refusal", rpc.session(tokio_stream::iter([]))).await;
    refused(answer.map(drop), Code::InvalidArgument, "bad-request");
}

#[tokio::test]
async fn the_welcome_comes_before_the_orders_and_tells_what_the_worker_must_know() {
    let controller = Controller::start_with(|config| config.farm = "north".to_owned()).await;
    let person = controller.operator();
    for version in 0..8 {
        person.submit(ONE, &version.to_string()).await;
    }
    // The helper's connect fails if anything comes before the welcome.
    let mut worker = controller.worker("anvil").await;
    let welcome = worker.welcome.clone();
    assert_eq!((welcome.farm.as_str(), welcome.protocol), ("north", railyard_common::PROTOCOL));
    assert_eq!((welcome.version.as_str(), welcome.heartbeat_millis), (railyard_common::VERSION, 2_000));
    for _ in 0..8 {
        let order = worker.order().await;
        worker.succeed(lease(&order)).await;
    }
    person.ended("one/7").await;
    let running = person.submit(CHAIN, "1").await;
    let builds = vec!["one/3".to_owned(), running, "gone/1".to_owned()];
    let worker = controller.worker_saying(v1::Hello { builds, ..hello("anvil") }).await;
    assert_eq!(worker.welcome.builds_over, ["one/3", "gone/1"]);
}

#[tokio::test]
async fn a_later_session_of_the_same_worker_ends_the_earlier_one() {
    let controller = Controller::start().await;
    let mut first = controller.worker("anvil").await;
    let mut second = controller.worker("anvil").await;
    first.closed().await;
    let workers = controller.operator().workers().await;
    assert_eq!((workers.len(), workers[0].connected), (1, true));
    controller.operator().submit(ONE, "1").await;
    let order = second.order().await;
    second.succeed(lease(&order)).await;
}

/// The end of the old stream and the hello on the new one come at the same moment, in either order.
#[tokio::test]
async fn a_worker_that_reconnects_at_once_stays_connected() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let endpoint = controller.endpoint(Some((Role::Worker, "anvil")));
    let mut rpc = WorkerServiceClient::new(channel::connect(&endpoint).unwrap());
    let open = async |rpc: &mut WorkerServiceClient<_>| {
        let hello = v1::WorkerMessage { kind: Some(Say::Hello(hello("anvil"))) };
        let (to, outbound) = tokio::sync::mpsc::channel(1);
        to.send(hello).await.unwrap();
        let stream = rpc.session(tokio_stream::wrappers::ReceiverStream::new(outbound)).await.unwrap();
        (to, stream.into_inner())
    };
    let mut session = open(&mut rpc).await;
    for _ in 0..300 {
        let old = session;
        // Both on one connection, so that nothing keeps them apart.
        let (new, ()) = tokio::join!(open(&mut rpc), async { drop(old) });
        session = new;
        assert!(session.1.message().await.unwrap().is_some());
    }
    let build = person.submit(ONE, "1").await;
    person.job_is(&build, "work@linux/amd64", v1::JobState::Running).await;
    assert!(person.workers().await[0].connected);
}

#[tokio::test]
async fn a_worker_that_does_not_read_its_stream_is_cut_off_and_shown_as_gone() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let deaf = controller.worker("deaf").await;
    // Acks that repeat thousands of leases fill the windows of the connection, then the queue.
    let lease = |job| v1::LeaseStatus { lease: Some(v1::LeaseId { job, attempt: 1 }), phase: 0 };
    let leases: Vec<_> = (1_000..6_000).map(lease).collect();
    let beats = task::spawn("beats", async move {
        for sequence in 1.. {
            deaf.say(Say::Heartbeat(v1::Heartbeat { sequence, leases: leases.clone(), ..Default::default() })).await;
        }
    });
    until("the disconnect", async || (!person.workers().await[0].connected).then_some(())).await;
    beats.abort();
    let build = person.submit(ONE, "1").await;
    assert_eq!(person.job(&build, "work@linux/amd64").await.why, "no worker is connected");
    let mut worker = controller.worker("deaf").await;
    worker.order().await;
}

/// A worker whose connection breaks while its hello is being made durable leaves no session behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_hangs_up_during_its_hello_is_not_taken_for_connected() {
    let controller = Controller::start().await;
    let person = controller.operator();
    for micros in (0..3_000).step_by(50) {
        // Each under a name of its own: the next one's hello would tidy up after it.
        let name = format!("hasty-{micros}");
        let endpoint = controller.endpoint(Some((Role::Worker, &name)));
        let call = move || hang_up_after(&endpoint, &name, Duration::from_micros(micros));
        tokio::task::spawn_blocking(call).await.unwrap();
    }
    let gone = async || person.workers().await.iter().all(|worker| !worker.connected).then_some(());
    until("the disconnect", gone).await;
}

/// Says hello, and cuts the connection a moment later: it goes with its runtime.
fn hang_up_after(endpoint: &Endpoint, name: &str, patience: Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = channel::connect(endpoint).unwrap();
        HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
        let hello = v1::WorkerMessage { kind: Some(Say::Hello(hello(name))) };
        let stream = tokio_stream::StreamExt::chain(tokio_stream::iter([hello]), tokio_stream::pending());
        let mut rpc = WorkerServiceClient::new(channel);
        // Whether the answer came in time is what varies.
        let _ = tokio::time::timeout(patience, rpc.session(stream)).await;
    });
}

#[tokio::test]
async fn a_draining_worker_finishes_and_gets_nothing_new() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let first = person.submit(ONE, "1").await;
    let order = worker.order().await;
    worker.say(Say::Draining(v1::Draining {})).await;
    // The ack of a later heartbeat shows that the drain was taken.
    worker.beat(&[lease(&order)], v1::Phase::Run).await;
    let second = person.submit(ONE, "2").await;
    worker.succeed(lease(&order)).await;
    assert_eq!(person.ended(&first).await.state(), v1::BuildState::Succeeded);
    assert_eq!(person.job(&second, "work@linux/amd64").await.state(), v1::JobState::Queued);
    let mut worker: Worker = controller.worker("anvil").await;
    assert_eq!(worker.order().await.build, second);
}

#[tokio::test]
async fn a_second_worker_of_the_same_name_waits_until_the_first_is_gone() {
    let controller = Controller::start().await;
    let mut first = controller.worker("anvil").await;
    let second = || v1::Hello { boot_id: "boot-2".to_owned(), ..hello("anvil") };
    let message = refused(controller.try_worker("anvil", second()).await.map(drop), Code::AlreadyExists, "name-taken");
    assert!(message.contains("another worker named anvil is connected"), "{message}");
    assert!(first.beat(&[], v1::Phase::Run).await.lost.is_empty(), "the first one has kept its session");
    drop(first);
    until("the second worker's turn", async || controller.try_worker("anvil", second()).await.ok()).await;
}
