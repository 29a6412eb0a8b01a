//! What outlives a controller: a directory, and a cache in it or with a service of its own.

use super::controller::local;
use crate::store::Store;
use railyard_controller::ControllerConfig;
use railyard_controller::cache::{self, Cache, CacheConfig, EmbeddedConfig};
use railyard_service::clock::SystemClock;
use std::path::PathBuf;
use std::sync::Arc;

/// Where the cache keeps its objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Embedded,
    S3,
}

/// A place for controllers, one after the other.
pub struct Ground {
    dir: tempfile::TempDir,
    /// The service of a cache in S3.
    pub store: Option<Store>,
}

impl Ground {
    pub async fn of(backend: Backend) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = match backend {
            Backend::Embedded => None,
            Backend::S3 => Some(Store::start(&dir.path().join("s3")).await),
        };
        Self { dir, store }
    }

    /// Settings of a controller here.
    pub fn config(&self) -> ControllerConfig {
        let cache = self.store.as_ref().map(|store| CacheConfig::S3(store.config.clone()));
        ControllerConfig { cache, ..local(self.data_dir()) }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The cache's objects, as files.
    pub fn objects(&self) -> PathBuf {
        self.store.as_ref().map_or_else(|| self.embedded(), |store| store.bucket.clone())
    }

    /// Where an embedded cache keeps them; with a service there is nothing.
    pub fn embedded(&self) -> PathBuf {
        self.data_dir().join("cache")
    }

    /// The cache without a controller.
    pub async fn cache(&self) -> Arc<dyn Cache> {
        // Another test of this process may have been first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let embedded = || EmbeddedConfig { dir: self.embedded(), public_read: false, key_file: None };
        let config = self.config().cache.unwrap_or_else(|| CacheConfig::Embedded(embedded()));
        cache::open(&config, "https://farm/cache", Arc::new(SystemClock)).await.unwrap().cache
    }
}
