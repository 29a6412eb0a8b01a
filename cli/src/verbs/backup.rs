//! `controller backup` and `controller restore`.

use super::serve::controller_config;
use crate::args::{BackupArgs, ControllerArgs, FarmArgs, RestoreArgs};
use crate::failure::Failure;
use crate::farm::{Farm, chain};
use crate::render::{Console, human};
use railyard_controller::backup::{self, About, Backup, BackupError};
use railyard_service::channel;
use railyard_service::clock::{Clock as _, SystemClock};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What both say, for programs.
#[derive(Serialize)]
struct Told<'a> {
    file: &'a Path,
    #[serde(flatten)]
    about: &'a About,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved_aside: Option<&'a Path>,
}

/// Backs a controller up.
///
/// # Errors
/// [`Failure::Usage`] if it is not said whose, [`Failure::Farm`] if the running controller refuses, [`Failure::Failed`].
pub async fn backup(args: &ControllerArgs, wanted: &BackupArgs, console: &Console) -> Result<(), Failure> {
    let data_dir = data_dir(args, wanted.data_dir.as_deref())?;
    let snapshot = if backup::is_running(&data_dir) {
        let settings = FarmArgs { config: Some(data_dir.join("client.toml")), ..FarmArgs::default() };
        let farm = Farm::open(&settings).await?;
        let channel = channel::connect(farm.endpoint()).map_err(|error| Failure::Usage(chain(&error)))?;
        backup::fetch(channel).await.map_err(|error| match &error {
            BackupError::Refused(status) => farm.refused(status),
            _ => failed("back up", &error),
        })?
    } else {
        backup::offline(&data_dir).map_err(|error| failed("back up", &error))?
    };
    let made = Backup::new(snapshot, &data_dir, args.config.as_deref(), SystemClock.now());
    let made = made.and_then(|made| backup::write(&made, &wanted.to).map(|()| made));
    let about = made.map_err(|error| failed("back up", &error))?.about;
    if console.is_json() {
        return console.json(&Told { file: &wanted.to, about: &about, moved_aside: None });
    }
    console.print(&format!(
        "{} and the farm's keys are in {}; keep it where nobody else reads it\n",
        human::count(about.builds, "build"),
        wanted.to.display()
    ))
}

/// Restores a controller.
///
/// # Errors
/// [`Failure::Usage`] if it is not said where to, [`Failure::Failed`].
pub fn restore(args: &ControllerArgs, wanted: &RestoreArgs, console: &Console) -> Result<(), Failure> {
    let data_dir = data_dir(args, wanted.data_dir.as_deref())?;
    let restored = backup::restore(&wanted.from, &data_dir, wanted.force, SystemClock.now());
    let restored = restored.map_err(|error| failed("restore", &error))?;
    if console.is_json() {
        let moved_aside = restored.moved_aside.as_deref();
        return console.json(&Told { file: &wanted.from, about: &restored.about, moved_aside });
    }
    if let Some(aside) = &restored.moved_aside {
        console.note(&format!("what was there before is in {}", aside.display()));
    }
    let config = restored.about.config.as_deref().unwrap_or(Path::new("FILE"));
    console.print(&format!(
        "{} back in {}; start it with `railyard controller --config {}`\n",
        human::count(restored.about.builds, "build"),
        data_dir.display(),
        config.display()
    ))
}

fn data_dir(args: &ControllerArgs, data_dir: Option<&Path>) -> Result<PathBuf, Failure> {
    match (data_dir, &args.config) {
        (Some(dir), _) => Ok(dir.to_owned()),
        (None, Some(_)) => Ok(controller_config(args.config.as_deref())?.data_dir),
        (None, None) => {
            Err(Failure::Usage("which controller? Give --data-dir DIR or --config FILE of the controller".to_owned()))
        }
    }
}

fn failed(what: &str, error: &BackupError) -> Failure {
    let text = format!("cannot {what} the controller: {}", chain(error));
    match error {
        BackupError::NoFarm { .. } | BackupError::NotEmpty { .. } => Failure::Usage(text),
        _ => Failure::Failed(text),
    }
}
