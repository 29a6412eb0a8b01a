//! What a broken wire, a killed process and a dead host do to a farm, one at a time.

use railyard_common::id::LeaseId;
use railyard_core::Event;
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_sim_net::farm::person;
use railyard_sim_net::net::connect;
use railyard_sim_net::run::Stage;
use railyard_sim_net::scenario::{Planted, Scenario, Step, Trouble};
use railyard_sim_net::script::Script;
use railyard_sim_net::truth::Execution;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A connection without an answer is given up after its keepalive's interval and timeout; and a moment for that.
const KEEPALIVE: Duration = Duration::from_secs(31);
/// What a worker needs to find the controller again: the longest backoff, a connection attempt, a handshake.
const RECONNECT: Duration = Duration::from_secs(12);

/// A step that runs for so many seconds and writes a line each half of one.
fn step(secs: u32, ttl_secs: u64) -> Step {
    let script = Script { lines: secs * 2, width: 40, every_millis: 500, exit: Some(0) };
    Step { name: "work".to_owned(), needs: Vec::new(), script, ttl_secs, timeout_secs: 120 }
}

fn open(workers: usize, steps: Vec<Step>) -> Stage<'static> {
    Stage::open(Scenario::calm(workers, steps)).unwrap()
}

fn soon(stage: &mut Stage<'_>, what: &str, within: Duration, done: impl Fn(&Stage<'_>) -> bool) {
    let deadline = stage.sim.elapsed() + within;
    assert!(stage.run_until(deadline, done), "not within {within:?}: {what}\n{}", stage.farm.truth.lock().trace);
}

fn is_online(stage: &Stage<'_>, worker: &str) -> bool {
    stage.farm.journal.disk().farm.worker(&worker.parse().unwrap()).is_some_and(|worker| worker.online)
}

fn executions<T>(stage: &Stage<'_>, look: impl Fn(&Execution) -> T) -> Vec<T> {
    stage.farm.truth.lock().executions.iter().map(look).collect()
}

/// Waits until a container has run for a while; gives its host.
fn running(stage: &mut Stage<'_>, attempts: usize) -> String {
    let secs = Duration::from_secs(2);
    soon(stage, "a running container", Duration::from_secs(60), |stage| {
        let since = executions(stage, |execution| execution.since);
        since.len() == attempts && since[attempts - 1] + secs < stage.sim.elapsed()
    });
    executions(stage, |execution| execution.worker.clone()).remove(attempts - 1)
}

fn finish(stage: Stage<'_>) -> String {
    let report = stage.finish();
    assert!(report.broken.is_empty(), "{:#?}\n{}", report.broken, report.trace);
    report.trace
}

fn times(stage: &Stage<'_>, is_it: impl Fn(&Event) -> bool) -> usize {
    stage.farm.journal.disk().history.iter().filter(|event| is_it(event)).count()
}

fn cuts(host: &str) -> [Trouble; 3] {
    let host = host.to_owned();
    [Trouble::Cut(host.clone()), Trouble::CutFrom(host.clone()), Trouble::CutTo(host)]
}

#[test]
fn a_half_open_connection_is_noticed_and_replaced() {
    for cut in cuts("w1") {
        let mut stage = open(1, Vec::new());
        soon(&mut stage, "the worker connects", RECONNECT, |stage| is_online(stage, "w1"));
        stage.begin(&cut);
        soon(&mut stage, &format!("{cut:?} is noticed"), KEEPALIVE, |stage| !is_online(stage, "w1"));
        stage.end(&cut);
        soon(&mut stage, "the worker is back", RECONNECT, |stage| is_online(stage, "w1"));
        finish(stage);
    }
}

#[test]
fn a_cut_shorter_than_the_lease_costs_nothing() {
    for cut in cuts("w1").into_iter().chain([Trouble::Hold("w1".to_owned())]) {
        let mut stage = open(1, vec![step(20, 24)]);
        running(&mut stage, 1);
        stage.begin(&cut);
        stage.run_for(Duration::from_secs(8));
        stage.end(&cut);
        let trace = finish(stage);
        assert!(!trace.contains("j0.2"), "{cut:?} cost an attempt:\n{trace}");
    }
}

#[test]
fn after_a_cut_longer_than_the_lease_the_job_runs_elsewhere_and_the_first_worker_has_stopped_before() {
    for kind in 0..3 {
        let mut stage = open(2, vec![step(40, 10)]);
        let cut_off = running(&mut stage, 1);
        let cut = cuts(&cut_off)[kind].clone();
        stage.begin(&cut);
        let other = running(&mut stage, 2);
        assert_ne!(other, cut_off);
        // Whether the first one had stopped before its lease was over, the truth has looked at by itself.
        let ends = executions(&stage, |execution| execution.ended.is_some());
        assert_eq!(ends, [true, false], "{cut:?}");
        stage.end(&cut);
        soon(&mut stage, "its leftovers are gone", RECONNECT, |stage| stage.farm.job_dirs(&cut_off).is_empty());
        let first = LeaseId { attempt: 1, ..executions(&stage, |execution| execution.lease)[0] };
        let ends = times(&stage, |event| matches!(event, Event::AttemptEnded { lease, .. } if *lease == first));
        assert_eq!(ends, 1, "its late report changes nothing");
        let trace = finish(stage);
        assert!(!trace.contains("j0.3"), "{trace}");
    }
}

