use super::*;
use crate::{Pressure, Report, Scarce, Submission, Trace, WorkerOffer};
use railyard_common::id::{BootId, JobName};
use railyard_common::job::{Capacity, ImageSource, JobSpec, RunSpec};
use railyard_common::outcome::Outcome;
use railyard_common::plan::Plan;
use railyard_common::platform::PlatformOffer;
use railyard_common::priority::Priority;
use std::collections::BTreeMap;

const ANVIL: &str = "anvil";
const TTL_MILLIS: u64 = 10_000;

fn offer() -> Box<WorkerOffer> {
    Box::new(WorkerOffer {
        name: ANVIL.parse().unwrap(),
        boot: BootId("boot".to_owned()),
        version: String::new(),
        platforms: vec![PlatformOffer { platform: "linux/amd64".parse().unwrap(), emulated: false }],
        capacity: Capacity { slots: 1, ..Capacity::default() },
        labels: BTreeMap::new(),
        pool: None,
        allows_privileged: false,
        allows: Vec::new(),
    })
}

fn submit(ticket: u64, build: &str) -> Input {
    let name = JobName { step: "one".parse().unwrap(), platform: "linux/amd64".parse().unwrap(), variant: None };
    let run = RunSpec {
        script: "true".to_owned(),
        env: BTreeMap::new(),
        outputs: Vec::new(),
        commit: false,
        resources: Capacity { slots: 1, ..Capacity::default() },
        timeout_secs: 3600,
        silence_timeout_secs: 0,
        privileged: false,
        devices: Vec::new(),
        capabilities: Vec::new(),
        network_none: false,
        host_paths: Vec::new(),
        secrets: Vec::new(),
    };
    let job = JobSpec {
        name,
        needs: Vec::new(),
        image: ImageSource::Registry("debian".to_owned()),
        inputs: Vec::new(),
        lease_ttl_secs: TTL_MILLIS / 1000,
        approval: None,
        concurrency: None,
        pool: None,
        labels: BTreeMap::new(),
        retries: 0,
        run: run.into(),
    };
    let plan = Plan {
        build: build.parse().unwrap(),
        params: BTreeMap::new(),
        jobs: vec![job],
        platforms: Vec::new(),
        untrusted: false,
        channel: None,
        supersede: None,
        uses: Vec::new(),
    };
    let submission = Submission {
        plan,
        key: None,
        request: String::new(),
        priority: Priority::default(),
        by: "olga".to_owned(),
        trace: Trace::default(),
    };
    Input::Command { ticket: Ticket(ticket), command: Command::Submit(Box::new(submission)) }
}

fn attach(ticket: u64, held: Vec<LeaseId>) -> Input {
    Input::Attach { ticket: Ticket(ticket), offer: offer(), held, builds: Vec::new(), said: None, disk: None }
}

/// A durable round at a time that both clocks show.
fn durable(dispatcher: &mut Dispatcher, at: u64, inputs: impl IntoIterator<Item = Input>) -> Vec<Output> {
    let round = dispatcher.round(Millis(at), Millis(at), inputs);
    dispatcher.release(Millis(at), Millis(at), round)
}

fn order_of(outputs: &[Output]) -> Option<(u64, LeaseId)> {
    outputs.iter().find_map(|output| match output {
        Output::Order { session, order, .. } => Some((*session, order.lease)),
        _ => None,
    })
}

#[test]
fn the_welcome_of_a_session_comes_before_its_orders() {
    let mut dispatcher = Dispatcher::new(Farm::default(), Millis(0));
    let outputs = durable(&mut dispatcher, 0, [submit(1, "p/1"), attach(2, Vec::new())]);
    let place = |wanted: fn(&Output) -> bool| outputs.iter().position(wanted).unwrap();
    let welcome = place(|output| matches!(output, Output::Welcome { session: 1, .. }));
    let order = place(|output| matches!(output, Output::Order { session: 1, .. }));
    assert!(welcome < order, "{outputs:?}");
    assert_eq!(dispatcher.next_wake(Millis(0), Millis(0)), Some(TTL_MILLIS));
}

