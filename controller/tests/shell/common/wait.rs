//! Waiting for a condition, never for a time.

use std::time::Duration;

/// Longest wait for anything that should happen at once; far above what a busy machine needs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The result of `wanted`, which must come soon.
#[track_caller]
pub fn soon<F: Future>(what: &'static str, wanted: F) -> impl Future<Output = F::Output> {
    let caller = std::panic::Location::caller();
    async move {
        let done = tokio::time::timeout(LIMIT, wanted).await;
        done.unwrap_or_else(|_| panic!("{caller}: {what} did not happen within {LIMIT:?}"))
    }
}

/// Looks again and again until `look` gives something.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &'static str, mut look: impl FnMut() -> F) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(LIMIT, looking).await.unwrap_or_else(|_| panic!("{what} did not happen within {LIMIT:?}"))
}
