//! The one place where a task is spawned.

use std::future::Future;
use tokio::task::JoinHandle;
use tracing::Instrument as _;

/// Spawns `fut` within the current tracing span. Whoever holds the handle owns the task; a panic is logged under `name`,
/// so that it is seen even if nobody awaits the handle.
pub fn spawn<F>(name: &'static str, fut: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    let named = async move {
        let _guard = PanicNote(name);
        fut.await
    };
    #[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
    tokio::spawn(named.in_current_span())
}

/// Dropped by a panic that unwinds through the task, it leaves a line in the log.
struct PanicNote(&'static str);

impl Drop for PanicNote {
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!(task = self.0, "a task panicked; this is a bug, please report it with the lines above");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn gives_the_result_and_reports_a_panic_to_the_owner() {
        assert_eq!(spawn("sum", async { 1 + 1 }).await.unwrap(), 2);
        assert!(spawn("bug", async { panic!("planted") }).await.unwrap_err().is_panic());
    }
}
