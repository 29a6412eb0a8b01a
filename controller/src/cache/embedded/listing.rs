//! Directories for people (HTML) and for programs (JSON).

use super::access::Refusal;
use super::page::html;
use super::{Embedded, UPLOADS};
use crate::cache::CacheError;
use crate::cache::blocking::blocking;
use axum::Json;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse as _, Response};
use jiff::Timestamp;
use railyard_common::path::RelPath;
use railyard_common::tier;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

/// Most lines of one page: what a browser shows without trouble. Programs that need all use the API.
const LINES_MAX: usize = 10_000;
/// Builds on the front page: what retention keeps.
const BUILDS_MAX: usize = 50;

/// A directory. Its JSON form is documented in docs/operations.md.
#[derive(Debug, Serialize)]
pub(super) struct Page {
    /// Below the cache root; empty for the root.
    pub path: String,
    pub entries: Vec<Line>,
    /// Whether there are more than these.
    pub truncated: bool,
    /// On the front page: builds with a manifest, newest first, but neither deleted nor untrusted ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub builds: Vec<Build>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub name: String,
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    pub modified: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Directory,
    File,
}

#[derive(Debug, Serialize)]
pub(super) struct Build {
    pub build: String,
    pub ended: Timestamp,
}

/// What the lines are ordered by; directories always come first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Column {
    #[default]
    Name,
    Size,
    Modified,
}

/// `?sort=name|size|modified` and `&order=desc`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    pub by: Column,
    pub descending: bool,
}

impl Column {
    pub(super) const ALL: [Self; 3] = [Self::Name, Self::Size, Self::Modified];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Size => "size",
            Self::Modified => "modified",
        }
    }
}

impl Order {
    /// What the query asks for; what it does not say, or says wrong, is as usual.
    pub(super) fn parse(query: &str) -> Self {
        let value = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        let by = Column::ALL.into_iter().find(|column| value("sort") == Some(column.as_str()));
        Self { by: by.unwrap_or_default(), descending: value("order") == Some("desc") }
    }

    fn compare(self, a: &Line, b: &Line) -> Ordering {
        let ordering = match self.by {
            Column::Name => Ordering::Equal,
            Column::Size => a.size.cmp(&b.size),
            Column::Modified => a.modified.cmp(&b.modified),
        };
        let ordering = ordering.then_with(|| natural(&a.name, &b.name));
        a.kind.cmp(&b.kind).then(if self.descending { ordering.reverse() } else { ordering })
    }
}

/// As people order names: `1.9` before `1.10`.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    while let ([x, ..], [y, ..]) = (left, right) {
        let ordering = if x.is_ascii_digit() && y.is_ascii_digit() {
            let (one, other) = (digits(&mut left), digits(&mut right));
            one.len().cmp(&other.len()).then(one.cmp(other))
        } else {
            (left, right) = (&left[1..], &right[1..]);
            x.cmp(y)
        };
        if ordering.is_ne() {
            return ordering;
        }
    }
    // `01` and `1` are the same number, but not the same name.
    left.len().cmp(&right.len()).then_with(|| a.cmp(b))
}

/// Takes a number off the front; without the zeros that it begins with.
fn digits<'t>(text: &mut &'t [u8]) -> &'t [u8] {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (number, rest) = text.split_at(end);
    *text = rest;
    let zeros = number.iter().position(|b| *b != b'0').unwrap_or(number.len());
    &number[zeros..]
}

pub(super) fn wants_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::ACCEPT)
        .is_some_and(|accept| String::from_utf8_lossy(accept.as_bytes()).contains("application/json"))
}

pub(super) async fn answer(
    cache: &Embedded,
    dir: PathBuf,
    path: Option<&RelPath>,
    json: bool,
    order: Order,
) -> Result<Response, Refusal> {
    let (root, text) = (cache.root.clone(), path.map_or(String::new(), |path| path.as_str().to_owned()));
    let page = blocking(move || {
        let (entries, truncated) = lines(&dir, text.is_empty(), order)?;
        let builds = if text.is_empty() { builds(&root)? } else { Vec::new() };
        Ok(Page { path: text, entries, truncated, builds })
    })
    .await
    .map_err(|source: io::Error| CacheError::Io { what: "list a directory of the cache".to_owned(), source })?;
    let safe = [
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "private, no-cache"),
        (header::VARY, "accept"),
    ];
    Ok(if json { (safe, Json(page)).into_response() } else { (safe, Html(html(&page, order))).into_response() })
}

/// The entries of a directory, and whether some are missing: the last ones of that order.
fn lines(dir: &Path, is_root: bool, order: Order) -> io::Result<(Vec<Line>, bool)> {
    let mut lines: Vec<Line> = Vec::new();
    let mut truncated = false;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_root && entry.file_name() == UPLOADS {
            continue;
        }
        lines.extend(line(&entry));
        if lines.len() >= 2 * LINES_MAX {
            // However many there are, no more than this is held.
            lines.sort_by(|a, b| order.compare(a, b));
            lines.truncate(LINES_MAX);
            truncated = true;
        }
    }
    lines.sort_by(|a, b| order.compare(a, b));
    truncated |= lines.len() > LINES_MAX;
    lines.truncate(LINES_MAX);
    Ok((lines, truncated))
}

