//! The files that a job leaves: found, compressed as its outputs say, and sent where the cache lacks them.
//!
//! ```text
//! named codec ── compress ──────────────────────────► the packed file is the artifact
//! none ───────── hash ──────────────────────────────► the file
//! auto ───────── hash ─ is it there? ─ does it pay? ─► the file, but sent and stored as zstd
//! ```
//!
//! A big file that compresses is packed while it is hashed: when it turns out that the cache has it, packing stops.

use super::dirs::JobDir;
use super::fault::Fault;
use super::upload::{Upload, Uploads, push};
use crate::blocking::blocking;
use crate::disk::{DiskError, remove_tree};
use crate::log::{JobLog, count};
use crate::outputs::{self, Found};
use crate::workshop::Workshop;
use bytesize::ByteSize;
use futures_util::future::{MaybeDone, maybe_done};
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use railyard_common::blob::{Artifact, Blob, Encoding, media_type_of};
use railyard_common::compress::{Codec, Compress, Packing};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::job::OutputSpec;
use railyard_transfer::{Hashed, Pressed, Sum, TransferError, Want, hash_beside, hash_file, pays};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Files that are hashed or compressed at a time; it is the disk and the processor that limit, not waiting.
const FILES_AT_A_TIME: usize = 2;

/// How often the log says how far a compression has come.
const NOTE_EVERY: Duration = Duration::from_secs(30);

/// What stays in the farm is packed like that, as layers are: fast enough on a few processors not to hold up what is sent.
const IN_FARM: Packing = Packing { codec: Codec::Zstd, level: 1 };

/// What is packed while it is hashed: files of which hashing takes longer than to ask about one of them.
const AHEAD_BYTES: u64 = 32 * 1024 * 1024;

/// An artifact on its way.
struct Made {
    found: Found,
    upload: Upload,
    packed: Ahead,
}

/// The same, packed for the farm while it was hashed.
enum Ahead {
    /// Nobody has tried: the cache is asked about all small files at once.
    Untried,
    /// Nothing, if that does not pay, has no room, or the cache has the file.
    Tried(Option<Upload>),
}

/// What all files of one job share.
struct Desk<'a> {
    shop: &'a Workshop,
    lease: LeaseId,
    /// For packed files.
    dir: PathBuf,
    log: &'a JobLog,
}

/// Finds the outputs, compresses and hashes them, and sends what the cache lacks.
///
/// # Errors
/// [`Fault`].
pub async fn save(
    shop: &Workshop,
    lease: LeaseId,
    dir: &JobDir,
    specs: &[OutputSpec],
    uploads: &mut Uploads,
    log: &JobLog,
) -> Result<Vec<Artifact>, Fault> {
    let (work, specs) = (dir.work(), specs.to_vec());
    let found = blocking(move || outputs::find(&work, &specs)).await?;
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let desk = Desk { shop, lease, dir: dir.scratch().join("outputs"), log };
    tokio::fs::create_dir_all(&desk.dir).await.map_err(DiskError::at("create", &desk.dir))?;
    let started = shop.clock.monotonic();
    let made = stream::iter(found.into_iter().enumerate()).map(|(n, found)| desk.make(n, found).boxed());
    let made: Vec<Made> = made.buffered(FILES_AT_A_TIME).try_collect().await?;
    let small = desk.pack_for_the_farm(&made).await?;
    let best = |made: &Made| small.get(&made.upload.blob.digest).unwrap_or(&made.upload).clone();
    let before = uploads.len();
    let stored = push(shop, lease, made.iter().map(best).collect(), uploads).await?;
    for Made { upload, .. } in &made {
        // The next job here that takes it in need not fetch it.
        shop.blobs.adopt(&upload.file, &upload.blob).await;
    }
    remove_tree(&desk.dir).await?;
    let total = size(made.iter().map(|made| made.upload.blob.size_bytes).sum());
    let sent = size(uploads[before..].iter().map(|one| one.blob.stored_bytes).sum());
    let secs = (shop.clock.monotonic() - started).as_secs_f32();
    log.note(&format!("saved {}, {total} ({sent} of them sent), in {secs:.1} s", count(made.len(), "file"))).await?;
    Ok(made.into_iter().zip(stored).map(|(made, blob)| artifact(made.found, blob)).collect())
}