#[test]
fn an_aborted_round_leaves_what_the_journal_holds_and_no_session() {
    let mut dispatcher = Dispatcher::new(Farm::default(), Millis(0));
    let _ = durable(&mut dispatcher, 0, [attach(1, Vec::new())]);
    let durable_farm = dispatcher.farm().clone();
    let round = dispatcher.round(Millis(1), Millis(1), [submit(2, "p/1"), Input::Read { ticket: Ticket(3) }]);
    assert!(!round.events().is_empty());
    let outputs = dispatcher.abort(Millis(1), round, durable_farm);
    assert!(outputs.contains(&Output::Read { ticket: Ticket(3) }));
    assert!(!outputs.iter().any(|output| matches!(output, Output::Decided { .. } | Output::Order { .. })));
    assert_eq!((dispatcher.farm().builds().count(), dispatcher.live().sessions().count()), (0, 0));
    assert!(dispatcher.has_own_work(), "the restart is journaled");
    // The old stream's end comes late: it is not taken for that of the new one.
    let _ = durable(&mut dispatcher, 2, [attach(4, Vec::new())]);
    let _ = durable(&mut dispatcher, 3, [Input::Detach { worker: ANVIL.parse().unwrap(), session: 1 }]);
    assert!(dispatcher.farm().worker(&ANVIL.parse().unwrap()).unwrap().online);
}

#[test]
fn a_lease_expires_when_no_heartbeat_came_for_its_time_to_live() {
    let mut dispatcher = Dispatcher::new(Farm::default(), Millis(0));
    let outputs = durable(&mut dispatcher, 0, [attach(1, Vec::new()), submit(2, "p/1")]);
    let (session, lease) = order_of(&outputs).unwrap();
    let worker: WorkerName = ANVIL.parse().unwrap();
    let leases = vec![(lease, Some(Phase::Run))];
    let beat = Beat {
        worker: worker.clone(),
        session,
        sequence: 1,
        leases,
        free_disk_bytes: Some(7),
        disk: None,
        pressure: None,
    };
    let outputs = durable(&mut dispatcher, 6_000, [Input::Beat(beat.clone())]);
    assert!(outputs.contains(&Output::Ack { worker: worker.clone(), session, sequence: 1, lost: Vec::new() }));
    assert_eq!(dispatcher.live().phase(lease), Some(Phase::Run));
    assert_eq!(dispatcher.live().free_disk_bytes(&worker), Some(7));
    assert!(durable(&mut dispatcher, 15_999, []).is_empty());
    assert!(durable(&mut dispatcher, 16_000, []).contains(&Output::LeaseEnded(lease)));
    // Said again, it hears that the lease is not its own any more; a report is refused.
    let outputs = durable(&mut dispatcher, 16_001, [Input::Beat(Beat { sequence: 2, ..beat })]);
    assert!(outputs.contains(&Output::Ack { worker: worker.clone(), session, sequence: 2, lost: vec![lease] }));
    let report =
        Report { lease, worker, outcome: Outcome::succeeded(), artifacts: Vec::new(), image: None, log_bytes: 0 };
    let input = Input::Command { ticket: Ticket(9), command: Command::Report(Box::new(report)) };
    let outputs = durable(&mut dispatcher, 16_002, [input]);
    assert_eq!(outputs[0], Output::Decided { ticket: Ticket(9), result: Err(Refusal::StaleLease(lease)) });
}

