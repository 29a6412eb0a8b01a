//! Directories for people (HTML) and for programs (JSON).

use super::access::Refusal;
use super::{Embedded, UPLOADS};
use crate::cache::blocking::blocking;
use crate::cache::{CacheError, url_part};
use axum::Json;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse as _, Response};
use bytesize::ByteSize;
use jiff::Timestamp;
use railyard_common::path::RelPath;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

/// Most lines of one page: what a browser shows without trouble. Programs that need all use the API.
const LINES_MAX: usize = 10_000;
/// Builds on the front page: what retention keeps.
const BUILDS_MAX: usize = 50;

#[derive(Debug, Serialize)]
struct Page {
    /// Below the cache root; empty for the root.
    path: String,
    entries: Vec<Line>,
    /// Whether there are more than these.
    truncated: bool,
    /// On the front page: builds with a manifest, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    builds: Vec<Build>,
}

#[derive(Debug, Serialize)]
struct Line {
    name: String,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    modified: Timestamp,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Directory,
    File,
}

#[derive(Debug, Serialize)]
struct Build {
    build: String,
    ended: Timestamp,
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
) -> Result<Response, Refusal> {
    let (root, text) = (cache.root.clone(), path.map_or(String::new(), |path| path.as_str().to_owned()));
    let page = blocking(move || {
        let (entries, truncated) = lines(&dir, text.is_empty())?;
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
    Ok(if json { (safe, Json(page)).into_response() } else { (safe, Html(html(&page))).into_response() })
}

/// The entries of a directory, directories first, and whether some are missing.
fn lines(dir: &Path, is_root: bool) -> io::Result<(Vec<Line>, bool)> {
    let mut lines: Vec<Line> = Vec::new();
    let mut truncated = false;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_root && entry.file_name() == UPLOADS {
            continue;
        }
        if lines.len() == LINES_MAX {
            truncated = true;
            break;
        }
        lines.extend(line(&entry));
    }
    lines.sort_by(|a, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
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

/// Builds that have a manifest, newest first.
fn builds(root: &Path) -> io::Result<Vec<Build>> {
    let mut builds = Vec::new();
    for pipeline in directories(&root.join("builds"))? {
        for version in directories(&root.join("builds").join(&pipeline))? {
            let build = format!("{pipeline}/{version}");
            if let Ok(metadata) = fs::metadata(root.join("builds").join(&build).join("build.json")) {
                builds.push(Build { build, ended: modified(&metadata) });
            }
        }
    }
    builds.sort_by(|a, b| (b.ended, &b.build).cmp(&(a.ended, &a.build)));
    builds.truncate(BUILDS_MAX);
    Ok(builds)
}

fn directories(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let names = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        if entry.file_type().ok()?.is_dir() { entry.file_name().into_string().ok() } else { None }
    });
    Ok(names.collect())
}

const STYLE: &str = "body{font:15px/1.5 ui-monospace,monospace;margin:2em;max-width:70em}\
td{padding:0 2em 0 0;white-space:nowrap}td.n{text-align:right}a{text-decoration:none}\
@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}a{color:#8cf}}";

fn html(page: &Page) -> String {
    let title = format!("/{}", page.path);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{0}</title><style>{STYLE}</style>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    // Writing to a string cannot fail.
    if !page.builds.is_empty() {
        out.push_str("<h2>Builds</h2>\n<table>\n");
        for Build { build, ended } in &page.builds {
            let link: Vec<_> = build.split('/').map(url_part).collect();
            let (link, name, date) = (link.join("/"), escape(build), date(ended));
            let _ = writeln!(out, "<tr><td><a href=\"builds/{link}/build.json\">{name}</a><td>{date}");
        }
        out.push_str("</table>\n<h2>Everything</h2>\n");
    }
    out.push_str("<table>\n");
    if !page.path.is_empty() {
        out.push_str("<tr><td><a href=\"../\">../</a><td><td>\n");
    }
    for Line { name, kind, size, modified } in &page.entries {
        let slash = if *kind == Kind::Directory { "/" } else { "" };
        let (link, name, date) = (url_part(name), escape(name), date(modified));
        let size = size.map_or(String::new(), |size| {
            format!("<span title=\"{size} bytes\">{}</span>", ByteSize::b(size).display().iec())
        });
        // The dot keeps a name with a colon from being taken for a scheme.
        let _ = writeln!(out, "<tr><td><a href=\"./{link}{slash}\">{name}{slash}</a><td class=\"n\">{size}<td>{date}");
    }
    out.push_str("</table>\n");
    if page.truncated {
        let _ = writeln!(out, "<p>There are more than these {LINES_MAX}.");
    }
    out
}

fn date(at: &Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_do_no_harm() {
        let name = "<script>\"&'javascript:x.txt".to_owned();
        let line = Line { name, kind: Kind::File, size: Some(2048), modified: Timestamp::UNIX_EPOCH };
        let page = Page { path: "a<b".to_owned(), entries: vec![line], truncated: false, builds: Vec::new() };
        let html = html(&page);
        assert!(!html.contains("<script>") && !html.contains("a<b"), "{html}");
        assert!(html.contains("href=\"./%3Cscript%3E%22%26%27javascript%3Ax.txt\""), "{html}");
        assert!(html.contains("2.0 KiB") && html.contains("1970-01-01 00:00:00 UTC"), "{html}");
    }

    #[test]
    fn the_front_page_names_builds_and_hides_staging() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["builds/mini/1.0.0", "builds/mini/unfinished", "uploads/x", "images"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        fs::write(root.path().join("builds/mini/1.0.0/build.json"), "{}").unwrap();
        let names: Vec<_> = builds(root.path()).unwrap().into_iter().map(|build| build.build).collect();
        assert_eq!(names, ["mini/1.0.0"]);
        let (lines, truncated) = lines(root.path(), true).unwrap();
        let names: Vec<_> = lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!((names, truncated), (vec!["builds", "images"], false));
    }
}
