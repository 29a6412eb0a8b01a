//! Archives into the engine.

use super::ShelfError;
use super::records::Layers;
use crate::attempt::fault::Fault;
use crate::blobs::Held;
use crate::disk::evict;
use crate::image_move::archive::{self, Layer};
use crate::runtime::{ImageName, LocalImage, RuntimeError};
use crate::workshop::Workshop;
use bytes::Bytes;
use futures_util::StreamExt as _;
use railyard_common::order::Order;
use tokio_util::sync::CancellationToken;

/// What is loaded into the engine.
pub(super) struct Archive {
    pub(super) config: Bytes,
    pub(super) layers: Vec<Layer>,
    /// The layers' files.
    pub(super) held: Vec<Held>,
}

/// Loads an archive and looks at what the engine made of it. The layers' files are given back. On a disk that is full, what no
/// job uses goes, and it is tried once more; but layers that are on their way come only once.
pub(super) async fn load_archive(
    shop: &Workshop,
    order: &Order,
    archive: Archive,
    name: &ImageName,
    sizes: Layers,
) -> Result<(LocalImage, Vec<Held>), Fault> {
    let Archive { config, layers, mut held } = archive;
    let mut made_room = false;
    let held = loop {
        let result = load_once(shop, order, (&config, &layers, held), name, &sizes).await?;
        match result {
            Loaded::Well(held) => break held,
            Loaded::Full(back, error)
                if made_room || !room_for(shop, &layers).await || layers.iter().any(Layer::is_coming) =>
            {
                drop(back);
                return Err(error.into());
            }
            Loaded::Full(back, _) => (held, made_room) = (back, true),
        }
    };
    match shop.runtime.image(&name.to_string()).await? {
        Some(local) if local.layers.iter().eq(layers.iter().map(|layer| &layer.digest)) => Ok((local, held)),
        Some(_) => Err(refused(&format!("load image {name}"), "it has other layers than were loaded")),
        None => Err(refused(&format!("load image {name}"), "it does not have it afterwards")),
    }
}

/// The engine's disk is full. Whether there is more room now.
async fn room_for(shop: &Workshop, layers: &[Layer]) -> bool {
    let bytes = layers.iter().filter_map(|layer| layer.tar.as_ref()).map(|tar| tar.size_bytes).sum();
    evict::make_room(shop, shop.disks.places.engine(), bytes).await
}

/// What became of an archive, and the layers' files.
enum Loaded {
    Well(Vec<Held>),
    /// The engine's disk is full.
    Full(Vec<Held>, RuntimeError),
}

async fn load_once(
    shop: &Workshop,
    order: &Order,
    (config, layers, held): (&Bytes, &[Layer], Vec<Held>),
    name: &ImageName,
    sizes: &Layers,
) -> Result<Loaded, ShelfError> {
    // An archive that nobody waits for any more breaks off, and the engine makes nothing of it.
    let dropped = CancellationToken::new();
    let _guard = dropped.clone().drop_guard();
    let (runtime, named, config, layers) = (shop.runtime.clone(), name.clone(), config.clone(), layers.to_vec());
    let loading = async move {
        let archive = archive::stream(config, layers, named).take_until(dropped.cancelled_owned()).boxed();
        match runtime.load(archive).await {
            Ok(()) => Ok(Loaded::Well(held)),
            Err(error) if error.is_disk_full() => Ok(Loaded::Full(held, error)),
            Err(error) => Err(error),
        }
    };
    shop.shelf.make(&order.build, name, sizes.clone(), loading).await
}

fn refused(doing: &str, message: &str) -> Fault {
    Fault::Runtime(RuntimeError::Refused { doing: doing.to_owned(), status: None, message: message.to_owned() })
}
