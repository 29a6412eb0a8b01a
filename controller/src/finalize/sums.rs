//! `SHA256SUMS` beside published files, in the form of sha256sum.

use super::placing::published_by_others;
use super::{Failure, Finalizer};
use bytes::Bytes;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::BuildId;
use railyard_common::layout::SUMS;
use railyard_common::path::RelPath;
use std::collections::{BTreeMap, BTreeSet};

impl Finalizer {
    /// Adds published files to the sums of their directories.
    pub(super) async fn write_sums(&self, id: &BuildId, paths: &BTreeMap<RelPath, Blob>) -> Result<(), Failure> {
        let mut directories: BTreeMap<&str, BTreeMap<String, String>> = BTreeMap::new();
        for (path, blob) in paths {
            let Some((directory, name)) = path.as_str().rsplit_once('/') else { continue };
            directories.entry(directory).or_default().insert(name.to_owned(), blob.digest.hex());
        }
        for (directory, sums) in directories {
            let Ok(path) = format!("{directory}/{SUMS}").parse() else { continue };
            // A pipeline made its own: it is published, by this build or an earlier one, and so it stays as it is.
            if sums.contains_key(SUMS) || self.is_artifact(id, &path).await? {
                continue;
            }
            self.update_bytes(&path, |old| merge_sums(old, &sums)).await?;
        }
        Ok(())
    }

    /// Takes files out of the sums of their directories.
    pub(super) async fn remove_sums(&self, id: &BuildId, paths: &BTreeSet<RelPath>) -> Result<(), Failure> {
        let mut directories: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (directory, name) in paths.iter().filter_map(|path| path.as_str().rsplit_once('/')) {
            directories.entry(directory).or_default().insert(name);
        }
        for (directory, names) in directories {
            let Ok(path) = format!("{directory}/{SUMS}").parse::<RelPath>() else { continue };
            let Some((bytes, _)) = self.cache.get(&path).await? else { continue };
            if names.contains(SUMS) || self.is_artifact(id, &path).await? {
                continue;
            }
            if without_sums(&bytes, &names).is_empty() {
                self.cache.delete(&path).await?;
            } else {
                self.update_bytes(&path, |old| without_sums(old.unwrap_or_default(), &names)).await?;
            }
        }
        Ok(())
    }

    /// Whether what is there is the artifact of another build, which published it there. That its bytes are a blob is not enough:
    /// what the farm itself wrote is there to be read, and anybody's step can leave the same bytes as an artifact.
    async fn is_artifact(&self, id: &BuildId, path: &RelPath) -> Result<bool, Failure> {
        let Some((bytes, _)) = self.cache.get(path).await? else { return Ok(false) };
        if self.cache.find(&Digest::of(&bytes)).await?.is_none() {
            return Ok(false);
        }
        let (own, paths) = (id.clone(), BTreeSet::from([path.clone()]));
        let others = self.farm.read(move |farm, _| published_by_others(farm, &own, &paths)).await;
        // The controller stops; its successor does all of this once more.
        Ok(others.map_or(true, |others| !others.is_empty()))
    }
}

/// Lines of `SHA256SUMS`: those that stand, and the new ones.
fn merge_sums(old: Option<&[u8]>, sums: &BTreeMap<String, String>) -> Bytes {
    let old = String::from_utf8_lossy(old.unwrap_or_default()).into_owned();
    let mut lines: BTreeMap<&str, &str> =
        old.lines().filter_map(|line| line.split_once("  ")).map(|(sum, name)| (name, sum)).collect();
    lines.extend(sums.iter().map(|(name, sum)| (name.as_str(), sum.as_str())));
    lines.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect::<String>().into()
}

/// Lines of `SHA256SUMS` but for those of `names`.
fn without_sums(old: &[u8], names: &BTreeSet<&str>) -> Bytes {
    let old = String::from_utf8_lossy(old);
    let kept = old.lines().filter(|line| !line.split_once("  ").is_some_and(|(_, name)| names.contains(name)));
    kept.map(|line| format!("{line}\n")).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_merged_and_sorted() {
        let new = BTreeMap::from([("b".to_owned(), "2".to_owned()), ("a".to_owned(), "1".to_owned())]);
        let first = merge_sums(None, &new);
        assert_eq!(&first[..], b"1  a\n2  b\n");
        let more = BTreeMap::from([("c".to_owned(), "3".to_owned())]);
        assert_eq!(&merge_sums(Some(&first), &more)[..], b"1  a\n2  b\n3  c\n");
        assert_eq!(merge_sums(Some(&first), &new), first);
        let left = without_sums(b"1  a\n2  b\n3  c\n", &BTreeSet::from(["b", "x"]));
        assert_eq!(&left[..], b"1  a\n3  c\n");
    }
}
