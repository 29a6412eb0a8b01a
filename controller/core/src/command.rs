//! What the shell asks of the farm.

use crate::access::TokenRecord;
use crate::build::Trace;
use crate::hold::Hold;
use crate::kept::{Force, Reduction, Whose};
use crate::worker::WorkerOffer;
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, ChannelName, JobSelector, LeaseId, PinName, PipelineName, TagName, WorkerName};
use railyard_common::identity::Identity;
use railyard_common::outcome::Outcome;
use railyard_common::path::RelPath;
use railyard_common::plan::Plan;
use railyard_common::priority::Priority;
use railyard_common::retention::{Keep, Pin};
use railyard_common::token::TokenId;
use std::collections::{BTreeMap, BTreeSet};

/// A change that is wanted. [`crate::Farm::decide`] says what it comes to.
#[derive(Clone, Debug)]
pub enum Command {
    /// Run this plan.
    Submit(Box<Submission>),
    /// Stop a build: nothing new starts, what runs is told to stop.
    Cancel {
        /// Which.
        build: BuildId,
        /// Who wants it.
        by: String,
        /// Why, for people.
        reason: String,
    },
    /// Stop some jobs of a build, and what needs them.
    CancelJobs {
        /// Which build.
        build: BuildId,
        /// Which jobs.
        jobs: JobSelector,
        /// Who wants it.
        by: String,
        /// Why, for people.
        reason: String,
    },
    /// Let jobs that wait for approval go on, or those that will wait for it.
    Approve {
        /// Which build.
        build: BuildId,
        /// Which jobs; `None`: those that wait for it now.
        jobs: Option<JobSelector>,
        /// Who approves.
        by: String,
    },
    /// Run again what did not succeed, or one step and everything after it.
    Retry {
        /// Which.
        build: BuildId,
        /// The step; `None`: everything that did not succeed.
        step: Option<JobSelector>,
    },
    /// A worker is here, with the leases that it still holds.
    Hello {
        /// What it offers.
        offer: Box<WorkerOffer>,
        /// Leases whose container runs or whose result is still to come.
        held: Vec<LeaseId>,
    },
    /// A worker's stream ended. Its leases live on until they expire.
    Goodbye {
        /// Which.
        worker: WorkerName,
    },
    /// A worker wants no new leases.
    Drain {
        /// Which.
        worker: WorkerName,
    },
    /// An operator holds a worker back; a later word replaces an earlier one.
    Hold {
        /// Which.
        worker: WorkerName,
        /// How, and for how long.
        hold: Hold,
    },
    /// An operator takes a hold back.
    Release {
        /// Which.
        worker: WorkerName,
        /// Who.
        by: String,
    },
    /// A lease's container has ended, and its results are on their way: what else it reserved is free.
    Uploading {
        /// Which.
        lease: LeaseId,
    },
    /// Time has passed: holds end, and workers that were away for long are forgotten.
    Tick,
    /// An attempt's end, from the worker that holds the lease.
    Report(Box<Report>),
    /// A lease lived past its TTL without a heartbeat.
    Expire {
        /// Which.
        lease: LeaseId,
    },
    /// Lease what can be leased now.
    Place,
    /// A build's manifest and published paths are written, or cannot be.
    Finalized {
        /// Which.
        build: BuildId,
        /// What stands in the way for good.
        error: Option<String>,
    },
    /// The controller has started: nobody is connected yet.
    Started,
    /// A token is given out.
    MakeToken(Box<TokenRecord>),
    /// A token to join with is used.
    UseToken {
        /// Which.
        id: TokenId,
        /// The hash of the secret that was shown.
        hash: Digest,
        /// The hash of the public key that is to be certified.
        key: Digest,
    },
    /// A token is taken back.
    DropToken {
        /// Which.
        id: TokenId,
        /// By whom.
        by: String,
    },
    /// Everything that stands for somebody is worth nothing from now on.
    Revoke {
        /// Whom; the limits do not matter.
        identity: Identity,
        /// Who wants it.
        by: String,
        /// Why, for people.
        why: String,
    },
    /// Keep a build.
    Pin {
        /// Which.
        build: BuildId,
        /// Tells this pin from others of the build.
        name: PinName,
        /// Who, why and until when.
        pin: Pin,
        /// Whether it may take the place of others' pins.
        whose: Whose,
    },
    /// A build need not be kept for that any more.
    Unpin {
        /// Which.
        build: BuildId,
        /// Which of its pins; `None`: all.
        name: Option<PinName>,
        /// Who.
        by: String,
        /// Whether others' pins are theirs to take back.
        whose: Whose,
    },
    /// Give a build a tag, whichever had it before.
    Tag {
        /// Which.
        build: BuildId,
        /// The tag.
        tag: TagName,
        /// Who.
        by: String,
    },
    /// Take a tag back.
    Untag {
        /// Whose builds.
        pipeline: PipelineName,
        /// The tag.
        tag: TagName,
        /// Who.
        by: String,
    },
    /// Put a build into a channel: at once if nothing is to be published for that.
    Promote {
        /// Which.
        build: BuildId,
        /// The channel.
        channel: ChannelName,
        /// What is to be published for that; see [`crate::Farm::published_in`].
        paths: BTreeMap<RelPath, Blob>,
        /// Those of the paths at which there is nothing yet.
        fresh: BTreeSet<RelPath>,
        /// Who.
        by: String,
    },
    /// What a promotion publishes is there, or cannot be.
    EndPromotion {
        /// Which build.
        build: BuildId,
        /// Why it cannot.
        error: Option<String>,
    },
    /// What a promotion that has failed had published is gone again.
    ForgetPromotion {
        /// Which build.
        build: BuildId,
    },
    /// Keep less of builds: of all of them, or it is refused.
    Reduce {
        /// Which, and to what.
        builds: Vec<Reduction>,
        /// Who.
        by: String,
        /// How much that counts.
        force: Force,
    },
    /// What went with builds' last reductions is not in the cache any more: those that were deleted are forgotten.
    Swept {
        /// Which, and what was left of them.
        builds: Vec<(BuildId, Keep)>,
    },
    /// A lease counts on blobs, whether the cache has them or is about to be sent them.
    Claim {
        /// Which.
        lease: LeaseId,
        /// Who holds it.
        worker: WorkerName,
        /// The blobs.
        blobs: Vec<Digest>,
    },
    /// After a restore, the sweep may go on.
    ResumeSweep {
        /// Who says so.
        by: String,
    },
}

impl Command {
    /// It shuts somebody out, which may not wait.
    pub fn shuts_out(&self) -> bool {
        matches!(self, Self::DropToken { .. } | Self::Revoke { .. })
    }
}

/// A build to run.
#[derive(Clone, Debug)]
pub struct Submission {
    /// Its frozen plan.
    pub plan: Plan,
    /// Repeating a submit with the same key gives the same build.
    pub key: Option<String>,
    /// A digest of what was asked for, or empty: a key that comes again with another one is refused.
    pub request: String,
    /// How urgent it is.
    pub priority: Priority,
    /// Who submits.
    pub by: String,
    /// Where it belongs in a trace.
    pub trace: Trace,
}

/// An attempt's end, uploads completed and checked.
#[derive(Clone, Debug)]
pub struct Report {
    /// The right under which it ran.
    pub lease: LeaseId,
    /// Who says so.
    pub worker: WorkerName,
    /// How it ended.
    pub outcome: Outcome,
    /// What it left.
    pub artifacts: Vec<Artifact>,
    /// The image that it committed.
    pub image: Option<Image>,
    /// Length of its log.
    pub log_bytes: u64,
}