/// An entry that can be shown: a file or a directory with a name in UTF-8 that is still there.
fn line(entry: &DirEntry) -> Option<Line> {
    let name = entry.file_name().into_string().ok()?;
    let metadata = entry.metadata().ok()?;
    let modified = modified(&metadata);
    if metadata.is_dir() {
        Some(Line { name, kind: Kind::Directory, size: None, modified })
    } else {
        metadata.is_file().then_some(Line { name, kind: Kind::File, size: Some(metadata.len()), modified })
    }
}

fn modified(metadata: &fs::Metadata) -> Timestamp {
    metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What the list of a pipeline says of builds that were deleted.
#[derive(Default, Deserialize)]
struct Graves {
    #[serde(default)]
    tombstones: Vec<Grave>,
}

#[derive(Deserialize)]
struct Grave {
    version: String,
}

/// Builds that have a manifest and were not deleted, newest first. Scripts read this list, so that it has no untrusted ones.
fn builds(root: &Path) -> io::Result<Vec<Build>> {
    let mut builds = Vec::new();
    for pipeline in directories(&root.join("builds"))? {
        let dir = root.join("builds").join(&pipeline);
        let deleted = deleted(&dir)?;
        let is_untrusted = |name: &String| name.parse().is_ok_and(|version| tier::is_untrusted(&version));
        for version in directories(&dir)?.into_iter().filter(|name| !is_untrusted(name) && !deleted.contains(name)) {
            if let Ok(metadata) = fs::metadata(dir.join(&version).join("build.json")) {
                builds.push(Build { build: format!("{pipeline}/{version}"), ended: modified(&metadata) });
            }
        }
    }
    builds.sort_by(|a, b| (b.ended, &b.build).cmp(&(a.ended, &a.build)));
    builds.truncate(BUILDS_MAX);
    Ok(builds)
}

/// Versions of a pipeline that were deleted: their objects lie there until they are swept.
fn deleted(pipeline: &Path) -> io::Result<BTreeSet<String>> {
    let list = match fs::read(pipeline.join("builds.json")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        list => list?,
    };
    // One that is no list tells of nothing, and the controller makes it anew.
    let graves: Graves = serde_json::from_slice(&list).unwrap_or_default();
    Ok(graves.tombstones.into_iter().map(|grave| grave.version).collect())
}

fn directories(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, size: Option<u64>, second: i64) -> Line {
        let kind = if size.is_some() { Kind::File } else { Kind::Directory };
        Line { name: name.to_owned(), kind, size, modified: Timestamp::from_second(second).unwrap() }
    }

    #[test]
    fn lines_are_ordered_as_people_want_them() {
        let lines = [
            line("disk-10.raw", Some(1), 3),
            line("disk-9.raw", Some(3), 1),
            line("z", None, 9),
            line("1.10", None, 1),
            line("1.9", None, 5),
            line("disk-09.raw", Some(2), 2),
        ];
        for (query, want) in [
            ("", ["1.9", "1.10", "z", "disk-09.raw", "disk-9.raw", "disk-10.raw"]),
            ("sort=name&order=desc", ["z", "1.10", "1.9", "disk-10.raw", "disk-9.raw", "disk-09.raw"]),
            ("sort=size", ["1.9", "1.10", "z", "disk-10.raw", "disk-09.raw", "disk-9.raw"]),
            ("sort=modified&order=desc", ["z", "1.9", "1.10", "disk-10.raw", "disk-09.raw", "disk-9.raw"]),
            ("sort=nonsense&order=up", ["1.9", "1.10", "z", "disk-09.raw", "disk-9.raw", "disk-10.raw"]),
        ] {
            let (mut sorted, order) = (lines.to_vec(), Order::parse(query));
            sorted.sort_by(|a, b| order.compare(a, b));
            assert_eq!(sorted.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(), want, "{query}");
        }
    }

    #[test]
    fn the_front_page_names_builds_and_hides_staging() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["builds/mini/unfinished", "uploads/x", "images"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        for version in ["1.0.0", "1.0.0.untrusted", "0.9.0"] {
            let dir = root.path().join("builds/mini").join(version);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("build.json"), "{}").unwrap();
        }
        for (list, wanted) in [
            (r#"{"builds":[{"version":"1.0.0"}],"tombstones":[{"version":"0.9.0"}]}"#, &["mini/1.0.0"][..]),
            // What is no list, and one of before there were tombstones.
            ("{", &["mini/0.9.0", "mini/1.0.0"]),
            (r#"{"builds":[]}"#, &["mini/0.9.0", "mini/1.0.0"]),
        ] {
            fs::write(root.path().join("builds/mini/builds.json"), list).unwrap();
            let mut names: Vec<_> = builds(root.path()).unwrap().into_iter().map(|build| build.build).collect();
            names.sort();
            assert_eq!(names, wanted, "{list}");
        }
        let (lines, truncated) = lines(root.path(), true, Order::default()).unwrap();
        let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!((names, truncated), (vec!["builds", "images"], false));
    }
}
