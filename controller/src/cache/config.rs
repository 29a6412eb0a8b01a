//! The settings of the cache.

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the cache keeps its objects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum CacheConfig {
    /// In a directory of the controller, served by itself.
    Embedded(EmbeddedConfig),
    /// In a bucket of an S3 service.
    S3(S3Config),
}

impl CacheConfig {
    /// Whether anybody may read. Who may read a bucket is the store's business; the farm does not make more of it public.
    pub fn is_public(&self) -> bool {
        matches!(self, Self::Embedded(config) if config.public_read)
    }
}

/// Settings of the embedded cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EmbeddedConfig {
    /// The directory. It is made if it does not exist.
    pub dir: PathBuf,
    /// Whether anybody may read without a signed URL or a client certificate.
    #[serde(default)]
    pub public_read: bool,
    /// The key that signs URLs; made at first start. Default: `cache.key` beside `dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// Settings of a cache in S3.
///
/// The controller ends the uploads of leases that are over. One that it began and died over before it noted that, or a copy to
/// a published path that it died over, leaves parts which no listing shows: give the bucket a lifecycle rule (`AbortIncompleteMultipartUpload`, a few days: longer than the
/// longest upload).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket. It must exist, and belongs to the farm alone.
    pub bucket: String,
    /// Its region.
    #[serde(default = "default_region")]
    pub region: String,
    /// The service, for instance `https://minio.example.org:9000`. Default: Amazon's of the region.
    /// Workers must reach it under the same name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// A file with `aws_access_key_id = …` and `aws_secret_access_key = …` lines (`aws_session_token` too),
    /// as the AWS tools write it; the section `[default]` counts. Default: the standard `AWS_*` variables, then the
    /// identity of the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<PathBuf>,
    /// Whether the endpoint may be plain HTTP.
    #[serde(default)]
    pub allow_http: bool,
    /// Whether the bucket stands in the path of URLs (`https://host/bucket/key`), as most services but Amazon's want it.
    #[serde(default)]
    pub path_style: bool,
    /// Where people read the bucket, if it is served elsewhere. Default: the bucket's own URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// Blobs up to this stored length are read back and hashed before they count as uploaded. Longer ones are checked
    /// by length and by the service's own part checksums, and by everyone who pulls them.
    #[serde(default = "default_read_back")]
    pub read_back: ByteSize,
    /// What the service copies in one request when a path is published; a longer file is copied in parts of this length. From
    /// 5 MiB to 5 GiB, as S3 allows; less for a service that takes long.
    #[serde(default = "default_copy_part")]
    pub copy_part: ByteSize,
}

impl S3Config {
    /// Amazon's service, with every setting at its default.
    pub fn new(bucket: &str) -> Self {
        Self {
            bucket: bucket.to_owned(),
            region: default_region(),
            endpoint: None,
            credentials_file: None,
            allow_http: false,
            path_style: false,
            public_url: None,
            read_back: default_read_back(),
            copy_part: default_copy_part(),
        }
    }
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

fn default_read_back() -> ByteSize {
    ByteSize::mib(64)
}

fn default_copy_part() -> ByteSize {
    ByteSize::gib(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CacheConfig, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn the_kind_chooses_the_settings() {
        let embedded = parse(r#"{"kind": "embedded", "dir": "/srv/cache"}"#).unwrap();
        assert!(matches!(embedded, CacheConfig::Embedded(EmbeddedConfig { public_read: false, .. })));
        let s3 = parse(r#"{"kind": "s3", "bucket": "builds", "read_back": "1 MiB"}"#).unwrap();
        assert!(matches!(s3, CacheConfig::S3(S3Config { read_back, .. }) if read_back == ByteSize::mib(1)));
    }

    #[test]
    fn an_unknown_setting_is_named() {
        for (text, name) in [
            (r#"{"kind": "embedded", "dir": "/c", "pubic_read": true}"#, "pubic_read"),
            (r#"{"kind": "s3", "bucket": "b", "secret": "x"}"#, "secret"),
            (r#"{"kind": "tape"}"#, "tape"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
