//! What a job takes in: blobs from the cache, laid out as its container will see them.

use crate::attempt::fault::Fault;
use crate::blobs::{Claim, Fetch, Held};
use crate::disk::{DiskError, evict};
use crate::workshop::Workshop;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use railyard_common::blob::{Blob, Encoding};
use railyard_common::disk::Role;
use railyard_common::id::LeaseId;
use railyard_common::order::InputArtifact;
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_transfer::{BlobUrls, Form, MoveError, Tap, TransferError, silent};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, oneshot};

/// Blobs that one job fetches at a time: a few, so that many small files do not wait for each other's round trips.
const FETCHES: usize = 4;

/// Pieces of a blob that is on its way, of 128 KiB mostly, that wait for who wants them at once.
const PIECES_COMING: usize = 16;

/// Fetches blobs, each once on this worker. They stay while the result is held. In the order asked for.
///
/// # Errors
/// [`Fault`].
pub async fn fetch(shop: &Workshop, lease: LeaseId, blobs: &[Blob]) -> Result<Vec<Held>, Fault> {
    fetch_as(shop, lease, blobs, Form::Plain).await
}

/// The same, but what is stored compressed may stay so: [`Held::encoding`] says.
///
/// # Errors
/// [`Fault`].
pub async fn fetch_stored(shop: &Workshop, lease: LeaseId, blobs: &[Blob]) -> Result<Vec<Held>, Fault> {
    fetch_as(shop, lease, blobs, Form::Stored).await
}

async fn fetch_as(shop: &Workshop, lease: LeaseId, blobs: &[Blob], form: Form) -> Result<Vec<Held>, Fault> {
    stream::iter(blobs.iter().copied())
        .map(|blob| async move { fetch_one_as(shop, lease, &blob, form).await })
        .buffered(FETCHES)
        .try_collect()
        .await
}

/// Where the plain bytes of a blob are.
#[derive(Debug)]
pub enum Coming {
    /// In this file, packed like that. It stays while the fetch's result is held.
    Here(PathBuf, Encoding),
    /// On their way, in order. That all of them are the right ones only the fetch's result tells.
    Soon(mpsc::Receiver<Bytes>),
}

/// The same for those who do not wait until a blob is here: each is told where to find it as soon as that is known.
///
/// # Errors
/// [`Fault`].
pub async fn fetch_live(
    shop: &Workshop,
    lease: LeaseId,
    wanted: Vec<(Blob, oneshot::Sender<Coming>)>,
) -> Result<Vec<Held>, Fault> {
    let fetch = |(blob, tell): (Blob, oneshot::Sender<Coming>)| async move {
        // Nobody listens if it is not wanted any more; the fetch's result may be.
        match shop.blobs.claim(&blob, Form::Stored).await {
            Claim::Here(held) => {
                let _ = tell.send(Coming::Here(held.path().to_owned(), held.encoding()));
                Ok(held)
            }
            Claim::Fetch(fetch) => {
                let (heard, coming) = mpsc::channel(PIECES_COMING);
                let _ = tell.send(Coming::Soon(coming));
                let tap: Tap = Box::new(move |bytes| heard.blocking_send(Bytes::copy_from_slice(bytes)).is_ok());
                pull(shop, lease, &blob, &fetch, Some(tap)).await?;
                Ok(fetch.done()?)
            }
        }
    };
    stream::iter(wanted).map(fetch).buffered(FETCHES).try_collect().await
}

/// Fetches one blob.
///
/// # Errors
/// [`Fault`].
pub async fn fetch_one(shop: &Workshop, lease: LeaseId, blob: &Blob) -> Result<Held, Fault> {
    fetch_one_as(shop, lease, blob, Form::Plain).await
}

async fn fetch_one_as(shop: &Workshop, lease: LeaseId, blob: &Blob, form: Form) -> Result<Held, Fault> {
    match shop.blobs.claim(blob, form).await {
        Claim::Here(held) => Ok(held),
        Claim::Fetch(fetch) => {
            pull(shop, lease, blob, &fetch, None).await?;
            Ok(fetch.done()?)
        }
    }
}

