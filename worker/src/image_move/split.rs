//! The layers in an archive that `docker save` wrote, as blobs for the cache.
//!
//! Layers are known by what they are, not by where they lie: whatever file hashes to a wanted diff id is that layer.
//! So the layouts of old engines (`ID/layer.tar`, with links for repeats) and of new ones (`blobs/sha256/HEX`) are one.

use super::root::Packing;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_transfer::Hasher;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};
use zstd::stream::write::Encoder;

/// Read at a time.
const READ_BYTES: usize = 256 * 1024;

/// What to do with the layers of an archive.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Layers to compress.
    pub layers: BTreeSet<Digest>,
    /// Layers that need not be: they are in the cache already. By length, because an old archive tells a layer's
    /// length before its digest. Empty: look at everything.
    pub skip: BTreeMap<u64, Digest>,
    /// zstd level.
    pub level: i32,
    /// zstd's threads.
    pub threads: usize,
}

/// A layer, ready for the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// As it is stored: zstd.
    pub blob: Blob,
    /// The stored bytes.
    pub file: PathBuf,
}

/// Reads the archive and leaves each wanted layer in `dir`, compressed. A layer that is not in the archive, or that
/// happens to have the length of one to skip, is missing from the result.
///
/// # Errors
/// If the archive or the disk fails.
pub fn split(archive: impl Read, wanted: &Wanted, dir: &Path) -> io::Result<BTreeMap<Digest, Packed>> {
    let mut packed = BTreeMap::new();
    let mut archive = tar::Archive::new(archive);
    for (n, entry) in archive.entries()?.enumerate() {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() || !may_be_layer(&entry.path()?, wanted, entry.size()) {
            continue;
        }
        let size = entry.size();
        let mut magic = Vec::new();
        entry.by_ref().take(Packing::MAGIC_BYTES as u64).read_to_end(&mut magic)?;
        let packing = Packing::of(&magic);
        let content = magic.as_slice().chain(&mut entry);
        let file = dir.join(format!("layer-{n}.zst"));
        let blob = match packing {
            Packing::Plain => pack(content, size, &file, wanted)?,
            packing => repack(packing, content, dir, &file, wanted)?,
        };
        if wanted.layers.contains(&blob.digest) && !packed.contains_key(&blob.digest) {
            packed.insert(blob.digest, Packed { blob, file });
        } else {
            fs::remove_file(&file)?;
        }
    }
    Ok(packed)
}

/// Whether a file of the archive can be a layer that is wanted.
fn may_be_layer(path: &Path, wanted: &Wanted, size: u64) -> bool {
    if path.ends_with("layer.tar") {
        return !wanted.skip.contains_key(&size);
    }
    let named = path.strip_prefix("blobs/sha256").ok().and_then(Path::to_str);
    let Some(digest) = named.and_then(|hex| Digest::from_hex(hex).ok()) else { return false };
    // A plain layer has its diff id as its name. A packed one has another, and must be looked into.
    !wanted.skip.values().any(|skipped| *skipped == digest)
}

/// Compresses and hashes in one pass. The frame tells its content's size, which the cache wants to know.
fn pack(mut content: impl Read, size: u64, file: &Path, wanted: &Wanted) -> io::Result<Blob> {
    let mut encoder = Encoder::new(File::create(file)?, wanted.level)?;
    encoder.set_pledged_src_size(Some(size))?;
    // Never none: without its threads zstd cuts otherwise, and gives other bytes.
    encoder.multithread(u32::try_from(wanted.threads).unwrap_or(1).max(1))?;
    let mut hasher = Hasher::default();
    let size_bytes = copy(&mut content, |bytes| {
        hasher.update(bytes);
        encoder.write_all(bytes)
    })?;
    let stored_bytes = encoder.finish()?.metadata()?.len();
    Ok(Blob { digest: hasher.finish(), size_bytes, encoding: Encoding::Zstd, stored_bytes })
}

/// The same for a layer that the engine keeps packed: its plain length is known only when it is unpacked.
fn repack(packing: Packing, content: impl Read, dir: &Path, file: &Path, wanted: &Wanted) -> io::Result<Blob> {
    let mut plain = tempfile::tempfile_in(dir)?;
    let mut unpacked = packing.open(content)?;
    let size = copy(&mut unpacked, |bytes| plain.write_all(bytes))?;
    plain.seek(SeekFrom::Start(0))?;
    pack(plain, size, file, wanted)
}

fn copy(from: &mut impl Read, mut to: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    loop {
        let n = from.read(&mut buffer)?;
        if n == 0 {
            return Ok(total);
        }
        to(&buffer[..n])?;
        total += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &[u8])], link: Option<(&str, &str)>) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, *content).unwrap();
        }
        if let Some((path, target)) = link {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, path, target).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn plain_of(packed: &Packed) -> Vec<u8> {
        assert_eq!(fs::metadata(&packed.file).unwrap().len(), packed.blob.stored_bytes);
        zstd::decode_all(File::open(&packed.file).unwrap()).unwrap()
    }

    #[test]
    fn both_layouts_give_the_same_layers() {
        let (one, two) = (b"first layer".as_slice(), b"second".as_slice());
        let hex = |bytes| format!("blobs/sha256/{}", Digest::of(bytes).hex());
        let old = archive(
            &[
                ("cafe.json", b"{}"),
                ("a/layer.tar", one),
                ("a/VERSION", b"1.0"),
                ("b/layer.tar", two),
                ("manifest.json", b"[]"),
            ],
            Some(("c/layer.tar", "../a/layer.tar")),
        );
        let new = archive(&[(&hex(b"{}"), b"{}"), (&hex(one), one), (&hex(two), two), ("index.json", b"{}")], None);
        let zipped = zstd::encode_all(one, 1).unwrap();
        let containerd = archive(&[(&hex(&zipped), &zipped), (&hex(two), two)], None);
        for bytes in [old, new, containerd] {
            let dir = tempfile::tempdir().unwrap();
            let wanted = Wanted {
                layers: [Digest::of(one), Digest::of(two)].into(),
                skip: BTreeMap::new(),
                level: 1,
                threads: 2,
            };
            let packed = split(&bytes[..], &wanted, dir.path()).unwrap();
            assert_eq!(packed.len(), 2);
            assert_eq!(plain_of(&packed[&Digest::of(one)]), one);
            assert_eq!(plain_of(&packed[&Digest::of(two)]), two);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing else is left on the disk");
        }
    }

    #[test]
    fn a_known_layer_is_not_compressed_again() {
        let (one, two) = (b"first layer".as_slice(), b"second".as_slice());
        let bytes = archive(&[("a/layer.tar", one), ("b/layer.tar", two)], None);
        let skip = BTreeMap::from([(one.len() as u64, Digest::of(one))]);
        let wanted = Wanted { layers: [Digest::of(one), Digest::of(two)].into(), skip, level: 1, threads: 2 };
        let dir = tempfile::tempdir().unwrap();
        let packed = split(&bytes[..], &wanted, dir.path()).unwrap();
        assert_eq!(packed.keys().copied().collect::<Vec<_>>(), [Digest::of(two)]);
    }

    #[test]
    fn an_archive_that_breaks_off_is_an_error() {
        let bytes = archive(&[("a/layer.tar", &[7; 5000])], None);
        let wanted = Wanted { layers: [Digest::of(&[7; 5000])].into(), ..Wanted::default() };
        let dir = tempfile::tempdir().unwrap();
        assert!(split(&bytes[..3000], &wanted, dir.path()).is_err());
    }
}
