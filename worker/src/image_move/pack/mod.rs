//! What a container has changed, as a layer: straight out of the directory where overlay2 keeps just that.
//!
//! One pass: a tree becomes a tar, the tar is hashed and compressed while it is written. The directory is read as the
//! kernel's overlay writes it: a character device 0/0 is a removed file, a mark on a directory hides what is below.
//!
//! **Invariant:** the same tree gives the same bytes; and what a layer cannot say is an error, never left out. Only
//! sockets are: without their process they mean nothing.

mod content;
mod error;
mod frame;
mod header;
mod pipe;
mod walk;
mod xattrs;

pub use error::PackError;

use super::split::Packed;
use header::{BLOCK_BYTES, Header, Kind, padding};
use pipe::Pipe;
use std::collections::HashMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use walk::{Found, Step, Walk};
use xattrs::Attributes;

/// What stands before the name of a file that a layer takes away.
const WHITEOUT: &[u8] = b".wh.";

/// The file that says that nothing of its directory shows through from below.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// The access list that a directory gives to what is made in it.
const INHERITED: &[u8] = b"system.posix_acl_default";

/// The bits of a mode that a tar carries.
const MODE_BITS: u32 = 0o7777;

/// The mode of a container's root, unless somebody changed it.
const ROOT_MODE: u32 = 0o755;

/// Empty blocks at the end of a tar.
const END_BLOCKS: u64 = 2;

/// The kernel's bit for the capability without which the overlay's own attributes cannot be seen.
const CAP_SYS_ADMIN: u32 = 21;

/// Packs the overlay directory `upper` into `file`, with a zstd level and so many threads of zstd's. Gives up soon after `stop` was
/// set.
///
/// # Errors
/// [`PackError`].
pub fn pack(upper: &Path, file: &Path, level: i32, threads: usize, stop: &AtomicBool) -> Result<Packed, PackError> {
    pipe::packed(file, (level, threads), stop, |pipe| {
        Layer { pipe, names: HashMap::new(), late: Vec::new() }.write(upper)
    })
}

/// Whether this process sees such a directory as it is: it must be the host's root, or a file that hides another would look
/// like any other.
pub fn can_pack() -> bool {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let status = text("/proc/self/status");
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let ids: Vec<u64> = text("/proc/self/uid_map").split_whitespace().filter_map(|id| id.parse().ok()).collect();
    effective & (1 << CAP_SYS_ADMIN) != 0 && ids == [0, 0, u32::MAX.into()]
}

/// A layer that is being written.
struct Layer<'a, 'p> {
    pipe: &'a mut Pipe<'p>,
    /// The first name of each file that has several.
    names: HashMap<(u64, u64), Vec<u8>>,
    /// For each directory on the way down: its attributes, if it comes when it is left.
    late: Vec<Option<Attributes>>,
}

impl Layer<'_, '_> {
    fn write(mut self, upper: &Path) -> Result<(), PackError> {
        let (root, mut walk) = Walk::new(upper)?;
        self.root(&root)?;
        while let Some(step) = walk.next()? {
            match step {
                Step::At(found) => self.file(found)?,
                Step::Left(dir) => self.leave(&dir)?,
            }
        }
        self.pipe.zeros(END_BLOCKS * BLOCK_BYTES as u64)
    }

    /// The root is an entry only if it was changed: it would be another one in every layer, for its time.
    fn root(&mut self, root: &Found) -> Result<(), PackError> {
        let attributes = attributes(root)?;
        let metadata = &root.metadata;
        let plain = metadata.mode() & MODE_BITS == ROOT_MODE && metadata.uid() == 0 && metadata.gid() == 0;
        if plain && attributes.kept.is_empty() { Ok(()) } else { self.entry(root, b"./", Kind::Directory, &attributes) }
    }

