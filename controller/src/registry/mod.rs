//! `/v2/`: the images of builds as a registry, to read only, with the semantics of the OCI distribution specification.
//!
//! ```text
//! PIPELINE/STEP[.VARIANT]:TAG ─► a build's job ─► its image: configuration and layers, blobs of the cache
//! manifest: made on demand; layers are named by the digest of their *stored* bytes, mostly zstd
//! blob:     307 to a signed URL of the cache; the bytes come straight from the store, with ranges
//! ```
//!
//! **Invariant:** nothing is served that is not part of an image of the repository that was asked for.

mod answer;
mod asked;
mod document;
mod fault;
pub mod fuzz;
mod images;
mod stored;

use crate::access::table;
use crate::cache::Cache;
use crate::driver::Handle;
use asked::{Asked, Reference};
use axum::Router;
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::response::Response;
use axum::routing::any;
use fault::{Code, Fault};
use railyard_common::blob::{Blob, Encoding, Image};
use railyard_common::digest::Digest;
use railyard_common::id::Version;
use railyard_common::identity::Limits;
use railyard_common::layout;
use railyard_service::listener::Peer;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use stored::StoredDigests;

/// How long a blob's URL is good: a client follows it at once, but may come back to it for another range.
const BLOB_URL_TTL: Duration = Duration::from_secs(900);

/// Documents that are remembered, to find them by their digest: a hundred bytes each.
const VERSIONS_MAX: usize = 16_384;

/// Documents of a step that are made anew in search of one that this process has not made yet.
const SEARCHED_MAX: usize = 200;

/// Largest image configuration: real ones have a few KiB.
const CONFIG_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The registry.
pub struct Registry {
    farm: Handle,
    cache: Arc<dyn Cache>,
    stored: Arc<StoredDigests>,
    /// The build that a document of a repository is of. What is not in it is searched for.
    versions: Mutex<BTreeMap<(String, Digest), Version>>,
    public_read: bool,
}

/// The routes. With `public_read`, anybody may pull.
pub fn router(farm: Handle, cache: Arc<dyn Cache>, public_read: bool) -> Router {
    let stored = Arc::new(StoredDigests::new(cache.clone()));
    let registry = Arc::new(Registry { farm, cache, stored, versions: Mutex::default(), public_read });
    Router::new()
        .route("/v2", any(handle))
        .route("/v2/", any(handle))
        .route("/v2/{*rest}", any(handle))
        .with_state(registry)
}

/// Whether a repository, `PIPELINE/STEP`, is within the limits.
fn is_within(limits: &Limits, repository: &str) -> bool {
    let pipeline = repository.split('/').next().and_then(|name| name.parse().ok());
    limits.pipelines.is_empty() || pipeline.is_some_and(|pipeline| limits.allow_pipeline(&pipeline))
}

