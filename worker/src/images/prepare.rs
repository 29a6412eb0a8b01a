//! Makes sure that the engine has a job's image.

use super::load::{Archive, load_archive};
use super::records::Layers;
use super::{InUse, Shelf, ShelfError};
use crate::attempt::fault::Fault;
use crate::blobs::Held;
use crate::blocking::blocking;
use crate::disk::DiskError;
use crate::image_move::archive::{Content, Layer, LayerTar};
use crate::image_move::config;
use crate::image_move::root::{self, Packing};
use crate::inputs::{fetch_live, fetch_one, fetch_stored};
use crate::log::JobLog;
use crate::network::MayNotPull;
use crate::runtime::{ImageName, LocalImage, RuntimeError};
use crate::workshop::Workshop;
use bytes::Bytes;
use bytesize::ByteSize;
use railyard_common::blob::{Artifact, Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::order::{Order, OrderImage};
use railyard_common::outcome::{OutcomeKind, Reason};
use std::fs::File;
use std::io::Read as _;
use tokio::sync::oneshot;

/// Hex digits of an image's id in its name: enough to tell the images of one build apart.
const ID_SHOWN_LEN: usize = 12;

/// Pulls before an image of the wrong platform is believed: somebody else may move its name in between.
const PULLS_MAX: u32 = 2;

/// The image of the order, in the engine.
///
/// A registry reference is not pulled if the engine has an image of that name for the platform. A pull that the registry
/// answered with "no such image" is the step's fault (`failed`); one that got no answer is not (`lost`): another worker,
/// or a later try, may have better luck.
///
/// It stays there while what is given with it is held.
///
/// # Errors
/// [`Fault`].
pub async fn prepare(shop: &Workshop, order: &Order, log: &JobLog) -> Result<(LocalImage, InUse), Fault> {
    match &order.image {
        OrderImage::Registry(reference) => from_registry(shop, order, reference, log).await,
        OrderImage::Image(image) => from_cache(shop, order, image, log).await,
        OrderImage::Import(artifact) => from_tarball(shop, order, artifact, log).await,
    }
}

/// The image that the order's job has begun with, by its id: as [`prepare`], for a job that goes on.
pub fn hold(shop: &Workshop, order: &Order, id: &str) -> InUse {
    let own = id.parse().map(|id| own_name(&shop.shelf, order, id));
    let pulled = match &order.image {
        OrderImage::Registry(reference) => Some(pulled_name(&shop.shelf, order, reference)),
        OrderImage::Image(_) | OrderImage::Import(_) => None,
    };
    shop.shelf.hold(own.into_iter().chain(pulled).collect())
}

async fn from_registry(
    shop: &Workshop,
    order: &Order,
    reference: &str,
    log: &JobLog,
) -> Result<(LocalImage, InUse), Fault> {
    let platform = order.job.platform;
    let _one = shop.shelf.pulling.lock(reference.to_owned()).await;
    let name = pulled_name(&shop.shelf, order, reference);
    let in_use = shop.shelf.hold_what_is_there(vec![name.clone()]).await;
    // A name that is none is an error already here.
    let known = shop.runtime.image(reference).await.map_err(|error| not_pulled(reference, error))?;
    let pulled_before = shop.runtime.image(&name.to_string()).await?;
    if let Some(image) = [&pulled_before, &known].into_iter().flatten().find(|image| image.is_for(platform)) {
        shop.shelf.touch(&name).await?;
        log.note(&format!("image {reference} is here")).await?;
        return Ok((image.clone(), in_use));
    }
    if let Some(other) = &known {
        log.note(&format!("image {reference} is here, but for {}", platform_of(other))).await?;
    }
    if let Err(why) = shop.guard.may_pull(reference).await {
        let kind = match why {
            MayNotPull::Denied(_) => OutcomeKind::Failed,
            MayNotPull::NotNow(_) => OutcomeKind::Lost,
        };
        return Err(Fault::ended(kind, Reason::ImageMissing, format!("image {reference} is not pulled: {why}")));
    }
    let mut found = None;
    for _ in 0..PULLS_MAX {
        log.note(&format!("pulling image {reference} for {platform}")).await?;
        let started = shop.clock.monotonic();
        shop.runtime.pull(reference, platform).await.map_err(|error| not_pulled(reference, error))?;
        let secs = (shop.clock.monotonic() - started).as_secs_f32();
        log.note(&format!("pulled image {reference} in {secs:.1} s")).await?;
        match shop.runtime.image(reference).await? {
            Some(image) if image.is_for(platform) => {
                take_over(shop, order, reference, &image, known, name).await?;
                return Ok((image, in_use));
            }
            other => found = other,
        }
    }
    let Some(image) = found else {
        let message = format!("image {reference} was pulled, but the engine does not have it");
        return Err(Fault::ended(OutcomeKind::Lost, Reason::ImageMissing, message));
    };
    let message = format!("image {reference} is for {}; the job runs on {platform}", platform_of(&image));
    Err(Fault::ended(OutcomeKind::Failed, Reason::ImageMissing, message))
}

/// Gives a pulled image the build's own name, and the reference back to the image that had it: an engine has one image of
/// a name, and who works on this host wants theirs.
async fn take_over(
    shop: &Workshop,
    order: &Order,
    reference: &str,
    pulled: &LocalImage,
    before: Option<LocalImage>,
    name: ImageName,
) -> Result<(), Fault> {
    let layers = Layers::from(pulled);
    let (runtime, pulled, before) = (shop.runtime.clone(), pulled.id.clone(), before.zip(tagged(reference)));
    let named = name.clone();
    let named = async move {
        runtime.tag(&pulled, &named).await?;
        match before {
            Some((before, reference)) => runtime.tag(&before.id, &reference).await,
            None => Ok(()),
        }
    };
    Ok(shop.shelf.make(&order.build, &name, layers, named).await?)
}

/// The name under which a build keeps what it pulled for one platform.
fn pulled_name(shelf: &Shelf, order: &Order, reference: &str) -> ImageName {
    let mark = Digest::of(reference.as_bytes()).hex();
    shelf.name(&order.build, &format!("pulled-{}-{}", order.job.platform.arch(), &mark[..ID_SHOWN_LEN]))
}

/// A reference by its tag; one by digest does not move.
fn tagged(reference: &str) -> Option<ImageName> {
    let (repository, tag) = match reference.rsplit_once(':') {
        _ if reference.contains('@') => return None,
        // What has a slash behind the colon is a port.
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (reference, "latest"),
    };
    Some(ImageName { repository: repository.to_owned(), tag: tag.to_owned() })
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
async fn from_cache(shop: &Workshop, order: &Order, image: &Image, log: &JobLog) -> Result<(LocalImage, InUse), Fault> {
    shop.layers.add(image.layers.iter().copied());
    let _one = shop.shelf.preparing.lock(image.config.digest).await;
    let name = own_name(&shop.shelf, order, image.config.digest);
    let in_use = shop.shelf.hold(vec![name.clone()]);
    if let Some(local) = named(shop, order, image.config.digest, &name, Some(image)).await? {
        log.note("the image is here").await?;
        return Ok((local, in_use));
    }
    let digests: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let chains = shop.runtime.layer_chains().await?;
    let have = chains.iter().map(|chain| common_prefix(chain, &digests)).max().unwrap_or(0);
    if have > 0 {
        match load(shop, order, image, have, &name, log).await {
            Ok(local) => return Ok((local, in_use)),
            // An engine that wants whole archives gets one.
            Err(Fault::Runtime(error)) if !error.is_unreachable() && !error.is_disk_full() => {
                tracing::info!(%error, "the engine did not take a partial image; sending the whole");
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok((load(shop, order, image, 0, &name, log).await?, in_use))
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
    let config = fetch_stored(shop, order.lease, &[image.config]).await?.remove(0);
    let config = read(&config).await?;
    let absent = || image.layers[..have].iter().map(|layer| Layer { digest: layer.digest, tar: None });
    let layer = |blob: &Blob, content| Layer {
        digest: blob.digest,
        tar: Some(LayerTar { content, size_bytes: blob.size_bytes }),
    };
    // The engine takes them while they come.
    let (coming, wanted): (Vec<Layer>, Vec<_>) = missing
        .iter()
        .map(|blob| {
            let (tell, told) = oneshot::channel();
            (layer(blob, Content::coming(told)), (*blob, tell))
        })
        .unzip();
    let layers = absent().chain(coming).collect();
    let archive = Archive { config: config.clone(), layers, held: Vec::new() };
    let sizes = Layers::from(&image.layers[..]);
    let loading = load_archive(shop, order, archive, name, sizes.clone());
    let (held, loaded) = tokio::join!(fetch_live(shop, order.lease, wanted), loading);
    let held = held?;
    let (local, held) = match loaded {
        Ok((local, _)) => (local, held),
        // Whatever it was: that a layer broke off on its way looks to the engine's client as if the engine had gone.
        Err(Fault::Runtime(error)) => {
            tracing::info!(%error, "the engine did not take layers on their way; sending them from the disk");
            let content = |held: &Held| Content::File { file: held.path().to_owned(), packing: held.encoding().into() };
            let here = missing.iter().zip(&held).map(|(blob, held)| layer(blob, content(held)));
            let archive = Archive { config, layers: absent().chain(here).collect(), held };
            load_archive(shop, order, archive, name, sizes).await?
        }
        Err(fault) => return Err(fault),
    };
    // The engine has them now; the next job takes them from there.
    held.into_iter().for_each(Held::discard);
    let secs = (shop.clock.monotonic() - started).as_secs_f32();
    log.note(&format!("loaded the image in {secs:.1} s")).await?;
    Ok(local)
}

/// The plain bytes of a small blob.
async fn read(held: &Held) -> Result<Bytes, DiskError> {
    let (path, packing) = (held.path().to_owned(), Packing::from(held.encoding()));
    let read = move || {
        let mut bytes = Vec::new();
        packing.open(File::open(path)?)?.read_to_end(&mut bytes)?;
        Ok(Bytes::from(bytes))
    };
    blocking(read).await.map_err(DiskError::at("read", held.path()))
}

/// A root tarball as an image with one layer.
async fn from_tarball(
    shop: &Workshop,
    order: &Order,
    artifact: &Artifact,
    log: &JobLog,
) -> Result<(LocalImage, InUse), Fault> {
    let (tarball, platform) = (artifact.blob.digest, order.job.platform);
    let _one = shop.shelf.preparing.lock(tarball).await;
    if let Some(image) = shop.shelf.root(tarball, platform) {
        let name = own_name(&shop.shelf, order, image);
        let in_use = shop.shelf.hold(vec![name.clone()]);
        if let Some(local) = named(shop, order, image, &name, None).await? {
            log.note(&format!("the image of {} is here", artifact.path)).await?;
            return Ok((local, in_use));
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
    let name = own_name(&shop.shelf, order, image);
    let in_use = shop.shelf.hold(vec![name.clone()]);
    let content = Content::File { file: held.path().to_owned(), packing: measured.packing };
    let tar = LayerTar { content, size_bytes: measured.size_bytes };
    let layers = vec![Layer { digest: measured.digest, tar: Some(tar) }];
    let sizes = Layers::from(&[Blob::plain(measured.digest, measured.size_bytes)][..]);
    let archive = Archive { config, layers, held: vec![held] };
    let (local, _) = load_archive(shop, order, archive, &name, sizes).await.map_err(|fault| match fault {
        // Another engine would not unpack it either.
        Fault::Runtime(error) if error.is_about_archive() => {
            let message = format!("{} cannot become an image: {error}", artifact.path);
            Fault::ended(OutcomeKind::Failed, Reason::ImageMissing, message)
        }
        other => other,
    })?;
    shop.shelf.remember_root(tarball, platform, image).await?;
    let secs = (shop.clock.monotonic() - started).as_secs_f32();
    log.note(&format!("made an image of {} in {secs:.1} s", artifact.path)).await?;
    Ok((local, in_use))
}

/// The image by its id, under our name as well, so that it stays while the build needs it. `known` is what the farm knows of it.
async fn named(
    shop: &Workshop,
    order: &Order,
    id: Digest,
    name: &ImageName,
    known: Option<&Image>,
) -> Result<Option<LocalImage>, Fault> {
    let id = id.to_string();
    // Engines that name images by something else than their configuration know it by our name.
    let by_id = shop.runtime.image(&id).await?;
    let Some(local) = by_id else { return Ok(shop.runtime.image(&name.to_string()).await?) };
    let layers = known.map_or_else(|| Layers::from(&local), |image| Layers::from(&image.layers[..]));
    match tag(shop, order, id, name, layers).await {
        Ok(()) => Ok(Some(local)),
        // Removed since, by another worker on this engine.
        Err(ShelfError::Runtime(error)) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Gives an image the build's name.
pub(super) async fn tag(
    shop: &Workshop,
    order: &Order,
    image: String,
    name: &ImageName,
    layers: Layers,
) -> Result<(), ShelfError> {
    let (runtime, named) = (shop.runtime.clone(), name.clone());
    shop.shelf.make(&order.build, name, layers, async move { runtime.tag(&image, &named).await }).await
}

/// The name under which a build keeps an image that it uses.
fn own_name(shelf: &Shelf, order: &Order, id: Digest) -> ImageName {
    shelf.name(&order.build, &format!("image-{}", &id.hex()[..ID_SHOWN_LEN]))
}

fn common_prefix(a: &[Digest], b: &[Digest]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The blob of bytes that are at hand.
pub(super) fn plain_blob(bytes: &[u8]) -> Blob {
    Blob::plain(Digest::of(bytes), bytes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_a_tag_can_be_moved() {
        let told = |reference| tagged(reference).map(|name| name.to_string());
        assert_eq!(told("debian").unwrap(), "debian:latest");
        assert_eq!(told("debian:12").unwrap(), "debian:12");
        assert_eq!(told("host:5000/debian").unwrap(), "host:5000/debian:latest");
        assert_eq!(told("host:5000/debian:12").unwrap(), "host:5000/debian:12");
        assert_eq!(told("debian@sha256:00"), None);
    }
}
