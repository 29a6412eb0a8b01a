//! Manifests and indexes: what an image is to a registry's client.

use super::stored::Stored;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use railyard_common::blob::{Encoding, Image};
use railyard_common::digest::Digest;
use railyard_common::id::Version;
use railyard_common::platform::Platform;
use serde::Serialize;
use std::collections::BTreeMap;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What a client gets that asks for no platform and understands no index: what other registries give.
const USUAL_PLATFORM: Platform = Platform::LinuxAmd64;

/// A manifest or an index.
#[derive(Clone, Debug)]
pub(super) struct Document {
    pub media_type: &'static str,
    pub bytes: Bytes,
    /// Of `bytes`.
    pub digest: Digest,
    /// Of a manifest, what it is for.
    platform: Option<Platform>,
    /// Of an index, its manifests.
    manifests: Vec<(Platform, Digest)>,
}

/// What a client gets that asked for a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    It,
    /// The manifest of one platform instead of the index.
    Platform(Digest),
    /// Nothing that it understands; what it should accept.
    Nothing(String),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: &'static str,
    digest: Digest,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<BTreeMap<&'static str, &'static str>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    schema_version: u32,
    media_type: &'static str,
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
    annotations: BTreeMap<&'static str, String>,
}

fn annotations(version: &Version) -> BTreeMap<&'static str, String> {
    [("org.opencontainers.image.version", version.to_string())].into()
}

fn document(media_type: &'static str, content: &impl Serialize) -> Document {
    let bytes = serde_json::to_vec(content).expect("strings and numbers make JSON");
    let digest = Digest::of(&bytes);
    Document { media_type, bytes: bytes.into(), digest, platform: None, manifests: Vec::new() }
}

/// The manifest of an image whose layers are stored like that.
pub(super) fn manifest(
    platform: Platform,
    image: &Image,
    layers: &[(Stored, Encoding)],
    version: &Version,
) -> Document {
    let layer = |(stored, encoding): &(Stored, Encoding)| {
        let media_type = match encoding {
            Encoding::Identity => LAYER,
            Encoding::Zstd => LAYER_ZSTD,
        };
        Descriptor { media_type, digest: stored.digest, size: stored.bytes, platform: None }
    };
    let config =
        Descriptor { media_type: CONFIG, digest: image.config.digest, size: image.config.size_bytes, platform: None };
    let content = Manifest {
        schema_version: 2,
        media_type: MANIFEST,
        config,
        layers: layers.iter().map(layer).collect(),
        annotations: annotations(version),
    };
    Document { platform: Some(platform), ..document(MANIFEST, &content) }
}

/// The index of a step's manifests.
pub(super) fn index(manifests: &[Document], version: &Version) -> Document {
    let known = || manifests.iter().filter_map(|one| Some((one.platform?, one)));
    let descriptor = |(platform, one): (Platform, &Document)| Descriptor {
        media_type: MANIFEST,
        digest: one.digest,
        size: one.bytes.len() as u64,
        platform: Some([("architecture", platform.arch()), ("os", "linux")].into()),
    };
    let content = Index {
        schema_version: 2,
        media_type: INDEX,
        manifests: known().map(descriptor).collect(),
        annotations: annotations(version),
    };
    Document { manifests: known().map(|(platform, one)| (platform, one.digest)).collect(), ..document(INDEX, &content) }
}

impl Document {
    /// What a client gets that accepts what `headers` say. Of an index that it has asked for by name it may get its own platform's
    /// manifest; by digest it gets that very document or none.
    pub(super) fn for_client(&self, headers: &HeaderMap, by_name: bool) -> Choice {
        if accepts(headers, self.media_type) {
            return Choice::It;
        }
        let usual = self.manifests.iter().find(|(platform, _)| *platform == USUAL_PLATFORM);
        match usual {
            Some((_, digest)) if by_name && accepts(headers, MANIFEST) => Choice::Platform(*digest),
            _ => Choice::Nothing(format!("this is an {}, which the client does not accept", self.media_type)),
        }
    }
}