async fn handle(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    // What a client sends along is of no interest here.
    let (head, _) = request.into_parts();
    let mut response = match registry.answer(&head).await {
        Ok(response) => response,
        Err(fault) => fault.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

impl Registry {
    async fn answer(&self, request: &Parts) -> Result<Response, Fault> {
        let limits = self.allow(request.extensions.get::<Peer>())?;
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Err(Fault::new(Code::Unsupported, "this registry is read-only; builds put their images into it"));
        }
        let headers = &request.headers;
        let asked = Asked::parse(&request.uri)?;
        if let Some(name) = asked.name().filter(|name| !is_within(&limits, name)) {
            return Err(Fault::new(Code::Denied, format!("you are limited to other pipelines than that of {name}")));
        }
        match asked {
            Asked::Base => Ok(answer::json(b"{}\n".to_vec())),
            Asked::Catalog(page) => {
                let mut names = self.farm.look(|farm, _| images::repositories(farm)).await?;
                names.retain(|name| is_within(&limits, name));
                Ok(answer::list("/v2/_catalog", None, "repositories", names, &page))
            }
            Asked::Tags(name, page) => {
                let wanted = name.clone();
                let tags = self.farm.look(move |farm, _| images::tags(farm, &wanted)).await?;
                let tags = tags.ok_or_else(|| Fault::unknown_name(&name))?;
                Ok(answer::list(&format!("/v2/{name}/tags/list"), Some(&name), "tags", tags, &page))
            }
            Asked::Manifest(name, reference) => {
                let document = self.document(&name, &reference, headers).await?;
                Ok(answer::document(document, headers))
            }
            Asked::Blob(name, digest) => self.blob(&name, digest, &request.method).await,
        }
    }

    /// As the cache's reading rules: a person's certificate or token, unless anybody may read. Gives the limits that hold.
    fn allow(&self, peer: Option<&Peer>) -> Result<Limits, Fault> {
        if self.public_read {
            return Ok(Limits::default());
        }
        match peer.and_then(|peer| peer.identity.as_ref()) {
            Some(identity) if table::may_read(table::READ_REGISTRY, identity) => Ok(identity.limits.clone()),
            Some(_) => Err(Fault::new(Code::Denied, "workers get images through their leases only")),
            None => {
                let message = "this registry wants a client certificate of the farm, or a bearer token as the password; docs/images.md tells how";
                Err(Fault::new(Code::Unauthorized, message))
            }
        }
    }

    async fn document(
        &self,
        name: &str,
        reference: &Reference,
        headers: &HeaderMap,
    ) -> Result<document::Document, Fault> {
        let found = match reference {
            Reference::Tag(tag) => {
                let (wanted, asked) = (name.to_owned(), tag.clone());
                let found = self.farm.look(move |farm, _| images::tagged(farm, &wanted, &asked)).await?;
                let shown = found.ok_or_else(|| Fault::unknown_manifest(name, tag))?;
                self.make(name, &shown).await?.into_iter().next()
            }
            Reference::Digest(digest) => self.by_digest(name, *digest).await?,
        };
        let found = found.ok_or_else(|| Fault::unknown_manifest(name, &reference.to_string()))?;
        match found.for_client(headers, matches!(reference, Reference::Tag(_))) {
            document::Choice::It => Ok(found),
            document::Choice::Platform(digest) => {
                let platform = self.by_digest(name, digest).await?;
                platform.ok_or_else(|| Fault::unknown_manifest(name, &digest.to_string()))
            }
            document::Choice::Nothing(message) => Err(Fault::new(Code::ManifestUnknown, message)),
        }
    }

    /// The documents of a step's images: its one manifest, or its index and the manifests.
    async fn make(&self, name: &str, shown: &images::Shown) -> Result<Vec<document::Document>, Fault> {
        let mut made = Vec::new();
        for (platform, image) in &shown.images {
            let mut layers = Vec::new();
            for layer in &image.layers {
                layers.push((self.stored.of(*layer).await?, layer.encoding));
            }
            made.push(document::manifest(*platform, image, &layers, &shown.version));
        }
        if shown.several {
            made.insert(0, document::index(&made, &shown.version));
        }
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        if versions.len() >= VERSIONS_MAX {
            versions.clear();
        }
        for document in &made {
            versions.insert((name.to_owned(), document.digest), shown.version.clone());
        }
        drop(versions);
        Ok(made)
    }

    fn version_of(&self, name: &str, digest: Digest) -> Option<Version> {
        let versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        versions.get(&(name.to_owned(), digest)).cloned()
    }

    /// A document that a client saw before: perhaps before this process started.
    async fn by_digest(&self, name: &str, digest: Digest) -> Result<Option<document::Document>, Fault> {
        let shown = self.shown(name).await?;
        let version = self.version_of(name, digest);
        let (likely, others): (Vec<_>, Vec<_>) = shown.iter().partition(|one| Some(&one.version) == version.as_ref());
        let mut searched = 0;
        for one in likely.into_iter().chain(others) {
            // Nobody can know the digest of a document that was never made; and for those that were, all of this is known.
            let layers: Vec<Blob> = one.images.iter().flat_map(|(_, image)| image.layers.clone()).collect();
            if !self.stored.know(&layers).await? {
                continue;
            }
            searched += 1;
            if searched > SEARCHED_MAX {
                break;
            }
            let found = self.make(name, one).await?.into_iter().find(|made| made.digest == digest);
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn shown(&self, name: &str) -> Result<Vec<images::Shown>, Fault> {
        let wanted = name.to_owned();
        let found = self.farm.look(move |farm, _| images::all(farm, &wanted)).await?;
        found.ok_or_else(|| Fault::unknown_name(name))
    }

    async fn blob(&self, name: &str, digest: Digest, method: &Method) -> Result<Response, Fault> {
        let shown = self.shown(name).await?;
        let images: Vec<&Image> = shown.iter().flat_map(|one| one.images.iter().map(|(_, image)| image)).collect();
        let config = images.iter().map(|image| image.config).find(|config| config.digest == digest);
        if let Some(config) = config {
            return Ok(answer::config(self.config(&config).await?, digest));
        }
        let layers: BTreeMap<Digest, Blob> =
            images.iter().flat_map(|image| &image.layers).map(|layer| (layer.digest, *layer)).collect();
        let unknown = || {
            let message = format!("{name} has no blob {digest}; ask for its manifest first");
            Fault::new(Code::BlobUnknown, message)
        };
        let (layer, bytes) = self.stored.stored_as(digest, &layers).await?.ok_or_else(unknown)?;
        // A URL of nothing would be no answer.
        if self.stored.held(layer).await?.stored_bytes != bytes {
            return Err(unknown());
        }
        if *method == Method::HEAD {
            return Ok(answer::blob_head(digest, bytes));
        }
        let url = self.cache.sign_get(&layout::blob(&layer), BLOB_URL_TTL).await?;
        answer::redirect(&url, digest)
    }

    /// The bytes of an image's configuration. It is small, and named by its plain bytes, however it is stored.
    async fn config(&self, config: &Blob) -> Result<Vec<u8>, Fault> {
        let held = self.stored.held(*config).await?;
        let missing = || Fault::new(Code::BlobUnknown, format!("the cache has lost {}", config.digest));
        if held.size_bytes > CONFIG_MAX_BYTES {
            return Err(Fault::new(Code::BlobUnknown, format!("{} is no image configuration", config.digest)));
        }
        let (bytes, _) = self.cache.get(&layout::blob(&held)).await?.ok_or_else(missing)?;
        if held.encoding == Encoding::Identity {
            return Ok(bytes.to_vec());
        }
        let mut plain = Vec::new();
        let unpacked = zstd::Decoder::new(bytes.as_ref());
        unpacked.and_then(|packed| packed.take(CONFIG_MAX_BYTES).read_to_end(&mut plain)).map_err(|_| missing())?;
        Ok(plain)
    }
}
