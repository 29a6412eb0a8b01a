//! How long a controller with a long history takes to start.

use crate::child::Controller;
use crate::machine::{self, median, timed, worked};
use crate::plans::{self, SHAPES};
use crate::table::{Bar, Table};
use railyard_common::id::{JobId, LeaseId};
use railyard_common::outcome::Outcome;
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_controller::journal::{Journal, SledJournal};
use railyard_core::{Event, Farm, Next};
use std::path::Path;

const START: Millis = Millis(1_780_000_000_000);
const JOBS_PER_BUILD: usize = 20;

pub fn measure(quick: bool, table: &mut Table) -> anyhow::Result<()> {
    let (builds, repeats) = if quick { (1_000, 2) } else { (10_000, 5) };
    let dir = machine::workspace()?;
    let data = dir.path().join("controller");
    let journal = data.join("journal");
    let mut farm = Farm::default();
    // The last hundredth is still in the tail.
    let in_snapshot = builds - builds / 100;
    (0..in_snapshot).flat_map(|n| history(&farm_next(n), n)).for_each(|event| farm.apply(&event));
    let (secs, snapshot) = worked(|| farm.snapshot());
    table.row(&format!("{in_snapshot} builds: a snapshot, taken"), secs * 1e3, "ms");
    drop(farm);
    let mut kept = SledJournal::open(&journal)?;
    kept.load()?;
    let (secs, installed) = timed(|| kept.install(&snapshot));
    installed?;
    table.row(&format!("{in_snapshot} builds: a snapshot, installed"), secs * 1e3, "ms");
    drop(snapshot);
    for n in in_snapshot..builds {
        kept.append(&history(&farm_next(n), n))?;
    }
    drop(kept);
    table.row(&format!("{builds} builds: the journal on disk"), bytes_below(&journal) as f64 / 1e6, "MB");

    let (mut loads, mut reads) = (Vec::new(), Vec::new());
    let mut farms = Vec::new();
    let mut checks = Vec::new();
    for _ in 0..repeats {
        let (secs, (busy, loaded)) = timed(|| worked(|| SledJournal::open(&journal)?.load()));
        loads.push(secs);
        reads.push(busy);
        let (secs, farm) = worked(|| loaded.map(railyard_controller::journal::Loaded::farm));
        farms.push(secs);
        let farm = farm?;
        anyhow::ensure!(farm.builds().count() == builds, "{} builds came back", farm.builds().count());
        let (secs, broken) = worked(|| farm.check());
        checks.push(secs);
        anyhow::ensure!(broken.is_empty(), "{broken:?}");
    }
    table.row(&format!("{builds} builds: the journal, read"), median(&mut loads), "s");
    table.row("  of that, computing", median(&mut reads), "s");
    table.row(&format!("{builds} builds: the farm, made of it"), median(&mut farms), "s");
    table.row(&format!("{builds} builds: the invariants, checked"), median(&mut checks), "s");

    let mut starts = Vec::new();
    let mut resident = 0.0;
    for _ in 0..repeats {
        let (secs, controller) = timed(|| Controller::start(&data));
        let controller = controller?;
        starts.push(secs);
        resident = machine::resident_bytes(controller.pid())? as f64;
        controller.stop()?;
    }
    let what = format!("{builds} builds: a controller's start until it listens, median of {repeats}");
    table.barred(&what, median(&mut starts), "s", Bar::AtMost(2.0));
    table.row(&format!("{builds} builds: the controller's resident memory"), resident / f64::from(1 << 20), "MiB");
    Ok(())
}

/// The number of a build's first job.
fn farm_next(build: usize) -> JobId {
    JobId((build * JOBS_PER_BUILD) as u64)
}

/// All that happens to a build that succeeds.
fn history(first_job: &JobId, number: usize) -> Vec<Event> {
    let at = START.plus(number as u64 * 60_000);
    let plan =
        plans::pairs(&format!("p{}", number % 20), &format!("4799.0.0-nightly-{number}"), JOBS_PER_BUILD, SHAPES[1]);
    let build = plan.build.clone();
    let command = plans::submit(plans::with_outputs(plan), Priority::Schedule);
    let railyard_core::Command::Submit(submission) = command else { unreachable!("a submit") };
    let mut events = vec![Event::BuildAccepted {
        at,
        plan: submission.plan.into(),
        first_job: *first_job,
        by: submission.by,
        key: submission.key,
        trace: submission.trace,
        priority: submission.priority,
        request: "a".repeat(64),
    }];
    for n in 0..JOBS_PER_BUILD as u64 {
        let job = JobId(first_job.0 + n);
        let lease = LeaseId { job, attempt: 1 };
        events.push(Event::JobLeased { at: at.plus(n * 1000), lease, worker: plans::worker_name(n as usize) });
        events.push(Event::AttemptEnded {
            at: at.plus(n * 1000 + 900),
            lease,
            outcome: Outcome::succeeded(),
            artifacts: plans::artifacts(job),
            image: None,
            log_bytes: 123_456,
            next: Next::End,
        });
    }
    events.push(Event::BuildEnded { at: at.plus(50_000), build, error: None });
    events
}

fn bytes_below(dir: &Path) -> u64 {
    let files = railyard_tests::farm::files_below(dir);
    files
        .iter()
        .filter_map(|path| std::fs::metadata(path).ok())
        .filter(|meta| meta.is_file())
        .map(|meta| meta.len())
        .sum()
}
