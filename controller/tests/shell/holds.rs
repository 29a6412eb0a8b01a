//! Cordon, drain and retire over the protocol: what the worker notices, and what everyone can see.

use crate::common::people::submission;
use crate::common::pipelines::ONE;
use crate::common::worker::{cancelled, hello, lease, report, succeeded};
use crate::common::{Controller, refused, until};
use railyard_proto::v1;
use railyard_service::convert;
use tonic::Code;

fn hold(worker: &str, kind: v1::HoldKind) -> v1::HoldWorkerRequest {
    v1::HoldWorkerRequest { worker: worker.to_owned(), kind: kind.into(), ..Default::default() }
}

#[tokio::test]
async fn a_cordoned_worker_goes_on_with_what_it_has_and_gets_nothing_new() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let first = person.submit(ONE, "1").await;
    let order = worker.order().await;
    let cordon =
        v1::HoldWorkerRequest { why: "new disk".to_owned(), for_secs: 7_200, ..hold("anvil", v1::HoldKind::Cordon) };
    let view = person.hold(cordon).await.unwrap();
    let held = view.hold.unwrap();
    assert_eq!((held.kind(), held.by.as_str(), held.why.as_str()), (v1::HoldKind::Cordon, "olga", "new disk"));
    assert!(held.until.is_some() && held.stop_at.is_none() && view.connected && !view.draining && !view.retired);

    let second = person.submit(ONE, "2").await;
    worker.succeed(lease(&order)).await;
    assert_eq!(person.ended(&first).await.state(), v1::BuildState::Succeeded);
    let waits = person.job(&second, "work@linux/amd64").await;
    assert_eq!(
        (waits.state(), waits.why.as_str()),
        (v1::JobState::Queued, "every connected worker is held back: anvil is cordoned by olga (new disk)")
    );
    let plan = person.plan(ONE).await;
    assert_eq!((plan.jobs[0].workers.len(), plan.jobs[0].why.as_str()), (0, waits.why.as_str()));

    assert!(person.release("anvil").await.unwrap().hold.is_none());
    assert_eq!(worker.order().await.build, second);
    refused(person.release("anvil").await, Code::FailedPrecondition, "not-held");
}

#[tokio::test]
async fn a_hold_ends_by_itself_and_survives_a_restart_of_the_controller() {
    let controller = Controller::start().await;
    let (person, worker) = (controller.operator(), controller.worker("anvil").await);
    person.hold(v1::HoldWorkerRequest { for_secs: 2, ..hold("anvil", v1::HoldKind::Drain) }).await.unwrap();
    drop(worker);
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;
    let person = controller.operator();
    let build = person.submit(ONE, "1").await;
    // Nobody takes the hold back.
    let mut worker = controller.worker("anvil").await;
    assert_eq!(worker.order().await.build, build);
    assert!(person.worker("anvil").await.hold.is_none());
}