impl Desk<'_> {
    /// The artifact's own bytes: those of the file, or of what a codec makes of it.
    async fn make(&self, n: usize, found: Found) -> Result<Made, Fault> {
        let packing = match found.compress {
            Compress::With(packing) => packing,
            Compress::Auto => return self.make_auto(n, found).await,
            Compress::None => {
                let upload = plain_upload(&found, hash_file(&found.file).await?);
                return Ok(Made { found, upload, packed: Ahead::Untried });
            }
        };
        let file = self.dir.join(format!("{n}{}", packing.codec.suffix()));
        let started = self.shop.clock.monotonic();
        let pressed = self.press(&found.name, &found.file, &file, packing, Want::Packed).await?;
        let Pressed { plain, packed, threads } = pressed;
        let secs = (self.shop.clock.monotonic() - started).as_secs_f64();
        let (from, to, speed) = (size(plain.bytes), size(packed.bytes), speed(plain.bytes, secs));
        let threads = count(threads, "thread");
        self.log
            .note(&format!(
                "compressed {} with {packing}: {from} to {to} in {secs:.1} s, {speed} on {threads}",
                found.name
            ))
            .await?;
        let Sum { digest: Some(digest), bytes } = packed else { unreachable!("the digest was wanted") };
        let upload = Upload { blob: Blob::plain(digest, bytes), file, crc32s: None };
        Ok(Made { found, upload, packed: Ahead::Untried })
    }

    /// The file as it is; a big one is packed meanwhile, until the cache turns out to have it.
    async fn make_auto(&self, n: usize, found: Found) -> Result<Made, Fault> {
        let length = tokio::fs::metadata(&found.file).await.map_err(DiskError::at("read", &found.file))?.len();
        if length < AHEAD_BYTES {
            let upload = plain_upload(&found, hash_file(&found.file).await?);
            return Ok(Made { found, upload, packed: Ahead::Untried });
        }
        let file = self.dir.join(format!("{n}.zst"));
        let (upload, pressed) = {
            let mut packing = Box::pin(maybe_done(self.press_for_the_farm(&found, &file)));
            let upload = plain_upload(&found, hash_beside(&found.file, packing.as_mut()).await?);
            let is_over = matches!(*packing, MaybeDone::Done(_));
            if is_over || self.shop.uplink.look(self.lease, &[upload.blob]).await?.is_empty() {
                packing.as_mut().await;
            }
            (upload, packing.as_mut().take_output().transpose()?.flatten())
        };
        let packed = pressed.map(|pressed| packed_upload(&upload, &pressed, file)).transpose()?;
        Ok(Made { found, upload, packed: Ahead::Tried(packed) })
    }

    /// Packs what the cache lacks and nobody reads by its path, as far as that pays.
    async fn pack_for_the_farm(&self, made: &[Made]) -> Result<BTreeMap<Digest, Upload>, Fault> {
        let auto: BTreeMap<Digest, &Made> = made
            .iter()
            .filter(|made| made.found.compress == Compress::Auto)
            .map(|made| (made.upload.blob.digest, made))
            .collect();
        // A file that is also published, or wanted as it is, is stored once: as it is.
        let plain = made.iter().filter(|made| made.found.compress != Compress::Auto);
        let plain: BTreeSet<Digest> = plain.map(|made| made.upload.blob.digest).collect();
        let blobs: Vec<Blob> = auto.values().map(|made| made.upload.blob).collect();
        let there = self.shop.uplink.look(self.lease, &blobs).await?;
        let there: BTreeSet<Digest> = there.iter().map(|blob| blob.digest).collect();
        let lacking = auto.into_iter().filter(|(digest, _)| !there.contains(digest) && !plain.contains(digest));
        let packed: Vec<_> = lacking.map(|(_, made)| self.packed(made).boxed()).collect();
        let packed: Vec<_> = stream::iter(packed).buffer_unordered(FILES_AT_A_TIME).try_collect().await?;
        Ok(packed.into_iter().flatten().map(|upload: Upload| (upload.blob.digest, upload)).collect())
    }

    async fn packed(&self, made: &Made) -> Result<Option<Upload>, Fault> {
        if let Ahead::Tried(packed) = &made.packed {
            return Ok(packed.clone());
        }
        let file = self.dir.join(format!("{}.zst", made.upload.blob.digest.hex()));
        let pressed = self.press_for_the_farm(&made.found, &file).await?;
        Ok(pressed.map(|pressed| packed_upload(&made.upload, &pressed, file)).transpose()?)
    }

    /// `None` if a sample says that it does not pay, or there is no room.
    async fn press_for_the_farm(&self, found: &Found, to: &Path) -> Result<Option<Pressed>, Fault> {
        if !pays(&found.file).await? {
            return Ok(None);
        }
        match self.press(&found.name, &found.file, to, IN_FARM, Want::Nothing).await {
            Err(Fault::Transfer(TransferError::DiskFull { .. })) => {
                // Nobody asked for this; the file itself is there.
                self.log.note(&format!("no room to compress {}; it is sent as it is", found.name)).await?;
                Ok(None)
            }
            done => done.map(Some),
        }
    }

    /// Compresses, and says now and then how far it is.
    async fn press(&self, name: &str, src: &Path, dst: &Path, packing: Packing, want: Want) -> Result<Pressed, Fault> {
        let done = Arc::new(AtomicU64::new(0));
        let seen = done.clone();
        let progress = move |bytes| seen.store(bytes, Ordering::Relaxed);
        let mut work = std::pin::pin!(self.shop.press.compress(src, dst, packing, want, progress));
        let mut before = 0;
        loop {
            match tokio::time::timeout(NOTE_EVERY, &mut work).await {
                Ok(pressed) => return Ok(pressed?),
                Err(_) => {
                    let now = done.load(Ordering::Relaxed);
                    let speed = speed(now - before, NOTE_EVERY.as_secs_f64());
                    before = now;
                    self.log.note(&format!("compressing {name} with {packing}: {} done, {speed}", size(now))).await?;
                }
            }
        }
    }
}

fn plain_upload(found: &Found, Hashed { digest, bytes, crc32s }: Hashed) -> Upload {
    Upload { blob: Blob::plain(digest, bytes), file: found.file.clone(), crc32s: Some(Arc::new(crc32s)) }
}

/// The same bytes, packed.
fn packed_upload(plain: &Upload, pressed: &Pressed, file: PathBuf) -> Result<Upload, TransferError> {
    let (expected, found) = (plain.blob.size_bytes, pressed.plain.bytes);
    if found != expected {
        return Err(TransferError::Changed { path: plain.file.clone(), expected, found });
    }
    let blob = Blob { encoding: Encoding::Zstd, stored_bytes: pressed.packed.bytes, ..plain.blob };
    Ok(Upload { blob, file, crc32s: None })
}

fn size(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string()
}

fn speed(bytes: u64, secs: f64) -> String {
    // Bytes of files that fit a disk are exact in a double.
    format!("{:.0} MB/s", bytes as f64 / secs.max(0.001) / 1e6)
}

fn artifact(found: Found, blob: Blob) -> Artifact {
    let media_type = media_type_of(found.path.file_name()).to_owned();
    Artifact { path: found.path, blob, media_type, published: found.published }
}
