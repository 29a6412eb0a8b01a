//! When to try again.

use crate::Settings;
use crate::error::TransferError;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

/// Counts the tries of one request.
pub(crate) struct Tries<'a> {
    settings: &'a Settings,
    failed: u32,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(settings: &'a Settings) -> Self {
        Self { settings, failed: 0 }
    }

    /// Some bytes arrived since the last failure: a long transfer over a bad line is allowed to end.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next try, or gives the error back if there shall be none.
    pub(crate) async fn pause(&mut self, error: TransferError) -> Result<(), TransferError> {
        self.failed += 1;
        if !error.is_transient() || self.failed >= self.settings.attempts {
            return Err(error);
        }
        let wait = self.settings.backoff.jittered_millis(self.failed, noise());
        tracing::debug!(error = %error, try_number = self.failed, wait_millis = wait, "trying again");
        tokio::time::sleep(Duration::from_millis(wait)).await;
        Ok(())
    }
}

/// Any number, another one each time: the standard library seeds its hash maps from the system.
fn noise() -> u64 {
    RandomState::new().build_hasher().finish()
}
