//! A container's file system as an image: in the engine at once, in the cache when its layers are there.

use super::prepare::{load_archive, plain_blob, tag};
use crate::attempt::fault::Fault;
use crate::attempt::upload::{Upload, Uploads, push};
use crate::blocking::blocking;
use crate::disk::{DiskError, is_full};
use crate::image_move::archive::Layer;
use crate::image_move::config;
use crate::image_move::split::{Packed, Wanted, split};
use crate::log::JobLog;
use crate::runtime::{ImageName, LocalImage, RuntimeError};
use crate::uplink::Grant;
use crate::workshop::Workshop;
use bytesize::ByteSize;
use railyard_common::blob::{Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::order::Order;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use tokio_util::io::{StreamReader, SyncIoBridge};

/// A committed container, in the engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Committed {
    name: ImageName,
    /// JSON; its digest is the image's id.
    config: String,
    layers: Vec<Digest>,
}

/// Commits the container. The image has the settings of `base`, not those of the job.
///
/// # Errors
/// [`Fault`].
pub async fn commit(shop: &Workshop, order: &Order, base: &LocalImage, container: &str) -> Result<Committed, Fault> {
    let what = order.job.slug();
    let raw = shop.shelf.name(&order.build, &format!("{what}-raw"));
    let name = shop.shelf.name(&order.build, &what);
    // What an earlier attempt left under these names would lose its name now, and stay for ever.
    for old in [&raw, &name] {
        match shop.runtime.untag(&old.to_string()).await {
            Err(error) if !error.is_conflict() => return Err(error.into()),
            _ => {}
        }
    }
    let (runtime, container, named) = (shop.runtime.clone(), container.to_owned(), raw.clone());
    let committing = async move { runtime.commit(&container, &named).await };
    shop.shelf.make(&order.build, &raw, committing).await?;
    let Some(image) = shop.runtime.image(&raw.to_string()).await? else {
        return Err(missing(&raw, "the engine does not have it after a commit"));
    };
    let config = config::committed(&image, base, &format!("railyard: {} {}", order.build, order.job));
    let layers = image.layers.clone();
    // Every layer is in the engine; only the configuration is new.
    let known = layers.iter().map(|digest| Layer { digest: *digest, tar: None }).collect();
    match load_archive(shop, order, config.clone(), known, Vec::new(), &name).await {
        Ok(_) => {}
        Err(Fault::Runtime(error)) if !error.is_unreachable() && !error.is_disk_full() => {
            // The engine wants whole archives. The next job here fetches the image as any other worker does.
            tracing::info!(%error, "the engine did not take an image without layers; keeping the commit as it is");
            tag(shop, order, raw.to_string(), &name).await?;
        }
        Err(fault) => return Err(fault),
    }
    shop.runtime.untag(&raw.to_string()).await?;
    let text = String::from_utf8(config.to_vec());
    let config = text.map_err(|error| missing(&name, &format!("its configuration is no text: {error}")))?;
    Ok(Committed { name, config, layers })
}

/// Brings the image into the cache: only the layers that it lacks.
///
/// # Errors
/// [`Fault`].
pub async fn save(
    shop: &Workshop,
    lease: LeaseId,
    committed: &Committed,
    scratch: &Path,
    uploads: &mut Uploads,
    log: &JobLog,
) -> Result<Image, Fault> {
    let started = shop.clock.monotonic();
    let mut layers = in_cache(shop, lease, &committed.layers).await?;
    let packed = pack(shop, committed, &layers, scratch).await?;
    let config_file = scratch.join("config.json");
    tokio::fs::write(&config_file, &committed.config).await.map_err(DiskError::at("write", &config_file))?;
    let mut wanted = vec![Upload { blob: plain_blob(committed.config.as_bytes()), file: config_file }];
    wanted.extend(packed.into_values().map(|Packed { blob, file }| Upload { blob, file }));
    let sent: u64 = wanted.iter().map(|upload| upload.blob.stored_bytes).sum();
    let count = wanted.len() - 1;
    let stored = push(shop, lease, wanted, uploads).await?;
    let secs = (shop.clock.monotonic() - started).as_secs_f32();
    let size = ByteSize::b(sent).display().iec();
    log.note(&format!("saved the image: {count} of {} layers were new, {size}, {secs:.1} s", committed.layers.len()))
        .await?;
    let (config, new) =
        stored.split_first().ok_or_else(|| missing(&committed.name, "its configuration was not stored"))?;
    layers.extend(new.iter().map(|blob| (blob.digest, *blob)));
    shop.layers.add(layers.values().copied());
    let ordered = committed.layers.iter().map(|digest| layers.get(digest).copied()).collect::<Option<Vec<Blob>>>();
    let layers = ordered.ok_or_else(|| missing(&committed.name, "a layer was not stored"))?;
    Ok(Image { config: *config, layers })
}

