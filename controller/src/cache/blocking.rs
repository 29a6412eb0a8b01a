//! Work that waits for the disk or keeps a core busy.

pub(crate) use railyard_service::task::blocking;
use tokio::task::JoinHandle;

/// Waits for blocking work. A panic there goes on here.
pub(crate) async fn blocking_join<T>(work: JoinHandle<T>) -> T {
    match work.await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Blocking work is only cancelled when the runtime goes down, and this future with it.
            Err(_) => std::future::pending().await,
        },
    }
}
