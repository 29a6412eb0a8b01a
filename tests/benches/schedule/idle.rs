//! Ten thousand workers that are connected and have nothing to do: a TCP connection with mutual TLS, a stream and heartbeats for
//! each, from this process to the controller's.

use crate::child::Controller;
use crate::machine;
use crate::plans;
use crate::sim::{Crew, runtime};
use crate::table::{Bar, Table};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections that are being made at a time.
const CONNECTING_MAX: usize = 64;

pub fn measure(quick: bool, table: &mut Table) -> anyhow::Result<()> {
    let (workers, watched) = if quick { (1_000, 10) } else { (10_000, 30) };
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    anyhow::ensure!(most > workers as u64 + 500, "{workers} connections need as many files, and the limit is {most}");
    // The controller inherits it.
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let dir = machine::workspace()?;
    let controller = Controller::start(&dir.path().join("controller"))?;
    let empty = machine::resident_bytes(controller.pid())? as f64;
    runtime(machine::processors())?.block_on(drive(&controller, workers, watched, empty, table))?;
    controller.stop()
}

async fn drive(
    controller: &Controller,
    workers: usize,
    watched: u64,
    empty: f64,
    table: &mut Table,
) -> anyhow::Result<()> {
    const MIB: f64 = (1 << 20) as f64;
    let crew = Crew::idle(plans::slots(8));
    let begun = machine::now();
    connect(&crew, controller, workers).await?;
    table.row(&format!("{workers} workers: connecting all"), (machine::now() - begun).as_secs_f64(), "s");
    let cpu = machine::cpu_secs(controller.pid())?;
    tokio::time::sleep(Duration::from_secs(watched)).await;
    let used = (machine::cpu_secs(controller.pid())? - cpu) / watched as f64;
    let resident = machine::resident_bytes(controller.pid())? as f64;
    let what = format!("{workers} idle workers: the controller's resident memory");
    table.barred(&what, resident / MIB, "MiB", Bar::AtMost(1024.0));
    table.row("  for each worker", (resident - empty) / workers as f64 / 1024.0, "KiB");
    table.row(&format!("{workers} idle workers: the controller uses"), used, "cpus");
    crew.stop.cancel();
    Ok(())
}

async fn connect(crew: &Crew, controller: &Controller, workers: usize) -> anyhow::Result<()> {
    let authority = Arc::new(controller.authority()?);
    let turns = Arc::new(Semaphore::new(CONNECTING_MAX));
    let mut connecting = JoinSet::new();
    for n in 0..workers {
        let turn = turns.clone().acquire_owned().await?;
        let name = plans::worker_name(n);
        let endpoint = controller.worker_endpoint(&authority, &name)?;
        let crew = crew.clone();
        connecting.spawn(async move {
            let connected = crew.connect(&endpoint, &name).await;
            drop(turn);
            connected
        });
    }
    while let Some(connected) = connecting.join_next().await {
        connected??;
    }
    Ok(())
}
