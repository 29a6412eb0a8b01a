//! Answers: documents with their validators, lists by pages, redirects.

use super::asked::Page;
use super::document::Document;
use super::fault::{Code, Fault};
use crate::cache::no_body;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use railyard_common::digest::Digest;
use std::collections::BTreeSet;
use std::ops::Bound;

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

pub(super) fn json(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn digest_value(digest: Digest) -> HeaderValue {
    HeaderValue::from_str(&digest.to_string()).expect("hex digits make a header")
}

/// A manifest or an index; nothing of it for a client that has it.
pub(super) fn document(document: Document, headers: &HeaderMap) -> Response {
    let etag = format!("\"{}\"", document.digest);
    let seen = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let has_it = seen.flat_map(|value| value.split(',')).map(str::trim).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        tag == "*" || tag == etag
    });
    let validators = [(CONTENT_DIGEST, digest_value(document.digest)), (header::ETAG, quoted(&etag))];
    if has_it {
        return (StatusCode::NOT_MODIFIED, validators, no_body()).into_response();
    }
    let about = [
        (header::CONTENT_TYPE, HeaderValue::from_static(document.media_type)),
        (header::VARY, HeaderValue::from_static("accept")),
    ];
    (validators, about, Body::from(document.bytes)).into_response()
}

fn quoted(etag: &str) -> HeaderValue {
    HeaderValue::from_str(etag).expect("hex digits make a header")
}

/// A part of a list, and where the next one is.
pub(super) fn list(url: &str, name: Option<&str>, field: &str, all: BTreeSet<String>, page: &Page) -> Response {
    let after = page.last.clone().map_or(Bound::Unbounded, Bound::Excluded);
    let mut rest = all.range::<String, _>((after, Bound::Unbounded));
    let shown: Vec<&String> = rest.by_ref().take(page.n).collect();
    let next = shown.last().filter(|_| rest.next().is_some());
    let mut body = serde_json::Map::new();
    if let Some(name) = name {
        body.insert("name".to_owned(), name.into());
    }
    body.insert(field.to_owned(), shown.iter().map(|one| one.as_str()).collect::<Vec<_>>().into());
    let mut response = json(serde_json::Value::from(body).to_string().into_bytes());
    if let Some(last) = next {
        let link = format!("<{url}?n={}&last={}>; rel=\"next\"", page.n, last.replace('/', "%2F"));
        // Names and tags are plain.
        if let Ok(link) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(header::LINK, link);
        }
    }
    response
}

/// An image's configuration.
pub(super) fn config(bytes: Vec<u8>, digest: Digest) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (CONTENT_DIGEST, digest_value(digest)),
    ];
    (headers, bytes).into_response()
}

/// What there would be to fetch.
pub(super) fn blob_head(digest: Digest, bytes: u64) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(bytes)),
        (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        (CONTENT_DIGEST, digest_value(digest)),
    ];
    (headers, Body::empty()).into_response()
}

/// Where the bytes are.
pub(super) fn redirect(url: &str, digest: Digest) -> Result<Response, Fault> {
    let location = HeaderValue::from_str(url).map_err(|_| Fault::new(Code::Unknown, "the cache gave no usable URL"))?;
    // The URL is good for a while only.
    let headers = [
        (header::LOCATION, location),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (CONTENT_DIGEST, digest_value(digest)),
    ];
    Ok((StatusCode::TEMPORARY_REDIRECT, headers).into_response())
}
