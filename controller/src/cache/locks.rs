//! One lock per name, for as long as somebody wants it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OwnedMutexGuard;

type Table = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

/// Locks by name. They order the writers of one path within this process, which is the only writer.
#[derive(Default)]
pub(crate) struct Locks(Arc<Table>);

/// Holds one name.
pub(crate) struct Held {
    table: Arc<Table>,
    name: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    /// Waits for `name`.
    pub(crate) async fn hold(&self, name: &str) -> Held {
        let lock = {
            let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(table.entry(name.to_owned()).or_default())
        };
        // Made before the wait, so that a dropped waiter also tidies up.
        let mut held = Held { table: Arc::clone(&self.0), name: name.to_owned(), guard: None };
        held.guard = Some(lock.lock_owned().await);
        held
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.guard = None;
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        // One reference is the table's own; nobody can get another while the table is locked.
        if table.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            table.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_by_name_and_nothing_is_kept() {
        let locks = Locks::default();
        let first = locks.hold("a").await;
        let other = locks.hold("b").await;
        let mut second = std::pin::pin!(locks.hold("a"));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        drop(other);
        assert!(locks.0.lock().unwrap().is_empty());
    }
}
