//! All files of a directory and below, in the order of their paths.

use super::UPLOADS;
use crate::cache::{CacheError, Entry};
use railyard_common::path::RelPath;
use railyard_common::time::Millis;
use std::fs;
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// The files below `prefix` (everything for an empty one) after `after`, at most `limit`.
///
/// A directory sorts as its name with a slash: then walking depth first gives the byte order of whole paths, which is
/// the order of S3, and what lies before `after` is not even looked at.
pub(super) fn list(root: &Path, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>, CacheError> {
    let mut found = Vec::new();
    let mut stack = vec![if prefix.is_empty() { String::new() } else { format!("{prefix}/") }];
    while let Some(next) = stack.pop() {
        if found.len() == limit {
            break;
        }
        let file = root.join(&next);
        if next.is_empty() || next.ends_with('/') {
            let mut names = names(&file, &next).map_err(CacheError::local("list", &file))?;
            names.retain(|name| is_wanted(name, after));
            names.sort_unstable_by(|a, b| b.cmp(a));
            stack.append(&mut names);
        } else {
            found.extend(entry(&file, next).map_err(CacheError::local("list", &file))?);
        }
    }
    Ok(found)
}

/// Whether a file, or something in a directory, comes after `after`.
fn is_wanted(name: &str, after: Option<&str>) -> bool {
    after.is_none_or(|after| name > after || (name.ends_with('/') && after.starts_with(name)))
}

fn names(dir: &Path, prefix: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        // Nothing was ever put there, or the last file of it was just removed.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let slash = match (kind.is_dir(), kind.is_file()) {
            (true, _) if prefix.is_empty() && name == UPLOADS => continue,
            (true, _) => "/",
            (_, true) => "",
            _ => continue,
        };
        names.push(format!("{prefix}{name}{slash}"));
    }
    Ok(names)
}

fn entry(file: &Path, name: String) -> io::Result<Option<Entry>> {
    let metadata = match fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata?,
    };
    let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
    let modified = Millis(u64::try_from(modified.as_millis()).unwrap_or(u64::MAX));
    // A name that is no path of the cache was not put there by it.
    Ok(name.parse::<RelPath>().ok().map(|path| Entry { path, size: metadata.len(), modified }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_whole_paths_and_pages_fit_together() {
        let root = tempfile::tempdir().unwrap();
        let mut paths = ["a/b", "a-b", "a/c/d", "a.txt", "a0", "b/1", "z"];
        for path in paths {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, path).unwrap();
        }
        fs::create_dir_all(root.path().join("uploads/x")).unwrap();
        fs::write(root.path().join("uploads/x/data"), "x").unwrap();
        paths.sort_unstable();
        let list = |prefix: &str, after: Option<&str>, limit| -> Vec<String> {
            let entries = super::list(root.path(), prefix, after, limit).unwrap();
            entries.into_iter().map(|entry| entry.path.as_str().to_owned()).collect()
        };
        assert_eq!(list("", None, 100), paths);
        for limit in 1..4 {
            let (mut pages, mut after) = (Vec::new(), None);
            loop {
                let page = list("", after.as_deref(), limit);
                let Some(last) = page.last() else { break };
                after = Some(last.clone());
                pages.extend(page);
            }
            assert_eq!(pages, paths, "{limit}");
        }
        assert_eq!(list("a", None, 100), ["a/b", "a/c/d"]);
        assert_eq!(list("a", Some("a/b"), 100), ["a/c/d"]);
        assert!(list("nowhere", None, 100).is_empty());
    }
}
