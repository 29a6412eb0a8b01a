//! The embedded cache: a local directory, served over the farm's one TLS port with signed URLs.
//!
//! ```text
//! DIR/blobs/…  builds/…  logs/…  images/…    as railyard_common::layout says; files are renamed or linked into place
//! DIR/uploads/ID/                            one upload: upload.json, data (the parts at their offsets), part-N (its ETag)
//! DIR/uploads/tmp-…                          a file on its way to its place
//! ```
//!
//! **Invariant:** everything outside `uploads/` is complete and was flushed to disk before it got its name.

mod access;
mod ahead;
mod conditions;
mod files;
pub mod fuzz;
mod listing;
mod page;
mod read;
mod receive;
mod signing;
mod store;
mod uploads;
mod walk;

use crate::cache::blocking::blocking;
use crate::cache::locks::Locks;
use crate::cache::{CacheError, EmbeddedConfig, Leases};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use railyard_common::path::RelPath;
use railyard_service::clock::Clock;
use signing::UrlKey;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use uploads::Uploads;

/// Staging: nothing in it is ever served, listed or published.
const UPLOADS: &str = "uploads";

/// The embedded cache.
pub struct Embedded {
    /// Canonical, so that a resolved path can be compared with it.
    root: PathBuf,
    /// Without a slash at the end.
    base_url: String,
    /// The path of `base_url`.
    prefix: String,
    public_read: bool,
    key: UrlKey,
    clock: Arc<dyn Clock>,
    locks: Locks,
    uploads: Arc<Uploads>,
    /// A cache that was told of no farm takes every lease for live.
    leases: OnceLock<Arc<dyn Leases>>,
}

impl Embedded {
    /// Opens or makes the directory and the key.
    ///
    /// # Errors
    /// [`CacheError::Config`] or [`CacheError::Io`].
    pub async fn open(config: &EmbeddedConfig, base_url: &str, clock: Arc<dyn Clock>) -> Result<Arc<Self>, CacheError> {
        let base_url = base_url.trim_end_matches('/').to_owned();
        let prefix = prefix_of(&base_url)?;
        let EmbeddedConfig { dir, public_read, key_file } = config.clone();
        let now = clock.now();
        let opening = move || {
            let root = files::create_root(&dir)?;
            let key_file = key_file.unwrap_or_else(|| root.parent().unwrap_or(Path::new("/")).join("cache.key"));
            let key = UrlKey::open_or_create(&key_file)?;
            let uploads = Arc::new(Uploads::open(root.join(UPLOADS), now)?);
            Ok::<_, CacheError>((root, key, uploads))
        };
        let (root, key, uploads) = blocking(opening).await?;
        let (locks, leases) = (Locks::default(), OnceLock::new());
        Ok(Arc::new(Self { root, base_url, prefix, public_read, key, clock, locks, uploads, leases }))
    }

    /// Where a path lies on disk. The path cannot leave the root: that is what a `RelPath` is.
    fn file(&self, path: &RelPath) -> PathBuf {
        self.root.join(path.as_str())
    }

    fn is_staging(path: &RelPath) -> bool {
        path.as_str() == UPLOADS || path.as_str().starts_with("uploads/")
    }
}

/// The path of the base URL: where the routes hang.
fn prefix_of(base_url: &str) -> Result<String, CacheError> {
    let path = base_url.split_once("://").and_then(|(_, rest)| rest.split_once('/')).map(|(_, path)| path);
    match path {
        Some(path) if path.parse::<RelPath>().is_ok() && !path.contains(['?', '#', '%', '{', '}']) => {
            Ok(format!("/{path}"))
        }
        _ => {
            let why = format!("its base URL `{base_url}` needs a plain path, for instance https://host:7411/cache");
            Err(CacheError::Config { why })
        }
    }
}

/// The routes of the cache.
pub fn router(cache: Arc<Embedded>) -> axum::Router {
    let prefix = cache.prefix.clone();
    axum::Router::new()
        .route(&prefix, any(handle))
        .route(&format!("{prefix}/"), any(handle))
        .route(&format!("{prefix}/{{*path}}"), any(handle))
        .with_state(cache)
}

async fn handle(State(cache): State<Arc<Embedded>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let target = match access::Target::parse(&cache.prefix, &head.uri) {
        Ok(target) => target,
        Err(refusal) => return refusal.into_response(),
    };
    let answer = match head.method {
        Method::GET | Method::HEAD => read::answer(&cache, &target, &head).await,
        Method::PUT => receive::answer(&cache, &target, &head.headers, body).await,
        _ => {
            let allowed = [(header::ALLOW, "GET, HEAD, PUT")];
            return (StatusCode::METHOD_NOT_ALLOWED, allowed, "the cache knows GET, HEAD and PUT\n").into_response();
        }
    };
    answer.unwrap_or_else(|refusal| refusal.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_routes_hang_below_the_base_url_s_path() {
        assert_eq!(prefix_of("https://farm.example.org:7411/cache").unwrap(), "/cache");
        assert_eq!(prefix_of("https://farm.example.org/a/b").unwrap(), "/a/b");
        for bad in ["https://farm.example.org", "https://farm.example.org/", "cache", "https://h/c?x"] {
            assert!(matches!(prefix_of(bad), Err(CacheError::Config { .. })), "{bad}");
        }
    }
}
