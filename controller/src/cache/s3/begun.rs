//! Uploads that were begun and have not ended, by lease.
//!
//! The service can list its unfinished uploads, but not whose they are. A note in the bucket says so, so that an upload goes
//! on after a restart of this process, and ends with its lease.
//!
//! ```text
//! uploads/begun/LEASE/HEX    the upload's id and the blob, JSON
//! ```

use super::{S3, key};
use crate::cache::{Cache as _, CacheError};
use object_store::ObjectStoreExt as _;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::path::RelPath;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::OnceCell;

/// Where the notes lie: below a place that the farm keeps for itself.
const NOTES: &str = "uploads/begun";
/// Notes that are listed at once.
const PAGE: usize = 1000;

/// What the notes say. Read once: this process is the only writer.
#[derive(Default)]
pub(super) struct Uploads(OnceCell<Mutex<BTreeMap<(LeaseId, Digest), Note>>>);

/// One upload.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Note {
    pub upload_id: String,
    pub blob: Blob,
    /// It is an untrusted build's, and does not go to the blob's place.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
}

fn path_of(lease: LeaseId, digest: &Digest) -> Result<RelPath, CacheError> {
    let text = format!("{NOTES}/{lease}/{}", digest.hex());
    text.parse().map_err(|_| CacheError::BadPath { path: text, why: "it is no path".to_owned() })
}

impl S3 {
    /// The upload that a lease has begun for a digest.
    pub(super) async fn begun(&self, lease: LeaseId, digest: &Digest) -> Result<Option<Note>, CacheError> {
        Ok(self.notes().await?.get(&(lease, *digest)).cloned())
    }

    /// All uploads of a lease.
    pub(super) async fn all_begun(&self, lease: LeaseId) -> Result<Vec<Note>, CacheError> {
        let notes = self.notes().await?;
        Ok(notes.iter().filter(|((owner, _), _)| *owner == lease).map(|(_, note)| note.clone()).collect())
    }

    /// Every lease that has begun one.
    pub(super) async fn beginners(&self) -> Result<Vec<LeaseId>, CacheError> {
        let mut leases: Vec<LeaseId> = self.notes().await?.keys().map(|(lease, _)| *lease).collect();
        leases.dedup();
        Ok(leases)
    }

    /// Notes an upload, before anybody is told of it.
    pub(super) async fn note(&self, lease: LeaseId, note: Note) -> Result<(), CacheError> {
        let path = path_of(lease, &note.blob.digest)?;
        let failed = || CacheError::store("write", &path);
        let json = serde_json::to_vec(&note)
            .map_err(|error| failed()(object_store::Error::Generic { store: "S3", source: error.into() }))?;
        self.store.put(&key(&path)?, json.into()).await.map_err(failed())?;
        self.notes().await?.insert((lease, note.blob.digest), note);
        Ok(())
    }

    /// An upload has ended.
    pub(super) async fn unnote(&self, lease: LeaseId, digest: &Digest) -> Result<(), CacheError> {
        if self.begun(lease, digest).await?.is_none() {
            return Ok(());
        }
        self.remove(&path_of(lease, digest)?).await?;
        self.notes().await?.remove(&(lease, *digest));
        Ok(())
    }

    async fn notes(&self) -> Result<MutexGuard<'_, BTreeMap<(LeaseId, Digest), Note>>, CacheError> {
        let notes = self.uploads.0.get_or_try_init(|| self.read_notes()).await?;
        // Every change is a single step; a panic elsewhere does not spoil it.
        Ok(notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn read_notes(&self) -> Result<Mutex<BTreeMap<(LeaseId, Digest), Note>>, CacheError> {
        let mut notes = BTreeMap::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.list(NOTES, after.as_deref(), PAGE).await?;
            for entry in &page {
                let lease = entry.path.as_str().split('/').rev().nth(1).and_then(|lease| lease.parse().ok());
                let Some(lease) = lease else { continue };
                let Some((bytes, _)) = self.get(&entry.path).await? else { continue };
                match serde_json::from_slice::<Note>(&bytes) {
                    Ok(note) => drop(notes.insert((lease, note.blob.digest), note)),
                    // Its parts go with the bucket's lifecycle rule.
                    Err(error) => {
                        tracing::warn!(path = %entry.path, %error, "the note of an upload is damaged; removing it");
                        self.remove(&entry.path).await?;
                    }
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.path.to_string()),
                _ => return Ok(Mutex::new(notes)),
            }
        }
    }
}
