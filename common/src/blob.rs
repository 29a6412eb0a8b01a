//! What travels through the cache: blobs, artifacts, images.

use crate::digest::Digest;
use crate::path::RelPath;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// How the cache holds a blob's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encoding {
    /// As they are.
    #[default]
    Identity,
    /// As one or more zstd frames.
    Zstd,
}

/// Bytes named by the SHA-256 of their plain content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Blob {
    /// Of the plain bytes.
    pub digest: Digest,
    /// Length of the plain bytes.
    pub size_bytes: u64,
    /// How they are stored.
    #[serde(default)]
    pub encoding: Encoding,
    /// Length as stored; equals `size_bytes` without an encoding.
    pub stored_bytes: u64,
}

impl Blob {
    /// A blob that is stored as it is.
    pub fn plain(digest: Digest, size_bytes: u64) -> Self {
        Self { digest, size_bytes, encoding: Encoding::Identity, stored_bytes: size_bytes }
    }
}

/// What tells the cache whether a part of an upload arrived as it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartChecksum {
    /// `Content-MD5`, which every S3 service verifies or at least gives back as the part's ETag.
    ContentMd5,
    /// `x-amz-checksum-crc32`, fifteen times as fast.
    Crc32,
}

/// The checksum of the bytes of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PartSum {
    /// [`PartChecksum::ContentMd5`].
    ContentMd5([u8; 16]),
    /// [`PartChecksum::Crc32`].
    Crc32(u32),
}

impl PartSum {
    /// Of which kind it is.
    pub fn kind(&self) -> PartChecksum {
        match self {
            Self::ContentMd5(_) => PartChecksum::ContentMd5,
            Self::Crc32(_) => PartChecksum::Crc32,
        }
    }

    /// The header that announces it, in lower case, and its value.
    pub fn header(&self) -> (&'static str, String) {
        match self {
            Self::ContentMd5(md5) => ("content-md5", STANDARD.encode(md5)),
            Self::Crc32(crc32) => ("x-amz-checksum-crc32", STANDARD.encode(crc32.to_be_bytes())),
        }
    }
}

/// A part of an upload, as it will be sent: what a signed URL is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartToSign {
    /// From 1.
    pub number: u32,
    /// Of its bytes.
    pub sum: PartSum,
}

/// A named output file of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Relative to the work directory.
    pub path: RelPath,
    /// Its bytes.
    pub blob: Blob,
    /// For instance `application/zstd`.
    pub media_type: String,
    /// The published path below the cache root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub published: Option<RelPath>,
}

/// The container image that a step leaves behind: an OCI image whose layers are blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The image configuration (JSON). Its digest is the engine's image id.
    pub config: Blob,
    /// Layer tars, base first. A layer's digest is its diff id.
    pub layers: Vec<Blob>,
}

/// A media type by a file's name; `application/octet-stream` where the name tells nothing.
pub fn media_type_of(file_name: &str) -> &'static str {
    let extension = file_name.rsplit_once('.').map_or("", |(_, extension)| extension);
    match extension {
        "zst" => "application/zstd",
        "gz" | "tgz" => "application/gzip",
        "bz2" => "application/x-bzip2",
        "xz" => "application/x-xz",
        "tar" => "application/x-tar",
        "json" => "application/json",
        "txt" | "log" | "tap" => "text/plain; charset=utf-8",
        "deb" => "application/vnd.debian.binary-package",
        "qcow2" => "application/x-qemu-disk",
        _ => "application/octet-stream",
    }
}
