//! Whether a worker may still act for a lease. Reports are fenced by the farm's own decision.

use crate::farm::Farm;
use crate::refusal::Refusal;
use railyard_common::id::{LeaseId, WorkerName};
use railyard_common::planted::{self, Bug};

/// What a worker wants to do for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Append to its log.
    Log,
    /// Send its outputs.
    Upload,
    /// Fetch its inputs.
    Download,
}

impl Farm {
    /// Lets the worker that holds the lease act for it.
    ///
    /// # Errors
    /// [`Refusal::StaleLease`] for everybody else; [`Refusal::ForeignLease`] for who never held it, if another did.
    pub fn allow(&self, act: Act, lease: LeaseId, worker: &WorkerName) -> Result<(), Refusal> {
        let unfenced = match act {
            Act::Log => planted::is(Bug::LogUnfenced),
            Act::Upload => planted::is(Bug::UploadUnfenced),
            Act::Download => false,
        };
        match self.holder(lease) == Some(worker) || unfenced {
            true => Ok(()),
            false if self.is_anothers(lease, worker) => Err(Refusal::ForeignLease(lease)),
            false => Err(Refusal::StaleLease(lease)),
        }
    }

    /// Whether the lease was given to another worker, whatever became of it.
    pub fn is_anothers(&self, lease: LeaseId, worker: &WorkerName) -> bool {
        let attempts = self.jobs.get(&lease.job).map(|job| job.attempts.as_slice()).unwrap_or_default();
        attempts.iter().any(|attempt| attempt.number == lease.attempt && attempt.worker != *worker)
    }
}
