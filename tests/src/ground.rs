//! A farm on either of the cache's backends.

use crate::farm::{Farm, TELL_PARTS};
use crate::s3::{KEYS, Store};
use std::path::PathBuf;

/// A farm and where its cache is.
pub struct Ground {
    /// The farm.
    pub farm: Farm,
    store: Option<Store>,
}

impl Ground {
    /// On the embedded cache.
    pub fn embedded() -> Self {
        Self { farm: Farm::start_with("", &[TELL_PARTS]), store: None }
    }

    /// On an S3 service.
    pub fn s3() -> Self {
        let store = Store::start();
        Self { farm: Farm::start_with(&store.place(), &KEYS), store: Some(store) }
    }

    /// The service, if there is one.
    pub fn store(&self) -> Option<&Store> {
        self.store.as_ref()
    }

    /// The parts that the cache has taken, each with its upload, in their order.
    pub fn parts(&self) -> Vec<(String, u32)> {
        self.store.as_ref().map_or_else(|| self.farm.parts(), |store| store.seen().parts)
    }

    /// The cache's objects, as files.
    pub fn objects(&self) -> PathBuf {
        self.store.as_ref().map_or_else(|| self.farm.dir.path().join("controller/cache"), Store::bucket)
    }
}
