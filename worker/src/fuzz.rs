//! Ways into the parsers of outside bytes that nothing outside of this crate needs, for the fuzz targets of `tests/fuzz`.
//!
//! Each takes any bytes, panics if what it finds is wrong, and says in a word or two how far it came: what says something new is
//! worth to be changed further.

pub use crate::attempt::record::fuzz as state;
pub use crate::log::fuzz as place;
pub use crate::runtime::fuzz as output;

use crate::image_move::root;
use crate::image_move::split::{Wanted, split};
use railyard_common::digest::Digest;
use std::collections::BTreeMap;
use std::fs;

/// An archive of `docker save`: its layers are taken apart, and what is left on the disk is what was found.
pub fn archive(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().expect("a test has a directory");
    // Whatever hashes to a digest that ends like this is wanted: an archive cannot know which.
    let layers = [b"layer".as_slice(), b"", b"one", &[0; 512]].map(Digest::of);
    let wanted = Wanted { layers: layers.into(), skip: BTreeMap::new(), level: 1, threads: 2 };
    match split(bytes, &wanted, dir.path()) {
        Err(error) => format!("{:?} {error}", error.kind()),
        Ok(packed) => {
            for (digest, layer) in &packed {
                let plain = zstd::decode_all(&*fs::read(&layer.file).expect("a layer is there")).expect("it is packed");
                assert_eq!((Digest::of(&plain), plain.len() as u64), (*digest, layer.blob.size_bytes));
            }
            let left = fs::read_dir(dir.path()).map(Iterator::count).unwrap_or_default();
            assert_eq!(left, packed.len(), "files are left on the disk");
            format!("{left} layers")
        }
    }
}

/// A root tarball.
pub fn tarball(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().expect("a test has a directory");
    fs::write(file.path(), bytes).expect("a test has a disk");
    match root::measure(file.path()) {
        Ok(measured) => {
            assert!(measured.size_bytes >= 512, "a tar has a header");
            format!("{:?}", measured.packing)
        }
        Err(error) => format!("{:?} {error}", error.kind()),
    }
}
