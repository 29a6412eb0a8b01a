//! Durable cycles over gRPC with mutual TLS: a controller in a process of its own, 64 simulated workers with a connection each.
//!
//! The workers' side runs in the bench's own process and takes its part of the same processors; the row beside the rate says how
//! much each side used.

use crate::child::Controller;
use crate::machine::{self, median};
use crate::plans;
use crate::sim::{Crew, Submitter, runtime};
use crate::table::{Bar, Table};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

const WORKERS: usize = 64;
const STEPS: usize = 5;
const VARIANTS: usize = 100;

struct Run {
    cycles_per_sec: f64,
    controller_cpus: f64,
    workers_cpus: f64,
}

pub fn measure(quick: bool, table: &mut Table) -> anyhow::Result<()> {
    let (builds, repeats) = if quick { (30, 1) } else { (80, 5) };
    for (slots, bar) in [(8, Some(Bar::AtLeast(5_000.0))), (1, None)] {
        let mut runs = Vec::new();
        for _ in 0..repeats {
            runs.push(run(slots, builds)?);
        }
        let middle = |figure: fn(&Run) -> f64| median(&mut runs.iter().map(figure).collect::<Vec<_>>());
        let what = format!("durable cycles over mTLS, {WORKERS} workers of {slots}, median of {repeats}");
        match bar {
            Some(bar) => table.barred(&what, middle(|run| run.cycles_per_sec), "/s", bar),
            None => table.row(&what, middle(|run| run.cycles_per_sec), "/s"),
        }
        table.row("  the controller used", middle(|run| run.controller_cpus), "cpus");
        table.row("  the simulated workers used", middle(|run| run.workers_cpus), "cpus");
    }
    Ok(())
}

fn run(slots: u32, builds: usize) -> anyhow::Result<Run> {
    let dir = machine::workspace()?;
    let controller = Controller::start(&dir.path().join("controller"))?;
    let run = runtime(2)?.block_on(drive(&controller, slots, builds))?;
    controller.stop()?;
    Ok(run)
}

async fn drive(controller: &Controller, slots: u32, builds: usize) -> anyhow::Result<Run> {
    let authority = controller.authority()?;
    let mut submitter = Submitter::new(&controller.operator_endpoint(&authority)?)?;
    let pipeline = pipeline();
    for n in 0..builds {
        submitter.submit(&pipeline, &format!("v{n}")).await?;
    }
    let jobs = builds * STEPS * VARIANTS;
    let (first, last) = (jobs / 5, jobs - jobs / 20);
    let (count, tell) = (AtomicUsize::new(0), Arc::new(Notify::new()));
    let (begun, done, over) = (tell.clone(), Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (ended, all) = (done.clone(), over.clone());
    let crew = Crew {
        capacity: plans::slots(slots),
        on_order: Arc::new(|_| ()),
        on_reported: Arc::new(move || match count.fetch_add(1, Ordering::Relaxed) + 1 {
            reported if reported == first => begun.notify_one(),
            reported if reported == last => ended.notify_one(),
            reported if reported == jobs => all.notify_one(),
            _ => {}
        }),
        stop: CancellationToken::new(),
    };
    let names: Vec<_> = (0..WORKERS).map(plans::worker_name).collect();
    let endpoints = names.iter().map(|name| controller.worker_endpoint(&authority, name));
    let endpoints = endpoints.collect::<anyhow::Result<Vec<_>>>()?;
    futures_util::future::try_join_all(names.iter().zip(&endpoints).map(|(name, at)| crew.connect(at, name))).await?;
    let (own, theirs) = (std::process::id(), controller.pid());
    // The middle, when all are connected and there is enough to do for everybody.
    tell.notified().await;
    let begun = machine::now();
    let (own_before, theirs_before) = (machine::cpu_secs(own)?, machine::cpu_secs(theirs)?);
    done.notified().await;
    let secs = (machine::now() - begun).as_secs_f64();
    let run = Run {
        cycles_per_sec: (last - first) as f64 / secs,
        controller_cpus: (machine::cpu_secs(theirs)? - theirs_before) / secs,
        workers_cpus: (machine::cpu_secs(own)? - own_before) / secs,
    };
    over.notified().await;
    crew.stop.cancel();
    Ok(run)
}

/// Many jobs without inputs and outputs.
fn pipeline() -> String {
    let numbers: Vec<String> = (0..VARIANTS).map(|n| n.to_string()).collect();
    let mut text = "name: bench\nplatforms: [linux/amd64]\nsteps:\n".to_owned();
    for step in 0..STEPS {
        let numbers = numbers.join(", ");
        writeln!(
            text,
            "  - name: step-{step}\n    matrix: {{ n: [{numbers}] }}\n    image: none\n    script: \"true {{{{ matrix.n }}}}\"\n    \
             resources: {{ cpu: 1, memory: 1GiB, disk: 1GiB }}"
        )
        .expect("a string takes text");
    }
    text
}
