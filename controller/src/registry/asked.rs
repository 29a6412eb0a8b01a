//! What a URL below `/v2/` asks for.

use super::fault::{Code, Fault};
use axum::http::Uri;
use railyard_common::digest::Digest;
use std::fmt;

/// Entries of a list when nobody says how many, and the most that there are at once.
const PAGE_MAX: usize = 1000;

/// What a URL asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Whether this is a registry.
    Base,
    Catalog(Page),
    Tags(String, Page),
    Manifest(String, Reference),
    Blob(String, Digest),
}

/// A tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    Tag(String),
    Digest(Digest),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, "tag {tag}"),
            Self::Digest(digest) => write!(f, "manifest {digest}"),
        }
    }
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// At most so many.
    pub n: usize,
    /// Those behind this one.
    pub last: Option<String>,
}

impl Asked {
    /// The repository that it is about.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Catalog(_) => None,
            Self::Tags(name, _) | Self::Manifest(name, _) | Self::Blob(name, _) => Some(name),
        }
    }

    pub(super) fn parse(uri: &Uri) -> Result<Self, Fault> {
        let path = uri.path().strip_prefix("/v2").unwrap_or_default();
        let path = path.strip_prefix('/').unwrap_or(path);
        let nothing = || Fault::new(Code::NoSuchApi, format!("this registry knows nothing at {}", uri.path()));
        match path {
            "" => return Ok(Self::Base),
            "_catalog" => return Ok(Self::Catalog(Page::parse(uri.query())?)),
            _ => {}
        }
        // A name may have any number of parts, and parts may be called anything: what is asked is told by the end.
        let (before, last) = path.rsplit_once('/').ok_or_else(nothing)?;
        let (name, what) = before.rsplit_once('/').ok_or_else(nothing)?;
        if what == "uploads" || last == "uploads" {
            return Err(Fault::new(Code::NoSuchApi, "this registry is read-only; builds put their images into it"));
        }
        if !is_name(name) {
            return Err(Fault::new(Code::NameInvalid, "a repository is called PIPELINE/STEP or PIPELINE/STEP.VARIANT"));
        }
        let name = name.to_owned();
        match (what, last) {
            ("tags", "list") => Ok(Self::Tags(name, Page::parse(uri.query())?)),
            ("manifests", reference) => Ok(Self::Manifest(name, Reference::parse(reference)?)),
            ("blobs", digest) => Ok(Self::Blob(name, parse_digest(digest)?)),
            _ => Err(nothing()),
        }
    }
}

/// Whether it could be the name of a repository: only such ones are put into messages and links.
fn is_name(text: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
    };
    text.len() <= 255 && text.split('/').all(is_part)
}

