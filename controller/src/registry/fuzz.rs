//! Requests to the registry, from any text: see [`crate::fuzz`].

use super::asked::{Asked, Reference};
use super::document::{self, Choice};
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use railyard_common::blob::{Blob, Image};
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;

/// A URL, and on the line behind it what the client accepts.
pub fn request(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let (url, accept) = text.split_once('\n').unwrap_or((&text, ""));
    let choice = choose(accept);
    let Ok(uri) = url.parse::<Uri>() else { return format!("no URL, {choice}") };
    let asked = match Asked::parse(&uri) {
        Ok(asked) => asked,
        Err(fault) => return format!("{fault:?}, {choice}"),
    };
    let again = match &asked {
        Asked::Base | Asked::Catalog(_) | Asked::Tags(..) => None,
        Asked::Manifest(name, Reference::Tag(tag)) => Some(format!("/v2/{name}/manifests/{tag}")),
        Asked::Manifest(name, Reference::Digest(digest)) => Some(format!("/v2/{name}/manifests/{digest}")),
        Asked::Blob(name, digest) => Some(format!("/v2/{name}/blobs/{digest}")),
    };
    if let Some(url) = again {
        let same = url.parse::<Uri>().map(|url| Asked::parse(&url).ok());
        assert_eq!(same.ok().flatten().as_ref(), Some(&asked), "{url}");
    }
    format!("{}, {choice}", format!("{asked:?}").split('(').next().unwrap_or_default())
}

/// Which document a client gets.
fn choose(accept: &str) -> String {
    let mut headers = HeaderMap::new();
    for value in accept.split('\n').take(10).filter_map(|value| HeaderValue::from_str(value).ok()) {
        headers.append(header::ACCEPT, value);
    }
    let Ok(version) = "1".parse() else { return String::new() };
    let image = Image { config: Blob::plain(Digest::of(b"config"), 6), layers: Vec::new() };
    let one = document::manifest(Platform::LinuxAmd64, &image, &[], &version);
    let index = document::index(std::slice::from_ref(&one), &version);
    match (one.for_client(&headers, true), index.for_client(&headers, true)) {
        (Choice::Platform(_), _) => panic!("a manifest is no choice of platforms"),
        (Choice::It, Choice::It) => "both",
        (Choice::It, Choice::Platform(_)) => "the platform's",
        (Choice::It, Choice::Nothing(_)) => "the manifest",
        (Choice::Nothing(_), Choice::It) => "the index",
        (Choice::Nothing(_), Choice::Platform(_) | Choice::Nothing(_)) => "none",
    }
    .to_owned()
}