#[test]
fn a_restarted_controller_takes_leases_as_live_and_gives_them_their_full_time() {
    let mut stage = open(1, vec![step(40, 24)]);
    running(&mut stage, 1);
    let (cut, killed) = (Trouble::Cut("w1".to_owned()), Trouble::ControllerKilled);
    stage.begin(&cut);
    stage.run_for(Duration::from_secs(5));
    stage.begin(&killed);
    stage.run_for(Duration::from_secs(4));
    stage.end(&killed);
    // The worker is silent for longer than the restart took; its lease began anew.
    stage.run_for(Duration::from_secs(5));
    stage.end(&cut);
    let trace = finish(stage);
    assert!(!trace.contains("j0.2"), "{trace}");
}

#[test]
fn controllers_that_come_and_go_cost_no_attempt() {
    let mut stage = open(2, vec![step(60, 16)]);
    running(&mut stage, 1);
    for _ in 0..5 {
        stage.begin(&Trouble::ControllerKilled);
        stage.run_for(Duration::from_secs(4));
        stage.end(&Trouble::ControllerKilled);
        stage.run_for(Duration::from_secs(8));
    }
    let trace = finish(stage);
    assert!(!trace.contains("j0.2"), "{trace}");
}

#[test]
fn a_follower_that_stops_reading_holds_nobody_up() {
    // Far more than windows and buffers on the way can take.
    let script = Script { lines: 80, width: 128 * 1024, every_millis: 100, exit: Some(0) };
    let mut stage = open(1, vec![Step { script, ..step(0, 24) }]);
    let go_on = Arc::new(AtomicBool::new(false));
    let told = go_on.clone();
    stage.sim.client("p9", async move {
        let mut rpc = ClientServiceClient::new(connect(&person())?).max_decoding_message_size(1 << 24);
        let request = v1::ReadLogRequest {
            build: "p1".to_owned(),
            job: "work@linux/amd64".to_owned(),
            follow: true,
            ..Default::default()
        };
        let mut chunks = loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            if let Ok(chunks) = rpc.read_log(request.clone()).await {
                break chunks.into_inner();
            }
        };
        let mut length = 0;
        while let Some(chunk) = chunks.message().await? {
            length += chunk.data.len();
            while length > 0 && !told.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
        assert!(length > 80 * 128 * 1024, "it has missed something: {length}");
        Ok(())
    });
    running(&mut stage, 1);
    soon(&mut stage, "the build's end", Duration::from_secs(15), |stage| stage.sights.of("p1").is_some());
    go_on.store(true, Ordering::Relaxed);
    finish(stage);
}

#[test]
fn of_two_workers_of_one_name_the_first_keeps_its_session_until_it_is_gone() {
    let mut stage = open(1, vec![step(30, 10)]);
    running(&mut stage, 1);
    stage.farm.add_worker(&mut stage.sim, "w2", "w1");
    stage.run_for(Duration::from_secs(20));
    let hellos = |stage: &Stage<'_>| times(stage, |event| matches!(event, Event::WorkerOnline { .. }));
    assert_eq!(hellos(&stage), 1, "{}", stage.farm.truth.lock().trace);
    stage.begin(&Trouble::PowerLoss("w1".to_owned()));
    soon(&mut stage, "the second worker's turn", Duration::from_secs(20), |stage| hellos(stage) == 2);
    assert_eq!(running(&mut stage, 2), "w2");
    stage.end(&Trouble::PowerLoss("w1".to_owned()));
    // The first one is the second now, and waits.
    stage.run_for(Duration::from_secs(10));
    assert_eq!(hellos(&stage), 2, "{}", stage.farm.truth.lock().trace);
    finish(stage);
}

#[test]
fn a_worker_process_that_was_killed_is_back_at_once() {
    let mut stage = open(1, vec![step(20, 24)]);
    running(&mut stage, 1);
    stage.begin(&Trouble::WorkerKilled("w1".to_owned()));
    stage.end(&Trouble::WorkerKilled("w1".to_owned()));
    let hellos = |stage: &Stage<'_>| times(stage, |event| matches!(event, Event::WorkerOnline { .. }));
    soon(&mut stage, "the worker is back", Duration::from_secs(2), |stage| hellos(stage) == 2);
    finish(stage);
}

#[test]
fn a_worker_that_stops_too_late_is_found_out() {
    for planted in [Planted::SlowClock, Planted::DeafEngine] {
        let calm = Scenario::calm(2, vec![step(40, 10)]);
        let mut stage = Stage::open(Scenario { planted: Some(planted), ..calm }).unwrap();
        let cut = Trouble::Cut(running(&mut stage, 1));
        stage.begin(&cut);
        stage.run_for(Duration::from_secs(30));
        stage.end(&cut);
        let report = stage.finish();
        let late = report.broken.iter().any(|what| what.contains("is over and its container runs"));
        assert!(late, "{planted:?} is not found:\n{}", report.trace);
    }
}
