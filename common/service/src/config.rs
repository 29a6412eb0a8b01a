//! Reading configuration files: TOML, with errors that point at the place.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// A configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not the TOML that was expected.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What is wrong and what was expected.
        message: String,
    },
}

/// What the type of sizes says that it wanted, which helps nobody.
const SIZE_WANTED: &str = "expected parsable string";
/// What it means.
const SIZE_FORM: &str = "expected a size such as \"500GiB\" or \"7TB\"";

/// Reads the TOML file at `path`.
///
/// # Errors
/// [`ConfigError`], which names the file and, where there is one, the line and column.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// Reads TOML text that came from `path`.
///
/// # Errors
/// [`ConfigError::Parse`].
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let (line, column) = position(text, at);
        let message = error.message().trim_end().replace('\n', "; ").replace(SIZE_WANTED, SIZE_FORM);
        let message = key(text, at).map_or(message.clone(), |key| format!("{key}: {message}"));
        ConfigError::Parse { path: path.to_owned(), line, column, message }
    })
}

/// What comes before a value that begins at this byte offset.
fn key(text: &str, offset: usize) -> Option<&str> {
    let before = text.get(..offset)?.trim_end().strip_suffix('=')?.trim_end();
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let key = &before[before.trim_end_matches(is_of_key).len()..];
    (!key.is_empty()).then_some(key)
}

/// Line and column, from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[allow(dead_code, reason = "only its presence is tested")]
        port: u16,
    }

    fn fault(text: &str) -> String {
        parse::<Sample>(text, Path::new("farm.toml")).unwrap_err().to_string()
    }

    #[test]
    fn errors_point_at_the_place() {
        let message = fault("# a comment\nport = \"x\"\n");
        assert!(message.starts_with("farm.toml:2:8: port: ") && message.contains("expected u16"), "{message}");
        let message = fault("port = 1\nprot = 2\n");
        assert!(message.starts_with("farm.toml:2:1: ") && message.contains("expected `port`"), "{message}");
        assert!(fault("").contains("missing field `port`"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Sample>(Path::new("/nowhere/farm.toml")).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the configuration file /nowhere/farm.toml");
    }
}
