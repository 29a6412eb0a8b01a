//! Things go: blobs, packed layers and images, in one order.

use super::policy::{self, Choice, Part, Reach, Thing};
use super::{Space, account};
use crate::blobs::Key;
use crate::blocking::blocking;
use crate::runtime::ImageName;
use crate::workshop::Workshop;
use bytesize::ByteSize;
use railyard_common::disk::{Kind, Role};
use std::collections::BTreeMap;

/// What can go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Blob(Key),
    Image(ImageName),
}

impl What {
    fn kind(&self) -> Kind {
        match self {
            Self::Blob(key) => key.kind(),
            Self::Image(_) => Kind::Images,
        }
    }
}

/// All that is on that file system.
fn things_on(role: Role, engine: Role, blobs: &[Thing<Key>], images: &[Thing<ImageName>]) -> Vec<Thing<What>> {
    let files = blobs.iter().filter(|_| role == Role::Data).map(|thing| as_what(thing, What::Blob(thing.key)));
    let images = images.iter().filter(|_| role == engine).map(|thing| as_what(thing, What::Image(thing.key.clone())));
    files.chain(images).collect()
}

fn as_what<K>(thing: &Thing<K>, key: What) -> Thing<What> {
    let parts: BTreeMap<Part, u64> = thing.parts.clone();
    Thing { key, parts, used_at: thing.used_at, need: thing.need }
}

/// What could be freed there for a job, by kind.
pub(super) fn freeable(
    role: Role,
    engine: Role,
    blobs: &[Thing<Key>],
    images: &[Thing<ImageName>],
) -> BTreeMap<Kind, u64> {
    let things = things_on(role, engine, blobs, images);
    let mut by_kind = BTreeMap::new();
    for Choice { thing, frees_bytes } in policy::choose(&things, Reach::Unused, u64::MAX) {
        *by_kind.entry(thing.key.kind()).or_insert(0_u64) += frees_bytes;
    }
    by_kind
}

/// Frees `goal_bytes` of a file system if it can; what was freed, as far as is known. It stops as soon as the file system says that it is
/// enough, or what was removed should be: some say so late.
pub(super) async fn evict(shop: &Workshop, role: Role, goal_bytes: u64, reach: Reach) -> u64 {
    let _one = shop.disks.evicting.lock().await;
    let free_now = || space(shop, role).map_or(0, |space| space.free_bytes);
    let before = free_now();
    let blobs = shop.blobs.clone();
    let stock = blocking(move || blobs.stock()).await;
    let things = things_on(role, shop.disks.places.engine(), &stock.things, &shop.shelf.things());
    let (mut freed_bytes, mut went) = (0_u64, BTreeMap::<&str, usize>::new());
    for Choice { thing, frees_bytes } in policy::choose(&things, reach, goal_bytes) {
        if free_now().saturating_sub(before) >= goal_bytes {
            break;
        }
        if remove(shop, &thing.key).await {
            freed_bytes = freed_bytes.saturating_add(frees_bytes);
            *went.entry(thing.key.kind().as_str()).or_default() += 1;
        }
    }
    account::look(shop).await;
    if !went.is_empty() {
        let [freed, goal] = [freed_bytes, goal_bytes].map(|bytes| ByteSize::b(bytes).display().iec().to_string());
        tracing::info!(place = %shop.disks.places.dir(role).display(), ?went, freed, goal, "made room on the disk");
    }
    freed_bytes.max(free_now().saturating_sub(before))
}

/// Whether it has gone.
async fn remove(shop: &Workshop, what: &What) -> bool {
    match what {
        What::Blob(key) => {
            let (blobs, key) = (shop.blobs.clone(), *key);
            match blocking(move || blobs.evict(key)).await {
                Ok(bytes) => bytes > 0,
                Err(error) => {
                    tracing::warn!(?key, %error, "a blob cannot be removed");
                    false
                }
            }
        }
        What::Image(name) => match shop.shelf.remove(name).await {
            Ok(gone) => gone,
            Err(error) => {
                tracing::warn!(%name, error = railyard_service::error_chain(&error), "an image cannot be removed");
                false
            }
        },
    }
}

pub(super) fn space(shop: &Workshop, role: Role) -> Option<Space> {
    let dir = shop.disks.places.dir(role);
    (shop.space)(dir)
        .inspect_err(|error| tracing::warn!(place = %dir.display(), %error, "a disk cannot be measured"))
        .ok()
}

/// Somebody had no room on that file system: the reserve is given, and what no job uses goes until so much is free, or as much as the low
/// mark says if that is more. `false` if nothing could be done.
pub async fn make_room(shop: &Workshop, role: Role, wanted_bytes: u64) -> bool {
    shop.disks.note_full(role, shop.clock.boottime());
    let Some(space) = space(shop, role) else { return false };
    let given = role == Role::Data && shop.disks.reserve.give();
    let (_, low) = space.marks(&shop.disks.config);
    let goal = wanted_bytes.saturating_sub(space.free_bytes).max(space.used_bytes().saturating_sub(low)).max(1);
    let freed = evict(shop, role, goal, Reach::Unused).await;
    tracing::warn!(place = %shop.disks.places.dir(role).display(), freed, given, "a disk was full");
    freed > 0
}