async fn pull(shop: &Workshop, lease: LeaseId, blob: &Blob, fetch: &Fetch, mut tap: Option<Tap>) -> Result<(), Fault> {
    let urls = Urls { shop, lease, blob };
    let mut made_room = false;
    loop {
        let (path, form) = (fetch.path(), fetch.form());
        match shop.transfer.pull_from(&urls, blob, path, form, tap.take(), &silent).await {
            Err(MoveError::Transfer(TransferError::DiskFull { .. }))
                if !made_room && evict::make_room(shop, Role::Data, blob.size_bytes).await =>
            {
                made_room = true;
            }
            Err(MoveError::Transfer(error)) => return Err(error.into()),
            Err(MoveError::Urls(fault)) => return Err(fault),
            Ok(()) => return Ok(()),
        }
    }
}

/// Where a lease's input is in the cache, as the controller says.
struct Urls<'a> {
    shop: &'a Workshop,
    lease: LeaseId,
    blob: &'a Blob,
}

impl BlobUrls for Urls<'_> {
    type Error = Fault;

    async fn sign(&self) -> Result<String, Fault> {
        let urls = self.shop.uplink.prepare_download(self.lease, std::slice::from_ref(self.blob)).await?;
        urls.into_iter().next().ok_or_else(|| {
            let message = format!("the cache gave no way to fetch {}", self.blob.digest);
            Fault::ended(OutcomeKind::Lost, Reason::Transfer, message)
        })
    }
}

/// A file or directory of the tree of inputs, and where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputMount {
    /// On this host.
    pub source: PathBuf,
    /// In the container, absolute.
    pub target: String,
}

/// Lays the files out below `tree`, each at its own path, and says what must be mounted: as few directories as hold
/// them all. `apart` makes copies: a container that can remount could write through to what other jobs read.
///
/// # Errors
/// [`Fault`] if the disk fails, or two inputs want the same path.
pub fn lay_out(tree: &Path, inputs: &[InputArtifact], held: &[Held], apart: bool) -> Result<Vec<InputMount>, Fault> {
    let mut taken = BTreeMap::new();
    for (input, held) in inputs.iter().zip(held) {
        let path = tree.join(input.mount_path.trim_start_matches('/'));
        let digest = input.artifact.blob.digest;
        match taken.insert(input.mount_path.clone(), digest) {
            Some(same) if same == digest => continue,
            Some(_) => return Err(clash(&input.mount_path)),
            None => {}
        }
        let placed = match path.parent() {
            Some(dir) => fs::create_dir_all(dir),
            None => Ok(()),
        };
        match placed.and_then(|()| place(held.path(), &path, apart)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
                return Err(clash(&input.mount_path));
            }
            other => other.map_err(DiskError::at("write", &path))?,
        }
    }
    let targets = mount_points(inputs.iter().map(|input| input.mount_path.as_str()));
    Ok(targets
        .into_iter()
        .map(|target| InputMount { source: tree.join(target.trim_start_matches('/')), target })
        .collect())
}

fn place(from: &Path, to: &Path, apart: bool) -> io::Result<()> {
    if apart { fs::copy(from, to).map(drop) } else { fs::hard_link(from, to) }
}

fn clash(path: &str) -> Fault {
    let message = format!("two inputs want to be at {path}; give one of them another `path`");
    Fault::ended(OutcomeKind::Refused, Reason::Unsupported, message)
}

/// The directories of the files, without those inside another one. A file in the root directory is mounted itself.
fn mount_points<'a>(files: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let wanted: BTreeSet<&str> = files
        .map(|file| match file.trim_end_matches('/').rsplit_once('/') {
            Some(("", _)) | None => file,
            Some((dir, _)) => dir,
        })
        .collect();
    let inside = |dir: &str| {
        Path::new(dir).ancestors().skip(1).any(|above| above.to_str().is_some_and(|above| wanted.contains(above)))
    };
    wanted.iter().filter(|dir| !inside(dir)).map(|dir| (*dir).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_few_directories_as_hold_all_files_are_mounted() {
        let files = ["/inputs/image/disk.raw", "/inputs/image/out/list.txt", "/inputs/sdk/a", "/single"];
        let mounts: Vec<_> = mount_points(files.into_iter()).into_iter().collect();
        assert_eq!(mounts, ["/inputs/image", "/inputs/sdk", "/single"]);
    }
}
