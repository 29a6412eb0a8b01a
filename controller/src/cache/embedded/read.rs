//! `GET` and `HEAD`: files with ranges and validators, directories as listings.

use super::access::{Refusal, Target};
use super::conditions::{Validators, Verdict};
use super::{Embedded, UPLOADS, listing};
use crate::cache::blocking::blocking;
use crate::cache::{CacheError, no_body};
use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use jiff::Timestamp;
use railyard_common::blob::media_type_of;
use railyard_common::path::{RelPath, url_part};
use railyard_service::listener::Peer;
use railyard_transfer::read_pieces;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// What lies at a path.
enum Found {
    File(File, Metadata),
    Directory(PathBuf),
}

pub(super) async fn answer(cache: &Embedded, target: &Target, request: &Parts) -> Result<Response, Refusal> {
    let head = request.method == Method::HEAD;
    cache.allow_read(target, request.method.as_str(), request.extensions.get::<Peer>()).await?;
    match (cache.look(target).await?, &target.path) {
        (Found::File(..), _) if target.as_directory => Err(Refusal::not_found()),
        (Found::File(file, metadata), Some(path)) => file_answer(path, file, &metadata, &request.headers, head),
        (Found::File(..), None) => Err(Refusal::not_found()),
        (Found::Directory(_), path) if !target.as_directory => {
            // Relative links of the listing need the slash.
            let dir = path.as_ref().map_or_else(|| cache.prefix.clone(), |path| url_part(path.file_name()));
            let query = request.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
            let location = format!("{dir}/{query}");
            Ok((StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, location)]).into_response())
        }
        (Found::Directory(dir), path) => {
            let json = target.query.json || listing::wants_json(&request.headers);
            let order = listing::Order::parse(request.uri.query().unwrap_or_default());
            listing::answer(cache, dir, path.as_ref(), json, order).await
        }
    }
}

impl Embedded {
    /// Opens what lies at the target, if it lies within the cache: a symbolic link out of it is not followed.
    async fn look(&self, target: &Target) -> Result<Found, Refusal> {
        let wanted = target.path.as_ref().map_or_else(|| self.root.clone(), |path| self.file(path));
        let root = self.root.clone();
        let look = move || {
            let real = wanted.canonicalize()?;
            if !real.starts_with(&root) || real.starts_with(root.join(UPLOADS)) {
                return Err(io::ErrorKind::NotFound.into());
            }
            // Checked before it is opened: opening a pipe would wait.
            let metadata = real.metadata()?;
            if metadata.is_dir() {
                Ok(Found::Directory(real))
            } else if metadata.is_file() {
                let file = File::open(&real)?;
                // Of what was opened: the path may name another file by now.
                let metadata = file.metadata()?;
                Ok(Found::File(file, metadata))
            } else {
                Err(io::ErrorKind::NotFound.into())
            }
        };
        let found: io::Result<Found> = blocking(look).await;
        found.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidFilename => {
                Refusal::not_found()
            }
            _ => CacheError::Io { what: "open a file of the cache".to_owned(), source: error }.into(),
        })
    }
}

fn file_answer(
    path: &RelPath,
    file: File,
    metadata: &Metadata,
    asked: &HeaderMap,
    head: bool,
) -> Result<Response, Refusal> {
    let size = metadata.len();
    let validators = Validators { etag: etag(path, metadata), modified: modified(metadata) };
    let base = Response::builder()
        .header(header::ETAG, &validators.etag)
        .header(header::LAST_MODIFIED, validators.last_modified())
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CACHE_CONTROL, cache_control(path))
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    let build = |built: Result<Response, http::Error>| {
        built.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("InternalError: {error}")))
    };

    match validators.check(asked) {
        Verdict::Go => {}
        Verdict::NotModified => return build(base.status(StatusCode::NOT_MODIFIED).body(no_body())),
        Verdict::Failed => {
            let text = "PreconditionFailed: the object is not the one that the request is about\n";
            return build(base.status(StatusCode::PRECONDITION_FAILED).body(Body::from(text)));
        }
    }
    let base = base.header(header::CONTENT_TYPE, media_type_of(path.file_name()));
    // Ranges are for GET only.
    let usable = !head && validators.range_fits(asked);
    let range = asked.get(header::RANGE).filter(|_| usable).and_then(|range| range.to_str().ok());
    let (status, start, length) = match range.map_or(Range::Whole, |range| Range::parse(range, size)) {
        Range::Whole => (StatusCode::OK, 0, size),
        Range::Part { start, length } => (StatusCode::PARTIAL_CONTENT, start, length),
        Range::Beyond => {
            let range = format!("bytes */{size}");
            let text = format!("InvalidRange: the object has {size} bytes\n");
            let base = base.status(StatusCode::RANGE_NOT_SATISFIABLE).header(header::CONTENT_RANGE, range);
            return build(base.body(Body::from(text)));
        }
    };
    let mut base = base.status(status).header(header::CONTENT_LENGTH, length);
    if status == StatusCode::PARTIAL_CONTENT {
        base = base.header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", start + length - 1));
    }
    if head {
        return build(base.body(Body::empty()));
    }
    build(base.body(Body::from_stream(read_pieces(Arc::new(file), start, length))))
}

/// What a `Range` header asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Range {
    /// Everything: also for several ranges and for what does not parse, as RFC 9110 allows.
    Whole,
    Part {
        start: u64,
        length: u64,
    },
    Beyond,
}

impl Range {
    pub(super) fn parse(text: &str, size: u64) -> Self {
        let Some((first, last)) = text.strip_prefix("bytes=").and_then(|spec| spec.trim().split_once('-')) else {
            return Self::Whole;
        };
        let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(size)),
            (Ok(start), Err(_)) if last.is_empty() => (start, size),
            (Err(_), Ok(suffix)) if first.is_empty() => {
                (if suffix == 0 { size } else { size.saturating_sub(suffix) }, size)
            }
            _ => return Self::Whole,
        };
        if start >= size { Self::Beyond } else { Self::Part { start, length: end - start } }
    }
}

/// Blobs are named by their content. Other files get a name that changes with each rename into place.
fn etag(path: &RelPath, metadata: &Metadata) -> String {
    if path.as_str().starts_with("blobs/") {
        return format!("\"{}\"", path.file_name());
    }
    let nanos = i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec());
    format!("\"{:x}-{:x}-{:x}\"", metadata.ino(), nanos, metadata.len())
}

fn cache_control(path: &RelPath) -> &'static str {
    if path.as_str().starts_with("blobs/") { "private, max-age=31536000, immutable" } else { "private, no-cache" }
}

fn modified(metadata: &Metadata) -> Timestamp {
    Timestamp::from_second(metadata.mtime()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |start, length| Range::Part { start, length };
        for (text, want) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=2-", part(2, 8)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-99", part(0, 10)),
            ("bytes=5-99", part(5, 5)),
            ("bytes=9-9", part(9, 1)),
            ("bytes=10-", Range::Beyond),
            ("bytes=-0", Range::Beyond),
            ("bytes=5-4", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("bytes=x-", Range::Whole),
            ("bytes=-", Range::Whole),
            ("lines=0-1", Range::Whole),
        ] {
            assert_eq!(Range::parse(text, 10), want, "{text}");
        }
        assert_eq!(Range::parse("bytes=0-", 0), Range::Beyond);
    }
}
