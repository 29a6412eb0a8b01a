//! Requests to the cache, from any text: see [`crate::fuzz`].

use super::access::Target;
use super::conditions::{Validators, Verdict};
use super::listing::Order;
use super::read::Range;
use super::receive;
use super::signing::{PartRight, Right, Unsigned, UrlKey};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri, header};
use jiff::Timestamp;
use railyard_common::path::{RelPath, url_path};
use railyard_common::time::Millis;
use std::path::{Component, Path};
use std::time::Duration;

const PREFIX: &str = "/cache";
const KEY: [u8; 32] = [7; 32];
const NOW: Millis = Millis(1_790_000_000_000);

/// A URL, and on the lines behind it headers.
pub fn request(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.lines();
    let url = lines.next().unwrap_or_default();
    let headers = headers(lines);
    let asked = ask(&headers);
    let Ok(uri) = url.parse::<Uri>() else { return format!("no URL, {asked}") };
    let order = Order::parse(uri.query().unwrap_or_default());
    match Target::parse(PREFIX, &uri) {
        Ok(target) => format!("{}, {order:?}, {asked}", check(&target)),
        Err(refusal) => format!("{}, {asked}", refusal.text),
    }
}

/// What a target is good for.
fn check(target: &Target) -> String {
    let key = UrlKey::of(KEY);
    let path = target.path.as_ref().map_or("", RelPath::as_str);
    let inside = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    assert!(inside && !path.contains(['\0', '\n']), "{path:?} leads out of the cache");
    if let Some(path) = &target.path {
        same_again(path);
    }
    let query = &target.query;
    let (Some(expires), Some(signature)) = (query.expires, &query.signature) else {
        return format!("{} parts, json {}", path.split('/').count().min(4), query.json);
    };
    let right = match (path.strip_prefix("uploads/"), query.part, query.length, query.crc32) {
        (Some(upload_id), Some(number), Some(length), Some(crc32)) => {
            Right::Part(PartRight { upload_id, number, length, crc32 })
        }
        _ => Right::Read { method: "GET", path, lease: query.lease },
    };
    // Nobody guesses it: one that is good was made for just this.
    let made = signature_of(&key.query(right, Millis(expires), Duration::ZERO));
    let checked = key.check(right, expires, signature, NOW);
    assert_eq!(checked != Err(Unsigned::Wrong), hex::decode(signature) == hex::decode(&made), "{signature}");
    assert_eq!(key.check(right, expires, &made, Millis(expires.saturating_sub(1))).is_ok(), expires > 0);
    format!("signed: {checked:?}")
}

fn signature_of(query: &str) -> String {
    let signature = query.rsplit_once("signature=").map(|(_, signature)| signature.to_owned());
    signature.expect("a signed query ends with its signature")
}

/// A path that is written as a URL is read as the same path.
fn same_again(path: &RelPath) {
    let url: Uri = format!("{PREFIX}/{}", url_path(path.as_str())).parse().expect("a path makes a URL");
    let again = Target::parse(PREFIX, &url).map(|target| target.path);
    assert_eq!(again, Ok(Some(path.clone())));
}

fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> HeaderMap {
    let pair = |line: &'a str| {
        let (name, value) = line.split_once(':')?;
        Some((name.trim().parse::<HeaderName>().ok()?, HeaderValue::from_str(value.trim()).ok()?))
    };
    lines.filter_map(pair).take(100).collect()
}

/// What the headers come to.
fn ask(headers: &HeaderMap) -> String {
    let validators = Validators { etag: "\"5-6-7\"".to_owned(), modified: Timestamp::UNIX_EPOCH };
    let verdict: Verdict = validators.check(headers);
    let mut said = format!("{verdict:?} {}", validators.range_fits(headers));
    for size in [0, 1, 1_000, u64::MAX] {
        let Some(range) = headers.get(header::RANGE).and_then(|range| range.to_str().ok()) else { break };
        match Range::parse(range, size) {
            Range::Whole => said.push_str(" whole"),
            Range::Beyond => said.push_str(" beyond"),
            Range::Part { start, length } => {
                assert!(length > 0 && start.checked_add(length).is_some_and(|end| end <= size), "{range} of {size}");
                said.push_str(" part");
            }
        }
    }
    said.push_str(if receive::is_announced(headers) { " announced" } else { "" });
    said
}