#[test]
fn in_a_standstill_everybody_is_answered_and_nothing_changes() {
    let mut dispatcher = Dispatcher::new(Farm::default(), Millis(0));
    let outputs = durable(&mut dispatcher, 0, [attach(1, Vec::new()), submit(2, "p/1")]);
    let (session, lease) = order_of(&outputs).unwrap();
    let worker: WorkerName = ANVIL.parse().unwrap();
    let before = dispatcher.farm().snapshot();
    let beat = Beat {
        worker: worker.clone(),
        session,
        sequence: 1,
        leases: vec![(lease, Some(Phase::Upload))],
        free_disk_bytes: None,
        disk: None,
        pressure: None,
    };
    let at = Millis(9_000);
    let inputs = [submit(3, "p/2"), submit(4, "p/1"), Input::Beat(beat), Input::Read { ticket: Ticket(5) }];
    let (outputs, refused) = dispatcher.answer(at, at, inputs);
    assert_eq!(refused, [Ticket(3)]);
    // What is impossible anyway can be told.
    assert!(matches!(&outputs[0], Output::Decided { ticket: Ticket(4), result: Err(Refusal::BuildExists(_)) }));
    assert!(outputs.contains(&Output::Ack { worker: worker.clone(), session, sequence: 1, lost: Vec::new() }));
    assert!(outputs.contains(&Output::Read { ticket: Ticket(5) }));
    // It goes and comes back again and again, with its lease.
    for n in 0..3 {
        let session = dispatcher.live().session(&worker).unwrap();
        let (outputs, _) =
            dispatcher.answer(at, at, [Input::Detach { worker: worker.clone(), session }, attach(6 + n, vec![lease])]);
        assert!(matches!(&outputs[0], Output::Welcome { held, .. } if *held == [lease]), "{outputs:?}");
    }
    assert_eq!(dispatcher.farm().snapshot(), before);
    // Long after the lease's time the journal works again: nothing has expired, and only the last hello is decided.
    dispatcher.begin_leases(Millis(60_000));
    let round = dispatcher.round(Millis(60_000), Millis(60_000), []);
    assert!(matches!(round.events(), [Event::WorkerOnline { .. }]), "{:?}", round.events());
    assert_eq!(dispatcher.farm().holder(lease), Some(&worker));
    let _ = dispatcher.release(Millis(60_000), Millis(60_000), round);
}

/// A cut can hold a hello back until a later one has come on another connection. What it says is not so any more.
#[test]
fn a_hello_that_was_overtaken_by_a_later_one_frees_nothing() {
    let mut dispatcher = Dispatcher::new(Farm::default(), Millis(0));
    let hello = |ticket, uptime_millis, host_boot: &str| Input::Attach {
        ticket: Ticket(ticket),
        offer: offer(),
        held: Vec::new(),
        builds: Vec::new(),
        said: Some(Said { host_boot: host_boot.to_owned(), uptime_millis }),
        disk: None,
    };
    let outputs = durable(&mut dispatcher, 0, [hello(1, 500, "a"), submit(2, "p/1")]);
    let (session, lease) = order_of(&outputs).unwrap();
    let outputs = durable(&mut dispatcher, 1, [hello(3, 400, "a")]);
    let worker: WorkerName = ANVIL.parse().unwrap();
    let refusal = Refusal::LateHello(worker.clone());
    assert_eq!(outputs, [Output::TurnedAway { ticket: Ticket(3), refusal }]);
    assert_eq!(dispatcher.farm().holder(lease), Some(&worker));
    assert_eq!(dispatcher.live().session(&worker), Some(session));
    // After a restart of its host it counts anew; and there the lease is lost.
    let outputs = durable(&mut dispatcher, 2, [hello(4, 3, "b")]);
    assert!(outputs.contains(&Output::LeaseEnded(lease)), "{outputs:?}");
}

/// A worker that stops says so on its stream. A slow flush may have that read after the hello of its next process.
#[test]
fn a_worker_is_not_drained_by_what_its_earlier_process_said() {
    let mut dispatcher = Dispatcher::new(Farm::default(), Millis(0));
    let worker: WorkerName = ANVIL.parse().unwrap();
    let _ = durable(&mut dispatcher, 0, [attach(1, Vec::new())]);
    let draining = |session| Input::Draining { worker: worker.clone(), session };
    let _ = durable(&mut dispatcher, 1, [attach(2, Vec::new()), draining(1)]);
    assert!(dispatcher.farm().worker(&worker).unwrap().is_willing());
    let _ = durable(&mut dispatcher, 2, [draining(1)]);
    assert!(dispatcher.farm().worker(&worker).unwrap().is_willing());
    let _ = durable(&mut dispatcher, 3, [draining(2)]);
    assert!(!dispatcher.farm().worker(&worker).unwrap().is_willing());
    // So it is when nothing can be journaled.
    let at = Millis(4);
    let _ = dispatcher.answer(at, at, [attach(3, Vec::new()), draining(3), attach(4, Vec::new()), draining(3)]);
    let _ = durable(&mut dispatcher, 5, []);
    assert!(dispatcher.farm().worker(&worker).unwrap().is_willing());
}

