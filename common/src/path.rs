//! Relative paths that stay where they belong, and globs over them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A relative, `/`-separated path without `.`, `..`, empty parts, backslashes or control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RelPath(String);

/// The text is not a path that may be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not a usable path: {why}")]
pub struct BadPath {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Longest path: what a URL and a file system both carry with ease.
const PATH_MAX_LEN: usize = 1024;
/// Longest part of a path: what file systems take.
const PART_MAX_LEN: usize = 255;

/// Names that begin like this are Railyard's own: files that are being fetched have them until they are whole.
pub const RESERVED_PREFIX: &str = ".railyard-";

impl RelPath {
    /// Whether a part of it is a name that is Railyard's own. No artifact has such a path: where it is fetched to, the file of
    /// another artifact may be on its way under that name. Some file systems take both cases for the same name.
    pub fn is_reserved(&self) -> bool {
        let prefix = |part: &str| part.get(..RESERVED_PREFIX.len()).map(str::to_ascii_lowercase);
        self.0.split('/').any(|part| prefix(part).as_deref() == Some(RESERVED_PREFIX))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// This path and `name` below it.
    ///
    /// # Errors
    /// [`BadPath`] if `name` is not a path itself.
    pub fn join(&self, name: &str) -> Result<Self, BadPath> {
        format!("{}/{name}", self.0).parse()
    }
}

/// Why `text` cannot be a relative path, if it cannot.
fn fault(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > PATH_MAX_LEN {
        return Some("it is longer than 1024 bytes");
    }
    if text.starts_with('/') {
        return Some("it is absolute; paths are relative");
    }
    if text.chars().any(|c| c.is_control() || c == '\\') {
        return Some("it has a control character or a backslash");
    }
    text.split('/').find_map(|part| match part {
        "" => Some("it has an empty part"),
        "." => Some("it has a `.` part"),
        ".." => Some("it has a `..` part and could leave its directory"),
        _ => None,
    })
}

/// A glob may be longer than what it matches; a path may not.
fn long_part(text: &str) -> Option<&'static str> {
    let long = text.split('/').any(|part| part.len() > PART_MAX_LEN);
    long.then_some("it has a part longer than 255 bytes")
}

impl FromStr for RelPath {
    type Err = BadPath;

    fn from_str(text: &str) -> Result<Self, BadPath> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for RelPath {
    type Error = BadPath;

    fn try_from(text: String) -> Result<Self, BadPath> {
        match fault(&text).or_else(|| long_part(&text)) {
            Some(why) => Err(BadPath { text, why }),
            None => Ok(Self(text)),
        }
    }
}

impl From<RelPath> for String {
    fn from(path: RelPath) -> String {
        path.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A path as it stands in a URL.
pub fn url_path(path: &str) -> String {
    path.split('/').map(url_part).collect::<Vec<_>>().join("/")
}

/// One part of a path as it stands in a URL.
pub fn url_part(part: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(part.len());
    for b in part.bytes() {
        if b.is_ascii_alphanumeric() || b"-._~+@=,".contains(&b) {
            out.push(char::from(b));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// A glob over relative paths: `*` and `?` within a part, `**` across parts, `[…]`, `{a,b}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Glob(String);

impl Glob {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Something that matches paths quickly.
    pub fn matcher(&self) -> globset::GlobMatcher {
        // The text was compiled by `try_from`; a glob that compiled once compiles again.
        build(&self.0).expect("a checked glob compiles").compile_matcher()
    }
}

fn build(text: &str) -> Result<globset::Glob, globset::Error> {
    globset::GlobBuilder::new(text).literal_separator(true).backslash_escape(false).build()
}

/// The text is not a glob that may be used.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum BadGlob {
    /// It could match outside its directory.
    #[error(transparent)]
    Path(#[from] BadPath),
    /// It does not compile.
    #[error("`{text}` is not a glob: {why}")]
    Syntax {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
}

impl FromStr for Glob {
    type Err = BadGlob;

    fn from_str(text: &str) -> Result<Self, BadGlob> {
        Self::try_from(text.to_owned())
    }
}

impl TryFrom<String> for Glob {
    type Error = BadGlob;

    fn try_from(text: String) -> Result<Self, BadGlob> {
        if let Some(why) = fault(&text) {
            return Err(BadPath { text, why }.into());
        }
        match build(&text) {
            Ok(_) => Ok(Self(text)),
            Err(error) => Err(BadGlob::Syntax { why: error.kind().to_string(), text }),
        }
    }
}

impl From<Glob> for String {
    fn from(glob: Glob) -> String {
        glob.0
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_cannot_escape() {
        for bad in ["", "/a", "..", "a/../b", "a//b", "./a", "a/", "a\\b", "a\nb"] {
            assert!(bad.parse::<RelPath>().is_err(), "{bad:?}");
            assert!(bad.parse::<Glob>().is_err(), "{bad:?}");
        }
        assert_eq!("a/b.c".parse::<RelPath>().unwrap().file_name(), "b.c");
    }

    #[test]
    fn a_path_fits_a_file_system() {
        let part = "x".repeat(PART_MAX_LEN);
        assert!(format!("a/{part}/{part}").parse::<RelPath>().is_ok());
        assert!(format!("a/{part}x/b").parse::<RelPath>().is_err());
        assert!("a/".repeat(600).trim_end_matches('/').parse::<RelPath>().is_err());
    }

    #[test]
    fn names_of_files_on_their_way_are_reserved() {
        for (path, want) in [
            (".railyard-x", true),
            ("out/.railyard-x.part/y", true),
            ("out/.Railyard-", true),
            (".railyard", false),
            ("x.railyard-y", false),
            ("railyard-x", false),
            ("üüüüüü", false),
        ] {
            assert_eq!(path.parse::<RelPath>().unwrap().is_reserved(), want, "{path}");
        }
    }

    #[test]
    fn a_url_keeps_the_slashes_and_nothing_that_means_something_there() {
        assert_eq!(url_path("a/b c/d#e?f%20/ü+1"), "a/b%20c/d%23e%3Ff%2520/%C3%BC+1");
    }

    #[test]
    fn a_star_stays_within_its_part() {
        let glob: Glob = "out/*.raw".parse().unwrap();
        assert!(glob.matcher().is_match("out/disk.raw"));
        assert!(!glob.matcher().is_match("out/deep/disk.raw"));
        assert!("**".parse::<Glob>().unwrap().matcher().is_match("a/b/c"));
        assert!(matches!("[".parse::<Glob>(), Err(BadGlob::Syntax { .. })));
    }
}
