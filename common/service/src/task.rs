//! The one place where a task is spawned, and where work goes that blocks.

use std::cell::Cell;
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

thread_local! {
    static IN_PLACE: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`, which waits for a disk or keeps a core busy, on a thread that may block. Once begun it is done, even if
/// nobody waits for it any more. A panic in it goes on here.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if IN_PLACE.get() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down; nobody waits for the result.
            Err(_) => std::future::pending().await,
        },
    }
}

/// From now on [`blocking`] on this thread does its work in place. For simulations: their time stands still meanwhile, and
/// no other thread has a say in the order of what happens.
pub fn block_in_place() {
    IN_PLACE.set(true);
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
    async fn blocking_work_has_a_thread_of_its_own_unless_a_simulation_wants_it_here() {
        let here = std::thread::current().id();
        assert_ne!(blocking(|| std::thread::current().id()).await, here);
        let panicked = spawn("bug", blocking(|| panic!("planted"))).await;
        assert!(panicked.unwrap_err().is_panic());
        block_in_place();
        assert_eq!(blocking(|| std::thread::current().id()).await, here);
    }

    #[tokio::test]
    async fn gives_the_result_and_reports_a_panic_to_the_owner() {
        assert_eq!(spawn("sum", async { 1 + 1 }).await.unwrap(), 2);
        assert!(spawn("bug", async { panic!("planted") }).await.unwrap_err().is_panic());
    }
}
