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
    /// [`Refusal::StaleLease`] for everybody else.
    pub fn allow(&self, act: Act, lease: LeaseId, worker: &WorkerName) -> Result<(), Refusal> {
        let unfenced = match act {
            Act::Log => planted::is(Bug::LogUnfenced),
            Act::Upload => planted::is(Bug::UploadUnfenced),
            Act::Download => false,
        };
        if self.holder(lease) == Some(worker) || unfenced { Ok(()) } else { Err(Refusal::StaleLease(lease)) }
    }
}
