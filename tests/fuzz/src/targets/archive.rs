//! Archives: what `docker save` gives, and tarballs that steps leave.

use super::Target;
use railyard_worker::fuzz;
use std::io::Write as _;

pub const ARCHIVE: Target = Target {
    name: "archive",
    parse: fuzz::archive,
    examples: archives,
    words: &[
        "layer.tar",
        "blobs/sha256/",
        "manifest.json",
        "ustar\u{0}00",
        "ustar  \u{0}",
        "././@LongLink",
        "27 path=",
        "size=",
        "GNU.sparse.",
        "../",
    ],
    max_len: 32 * 1024,
    // zstd packs at most some thousand times, and what is unpacked lies on the disk.
    memory_factor: 64,
    memory_base: 0,
};

pub const TARBALL: Target = Target { name: "tarball", parse: fuzz::tarball, examples: tarballs, ..ARCHIVE };

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, *content).expect("memory takes every write");
    }
    tar.into_inner().expect("memory takes every write")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("memory takes every write")
}

fn archives() -> Vec<Vec<u8>> {
    let digest = railyard_common::digest::Digest::of(b"layer").hex();
    let packed = zstd(b"layer");
    let long = "a/".repeat(80) + "layer.tar";
    vec![
        tar(&[("a/layer.tar", b"layer"), ("b/layer.tar", b""), ("manifest.json", b"[]")]),
        tar(&[(&format!("blobs/sha256/{digest}"), b"layer"), ("index.json", b"{}")]),
        tar(&[(&format!("blobs/sha256/{digest}"), &packed)]),
        tar(&[(&long, b"one")]),
    ]
}

fn tarballs() -> Vec<Vec<u8>> {
    let plain = tar(&[("etc/os-release", b"ID=x"), ("usr/bin/x", &[7; 600])]);
    let mut gzip = Vec::new();
    // The format by hand: a stored block, so that its bytes can be changed.
    let length = u16::try_from(plain.len()).expect("a short archive");
    let parts: [&[u8]; 4] =
        [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1], &length.to_le_bytes(), &(!length).to_le_bytes(), &plain];
    parts.iter().for_each(|part| gzip.write_all(part).expect("memory takes every write"));
    vec![zstd(&plain), gzip, plain]
}
