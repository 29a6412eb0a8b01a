//! From a submit to the start of the container: a real worker, a real engine, the image local.

use crate::child::{Controller, Worker};
use crate::machine::{self, percentile};
use crate::plans;
use crate::sim::{Submitter, runtime};
use crate::table::{Bar, Table};
use anyhow::Context as _;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_tests::engine::Engine;
use railyard_tests::image;
use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

pub fn measure(quick: bool, table: &mut Table) -> anyhow::Result<()> {
    let submits = if quick { 10 } else { 100 };
    let engine = Engine::shared();
    let reference = format!("railyard-bench-{}:local", railyard_tests::unique());
    image::busybox(&engine, &reference);
    let measured = with_image(&engine, &reference, submits);
    engine.docker(&["image", "rm", "--force", &reference]);
    let mut started = measured?;
    table.row(&format!("submit to the container's start, p50 of {submits}"), percentile(&mut started, 50.0), "ms");
    let p99 = percentile(&mut started, 99.0);
    table.barred(&format!("submit to the container's start, p99 of {submits}"), p99, "ms", Bar::AtMost(300.0));
    let mut plain = plain_starts(&engine, &reference, submits.min(20))?;
    table.row("the engine's own: create and start a container, p50", percentile(&mut plain, 50.0), "ms");
    Ok(())
}

fn with_image(engine: &Engine, reference: &str, submits: usize) -> anyhow::Result<Vec<f64>> {
    let dir = machine::workspace()?;
    let controller = Controller::start(&dir.path().join("controller"))?;
    let authority = controller.authority()?;
    let name = plans::worker_name(0);
    let pair = controller.worker_endpoint(&authority, &name)?.identity.context("an identity")?;
    let pki = dir.path().join("pki");
    pair.write(&pki, name.as_str())?;
    std::fs::write(pki.join("ca.pem"), authority.ca_pem())?;
    let config = dir.path().join("worker.toml");
    let text = format!(
        "controller = \"{url}\"\nname = \"{name}\"\nca = \"{pki}/ca.pem\"\ncert = \"{pki}/{name}.pem\"\n\
         key = \"{pki}/{name}.key\"\ndata_dir = \"{data}\"\ndocker_socket = \"{socket}\"\n",
        url = controller.url,
        pki = pki.display(),
        data = dir.path().join("worker").display(),
        socket = engine.socket().display(),
    );
    std::fs::write(&config, text)?;
    let worker = Worker::start(&config)?;
    let runtime = runtime(1)?;
    let started = runtime.block_on(drive(&controller, name.as_str(), engine, reference, submits));
    worker.stop()?;
    controller.stop()?;
    started
}

/// Milliseconds from each submit to the start of its container, by the engine's own clock, which is this machine's.
async fn drive(
    controller: &Controller,
    worker: &str,
    engine: &Engine,
    reference: &str,
    submits: usize,
) -> anyhow::Result<Vec<f64>> {
    let authority = controller.authority()?;
    let mut submitter = Submitter::new(&controller.operator_endpoint(&authority)?)?;
    let pipeline = crate::latency::PIPELINE.replace("image: none", &format!("image: {reference}"));
    let pipeline = pipeline.replace("memory: 1GiB, disk: 1GiB", "memory: 64MiB, disk: 64MiB");
    // The first one waits for the worker.
    let warm_up = submitter.submit(&pipeline, "warm-up").await?;
    submitter.ended(&warm_up).await?;
    let mut events = Starts::listen(engine, &format!("label=railyard.worker={worker}"))?;
    let mut started = Vec::new();
    for n in 0..submits {
        let begun = SystemClock.now();
        let build = submitter.submit(&pipeline, &format!("v{n}")).await?;
        submitter.ended(&build).await?;
        // The build has ended, so its container's start has been told.
        started.push(events.of(&build)? - begun.0 as f64);
    }
    Ok(started)
}

/// When, and for which build.
const FORMAT: &str = "{{.TimeNano}} {{index .Actor.Attributes \"railyard.build\"}}";

/// The engine's word on every start of a container.
struct Starts {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Starts {
    fn listen(engine: &Engine, filter: &str) -> anyhow::Result<Self> {
        let mut child = Command::new("docker")
            .arg("--host")
            .arg(format!("unix://{}", engine.socket().display()))
            .args(["events", "--filter", "event=start", "--filter", filter, "--format", FORMAT])
            // From now on, though the client may need a moment to connect.
            .args(["--since", &(SystemClock.now().0 / 1000).to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stdout.take().context("the client's output")?).lines();
        Ok(Self { child, lines })
    }

    /// When the container of that build started: milliseconds since the epoch.
    fn of(&mut self, build: &str) -> anyhow::Result<f64> {
        loop {
            let line = self.lines.next().context("the engine says nothing more")??;
            if let Some((nanos, started)) = line.split_once(' ')
                && started.trim() == build
            {
                return Ok(nanos.parse::<f64>()? / 1e6);
            }
        }
    }
}

impl Drop for Starts {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the engine alone takes, asked by its own client: the floor.
fn plain_starts(engine: &Engine, reference: &str, times: usize) -> anyhow::Result<Vec<f64>> {
    image::busybox(engine, reference);
    let mut figures = Vec::new();
    for _ in 0..times {
        let begun = machine::now();
        let run = engine.docker(&["run", "--detach", "--rm", reference, "true"]);
        figures.push((machine::now() - begun).as_secs_f64() * 1e3);
        anyhow::ensure!(run.status.success(), "docker run: {}", String::from_utf8_lossy(&run.stderr));
    }
    engine.docker(&["image", "rm", "--force", reference]);
    Ok(figures)
}
