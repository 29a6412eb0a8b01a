//! Layers that only the engine has, taken out of what it exports.

use crate::attempt::fault::Fault;
use crate::blocking::blocking;
use crate::disk::{DiskError, is_full};
use crate::image_move::split::{Packed, Wanted, split};
use crate::runtime::RuntimeError;
use crate::workshop::Workshop;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_transfer::Room;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use tokio_util::io::{StreamReader, SyncIoBridge};

/// Takes these layers out of an image of the engine, compressed, into `dir`. `have` are layers of it that nobody needs.
///
/// # Errors
/// [`Fault`], also if one of them is not in it.
pub(super) async fn layers(
    shop: &Workshop,
    image: &str,
    wanted: BTreeSet<Digest>,
    have: &BTreeMap<Digest, Blob>,
    dir: &Path,
) -> Result<BTreeMap<Digest, Packed>, Fault> {
    if wanted.is_empty() {
        return Ok(BTreeMap::new());
    }
    let skip = have.values().map(|blob| (blob.size_bytes, blob.digest)).collect();
    let level = shop.config.layer_compression;
    let room = Arc::new(shop.press.room_for_zstd(u8::try_from(level).unwrap_or(u8::MAX)).await);
    let mut wanted = Wanted { layers: wanted, skip, level, threads: room.threads };
    let packed = export(shop, image, &wanted, dir, &room).await?;
    if packed.len() == wanted.layers.len() {
        return Ok(packed);
    }
    // A new layer has the very length of a known one: look at all of them.
    wanted.skip.clear();
    let packed = export(shop, image, &wanted, dir, &room).await?;
    match wanted.layers.iter().find(|layer| !packed.contains_key(layer)) {
        None => Ok(packed),
        Some(layer) => Err(unreadable(image, &format!("its archive lacks layer {layer}"))),
    }
}

async fn export(
    shop: &Workshop,
    image: &str,
    wanted: &Wanted,
    dir: &Path,
    room: &Arc<Room>,
) -> Result<BTreeMap<Digest, Packed>, Fault> {
    let stream = shop.runtime.export(image).await?;
    let (wanted, into, room) = (wanted.clone(), dir.to_owned(), Arc::clone(room));
    // The bridge must be made where the runtime is known.
    let archive = SyncIoBridge::new(StreamReader::new(stream));
    let splitting = move || {
        // Given back when the work is over, also if nobody waits for it any more.
        let _room = room;
        split(archive, &wanted, &into)
    };
    blocking(splitting).await.map_err(|error| {
        if is_full(&error) {
            DiskError::at("write", dir)(error).into()
        } else if let Some(why) = away(&error) {
            Fault::Runtime(why)
        } else {
            unreadable(image, &format!("its archive cannot be read: {error}"))
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

fn unreadable(image: &str, message: &str) -> Fault {
    let doing = format!("export image {image}");
    Fault::Runtime(RuntimeError::Refused { doing, status: None, message: message.to_owned() })
}
