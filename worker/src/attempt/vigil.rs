//! Whether one start of the engine has listened to a container all the time.
//!
//! What a container writes goes through the engine's daemon. One that dies takes along what it had heard and neither written
//! down nor told; what is written while none is there waits for the next one, but is gone if the container ends before
//! that. Containers run on all the while (`live-restore`), and this process may be away as well. Afterwards nobody can tell
//! whether anything is missing. So a mark is left with the engine that it forgets when it is restarted, and written down
//! for the worker's next process. Whenever something was not heard as it should be, the engine is asked for its mark.
//!
//! **Invariant:** a log is whole, or says where some of it may be missing.

use super::record::Record;
use crate::disk::DiskError;
use crate::log::JobLog;
use crate::runtime::{Hearing, RuntimeError};
use std::sync::Arc;

/// What the log says where something may be missing.
pub const RESTARTED: &str = "the engine was restarted while the step ran; what it wrote just then may be missing here";

/// Watches the engine that hears a container.
pub struct Vigil {
    runtime: Arc<dyn Hearing>,
    container: String,
    record: Record,
    /// What the engine that hears it was given; `None` if it could not be, and for the first one since the start.
    mark: Option<String>,
    /// The container had ended when it was last said that something may be missing: nothing comes after that.
    over: bool,
}

impl Vigil {
    /// Begins with a container that was just started.
    pub async fn begin(runtime: Arc<dyn Hearing>, container: &str, record: &Record) -> Self {
        let mut vigil =
            Self { runtime, container: container.to_owned(), record: record.clone(), mark: None, over: false };
        match vigil.first_mark().await {
            Ok(mark) => vigil.keep(mark).await,
            // It is asked for the start itself then, which it remembers for a while.
            Err(error) => tracing::debug!(container, %error, "no mark was left with the engine"),
        }
        vigil
    }

    /// Goes on with a container that the worker's last process had started.
    pub async fn resumed(runtime: Arc<dyn Hearing>, container: &str, record: &Record) -> Self {
        let mark = record.mark().await;
        Self { runtime, container: container.to_owned(), record: record.clone(), mark, over: false }
    }

    /// Says in the log that something may be missing, if the engine is another one than that which was given the mark. An error
    /// of the engine leaves everything as it was, to be tried again.
    ///
    /// # Errors
    /// [`DiskError`] if the log cannot be written.
    pub async fn check(&mut self, log: &JobLog) -> Result<Result<(), RuntimeError>, DiskError> {
        if self.over {
            return Ok(Ok(()));
        }
        match self.runtime.remembers(&self.container, self.mark.as_deref()).await {
            Ok(true) => return Ok(Ok(())),
            Ok(false) => {}
            Err(error) => return Ok(Err(error)),
        }
        let mark = match self.runtime.leave_mark(&self.container).await {
            Err(error) if error.is_unreachable() => return Ok(Err(error)),
            mark => mark,
        };
        tracing::warn!(self.container, "the engine was restarted while a step ran");
        // Before the mark is another one: whoever dies in between says it twice, and not never.
        log.note(RESTARTED).await?;
        match mark {
            Ok(mark) => self.keep(Some(mark)).await,
            // A mark is left with what runs.
            Err(_) => self.over = true,
        }
        Ok(Ok(()))
    }

    /// The mark is worth something only if it is the same engine that has started the container.
    async fn first_mark(&self) -> Result<Option<String>, RuntimeError> {
        let mark = self.runtime.leave_mark(&self.container).await?;
        Ok(self.runtime.remembers(&self.container, None).await?.then_some(mark))
    }

    async fn keep(&mut self, mark: Option<String>) {
        self.mark = mark;
        if let Some(mark) = &self.mark {
            self.record.keep_mark(mark).await;
        }
    }
}
