//! The controller's disk fills up while jobs run, and is emptied again.

use crate::common::disk::SmallDisk;
use crate::common::people::submission;
use crate::common::pipelines::{ONE, SHORT_LEASE};
use crate::common::worker::{hello, lease, report, succeeded};
use crate::common::{Controller, Worker, refusal, refused, until};
use railyard_proto::v1;
use railyard_proto::v1::access_service_client::AccessServiceClient;
use railyard_service::channel::http_client;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::tls::Role;
use std::time::Duration;
use tonic::Code;

/// Longer than the lease of [`SHORT_LEASE`].
const LONGER_THAN_THE_LEASE: Duration = Duration::from_secs(11);

async fn on(disk: &SmallDisk) -> Controller {
    Controller::start_at(disk.path().join("data"), None).await
}

/// A worker that comes back with a lease, as soon as it is let in.
async fn back(controller: &Controller, name: &str, held: v1::LeaseId) -> Worker {
    let worker = controller.worker_saying(v1::Hello { held: vec![held], ..hello(name) }).await;
    assert_eq!(worker.welcome.held, [held]);
    worker
}

/// What a load balancer is told, without a certificate.
async fn probe(controller: &Controller, path: &str) -> (u16, String) {
    let http = http_client(&controller.endpoint(None)).unwrap();
    let answer = http.get(format!("{}/{path}", controller.url)).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn full_for_longer_than_a_lease(but_bytes: u64) {
    let disk = SmallDisk::mounted(128);
    let controller = on(&disk).await;
    let person = controller.operator();
    let (mut anvil, mut hammer) = (controller.worker("anvil").await, controller.worker("hammer").await);
    let (first, second) = (person.submit(SHORT_LEASE, "1").await, person.submit(SHORT_LEASE, "2").await);
    let on_anvil = lease(&anvil.order().await);
    let on_hammer = lease(&hammer.order().await);
    anvil.log(on_anvil, 0, b"before\n").await.unwrap();

    disk.fill(but_bytes);
    // The first ones may still fit.
    let request = v1::SubmitRequest { idempotency_key: "k".to_owned(), ..submission(ONE, "while-full") };
    let message = until("the refusal of new work", async || {
        let n = person.build(&first).await.jobs.len();
        let other = submission(ONE, &format!("f{}", SystemClock.monotonic().as_nanos()));
        assert_eq!(n, 1);
        match person.try_submit(other).await {
            Ok(_) => None,
            answer => {
                let (code, reason, message) = refusal(answer);
                // The write that failed, or one that was not tried.
                assert!(code == Code::Unavailable && ["busy", "standstill"].contains(&reason.as_str()), "{message}");
                Some(message)
            }
        }
    })
    .await;
    assert!(message.contains("cannot write its journal") && message.contains("make room"), "{message}");
    let message = refused(person.try_submit(request.clone()).await, Code::Unavailable, "standstill");
    assert!(message.contains("data/journal") && message.contains("MiB"), "{message}");
    let (status, why) = probe(&controller, "readyz").await;
    assert_eq!(status, 503, "{why}");
    assert!(why.contains("cannot write its journal") && why.contains("data/journal"), "{why}");
    assert_eq!(probe(&controller, "healthz").await, (200, "ok\n".to_owned()), "a restart would make nothing better");
    refused(person.cancel(&first, "why not").await, Code::Unavailable, "standstill");

    // One worker's stream breaks; the other's may have been cut once. Both jobs are safe, and who asks is answered.
    drop(hammer);
    let began = SystemClock.monotonic();
    let mut anvil = back(&controller, "anvil", on_anvil).await;
    until("the time of a lease", async || {
        assert_eq!(person.job(&first, "work@linux/amd64").await.state(), v1::JobState::Running);
        (SystemClock.monotonic() - began > LONGER_THAN_THE_LEASE).then_some(())
    })
    .await;
    assert!(anvil.beat(&[on_anvil], v1::Phase::Run).await.lost.is_empty());
    assert_eq!(person.log(&first, "work", 0).await, b"before\n");
    assert_eq!(person.workers().await.len(), 2);
    if but_bytes == 0 {
        // The worker keeps it and sends it again.
        let taken = anvil.log(on_anvil, 7, &vec![b'x'; 1 << 20]).await;
        refused(taken, Code::ResourceExhausted, "busy");
    }
    // A report is not lost: the worker says it again.
    refused(anvil.try_report(report(on_anvil, succeeded())).await, Code::Unavailable, "standstill");

    disk.empty();
    until("the report's answer", async || anvil.try_report(report(on_anvil, succeeded())).await.ok()).await;
    let hammer = back(&controller, "hammer", on_hammer).await;
    hammer.succeed(on_hammer).await;
    for build in [&first, &second] {
        let view = person.ended(build).await;
        assert_eq!((view.state(), view.jobs[0].attempts.len()), (v1::BuildState::Succeeded, 1));
    }
    assert_eq!(probe(&controller, "readyz").await, (200, "ok\n".to_owned()));
    let late = person.try_submit(request.clone()).await.unwrap();
    assert!(!late.existing, "it was refused, and is there");
    assert!(person.try_submit(request).await.unwrap().existing);
    let before = person.build(&first).await;
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;
    assert_eq!(controller.operator().build(&first).await, before);
}

#[tokio::test]
async fn a_disk_without_a_byte_costs_no_job_and_no_restart() {
    full_for_longer_than_a_lease(0).await;
}

#[tokio::test]
async fn a_disk_that_is_nearly_full_costs_no_job_and_no_restart() {
    full_for_longer_than_a_lease(8 * 1024 * 1024).await;
}

#[tokio::test]
async fn a_controller_starts_on_a_full_disk_to_be_looked_at() {
    let disk = SmallDisk::mounted(128);
    let controller = on(&disk).await;
    let build = controller.operator().submit(ONE, "1").await;
    let address = controller.address();
    let stopped = controller.stop().await;
    disk.fill(0);
    let controller = stopped.start(address).await;
    let person = controller.operator();
    assert_eq!(person.build(&build).await.state(), v1::BuildState::Running);
    refused(person.try_submit(submission(ONE, "2")).await, Code::Unavailable, "standstill");
    disk.empty();
    until("new work", async || person.try_submit(submission(ONE, "2")).await.ok()).await;
    let mut worker = controller.worker("anvil").await;
    assert_eq!(worker.order().await.build, build);
}

/// Else who fills the disk could not be stopped.
#[tokio::test]
async fn on_a_disk_without_room_for_anything_else_somebody_can_be_shut_out() {
    let disk = SmallDisk::mounted(128);
    let controller = on(&disk).await;
    let person = controller.operator();
    let mut access = AccessServiceClient::new(controller.channel(Some((Role::Operator, "olga"))));
    let make = |user: &str| v1::CreateTokenRequest {
        identity: format!("railyard://submitter/{user}"),
        kind: v1::TokenKind::Bearer.into(),
        ..Default::default()
    };
    let id = access.create_token(make("mallory")).await.unwrap().into_inner().view.unwrap().id;
    let mut worker = controller.worker("anvil").await;
    let build = person.submit(ONE, "1").await;
    let held = lease(&worker.order().await);

    disk.fill(12 << 20);
    until("the standstill", async || {
        let another = submission(ONE, &format!("f{}", SystemClock.monotonic().as_nanos()));
        person.try_submit(another).await.is_err().then_some(())
    })
    .await;
    refused(access.create_token(make("other")).await, Code::Unavailable, "standstill");
    access.revoke_token(v1::RevokeTokenRequest { id: id.clone() }).await.unwrap();
    let revoke = v1::RevokeRequest { identity: "railyard://worker/anvil".to_owned(), why: "stolen".to_owned() };
    let revoked = access.revoke(revoke).await.unwrap().into_inner();
    assert!(revoked.leases >= 1 && !revoked.unknown, "{revoked:?}");
    refused(worker.try_report(report(held, succeeded())).await, Code::Unauthenticated, "revoked");
    let tokens = access.list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    assert_eq!(tokens, []);
    refused(person.try_submit(submission(ONE, "2")).await, Code::Unavailable, "standstill");

    disk.empty();
    until("new work", async || person.try_submit(submission(ONE, "2")).await.ok()).await;
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;
    assert_eq!(controller.operator().build(&build).await.jobs[0].attempts.len(), 1);
    controller.audited(&["\"token-create\"", "\"submitter/other\"", "\"refused\""]).await;
    for done in [format!("token:{id}"), "worker/anvil".to_owned()] {
        controller.audited(&[&done, "\"done\""]).await;
    }
}
