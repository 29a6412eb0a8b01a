//! Settings that are read again while the controller runs: those of retention, at SIGHUP.

use crate::audit::{Act, Audit, Entry};
use crate::config::ControllerConfig;
use crate::sweep::Settings;
use anyhow::Context as _;
use railyard_service::{config, error_chain, task};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The settings of retention, now and whenever they change.
///
/// # Errors
/// For rules that make no sense; if signals cannot be listened to.
pub fn watch(
    settings: &ControllerConfig,
    audit: &Audit,
    shutdown: &CancellationToken,
) -> anyhow::Result<watch::Receiver<Arc<Settings>>> {
    let now =
        Settings::new(&settings.sweep, &settings.retention).context("the settings of retention cannot be meant")?;
    let (tx, rx) = watch::channel(Arc::new(now));
    if let Some(file) = settings.file.clone() {
        let hangups = signal(SignalKind::hangup()).context("cannot listen to SIGHUP")?;
        let (audit, shutdown) = (audit.clone(), shutdown.clone());
        task::spawn("reload", async move { shutdown.run_until_cancelled(reload(file, hangups, audit, tx)).await });
    }
    Ok(rx)
}

async fn reload(file: PathBuf, mut hangups: Signal, audit: Audit, settings: watch::Sender<Arc<Settings>>) {
    while hangups.recv().await.is_some() {
        let new = match read(&file) {
            Ok(new) => new,
            Err(why) => {
                tracing::error!(%why, "the settings are not read again; those of before hold");
                continue;
            }
        };
        let is_new = settings.send_if_modified(|old| {
            let is_new = **old != new;
            if is_new {
                *old = Arc::new(new.clone());
            }
            is_new
        });
        tracing::info!(file = %file.display(), changed = is_new, "the settings of retention are read again; the others need a restart");
        if is_new {
            let entry =
                Entry::new(Act::PolicyChange).target("retention").detail("rules", new.policy.rules.len().to_string());
            if let Err(error) = audit.record(entry).await {
                tracing::error!(error = error_chain(&error), "a change of the settings is not recorded yet");
            }
        }
    }
}

fn read(file: &Path) -> Result<Settings, String> {
    let read: ControllerConfig = config::load(file).map_err(|error| error_chain(&error))?;
    Settings::new(&read.sweep, &read.retention).map_err(|error| format!("{}: {error}", file.display()))
}
