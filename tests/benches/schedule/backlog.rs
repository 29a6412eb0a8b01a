//! A long backlog: what placing costs, and how that grows. All of it is computing, and is counted in processor time.

use crate::machine::{median, worked};
use crate::plans::{self, SHAPES, SMALL};
use crate::table::{Bar, Table};
use railyard_common::id::JobId;
use railyard_common::job::Capacity;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::plan::Plan;
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_core::{Command, Event, Farm, JobState};

const WORKERS: usize = 64;
const START: Millis = Millis(1_790_000_000_000);
const JOBS_PER_BUILD: usize = 200;
/// The longest backlog seen in the field.
const FIELD: usize = 140_000;
const GIB: u64 = 1 << 30;

/// Room for every shape, eight small jobs at a time.
const ROOMY: Capacity = Capacity { cpu_millis: 16_000, memory_bytes: 64 * GIB, disk_bytes: 64 * GIB, slots: 8 };

pub fn measure(quick: bool, table: &mut Table) -> anyhow::Result<()> {
    let repeats = if quick { 3 } else { 15 };
    let sizes: &[usize] = if quick { &[10_000, 40_000] } else { &[10_000, 40_000, FIELD, 160_000] };
    let mut growth = Vec::new();
    for size in sizes {
        let farm = mixed(*size)?;
        let pass = median_ms(repeats, || place(&farm, START.plus(10)).len());
        let leases = place(&farm, START.plus(10)).len();
        let bar = Bar::AtMost(50.0);
        table.barred(
            &format!("{size} mixed jobs: a pass that fills {WORKERS} workers ({leases} leases)"),
            pass,
            "ms",
            bar,
        );
        growth.push((*size, pass));
        one_more(farm, *size, repeats, table);
    }
    let (first, last) = (growth[0], growth[growth.len() - 1]);
    let n_log_n = |n: usize| n as f64 * (n as f64).log2();
    table.barred(
        &format!("growth of the pass from {} to {} jobs; n log n is the bar", first.0, last.0),
        last.1 / first.1,
        "times",
        Bar::AtMost(n_log_n(last.0) / n_log_n(first.0)),
    );
    let size = if quick { 40_000 } else { FIELD };
    hard_cases(size, repeats, table)?;
    big_build(repeats, table)
}

/// With a full farm, one worker becomes free: what placing one job costs, and what the rest of a round costs.
fn one_more(mut farm: Farm, size: usize, repeats: usize, table: &mut Table) {
    let now = START.plus(20);
    let leased = place(&farm, now);
    leased.iter().for_each(|event| farm.apply(event));
    let idle = median_ms(repeats, || place(&farm, now).len());
    table.barred(&format!("{size} mixed jobs: a pass while all is full"), idle, "ms", Bar::AtMost(50.0));
    let mut figures = Vec::new();
    for event in leased.iter().take(repeats * 10) {
        let Event::JobLeased { lease, worker, .. } = event else { continue };
        let report = Command::Report(Box::new(plans::success(*lease, worker.clone())));
        let ended = farm.decide(now, &report).unwrap_or_default();
        ended.iter().for_each(|event| farm.apply(event));
        let (secs, ()) = worked(|| place(&farm, now).iter().for_each(|event| farm.apply(event)));
        figures.push(secs * 1e3);
    }
    table.barred(
        &format!("{size} mixed jobs: placing one when a worker is free"),
        median(&mut figures),
        "ms",
        Bar::AtMost(1.0),
    );
    if size < FIELD {
        return;
    }
    let wake = median_ms(repeats, || farm.next_backoff_end(now));
    table.row(&format!("{size} mixed jobs: the next wake"), wake, "ms");
    let queued: Vec<JobId> = queued(&farm).into_iter().step_by(size / 100).collect();
    let mut figures: Vec<f64> = queued.iter().map(|id| worked(|| farm.why_waiting(*id, now)).0 * 1e3).collect();
    table.row(&format!("{size} mixed jobs: why one waits"), median(&mut figures), "ms");
    let snapshot = median_ms(repeats.min(5), || farm.snapshot());
    table.row(&format!("{size} mixed jobs: a snapshot, taken"), snapshot, "ms");
}