/// Whether it could be a tag.
fn is_tag(text: &str) -> bool {
    let first_ok = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    first_ok && text.len() <= 128 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn parse_digest(text: &str) -> Result<Digest, Fault> {
    // Some clients write the colon as `%3A`.
    let text = text.replacen("%3A", ":", 1).replacen("%3a", ":", 1);
    text.parse().map_err(|_| Fault::new(Code::DigestInvalid, "expected sha256: and 64 lower-case hex digits"))
}

impl Reference {
    fn parse(text: &str) -> Result<Self, Fault> {
        if is_tag(text) {
            return Ok(Self::Tag(text.to_owned()));
        }
        if text.contains(':') || text.contains('%') {
            return parse_digest(text).map(Self::Digest);
        }
        Err(Fault::new(Code::ManifestUnknown, "this can be neither a tag nor a digest"))
    }
}

impl Page {
    fn parse(query: Option<&str>) -> Result<Self, Fault> {
        let mut page = Self { n: PAGE_MAX, last: None };
        for (name, value) in query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "n" => {
                    let n = value.parse::<usize>();
                    page.n = n.map_err(|_| Fault::new(Code::NameInvalid, "`n` is a number"))?.min(PAGE_MAX);
                }
                // Names and tags have nothing that a query encodes, but for the slash.
                "last" => page.last = Some(value.replace("%2F", "/").replace("%2f", "/")),
                _ => {}
            }
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Asked, Code> {
        Asked::parse(&text.parse().unwrap()).map_err(|fault| fault.code)
    }

    #[test]
    fn urls_are_read_from_their_end() {
        let digest = Digest::of(b"x");
        let name = || "mini/sdk".to_owned();
        let all = Page { n: PAGE_MAX, last: None };
        assert_eq!(parse("/v2"), Ok(Asked::Base));
        assert_eq!(parse("/v2/"), Ok(Asked::Base));
        assert_eq!(parse("/v2/_catalog"), Ok(Asked::Catalog(all.clone())));
        assert_eq!(parse("/v2/mini/sdk/tags/list"), Ok(Asked::Tags(name(), all.clone())));
        let manifest = |reference| Ok(Asked::Manifest(name(), reference));
        assert_eq!(parse("/v2/mini/sdk/manifests/1.0_x"), manifest(Reference::Tag("1.0_x".to_owned())));
        assert_eq!(parse(&format!("/v2/mini/sdk/manifests/{digest}")), manifest(Reference::Digest(digest)));
        let encoded = format!("/v2/mini/sdk/blobs/sha256%3A{}", digest.hex());
        assert_eq!(parse(&encoded), Ok(Asked::Blob(name(), digest)));
        let odd = "/v2/manifests/tags/manifests/list";
        assert_eq!(parse(odd), Ok(Asked::Manifest("manifests/tags".to_owned(), Reference::Tag("list".to_owned()))));
        assert_eq!(parse("/v2/a/b/c/d/tags/list"), Ok(Asked::Tags("a/b/c/d".to_owned(), all)));
    }

    #[test]
    fn pages_have_a_limit() {
        let page = |query: &str| match parse(&format!("/v2/mini/sdk/tags/list?{query}")) {
            Ok(Asked::Tags(_, page)) => Ok((page.n, page.last)),
            Ok(other) => panic!("{other:?}"),
            Err(code) => Err(code),
        };
        assert_eq!(page("n=2&last=1.0"), Ok((2, Some("1.0".to_owned()))));
        assert_eq!(page("n=0"), Ok((0, None)));
        assert_eq!(page("n=999999999"), Ok((PAGE_MAX, None)));
        assert_eq!(page("last=mini%2Fsdk&other=x"), Ok((PAGE_MAX, Some("mini/sdk".to_owned()))));
        assert_eq!(page("n=-1"), Err(Code::NameInvalid));
    }

    #[test]
    fn what_is_no_name_tag_or_digest_is_refused() {
        for (url, code) in [
            ("/v2/mini", Code::NoSuchApi),
            ("/v2/mini/sdk", Code::NoSuchApi),
            ("/v2/mini/sdk/tags", Code::NoSuchApi),
            ("/v2/mini/sdk/tags/all", Code::NoSuchApi),
            ("/v2/mini/sdk/blobs/uploads/", Code::NoSuchApi),
            ("/v2/mini/sdk/blobs/uploads/123", Code::NoSuchApi),
            ("/v2/mini/sdk/referrers/sha256:00", Code::NoSuchApi),
            ("/v2/Mini/sdk/tags/list", Code::NameInvalid),
            ("/v2/mini//tags/list", Code::NameInvalid),
            ("/v2/%2e%2e/sdk/tags/list", Code::NameInvalid),
            ("/v2/mini/sdk/blobs/sha256:00", Code::DigestInvalid),
            ("/v2/mini/sdk/blobs/latest", Code::DigestInvalid),
            ("/v2/mini/sdk/manifests/sha512:00", Code::DigestInvalid),
            ("/v2/mini/sdk/manifests/-x", Code::ManifestUnknown),
            ("/v2/mini/sdk/manifests/", Code::ManifestUnknown),
        ] {
            assert_eq!(parse(url), Err(code), "{url}");
        }
    }
}
