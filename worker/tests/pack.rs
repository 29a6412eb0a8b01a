//! The packer of layers against GNU tar: whatever tree there is, what tar makes of the layer is that tree.
//!
//! Needs root (owners, devices, attributes of every kind) and GNU tar.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[path = "pack/listing.rs"]
mod listing;
#[path = "pack/tree.rs"]
#[allow(dead_code, reason = "the farm's own tests need more of it")]
mod tree;

use listing::{Listing, list};
use proptest::prelude::*;
use railyard_worker::image_move::pack::{PackError, pack};
use railyard_worker::image_move::split::Packed;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{self as unix, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

fn packed(tree: &Path, into: &Path) -> Result<Packed, PackError> {
    pack(tree, &into.join("layer.zst"), 1, 2, &AtomicBool::new(false))
}

/// What GNU tar makes of the layer, with everything that a root can restore. Access lists travel as the attributes that they are;
/// what tar itself calls `--acls` is a form of its own, which no engine reads, and would take them away.
fn unpacked(packed: &Packed) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--preserve-permissions", "--same-owner", "--numeric-owner", "--no-acls", "--xattrs"]);
    tar.args(["--xattrs-include=*", "--warning=no-timestamp", "--directory"]).arg(dir.path());
    let mut tar = tar.stdin(Stdio::piped()).spawn().expect("these tests need GNU tar");
    let plain = zstd::Decoder::new(File::open(&packed.file).unwrap()).unwrap();
    let length = io::copy(&mut io::BufReader::new(plain), &mut tar.stdin.take().unwrap()).unwrap();
    assert!(tar.wait().unwrap().success());
    assert_eq!(length, packed.blob.size_bytes);
    dir
}

#[track_caller]
fn comes_back(tree: &Path) -> Listing {
    let scratch = tempfile::tempdir().unwrap();
    let want = list(tree);
    let packed = packed(tree, scratch.path()).unwrap();
    assert_eq!(fs::metadata(&packed.file).unwrap().len(), packed.blob.stored_bytes);
    let got = list(unpacked(&packed).path());
    assert_eq!(got.files, want.files);
    assert_eq!(got.links, want.links);
    want
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_tree_there_is_tar_makes_the_same_of_its_layer(tree in tree::any()) {
        let dir = tempfile::tempdir().unwrap();
        tree.make(dir.path());
        comes_back(dir.path());
    }
}

#[test]
fn the_same_tree_gives_the_same_bytes_whatever_its_names_came_in() {
    let (one, two, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (dir, order) in [(&one, [0, 1, 2]), (&two, [2, 0, 1])] {
        for n in order {
            let path = dir.path().join(format!("file-{n}"));
            fs::write(&path, format!("{n}")).unwrap();
            tree::set_time(&path, 1_000_000, 5);
        }
    }
    let first = packed(one.path(), out.path()).unwrap();
    let bytes = fs::read(&first.file).unwrap();
    // Who reads a file changes when it was read, and nothing else.
    fs::read(one.path().join("file-0")).unwrap();
    for dir in [&one, &two] {
        let again = packed(dir.path(), out.path()).unwrap();
        assert_eq!(again.blob, first.blob);
        assert!(fs::read(&again.file).unwrap() == bytes);
    }
}

#[test]
fn holes_come_back_as_zeros() {
    let dir = tempfile::tempdir().unwrap();
    tree::sparse(&dir.path().join("sparse"), &[(0, b"begin"), (700_000, b"middle"), (3_000_000, b"end")], 9_000_001);
    tree::sparse(&dir.path().join("hole"), &[], 5_000_000);
    tree::sparse(&dir.path().join("full"), &[(0, &[7; 2_000_000])], 2_000_000);
    comes_back(dir.path());
}

#[test]
fn a_tree_that_is_deeper_than_a_path_may_be_long() {
    let dir = tempfile::tempdir().unwrap();
    let name = "d".repeat(250);
    let script = format!("for n in $(seq 40); do mkdir {name} && cd -P {name} || exit 1; done; echo deep >file");
    assert!(Command::new("sh").current_dir(dir.path()).arg("-c").arg(script).status().unwrap().success());
    let scratch = tempfile::tempdir().unwrap();
    let packed = packed(dir.path(), scratch.path()).unwrap();
    let plain = zstd::decode_all(File::open(&packed.file).unwrap()).unwrap();
    let mut archive = tar::Archive::new(&plain[..]);
    let last = archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).last().unwrap();
    assert_eq!(last.len(), 40 * 251 + "file".len());
}

