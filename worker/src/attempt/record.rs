//! What an attempt leaves to the worker's next process, should this one die: enough to go on where it was.
//!
//! Four small files in the attempt's directory: the order as it came; the stage, replaced whole whenever the attempt
//! enters another; when the lease was last confirmed, written over in place; and by what to know the engine again that hears
//! the container.
//!
//! **Invariant:** what is on the disk about the lease may be too early, and never too late: a container that is taken up
//! again is stopped in time. Nothing is flushed to the disk: a machine that dies takes the containers along, and another
//! boot of the kernel finds nothing that it would resume.

use super::dirs::JobDir;
use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::images::make::Made;
use crate::workshop::Workshop;
use prost::Message as _;
use railyard_common::id::WorkerName;
use railyard_common::order::Order;
use railyard_common::outcome::Outcome;
use railyard_proto::v1;
use railyard_service::convert::{BadMessage, FromProto as _, ToProto as _};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// The version of these files.
const VERSION: u32 = 2;

/// The oldest that is understood: it knew no stage of packing, and an image that was on its way then is made anew by another
/// attempt.
const OLDEST: u32 = 1;

/// Where the kernel tells its boot.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Digits of the file that says when the lease was confirmed: always as many, so that one write replaces it.
const CONFIRMED_DIGITS: usize = 20;

/// How far an attempt has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Stage {
    /// It fetches, or its container was made and not started: all of that is done again.
    Fetch,
    /// Its container was started, or was about to be.
    Run(RunStage),
    /// Its script has ended well, and its container becomes an image: if that was not finished, it is done again.
    Pack {
        /// The engine's name for the image that the container began with.
        image: String,
    },
    /// What it made is on its way.
    Upload {
        /// The image that was made of its container. What belongs to it lies in the attempt's directory.
        #[serde(alias = "committed")]
        made: Option<Made>,
    },
    /// It is over, its log is ended, and the report lies in a file.
    Report,
}

impl Stage {
    /// The engine's name for the image that the attempt's container began with, if that is still needed.
    pub fn image(&self) -> Option<&str> {
        match self {
            Self::Run(stage) => Some(&stage.image),
            Self::Pack { image } => Some(image),
            Self::Upload { made } => made.as_ref().and_then(Made::base),
            Self::Fetch | Self::Report => None,
        }
    }
}

/// What must be known of a container that runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunStage {
    /// The engine's name for the image.
    pub image: String,
    /// When it was started, on the clock of the kernel's boot: its timeout counts from then.
    pub started_millis: u64,
    /// It is being stopped, and this is why.
    pub ending: Option<Outcome>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    version: u32,
    worker: WorkerName,
    kernel_boot: String,
    at: Stage,
}

/// What was found of an attempt.
#[derive(Debug)]
pub struct Left {
    /// What it is to do.
    pub order: Order,
    /// How far it had come.
    pub stage: Stage,
    /// When its lease was last confirmed, on the clock of the kernel's boot.
    pub confirmed_at: Duration,
}

/// Why an attempt cannot be taken up again.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A file is missing or cannot be read.
    #[error("{0} cannot be read: {1}")]
    Unreadable(&'static str, io::Error),
    /// A file makes no sense.
    #[error("{0} makes no sense: {1}")]
    Senseless(&'static str, String),
    /// The kernel has booted since.
    #[error("the machine has booted since")]
    OtherBoot,
    /// The data directory was another worker's.
    #[error("it was worker {0}'s")]
    OtherWorker(WorkerName),
}

/// The files of one attempt.
#[derive(Clone, Debug)]
pub struct Record {
    dir: JobDir,
    worker: WorkerName,
    kernel_boot: String,
}

impl Record {
    /// The record in `dir`.
    pub fn new(shop: &Workshop, dir: &JobDir) -> Self {
        Self { dir: dir.clone(), worker: shop.config.name.clone(), kernel_boot: kernel_boot() }
    }

    /// A record of nobody's.
    #[cfg(test)]
    pub(super) fn of_test(dir: &JobDir) -> Self {
        Self { dir: dir.clone(), worker: "w".parse().expect("a name"), kernel_boot: kernel_boot() }
    }

    /// Begins the record of a new attempt.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn begin(&self, order: &Order, confirmed_at: Duration) -> Result<(), DiskError> {
        let (dir, bytes) = (self.dir.clone(), order.to_proto().encode_to_vec());
        blocking(move || {
            let order = dir.order();
            fs::write(&order, bytes).map_err(DiskError::at("write", &order))?;
            write_confirmed(&dir.confirmed(), confirmed_at)
        })
        .await?;
        // The last: without it there is no record.
        self.write(&Stage::Fetch).await
    }

    /// The attempt is there now. If that cannot be written, the next process goes on from an earlier stage, or gives the
    /// attempt up; this one need not.
    pub async fn enter(&self, stage: &Stage) {
        if let Err(error) = self.write(stage).await {
            tracing::warn!(error = railyard_service::error_chain(&error), "a restart may lose an attempt");
        }
    }

    async fn write(&self, stage: &Stage) -> Result<(), DiskError> {
        let file = StateFile {
            version: VERSION,
            worker: self.worker.clone(),
            kernel_boot: self.kernel_boot.clone(),
            at: stage.clone(),
        };
        let path = self.dir.state();
        blocking(move || {
            let text = serde_json::to_vec_pretty(&file).map_err(io::Error::other);
            text.and_then(|text| replace(&path, &text)).map_err(DiskError::at("write", &path))
        })
        .await
    }

    /// The attempt is over, and this is to be reported.
    pub async fn conclude(&self, report: &v1::ReportRequest) {
        let (path, bytes) = (self.dir.report(), report.encode_to_vec());
        match blocking(move || replace(&path, &bytes).map_err(DiskError::at("write", &path))).await {
            Ok(()) => self.enter(&Stage::Report).await,
            Err(error) => tracing::warn!(error = railyard_service::error_chain(&error), "a restart may lose a report"),
        }
    }

    /// The report that was kept.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn report(&self) -> Result<v1::ReportRequest, DiskError> {
        let path = self.dir.report();
        blocking(move || {
            let bytes = fs::read(&path);
            let report = bytes.and_then(|bytes| v1::ReportRequest::decode(&*bytes).map_err(io::Error::other));
            report.map_err(DiskError::at("read", &path))
        })
        .await
    }

    /// The engine that hears the container was given this. What cannot be written stays as it was, and then no engine knows it.
    pub async fn keep_mark(&self, mark: &str) {
        let (path, mark) = (self.dir.mark(), mark.to_owned());
        if let Err(error) = blocking(move || replace(&path, mark.as_bytes())).await {
            tracing::warn!(%error, "after a restart a log may say that something is missing though nothing is");
        }
    }

    /// What the engine was given.
    pub async fn mark(&self) -> Option<String> {
        let path = self.dir.mark();
        blocking(move || fs::read_to_string(path).ok()).await
    }

    /// Writes down whenever the lease was confirmed, until nobody will say so any more. What cannot be written stays too
    /// early, which is safe.
    pub async fn follow(self, mut confirmed: watch::Receiver<Duration>) {
        while confirmed.changed().await.is_ok() {
            let (path, at) = (self.dir.confirmed(), *confirmed.borrow_and_update());
            if let Err(error) = blocking(move || write_confirmed(&path, at)).await {
                tracing::debug!(
                    error = railyard_service::error_chain(&error),
                    "the next process may give up a lease too early"
                );
            }
        }
    }
}

