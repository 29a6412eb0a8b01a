//! Real services in processes of their own: this binary again, with the services' own code.

use anyhow::Context as _;
use railyard_common::id::WorkerName;
use railyard_controller::ControllerConfig;
use railyard_service::channel::Endpoint;
use railyard_service::tls::{Authority, CLIENT_VALIDITY_SECS, Identity, PemPair, Role};
use railyard_service::{config, task, telemetry};
use railyard_worker::WorkerConfig;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Arguments that only this bench gives to itself.
const AS_CONTROLLER: &str = "--as-controller";
const AS_WORKER: &str = "--as-worker";
/// What the controller prints in front of its URL when it listens.
const READY: &str = "ready ";

/// Runs the service that the command line asks for, if it asks for one.
pub fn is_child() -> anyhow::Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [AS_CONTROLLER, data] => serve("railyard-controller", run_controller(data.into()))?,
        [AS_WORKER, path] => serve("railyard-worker", run_worker(path.into()))?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn serve(name: &'static str, service: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let telemetry = telemetry::init(name, "warn")?;
        let ended = service.await;
        telemetry.shutdown().await;
        ended
    });
    runtime.shutdown_background();
    ended
}

async fn run_controller(data: PathBuf) -> anyhow::Result<()> {
    let listen = ([127, 0, 0, 1], 0).into();
    let config = ControllerConfig { listen, ..ControllerConfig::new(data) };
    let (tell, ready) = oneshot::channel();
    task::spawn("ready", async move {
        // The controller that does not start says why itself.
        if let Ok(railyard_controller::Ready { url, .. }) = ready.await {
            println!("{READY}{url}");
        }
    });
    railyard_controller::run(config, stop_on_sigterm()?, tell).await
}

async fn run_worker(path: PathBuf) -> anyhow::Result<()> {
    let config: WorkerConfig = config::load(&path)?;
    railyard_worker::run(config, stop_on_sigterm()?).await
}

fn stop_on_sigterm() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (stop, mut terminations) = (CancellationToken::new(), signal(SignalKind::terminate())?);
    let cancelled = stop.clone();
    task::spawn("signals", async move {
        terminations.recv().await;
        cancelled.cancel();
    });
    Ok(stop)
}

/// A running controller.
pub struct Controller {
    child: Child,
    data: PathBuf,
    pub url: String,
}

impl Controller {
    /// Starts one, and returns when it listens.
    pub fn start(data: &Path) -> anyhow::Result<Self> {
        let child =
            Command::new(std::env::current_exe()?).arg(AS_CONTROLLER).arg(data).stdout(Stdio::piped()).spawn()?;
        let mut controller = Self { child, data: data.to_owned(), url: String::new() };
        let stdout = controller.child.stdout.take().context("the controller's output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let url = line.trim().strip_prefix(READY).context("the controller does not start; see its words above")?;
        controller.url = url.to_owned();
        Ok(controller)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) -> anyhow::Result<()> {
        terminate(&self.child)?;
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "the controller ended with {status}");
        Ok(())
    }

    /// The way to it for somebody.
    pub fn endpoint(&self, identity: PemPair, ca_pem: &str) -> Endpoint {
        Endpoint { url: self.url.clone(), ca_pem: ca_pem.to_owned(), identity: Some(identity) }
    }

    /// The farm's authority: the bench hands out the certificates itself.
    pub fn authority(&self) -> anyhow::Result<Authority> {
        Ok(Authority::open_or_create(&self.data.join("pki"), "railyard")?)
    }

    /// The way to it for a worker.
    pub fn worker_endpoint(&self, authority: &Authority, name: &WorkerName) -> anyhow::Result<Endpoint> {
        let identity = Identity::new(Role::Worker, name.as_str())?;
        Ok(self.endpoint(authority.issue_client(&identity, CLIENT_VALIDITY_SECS)?, authority.ca_pem()))
    }

    /// The way to it for an operator.
    pub fn operator_endpoint(&self, authority: &Authority) -> anyhow::Result<Endpoint> {
        let identity = Identity::new(Role::Operator, "bench")?;
        Ok(self.endpoint(authority.issue_client(&identity, CLIENT_VALIDITY_SECS)?, authority.ca_pem()))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A running worker with a real engine.
pub struct Worker(Child);

impl Worker {
    /// Starts one by its configuration file.
    pub fn start(config: &Path) -> anyhow::Result<Self> {
        Ok(Self(Command::new(std::env::current_exe()?).arg(AS_WORKER).arg(config).spawn()?))
    }

    /// Asks it to stop, and waits until it has.
    pub fn stop(mut self) -> anyhow::Result<()> {
        terminate(&self.0)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn terminate(child: &Child) -> anyhow::Result<()> {
    use nix::sys::signal::{Signal, kill};
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
    Ok(kill(pid, Signal::SIGTERM)?)
}
