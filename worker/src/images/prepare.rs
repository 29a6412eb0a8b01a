//! Makes sure that the engine has a job's image.

use super::Shelf;
use crate::attempt::fault::Fault;
use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::image_move::archive::{self, Layer, LayerTar};
use crate::image_move::config;
use crate::image_move::root::{self, Packing};
use crate::inputs::{fetch, fetch_one};
use crate::log::JobLog;
use crate::runtime::{ImageName, LocalImage, RuntimeError};
use crate::workshop::Workshop;
use bytes::Bytes;
use bytesize::ByteSize;
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::order::{Order, OrderImage};
use railyard_common::outcome::{OutcomeKind, Reason};

/// Hex digits of an image's id in its name: enough to tell the images of one build apart.
const ID_SHOWN_LEN: usize = 12;

/// The image of the order, in the engine.
///
/// A registry reference is not pulled if the engine has an image of that name for the platform. A pull that the registry
/// answered with "no such image" is the step's fault (`failed`); one that got no answer is not (`lost`): another worker,
/// or a later try, may have better luck.
///
/// # Errors
/// [`Fault`].
pub async fn prepare(shop: &Workshop, order: &Order, log: &JobLog) -> Result<LocalImage, Fault> {
    match &order.image {
        OrderImage::Registry(reference) => from_registry(shop, order, reference, log).await,
        OrderImage::Image(image) => from_cache(shop, order, image, log).await,
        OrderImage::Import(artifact) => from_tarball(shop, order, artifact, log).await,
    }
}

async fn from_registry(shop: &Workshop, order: &Order, reference: &str, log: &JobLog) -> Result<LocalImage, Fault> {
    let platform = order.job.platform;
    let fits = |image: &LocalImage| image.is_for(platform);
    // A name that is none is an error already here.
    let local = shop.runtime.image(reference).await.map_err(|error| not_pulled(reference, error))?;
    match local {
        Some(image) if fits(&image) => {
            log.note(&format!("image {reference} is here")).await?;
            return Ok(image);
        }
        Some(other) => log.note(&format!("image {reference} is here, but for {}", platform_of(&other))).await?,
        None => {}
    }
    log.note(&format!("pulling image {reference} for {platform}")).await?;
    let started = shop.clock.monotonic();
    if let Err(error) = shop.runtime.pull(reference, platform).await {
        return Err(not_pulled(reference, error));
    }
    let secs = (shop.clock.monotonic() - started).as_secs_f32();
    log.note(&format!("pulled image {reference} in {secs:.1} s")).await?;
    match shop.runtime.image(reference).await? {
        Some(image) if fits(&image) => Ok(image),
        Some(image) => {
            let message = format!("image {reference} is for {}; the job runs on {platform}", platform_of(&image));
            Err(Fault::ended(OutcomeKind::Failed, Reason::ImageMissing, message))
        }
        None => {
            let message = format!("image {reference} was pulled, but the engine does not have it");
            Err(Fault::ended(OutcomeKind::Lost, Reason::ImageMissing, message))
        }
    }
}

fn platform_of(image: &LocalImage) -> String {
    format!("{}/{}", image.os, image.architecture)
}

fn not_pulled(reference: &str, error: RuntimeError) -> Fault {
    if error.is_unreachable() || error.is_disk_full() {
        return error.into();
    }
    let kind = if error.is_image_unknown() { OutcomeKind::Failed } else { OutcomeKind::Lost };
    let why = match &error {
        RuntimeError::Refused { message, .. } => message.clone(),
        other => other.to_string(),
    };
    let message = format!(
        "image {reference} cannot be pulled: {why}. Check the name, or put an image of that name into the worker's engine"
    );
    Fault::ended(kind, Reason::ImageMissing, message)
}

/// An earlier job's image. What the engine has of it is not fetched.
async fn from_cache(shop: &Workshop, order: &Order, image: &Image, log: &JobLog) -> Result<LocalImage, Fault> {
    shop.layers.add(image.layers.iter().copied());
    let _one = shop.shelf.preparing.lock(image.config.digest).await;
    let name = own_name(&shop.shelf, order, image.config.digest)?;
    if let Some(local) = named(shop, image.config.digest, &name).await? {
        log.note("the image is here").await?;
        return Ok(local);
    }
    let digests: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let chains = shop.runtime.layer_chains().await?;
    let have = chains.iter().map(|chain| common_prefix(chain, &digests)).max().unwrap_or(0);
    if have > 0 {
        match load(shop, order, image, have, &name, log).await {
            Ok(local) => return Ok(local),
            // An engine that wants whole archives gets one.
            Err(Fault::Runtime(error)) if !error.is_unreachable() && !error.is_disk_full() => {
                tracing::info!(%error, "the engine did not take a partial image; sending the whole");
            }
            Err(fault) => return Err(fault),
        }
    }
    load(shop, order, image, 0, &name, log).await
}

