//! Secrets on the command line: better not there, where every process of the host can read them.

use crate::failure::Failure;
use std::io::Read as _;

/// Longest secret that is read.
const MAX_BYTES: u64 = 64 * 1024;

/// The secret itself; `@FILE`: what is in the file; `-`: standard input. Blanks around it do not count.
///
/// # Errors
/// [`Failure::Usage`] if the file cannot be read.
pub fn read(given: &str) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match given.strip_prefix('@') {
        _ if given == "-" => std::io::stdin().lock().take(MAX_BYTES).read_to_string(&mut text),
        Some(path) => std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES).read_to_string(&mut text)),
        None => return Ok(given.trim().to_owned()),
    };
    let what = if given == "-" { "standard input" } else { &given[1..] };
    read.map_err(|error| Failure::Usage(format!("cannot read the token from {what}: {error}")))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_given_or_read_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "  x y\n").unwrap();
        assert_eq!(read(" t ").unwrap(), "t");
        assert_eq!(read(&format!("@{}", path.display())).unwrap(), "x y");
        assert!(read("@/nowhere").is_err());
    }
}
