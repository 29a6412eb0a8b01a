//! Settings that are read again while the controller runs, at SIGHUP: what pipelines may have, and those of retention.

use crate::audit::Audit;
use crate::config::{ControllerConfig, UntrustedConfig};
use crate::policy::Policy;
use crate::policy_change::{self, Part};
use crate::sweep::Settings;
use anyhow::Context as _;
use railyard_service::{config, error_chain, task};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What builds that are submitted now may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// By the operator's rules.
    pub policy: Policy,
    /// Untrusted builds.
    pub untrusted: UntrustedConfig,
}

/// Settings as they are now, and whenever they change.
pub struct Reloaded {
    /// Of retention.
    pub retention: watch::Receiver<Arc<Settings>>,
    /// For what is submitted.
    pub allowed: watch::Receiver<Arc<Allowed>>,
}

/// Looks after these settings until `shutdown`.
///
/// # Errors
/// For rules that make no sense; if signals cannot be listened to.
pub fn watch(settings: &ControllerConfig, audit: &Audit, shutdown: &CancellationToken) -> anyhow::Result<Reloaded> {
    let now = Read::of(settings).context("the settings of retention cannot be meant")?;
    let ((retention, settings_of), (allowed, allowed_now)) =
        (watch::channel(Arc::new(now.retention)), watch::channel(Arc::new(now.allowed)));
    if let Some(file) = settings.file.clone() {
        let hangups = signal(SignalKind::hangup()).context("cannot listen to SIGHUP")?;
        let (data_dir, shutdown) = (settings.data_dir.clone(), shutdown.clone());
        let reloader = Reloader { file, data_dir, audit: audit.clone(), retention, allowed };
        task::spawn("reload", async move { shutdown.run_until_cancelled(reloader.run(hangups)).await });
    }
    Ok(Reloaded { retention: settings_of, allowed: allowed_now })
}

/// What is read again.
struct Read {
    retention: Settings,
    allowed: Allowed,
}

impl Read {
    fn of(config: &ControllerConfig) -> Result<Self, railyard_common::retention::BadRule> {
        let retention = Settings::new(&config.sweep, &config.retention, config.cache.as_ref())?;
        let allowed = Allowed { policy: Policy::new(config.policy.clone()), untrusted: config.untrusted.clone() };
        Ok(Self { retention, allowed })
    }
}

struct Reloader {
    file: PathBuf,
    /// As it was at the start: where it is to be does not change before the next one.
    data_dir: PathBuf,
    audit: Audit,
    retention: watch::Sender<Arc<Settings>>,
    allowed: watch::Sender<Arc<Allowed>>,
}

impl Reloader {
    async fn run(self, mut hangups: Signal) {
        while hangups.recv().await.is_some() {
            let (config, new) = match read(&self.file) {
                Ok(read) => read,
                Err(why) => {
                    tracing::error!(%why, "the settings are not read again; those of before hold");
                    continue;
                }
            };
            let changed = [set(&self.retention, new.retention), set(&self.allowed, new.allowed)].contains(&true);
            tracing::info!(
                file = %self.file.display(), changed,
                "the settings of retention, policy and untrusted builds are read again; the others need a restart"
            );
            let config = ControllerConfig { data_dir: self.data_dir.clone(), ..config };
            policy_change::note(&config, &self.audit, &Part::RELOADED).await;
        }
    }
}

/// `true` if that is something else than before.
fn set<T: PartialEq>(to: &watch::Sender<Arc<T>>, new: T) -> bool {
    to.send_if_modified(|old| {
        let is_new = **old != new;
        if is_new {
            *old = Arc::new(new);
        }
        is_new
    })
}

fn read(file: &Path) -> Result<(ControllerConfig, Read), String> {
    let config: ControllerConfig = config::load(file).map_err(|error| error_chain(&error))?;
    let read = Read::of(&config).map_err(|error| format!("{}: {}", file.display(), error_chain(&error)))?;
    Ok((config, read))
}
