//! A container that has ended well becomes an image: one layer on top of what it began with.
//!
//! Most often nothing of that is the engine's business. Its directory of what the container has changed is packed as it lies
//! there ([`pack`]), and the engine gets the image when a job here wants it. Where the worker cannot read that directory
//! (another storage driver, other users, another machine) the engine commits, and is asked for what it made of it.

use super::load::{Archive, load_archive};
use super::prepare::tag;
use super::records::Layers;
use crate::attempt::fault::Fault;
use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::image_move::archive::Layer;
use crate::image_move::config;
use crate::image_move::pack::{self, PackError};
use crate::image_move::split::Packed;
use crate::log::JobLog;
use crate::runtime::{ImageName, LocalImage, RuntimeError};
use crate::workshop::Workshop;
use bytesize::ByteSize;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::order::Order;
use railyard_common::outcome::{OutcomeKind, Reason};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The new layer's file, in the attempt's scratch directory.
const LAYER_FILE: &str = "layer.zst";

/// An image that was made of a container, and is not in the cache yet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// JSON; its digest is the image's id.
    pub(super) config: String,
    /// By diff id, base first.
    pub(super) layers: Vec<Digest>,
    pub(super) source: Source,
}

/// Where the layers are that the cache lacks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Source {
    /// The new one lies packed in the attempt's scratch directory; the others are in an image that the engine has.
    Packed {
        /// The new layer.
        layer: Blob,
        /// The engine's name for the image below it.
        base: String,
    },
    /// All are in the engine's image of that name.
    Committed(ImageName),
}

impl Made {
    /// The engine's name for the image below the new layer, if that is needed to save it.
    pub fn base(&self) -> Option<&str> {
        match &self.source {
            Source::Packed { base, .. } => Some(base),
            Source::Committed(_) => None,
        }
    }

    /// The packed layer, if the worker has packed it itself.
    pub(super) fn packed(&self, scratch: &Path) -> Option<Packed> {
        match &self.source {
            Source::Packed { layer, .. } => Some(Packed { blob: *layer, file: scratch.join(LAYER_FILE) }),
            Source::Committed(_) => None,
        }
    }
}

/// Makes an image of the container, which has the settings of `base` and not those of the job. What has to be kept of it until
/// it is saved lies in `scratch`.
///
/// # Errors
/// [`Fault`].
pub async fn make(
    shop: &Workshop,
    order: &Order,
    base: &LocalImage,
    container: &str,
    scratch: &Path,
    log: &JobLog,
) -> Result<Made, Fault> {
    let started = shop.clock.monotonic();
    if let Some(upper) = shop.runtime.overlay(container).await? {
        match pack_layer(shop, upper, scratch).await {
            Ok(packed) => {
                let secs = (shop.clock.monotonic() - started).as_secs_f32();
                let [plain, stored] =
                    [packed.size_bytes, packed.stored_bytes].map(|bytes| ByteSize::b(bytes).display().iec());
                log.note(&format!("packed what the script has changed: {plain}, {stored} packed, {secs:.1} s")).await?;
                return Ok(layered(shop, order, base, packed));
            }
            Err(PackError::Foreign { path, what }) => {
                tracing::info!(path = %path.display(), what, "the engine has to commit a container");
            }
            Err(error) => return Err(fault_of(error)),
        }
    }
    log.note("the engine makes the image of it, without extended attributes and access lists").await?;
    commit(shop, order, base, container).await
}

fn layered(shop: &Workshop, order: &Order, base: &LocalImage, layer: Blob) -> Made {
    let mut layers = base.layers.clone();
    layers.push(layer.digest);
    let millis = i64::try_from(shop.clock.now().0).unwrap_or(i64::MAX);
    let created = jiff::Timestamp::from_millisecond(millis).unwrap_or_default().to_string();
    let config = config::layered(base, &layers, &created, &made_by(order));
    Made { config: text(&config), layers, source: Source::Packed { layer, base: base.id.clone() } }
}

fn made_by(order: &Order) -> String {
    format!("railyard: {} {}", order.build, order.job)
}

fn text(config: &[u8]) -> String {
    // It was made of text.
    String::from_utf8_lossy(config).into_owned()
}