#[tokio::test]
async fn what_still_runs_at_the_deadline_of_a_drain_runs_elsewhere() {
    let controller = Controller::start().await;
    let (person, mut anvil) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(ONE, "1").await;
    let first = anvil.order().await;
    let mut hammer = controller.worker("hammer").await;
    let drain = v1::HoldWorkerRequest { stop_after_secs: Some(1), ..hold("anvil", v1::HoldKind::Drain) };
    let view = person.hold(drain).await.unwrap();
    assert!(view.hold.unwrap().stop_at.is_some());

    // The first is told to stop, and holds the lease until it says that it has: only then does the job run elsewhere.
    let told = anvil.cancel().await;
    assert_eq!(told.lease, Some(lease(&first)));
    assert!(anvil.beat(&[lease(&first)], v1::Phase::Run).await.lost.is_empty());
    anvil.try_report(report(lease(&first), cancelled(&told.reason))).await.unwrap();
    let again = hammer.order().await;
    assert_eq!((lease(&again).job, lease(&again).attempt), (lease(&first).job, 2));
    let late = anvil.try_report(report(lease(&first), succeeded())).await;
    refused(late, Code::FailedPrecondition, "stale-lease");
    let job = person.job(&build, "work@linux/amd64").await;
    let lost = job.attempts[0].outcome.as_ref().unwrap();
    assert_eq!((lost.kind(), lost.reason.as_str()), (v1::OutcomeKind::Lost, "drained"));
    assert!(person.worker("anvil").await.jobs.is_empty());
    hammer.succeed(lease(&again)).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn a_retired_worker_is_sent_away_when_its_last_job_has_ended() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(ONE, "1").await;
    let order = worker.order().await;
    let retire = v1::HoldWorkerRequest { why: "sold".to_owned(), ..hold("anvil", v1::HoldKind::Retire) };
    assert!(!person.hold(retire).await.unwrap().retired);
    assert!(worker.beat(&[lease(&order)], v1::Phase::Run).await.lost.is_empty());
    worker.succeed(lease(&order)).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    worker.closed().await;
    let message = refused(
        controller.try_worker("anvil", hello("anvil")).await.map(drop),
        Code::FailedPrecondition,
        "worker-retired",
    );
    assert_eq!(message, "worker `anvil` is retired by olga (sold); `railyard uncordon anvil` takes it back");
    let view =
        until("the disconnect", async || Some(person.worker("anvil").await).filter(|view| !view.connected)).await;
    assert!(view.retired);

    assert!(!person.release("anvil").await.unwrap().retired);
    controller.worker("anvil").await;
}

#[tokio::test]
async fn an_idle_worker_is_retired_at_once() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    assert!(person.hold(hold("anvil", v1::HoldKind::Retire)).await.unwrap().retired);
    worker.closed().await;
}

#[tokio::test]
async fn a_hold_that_makes_no_sense_is_refused() {
    let controller = Controller::start().await;
    let (person, _worker) = (controller.operator(), controller.worker("anvil").await);
    refused(person.hold(hold("hammer", v1::HoldKind::Cordon)).await, Code::NotFound, "unknown-worker");
    refused(person.release("hammer").await, Code::NotFound, "unknown-worker");
    let cordon = || hold("anvil", v1::HoldKind::Cordon);
    for (request, word) in [
        (hold("anvil", v1::HoldKind::Unspecified), "kind"),
        (hold("An Vil", v1::HoldKind::Cordon), "worker name"),
        (v1::HoldWorkerRequest { why: "w".repeat(convert::TEXT_MAX_BYTES + 1), ..cordon() }, "why"),
        (v1::HoldWorkerRequest { for_secs: u64::MAX, ..cordon() }, "too long"),
        (v1::HoldWorkerRequest { stop_after_secs: Some(1), ..cordon() }, "drain"),
        (v1::HoldWorkerRequest { for_secs: 1, ..hold("anvil", v1::HoldKind::Retire) }, "for good"),
    ] {
        let message = refused(person.hold(request).await, Code::InvalidArgument, "bad-request");
        assert!(message.contains(word), "{word}: {message}");
    }
    assert!(person.worker("anvil").await.hold.is_none());
}

#[tokio::test]
async fn a_worker_that_loses_again_and_again_is_in_quarantine() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let made = person.try_submit(submission(ONE, "1")).await.unwrap().build;
    for _ in 0..3 {
        let order = worker.order().await;
        let lost =
            v1::Outcome { kind: v1::OutcomeKind::Lost.into(), reason: "engine".to_owned(), ..Default::default() };
        worker.try_report(report(lease(&order), lost)).await.unwrap();
    }
    let quarantine = person.worker("anvil").await.quarantine.unwrap();
    assert_eq!((quarantine.losses, quarantine.until.is_some()), (3, true));
    let wanted = "anvil is in quarantine after 3 losses in a row; it may try one job in";
    let why = async || Some(person.job(&made, "work@linux/amd64").await.why).filter(|why| why.starts_with(wanted));
    until("the reason", why).await;
    let plan = person.plan(ONE).await;
    assert!(plan.jobs[0].workers.is_empty() && plan.jobs[0].why.starts_with(wanted), "{}", plan.jobs[0].why);
}
