//! What travels through the cache: blobs, artifacts, images.

use super::{BadMessage, FromProto, TEXT_MAX_BYTES, ToProto, all, at_most, list, parsed, parsed_if_given, required};
use railyard_common::blob::{Artifact, Blob, Encoding, Image, PartChecksum, PartSum, PartToSign};
use railyard_proto::v1;

impl ToProto for Encoding {
    type Proto = v1::Encoding;

    fn to_proto(&self) -> v1::Encoding {
        match self {
            Self::Identity => v1::Encoding::Identity,
            Self::Zstd => v1::Encoding::Zstd,
        }
    }
}

impl FromProto<i32> for Encoding {
    fn from_proto(proto: i32) -> Result<Self, BadMessage> {
        match v1::Encoding::try_from(proto) {
            Ok(v1::Encoding::Identity) => Ok(Self::Identity),
            Ok(v1::Encoding::Zstd) => Ok(Self::Zstd),
            Err(_) => Err(BadMessage::new("", format!("{proto} is not an encoding that this side knows"))),
        }
    }
}

impl ToProto for PartChecksum {
    type Proto = v1::PartChecksum;

    fn to_proto(&self) -> v1::PartChecksum {
        match self {
            Self::ContentMd5 => v1::PartChecksum::ContentMd5,
            Self::Crc32 => v1::PartChecksum::Crc32,
        }
    }
}

impl FromProto<i32> for PartChecksum {
    fn from_proto(proto: i32) -> Result<Self, BadMessage> {
        match v1::PartChecksum::try_from(proto) {
            Ok(v1::PartChecksum::ContentMd5) => Ok(Self::ContentMd5),
            Ok(v1::PartChecksum::Crc32) => Ok(Self::Crc32),
            Err(_) => Err(BadMessage::new("", format!("{proto} is not a checksum that this side knows"))),
        }
    }
}

impl ToProto for PartToSign {
    type Proto = v1::PartToSign;

    fn to_proto(&self) -> v1::PartToSign {
        let checksum = match self.sum {
            PartSum::ContentMd5(md5) => v1::part_to_sign::Checksum::ContentMd5(md5.to_vec()),
            PartSum::Crc32(crc32) => v1::part_to_sign::Checksum::Crc32(crc32),
        };
        v1::PartToSign { number: self.number, checksum: Some(checksum) }
    }
}

impl FromProto<v1::PartToSign> for PartToSign {
    fn from_proto(proto: v1::PartToSign) -> Result<Self, BadMessage> {
        let sum = match proto.checksum {
            Some(v1::part_to_sign::Checksum::Crc32(crc32)) => PartSum::Crc32(crc32),
            Some(v1::part_to_sign::Checksum::ContentMd5(md5)) => {
                let is_wrong =
                    |md5: Vec<u8>| BadMessage::new("content_md5", format!("it has {} bytes, not 16", md5.len()));
                PartSum::ContentMd5(md5.try_into().map_err(is_wrong)?)
            }
            None => return Err(BadMessage::new("checksum", "it is missing")),
        };
        Ok(Self { number: proto.number, sum })
    }
}

impl ToProto for Blob {
    type Proto = v1::Blob;

    fn to_proto(&self) -> v1::Blob {
        v1::Blob {
            digest: self.digest.to_string(),
            size_bytes: self.size_bytes,
            encoding: self.encoding.to_proto().into(),
            stored_bytes: self.stored_bytes,
        }
    }
}

impl FromProto<v1::Blob> for Blob {
    fn from_proto(proto: v1::Blob) -> Result<Self, BadMessage> {
        let encoding = Encoding::from_proto(proto.encoding).map_err(|bad| bad.within("encoding"))?;
        if encoding == Encoding::Identity && proto.stored_bytes != proto.size_bytes {
            let why = format!(
                "it is {}, but without an encoding it must be size_bytes, {}",
                proto.stored_bytes, proto.size_bytes
            );
            return Err(BadMessage::new("stored_bytes", why));
        }
        Ok(Self {
            digest: parsed("digest", &proto.digest)?,
            size_bytes: proto.size_bytes,
            encoding,
            stored_bytes: proto.stored_bytes,
        })
    }
}

impl ToProto for Artifact {
    type Proto = v1::Artifact;

    fn to_proto(&self) -> v1::Artifact {
        v1::Artifact {
            path: self.path.to_string(),
            blob: Some(self.blob.to_proto()),
            media_type: self.media_type.clone(),
            published: self.published.as_ref().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

impl FromProto<v1::Artifact> for Artifact {
    fn from_proto(proto: v1::Artifact) -> Result<Self, BadMessage> {
        at_most("media_type", proto.media_type.len(), TEXT_MAX_BYTES, "bytes")?;
        if proto.media_type.chars().any(char::is_control) {
            return Err(BadMessage::new("media_type", "it has a control character"));
        }
        Ok(Self {
            path: parsed("path", &proto.path)?,
            blob: required("blob", proto.blob)?,
            media_type: proto.media_type,
            published: parsed_if_given("published", &proto.published)?,
        })
    }
}

impl ToProto for Image {
    type Proto = v1::Image;

    fn to_proto(&self) -> v1::Image {
        v1::Image { config: Some(self.config.to_proto()), layers: all(&self.layers) }
    }
}

impl FromProto<v1::Image> for Image {
    fn from_proto(proto: v1::Image) -> Result<Self, BadMessage> {
        Ok(Self { config: required("config", proto.config)?, layers: list("layers", proto.layers)? })
    }
}