/// Whoever stops waiting for it makes it stop.
async fn pack_layer(shop: &Workshop, upper: PathBuf, scratch: &Path) -> Result<Blob, PackError> {
    let unwanted = Unwanted::default();
    let (stop, level, file) = (unwanted.0.clone(), shop.config.layer_compression, scratch.join(LAYER_FILE));
    let room = shop.press.room_for_zstd(u8::try_from(level).unwrap_or(u8::MAX)).await;
    let packing = move || {
        // All of it, not its number alone: given back when the work is over, also if nobody waits for it any more.
        let room = room;
        pack::pack(&upper, &file, level, room.threads, &stop)
    };
    let packed = blocking(packing).await?;
    Ok(packed.blob)
}

/// Tells the packing threads when it is dropped.
#[derive(Default)]
struct Unwanted(Arc<AtomicBool>);

impl Drop for Unwanted {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn fault_of(error: PackError) -> Fault {
    match error {
        PackError::Disk(error) => error.into(),
        PackError::Unfit { .. } => Fault::ended(OutcomeKind::Failed, Reason::OutputBad, error.to_string()),
        PackError::Foreign { .. } | PackError::Changed { .. } | PackError::Unwanted => {
            Fault::ended(OutcomeKind::Lost, Reason::Engine, format!("the step's image could not be made: {error}"))
        }
    }
}

/// Has the engine commit the container.
async fn commit(shop: &Workshop, order: &Order, base: &LocalImage, container: &str) -> Result<Made, Fault> {
    let what = order.job.slug();
    let raw = shop.shelf.name(&order.build, &format!("{what}-raw"));
    let name = shop.shelf.name(&order.build, &what);
    // Whoever needs room now must not take them away.
    let (raw_in_use, _in_use) = (shop.shelf.hold(vec![raw.clone()]), shop.shelf.hold(vec![name.clone()]));
    // What an earlier attempt left under these names would lose its name now, and stay for ever.
    for old in [&raw, &name] {
        match shop.runtime.untag(&old.to_string()).await {
            Err(error) if !error.is_conflict() => return Err(error.into()),
            _ => {}
        }
    }
    let (runtime, container, named) = (shop.runtime.clone(), container.to_owned(), raw.clone());
    let committing = async move { runtime.commit(&container, &named).await };
    // Only for a moment.
    shop.shelf.make(&order.build, &raw, Layers::default(), committing).await?;
    let Some(image) = shop.runtime.image(&raw.to_string()).await? else {
        return Err(missing(&raw, "the engine does not have it after a commit"));
    };
    let config = config::layered(base, &image.layers, &image.created, &made_by(order));
    // Every layer is in the engine; only the configuration is new.
    let known = image.layers.iter().map(|digest| Layer { digest: *digest, tar: None }).collect();
    let archive = Archive { config: config.clone(), layers: known, held: Vec::new() };
    match load_archive(shop, order, archive, &name, Layers::from(&image)).await {
        Ok(_) => {}
        Err(Fault::Runtime(error)) if !error.is_unreachable() && !error.is_disk_full() => {
            // The engine wants whole archives. The next job here fetches the image as any other worker does.
            tracing::info!(%error, "the engine did not take an image without layers; keeping the commit as it is");
            tag(shop, order, raw.to_string(), &name, Layers::from(&image)).await?;
        }
        Err(fault) => return Err(fault),
    }
    drop(raw_in_use);
    shop.shelf.remove(&raw).await?;
    Ok(Made { config: text(&config), layers: image.layers, source: Source::Committed(name) })
}

/// The packed layer is whole: what an earlier process has left of it can be sent.
///
/// # Errors
/// [`Fault`] if it is not there, or is shorter.
pub async fn check(made: &Made, scratch: &Path) -> Result<(), Fault> {
    let Some(Packed { blob, file }) = made.packed(scratch) else { return Ok(()) };
    let length = tokio::fs::metadata(&file).await.map_err(DiskError::at("read", &file))?.len();
    if length == blob.stored_bytes {
        return Ok(());
    }
    let message = format!("{} has {length} bytes, and not the {} that were packed", file.display(), blob.stored_bytes);
    Err(Fault::ended(OutcomeKind::Lost, Reason::Engine, message))
}

fn missing(name: &ImageName, message: &str) -> Fault {
    let doing = format!("commit image {name}");
    Fault::Runtime(RuntimeError::Refused { doing, status: None, message: message.to_owned() })
}
