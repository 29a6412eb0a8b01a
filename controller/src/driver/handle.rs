//! How the rest of the controller talks to the driver.

use super::Change;
use crate::cache::Leases;
use railyard_common::disk::DiskReport;
use railyard_common::id::{BuildId, JobId, LeaseId, WorkerName};
use railyard_core::{
    Access, Act, Beat, Command, Event, Farm, Live, Phase, Pressure, Refusal, Said, Scarce, WorkerOffer,
};
use railyard_proto::v1;
use railyard_service::convert::FromProto as _;
use std::sync::Arc;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// The controller's end of a worker's stream.
#[derive(Clone, Debug)]
pub struct Link {
    /// What goes to the worker.
    pub messages: mpsc::Sender<v1::ControllerMessage>,
    /// Cancelled when the driver lets go of the session: a later one of the same worker came, or its messages pile up.
    pub cut: CancellationToken,
}

/// A look at the state, run by the driver.
pub(super) type Read = Box<dyn FnOnce(&Farm, &Live) + Send>;

/// What the driver can be asked.
pub(super) enum Request {
    Decide { command: Command, reply: oneshot::Sender<Result<Vec<Event>, CommandError>> },
    Attach(Attach),
    Detach { worker: WorkerName, session: u64 },
    Draining { worker: WorkerName, session: u64 },
    Beat(Beat),
    NoteFinalizeError { build: BuildId, why: String },
    Read(Read),
    Look(Read),
}

/// A worker's hello, with the stream that it came on.
pub(super) struct Attach {
    pub(super) hello: Hello,
    pub(super) greeting: Greeting,
}

/// What a worker says when its stream begins.
pub struct Hello {
    /// What it offers.
    pub offer: Box<WorkerOffer>,
    /// Leases that it holds.
    pub held: Vec<LeaseId>,
    /// Builds of which it keeps something.
    pub builds: Vec<BuildId>,
    /// When it was said, if the worker tells.
    pub said: Option<Said>,
    /// What it says of its disks, if it does.
    pub disk: Option<Arc<DiskReport>>,
}

/// What a hello needs for its answer.
pub(super) struct Greeting {
    /// The answer on the stream, but for what only the dispatcher knows.
    pub(super) welcome: v1::Welcome,
    pub(super) link: Link,
    pub(super) reply: oneshot::Sender<Result<u64, CommandError>>,
}

/// A command was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommandError {
    /// The farm will not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The journal could not be written just now, so nothing can be promised.
    #[error("the controller cannot write its journal, so it takes no new work: {0}; make room or repair the disk")]
    Journal(String),
    /// The same since earlier: nothing was begun.
    #[error("the controller cannot write its journal, so it takes no new work: {0}; make room or repair the disk")]
    Standstill(String),
    /// The controller is going down.
    #[error("the controller is stopping; try again in a moment")]
    Stopping,
}

/// Sends requests to the driver. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    changed: broadcast::Sender<Change>,
    stuck: watch::Receiver<Option<String>>,
    access: watch::Receiver<Arc<Access>>,
}

impl Handle {
    pub(super) fn new(
        requests: mpsc::Sender<Request>,
        changed: broadcast::Sender<Change>,
        stuck: watch::Receiver<Option<String>>,
        access: watch::Receiver<Arc<Access>>,
    ) -> Self {
        Self { requests, changed, stuck, access }
    }

    /// Whether commands would be carried out now.
    ///
    /// # Errors
    /// What a command would hear: [`CommandError::Standstill`], or [`CommandError::Stopping`].
    pub fn ready(&self) -> Result<(), CommandError> {
        match &*self.stuck.borrow() {
            Some(why) => Err(CommandError::Standstill(why.clone())),
            None if self.requests.is_closed() => Err(CommandError::Stopping),
            None => Ok(()),
        }
    }

    /// Tokens and revocations, as they are durable: what was revoked is in it before whoever revoked it hears so.
    pub fn access(&self) -> watch::Receiver<Arc<Access>> {
        self.access.clone()
    }