/// Those of the layers that the cache has, as the controller says now.
async fn in_cache(shop: &Workshop, lease: LeaseId, layers: &[Digest]) -> Result<BTreeMap<Digest, Blob>, Fault> {
    let known = shop.layers.of(layers);
    let grants = shop.uplink.prepare_upload(lease, &known).await?;
    let present = grants.into_iter().filter_map(|grant| match grant {
        Grant::Present(blob) => Some((blob.digest, blob)),
        Grant::Send(_) => None,
    });
    Ok(present.collect())
}

/// Takes the other layers out of the engine, compressed.
async fn pack(
    shop: &Workshop,
    committed: &Committed,
    have: &BTreeMap<Digest, Blob>,
    scratch: &Path,
) -> Result<BTreeMap<Digest, Packed>, Fault> {
    let layers = committed.layers.iter().filter(|layer| !have.contains_key(layer)).copied().collect();
    let skip = have.values().map(|blob| (blob.size_bytes, blob.digest)).collect();
    let mut wanted = Wanted { layers, skip, level: shop.config.layer_compression };
    if wanted.layers.is_empty() {
        return Ok(BTreeMap::new());
    }
    let packed = export(shop, &committed.name, &wanted, scratch).await?;
    if packed.len() == wanted.layers.len() {
        return Ok(packed);
    }
    // A new layer has the very length of a known one: look at all of them.
    wanted.skip.clear();
    let packed = export(shop, &committed.name, &wanted, scratch).await?;
    match wanted.layers.iter().find(|layer| !packed.contains_key(layer)) {
        None => Ok(packed),
        Some(layer) => Err(missing(&committed.name, &format!("its archive lacks layer {layer}"))),
    }
}

async fn export(
    shop: &Workshop,
    name: &ImageName,
    wanted: &Wanted,
    scratch: &Path,
) -> Result<BTreeMap<Digest, Packed>, Fault> {
    let stream = shop.runtime.export(&name.to_string()).await?;
    let (wanted, dir) = (wanted.clone(), scratch.to_owned());
    // The bridge must be made where the runtime is known.
    let archive = SyncIoBridge::new(StreamReader::new(stream));
    blocking(move || split(archive, &wanted, &dir)).await.map_err(|error| {
        if is_full(&error) {
            DiskError::at("write", scratch)(error).into()
        } else if let Some(why) = away(&error) {
            Fault::Runtime(why)
        } else {
            missing(name, &format!("its archive cannot be read: {error}"))
        }
    })
}

/// The engine that went away, if that is what is behind the error.
fn away(error: &std::io::Error) -> Option<RuntimeError> {
    let mut next = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
    while let Some(inner) = next {
        if let Some(RuntimeError::Unreachable { socket, why }) = inner.downcast_ref::<RuntimeError>() {
            return Some(RuntimeError::Unreachable { socket: socket.clone(), why: why.clone() });
        }
        next = match inner.downcast_ref::<std::io::Error>() {
            // It hides what is in it from its source.
            Some(error) => error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
            None => inner.source(),
        };
    }
    None
}

fn missing(name: &ImageName, message: &str) -> Fault {
    let doing = format!("export image {name}");
    Fault::Runtime(RuntimeError::Refused { doing, status: None, message: message.to_owned() })
}