    fn file(&mut self, found: Found) -> Result<(), PackError> {
        let metadata = &found.metadata;
        let (kind, name) = (metadata.file_type(), name_of(&found.path));
        if kind.is_char_device() && metadata.rdev() == 0 {
            return self.whiteout(&found);
        }
        if kind.is_socket() {
            tracing::debug!(path = %found.shown().display(), "left a socket out of a layer");
            return Ok(());
        }
        if name.starts_with(WHITEOUT) {
            let why = "in an image, a name that begins with `.wh.` says that a file was removed".to_owned();
            return Err(PackError::Unfit { path: found.shown(), why });
        }
        let attributes = attributes(&found)?;
        if kind.is_dir() {
            return self.enter(&found, attributes);
        }
        if metadata.nlink() > 1 {
            let known = self.names.get(&(metadata.dev(), metadata.ino())).cloned();
            if let Some(first) = known {
                return self.entry(&found, &found.path, Kind::Link(&first), &attributes);
            }
            self.names.insert((metadata.dev(), metadata.ino()), found.path.clone());
        }
        let device = (nix::sys::stat::major(metadata.rdev()), nix::sys::stat::minor(metadata.rdev()));
        match kind {
            kind if kind.is_symlink() => {
                let to = fs::read_link(&found.at).map_err(PackError::at("read", &found.shown()))?;
                self.entry(&found, &found.path, Kind::Symlink(to.as_os_str().as_bytes()), &attributes)
            }
            kind if kind.is_fifo() => self.entry(&found, &found.path, Kind::Fifo, &attributes),
            kind if kind.is_char_device() => {
                self.entry(&found, &found.path, Kind::Char(device.0, device.1), &attributes)
            }
            kind if kind.is_block_device() => {
                self.entry(&found, &found.path, Kind::Block(device.0, device.1), &attributes)
            }
            _ => {
                self.entry(&found, &found.path, Kind::File(metadata.len()), &attributes)?;
                content::write(&found, self.pipe)?;
                self.pipe.zeros(padding(metadata.len()) as u64)
            }
        }
    }

    /// What is made in a directory inherits its access list, if there is one for that. So such a directory comes after what is in
    /// it: until then whoever unpacks the layer has made a plain one. (Not before as well: engines take each name once.)
    fn enter(&mut self, dir: &Found, attributes: Attributes) -> Result<(), PackError> {
        if attributes.kept.iter().any(|(name, _)| name == INHERITED) {
            self.late.push(Some(attributes));
            return Ok(());
        }
        self.late.push(None);
        self.directory(dir, &attributes)
    }

    fn leave(&mut self, dir: &Found) -> Result<(), PackError> {
        match self.late.pop().flatten() {
            Some(attributes) => self.directory(dir, &attributes),
            None => Ok(()),
        }
    }

    fn directory(&mut self, dir: &Found, attributes: &Attributes) -> Result<(), PackError> {
        let path = [&dir.path, b"/".as_slice()].concat();
        self.entry(dir, &path, Kind::Directory, attributes)?;
        if attributes.opaque { self.mark(dir, &[&path, OPAQUE].concat()) } else { Ok(()) }
    }

    /// Something of that name is below, and is gone.
    fn whiteout(&mut self, found: &Found) -> Result<(), PackError> {
        let name = name_of(&found.path);
        let dir = &found.path[..found.path.len() - name.len()];
        self.mark(found, &[dir, WHITEOUT, name].concat())
    }

    /// An empty file that says something. Its own owner and time mean nothing.
    fn mark(&mut self, found: &Found, path: &[u8]) -> Result<(), PackError> {
        let header =
            Header { path, kind: Kind::File(0), mode: 0, uid: 0, gid: 0, mtime_secs: 0, mtime_nanos: 0, xattrs: &[] };
        self.header(found, &header)
    }

    fn entry(&mut self, found: &Found, path: &[u8], kind: Kind<'_>, attributes: &Attributes) -> Result<(), PackError> {
        let metadata = &found.metadata;
        let header = Header {
            path,
            kind,
            mode: metadata.mode() & MODE_BITS,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime_secs: metadata.mtime(),
            mtime_nanos: u32::try_from(metadata.mtime_nsec()).unwrap_or(0),
            xattrs: &attributes.kept,
        };
        self.header(found, &header)
    }

    fn header(&mut self, found: &Found, header: &Header<'_>) -> Result<(), PackError> {
        // Whoever reads a tar takes it for text that ends there.
        debug_assert!(!header.path.contains(&0), "{found:?}");
        let mut bytes = Vec::with_capacity(BLOCK_BYTES);
        header.write(&mut bytes);
        self.pipe.write(&bytes)
    }
}

/// The attributes of a file that a layer can have.
fn attributes(found: &Found) -> Result<Attributes, PackError> {
    let attributes = xattrs::read(&found.at).map_err(PackError::at("read", &found.shown()))?;
    if attributes.redirected {
        let what = "a mark by which the kernel finds it under another name".to_owned();
        return Err(PackError::Foreign { path: found.shown(), what });
    }
    if let Some(name) = &attributes.unfit {
        let why = format!("it has an extended attribute with a `=` in its name, {}", String::from_utf8_lossy(name));
        return Err(PackError::Unfit { path: found.shown(), why });
    }
    Ok(attributes)
}

fn name_of(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or(path)
}
