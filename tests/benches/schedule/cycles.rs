//! The core with its journal, and nothing around it: durable cycles of lease and end per second.
//!
//! One thread does what the driver does: a round of everything that waits, one append with its sync, then the release. The
//! simulated workers are the bench itself: whatever the round before leased is reported as done in the next one.

use crate::machine::{self, median, timed, worked};
use crate::plans;
use crate::table::{Bar, Table};
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_controller::journal::{Journal, SledJournal};
use railyard_core::{Command, Dispatcher, Input, Output, Ticket};

const WORKERS: usize = 64;
/// As many requests as the driver takes into one round.
const BATCH_MAX: usize = 1_024;
const JOBS_PER_BUILD: usize = 20;

/// Where the time of a run went, in seconds: what only computes in processor time, what waits for the disk in real time.
#[derive(Default)]
struct Spent {
    round: f64,
    append: f64,
    /// Of `append`, what was computed and not waited for.
    encode: f64,
    release: f64,
    snapshot: f64,
}

struct Run {
    cycles_per_sec: f64,
    rounds: usize,
    spent: Spent,
}

pub fn measure(quick: bool, table: &mut Table) -> anyhow::Result<()> {
    let (builds, repeats) = if quick { (2_000, 1) } else { (6_000, 5) };
    let dir = machine::workspace()?;
    for bytes in [4 << 10, 256 << 10] {
        let secs = machine::fdatasync_secs(dir.path(), bytes, 50)?;
        table.row(&format!("append {} KiB to a file and fdatasync it, median", bytes >> 10), secs * 1e3, "ms");
    }
    for (slots, bar) in [(16, Some(Bar::AtLeast(50_000.0))), (4, None), (1, None)] {
        let builds = builds * slots as usize / 16;
        let mut runs = Vec::new();
        for _ in 0..repeats {
            runs.push(run(slots, builds)?);
        }
        runs.sort_by(|a, b| a.cycles_per_sec.total_cmp(&b.cycles_per_sec));
        let figure = median(&mut runs.iter().map(|run| run.cycles_per_sec).collect::<Vec<_>>());
        let what = format!("durable cycles, {WORKERS} workers of {slots}, median of {repeats}");
        match bar {
            Some(bar) => table.barred(&what, figure, "/s", bar),
            None => table.row(&what, figure, "/s"),
        }
        let Run { rounds, spent, .. } = &runs[runs.len() / 2];
        let each = 1e3 / *rounds as f64;
        table.row("  a round: decide and apply", spent.round * each, "ms");
        table.row("  a round: append with its sync", spent.append * each, "ms");
        table.row("  a round: of that, computing", spent.encode * each, "ms");
        table.row("  a round: release", spent.release * each, "ms");
        table.row("  a round: snapshots, spread", spent.snapshot * each, "ms");
    }
    Ok(())
}

/// The farm, as the driver drives it.
struct Drive {
    dispatcher: Dispatcher,
    journal: SledJournal,
    now: Millis,
    spent: Spent,
    rounds: usize,
}

impl Drive {
    fn round(&mut self, inputs: Vec<Input>) -> anyhow::Result<Vec<Output>> {
        self.now = self.now.plus(1);
        self.rounds += 1;
        let (now, mono) = (self.now, self.now);
        let (secs, round) = worked(|| self.dispatcher.round(now, mono, inputs));
        self.spent.round += secs;
        if !round.events().is_empty() {
            let (secs, (busy, appended)) = timed(|| worked(|| self.journal.append(round.events())));
            self.spent.append += secs;
            self.spent.encode += busy;
            appended?;
        }
        let (secs, outputs) = worked(|| self.dispatcher.release(now, mono, round));
        self.spent.release += secs;
        if self.journal.wants_snapshot() {
            let (secs, installed) = timed(|| self.journal.install(&self.dispatcher.farm().snapshot()));
            self.spent.snapshot += secs;
            installed?;
        }
        Ok(outputs)
    }
}

fn run(slots: u32, builds: usize) -> anyhow::Result<Run> {
    let dir = machine::workspace()?;
    let mut journal = SledJournal::open(&dir.path().join("journal"))?;
    let farm = journal.load()?.farm();
    let now = Millis(1_790_000_000_000);
    let dispatcher = Dispatcher::new(farm, now);
    let mut drive = Drive { dispatcher, journal, now, spent: Spent::default(), rounds: 0 };
    let command = |command| Input::Command { ticket: Ticket(0), command };
    let submit = |n: usize| {
        let priority = Priority::ALL[n % Priority::ALL.len()];
        command(plans::submit(
            plans::pairs(&format!("p{}", n % 8), &format!("v{n}"), JOBS_PER_BUILD, plans::SMALL),
            priority,
        ))
    };
    for first in (0..builds).step_by(100) {
        let _ = drive.round((first..(first + 100).min(builds)).map(submit).collect())?;
    }
    (drive.spent, drive.rounds) = (Spent::default(), 0);
    let mut waiting: Vec<Input> = (0..WORKERS)
        .map(|n| Input::Attach {
            ticket: Ticket(0),
            offer: Box::new(plans::offer(n, plans::slots(slots))),
            held: Vec::new(),
            builds: Vec::new(),
            said: None,
            disk: None,
        })
        .collect();
    let jobs = builds * JOBS_PER_BUILD;
    let mut ended = 0;
    let (secs, done) = timed(|| -> anyhow::Result<()> {
        while ended < jobs {
            anyhow::ensure!(!waiting.is_empty(), "nothing goes on, and {ended} of {jobs} jobs have ended");
            let later = waiting.split_off(waiting.len().min(BATCH_MAX));
            let outputs = drive.round(std::mem::replace(&mut waiting, later))?;
            let mut finalize = false;
            for output in outputs {
                match output {
                    Output::Order { worker, order, .. } => {
                        waiting.push(command(Command::Report(Box::new(plans::success(order.lease, worker)))));
                    }
                    Output::JobEnded(_) => ended += 1,
                    Output::Finalize => finalize = true,
                    _ => {}
                }
            }
            if finalize {
                let over = drive.dispatcher.farm().finalizing();
                let over = over.map(|build| Command::Finalized { build: build.id().clone(), error: None });
                waiting.extend(over.map(command));
            }
        }
        Ok(())
    });
    done?;
    Ok(Run { cycles_per_sec: jobs as f64 / secs, rounds: drive.rounds, spent: drive.spent })
}
