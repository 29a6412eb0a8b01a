//! What goes into a dispatcher, and what comes out.

use crate::command::Command;
use crate::event::Event;
use crate::pressure::Pressure;
use crate::refusal::Refusal;
use crate::worker::WorkerOffer;
use railyard_common::disk::DiskReport;
use railyard_common::id::{BuildId, JobId, LeaseId, PipelineName, WorkerName};
use railyard_common::order::Order;
use std::sync::Arc;

/// By which the shell finds whoever waits for an answer. The dispatcher only hands it back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// How far an attempt is, as its worker says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Fetching inputs and preparing the image.
    Fetch,
    /// The container runs.
    Run,
    /// Hashing and sending outputs.
    Upload,
}

/// What the dispatcher is asked.
#[derive(Debug)]
pub enum Input {
    /// Carry this out.
    Command {
        /// For the answer.
        ticket: Ticket,
        /// What.
        command: Command,
    },
    /// A worker's hello on a new stream.
    Attach {
        /// For the answer.
        ticket: Ticket,
        /// What it offers.
        offer: Box<WorkerOffer>,
        /// Leases that it holds.
        held: Vec<LeaseId>,
        /// Builds of which it keeps something.
        builds: Vec<BuildId>,
        /// When it was said, if the worker tells.
        said: Option<Said>,
        /// What it says of its disks, if it does.
        disk: Option<Arc<DiskReport>>,
    },
    /// A worker's stream has ended.
    Detach {
        /// Whose.
        worker: WorkerName,
        /// Which.
        session: u64,
    },
    /// A worker wants no new leases, because its process ends. Said on an earlier stream it means an earlier process.
    Draining {
        /// Who.
        worker: WorkerName,
        /// On which of its streams.
        session: u64,
    },
    /// A heartbeat.
    Beat(Beat),
    /// A build could not be finalized yet.
    FinalizeError {
        /// Which.
        build: BuildId,
        /// Why, for people.
        why: String,
    },
    /// Somebody wants to look at the state, as it is when the round is durable.
    Read {
        /// For the answer.
        ticket: Ticket,
    },
}

/// When a hello was said, on the clock of its host. A connection that was cut may deliver a hello after a later one that came on
/// another connection; what the later one said holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// This start of the host's kernel. Nothing under way survives the next one.
    pub host_boot: String,
    /// Since then. It goes on over restarts of the worker's process.
    pub uptime_millis: u64,
}

/// A heartbeat.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Whose.
    pub worker: WorkerName,
    /// On which of its streams.
    pub session: u64,
    /// Its number on that stream.
    pub sequence: u64,
    /// What the worker holds, and how far that is, if it says so.
    pub leases: Vec<(LeaseId, Option<Phase>)>,
    /// What is free on the worker's disk, if it could tell.
    pub free_disk_bytes: Option<u64>,
    /// What else the worker says of its disks, if it does. Its room goes before what is free.
    pub disk: Option<Arc<DiskReport>>,
    /// What the worker's host is under pressure of.
    pub pressure: Option<Pressure>,
}

/// What leaves. Messages to workers name the session that they belong to; they go to it or to nobody.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// What a command came to.
    Decided {
        /// Whose command.
        ticket: Ticket,
        /// Its events, or why not.
        result: Result<Vec<Event>, Refusal>,
    },
    /// Whoever wanted to look may look now.
    Read {
        /// Who.
        ticket: Ticket,
    },
    /// A session begins. It comes before any other message of the session.
    Welcome {
        /// Whose hello.
        ticket: Ticket,
        /// The worker.
        worker: WorkerName,
        /// The session's number.
        session: u64,
        /// What it holds, of what it said.
        held: Vec<LeaseId>,
        /// What is over, of the builds that it named.
        builds_over: Vec<BuildId>,
    },
    /// A worker is not wanted.
    TurnedAway {
        /// Whose hello.
        ticket: Ticket,
        /// Why.
        refusal: Refusal,
    },
    /// A session is over: its worker was sent away.
    Cut {
        /// Whose.
        worker: WorkerName,
        /// Which.
        session: u64,
    },
    /// The answer to a heartbeat.
    Ack {
        /// To whom.
        worker: WorkerName,
        /// On which stream.
        session: u64,
        /// Which heartbeat.
        sequence: u64,
        /// What the worker does not hold, of what it said.
        lost: Vec<LeaseId>,
    },
    /// Run an attempt.
    Order {
        /// To whom.
        worker: WorkerName,
        /// On which stream.
        session: u64,
        /// What. The traceparent is left to the shell.
        order: Box<Order>,
    },
    /// Stop an attempt.
    Cancel {
        /// To whom.
        worker: WorkerName,
        /// On which stream.
        session: u64,
        /// Which.
        lease: LeaseId,
        /// Why, for people.
        reason: String,
    },
    /// A build has ended; what a worker keeps of it may go.
    BuildOver {
        /// To whom.
        worker: WorkerName,
        /// On which stream.
        session: u64,
        /// Which.
        build: BuildId,
    },
    /// A build looks different now.
    BuildChanged(BuildId),
    /// What the lists of a pipeline's builds say is to be written anew.
    IndexChanged(PipelineName),
    /// Workers have come, gone, or are held back in another way: any job may wait for another reason now.
    WorkersChanged,
    /// A lease has ended: its log can be filed.
    LeaseEnded(LeaseId),
    /// A job has ended for good, unless its build is resumed.
    JobEnded(JobId),
    /// A build has ended.
    BuildEnded(BuildId),
    /// Some build may wait to be finalized.
    Finalize,
}
