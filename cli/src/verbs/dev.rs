//! `dev`: a whole farm in one process. Controller with embedded cache, one worker, certificates for all; no questions asked.

use super::serve::{failed, stop_on_signal};
use crate::args::DevArgs;
use crate::failure::Failure;
use crate::render::Console;
use crate::settings::DEV_CONFIG;
use railyard_common::id::WorkerName;
use railyard_common::rights::Right;
use railyard_controller::cache::{CacheConfig, EmbeddedConfig};
use railyard_controller::policy::PolicyRule;
use railyard_controller::{ControllerConfig, Ready};
use railyard_service::task;
use railyard_service::tls::{Identity, Role};
use railyard_worker::WorkerConfig;
use railyard_worker::network::Unguarded;
use railyard_worker::network::peer::{Allowed, Network};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// The name of the one worker.
const WORKER: &str = "dev";

/// A service of this process, and how to stop it.
struct Service {
    name: &'static str,
    stop: CancellationToken,
    /// `None` once its end has been told.
    running: Option<JoinHandle<anyhow::Result<()>>>,
}

/// The name of the one rule.
const POLICY: &str = "railyard dev";

/// What steps may have on this machine: to boot what they have built, and everything if its user wants it so.
fn allowed(args: &DevArgs) -> Vec<Right> {
    let kvm = Right::Device("/dev/kvm".to_owned());
    if args.allow_privileged { vec![kvm, Right::Privileged] } else { vec![kvm] }
}

/// Runs the farm until it is told to stop.
///
/// # Errors
/// [`Failure::Failed`] if controller or worker cannot start or go on.
pub async fn dev(args: &DevArgs, console: &Console) -> Result<(), Failure> {
    let data = absolute(&args.data)?;
    // Whoever reaches a farm on the loopback may read what it built: `curl` needs no certificate.
    let cache = EmbeddedConfig { dir: data.join("cache"), public_read: args.listen.ip().is_loopback(), key_file: None };
    let cache = Some(CacheConfig::Embedded(cache));
    let pipelines = vec!["*".to_owned()];
    let policy = vec![PolicyRule {
        name: POLICY.to_owned(),
        pipelines,
        allow: allowed(args),
        reserve: Vec::new(),
        untrusted: false,
    }];
    let config = ControllerConfig { listen: args.listen, cache, policy, ..ControllerConfig::new(data.clone()) };
    let stop = stop_on_signal()?;

    let (tell_ready, ready) = oneshot::channel();
    let controller_stop = CancellationToken::new();
    let run = railyard_controller::run(config.clone(), controller_stop.clone(), tell_ready);
    let mut controller = Service::new("controller", controller_stop, task::spawn("controller", run));
    let Ok(ready) = ready.await else { return controller.end().await };

    let worker_stop = CancellationToken::new();
    let run = railyard_worker::run(worker_config(args, &config, &ready)?, worker_stop.clone());
    let mut worker = Service::new("worker", worker_stop, task::spawn("worker", run));
    console.print(&banner(&ready, &data, &args.data))?;

    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        ended = worker.wait() => ended,
        ended = controller.wait() => ended,
    };
    // The worker goes first: it hands its jobs back to a controller that still listens.
    let worker_ended = worker.end().await;
    let controller_ended = controller.end().await;
    ended.and(worker_ended).and(controller_ended)
}

impl Service {
    fn new(name: &'static str, stop: CancellationToken, running: JoinHandle<anyhow::Result<()>>) -> Self {
        Self { name, stop, running: Some(running) }
    }

    /// Waits for the end that should not come by itself.
    async fn wait(&mut self) -> Result<(), Failure> {
        let Some(running) = &mut self.running else { return std::future::pending().await };
        let ended = running.await;
        self.running = None;
        self.verdict(ended)?;
        Err(Failure::Failed(format!("the {} stopped by itself", self.name)))
    }

    /// Stops it; tells how it ended, unless that has been told.
    async fn end(&mut self) -> Result<(), Failure> {
        self.stop.cancel();
        match self.running.take() {
            Some(running) => self.verdict(running.await),
            None => Ok(()),
        }
    }

    fn verdict(&self, ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> Result<(), Failure> {
        match ended {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(failed(self.name, &error)),
            Err(error) => Err(Failure::Failed(format!("the {} stopped: {error}", self.name))),
        }
    }
}

/// Bind mounts need absolute paths.
fn absolute(data: &Path) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(data)
        .and_then(|()| data.canonicalize())
        .map_err(|error| Failure::local(format!("use the data directory {}", data.display()), error))
}

fn worker_config(args: &DevArgs, controller: &ControllerConfig, ready: &Ready) -> Result<WorkerConfig, Failure> {
    let cannot = |error: anyhow::Error| Failure::Failed(format!("cannot issue the worker's certificate: {error:#}"));
    let pki = controller.data_dir.join("pki");
    let identity = Identity::new(Role::Worker, WORKER).map_err(|error| cannot(error.into()))?;
    railyard_controller::issue(controller, &identity, &pki).map_err(cannot)?;
    let name: WorkerName = WORKER.parse().map_err(|error: railyard_common::id::BadId| cannot(error.into()))?;
    let mut config = WorkerConfig::new(&ready.url, name, &pki, controller.data_dir.join("worker"));
    config.capacity.slots = args.slots;
    config.capacity.cpu_millis = args.cpu;
    config.capacity.memory = args.memory;
    config.capacity.disk = args.disk;
    config.allow_privileged = args.allow_privileged;
    config.allow = allowed(args);
    // Whoever is not root of this machine has no packet filter, and builds on it all the same.
    config.network.unguarded = Unguarded::Allow;
    // A registry on one's own machine is what developers have.
    config.network.allow.push(Allowed { network: Network::host(Ipv4Addr::LOCALHOST), port: None });
    Ok(config)
}

fn banner(ready: &Ready, data: &Path, given: &Path) -> String {
    let here = Path::new(DEV_CONFIG).parent() == Some(given);
    let how = if here { String::new() } else { format!(" --config {}", ready.client_settings.display()) };
    format!(
        "railyard is running; Ctrl-C stops it\n  \
           controller  {}\n  \
           cache       {}\n  \
           data        {}\n\
         Next, in another terminal{}:\n  \
           railyard submit FILE --wait{how}\n",
        ready.url,
        ready.cache_url,
        data.display(),
        if here { " in this directory" } else { "" },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_command_can_be_typed_as_it_stands() {
        let ready = Ready {
            url: "https://127.0.0.1:7411".to_owned(),
            cache_url: "https://127.0.0.1:7411/cache".to_owned(),
            client_settings: "/d/client.toml".into(),
        };
        let here = banner(&ready, Path::new("/x/railyard-data"), Path::new("railyard-data"));
        assert!(here.ends_with("in this directory:\n  railyard submit FILE --wait\n"), "{here}");
        let elsewhere = banner(&ready, Path::new("/d"), Path::new("/d"));
        assert!(elsewhere.ends_with("railyard submit FILE --wait --config /d/client.toml\n"), "{elsewhere}");
    }
}
