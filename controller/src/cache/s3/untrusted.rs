//! What untrusted builds send.
//!
//! An upload of a trusted build goes to the blob's own place, and above a limit nobody reads all of it before it counts: workers
//! are trusted with what they build. A worker on which a stranger's step has broken out is not. It could send other bytes than
//! those of a digest that it knows, and who builds the right ones would find the digest taken. So what is sent for an untrusted
//! build goes to a place of its own, is read there to its end, and is copied to the blob's place by the service only then.
//!
//! ```text
//! uploads/untrusted/LEASE/HEX    until it was read
//! ```
//!
//! **Invariant:** no byte that an untrusted build sent is ever at a blob's place before it was verified; and nobody waits for that.

use super::copy::Copied;
use super::readback::UNTRUSTED_READERS;
use super::store::all_parts;
use super::{S3, key};
use crate::cache::verify::Verdict;
use crate::cache::{Cache as _, CacheError};
use object_store::multipart::MultipartStore as _;
use object_store::{Error, GetOptions};
use railyard_common::blob::Blob;
use railyard_common::id::LeaseId;
use railyard_common::layout;
use railyard_common::path::RelPath;

/// Where they lie: below a place that the farm keeps for itself.
const STAGED: &str = "uploads/untrusted";

/// Where an upload goes.
pub(super) fn place_of(lease: LeaseId, blob: &Blob, untrusted: bool) -> Result<RelPath, CacheError> {
    if !untrusted {
        return Ok(layout::blob(blob));
    }
    let text = format!("{STAGED}/{lease}/{}", blob.digest.hex());
    text.parse().map_err(|_| CacheError::BadPath { path: text, why: "it is no path".to_owned() })
}

impl S3 {
    /// Completes an upload of an untrusted build, reads all of it, and makes a blob of it if it is one.
    pub(super) async fn complete_untrusted(
        &self,
        lease: LeaseId,
        blob: &Blob,
        upload_id: &str,
        etags: &[String],
    ) -> Result<(), CacheError> {
        let staged = place_of(lease, blob, true)?;
        // Whoever repeats the call waits for the first, and finds what that has done.
        let _held = self.locks.hold(staged.as_str()).await;
        if self.find(&blob.digest).await?.is_some() {
            return self.abort_upload(lease, blob, upload_id).await;
        }
        let unknown = || CacheError::UnknownUpload { id: upload_id.to_owned() };
        let note = self.begun(lease, &blob.digest).await?;
        note.filter(|note| note.untrusted && note.upload_id == upload_id && note.blob == *blob).ok_or_else(unknown)?;
        let head = GetOptions { head: true, ..GetOptions::default() };
        if self.open_object(&staged, head).await?.is_none() {
            let parts = all_parts(blob, etags)?;
            match self.store.complete_multipart(&key(&staged)?, &upload_id.to_owned(), parts).await {
                Ok(_) => {}
                // Some services answer "denied" for an upload that is no more.
                Err(Error::NotFound { .. } | Error::PermissionDenied { .. }) => {
                    self.unnote(lease, &blob.digest).await?;
                    return Err(unknown());
                }
                Err(error) => return Err(CacheError::store("complete the upload of", &staged)(error)),
            }
        }
        let verdict = self.read_whole(blob, &staged, &UNTRUSTED_READERS).await?;
        if let Verdict::Good = verdict {
            self.take_up(blob, &staged).await?;
        }
        self.remove(&staged).await?;
        self.unnote(lease, &blob.digest).await?;
        match verdict {
            Verdict::Good => Ok(()),
            Verdict::Bad(why) => {
                tracing::warn!(%lease, digest = %blob.digest, why, "what an untrusted build sent is not the blob that was promised");
                Err(CacheError::Corrupt { digest: blob.digest, why })
            }
        }
    }

    /// What was read becomes the blob, unless somebody else has sent it meanwhile.
    async fn take_up(&self, blob: &Blob, staged: &RelPath) -> Result<(), CacheError> {
        let _held = self.locks.hold(&blob.digest.hex()).await;
        self.settle(&blob.digest).await?;
        if self.find_unlocked(&blob.digest).await?.is_some() {
            return Ok(());
        }
        let path = layout::blob(blob);
        match self.copy(staged, &path, blob.stored_bytes, &blob.digest).await? {
            Copied::Done => Ok(()),
            Copied::Exists if self.find_unlocked(&blob.digest).await?.is_some() => Ok(()),
            Copied::Exists => {
                let source = "the service did not end the copy, and nothing is there".into();
                Err(CacheError::Store { what: format!("copy to {path}"), source })
            }
        }
    }
}
