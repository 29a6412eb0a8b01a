//! Why the farm will not do what it was asked.

use railyard_common::id::{BuildId, ChannelName, LeaseId, PinName, PipelineName, TagName, WorkerName};
use railyard_common::priority::Priority;
use railyard_common::token::TokenId;

/// A command that cannot be carried out. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such build.
    #[error("there is no build `{0}`; `railyard builds` lists them")]
    UnknownBuild(BuildId),
    /// The version is taken.
    #[error("build `{0}` exists; choose another version (`railyard show {0}` tells how it stands)")]
    BuildExists(BuildId),
    /// The build has ended.
    #[error("build `{0}` has ended; there is nothing to cancel")]
    BuildEnded(BuildId),
    /// Its jobs have ended, and what they left is being written out.
    #[error("every job of build `{0}` has ended and it is being written out; there is nothing to cancel")]
    BuildEnds(BuildId),
    /// Only an ended build can be retried.
    #[error("build `{0}` has not ended; cancel it first, or wait")]
    BuildRuns(BuildId),
    /// A success is final.
    #[error("build `{0}` succeeded and is published; submit a new version to build again")]
    BuildSucceeded(BuildId),
    /// Nothing to run again.
    #[error("build `{build}` has no job `{step}` to run again; `railyard show {build}` lists its jobs")]
    NothingToRetry {
        /// The build.
        build: BuildId,
        /// What was asked for.
        step: String,
    },
    /// The key was used for something else.
    #[error("the key `{key}` was used before, for build `{build}`, which was asked for otherwise; choose another key")]
    KeyReused {
        /// The key.
        key: String,
        /// What it was used for.
        build: BuildId,
    },
    /// No such job, or none of which this could be done.
    #[error("build `{build}` has no job `{job}` that {what}; `railyard show {build}` lists its jobs")]
    NoSuchJob {
        /// The build.
        build: BuildId,
        /// What was asked for.
        job: String,
        /// What could not be done.
        what: &'static str,
    },
    /// No job waits for it.
    #[error("no job of build `{0}` waits for approval; `railyard show {0}` tells how it stands")]
    NothingToApprove(BuildId),
    /// No such worker.
    #[error("there is no worker `{0}`; `railyard workers` lists them")]
    UnknownWorker(WorkerName),
    /// There is no hold to take back.
    #[error("worker `{0}` is not held back: neither cordoned, drained, retired nor in quarantine")]
    NotHeld(WorkerName),
    /// It was sent away.
    #[error("worker `{worker}` is {hold}; `railyard uncordon {worker}` takes it back")]
    Retired {
        /// The worker.
        worker: WorkerName,
        /// The word on it.
        hold: String,
    },
    /// It said this before what it has said since, and it was under way for longer.
    #[error("worker `{0}` has said a later hello already")]
    LateHello(WorkerName),
    /// The caller no longer holds this lease, or never did.
    #[error("lease {0} is not held by this worker: it has ended, expired or passed to another")]
    StaleLease(LeaseId),
    /// It is, or was, another worker's. No worker that keeps to the protocol says this.
    #[error("lease {0} is another worker's")]
    ForeignLease(LeaseId),
    /// The plan's own fault; a checked pipeline never makes one.
    #[error("the plan cannot be run: {0}")]
    BadPlan(String),
    /// It takes something from a build that cannot be used.
    #[error("{0}")]
    CannotUse(String),
    /// Untrusted builds begin behind others.
    #[error("an untrusted build has priority change at most, not {0}")]
    TooUrgent(Priority),
    /// A token that nobody has, or whose secret is another.
    #[error(
        "this token is not known here: it was taken back, is long over, or is another farm's; ask an operator for a new one"
    )]
    UnknownToken,
    /// No such token on record.
    #[error("there is no token `{0}`; `railyard token list` lists them")]
    NoSuchToken(TokenId),
    /// Its time is over.
    #[error("token {0} has expired; ask an operator for a new one")]
    TokenExpired(TokenId),
    /// It was used before, for another key.
    #[error("token {0} was used already, by somebody else if not by you; ask an operator for a new one, and tell them")]
    TokenUsed(TokenId),
    /// The id is taken: ids are random, so this does not happen.
    #[error("token {0} exists; try again")]
    TokenExists(TokenId),
    /// Too many are on record.
    #[error("there are {0} tokens on record, the limit; take back some that nobody needs (`railyard token list`)")]
    TooManyTokens(usize),
    /// It was deleted, and is swept soon.
    #[error("build `{0}` was deleted; `railyard builds` lists those that are there")]
    BuildDeleted(BuildId),
    /// A part of it is gone.
    #[error("of build `{0}` only a part is kept, so it cannot run again; submit it under a new version")]
    BuildReduced(BuildId),
    /// Something else needs it.
    #[error(
        "build `{build}` is kept: {why}; take that back first, or delete it with --force if nothing runs that needs it"
    )]
    BuildNeeded {
        /// Which.
        build: BuildId,
        /// What for.
        why: String,
    },
    /// A pin that ends before it begins.
    #[error("the pin of build `{0}` would be over already; give a later --until")]
    PinIsOver(BuildId),
    /// There is nothing to unpin.
    #[error("build `{build}` has no pin{}; `railyard show {build}` lists them", name.as_ref().map(|name| format!(" named {name}")).unwrap_or_default())]
    NotPinned {
        /// Which.
        build: BuildId,
        /// Which pin was meant.
        name: Option<String>,
    },
    /// Somebody else has set the pin.
    #[error("the pin {name} of build `{build}` is that of {by}; they or an operator can change it")]
    NotOwnPin {
        /// Which.
        build: BuildId,
        /// Which pin.
        name: PinName,
        /// Whose it is.
        by: String,
    },
    /// A build has enough of them.
    #[error("build `{build}` has {most} {what}, which is the limit; take some back")]
    TooMany {
        /// Which.
        build: BuildId,
        /// Pins or tags.
        what: &'static str,
        /// The limit.
        most: usize,
    },
    /// Releases read what is promoted or tagged.
    #[error("build `{build}` is untrusted, and cannot be {what}; build it again from what somebody has looked at")]
    IsUntrusted {
        /// Which.
        build: BuildId,
        /// What was wanted.
        what: &'static str,
    },
    /// A word that means something else.
    #[error("the tag `{0}` is always that of the newest success; choose another")]
    ReservedTag(TagName),
    /// A tag by which nothing could be named.
    #[error(
        "`{0}` cannot be a tag: it could not be a version of a build, or be only that of an untrusted one; choose another"
    )]
    BadTag(TagName),
    /// A version that is a tag of another build.
    #[error("`{}` is a tag of build `{of}`, so it cannot be a version as well; choose another version", build.version)]
    VersionIsTag {
        /// What was wanted.
        build: BuildId,
        /// Which has the tag.
        of: BuildId,
    },
    /// A version of which something was made that is still known: the name must go on meaning what it meant.
    #[error(
        "`{build}` was deleted, but `{by}` was made from it and is still known: another build of that name would be taken for it; \
         choose another version"
    )]
    VersionIsUsed {
        /// What was wanted.
        build: BuildId,
        /// What was made from it.
        by: BuildId,
    },
    /// A tag that is the version of a build.
    #[error("`{0}` is a build, so its version cannot be a tag as well; choose another")]
    TagIsVersion(BuildId),
    /// Nobody has the tag.
    #[error("no build of {0} has the tag `{1}`; `railyard builds {0}` shows them")]
    NoSuchTag(PipelineName, TagName),
    /// Only what is whole and good goes into a channel.
    #[error("build `{0}` has not succeeded, or only a part of it is kept, so it cannot be promoted")]
    NotPromotable(BuildId),
    /// What it publishes there cannot lie there.
    #[error("build `{build}` cannot be promoted to {channel}: {why}")]
    NotPublishable {
        /// Which.
        build: BuildId,
        /// The channel.
        channel: ChannelName,
        /// Why.
        why: String,
    },
    /// One thing after the other.
    #[error(
        "build `{build}` is being promoted to {channel} just now; `railyard show {build}` tells when that has ended"
    )]
    PromotionRuns {
        /// Which.
        build: BuildId,
        /// The channel.
        channel: ChannelName,
    },
    /// Too much waits already.
    #[error("the farm holds {0} unfinished jobs, and takes on no more builds of this kind; wait until some have ended")]
    Full(usize),
}