/// Backlogs that a search for work could trip over.
fn hard_cases(size: usize, repeats: usize, table: &mut Table) -> anyhow::Result<()> {
    let bar = Bar::AtMost(50.0);
    let mut case = |what: &str, farm: Farm, now: Millis| {
        let pass = median_ms(repeats, || place(&farm, now).len());
        let leases = place(&farm, now).len();
        table.barred(&format!("{size} jobs, {what} ({leases} leases)"), pass, "ms", bar);
        let wake = median_ms(repeats, || farm.next_backoff_end(now));
        table.barred(&format!("{size} jobs, {what}: the next wake"), wake, "ms", Bar::AtMost(1.0));
        let some: Vec<JobId> = queued(&farm).into_iter().step_by(size / 50).collect();
        let mut figures: Vec<f64> = some.iter().map(|id| worked(|| farm.why_waiting(*id, now)).0 * 1e3).collect();
        table.row(&format!("{size} jobs, {what}: why one waits"), median(&mut figures), "ms");
    };
    case("one shape full and the others not", one_shape_full(size)?, START.plus(10));
    case("a shape for each pipeline", many_shapes(size)?, START.plus(10));
    let (farm, end) = in_backoff(size)?;
    case("all in backoff", farm.clone(), START.plus(20));
    case("all whose backoff has just ended", farm, end.plus(1));
    case("all in one group", grouped(size, SMALL)?, START.plus(10));
    let huge = plans::Shape { cpu_millis: 500_000, ..SMALL };
    case("all in one group, and nobody could run them", grouped(size, huge)?, START.plus(10));
    case("each build in a group of its own", own_groups(size)?, START.plus(10));
    Ok(())
}

fn big_build(repeats: usize, table: &mut Table) -> anyhow::Result<()> {
    let plan = plans::pairs("big", "1", 2_000, SMALL);
    let command = plans::submit(plan, Priority::Manual);
    let mut farm = workers(ROOMY);
    let submit = median_ms(repeats, || farm.decide(START, &command).map(|events| events.len()));
    table.row("a build of 2,000 jobs: submit, decided", submit, "ms");
    let events = farm.decide(START, &command)?;
    let (secs, ()) = worked(|| events.iter().for_each(|event| farm.apply(event)));
    table.row("a build of 2,000 jobs: submit, applied", secs * 1e3, "ms");
    let pass = median_ms(repeats, || place(&farm, START).len());
    table.barred("a build of 2,000 jobs: a pass", pass, "ms", Bar::AtMost(50.0));
    Ok(())
}

fn median_ms<T>(repeats: usize, mut work: impl FnMut() -> T) -> f64 {
    median(&mut (0..repeats).map(|_| worked(&mut work).0 * 1e3).collect::<Vec<_>>())
}

fn place(farm: &Farm, now: Millis) -> Vec<Event> {
    farm.decide(now, &Command::Place).unwrap_or_default()
}

fn queued(farm: &Farm) -> Vec<JobId> {
    let jobs = farm.builds().flat_map(|build| build.jobs());
    jobs.filter(|id| farm.job(*id).is_some_and(|job| matches!(job.state, JobState::Queued { .. }))).collect()
}

fn obey(farm: &mut Farm, now: Millis, command: &Command) -> anyhow::Result<Vec<Event>> {
    let events = farm.decide(now, command)?;
    events.iter().for_each(|event| farm.apply(event));
    Ok(events)
}

fn workers(capacity: Capacity) -> Farm {
    let mut farm = Farm::default();
    for n in 0..WORKERS {
        farm.apply(&Event::WorkerOnline { at: START, offer: plans::offer(n, capacity) });
    }
    farm
}

