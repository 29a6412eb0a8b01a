//! Everything about every file of a tree.

use railyard_common::digest::Digest;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// Below this length content is shown as it is.
const SHOWN_MAX: usize = 100;

/// A tree.
#[derive(Debug, Default)]
pub struct Listing {
    /// By path: all there is to know, as text.
    pub files: BTreeMap<Vec<u8>, String>,
    /// Names that are one file.
    pub links: BTreeSet<BTreeSet<Vec<u8>>>,
}

/// Lists a tree, or what tar made of its layer: a removed file and an opaque directory are the same in both.
pub fn list(root: &Path) -> Listing {
    let mut listing = Listing::default();
    let mut names: BTreeMap<(u64, u64), BTreeSet<Vec<u8>>> = BTreeMap::new();
    visit(root, root, &mut |path, at, metadata| {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap();
        let dir = &path[..path.len() - name.len()];
        let kind = metadata.file_type();
        if name == b".wh..wh..opq" {
            listing.files.entry(dir[..dir.len() - 1].to_vec()).or_default().push_str(" opaque");
        } else if let Some(gone) = name.strip_prefix(b".wh.") {
            listing.files.insert([dir, gone].concat(), "removed".to_owned());
        } else if kind.is_char_device() && metadata.rdev() == 0 {
            listing.files.insert(path.to_vec(), "removed".to_owned());
        } else if !kind.is_socket() {
            listing.files.insert(path.to_vec(), told(at, metadata));
            if xattr::get(at, "trusted.overlay.opaque").unwrap().is_some() {
                listing.files.entry(path.to_vec()).or_default().push_str(" opaque");
            }
            if !kind.is_dir() && metadata.nlink() > 1 {
                names.entry((metadata.dev(), metadata.ino())).or_default().insert(path.to_vec());
            }
        }
    });
    listing.links = names.into_values().filter(|names| names.len() > 1).collect();
    listing
}

/// What can be said of the root itself, but for its time.
pub fn of_root(root: &Path) -> String {
    let metadata = fs::symlink_metadata(root).unwrap();
    format!("{:o} {} {}", metadata.mode(), metadata.uid(), metadata.gid())
}

fn visit(root: &Path, dir: &Path, see: &mut impl FnMut(&[u8], &Path, &Metadata)) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for at in entries {
        let metadata = fs::symlink_metadata(&at).unwrap();
        see(at.strip_prefix(root).unwrap().as_os_str().as_bytes(), &at, &metadata);
        if metadata.is_dir() {
            visit(root, &at, see);
        }
    }
}

fn told(at: &Path, metadata: &Metadata) -> String {
    let kind = metadata.file_type();
    let content = if kind.is_symlink() {
        format!("-> {:?}", fs::read_link(at).unwrap())
    } else if kind.is_file() {
        let bytes = fs::read(at).unwrap();
        let shown = if bytes.len() < SHOWN_MAX { String::from_utf8_lossy(&bytes).into_owned() } else { String::new() };
        format!("{} bytes {} {shown:?}", bytes.len(), Digest::of(&bytes))
    } else if kind.is_char_device() || kind.is_block_device() {
        format!("device {:x}", metadata.rdev())
    } else {
        String::new()
    };
    let mut xattrs: Vec<_> = xattr::list(at).unwrap().map(|name| name.to_string_lossy().into_owned()).collect();
    xattrs.retain(|name| !name.starts_with("trusted.overlay.") && name != "security.selinux");
    xattrs.sort();
    let xattrs = xattrs.iter().map(|name| format!(" {name}={}", hex::encode(xattr::get(at, name).unwrap().unwrap())));
    let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
    let time = format!("{}+{}", metadata.mtime(), metadata.mtime_nsec());
    format!("{mode:o} {uid} {gid} {time} {content}{}", xattrs.collect::<String>())
}
