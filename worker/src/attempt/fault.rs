//! Why an attempt did not end well, and what is told about it.

use super::Stop;
use crate::disk::{DiskError, free_bytes};
use crate::images::ShelfError;
use crate::outputs::OutputError;
use crate::runtime::RuntimeError;
use crate::uplink::UplinkError;
use bytesize::ByteSize;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_service::error_chain;
use railyard_transfer::TransferError;
use std::path::Path;

/// Why an attempt did not end well.
#[derive(Debug)]
pub enum Fault {
    /// It was told to stop.
    Stopped(Stop),
    /// The lease is not ours any more: nobody wants to hear.
    Stale,
    /// Known for what it is.
    Ended(Outcome),
    /// The engine.
    Runtime(RuntimeError),
    /// This disk.
    Disk(DiskError),
    /// Bytes on their way.
    Transfer(TransferError),
    /// The controller refused.
    Uplink(UplinkError),
}

impl Fault {
    /// An end that is known for what it is.
    pub fn ended(kind: OutcomeKind, reason: Reason, message: impl Into<String>) -> Self {
        Self::Ended(Outcome::new(kind, reason, message))
    }

    /// Something here panicked.
    pub fn bug(error: &dyn std::error::Error) -> Self {
        Self::ended(OutcomeKind::Lost, Reason::Engine, format!("the worker has a bug: {error}"))
    }
}

impl From<RuntimeError> for Fault {
    fn from(error: RuntimeError) -> Self {
        Self::Runtime(error)
    }
}

impl From<DiskError> for Fault {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl From<TransferError> for Fault {
    fn from(error: TransferError) -> Self {
        Self::Transfer(error)
    }
}

impl From<UplinkError> for Fault {
    fn from(error: UplinkError) -> Self {
        match error {
            UplinkError::Stale => Self::Stale,
            other => Self::Uplink(other),
        }
    }
}

impl From<ShelfError> for Fault {
    fn from(error: ShelfError) -> Self {
        match error {
            ShelfError::Runtime(error) => Self::Runtime(error),
            ShelfError::Disk(error) => Self::Disk(error),
        }
    }
}

impl From<OutputError> for Fault {
    fn from(error: OutputError) -> Self {
        let reason = match error {
            OutputError::Disk(error) => return Self::Disk(error),
            OutputError::Missing { .. } => Reason::OutputMissing,
            OutputError::Bad { .. } => Reason::OutputBad,
        };
        Self::ended(OutcomeKind::Failed, reason, error.to_string())
    }
}

/// What is reported; `None` if nobody wants to hear. `engine_dir` is where the engine's disk is full, if it says so.
pub fn outcome_of(fault: Fault, engine_dir: &Path) -> Option<Outcome> {
    let lost = |reason, message: String| Some(Outcome::new(OutcomeKind::Lost, reason, message));
    match fault {
        Fault::Stale | Fault::Stopped(Stop::Abandoned) => None,
        Fault::Ended(outcome) => Some(outcome),
        Fault::Stopped(Stop::Cancelled(why)) => Some(Outcome::new(OutcomeKind::Cancelled, Reason::Cancelled, why)),
        Fault::Stopped(Stop::Fenced { silent_for }) => {
            let secs = silent_for.as_secs();
            let message = format!(
                "the controller was not heard for {secs} s; the container was stopped before its lease expired"
            );
            lost(Reason::WorkerGone, message)
        }
        Fault::Stopped(Stop::Drained) => {
            lost(Reason::WorkerRestarted, "the worker was stopped; the job can run elsewhere".to_owned())
        }
        Fault::Runtime(error) if error.is_disk_full() => {
            lost(Reason::DiskFull, disk_full(engine_dir, &error.to_string()))
        }
        Fault::Runtime(error) => lost(Reason::Engine, error.to_string()),
        Fault::Disk(error) if error.is_full() => lost(Reason::DiskFull, disk_full(&error.path, &error_chain(&error))),
        Fault::Disk(error) => lost(Reason::Engine, error_chain(&error)),
        Fault::Transfer(TransferError::DiskFull { path }) => {
            lost(Reason::DiskFull, disk_full(&path, "a file could not be written"))
        }
        Fault::Transfer(error) => lost(Reason::Transfer, error_chain(&error)),
        Fault::Uplink(error) => lost(Reason::Transfer, error_chain(&error)),
    }
}

/// Where the disk is full, how full, and what to do.
pub fn disk_full(path: &Path, what: &str) -> String {
    // The file itself may not be there; its directory is on the same disk.
    let dir = path.ancestors().find(|dir| dir.exists()).unwrap_or(path);
    let free = free_bytes(dir).map_or_else(|_| "an unknown number of".to_owned(), |bytes| bytes.to_string());
    let human = free.parse().map(|bytes| format!(" ({})", ByteSize::b(bytes).display().iec())).unwrap_or_default();
    format!(
        "the worker's disk is full: {what}; {free} bytes{human} are free at {}. Free some space there, or give the step a larger `disk`",
        path.display()
    )
}