/// A farm with `size` queued jobs, in builds made by `build` from their numbers.
fn backlog(size: usize, mut farm: Farm, build: impl Fn(usize) -> (Plan, Priority)) -> anyhow::Result<Farm> {
    let mut number = 0;
    while farm.queued() < size {
        let (plan, priority) = build(number);
        obey(&mut farm, START, &plans::submit(plan, priority))?;
        number += 1;
    }
    Ok(farm)
}

/// Jobs that are all ready, of so many shapes in turn.
fn ready(pipeline: &str, number: usize, shape: impl Fn(usize) -> plans::Shape) -> Plan {
    let jobs = (0..JOBS_PER_BUILD).map(|n| plans::job(&format!("step-{n}"), shape(n)));
    plans::plan(pipeline, &format!("v{number}"), jobs.collect())
}

/// 40 pipelines, 6 shapes, every priority.
fn mixed(size: usize) -> anyhow::Result<Farm> {
    backlog(size, workers(ROOMY), |n| {
        let plan = ready(&format!("p{}", n % 40), n, |job| SHAPES[job % SHAPES.len()]);
        (plan, Priority::ALL[n / 40 % Priority::ALL.len()])
    })
}

/// Most jobs want a processor that no worker has left; a few others find room.
fn one_shape_full(size: usize) -> anyhow::Result<Farm> {
    let busy = Capacity { cpu_millis: 3_900, ..ROOMY };
    let mut farm = workers(ROOMY);
    for n in 0..WORKERS {
        farm.apply(&Event::WorkerOnline { at: START, offer: plans::offer(n, busy) });
    }
    backlog(size, farm, |n| {
        let plan = ready(&format!("p{}", n % 40), n, |job| if job % 50 == 0 { SMALL } else { SHAPES[2] });
        (plan, Priority::Manual)
    })
}

/// 500 pipelines, and each has a shape that nobody else has.
fn many_shapes(size: usize) -> anyhow::Result<Farm> {
    backlog(size, workers(ROOMY), |n| {
        let cpu_millis = 500 + (n % 500) as u32;
        (ready(&format!("p{}", n % 500), n, |_| plans::Shape { cpu_millis, ..SMALL }), Priority::Manual)
    })
}

/// Every job was lost once, all at the same time.
fn in_backoff(size: usize) -> anyhow::Result<(Farm, Millis)> {
    let mut farm = workers(Capacity { slots: 100_000, ..plans::slots(100_000) });
    farm = backlog(size, farm, |n| {
        (ready(&format!("p{}", n % 40), n, |job| SHAPES[job % SHAPES.len()]), Priority::Manual)
    })?;
    let mut end = START;
    for event in obey(&mut farm, START.plus(10), &Command::Place)? {
        let Event::JobLeased { lease, worker, .. } = event else { continue };
        let outcome = Outcome::new(OutcomeKind::Refused, Reason::Engine, "the engine does not answer");
        let report = railyard_core::Report { outcome, ..plans::success(lease, worker) };
        for event in obey(&mut farm, START.plus(10), &Command::Report(Box::new(report)))? {
            if let Event::AttemptEnded { next: railyard_core::Next::Again { not_before }, .. } = event {
                end = end.max(not_before);
            }
        }
    }
    for n in 0..WORKERS {
        farm.apply(&Event::WorkerOnline { at: START.plus(11), offer: plans::offer(n, ROOMY) });
    }
    anyhow::ensure!(farm.next_backoff_end(START.plus(20)).is_some(), "nothing is in backoff");
    Ok((farm, end))
}

fn grouped(size: usize, shape: plans::Shape) -> anyhow::Result<Farm> {
    backlog(size, workers(ROOMY), |n| {
        (plans::in_group(ready(&format!("p{}", n % 40), n, |_| shape), "signing"), Priority::Manual)
    })
}

fn own_groups(size: usize) -> anyhow::Result<Farm> {
    backlog(size, workers(ROOMY), |n| {
        (plans::in_group(ready(&format!("p{}", n % 40), n, |_| SMALL), &format!("g{n}")), Priority::Manual)
    })
}
