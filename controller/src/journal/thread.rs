//! The journal on a thread of its own.
//!
//! It blocks on the disk. On the runtime's pool for blocking work it would stand in line behind whatever else blocks there,
//! and with it the whole farm.

use super::{Journal, JournalError};
use std::path::PathBuf;
use std::sync::{Mutex, mpsc};
use tokio::sync::oneshot;

type Work = Box<dyn FnOnce(&mut dyn Journal) + Send>;

/// A journal that is asked from async code, one thing at a time.
pub(crate) struct JournalThread(Place);

/// Where its work is done.
enum Place {
    Thread { work: mpsc::Sender<Work>, closed: oneshot::Receiver<()> },
    Here(Mutex<Box<dyn Journal>>),
}

impl JournalThread {
    /// Gives `journal` a thread, if it needs one.
    ///
    /// # Errors
    /// [`JournalError::Io`] if the system has no thread to give.
    pub(crate) fn start(mut journal: Box<dyn Journal>) -> Result<Self, JournalError> {
        if !journal.blocks() {
            return Ok(Self(Place::Here(Mutex::new(journal))));
        }
        let (work, orders) = mpsc::channel::<Work>();
        let (done, closed) = oneshot::channel();
        let keep = move || {
            for work in orders {
                work(&mut *journal);
            }
            drop(journal);
            // Nobody waits if the driver was dropped rather than stopped.
            let _ = done.send(());
        };
        let started = std::thread::Builder::new().name("journal".to_owned()).spawn(keep);
        let path = PathBuf::from("the journal");
        started.map_err(|source| JournalError::Io { what: "start the thread of", path, source })?;
        Ok(Self(Place::Thread { work, closed }))
    }

    /// Does `work` with the journal.
    pub(crate) async fn run<T, F>(&self, work: F) -> T
    where
        T: Send + 'static,
        F: FnOnce(&mut dyn Journal) -> T + Send + 'static,
    {
        let thread = match &self.0 {
            Place::Thread { work, .. } => work,
            Place::Here(journal) => return work(&mut **journal.lock().expect("the journal does not panic")),
        };
        let (reply, answer) = oneshot::channel();
        // Whoever asked may be gone; the work is done all the same.
        let work = Box::new(move |journal: &mut dyn Journal| drop(reply.send(work(journal))));
        thread.send(work).expect("the journal does not panic");
        answer.await.expect("the journal does not panic")
    }

    /// Closes the journal; when this returns, another process can open it.
    pub(crate) async fn close(self) {
        if let Place::Thread { work, closed } = self.0 {
            drop(work);
            // An error says that the thread is gone, and the journal with it.
            let _ = closed.await;
        }
    }
}