/// Reads what is in `dir`, for this worker in this boot of the kernel.
///
/// # Errors
/// [`Unusable`].
pub fn read(dir: &JobDir, worker: &WorkerName) -> Result<Left, Unusable> {
    let bytes = |what, path: &Path| fs::read(path).map_err(|error| Unusable::Unreadable(what, error));
    let senseless =
        |what: &'static str| move |error: &dyn std::fmt::Display| Unusable::Senseless(what, error.to_string());
    let state = bytes("the stage", &dir.state())?;
    let state: StateFile = serde_json::from_slice(&state).map_err(|error| senseless("the stage")(&error))?;
    if !(OLDEST..=VERSION).contains(&state.version) {
        return Err(Unusable::Senseless("the stage", format!("it is of version {}", state.version)));
    }
    if state.kernel_boot.is_empty() || state.kernel_boot != kernel_boot() {
        return Err(Unusable::OtherBoot);
    }
    if state.worker != *worker {
        return Err(Unusable::OtherWorker(state.worker));
    }
    let order = bytes("the order", &dir.order())?;
    let order = v1::LeaseOrder::decode(&*order).map_err(|error| senseless("the order")(&error))?;
    let order = Order::from_proto(order).map_err(|error: BadMessage| senseless("the order")(&error))?;
    let confirmed = bytes("the lease's confirmation", &dir.confirmed())?;
    let millis = std::str::from_utf8(&confirmed).ok().and_then(|text| text.trim().parse().ok());
    let millis = millis.ok_or_else(|| senseless("the lease's confirmation")(&"it is no number"))?;
    Ok(Left { order, stage: state.at, confirmed_at: Duration::from_millis(millis) })
}

/// The stage that a file tells of, whatever is in it: see [`crate::fuzz`].
pub fn fuzz(bytes: &[u8]) -> String {
    match serde_json::from_slice::<StateFile>(bytes) {
        Err(error) => error.to_string(),
        Ok(state) => {
            let json = serde_json::to_string(&state).expect("what was read can be written");
            let again: StateFile = serde_json::from_str(&json).expect("what was written can be read");
            assert_eq!(serde_json::to_string(&again).ok(), Some(json));
            format!("{} {}", state.version, state.at.image().is_some())
        }
    }
}

/// This boot of the kernel; empty if the kernel does not say.
/// This start of the host's kernel.
pub fn kernel_boot() -> String {
    fs::read_to_string(KERNEL_BOOT_ID).unwrap_or_default().trim().to_owned()
}

fn write_confirmed(path: &Path, at: Duration) -> Result<(), DiskError> {
    let text = format!("{:0CONFIRMED_DIGITS$}\n", at.as_millis());
    let file = File::options().write(true).create(true).truncate(false).open(path);
    file.and_then(|file| file.write_all_at(text.as_bytes(), 0)).map_err(DiskError::at("write", path))
}

/// The new file appears whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let part = path.with_extension("part");
    fs::write(&part, bytes)?;
    fs::rename(&part, path)
}
