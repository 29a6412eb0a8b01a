//! An image on its way into the cache: only the layers that it lacks.

use super::export;
use super::make::{Made, Source};
use super::prepare::plain_blob;
use crate::attempt::fault::Fault;
use crate::attempt::upload::{Upload, Uploads, push};
use crate::disk::DiskError;
use crate::image_move::split::Packed;
use crate::log::JobLog;
use crate::uplink::Grant;
use crate::workshop::Workshop;
use bytesize::ByteSize;
use railyard_common::blob::{Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::outcome::{OutcomeKind, Reason};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The configuration's file, in the attempt's scratch directory.
const CONFIG_FILE: &str = "config.json";

/// Brings the image into the cache: only the layers that it lacks. `scratch` is where it was made.
///
/// # Errors
/// [`Fault`].
pub async fn save(
    shop: &Workshop,
    lease: LeaseId,
    made: &Made,
    scratch: &Path,
    uploads: &mut Uploads,
    log: &JobLog,
) -> Result<Image, Fault> {
    let started = shop.clock.monotonic();
    let _in_use = match &made.source {
        Source::Packed { .. } => None,
        Source::Committed(name) => Some(shop.shelf.hold(vec![name.clone()])),
    };
    let mut layers = in_cache(shop, lease, &made.layers).await?;
    let mut packed: BTreeMap<Digest, Packed> =
        made.packed(scratch).into_iter().map(|packed| (packed.blob.digest, packed)).collect();
    let exported = match &made.source {
        Source::Packed { base, .. } => base.clone(),
        Source::Committed(name) => name.to_string(),
    };
    let known = |layer: &Digest| layers.contains_key(layer) || packed.contains_key(layer);
    let lacking: BTreeSet<Digest> = made.layers.iter().filter(|layer| !known(layer)).copied().collect();
    packed.append(&mut export::layers(shop, &exported, lacking, &layers, scratch).await?);
    packed.retain(|digest, _| !layers.contains_key(digest));

    let config_file = scratch.join(CONFIG_FILE);
    tokio::fs::write(&config_file, &made.config).await.map_err(DiskError::at("write", &config_file))?;
    let config = plain_blob(made.config.as_bytes());
    let mut wanted = vec![Upload { blob: config, file: config_file, crc32s: None }];
    wanted.extend(packed.into_values().map(|Packed { blob, file }| Upload { blob, file, crc32s: None }));
    for Upload { blob, file, .. } in &wanted {
        // The next job here that wants the image need not fetch it.
        shop.blobs.adopt(file, blob).await;
    }
    let before = uploads.len();
    let stored = push(shop, lease, wanted, uploads).await?;
    let sent: Vec<Blob> = uploads[before..].iter().map(|sent| sent.blob).filter(|blob| *blob != config).collect();
    let secs = (shop.clock.monotonic() - started).as_secs_f32();
    let size = ByteSize::b(sent.iter().map(|blob| blob.stored_bytes).sum()).display().iec();
    let (count, of) = (sent.len(), made.layers.len());
    log.note(&format!("saved the image: {count} of {of} layers were new, {size}, {secs:.1} s")).await?;
    let (config, new) = stored.split_first().ok_or_else(|| unsaved("its configuration"))?;
    layers.extend(new.iter().map(|blob| (blob.digest, *blob)));
    shop.layers.add(layers.values().copied());
    let ordered = made.layers.iter().map(|digest| layers.get(digest).copied()).collect::<Option<Vec<Blob>>>();
    Ok(Image { config: *config, layers: ordered.ok_or_else(|| unsaved("a layer"))? })
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

fn unsaved(what: &str) -> Fault {
    Fault::ended(OutcomeKind::Lost, Reason::Transfer, format!("{what} of the step's image was not stored"))
}
