//! `controller` and `worker`: the services, and certificates from a controller's data.

use crate::args::{CertArgs, CertRole, ControllerArgs, WorkerArgs};
use crate::failure::Failure;
use crate::farm::chain;
use crate::render::Console;
use crate::secret;
use railyard_common::id::WorkerName;
use railyard_controller::ControllerConfig;
use railyard_service::tls::{Identity, Role};
use railyard_service::{config, task};
use railyard_worker::{WorkerConfig, join};
use serde::Serialize;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Runs the controller until it is told to stop.
///
/// # Errors
/// [`Failure::Usage`] for a bad configuration, [`Failure::Failed`] if it cannot start or go on.
pub async fn controller(args: &ControllerArgs) -> Result<(), Failure> {
    let config = controller_config(args.config.as_deref())?;
    let stop = stop_on_signal()?;
    // It logs that it is ready; nobody here waits for that.
    let (ready, _) = oneshot::channel();
    railyard_controller::run(config, stop, ready).await.map_err(|error| failed("controller", &error))
}

/// Runs a worker until it is told to stop.
///
/// # Errors
/// As [`controller`].
pub async fn worker(args: &WorkerArgs) -> Result<(), Failure> {
    let config: WorkerConfig = match (&args.join, &args.controller) {
        (Some(token), Some(url)) => {
            let token = secret::read(token)?;
            let joined = join::join(url, &token, args.config.as_deref(), &args.data_dir).await;
            joined.map_err(|error| Failure::Farm(format!("this host does not join: {error:#}")))?
        }
        _ => {
            let path = args.config.clone().unwrap_or_else(|| args.data_dir.join(join::SETTINGS));
            if args.config.is_none() && !path.is_file() {
                let message = format!("there is no {}; give --config FILE, or --join TOKEN URL", path.display());
                return Err(Failure::Usage(message));
            }
            config::load(&path).map_err(|error| Failure::Usage(chain(&error)))?
        }
    };
    let stop = stop_on_signal()?;
    railyard_worker::run(config, stop).await.map_err(|error| failed("worker", &error))
}

/// A token that the first SIGINT or SIGTERM cancels. The second ends the process at once.
///
/// # Errors
/// If signals cannot be listened to.
pub fn stop_on_signal() -> Result<CancellationToken, Failure> {
    let listen = |kind| signal(kind).map_err(|error| Failure::local("listen to signals", error));
    let (mut interrupts, mut terminations) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    task::spawn("signals", async move {
        next(&mut interrupts, &mut terminations).await;
        tracing::info!("stopping; once more stops at once");
        cancelled.cancel();
        next(&mut interrupts, &mut terminations).await;
        std::process::exit(crate::failure::Exit::Interrupted as i32);
    });
    Ok(stop)
}

async fn next(interrupts: &mut Signal, terminations: &mut Signal) {
    tokio::select! {
        biased;
        _ = interrupts.recv() => {}
        _ = terminations.recv() => {}
    }
}

/// The end of a service that should not have ended.
pub fn failed(what: &str, error: &anyhow::Error) -> Failure {
    Failure::Failed(format!("the {what} stopped: {error:#}"))
}

pub(super) fn controller_config(path: Option<&Path>) -> Result<ControllerConfig, Failure> {
    let path = path.ok_or_else(|| {
        Failure::Usage("a controller needs --config FILE; `railyard dev` runs a farm without one".to_owned())
    })?;
    let mut config: ControllerConfig = config::load(path).map_err(|error| Failure::Usage(chain(&error)))?;
    config.file = Some(path.to_owned());
    Ok(config)
}

/// What `controller cert` says.
#[derive(Serialize)]
struct Issued {
    identity: String,
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

/// Issues a certificate from a controller's data, without running it.
///
/// # Errors
/// [`Failure::Usage`], [`Failure::Failed`].
pub fn issue(args: &ControllerArgs, cert: &CertArgs, console: &Console) -> Result<(), Failure> {
    let config = match (&cert.data, &args.config) {
        (Some(data), _) => ControllerConfig::new(data.clone()),
        (None, Some(_)) => controller_config(args.config.as_deref())?,
        (None, None) => {
            return Err(Failure::Usage(
                "whose certificate? Give --data DIR or --config FILE of the controller".to_owned(),
            ));
        }
    };
    // Without this a mistyped directory would become a farm of its own.
    if !config.data_dir.join("pki/ca.pem").is_file() {
        let dir = config.data_dir.display();
        return Err(Failure::Usage(format!(
            "{dir} is not the data of a controller; start the controller once, then try again"
        )));
    }
    let role = match cert.role {
        CertRole::Worker => Role::Worker,
        CertRole::Submitter => Role::Submitter,
        CertRole::Operator => Role::Operator,
        CertRole::Viewer => Role::Viewer,
    };
    if role == Role::Worker {
        cert.name.parse::<WorkerName>().map_err(|error| Failure::Usage(error.to_string()))?;
    }
    let identity = Identity::new(role, &cert.name).map_err(|error| Failure::Usage(error.to_string()))?;
    railyard_controller::issue(&config, &identity, &cert.out)
        .map_err(|error| Failure::Failed(format!("cannot issue the certificate: {error:#}")))?;
    let file = |name: &str| cert.out.join(name);
    let issued = Issued {
        identity: identity.to_string(),
        ca: file("ca.pem"),
        cert: file(&format!("{}.pem", cert.name)),
        key: file(&format!("{}.key", cert.name)),
    };
    if console.is_json() {
        return console.json(&issued);
    }
    let Issued { identity, ca, cert, key } = issued;
    console.print(&format!(
        "certificate for {identity}:\n  ca    {}\n  cert  {}\n  key   {}\n",
        ca.display(),
        cert.display(),
        key.display()
    ))
}
