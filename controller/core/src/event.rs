//! What happened. Events are what the journal keeps, so they are additive: fields get defaults, variants are never renamed.

use crate::access::TokenRecord;
use crate::build::Trace;
use crate::hold::Hold;
use crate::kept::{Promotion, Reduction};
use crate::worker::WorkerOffer;
use railyard_common::blob::{Artifact, Image};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, JobId, LeaseId, PinName, TagName, WorkerName};
use railyard_common::outcome::Outcome;
use railyard_common::path::RelPath;
use railyard_common::plan::Plan;
use railyard_common::priority::Priority;
use railyard_common::retention::Pin;
use railyard_common::time::Millis;
use railyard_common::token::TokenId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// One change of the farm's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A build is taken on. Its jobs are numbered from `first_job` in the plan's order.
    BuildAccepted {
        /// When.
        at: Millis,
        /// What it runs.
        plan: Arc<Plan>,
        /// The number of its first job.
        first_job: JobId,
        /// Who submitted it.
        by: String,
        /// The key under which a repeated submit finds it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// Where it belongs in a trace.
        #[serde(default)]
        trace: Trace,
        /// How urgent it is.
        #[serde(default)]
        priority: Priority,
        /// A digest of what was asked for; empty: not known.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        request: String,
    },
    /// A worker has the right to run an attempt.
    JobLeased {
        /// When.
        at: Millis,
        /// The right.
        lease: LeaseId,
        /// Who has it.
        worker: WorkerName,
    },
    /// An attempt has ended, and so has its lease.
    AttemptEnded {
        /// When.
        at: Millis,
        /// Which.
        lease: LeaseId,
        /// How.
        outcome: Outcome,
        /// What it left, if it succeeded.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        artifacts: Vec<Artifact>,
        /// The image that it committed, if it succeeded.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<Image>,
        /// Length of its log.
        #[serde(default)]
        log_bytes: u64,
        /// What becomes of the job.
        next: Next,
    },
    /// A lease's container has ended, and its results are on their way.
    JobUploading {
        /// When.
        at: Millis,
        /// Which.
        lease: LeaseId,
    },
    /// Jobs are approved, whether they wait for it already or not.
    JobsApproved {
        /// When.
        at: Millis,
        /// Which build.
        build: BuildId,
        /// Which of its jobs.
        jobs: Vec<JobId>,
        /// By whom.
        by: String,
    },
    /// Some jobs of a build are to stop.
    JobsCancelled {
        /// When.
        at: Millis,
        /// Which build.
        build: BuildId,
        /// Which of its jobs.
        jobs: Vec<JobId>,
        /// Who wanted it.
        by: String,
        /// Why.
        reason: String,
    },
    /// A build is to stop.
    BuildCancelled {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// Who wanted it.
        by: String,
        /// Why.
        reason: String,
    },
    /// Some jobs of an ended build run again, under its frozen plan.
    BuildResumed {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// The jobs, in the plan's order.
        jobs: Vec<JobId>,
    },
    /// A build's manifest is written: it has ended.
    BuildEnded {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// Why its published paths could not be written.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A worker is connected.
    WorkerOnline {
        /// When.
        at: Millis,
        /// What it offers.
        offer: WorkerOffer,
    },
    /// A worker's stream ended.
    WorkerOffline {
        /// When.
        at: Millis,
        /// Which.
        worker: WorkerName,
    },
    /// A worker takes no new leases until it says hello again.
    WorkerDraining {
        /// When.
        at: Millis,
        /// Which.
        worker: WorkerName,
    },
    /// An operator holds a worker back.
    WorkerHeld {
        /// When.
        at: Millis,
        /// Which.
        worker: WorkerName,
        /// How, and for how long.
        hold: Hold,
    },
    /// A hold is over.
    WorkerReleased {
        /// When.
        at: Millis,
        /// Which.
        worker: WorkerName,
        /// Who took it back; empty: its time was over.
        #[serde(default)]
        by: String,
    },
    /// A worker that has been away for long, and holds nothing, is not on record any more.
    WorkerForgotten {
        /// When.
        at: Millis,
        /// Which.
        worker: WorkerName,
    },
    /// The state came back from a backup: what happened after that is not known here, but may still go on elsewhere. So
    /// job numbers and attempts go on far above all that may have been given since.
    ControllerRestored {
        /// When; two restores of one backup differ in it.
        at: Millis,
    },
    /// Somebody wants a build kept.
    BuildPinned {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// Tells this pin from others of the build; one of the same name is replaced.
        name: PinName,
        /// Who, why and until when.
        pin: Pin,
    },
    /// Pins of a build were taken back.
    BuildUnpinned {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// Which of its pins.
        names: Vec<PinName>,
        /// By whom.
        by: String,
    },
    /// A build has a tag, and no other of its pipeline has it any more.
    BuildTagged {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// The tag.
        tag: TagName,
        /// By whom.
        by: String,
    },
    /// A build has lost a tag.
    BuildUntagged {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// The tag.
        tag: TagName,
        /// By whom.
        by: String,
    },
    /// What a build publishes in another channel is about to be published.
    PromotionBegun {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// How.
        promotion: Promotion,
        /// Those of its paths at which there was nothing.
        #[serde(default)]
        fresh: BTreeSet<RelPath>,
    },
    /// It cannot be published; what has been is taken back.
    PromotionFailed {
        /// When.
        at: Millis,
        /// Which build.
        build: BuildId,
        /// Why.
        why: String,
    },
    /// Of a promotion that has failed nothing is left.
    PromotionForgotten {
        /// When.
        at: Millis,
        /// Which build.
        build: BuildId,
    },
    /// A build is in another channel; what that publishes is there.
    BuildPromoted {
        /// When.
        at: Millis,
        /// Which.
        build: BuildId,
        /// How.
        promotion: Promotion,
    },
    /// Less is kept of builds from here on. What goes is swept a grace later.
    BuildsReduced {
        /// When.
        at: Millis,
        /// Which, to what, and why.
        builds: Vec<Reduction>,
        /// By whom.
        by: String,
    },
    /// What went with the last reduction of builds is not in the cache any more.
    BuildsSwept {
        /// When.
        at: Millis,
        /// Which.
        builds: Vec<BuildId>,
    },
    /// Of deleted builds nothing is in the cache any more.
    BuildsForgotten {
        /// When.
        at: Millis,
        /// Which.
        builds: Vec<BuildId>,
    },
    /// A lease counts on blobs: the sweep must leave them until it ends.
    BlobsClaimed {
        /// When.
        at: Millis,
        /// Which.
        lease: LeaseId,
        /// The blobs.
        blobs: Vec<Digest>,
    },
    /// After a restore, somebody has looked and lets the sweep go on.
    SweepResumed {
        /// When.
        at: Millis,
        /// Who.
        by: String,
    },
    /// The controller has started.
    ControllerStarted {
        /// When.
        at: Millis,
    },
    /// A token was given out.
    TokenMade {
        /// When.
        at: Millis,
        /// Which.
        token: Box<TokenRecord>,
    },
    /// A token to join with was used.
    TokenUsed {
        /// When.
        at: Millis,
        /// Which.
        id: TokenId,
        /// The hash of the public key that was certified.
        key: Digest,
    },
    /// A token was taken back, or its time has been over for long.
    TokenDropped {
        /// When.
        at: Millis,
        /// Which.
        id: TokenId,
        /// By whom; empty: its time is over.
        #[serde(default)]
        by: String,
    },
    /// Certificates of an identity that were issued until now are worth nothing.
    IdentityRevoked {
        /// When.
        at: Millis,
        /// `ROLE/NAME`.
        who: String,
        /// Who wanted it.
        by: String,
        /// Why.
        #[serde(default)]
        why: String,
    },
}

