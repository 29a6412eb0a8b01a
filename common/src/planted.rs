//! Mistakes that can be planted on purpose, to see that the simulation finds them.
//!
//! [`is`] is a constant `false` without the feature `planted-bugs`, and in every build without debug assertions: a
//! released program has none of them, whatever was built beside it.

/// A mistake at one decision point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the table below says what each does")]
pub enum Bug {
    ReportUnfenced,
    LogUnfenced,
    UploadUnfenced,
    ToldBeforeFlush,
    ExpiryEarly,
    FenceNever,
    FenceFromSend,
    FenceFromOrder,
    FenceMarginZero,
    FailedBudgetIgnored,
    LostBudgetIgnored,
    LostCountsAsFailed,
    FailurePoisonsNothing,
    RetryAfterCancel,
    CancelLeavesQueue,
    DuplicateSubmit,
    KeyForgotten,
    AttemptReused,
    UnblockedEarly,
    CapacityIgnored,
    PlatformIgnored,
    HelloKeepsLost,
    HelloFreesHeld,
    RestartExpiresAll,
    RestartNeverExpires,
    ReportTwice,
    AckForgetsLost,
    WelcomeNamesAll,
    WelcomeIgnored,
    StaleDetach,
    AbortKeepsRound,
    SnapshotForgetsJobs,
    SweepWithoutGrace,
    SweepIgnoresLeases,
    UploadUnchecked,
    LogGap,
    ApprovalIgnored,
    GroupLimitOff,
    GroupNotFifo,
    PoolIgnored,
    HoldIgnored,
    LateHello,
    SweepShortVersion,
    SweepFirstPage,
    SweepPartial,
    ClaimForgotten,
}

impl Bug {
    /// Every mistake, with its name for the command line and what it does.
    pub const ALL: [(Self, &'static str, &'static str); 46] = [
        (Self::ReportUnfenced, "report-unfenced", "a report is taken from whoever sends it"),
        (Self::LogUnfenced, "log-unfenced", "log bytes are taken under an ended lease"),
        (Self::UploadUnfenced, "upload-unfenced", "an ended lease is granted an upload"),
        (Self::ToldBeforeFlush, "told-before-flush", "answers and orders leave before the journal is flushed"),
        (Self::ExpiryEarly, "expiry-early", "a lease expires by the worker's margin too early"),
        (Self::FenceNever, "fence-never", "the worker never stops a container by itself"),
        (Self::FenceFromSend, "fence-from-send", "the worker counts from heartbeats that nobody acknowledged"),
        (Self::FenceFromOrder, "fence-from-order", "the worker counts from when the order arrived"),
        (Self::FenceMarginZero, "fence-margin-zero", "the worker stops a container only at the end of its lease"),
        (Self::FailedBudgetIgnored, "failed-budget-ignored", "a step's failures are retried for ever"),
        (Self::LostBudgetIgnored, "lost-budget-ignored", "lost attempts are retried for ever"),
        (Self::LostCountsAsFailed, "lost-counts-as-failed", "a lost attempt is counted as the step's failure"),
        (Self::FailurePoisonsNothing, "failure-poisons-nothing", "dependents of a failed job wait for ever"),
        (Self::RetryAfterCancel, "retry-after-cancel", "a lost attempt of a cancelled build is retried"),
        (Self::CancelLeavesQueue, "cancel-leaves-queue", "a cancel leaves queued jobs in their queue"),
        (Self::DuplicateSubmit, "duplicate-submit", "a repeated submit makes another build"),
        (Self::KeyForgotten, "key-forgotten", "a snapshot forgets the keys of submits"),
        (Self::AttemptReused, "attempt-reused", "an attempt gets the number of the one before"),
        (Self::UnblockedEarly, "unblocked-early", "a job is ready when one need is still missing"),
        (Self::CapacityIgnored, "capacity-ignored", "a worker is given more than it has"),
        (Self::PlatformIgnored, "platform-ignored", "a job goes to a worker without its platform"),
        (Self::HelloKeepsLost, "hello-keeps-lost", "a hello without a lease does not free it"),
        (Self::HelloFreesHeld, "hello-frees-held", "a hello frees the leases that it names"),
        (Self::RestartExpiresAll, "restart-expires-all", "a restart of the controller ends every lease at once"),
        (Self::RestartNeverExpires, "restart-never-expires", "leases of before a restart never expire"),
        (Self::ReportTwice, "report-twice", "a repeated report counts twice"),
        (Self::AckForgetsLost, "ack-forgets-lost", "a heartbeat's answer does not tell what is lost"),
        (Self::WelcomeNamesAll, "welcome-names-all", "a welcome confirms whatever the worker claims"),
        (Self::WelcomeIgnored, "welcome-ignored", "the worker keeps leases that the welcome does not name"),
        (Self::StaleDetach, "stale-detach", "the end of an old stream takes the worker offline"),
        (Self::AbortKeepsRound, "abort-keeps-round", "a failed append is not undone in memory"),
        (Self::SnapshotForgetsJobs, "snapshot-forgets-jobs", "a snapshot forgets the number of the next job"),
        (Self::SweepWithoutGrace, "sweep-without-grace", "the sweep deletes what was uploaded a moment ago"),
        (Self::SweepIgnoresLeases, "sweep-ignores-leases", "the sweep deletes what running builds refer to"),
        (Self::UploadUnchecked, "upload-unchecked", "a report is taken without looking for its artifacts"),
        (Self::LogGap, "log-gap", "log bytes are taken though some before them are missing"),
        (Self::ApprovalIgnored, "approval-ignored", "a job that is to be approved is queued at once"),
        (Self::GroupLimitOff, "group-limit-off", "one job too many of a concurrency group runs"),
        (Self::GroupNotFifo, "group-not-fifo", "who came last to a concurrency group goes first"),
        (Self::PoolIgnored, "pool-ignored", "a job goes to a worker of another pool"),
        (Self::HoldIgnored, "hold-ignored", "a worker that is held back gets jobs"),
        (Self::LateHello, "late-hello", "a hello that a later one has overtaken is believed"),
        (Self::SweepShortVersion, "sweep-short-version", "the sweep takes 1.10 for 1.1"),
        (Self::SweepFirstPage, "sweep-first-page", "the sweep takes the first page of a listing for all of it"),
        (Self::SweepPartial, "sweep-partial", "the sweep believes a listing that lacks what must be there"),
        (Self::ClaimForgotten, "claim-forgotten", "the sweep ignores what leases were told the cache has"),
    ];

    /// The mistake of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(bug, _, _)| *bug)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(bug, _, _)| *bug == self).map_or("", |(_, name, _)| name)
    }
}

/// Whether `bug` is planted in this thread.
#[cfg(all(feature = "planted-bugs", debug_assertions))]
pub fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether `bug` is planted: never.
#[cfg(not(all(feature = "planted-bugs", debug_assertions)))]
pub const fn is(_: Bug) -> bool {
    false
}

/// Plants a mistake in this thread, in place of the one before.
#[cfg(all(feature = "planted-bugs", debug_assertions))]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Optimised builds have no mistakes.
#[cfg(all(feature = "planted-bugs", not(debug_assertions)))]
pub fn plant(bug: Option<Bug>) {
    assert!(bug.is_none(), "no bug can be planted in an optimised build");
}

#[cfg(all(feature = "planted-bugs", debug_assertions))]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}