    /// Carries out a command; returns when it is durable.
    ///
    /// # Errors
    /// [`CommandError`]; nothing has changed then, or, for [`CommandError::Journal`], nothing may be relied on.
    pub async fn decide(&self, command: Command) -> Result<Vec<Event>, CommandError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request::Decide { command, reply }).await;
        sent.map_err(|_| CommandError::Stopping)?;
        answer.await.map_err(|_| CommandError::Stopping)?
    }

    /// Looks at the state as it is between two rounds. `read` should be quick: the farm waits for it.
    ///
    /// # Errors
    /// [`CommandError::Stopping`].
    pub async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Farm, &Live) -> T + Send + 'static,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        let boxed: Read = Box::new(move |farm, live| drop(reply.send(read(farm, live))));
        self.requests.send(Request::Read(boxed)).await.map_err(|_| CommandError::Stopping)?;
        answer.await.map_err(|_| CommandError::Stopping)
    }

    /// Looks at the state as the last round left it, without waiting for the next one to be durable. Sees everything that
    /// anybody was told, and maybe not what was asked for a moment ago and is still unanswered. `look` should be quick.
    ///
    /// # Errors
    /// [`CommandError::Stopping`].
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Farm, &Live) -> T + Send + 'static,
    ) -> Result<T, CommandError> {
        let (reply, answer) = oneshot::channel();
        let boxed: Read = Box::new(move |farm, live| drop(reply.send(look(farm, live))));
        self.requests.send(Request::Look(boxed)).await.map_err(|_| CommandError::Stopping)?;
        answer.await.map_err(|_| CommandError::Stopping)
    }

    /// Begins a worker's session: `welcome`, with the leases and builds filled in, goes out on `link` before any order.
    /// Returns the session's number; a later session of the same worker ends it.
    ///
    /// # Errors
    /// [`CommandError::Refused`] if the worker is not wanted; [`CommandError::Stopping`], also when the hello could not be made
    /// durable.
    pub async fn attach(&self, hello: Hello, welcome: v1::Welcome, link: Link) -> Result<u64, CommandError> {
        let (reply, answer) = oneshot::channel();
        let attach = Attach { hello, greeting: Greeting { welcome, link, reply } };
        self.requests.send(Request::Attach(attach)).await.map_err(|_| CommandError::Stopping)?;
        answer.await.map_err(|_| CommandError::Stopping)?
    }

    /// A worker's stream has ended.
    pub async fn detach(&self, worker: WorkerName, session: u64) {
        // A driver that has stopped has forgotten its sessions already.
        let _ = self.requests.send(Request::Detach { worker, session }).await;
    }

    /// A worker wants no new leases.
    ///
    /// # Errors
    /// [`CommandError::Stopping`].
    pub async fn draining(&self, worker: WorkerName, session: u64) -> Result<(), CommandError> {
        self.requests.send(Request::Draining { worker, session }).await.map_err(|_| CommandError::Stopping)
    }

    /// A heartbeat has come.
    ///
    /// # Errors
    /// [`CommandError::Stopping`].
    pub async fn beat(&self, worker: WorkerName, session: u64, beat: v1::Heartbeat) -> Result<(), CommandError> {
        let beat = beat_of(worker, session, &beat);
        self.requests.send(Request::Beat(beat)).await.map_err(|_| CommandError::Stopping)
    }

    /// A build could not be finalized yet; readers see why.
    pub async fn note_finalize_error(&self, build: BuildId, why: String) {
        // A driver that has stopped has no readers.
        let _ = self.requests.send(Request::NoteFinalizeError { build, why }).await;
    }

    /// What changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changed.subscribe()
    }

    /// Lets the worker that holds the lease act for it.
    ///
    /// # Errors
    /// [`CommandError::Refused`] with [`Refusal::StaleLease`] for everybody else, or [`Refusal::ForeignLease`].
    pub async fn check_lease(&self, act: Act, lease: LeaseId, worker: &WorkerName) -> Result<(), CommandError> {
        let worker = worker.clone();
        Ok(self.read(move |farm, _| farm.allow(act, lease, &worker)).await??)
    }
}

/// For the cache, which serves what was signed for a lease. A farm that is stopping knows of none.
#[async_trait::async_trait]
impl Leases for Handle {
    async fn is_live(&self, lease: LeaseId) -> bool {
        self.look(move |farm, _| farm.holder(lease).is_some()).await.unwrap_or(false)
    }
}

/// A heartbeat out of the protocol. Every pair of numbers is a lease; a phase that a newer worker knows is left out.
fn beat_of(worker: WorkerName, session: u64, beat: &v1::Heartbeat) -> Beat {
    let leases = beat.leases.iter().filter_map(|status| {
        let lease = status.lease.as_ref()?;
        Some((LeaseId { job: JobId(lease.job), attempt: lease.attempt }, phase_of(status.phase())))
    });
    // Zero is what a worker says that cannot tell.
    let (sequence, free_disk_bytes) = (beat.sequence, Some(beat.free_disk_bytes).filter(|bytes| *bytes > 0));
    let pressure = beat.pressure.as_ref().and_then(pressure_of);
    let disk = disk_of(beat.disk.as_ref());
    Beat { worker, session, sequence, leases: leases.collect(), free_disk_bytes, disk, pressure }
}

/// What a worker says of its disks. What makes no sense is as good as nothing.
pub(crate) fn disk_of(disk: Option<&v1::DiskReport>) -> Option<Arc<DiskReport>> {
    DiskReport::from_proto(disk?.clone()).ok().map(Arc::new)
}

/// What a newer worker knows and this controller does not is nothing against more jobs.
fn pressure_of(pressure: &v1::Pressure) -> Option<Pressure> {
    let scarce = match pressure.scarce() {
        v1::Scarce::Unspecified => return None,
        v1::Scarce::Memory => Scarce::Memory,
        v1::Scarce::Io => Scarce::Io,
    };
    Some(Pressure { scarce, percent: pressure.percent.min(100) })
}

fn phase_of(phase: v1::Phase) -> Option<Phase> {
    match phase {
        v1::Phase::Unspecified => None,
        v1::Phase::Fetch => Some(Phase::Fetch),
        v1::Phase::Run => Some(Phase::Run),
        v1::Phase::Upload => Some(Phase::Upload),
    }
}