/// Whether the client takes such a document. One that says nothing takes anything.
fn accepts(headers: &HeaderMap, media_type: &str) -> bool {
    let values: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let mut ranges = values.iter().flat_map(|value| value.split(','));
    let matches = |range: &str| {
        let mut parts = range.split(';').map(str::trim);
        let (name, refused) = (parts.next().unwrap_or_default(), parts.any(|part| part == "q=0"));
        !refused && (name.eq_ignore_ascii_case(media_type) || name == "*/*" || name == "application/*")
    };
    values.is_empty() || ranges.any(matches)
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::blob::Blob;

    fn image() -> Image {
        let packed = Blob { encoding: Encoding::Zstd, stored_bytes: 5, ..Blob::plain(Digest::of(b"two"), 9) };
        Image { config: Blob::plain(Digest::of(b"{}"), 2), layers: vec![Blob::plain(Digest::of(b"one"), 3), packed] }
    }

    fn stored() -> [(Stored, Encoding); 2] {
        let one = Stored { digest: Digest::of(b"one"), bytes: 3 };
        let two = Stored { digest: Digest::of(b"packed"), bytes: 5 };
        [(one, Encoding::Identity), (two, Encoding::Zstd)]
    }

    #[test]
    fn a_manifest_names_layers_by_their_stored_bytes() {
        let made = manifest(Platform::LinuxAmd64, &image(), &stored(), &"1.0+x".parse().unwrap());
        let json: serde_json::Value = serde_json::from_slice(&made.bytes).unwrap();
        assert_eq!(made.digest, Digest::of(&made.bytes));
        assert_eq!((&json["schemaVersion"], &json["mediaType"]), (&2.into(), &MANIFEST.into()));
        assert_eq!(json["config"]["digest"], Digest::of(b"{}").to_string());
        let layers = serde_json::json!([
            { "mediaType": LAYER, "digest": Digest::of(b"one"), "size": 3 },
            { "mediaType": LAYER_ZSTD, "digest": Digest::of(b"packed"), "size": 5 },
        ]);
        assert_eq!(json["layers"], layers);
        assert_eq!(json["annotations"]["org.opencontainers.image.version"], "1.0+x");
    }

    #[test]
    fn an_index_is_given_to_those_who_take_one() {
        let version = "1".parse().unwrap();
        let all = [Platform::LinuxAmd64, Platform::LinuxArm64].map(|p| manifest(p, &image(), &stored(), &version));
        let made = index(&all, &version);
        let json: serde_json::Value = serde_json::from_slice(&made.bytes).unwrap();
        assert_eq!(json["manifests"][1]["platform"], serde_json::json!({ "architecture": "arm64", "os": "linux" }));
        assert_eq!(json["manifests"][0]["size"], all[0].bytes.len());
        let chosen = |accept: &[&str], by_name: bool| {
            let mut headers = HeaderMap::new();
            for value in accept {
                headers.append(header::ACCEPT, value.parse().unwrap());
            }
            made.for_client(&headers, by_name)
        };
        let choice = |accept: &[&str]| chosen(accept, true);
        assert_eq!(choice(&[]), Choice::It);
        assert_eq!(choice(&["*/*"]), Choice::It);
        assert_eq!(choice(&["text/html, application/vnd.oci.image.index.v1+json;q=0.5"]), Choice::It);
        assert_eq!(choice(&[MANIFEST, INDEX]), Choice::It);
        assert_eq!(choice(&[MANIFEST]), Choice::Platform(all[0].digest));
        assert!(matches!(chosen(&[MANIFEST], false), Choice::Nothing(_)), "it would not have the digest");
        assert_eq!(chosen(&[INDEX], false), Choice::It);
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        assert!(matches!(choice(&[docker]), Choice::Nothing(_)));
        assert!(matches!(choice(&["*/*;q=0"]), Choice::Nothing(_)));
    }
}
