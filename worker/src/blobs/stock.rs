//! What the blobs take of the disk, and one of them on its way out.

use super::{Blobs, Key, State, unfinished, unfinished_bytes};
use crate::disk::policy::{Need, Thing};
use railyard_common::disk::Kind;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// All blobs of the directory.
#[derive(Debug, Default)]
pub struct Stock {
    /// What could be removed, and what could not.
    pub things: Vec<Thing<Key>>,
    /// How many there are of a kind, and what they take; what is being fetched included.
    pub by_kind: BTreeMap<Kind, (u64, u64)>,
    /// Device and number of every file. Jobs have second names for some.
    pub inodes: HashSet<(u64, u64)>,
}

impl Key {
    /// What it counts as.
    pub fn kind(&self) -> Kind {
        if self.is_packed() { Kind::Layers } else { Kind::Blobs }
    }
}

impl Blobs {
    /// What is there. Asks the file system for each of them.
    pub fn stock(&self) -> Stock {
        let (mut things, coming) = {
            let shelf = self.shared.shelf();
            let things: Vec<(Thing<Key>, State)> =
                shelf.entries.iter().map(|(key, entry)| (entry.thing(*key), entry.state)).collect();
            (things, shelf.coming.clone())
        };
        let mut stock = Stock::default();
        for (thing, state) in &mut things {
            let path = self.path(thing.key);
            stock.add(thing.key, thing.parts.values().sum());
            match state {
                State::Whole => {
                    if stock.look(&path) {
                        thing.need = Need::Job;
                    }
                }
                State::Unfinished => stock.look_at_unfinished(&path),
            }
        }
        for key in coming {
            let path = self.path(key);
            stock.add(key, unfinished_bytes(&path));
            stock.look_at_unfinished(&path);
        }
        stock.things = things.into_iter().map(|(thing, _)| thing).collect();
        stock
    }

    /// What all of them take that are not being fetched.
    pub fn kept_bytes(&self) -> u64 {
        self.shared.shelf().entries.values().map(|entry| entry.size_bytes).sum()
    }

    /// Removes one that nobody holds, and whose bytes no job has under another name. What that frees.
    ///
    /// # Errors
    /// The file system's.
    pub fn evict(&self, key: Key) -> io::Result<u64> {
        let mut shelf = self.shared.shelf();
        let is_free = shelf.entries.get(&key).is_some_and(|entry| entry.holders == 0);
        if !is_free || has_other_names(&self.path(key)) {
            return Ok(0);
        }
        self.shared.remove(&mut shelf, key)
    }
}

impl Stock {
    fn add(&mut self, key: Key, bytes: u64) {
        let (count, all) = self.by_kind.entry(key.kind()).or_default();
        (*count, *all) = (*count + 1, all.saturating_add(bytes));
    }

    /// Nobody else has names for these.
    fn look_at_unfinished(&mut self, path: &Path) {
        for path in unfinished(path) {
            self.look(&path);
        }
    }

    /// Remembers a file; says whether it has other names.
    fn look(&mut self, path: &Path) -> bool {
        let Ok(metadata) = fs::metadata(path) else { return false };
        self.inodes.insert((metadata.dev(), metadata.ino()));
        metadata.nlink() > 1
    }
}

/// A job has it among its inputs, or has just made it: without our name for it nothing would be free.
fn has_other_names(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.nlink() > 1)
}
