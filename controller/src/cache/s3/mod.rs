//! The cache in a bucket of an S3 service.
//!
//! Bytes go from the worker to the service by presigned URLs, one per part. What the service can check it checks: each
//! part against its `Content-MD5`, the list of parts at the end. This process checks the length, and the digest of
//! blobs up to a limit by reading them back.
//!
//! **Invariant:** the store's keys are used here and nowhere else; what leaves are URLs for one key, one method and, of parts, one
//! length.

mod begun;
mod copy;
mod credentials;
mod doubt;
mod objects;
mod presign;
mod publish;
mod readback;
mod store;
mod untrusted;

use crate::cache::locks::Locks;
use crate::cache::{CacheError, S3Config};
use credentials::Keys;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::{Attribute, AttributeValue, Attributes, ClientOptions};
use railyard_common::blob::media_type_of;
use railyard_common::digest::Digest;
use railyard_common::path::RelPath;
use std::time::Duration;

/// The object's metadata that tells the digest of its plain bytes.
const DIGEST: &str = "railyard-digest";

/// How long a request to the service may take: a part of a server-side copy is the longest.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The cache in S3.
pub struct S3 {
    store: AmazonS3,
    /// For the requests that the store's client has no call for; they are presigned as the workers' are.
    http: reqwest::Client,
    bucket: String,
    /// Where people read; without a slash at the end.
    public_url: String,
    read_back_bytes: u64,
    /// What the service copies in one request.
    copy_part_bytes: u64,
    /// Orders the writers of a path for services that do not know conditional writes. This process is the only writer.
    locks: Locks,
    doubts: doubt::Doubts,
    uploads: begun::Uploads,
}

impl S3 {
    /// Connects to the bucket. The service is not asked anything yet.
    ///
    /// # Errors
    /// [`CacheError::Config`] or [`CacheError::Io`].
    pub async fn open(config: &S3Config) -> Result<Self, CacheError> {
        let unusable = |error: &dyn std::error::Error| CacheError::Config { why: error.to_string() };
        let copy_part_bytes = config.copy_part.as_u64();
        if !copy::COPY_PART_BYTES.contains(&copy_part_bytes) {
            let why = format!("copy_part is {}; S3 copies from 5 MiB to 5 GiB in one request", config.copy_part);
            return Err(CacheError::Config { why });
        }
        // with_client_options replaces what with_allow_http set: it is set on the options.
        let options = ClientOptions::new().with_allow_http(config.allow_http).with_timeout(REQUEST_TIMEOUT);
        // Keys from a file are never mixed with those of the environment.
        let builder = match config.credentials_file {
            Some(_) => AmazonS3Builder::new(),
            None => AmazonS3Builder::from_env(),
        };
        let mut builder = builder
            .with_client_options(options.with_connect_timeout(CONNECT_TIMEOUT))
            .with_bucket_name(&config.bucket)
            .with_region(&config.region)
            .with_virtual_hosted_style_request(!config.path_style)
            .with_conditional_put(S3ConditionalPut::ETagMatch);
        if let Some(endpoint) = &config.endpoint {
            builder = builder.with_endpoint(endpoint_of(endpoint, config));
        }
        if let Some(file) = &config.credentials_file {
            let keys = Keys::read(file)?;
            builder = builder.with_access_key_id(keys.access_key_id).with_secret_access_key(keys.secret_access_key);
            if let Some(token) = keys.session_token {
                builder = builder.with_token(token);
            }
        }
        let store = builder.build().map_err(|error| unusable(&error))?;
        let http = reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT).build();
        Ok(Self {
            store,
            http: http.map_err(|error| unusable(&error))?,
            bucket: config.bucket.clone(),
            public_url: public_url(config),
            read_back_bytes: config.read_back.as_u64(),
            copy_part_bytes,
            locks: Locks::default(),
            doubts: doubt::Doubts::default(),
            uploads: begun::Uploads::default(),
        })
    }
}

/// With the bucket in the host's name the endpoint is the bucket's own.
fn endpoint_of(endpoint: &str, config: &S3Config) -> String {
    let endpoint = endpoint.trim_end_matches('/');
    match endpoint.split_once("://") {
        Some((scheme, host)) if !config.path_style => format!("{scheme}://{}.{host}", config.bucket),
        _ => endpoint.to_owned(),
    }
}

fn public_url(config: &S3Config) -> String {
    let url = match (&config.public_url, &config.endpoint) {
        (Some(url), _) => url.clone(),
        (None, Some(endpoint)) if config.path_style => format!("{}/{}", endpoint.trim_end_matches('/'), config.bucket),
        (None, Some(endpoint)) => endpoint_of(endpoint, config),
        (None, None) => format!("https://{}.s3.{}.amazonaws.com", config.bucket, config.region),
    };
    url.trim_end_matches('/').to_owned()
}

/// A path as the store's client wants it.
fn key(path: &RelPath) -> Result<object_store::path::Path, CacheError> {
    let parsed = object_store::path::Path::parse(path.as_str());
    parsed.map_err(|error| CacheError::BadPath { path: path.to_string(), why: error.to_string() })
}

/// What is told with an object: its type by its name, and the digest of its plain bytes where one is known.
fn attributes(path: &RelPath, digest: Option<&Digest>) -> Attributes {
    let mut attributes = Attributes::new();
    attributes.insert(Attribute::ContentType, AttributeValue::from(media_type_of(path.file_name())));
    if let Some(digest) = digest {
        attributes.insert(Attribute::Metadata(DIGEST.into()), AttributeValue::from(digest.to_string()));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: Option<&str>, path_style: bool) -> S3Config {
        let endpoint = endpoint.map(str::to_owned);
        S3Config { region: "eu-1".to_owned(), endpoint, path_style, ..S3Config::new("farm") }
    }

    #[test]
    fn urls_of_the_bucket() {
        assert_eq!(public_url(&config(None, false)), "https://farm.s3.eu-1.amazonaws.com");
        assert_eq!(public_url(&config(Some("https://s3.example.org/"), true)), "https://s3.example.org/farm");
        assert_eq!(public_url(&config(Some("https://s3.example.org"), false)), "https://farm.s3.example.org");
    }
}
