//! Extended attributes: which of them belong to the file, and which the kernel's overlay has left there for itself.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// What the overlay's own attributes begin with.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// What a name goes on with that the overlay keeps for an overlay on top of it.
const INNER: &[u8] = b"overlay.";

/// What stands for names that a tar's record cannot have.
const NOT_IN_A_NAME: u8 = b'=';

/// What the attributes of a file say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// The file's own, by name.
    pub kept: Vec<(Vec<u8>, Vec<u8>)>,
    /// Nothing of the directory below shows through.
    pub opaque: bool,
    /// The overlay looks for this file, or for its content, under another name below.
    pub redirected: bool,
    /// A name that no layer can have.
    pub unfit: Option<Vec<u8>>,
}

/// Reads those of `at` itself, not of what it may link to.
///
/// # Errors
/// If they cannot be read.
pub fn read(at: &Path) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    let names = match xattr::list(at) {
        // A file system without any.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EOPNOTSUPP as i32) => return Ok(found),
        names => names?,
    };
    for name in names {
        let raw = name.as_bytes();
        match raw.strip_prefix(OVERLAY) {
            Some(b"opaque") => found.opaque = value(at, &name)? == b"y",
            Some(b"redirect" | b"metacopy") => found.redirected = true,
            // One that an overlay within the container has set: kernels keep it under a longer name, and give it back from there.
            Some(inner) if inner.starts_with(INNER) && inner.contains(&NOT_IN_A_NAME) => {
                found.unfit = Some(raw.to_owned())
            }
            Some(inner) if inner.starts_with(INNER) => found.kept.push((raw.to_owned(), value(at, &name)?)),
            Some(_) => {}
            None if raw.contains(&NOT_IN_A_NAME) && is_kept(raw) => found.unfit = Some(raw.to_owned()),
            None if is_kept(raw) => found.kept.push((raw.to_owned(), value(at, &name)?)),
            None => {}
        }
    }
    found.kept.sort();
    Ok(found)
}

fn value(at: &Path, name: &OsStr) -> io::Result<Vec<u8>> {
    Ok(xattr::get(at, name)?.unwrap_or_default())
}

/// Whether it means the same on another host. The labels of security modules do not; a signature does.
fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || name.starts_with(b"trusted.")
        || name.starts_with(b"system.posix_acl_")
        || name == b"security.capability"
        || name == b"security.ima"
}