#[test]
fn whiteouts_and_opaque_directories_have_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("kept/opaque")).unwrap();
    tree::whiteout(&at("kept/gone"));
    xattr::set(at("kept/opaque"), "trusted.overlay.opaque", b"y").unwrap();
    xattr::set(at("kept"), "trusted.overlay.origin", b"whatever").unwrap();
    fs::write(at("kept/opaque/new"), "new").unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let packed = packed(dir.path(), scratch.path()).unwrap();
    let plain = zstd::decode_all(File::open(&packed.file).unwrap()).unwrap();
    let mut archive = tar::Archive::new(&plain[..]);
    let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
    let want = ["kept/", "kept/.wh.gone", "kept/opaque/", "kept/opaque/.wh..wh..opq", "kept/opaque/new"];
    assert_eq!(names.collect::<Vec<_>>(), want);
    comes_back(dir.path());
}

#[test]
fn signatures_come_along_and_labels_of_the_host_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("program");
    fs::write(&at, "content").unwrap();
    for name in ["security.ima", "security.apparmor", "user.note"] {
        xattr::set(&at, name, name.as_bytes()).unwrap();
    }
    let scratch = tempfile::tempdir().unwrap();
    let back = unpacked(&packed(dir.path(), scratch.path()).unwrap());
    let value = |name: &str| xattr::get(back.path().join("program"), name).unwrap();
    assert_eq!(value("security.ima").as_deref(), Some(b"security.ima".as_slice()));
    assert_eq!(value("user.note").as_deref(), Some(b"user.note".as_slice()));
    assert_eq!(value("security.apparmor"), None);
}

#[test]
fn a_link_to_a_name_of_another_layer_is_a_file_of_its_own() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(elsewhere.path().join("below"), "content").unwrap();
    fs::hard_link(elsewhere.path().join("below"), dir.path().join("here")).unwrap();
    let listed = comes_back(dir.path());
    assert!(listed.files[b"here".as_slice()].contains("content"), "{listed:?}");
}

#[test]
fn sockets_are_left_out_and_a_changed_root_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(packed(dir.path(), scratch.path()).unwrap().blob.size_bytes, 1024, "an empty tar");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1711)).unwrap();
    unix::chown(dir.path(), Some(7), Some(8)).unwrap();
    let back = unpacked(&packed(dir.path(), scratch.path()).unwrap());
    assert_eq!(listing::of_root(back.path()), listing::of_root(dir.path()));
}

#[test]
fn what_no_layer_can_have_is_refused_with_its_name() {
    let scratch = tempfile::tempdir().unwrap();
    let refused = |make: &dyn Fn(&Path)| {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        make(&dir.path().join("etc"));
        let error = packed(dir.path(), scratch.path()).unwrap_err();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0, "nothing half written is left");
        error
    };
    let reserved = refused(&|dir| fs::write(dir.join(".wh.name"), "").unwrap());
    assert!(
        matches!(reserved, PackError::Unfit { .. }) && reserved.to_string().contains("/etc/.wh.name"),
        "{reserved}"
    );
    let equals = refused(&|dir| xattr::set(dir, "user.a=b", b"").unwrap());
    assert!(matches!(equals, PackError::Unfit { .. }) && equals.to_string().contains("user.a=b"), "{equals}");
    for mark in ["trusted.overlay.redirect", "trusted.overlay.metacopy"] {
        let foreign = refused(&|dir| xattr::set(dir, mark, b"/x").unwrap());
        assert!(matches!(foreign, PackError::Foreign { .. }), "{foreign}");
    }
}

#[test]
fn a_pack_that_nobody_wants_ends_and_leaves_nothing() {
    let (dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("file"), "content").unwrap();
    let error = pack(dir.path(), &scratch.path().join("layer.zst"), 1, 2, &AtomicBool::new(true)).unwrap_err();
    assert!(matches!(error, PackError::Unwanted), "{error}");
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_told_as_one() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), vec![7; 3_000_000]).unwrap();
    let error = pack(dir.path(), Path::new("/dev/full"), 1, 2, &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(&error, PackError::Disk(error) if error.is_full()), "{error}");
}