/// The sort of a refusal, for status codes and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalKind {
    /// It names something that is not there.
    NotFound,
    /// It names something that is there already.
    Exists,
    /// The state does not allow it.
    State,
    /// The lease has passed on.
    Stale,
    /// The input is wrong.
    Invalid,
    /// A limit is reached.
    Limit,
    /// What was shown proves nothing.
    Unproven,
    /// It is somebody else's to do.
    Forbidden,
}

impl Refusal {
    /// The sort.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::UnknownBuild(_) => RefusalKind::NotFound,
            Self::BuildExists(_) => RefusalKind::Exists,
            Self::BuildEnded(_) | Self::BuildEnds(_) | Self::BuildRuns(_) | Self::BuildSucceeded(_) => {
                RefusalKind::State
            }
            Self::KeyReused { .. } => RefusalKind::Exists,
            Self::NothingToRetry { .. } | Self::NoSuchJob { .. } | Self::UnknownWorker(_) => RefusalKind::NotFound,
            Self::NothingToApprove(_) | Self::NotHeld(_) | Self::Retired { .. } => RefusalKind::State,
            Self::StaleLease(_) | Self::ForeignLease(_) | Self::LateHello(_) => RefusalKind::Stale,
            Self::BadPlan(_) | Self::TooUrgent(_) => RefusalKind::Invalid,
            Self::CannotUse(_) => RefusalKind::State,
            Self::UnknownToken | Self::TokenExpired(_) | Self::TokenUsed(_) => RefusalKind::Unproven,
            Self::NoSuchToken(_) => RefusalKind::NotFound,
            Self::TokenExists(_) => RefusalKind::Exists,
            Self::BuildDeleted(_) | Self::NotPinned { .. } | Self::NoSuchTag(..) => RefusalKind::NotFound,
            Self::BuildReduced(_)
            | Self::BuildNeeded { .. }
            | Self::NotPromotable(_)
            | Self::NotPublishable { .. }
            | Self::PromotionRuns { .. } => RefusalKind::State,
            Self::PinIsOver(_) | Self::IsUntrusted { .. } | Self::ReservedTag(_) | Self::BadTag(_) => {
                RefusalKind::Invalid
            }
            Self::TagIsVersion(_) | Self::VersionIsTag { .. } | Self::VersionIsUsed { .. } => RefusalKind::Exists,
            Self::NotOwnPin { .. } => RefusalKind::Forbidden,
            Self::Full(_) | Self::TooManyTokens(_) | Self::TooMany { .. } => RefusalKind::Limit,
        }
    }

    /// A stable word for the protocol and for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownBuild(_) => "unknown-build",
            Self::BuildExists(_) | Self::VersionIsUsed { .. } => "build-exists",
            Self::BuildEnded(_) | Self::BuildEnds(_) => "build-ended",
            Self::BuildRuns(_) => "build-runs",
            Self::BuildSucceeded(_) => "build-succeeded",
            Self::NothingToRetry { .. } => "nothing-to-retry",
            Self::KeyReused { .. } => "key-reused",
            Self::NoSuchJob { .. } => "no-such-job",
            Self::NothingToApprove(_) => "nothing-to-approve",
            Self::UnknownWorker(_) => "unknown-worker",
            Self::NotHeld(_) => "not-held",
            Self::Retired { .. } => "worker-retired",
            // Whoever still listens may try again.
            Self::LateHello(_) => "busy",
            // For a worker both mean the same: stop.
            Self::StaleLease(_) | Self::ForeignLease(_) => "stale-lease",
            Self::BadPlan(_) => "bad-plan",
            Self::CannotUse(_) => "build-not-usable",
            Self::TooUrgent(_) => "bad-request",
            Self::UnknownToken => "unknown-token",
            Self::NoSuchToken(_) => "no-such-token",
            Self::TokenExpired(_) => "token-expired",
            Self::TokenUsed(_) => "token-used",
            Self::TokenExists(_) => "token-exists",
            Self::TooManyTokens(_) => "too-many-tokens",
            Self::BuildDeleted(_) => "build-deleted",
            Self::BuildReduced(_) => "build-reduced",
            Self::BuildNeeded { .. } => "build-needed",
            Self::PinIsOver(_) | Self::BadTag(_) => "bad-request",
            Self::NotOwnPin { .. } => "forbidden",
            Self::NotPinned { .. } => "not-pinned",
            Self::TooMany { .. } => "too-many",
            Self::IsUntrusted { .. } => "build-untrusted",
            Self::ReservedTag(_) | Self::TagIsVersion(_) | Self::VersionIsTag { .. } => "tag-taken",
            Self::NoSuchTag(..) => "no-such-tag",
            Self::NotPromotable(_) | Self::NotPublishable { .. } => "not-promotable",
            Self::PromotionRuns { .. } => "promotion-runs",
            Self::Full(_) => "farm-full",
        }
    }
}