/// Fetches the image without its first `have` layers and loads it.
async fn load(
    shop: &Workshop,
    order: &Order,
    image: &Image,
    have: usize,
    name: &ImageName,
    log: &JobLog,
) -> Result<LocalImage, Fault> {
    let missing = &image.layers[have..];
    let bytes = ByteSize::b(missing.iter().map(|layer| layer.stored_bytes).sum()).display().iec();
    log.note(&format!("fetching the image: {} of {} layers, {bytes}", missing.len(), image.layers.len())).await?;
    let started = shop.clock.monotonic();
    let config = fetch_one(shop, order.lease, &image.config).await?;
    let config = tokio::fs::read(config.path()).await.map_err(DiskError::at("read", config.path()))?;
    let held = fetch(shop, order.lease, missing).await?;
    let absent = image.layers[..have].iter().map(|layer| Layer { digest: layer.digest, tar: None });
    let present = missing.iter().zip(&held).map(|(layer, held)| Layer {
        digest: layer.digest,
        tar: Some(LayerTar { file: held.path().to_owned(), packing: Packing::Plain, size_bytes: layer.size_bytes }),
    });
    let layers = absent.chain(present).collect();
    let local = load_archive(shop, Bytes::from(config), layers, name).await?;
    // The engine has them now; the next job takes them from there.
    held.into_iter().for_each(crate::blobs::Held::discard);
    let secs = (shop.clock.monotonic() - started).as_secs_f32();
    log.note(&format!("loaded the image in {secs:.1} s")).await?;
    Ok(local)
}

/// A root tarball as an image with one layer.
async fn from_tarball(shop: &Workshop, order: &Order, artifact: &Artifact, log: &JobLog) -> Result<LocalImage, Fault> {
    let (tarball, platform) = (artifact.blob.digest, order.job.platform);
    let _one = shop.shelf.preparing.lock(tarball).await;
    if let Some(image) = shop.shelf.root(tarball, platform) {
        let name = own_name(&shop.shelf, order, image)?;
        if let Some(local) = named(shop, image, &name).await? {
            log.note(&format!("the image of {} is here", artifact.path)).await?;
            return Ok(local);
        }
    }
    let size = ByteSize::b(artifact.blob.stored_bytes).display().iec();
    log.note(&format!("making an image of {} ({size})", artifact.path)).await?;
    let started = shop.clock.monotonic();
    let held = fetch_one(shop, order.lease, &artifact.blob).await?;
    let file = held.path().to_owned();
    let measured = blocking(move || root::measure(&file)).await.map_err(|error| {
        let message = format!("{} cannot become an image: {error}", artifact.path);
        Fault::ended(OutcomeKind::Failed, Reason::ImageMissing, message)
    })?;
    // Not the engine's own import: old engines give such an image their own architecture, whatever they are told.
    let config = config::imported(platform, measured.digest, &format!("imported from {}", artifact.path));
    let image = Digest::of(&config);
    let name = own_name(&shop.shelf, order, image)?;
    let tar = LayerTar { file: held.path().to_owned(), packing: measured.packing, size_bytes: measured.size_bytes };
    let layers = vec![Layer { digest: measured.digest, tar: Some(tar) }];
    let local = load_archive(shop, config, layers, &name).await?;
    shop.shelf.remember_root(tarball, platform, image)?;
    let secs = (shop.clock.monotonic() - started).as_secs_f32();
    log.note(&format!("made an image of {} in {secs:.1} s", artifact.path)).await?;
    Ok(local)
}

/// Loads an archive and looks at what the engine made of it. The name must be on record.
pub(super) async fn load_archive(
    shop: &Workshop,
    config: Bytes,
    layers: Vec<Layer>,
    name: &ImageName,
) -> Result<LocalImage, Fault> {
    let wanted: Vec<Digest> = layers.iter().map(|layer| layer.digest).collect();
    shop.runtime.load(archive::stream(config, layers, name.clone())).await?;
    match shop.runtime.image(&name.to_string()).await? {
        Some(local) if local.layers == wanted => Ok(local),
        Some(_) => Err(refused(&format!("load image {name}"), "it has other layers than were loaded")),
        None => Err(refused(&format!("load image {name}"), "it does not have it afterwards")),
    }
}

/// The image by its id, under our name as well, so that it stays while the build needs it.
async fn named(shop: &Workshop, id: Digest, name: &ImageName) -> Result<Option<LocalImage>, Fault> {
    let id = id.to_string();
    // Engines that name images by something else than their configuration know it by our name.
    let by_id = shop.runtime.image(&id).await?;
    let Some(local) = by_id else { return Ok(shop.runtime.image(&name.to_string()).await?) };
    match shop.runtime.tag(&id, name).await {
        Ok(()) => Ok(Some(local)),
        // Removed since, by another worker on this engine.
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The name under which a build keeps an image that it uses, on record.
fn own_name(shelf: &Shelf, order: &Order, id: Digest) -> Result<ImageName, Fault> {
    let name = shelf.name(&order.build, &format!("image-{}", &id.hex()[..ID_SHOWN_LEN]));
    shelf.record(&order.build, &name)?;
    Ok(name)
}

fn common_prefix(a: &[Digest], b: &[Digest]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

fn refused(doing: &str, message: &str) -> Fault {
    Fault::Runtime(RuntimeError::Refused { doing: doing.to_owned(), status: None, message: message.to_owned() })
}

/// The blob of bytes that are at hand.
pub(super) fn plain_blob(bytes: &[u8]) -> Blob {
    Blob::plain(Digest::of(bytes), bytes.len() as u64)
}
