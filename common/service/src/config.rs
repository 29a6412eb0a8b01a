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
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        let message = error.message().trim_end().replace('\n', "; ");
        ConfigError::Parse { path: path.to_owned(), line, column, message }
    })
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
        assert!(message.starts_with("farm.toml:2:8: ") && message.contains("expected u16"), "{message}");
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
