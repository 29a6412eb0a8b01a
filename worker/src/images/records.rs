//! What is known of the images that this worker has put into the engine, as it lies on the disk.

use crate::disk::policy::{self, Need, Part, Reach, Thing};
use crate::runtime::{ImageName, LocalImage};
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::BuildId;
use railyard_common::platform::Platform;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Root tarballs whose image is remembered; more than a host builds of at a time.
const ROOTS_MAX: usize = 64;

/// Images of builds that are over: more than anybody comes back for, and the record is written anew with each change.
const OVER_MAX: usize = 500;

/// All of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Records {
    kept: Vec<Kept>,
    roots: Vec<Root>,
}

/// An image under one of this worker's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) build: BuildId,
    pub(super) name: ImageName,
    #[serde(default)]
    layers: Layers,
    /// See [`crate::disk::uses::Uses`].
    #[serde(default)]
    used_at: u64,
    /// Its build is over. It stays only as long as there is room.
    #[serde(default)]
    over: bool,
}

/// The layers of an image, and what each takes on the engine's disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layers(Vec<(Digest, u64)>);

/// The image that a root tarball gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Root {
    tarball: Digest,
    platform: Platform,
    image: Digest,
}

impl From<&[Blob]> for Layers {
    fn from(blobs: &[Blob]) -> Self {
        Self(blobs.iter().map(|blob| (blob.digest, blob.size_bytes)).collect())
    }
}

impl From<&LocalImage> for Layers {
    /// The engine tells only the sum, which the last layer has to stand for.
    fn from(image: &LocalImage) -> Self {
        Self(image.layers.last().map(|last| (*last, image.size_bytes)).into_iter().collect())
    }
}

