//! Images: what a step's container begins with, and what it becomes.
//!
//! [`prepare`] makes sure that the engine has an image, [`make`] makes one of a container, [`save`] brings it into the cache;
//! [`shelf`] knows what this worker has put into the engine, and for how long.

mod export;
mod load;
pub mod make;
mod name;
pub mod prepare;
mod records;
pub mod save;
pub mod shelf;

pub use shelf::{InUse, Shelf, ShelfError};

use railyard_common::digest::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Layers that are known to be in the cache, by diff id. A hint: the controller is asked before anything relies on it.
#[derive(Debug, Default)]
pub struct KnownLayers {
    layers: Mutex<BTreeMap<Digest, railyard_common::blob::Blob>>,
}

impl KnownLayers {
    /// These are in the cache.
    pub fn add(&self, layers: impl IntoIterator<Item = railyard_common::blob::Blob>) {
        let mut known = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(layers.into_iter().map(|blob| (blob.digest, blob)));
    }

    /// Those of `wanted` that are.
    pub fn of(&self, wanted: &[Digest]) -> Vec<railyard_common::blob::Blob> {
        let known = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let unique: BTreeSet<&Digest> = wanted.iter().collect();
        unique.into_iter().filter_map(|digest| known.get(digest).copied()).collect()
    }
}