impl Event {
    /// When it happened.
    pub fn at(&self) -> Millis {
        match self {
            Self::BuildAccepted { at, .. }
            | Self::JobLeased { at, .. }
            | Self::AttemptEnded { at, .. }
            | Self::JobUploading { at, .. }
            | Self::JobsApproved { at, .. }
            | Self::JobsCancelled { at, .. }
            | Self::BuildCancelled { at, .. }
            | Self::BuildResumed { at, .. }
            | Self::BuildEnded { at, .. }
            | Self::WorkerOnline { at, .. }
            | Self::WorkerOffline { at, .. }
            | Self::WorkerDraining { at, .. }
            | Self::WorkerHeld { at, .. }
            | Self::WorkerReleased { at, .. }
            | Self::WorkerForgotten { at, .. }
            | Self::TokenMade { at, .. }
            | Self::TokenUsed { at, .. }
            | Self::TokenDropped { at, .. }
            | Self::IdentityRevoked { at, .. }
            | Self::BuildPinned { at, .. }
            | Self::BuildUnpinned { at, .. }
            | Self::BuildTagged { at, .. }
            | Self::BuildUntagged { at, .. }
            | Self::PromotionBegun { at, .. }
            | Self::PromotionFailed { at, .. }
            | Self::PromotionForgotten { at, .. }
            | Self::BuildPromoted { at, .. }
            | Self::BuildsReduced { at, .. }
            | Self::BuildsSwept { at, .. }
            | Self::BuildsForgotten { at, .. }
            | Self::BlobsClaimed { at, .. }
            | Self::SweepResumed { at, .. }
            | Self::ControllerRestored { at }
            | Self::ControllerStarted { at } => *at,
        }
    }

    /// Whether it changes who may come in.
    pub fn is_access(&self) -> bool {
        matches!(
            self,
            Self::TokenMade { .. } | Self::TokenUsed { .. } | Self::TokenDropped { .. } | Self::IdentityRevoked { .. }
        )
    }
}

/// What becomes of a job whose attempt has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Next {
    /// The job has ended like its attempt.
    End,
    /// Another attempt, not before this.
    Again {
        /// The earliest time.
        not_before: Millis,
    },
}
