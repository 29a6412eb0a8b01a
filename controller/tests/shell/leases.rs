//! Leases end when their worker is silent for the lease's time to live, and live as long as it is not.

use crate::common::pipelines::{ONE, SHORT_LEASE};
use crate::common::worker::{hello, lease};
use crate::common::{Controller, refused, until};
use railyard_proto::v1;
use tonic::Code;

#[tokio::test]
async fn a_silent_worker_loses_its_lease_and_the_job_goes_to_another() {
    let controller = Controller::start().await;
    let (person, mut silent) = (controller.operator(), controller.worker("silent").await);
    let build = person.submit(SHORT_LEASE, "1").await;
    let order = silent.order().await;
    assert_eq!(order.ttl_millis, 10_000);
    let mut other = controller.worker("other").await;
    let again = other.order().await;
    assert_eq!((lease(&again).job, lease(&again).attempt), (lease(&order).job, 2));

    let job = person.job(&build, "work@linux/amd64").await;
    let end = job.attempts[0].outcome.as_ref().unwrap();
    assert_eq!((end.kind(), end.reason.as_str()), (v1::OutcomeKind::Lost, "worker-gone"));
    assert!(end.message.contains("silent"), "{}", end.message);
    assert_eq!(job.attempts[1].worker, "other");

    // It comes to its senses too late.
    assert_eq!(silent.beat(&[lease(&order)], v1::Phase::Run).await.lost, [lease(&order)]);
    let late =
        silent.try_report(crate::common::worker::report(lease(&order), crate::common::worker::succeeded())).await;
    refused(late, Code::FailedPrecondition, "stale-lease");
    other.succeed(lease(&again)).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn heartbeats_keep_a_lease_while_a_later_silent_one_expires() {
    let controller = Controller::start().await;
    let (person, mut alive) = (controller.operator(), controller.worker("alive").await);
    let first = person.submit(SHORT_LEASE, "1").await;
    let kept = lease(&alive.order().await);
    alive.say(v1::worker_message::Kind::Draining(v1::Draining {})).await;
    let mut silent = controller.worker("silent").await;
    until("the draining", async || {
        let plan = person.rpc.clone().plan(crate::common::people::submission(SHORT_LEASE, "9")).await.unwrap();
        (plan.into_inner().jobs[0].workers == ["silent"]).then_some(())
    })
    .await;
    let second = person.submit(SHORT_LEASE, "2").await;
    let _ = silent.order().await;
    // The silent one's lease began later: when it is over, the other's would be, too.
    let mut changes =
        person.rpc.clone().watch_build(v1::GetBuildRequest { build: second.clone() }).await.unwrap().into_inner();
    loop {
        assert!(alive.beat(&[kept], v1::Phase::Run).await.lost.is_empty());
        // Until the next heartbeat is due, or the other lease is over.
        let change = tokio::time::timeout(std::time::Duration::from_secs(1), changes.message()).await;
        let over = |view: &v1::BuildView| view.jobs[0].attempts.first().is_some_and(|first| first.outcome.is_some());
        if let Ok(view) = change
            && view.unwrap().as_ref().is_some_and(over)
        {
            break;
        }
    }
    let job = person.job(&first, "work@linux/amd64").await;
    assert_eq!((job.state(), job.attempts.len()), (v1::JobState::Running, 1));
    alive.succeed(kept).await;
    assert_eq!(person.ended(&first).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn a_lost_stream_is_not_a_lost_lease() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(SHORT_LEASE, "1").await;
    let held = lease(&worker.order().await);
    drop(worker);
    until("the disconnect", async || (!person.workers().await[0].connected).then_some(())).await;
    assert_eq!(person.job(&build, "work@linux/amd64").await.state(), v1::JobState::Running);
    let mut worker = controller.worker_saying(v1::Hello { held: vec![held], ..hello("anvil") }).await;
    assert_eq!(worker.welcome.held, [held]);
    assert!(worker.beat(&[held], v1::Phase::Upload).await.lost.is_empty());
    worker.succeed(held).await;
    assert_eq!(person.ended(&build).await.jobs[0].attempts.len(), 1);
}

#[tokio::test]
async fn a_worker_that_comes_back_without_its_lease_frees_the_job_at_once() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(SHORT_LEASE, "1").await;
    let first = lease(&worker.order().await);
    drop(worker);
    // Until then its name is taken.
    until("the disconnect", async || (!person.workers().await[0].connected).then_some(())).await;
    let strange = v1::LeaseId { job: 99, attempt: 1 };
    let returned = v1::Hello { boot_id: "boot-2".to_owned(), held: vec![strange], ..hello("anvil") };
    let mut worker = controller.worker_saying(returned).await;
    assert_eq!(worker.welcome.held, []);
    let second = lease(&worker.order().await);
    assert_eq!((second.job, second.attempt), (first.job, 2));
    let job = person.job(&build, "work@linux/amd64").await;
    assert_eq!(job.attempts[0].outcome.as_ref().unwrap().reason, "worker-restarted");
    worker.succeed(second).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn who_is_limited_to_another_pipeline_sees_workers_and_none_of_their_jobs() {
    let controller = Controller::start().await;
    let mut worker = controller.worker("anvil").await;
    controller.operator().submit(ONE, "1").await;
    let order = worker.order().await;
    for (uri, jobs) in [("railyard://viewer/eve?pipeline=other", 0), ("railyard://viewer/eve?pipeline=one", 1)] {
        let anvil = controller.limited(uri).worker("anvil").await;
        assert_eq!((anvil.connected, anvil.jobs.len()), (true, jobs), "{uri}");
        assert!(anvil.jobs.iter().all(|job| (&*job.build, job.lease) == ("one/1", order.lease)));
    }
}
