//! From a submit to the order at an idle worker, over gRPC with mutual TLS and the durable journal.

use crate::child::Controller;
use crate::machine::{self, percentile};
use crate::plans;
use crate::sim::{Crew, Submitter, runtime};
use crate::table::{Bar, Table};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// One job.
pub const PIPELINE: &str = "name: one\nplatforms: [linux/amd64]\nsteps:\n  - name: job\n    image: none\n    script: \"true\"\n    \
                            resources: { cpu: 1, memory: 1GiB, disk: 1GiB }\n";

pub fn measure(quick: bool, table: &mut Table) -> anyhow::Result<()> {
    let submits = if quick { 100 } else { 500 };
    let dir = machine::workspace()?;
    let secs = machine::fdatasync_secs(dir.path(), 4 << 10, 50)?;
    table.row("append 4 KiB to a file and fdatasync it, median", secs * 1e3, "ms");
    let controller = Controller::start(&dir.path().join("controller"))?;
    let (mut leased, mut acked) = runtime(1)?.block_on(drive(&controller, submits))?;
    controller.stop()?;
    table.row(&format!("submit to its answer, p50 of {submits}"), percentile(&mut acked, 50.0), "ms");
    table.row(&format!("submit to its answer, p99 of {submits}"), percentile(&mut acked, 99.0), "ms");
    table.row(&format!("submit to the order at the worker, p50 of {submits}"), percentile(&mut leased, 50.0), "ms");
    let p99 = percentile(&mut leased, 99.0);
    table.barred(&format!("submit to the order at the worker, p99 of {submits}"), p99, "ms", Bar::AtMost(20.0));
    Ok(())
}

/// Milliseconds from each submit to the order, and to the submit's answer.
async fn drive(controller: &Controller, submits: usize) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let authority = controller.authority()?;
    let mut submitter = Submitter::new(&controller.operator_endpoint(&authority)?)?;
    let (tell, mut orders) = mpsc::unbounded_channel::<Duration>();
    let crew = Crew {
        // The measurement ends before those who tell do.
        on_order: Arc::new(move |_| {
            let _ = tell.send(machine::now());
        }),
        on_reported: Arc::new(|| ()),
        capacity: plans::slots(4),
        stop: CancellationToken::new(),
    };
    let name = plans::worker_name(0);
    crew.connect(&controller.worker_endpoint(&authority, &name)?, &name).await?;
    let (mut leased, mut acked) = (Vec::new(), Vec::new());
    // The first ones pay for the connection.
    let warm_up = 10;
    for n in 0..submits + warm_up {
        let begun = machine::now();
        let build = submitter.submit(PIPELINE, &format!("v{n}")).await?;
        let answered = machine::now();
        let ordered = orders.recv().await.unwrap_or_default();
        if n >= warm_up {
            acked.push((answered - begun).as_secs_f64() * 1e3);
            leased.push(ordered.saturating_sub(begun).as_secs_f64() * 1e3);
        }
        submitter.ended(&build).await?;
    }
    crew.stop.cancel();
    Ok((leased, acked))
}
