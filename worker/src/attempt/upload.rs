//! Bytes on their way into the cache: only those that it lacks.

use super::dirs::JobDir;
use super::fault::Fault;
use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::uplink::{Grant, UplinkError};
use crate::workshop::Workshop;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use railyard_common::blob::{Blob, PartToSign};
use railyard_common::id::LeaseId;
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_transfer::{Crc32s, Finished, MoveError, PartLog, PartUrls, Stored, Ticket, TransferError};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

/// Files that one job sends at a time. Each goes in parallel parts of its own; more only helps many small ones.
const FILES_AT_A_TIME: usize = 4;

/// Tickets that are asked for anew when the store has forgotten the upload.
const FRESH_TICKETS: u32 = 3;

/// A blob and the file with its stored bytes.
#[derive(Clone, Debug)]
pub struct Upload {
    /// The blob.
    pub blob: Blob,
    /// Its stored bytes.
    pub file: PathBuf,
    /// What is known of them.
    pub crc32s: Option<Arc<Crc32s>>,
}

/// What was sent so far; the report completes it.
pub type Uploads = Vec<Finished>;

/// Sends what the cache lacks. Gives each blob as the cache holds it, in order.
///
/// # Errors
/// [`Fault`].
pub async fn push(
    shop: &Workshop,
    lease: LeaseId,
    wanted: Vec<Upload>,
    uploads: &mut Uploads,
) -> Result<Vec<Blob>, Fault> {
    // Files with the same content are one blob, and a blob that this report already has is not sent again.
    let done: BTreeMap<_, _> = uploads.iter().map(|finished| (finished.blob.digest, finished.blob)).collect();
    let mut seen: BTreeSet<_> = done.keys().copied().collect();
    let fresh: Vec<&Upload> = wanted.iter().filter(|upload| seen.insert(upload.blob.digest)).collect();
    let blobs: Vec<Blob> = fresh.iter().map(|upload| upload.blob).collect();
    let grants = shop.uplink.prepare_upload(lease, &blobs).await?;
    let mut stored = done;
    let mut tickets = Vec::new();
    for (upload, grant) in fresh.into_iter().zip(grants) {
        match grant {
            Grant::Present(blob) => drop(stored.insert(blob.digest, blob)),
            Grant::Send(ticket) => tickets.push((upload.clone(), ticket)),
        }
    }
    let sent: Vec<Sent> = stream::iter(tickets)
        .map(|(upload, ticket)| push_one(shop, lease, upload, ticket))
        .buffer_unordered(FILES_AT_A_TIME)
        .try_collect()
        .await?;
    for one in sent {
        match one {
            Sent::Now(finished) => {
                stored.insert(finished.blob.digest, finished.blob);
                uploads.push(finished);
            }
            Sent::ByOther(blob) => drop(stored.insert(blob.digest, blob)),
        }
    }
    Ok(wanted.iter().map(|upload| stored.get(&upload.blob.digest).copied().unwrap_or(upload.blob)).collect())
}

enum Sent {
    Now(Finished),
    /// Somebody else had completed the same blob when ours was asked for again.
    ByOther(Blob),
}

async fn push_one(shop: &Workshop, lease: LeaseId, upload: Upload, mut ticket: Ticket) -> Result<Sent, Fault> {
    let Upload { blob, file, crc32s } = &upload;
    let stored = Stored { file, crc32s: crc32s.as_deref() };
    for n in 1.. {
        let urls = LeaseUrls { shop, lease, blob, upload_id: &ticket.upload_id };
        let log = part_log(shop, lease, blob, &ticket.upload_id).await?;
        match shop.transfer.push(stored, blob, &ticket, &urls, &log, &railyard_transfer::silent).await {
            Ok(finished) => return Ok(Sent::Now(finished)),
            Err(MoveError::Transfer(TransferError::Gone { .. })) if n < FRESH_TICKETS => {}
            Err(MoveError::Transfer(error)) => return Err(error.into()),
            Err(MoveError::Urls(error)) => return Err(error.into()),
        }
        let gone = std::slice::from_ref(&ticket.upload_id);
        let grants = shop.uplink.prepare_upload_but(lease, std::slice::from_ref(blob), gone).await?;
        match grants.into_iter().next() {
            Some(Grant::Send(fresh)) => ticket = fresh,
            Some(Grant::Present(blob)) => return Ok(Sent::ByOther(blob)),
            None => break,
        }
    }
    let message = format!("the cache gave no way to send {}", file.display());
    Err(Fault::ended(OutcomeKind::Lost, Reason::Transfer, message))
}

/// What an earlier process of this worker has sent of an upload.
async fn part_log(shop: &Workshop, lease: LeaseId, blob: &Blob, upload_id: &str) -> Result<PartLog, Fault> {
    let dir = JobDir::of(&shop.data, lease).parts();
    let (path, upload_id) = (dir.join(blob.digest.hex()), upload_id.to_owned());
    blocking(move || {
        std::fs::create_dir_all(&dir).map_err(DiskError::at("create", &dir))?;
        Ok(PartLog::open(&path, &upload_id)?)
    })
    .await
}

/// The controller signs URLs for as long as the lease lives.
struct LeaseUrls<'a> {
    shop: &'a Workshop,
    lease: LeaseId,
    blob: &'a Blob,
    upload_id: &'a str,
}

impl PartUrls for LeaseUrls<'_> {
    type Error = UplinkError;

    async fn sign(&self, parts: Vec<PartToSign>) -> Result<Vec<String>, UplinkError> {
        self.shop.uplink.sign_parts(self.lease, self.blob, self.upload_id, parts).await
    }
}
