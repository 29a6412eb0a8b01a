//! One at a time for each key.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::OwnedMutexGuard;

/// Locks by key. A lock that nobody holds or waits for takes no room.
#[derive(Debug)]
pub struct Keyed<K> {
    locks: Mutex<BTreeMap<K, Weak<tokio::sync::Mutex<()>>>>,
}

impl<K> Default for Keyed<K> {
    fn default() -> Self {
        Self { locks: Mutex::new(BTreeMap::new()) }
    }
}

impl<K: Ord> Keyed<K> {
    /// Waits until nobody else holds `key`. Released when the guard is dropped.
    pub async fn lock(&self, key: K) -> OwnedMutexGuard<()> {
        let lock = {
            // The map is whole at every step; a panic elsewhere does not spoil it.
            let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
            locks.retain(|_, lock| lock.strong_count() > 0);
            let known = locks.get(&key).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let new = Arc::default();
                locks.insert(key, Arc::downgrade(&new));
                new
            })
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keys_do_not_wait_for_each_other_but_for_themselves() {
        let keyed = Keyed::default();
        let first = keyed.lock("a").await;
        let _other = keyed.lock("b").await;
        let mut second = std::pin::pin!(keyed.lock("a"));
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(first);
        second.await;
        drop(keyed.lock("c").await);
        assert_eq!(keyed.locks.lock().unwrap().len(), 2, "only what is held and what was asked for last");
    }
}
