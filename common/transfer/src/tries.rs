//! When to try again.

use crate::Settings;
use crate::error::TransferError;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Times in a row that the same bytes may arrive damaged or cut off: a network does that now and then, bad memory always.
const DAMAGED_MAX: u32 = 8;

/// Counts the tries of one request. How long they go on is not counted here: that ends with the transfer's progress.
pub(crate) struct Tries<'a> {
    settings: &'a Settings,
    last: &'a LastError,
    failed: u32,
    damaged: u32,
}

/// What stood in the way last; told when a transfer is given up.
#[derive(Default)]
pub(crate) struct LastError {
    error: Mutex<Option<TransferError>>,
    /// The log has it that the cache is full.
    is_full_told: AtomicBool,
}

impl LastError {
    pub(crate) fn take(&self) -> Option<TransferError> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Told once, however many tries there are: somebody has to do something about it, and until then nothing is seen to move.
    fn tell_if_full(&self, error: &TransferError) {
        if matches!(error, TransferError::CacheFull { .. }) && !self.is_full_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "waiting for room in the cache");
        }
    }
}

impl<'a> Tries<'a> {
    pub(crate) fn new(settings: &'a Settings, last: &'a LastError) -> Self {
        Self { settings, last, failed: 0, damaged: 0 }
    }

    /// Some bytes arrived since the last failure: a long transfer over a bad line is allowed to end.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
        self.damaged = 0;
    }

    /// Waits before the next try, or gives the error back if there shall be none.
    pub(crate) async fn pause(&mut self, error: TransferError) -> Result<(), TransferError> {
        self.failed += 1;
        self.damaged += u32::from(error.is_damage());
        if !error.is_transient() || self.damaged >= DAMAGED_MAX {
            return Err(error);
        }
        let wait = self.settings.backoff.jittered_millis(self.failed, noise());
        self.last.tell_if_full(&error);
        tracing::debug!(error = %error, try_number = self.failed, wait_millis = wait, "trying again");
        *self.last.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        tokio::time::sleep(Duration::from_millis(wait)).await;
        Ok(())
    }
}

/// Any number, another one each time: the standard library seeds its hash maps from the system.
fn noise() -> u64 {
    RandomState::new().build_hasher().finish()
}
