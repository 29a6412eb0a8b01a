//! Where the state comes from: the running controller, or its journal.

use super::BackupError;
use crate::journal::{self, Journal as _, SledJournal};
use railyard_core::Snapshot;
use railyard_proto::v1;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use std::path::Path;
use tonic::transport::Channel;

/// Whether a controller runs on this data directory.
pub fn is_running(data_dir: &Path) -> bool {
    journal::is_in_use(&data_dir.join("journal"))
}

/// The state of a running controller, as it is now.
///
/// # Errors
/// [`BackupError::Refused`], [`BackupError::Journal`].
pub async fn fetch(channel: Channel) -> Result<Snapshot, BackupError> {
    let refused = |status| BackupError::Refused(Box::new(status));
    let mut chunks = AdminServiceClient::new(channel).backup(v1::BackupRequest {}).await.map_err(refused)?.into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = chunks.message().await.map_err(refused)? {
        bytes.extend_from_slice(&chunk.data);
    }
    Ok(journal::decode_snapshot(&bytes, Path::new("from the running controller"))?)
}

/// The state of a controller that does not run.
///
/// # Errors
/// [`BackupError::NoFarm`], [`BackupError::Journal`].
pub fn offline(data_dir: &Path) -> Result<Snapshot, BackupError> {
    let dir = data_dir.join("journal");
    // Without this a mistyped directory would become a farm of its own.
    if !dir.is_dir() {
        return Err(BackupError::NoFarm { path: data_dir.to_owned(), missing: "journal" });
    }
    Ok(SledJournal::open(&dir)?.load()?.farm().snapshot())
}