#[test]
fn a_worker_under_pressure_gets_nothing_new_until_it_says_that_it_is_over() {
    let mut dispatcher = Dispatcher::new(Farm::default(), Millis(0));
    let worker: WorkerName = ANVIL.parse().unwrap();
    let _ = durable(&mut dispatcher, 0, [attach(1, Vec::new())]);
    let beat = |sequence, pressure| {
        let worker = worker.clone();
        Input::Beat(Beat {
            worker,
            session: 1,
            sequence,
            leases: Vec::new(),
            free_disk_bytes: None,
            disk: None,
            pressure,
        })
    };
    let pressure = |percent| Some(Pressure { scarce: Scarce::Memory, percent });
    let outputs = durable(&mut dispatcher, 1, [beat(1, pressure(34)), submit(2, "p/1")]);
    assert!(outputs.contains(&Output::WorkersChanged) && order_of(&outputs).is_none(), "{outputs:?}");
    // Another figure is no news.
    let outputs = durable(&mut dispatcher, 2, [beat(2, pressure(35))]);
    assert!(!outputs.contains(&Output::WorkersChanged) && order_of(&outputs).is_none(), "{outputs:?}");
    let outputs = durable(&mut dispatcher, 3, [beat(3, None)]);
    assert!(outputs.contains(&Output::WorkersChanged) && order_of(&outputs).is_some(), "{outputs:?}");
}

/// The same build, whose job reserves so much disk.
fn submit_with_disk(ticket: u64, build: &str, disk_bytes: u64) -> Input {
    let mut input = submit(ticket, build);
    if let Input::Command { command: Command::Submit(submission), .. } = &mut input {
        Arc::make_mut(&mut submission.plan.jobs[0].run).resources.disk_bytes = disk_bytes;
    }
    input
}

#[test]
fn a_worker_s_disk_is_leased_once_from_its_hello_on() {
    let mut dispatcher = Dispatcher::new(Farm::default(), Millis(0));
    let worker: WorkerName = ANVIL.parse().unwrap();
    let disk = |room_bytes| Some(Arc::new(DiskReport { room_bytes, ..DiskReport::default() }));
    let mut wide = offer();
    wide.capacity = Capacity { slots: 9, disk_bytes: 1000, ..Capacity::default() };
    let hello = Input::Attach {
        ticket: Ticket(1),
        offer: wide,
        held: Vec::new(),
        builds: Vec::new(),
        said: None,
        disk: disk(30),
    };
    let beat = |sequence, leases: &[LeaseId], room_bytes| {
        Input::Beat(Beat {
            worker: worker.clone(),
            session: 1,
            sequence,
            leases: leases.iter().map(|lease| (*lease, Some(Phase::Run))).collect(),
            // Less than this is free for jobs.
            free_disk_bytes: Some(900),
            disk: disk(room_bytes),
            pressure: None,
        })
    };
    let outputs = durable(&mut dispatcher, 0, [hello, submit_with_disk(2, "p/1", 40), submit_with_disk(3, "p/2", 40)]);
    assert_eq!(order_of(&outputs), None, "the hello tells of too little");
    assert_eq!(dispatcher.live().disk(&worker).map(|disk| disk.room_bytes), Some(30));
    let outputs = durable(&mut dispatcher, 1, [beat(1, &[], 50)]);
    let (_, first) = order_of(&outputs).expect("there is room for one");
    let orders = |outputs: &[Output]| outputs.iter().filter(|output| matches!(output, Output::Order { .. })).count();
    assert_eq!(orders(&outputs), 1, "{outputs:?}");
    // Said before it had heard of the first: the room is the first one's.
    let outputs = durable(&mut dispatcher, 2, [beat(2, &[], 50)]);
    assert_eq!(order_of(&outputs), None);
    let outputs = durable(&mut dispatcher, 3, [beat(3, &[first], 39)]);
    assert_eq!(order_of(&outputs), None);
    let outputs = durable(&mut dispatcher, 4, [beat(4, &[first], 40)]);
    assert!(order_of(&outputs).is_some(), "the first one's share is not in it any more");
}
