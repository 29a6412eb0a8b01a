//! What is known of the images that this worker has put into the engine, as it lies on the disk.

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
    /// Counts uses: what was used least recently has the lowest number.
    uses: u64,
}

/// An image under one of this worker's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) build: BuildId,
    pub(super) name: ImageName,
    #[serde(default)]
    layers: Layers,
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

/// Which images may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expendable {
    /// Those of builds that are over.
    Over,
    /// All that no job uses, those of builds that are over first.
    Unused,
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
    pub(super) fn keep(&mut self, build: BuildId, name: ImageName, layers: Layers) {
        self.kept.retain(|kept| kept.name != name);
        self.uses += 1;
        self.kept.push(Kept { build, name, layers, used_at: self.uses, over: false });
    }

    /// One that it has is used again.
    pub(super) fn touch(&mut self, name: &ImageName) {
        self.uses += 1;
        for kept in self.kept.iter_mut().filter(|kept| kept.name == *name) {
            (kept.used_at, kept.over) = (self.uses, false);
        }
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
        let layers: BTreeMap<Digest, u64> = self.kept.iter().flat_map(|kept| kept.layers.0.iter().copied()).collect();
        // Of an image whose size nobody knows nothing is kept either, if nothing is to be kept.
        let over = self.kept.iter().filter(|kept| kept.over).count();
        over > 0 && (limit_bytes == 0 || over > OVER_MAX || layers.values().sum::<u64>() > limit_bytes)
    }

    /// What was used least recently of what may go, except for what `stays`.
    pub(super) fn next_to_go(&self, may_go: Expendable, stays: impl Fn(&ImageName) -> bool) -> Option<ImageName> {
        let may = |kept: &&Kept| (kept.over || may_go == Expendable::Unused) && !stays(&kept.name);
        let next = self.kept.iter().filter(may).min_by_key(|kept| (!kept.over, kept.used_at));
        next.map(|kept| kept.name.clone())
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
        for (of, tag, letters) in [("a/1", "a1", "bx"), ("b/1", "b1", "by"), ("a/1", "a2", "bxz"), ("c/1", "c1", "b")] {
            records.keep(build(of), name(tag), layers(letters));
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
        records.touch(&name("a1"));
        assert_eq!(records.builds(), [&build("a/1"), &build("c/1")].into(), "it runs again");
        let next = |records: &Records| records.next_to_go(Expendable::Over, |_| false);
        assert_eq!(next(&records), Some(name("b1")));
        records.drop(&name("b1"));
        assert_eq!(next(&records), Some(name("a2")));
        assert_eq!(records.next_to_go(Expendable::Over, |held| *held == name("a2")), None, "a job uses it");
    }

    #[test]
    fn a_full_disk_takes_what_running_builds_do_not_use_now_last() {
        let mut records = records();
        records.end(&build("c/1"));
        let mut went = Vec::new();
        while let Some(next) = records.next_to_go(Expendable::Unused, |held| *held == name("b1")) {
            records.drop(&next);
            went.push(next.tag);
        }
        assert_eq!(went, ["c1", "a1", "a2"]);
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