impl Records {
    /// Reads the file. One that makes no sense counts as empty: what it would have kept is fetched again.
    ///
    /// # Errors
    /// If there is one that cannot be read.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        match fs::read(path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "the record of images makes no sense; beginning a new one");
                Self::default()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// The new file appears whole or not at all. It is not flushed to the disk: what a loss of power takes from it are names
    /// that the next start removes from the engine, or that the engine never had.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let part = path.with_extension("part");
        File::create(&part)?.write_all(&serde_json::to_vec_pretty(self)?)?;
        fs::rename(&part, path)
    }

    /// The build uses an image of that name now.
    pub(super) fn keep(&mut self, build: BuildId, name: ImageName, layers: Layers, used_at: u64) {
        self.kept.retain(|kept| kept.name != name);
        self.kept.push(Kept { build, name, layers, used_at, over: false });
    }

    /// One that it has is used again.
    pub(super) fn touch(&mut self, name: &ImageName, used_at: u64) {
        for kept in self.kept.iter_mut().filter(|kept| kept.name == *name) {
            (kept.used_at, kept.over) = (used_at, false);
        }
    }

    /// The latest use of any.
    pub(super) fn last_use(&self) -> u64 {
        self.kept.iter().map(|kept| kept.used_at).max().unwrap_or_default()
    }

    /// The engine does not have that name any more.
    pub(super) fn drop(&mut self, name: &ImageName) {
        self.kept.retain(|kept| kept.name != *name);
    }

    /// The build is over.
    pub(super) fn end(&mut self, build: &BuildId) {
        for kept in self.kept.iter_mut().filter(|kept| kept.build == *build) {
            kept.over = true;
        }
    }

    /// Builds with images here that are not over.
    pub(super) fn builds(&self) -> BTreeSet<&BuildId> {
        self.kept.iter().filter(|kept| !kept.over).map(|kept| &kept.build).collect()
    }

    /// Every name.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.kept.iter().map(|kept| kept.name.to_string()).collect()
    }

    /// Whether what is kept of builds that are over is more than `limit_bytes` allows. Images share layers, which count once.
    pub(super) fn is_over(&self, limit_bytes: u64) -> bool {
        // Of an image whose size nobody knows nothing is kept either, if nothing is to be kept.
        let over = self.kept.iter().filter(|kept| kept.over).count();
        over > 0 && (limit_bytes == 0 || over > OVER_MAX || self.bytes() > limit_bytes)
    }

    /// What all images take together, as far as is known.
    pub(super) fn bytes(&self) -> u64 {
        let layers: BTreeMap<Digest, u64> = self.kept.iter().flat_map(|kept| kept.layers.0.iter().copied()).collect();
        layers.values().sum()
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.kept.len()
    }

    /// All of them, as the policy sees them; a job needs those that `used` says.
    pub(super) fn things(&self, used: impl Fn(&ImageName) -> bool) -> Vec<Thing<ImageName>> {
        let thing = |kept: &Kept| {
            let need = match () {
                () if used(&kept.name) => Need::Job,
                () if kept.over => Need::Nobody,
                () => Need::Build,
            };
            let parts = kept.layers.0.iter().map(|(layer, bytes)| (Part::Layer(*layer), *bytes)).collect();
            Thing { key: kept.name.clone(), parts, used_at: kept.used_at, need }
        };
        self.kept.iter().map(thing).collect()
    }

    /// What goes first of those whose builds are over, except for what `stays`.
    pub(super) fn next_to_go(&self, stays: impl Fn(&ImageName) -> bool) -> Option<ImageName> {
        let things = self.things(stays);
        policy::order(&things, Reach::Spare).first().map(|thing| thing.key.clone())
    }

    /// The image of a root tarball.
    pub(super) fn root(&self, tarball: Digest, platform: Platform) -> Option<Digest> {
        self.roots.iter().find(|root| root.tarball == tarball && root.platform == platform).map(|root| root.image)
    }

    /// Which image a root tarball gave.
    pub(super) fn remember_root(&mut self, tarball: Digest, platform: Platform, image: Digest) {
        self.roots.retain(|root| root.tarball != tarball || root.platform != platform);
        self.roots.push(Root { tarball, platform, image });
        let spare = self.roots.len().saturating_sub(ROOTS_MAX);
        self.roots.drain(..spare);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(tag: &str) -> ImageName {
        ImageName { repository: "r".into(), tag: tag.into() }
    }

    fn build(text: &str) -> BuildId {
        text.parse().unwrap()
    }

    /// Layers of 10 bytes each, by letter.
    fn layers(letters: &str) -> Layers {
        Layers(letters.bytes().map(|letter| (Digest::of(&[letter]), 10)).collect())
    }

    fn records() -> Records {
        let mut records = Records::default();
        let all = [("a/1", "a1", "bx"), ("b/1", "b1", "by"), ("a/1", "a2", "bxz"), ("c/1", "c1", "b")];
        for (used_at, (of, tag, letters)) in (1..).zip(all) {
            records.keep(build(of), name(tag), layers(letters), used_at);
        }
        records
    }

    #[test]
    fn what_builds_need_stays_and_of_the_rest_what_was_used_last() {
        let mut records = records();
        assert!(!records.is_over(0), "no build is over");
        records.end(&build("a/1"));
        records.end(&build("b/1"));
        assert_eq!(records.builds(), [&build("c/1")].into());
        assert!(!records.is_over(40), "shared layers count once");
        assert!(records.is_over(39) && records.is_over(0));
        records.touch(&name("a1"), 9);
        assert_eq!(records.builds(), [&build("a/1"), &build("c/1")].into(), "it runs again");
        let next = |records: &Records| records.next_to_go(|_| false);
        assert_eq!(next(&records), Some(name("b1")));
        records.drop(&name("b1"));
        assert_eq!(next(&records), Some(name("a2")));
        assert_eq!(records.next_to_go(|held| *held == name("a2")), None, "a job uses it");
    }

    #[test]
    fn a_full_disk_takes_what_running_builds_do_not_use_now_last() {
        let mut records = records();
        records.end(&build("c/1"));
        let things = records.things(|held| *held == name("b1"));
        let chosen = policy::choose(&things, Reach::Unused, u64::MAX);
        let went: Vec<(&str, u64)> =
            chosen.iter().map(|choice| (choice.thing.key.tag.as_str(), choice.frees_bytes)).collect();
        assert_eq!(went, [("a1", 0), ("a2", 20)], "all of c1 is in b1 as well, which a job uses");
    }

    #[test]
    fn the_record_of_an_older_worker_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.json");
        let old = r#"{ "kept": [{ "build": "a/1", "name": { "repository": "r", "tag": "a1" } }], "roots": [] }"#;
        fs::write(&path, old).unwrap();
        let mut records = Records::read(&path).unwrap();
        assert_eq!(records.names(), ["r:a1".to_owned()].into());
        records.end(&build("a/1"));
        assert!(records.is_over(0));
        records.write(&path).unwrap();
        assert!(Records::read(&path).unwrap().is_over(0));
        fs::write(&path, "nonsense").unwrap();
        assert!(Records::read(&path).unwrap().names().is_empty());
    }
}
