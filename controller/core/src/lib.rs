//! The farm: builds, jobs, leases and workers as a deterministic state machine.
//!
//! [`Farm::decide`] turns a [`Command`] into [`Event`]s without changing anything; [`Farm::apply`] changes the state by an
//! event and cannot fail. The shell journals the events between the two. Replaying the same events gives the same state.
//! A [`Dispatcher`] does this for rounds of requests, and says what may leave when a round is durable.
//!
//! **Invariant:** no async, no I/O, no clock, no randomness, no hash maps: the same calls give the same answers, in the same order.

mod access;
mod apply;
mod apply_keep;
mod build;
mod check;
mod command;
mod decide;
mod dispatch;
mod event;
mod farm;
mod fence;
mod hold;
mod index;
mod job;
mod kept;
mod leases;
mod marks;
mod order;
mod place;
mod pressure;
mod queue;
mod refusal;
pub mod sweep;
mod uses;
mod waiting;
mod worker;

pub use access::{Access, FORGET_REVOKED_MILLIS, TOKENS_MAX, TokenRecord, TokenUse};
pub use build::{Build, BuildState, Trace, Verdict};
pub use command::{Command, Report, Submission};
pub use decide::promote::InChannel;
pub use dispatch::{Beat, Dispatcher, Input, Live, Output, Phase, Round, Said, Ticket};
pub use event::{Event, Next};
pub use farm::{Farm, Snapshot, SnapshotJobs, SnapshotRest};
pub use fence::Act;
pub use hold::{Hold, HoldKind};
pub use job::{Approval, Attempt, AttemptEnd, Job, JobResult, JobState};
pub use kept::{Force, Kept, Promoting, Promotion, Reduced, Reduction, Whose};
pub use leases::Leases;
pub use place::{AGEING_MILLIS, KEEP_FREE_MILLIS};
pub use pressure::{Pressure, Scarce};
pub use refusal::{Refusal, RefusalKind};
pub use worker::{QUARANTINE_AFTER, QUARANTINE_BACKOFF, Worker, WorkerOffer};

/// How often an attempt may be lost, in all, before its job is given up. Each loss costs a lease TTL at most, so a
/// broken farm is noticed within minutes; a worker that dies takes one of these with it.
pub const LOST_BUDGET: u32 = 5;

/// Waits between attempts that the farm lost: short, because another worker is preferred.
pub const LOST_BACKOFF: railyard_common::backoff::Backoff =
    railyard_common::backoff::Backoff { base_millis: 1_000, max_millis: 60_000 };

/// Waits between attempts that the step failed.
pub const FAILED_BACKOFF: railyard_common::backoff::Backoff =
    railyard_common::backoff::Backoff { base_millis: 5_000, max_millis: 300_000 };

/// The longest of those waits.
pub(crate) const BACKOFF_MAX_MILLIS: u64 = if LOST_BACKOFF.max_millis > FAILED_BACKOFF.max_millis {
    LOST_BACKOFF.max_millis
} else {
    FAILED_BACKOFF.max_millis
};

/// Whether a backoff is over. None is longer than the longest: an end further off was set before the clock went back.
pub(crate) fn is_due(not_before: railyard_common::time::Millis, now: railyard_common::time::Millis) -> bool {
    not_before <= now || not_before > now.plus(BACKOFF_MAX_MILLIS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::time::Millis;

    #[test]
    fn a_clock_that_goes_back_does_not_make_a_backoff_last() {
        let now = Millis(10_000_000);
        assert!(is_due(now, now));
        assert!(!is_due(now.plus(1), now));
        assert!(!is_due(now.plus(FAILED_BACKOFF.max_millis), now));
        // Set an hour ago, before somebody put the clock right.
        assert!(is_due(now.plus(3_600_000), now));
    }
}
