//! Who did what: an append-only, hash-chained file.
//!
//! ```text
//! handlers ─ record ─► owner (one task) ─ lines ─► DATA/audit/audit-NNNNNNNNNNNNNNN1.jsonl   one sync for all that wait
//!                                       ─ place ─► DATA/audit/head                           the last record, beside the chain
//! ```
//!
//! **Invariant:** [`Audit::record`] returns `Ok` only when the record is on the disk, and nothing that changes the farm is
//! acknowledged before that, but for what takes somebody's access away: that waits for no disk. While records cannot be written [`Audit::ready`] says so, and nothing that is to be recorded is
//! begun; what was begun already is kept, and written as soon as that works again.

mod act;
mod entry;
mod files;
mod flood;
pub mod fuzz;
mod lines;
mod log;
mod owner;
mod read;
mod record;
mod recorded;
mod verify;

pub use act::Act;
pub use entry::{By, Entry, Outcome};
pub use read::{Filter, Follower, Shown};
pub use record::{BadHead, Hash, Head, Record};
pub use recorded::Recorded;
pub use verify::{Fault, Verified, Wanted, verify};

use log::Log;
use owner::{Owner, Request};
use railyard_service::clock::Clock;
use railyard_service::task;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::task::TaskTracker;

/// Entries that may wait for the owner: a sync takes about a millisecond, and shares itself among all that wait.
const QUEUE_LEN: usize = 4_096;

/// How long the end waits for calls that are under way: what they ask for is over by then, so that they only record it.
const CALLS_DEADLINE: Duration = Duration::from_secs(5);

/// A segment is not made longer than this: some hundred thousand records, which any tool still opens.
const SEGMENT_MAX_BYTES: u64 = 64 * 1024 * 1024;

/// The way to the audit's one owner. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    requests: mpsc::Sender<Request>,
    stuck: watch::Receiver<Option<String>>,
    head: watch::Receiver<Head>,
    dir: Arc<PathBuf>,
    /// Calls that are under way and will be recorded.
    calls: TaskTracker,
}

/// The audit cannot do its work.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AuditError {
    /// The file system refused.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// Records cannot be written now; those of what was done already are kept and will be.
    #[error("the controller cannot write its audit, so it changes nothing: {why}; make room or repair the disk")]
    Unwritable {
        /// What the file system says.
        why: String,
    },
    /// It is closed.
    #[error("the controller is stopping; try again in a moment")]
    Stopping,
}

impl AuditError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source: Arc::new(source) }
    }
}

impl Audit {
    /// Opens the audit in `dir`, makes it if there is none, and starts its owner on the current runtime. A line that a crash has
    /// torn is cut off; if more than that is wrong, the audit goes on in a new file that says so in its first record.
    ///
    /// # Errors
    /// [`AuditError::Io`] if the files cannot be read or written.
    pub fn open(dir: &Path, clock: Arc<dyn Clock>) -> Result<Self, AuditError> {
        Self::open_with(dir, clock, SEGMENT_MAX_BYTES)
    }

    fn open_with(dir: &Path, clock: Arc<dyn Clock>, segment_max: u64) -> Result<Self, AuditError> {
        let (log, found) = Log::open(dir, segment_max)?;
        let (requests, waiting) = mpsc::channel(QUEUE_LEN);
        let (is_stuck, stuck) = watch::channel(None);
        let (at, head) = watch::channel(log.head());
        let owner = Owner::new(log, found, clock, waiting, is_stuck, at);
        // It ends with the last handle, or when it is closed.
        drop(task::spawn("audit", owner.run()));
        Ok(Self { requests, stuck, head, dir: Arc::new(dir.to_owned()), calls: TaskTracker::new() })
    }

    /// Whether a record would be written now. Ask before you do what is to be recorded.
    ///
    /// # Errors
    /// [`AuditError::Unwritable`] while the disk refuses, [`AuditError::Stopping`] after the end.
    pub fn ready(&self) -> Result<(), AuditError> {
        match &*self.stuck.borrow() {
            Some(why) => Err(AuditError::Unwritable { why: why.clone() }),
            None if self.requests.is_closed() => Err(AuditError::Stopping),
            None => Ok(()),
        }
    }

    /// A call that records what it did: the end waits for it.
    pub fn under_way<F: Future>(&self, call: F) -> impl Future<Output = F::Output> + use<F> {
        self.calls.track_future(call)
    }

    /// Writes a record; returns when it is durable. Of what was refused or failed only so many a minute are written for each
    /// address; the rest is counted, and the count is written.
    ///
    /// # Errors
    /// [`AuditError`]: do not acknowledge what was done. Its record is written later, if the controller lives on.
    pub async fn record(&self, entry: Entry) -> Result<(), AuditError> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request::Record { entry, reply: Some(reply) }).await;
        sent.map_err(|_| AuditError::Stopping)?;
        answer.await.map_err(|_| AuditError::Stopping)?
    }

    /// Has something refused written some time, without waiting for it: for refusals, which must cost little. In a flood it
    /// may be only counted, or left out.
    pub fn note(&self, entry: Entry) {
        debug_assert!(entry.outcome != Outcome::Done, "what is done is recorded before it is acknowledged");
        // A full queue is a flood, and the owner's count of it is bounded too.
        let _ = self.requests.try_send(Request::Record { entry, reply: None });
    }

    /// The last record.
    pub fn head(&self) -> Head {
        *self.head.borrow()
    }

    /// The last record, whenever it changes.
    pub fn heads(&self) -> watch::Receiver<Head> {
        self.head.clone()
    }

    /// Checks the whole chain, up to the last record.
    ///
    /// # Errors
    /// As [`verify()`].
    pub async fn verify(&self, wanted: Wanted) -> Result<Verified, AuditError> {
        let (dir, until) = (self.dir.clone(), self.head());
        task::blocking(move || verify::verify_until(&dir, &wanted, Some(until))).await
    }

    /// Where its files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits for calls under way, but not for ever, writes what waits, then `last`, and closes the files. What comes later is
    /// refused.
    ///
    /// # Errors
    /// [`AuditError`] if it could not be written.
    pub async fn close(&self, last: Entry) -> Result<(), AuditError> {
        self.calls.close();
        if tokio::time::timeout(CALLS_DEADLINE, self.calls.wait()).await.is_err() {
            tracing::error!(calls = self.calls.len(), "calls are still under way at the end: they may go unrecorded");
        }
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request::Close { last, reply }).await;
        sent.map_err(|_| AuditError::Stopping)?;
        answer.await.map_err(|_| AuditError::Stopping)?
    }
}

#[cfg(test)]
mod damage;
#[cfg(test)]
mod tests;
