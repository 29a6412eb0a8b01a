//! Which files of the work directory a job leaves behind.
//!
//! **Invariant:** every file that is found is a plain file inside the work directory, also after its links are resolved.
//! It is read after the container has ended, so nothing can change under us.

use crate::disk::DiskError;
use railyard_common::compress::Compress;
use railyard_common::job::{OutputSpec, Placement};
use railyard_common::path::{BadPath, Glob, RESERVED_PREFIX, RelPath};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Where the work directory is in the container: what an absolute link in it is relative to.
pub const WORK_DIR: &str = "/work";

/// Most artifacts of one job: what a report can carry.
const ARTIFACTS_MAX: usize = 10_000;

/// Most matches that are looked at: one file may match several outputs, and a link to a directory is no artifact.
const MATCHES_MAX: usize = 10 * ARTIFACTS_MAX;

/// Of a name that is too long, so much is shown.
const NAME_SHOWN_CHARS: usize = 100;

/// Links behind links that are followed: what the kernel does.
const LINKS_MAX: usize = 40;

/// Files that a message names before it only counts.
const NAMED_MAX: usize = 20;

/// A file that is an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its path as an artifact, with the suffix of what compresses it.
    pub path: RelPath,
    /// Its path in the work directory.
    pub name: String,
    /// The plain file on this host.
    pub file: PathBuf,
    /// Where it will be published.
    pub published: Option<RelPath>,
    /// What becomes of it. What is published is not compressed unless an output says so.
    pub compress: Compress,
}

/// The job did not leave what it must.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// A required output matched nothing.
    #[error("no file matches the output `{glob}`; {present}")]
    Missing {
        /// The output.
        glob: Glob,
        /// What is in the work directory instead.
        present: String,
    },
    /// What matched cannot be an artifact.
    #[error("`{path}` cannot be an output: {why}")]
    Bad {
        /// Relative to the work directory.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The work directory cannot be read.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// A name in the work directory that is not a directory.
struct Entry {
    /// Relative, `/` separated; lossy where it is not UTF-8.
    name: String,
    path: PathBuf,
    kind: fs::FileType,
}

/// What is worth remembering of a work directory; it may hold millions of files.
#[derive(Default)]
struct Seen {
    /// Of each output, what it matches.
    matched: Vec<Vec<Entry>>,
    matches: usize,
    /// The first names, for a message.
    first: BTreeSet<String>,
    files: usize,
}

/// Finds the files that the outputs name. Links are resolved, but none that leads out of `work`.
///
/// # Errors
/// [`OutputError`], which names the output or the file.
pub fn find(work: &Path, outputs: &[OutputSpec]) -> Result<Vec<Found>, OutputError> {
    let work = work.canonicalize().map_err(DiskError::at("read", work))?;
    let mut seen = walk(&work, outputs)?;
    let mut found: BTreeMap<RelPath, Found> = BTreeMap::new();
    let placement = Placement::new(outputs);
    for (output, mut entries) in outputs.iter().zip(std::mem::take(&mut seen.matched)) {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let mut matched = false;
        for entry in entries {
            if let Some(one) = artifact(&work, &entry, output.compress, &placement)? {
                matched = true;
                let known = found.entry(one.path.clone()).or_insert_with(|| one.clone());
                known.meet(&one)?;
            }
        }
        if !matched && !output.optional {
            return Err(OutputError::Missing { glob: output.glob.clone(), present: present(&work, &seen) });
        }
    }
    check(found.into_values().collect())
}

/// Looks at everything below `work` but directories. Links to directories are not followed.
fn walk(work: &Path, outputs: &[OutputSpec]) -> Result<Seen, OutputError> {
    let matchers: Vec<_> = outputs.iter().map(|output| output.glob.matcher()).collect();
    let mut seen = Seen { matched: outputs.iter().map(|_| Vec::new()).collect(), ..Seen::default() };
    let mut dirs = vec![(work.to_owned(), String::new())];
    while let Some((dir, prefix)) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(|error| unreadable(&dir, &prefix, error))? {
            let entry = entry.map_err(DiskError::at("read", &dir))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(|error| unreadable(&entry.path(), &name, error))?;
            if kind.is_dir() {
                dirs.push((entry.path(), format!("{name}/")));
                continue;
            }
            for (matched, _) in seen.matched.iter_mut().zip(&matchers).filter(|(_, matcher)| matcher.is_match(&name)) {
                matched.push(Entry { name: name.clone(), path: entry.path(), kind });
                seen.matches += 1;
            }
            if seen.matches > MATCHES_MAX {
                return Err(too_many(name));
            }
            seen.note(name);
        }
    }
    Ok(seen)
}

impl Seen {
    fn note(&mut self, name: String) {
        self.files += 1;
        self.first.insert(name);
        if self.first.len() > NAMED_MAX {
            self.first.pop_last();
        }
    }
}

/// The script can nest directories deeper than the system can name; everything else is this disk's fault.
fn unreadable(path: &Path, name: &str, error: io::Error) -> OutputError {
    if error.kind() != io::ErrorKind::InvalidFilename {
        return DiskError::at("read", path)(error).into();
    }
    let path = format!("{}…", name.chars().take(NAME_SHOWN_CHARS).collect::<String>());
    OutputError::Bad { path, why: format!("its path has {} bytes, more than the system takes", name.len()) }
}

fn too_many(path: String) -> OutputError {
    let why = format!("the outputs match more than {ARTIFACTS_MAX} files; pack them into an archive");
    OutputError::Bad { path, why }
}

impl Found {
    /// Another output leaves an artifact of the same name.
    fn meet(&mut self, other: &Self) -> Result<(), OutputError> {
        if other.name != self.name {
            let why = format!("`{}` would become the artifact {}, too", self.name, self.path);
            return Err(OutputError::Bad { path: other.name.clone(), why });
        }
        // Of two levels the first counts; but who wants a file as it is has a reason.
        if self.compress == Compress::Auto {
            self.compress = other.compress;
        }
        Ok(())
    }
}

/// The artifact that a matched entry is; `None` for a link to a directory, which an output does not mean.
fn artifact(
    work: &Path,
    entry: &Entry,
    compress: Compress,
    placement: &Placement<'_>,
) -> Result<Option<Found>, OutputError> {
    let bad = |why: String| OutputError::Bad { path: entry.name.clone(), why };
    if entry.path.to_str().is_none() {
        return Err(bad("its name is not UTF-8".to_owned()));
    }
    let bad_path = |error: BadPath| bad(error.to_string());
    let path: RelPath = format!("{}{}", entry.name, compress.suffix()).parse().map_err(bad_path)?;
    if path.is_reserved() {
        let why =
            format!("names that begin with `{RESERVED_PREFIX}` are those of files that are being fetched; rename it");
        return Err(bad(why));
    }
    let file = if entry.kind.is_symlink() { resolve(work, &entry.path).map_err(bad)? } else { entry.path.clone() };
    let kind = fs::symlink_metadata(&file).map_err(DiskError::at("read", &file))?.file_type();
    if kind.is_dir() {
        return Ok(None);
    }
    if !kind.is_file() {
        return Err(bad("it is not a plain file".to_owned()));
    }
    // Outputs that compress are asked first where an artifact is published; of a file that they have not made they must not tell.
    if compress.suffix().is_empty()
        && let Some(rival) = placement.rival(&path)
    {
        let glob = &rival.glob;
        let why = "gives this name to a file that it compresses, which is published elsewhere or not at all; rename one of them";
        return Err(bad(format!("the output `{glob}` {why}")));
    }
    let published = placement.of(&path).transpose().map_err(bad_path)?.flatten();
    let compress = match compress {
        Compress::Auto if published.is_some() => Compress::None,
        compress => compress,
    };
    Ok(Some(Found { path, name: entry.name.clone(), file, published, compress }))
}

/// Where a link leads, as the container saw it, if that is inside `work`.
fn resolve(work: &Path, link: &Path) -> Result<PathBuf, String> {
    let mut path = link.to_owned();
    for _ in 0..LINKS_MAX {
        let Ok(target) = fs::read_link(&path) else { break };
        let outside = || format!("it is a link to {}, outside the work directory", target.display());
        path = if target.is_absolute() {
            let inside = target.strip_prefix(WORK_DIR).map_err(|_| outside())?;
            // `/work/../x` is not inside, whatever it begins with.
            if inside.components().any(|part| part == Component::ParentDir) {
                return Err(outside());
            }
            work.join(inside)
        } else {
            path.parent().unwrap_or(work).join(&target)
        };
    }
    match path.canonicalize() {
        Ok(real) if real.starts_with(work) => Ok(real),
        Ok(_) => Err("it is a link that leads out of the work directory".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("it is a link to nothing".to_owned()),
        Err(error) => Err(format!("its link cannot be followed: {error}")),
    }
}

/// Limits, and no two artifacts at one published path.
fn check(found: Vec<Found>) -> Result<Vec<Found>, OutputError> {
    if let Some(beyond) = found.get(ARTIFACTS_MAX) {
        return Err(too_many(beyond.path.to_string()));
    }
    let mut taken: BTreeMap<&RelPath, &RelPath> = BTreeMap::new();
    for one in &found {
        if let Some(published) = &one.published
            && let Some(other) = taken.insert(published, &one.path)
        {
            let why = format!("`{other}` would be published at the same path, {published}");
            return Err(OutputError::Bad { path: one.path.to_string(), why });
        }
    }
    Ok(found)
}

/// What there is, for the person whose output is missing.
fn present(work: &Path, seen: &Seen) -> String {
    if seen.files == 0 {
        let dirs = fs::read_dir(work).map_or(0, Iterator::count);
        let only = if dirs > 0 { "has only empty directories" } else { "is empty" };
        return format!("the work directory {only}");
    }
    let names: Vec<&str> = seen.first.iter().map(String::as_str).collect();
    let more = match seen.files.saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("the work directory has {}{more}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn output(glob: &str) -> OutputSpec {
        OutputSpec {
            glob: glob.parse().unwrap(),
            publish: None,
            publish_by_channel: None,
            optional: false,
            compress: Compress::Auto,
        }
    }

    /// A work directory with two files, a directory and links of every kind.
    fn work() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir_all(at("out/deep")).unwrap();
        fs::write(at("out/a.raw"), "a").unwrap();
        fs::write(at("out/deep/b.raw"), "b").unwrap();
        symlink("out/a.raw", at("inside")).unwrap();
        symlink("/work/out/a.raw", at("absolute")).unwrap();
        symlink("absolute", at("twice")).unwrap();
        symlink("/etc/passwd", at("escape-absolute")).unwrap();
        symlink("../../../../../../etc/passwd", at("escape-relative")).unwrap();
        symlink("/work/../etc/passwd", at("escape-dots")).unwrap();
        symlink("/etc", at("etc")).unwrap();
        symlink("nothing", at("dangling")).unwrap();
        symlink("loop", at("loop")).unwrap();
        symlink("out", at("to-dir")).unwrap();
        nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        dir
    }

    fn names(work: &Path, globs: &[&str]) -> Result<Vec<String>, OutputError> {
        let outputs: Vec<_> = globs.iter().map(|glob| output(glob)).collect();
        Ok(find(work, &outputs)?.into_iter().map(|found| found.path.to_string()).collect())
    }

    #[test]
    fn globs_find_files_each_once() {
        let dir = work();
        assert_eq!(names(dir.path(), &["out/*", "out/**"]).unwrap(), ["out/a.raw", "out/deep/b.raw"]);
        let found = find(dir.path(), &[output("twice")]).unwrap();
        assert_eq!(fs::read(&found[0].file).unwrap(), b"a", "links that stay inside are followed");
        assert_eq!(names(dir.path(), &["inside", "absolute"]).unwrap(), ["absolute", "inside"]);
    }

    #[test]
    fn what_is_missing_is_named_with_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(names(dir.path(), &["*.raw"]).unwrap_err().to_string().contains("the work directory is empty"));
        fs::write(dir.path().join("disk.img"), "").unwrap();
        let message = names(dir.path(), &["*.raw"]).unwrap_err().to_string();
        assert_eq!(message, "no file matches the output `*.raw`; the work directory has disk.img");
        let optional = OutputSpec { optional: true, ..output("*.raw") };
        assert_eq!(find(dir.path(), &[optional]).unwrap(), []);
    }

    #[test]
    fn of_many_files_the_first_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for n in (0..50).rev() {
            fs::write(dir.path().join(format!("{n:02}")), "").unwrap();
        }
        let message = names(dir.path(), &["*.raw"]).unwrap_err().to_string();
        assert!(message.ends_with("the work directory has 00, 01, 02, 03, 04, 05, 06, 07, 08, 09, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19 and 30 more"), "{message}");
    }

    #[test]
    fn directories_deeper_than_can_be_named_are_the_step_s_fault() {
        let dir = tempfile::tempdir().unwrap();
        // From the inside out: no path that is used here is long.
        let (inner, outer) = (dir.path().join("inner"), dir.path().join("outer"));
        fs::create_dir(&inner).unwrap();
        for _ in 0..20 {
            fs::create_dir(&outer).unwrap();
            fs::rename(&inner, outer.join("d".repeat(250))).unwrap();
            fs::rename(&outer, &inner).unwrap();
        }
        let error = names(dir.path(), &["*.raw"]).unwrap_err();
        assert!(matches!(&error, OutputError::Bad { path, .. } if path.starts_with("inner/ddd")), "{error}");
    }

    #[test]
    fn nothing_outside_and_nothing_but_plain_files() {
        let dir = work();
        for bad in ["escape-absolute", "escape-relative", "escape-dots", "dangling", "loop", "fifo", "etc"] {
            let error = names(dir.path(), &[bad]).unwrap_err();
            assert!(matches!(&error, OutputError::Bad { path, .. } if path == bad), "{bad}: {error}");
        }
        assert!(matches!(names(dir.path(), &["to-dir"]), Err(OutputError::Missing { .. })), "a directory is no file");
        assert!(matches!(names(dir.path(), &["etc/passwd"]), Err(OutputError::Missing { .. })), "not followed");
    }

    #[test]
    fn no_artifact_has_the_name_of_a_file_that_is_being_fetched() {
        let dir = work();
        fs::write(dir.path().join("out/.railyard-a.raw-0123.part"), "").unwrap();
        let message = names(dir.path(), &["out/*"]).unwrap_err().to_string();
        assert!(
            message.starts_with("`out/.railyard-a.raw-0123.part` cannot be an output: names that begin"),
            "{message}"
        );
    }

    #[test]
    fn one_file_may_be_two_artifacts_but_two_files_not_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("disk.raw"), "").unwrap();
        let publish = |glob: &str, compress: &str| OutputSpec {
            publish: Some("images".parse().unwrap()),
            publish_by_channel: None,
            compress: compress.parse().unwrap(),
            ..output(glob)
        };
        let compressed = |glob: &str, compress: &str| OutputSpec { publish: None, ..publish(glob, compress) };
        let outputs =
            [output("disk.raw"), publish("disk.*", "xz:6"), compressed("*", "xz:1"), compressed("*.raw", "none")];
        let found = find(dir.path(), &outputs).unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.path.as_str(), one.compress.to_string(), one.published.as_ref().map(RelPath::as_str)))
            .collect();
        let want =
            [("disk.raw", "none".to_owned(), None), ("disk.raw.xz", "xz:6".to_owned(), Some("images/disk.raw.xz"))];
        assert_eq!(told, want);
        let found = find(dir.path(), &[publish("disk.raw", "auto")]).unwrap();
        assert_eq!(found[0].compress, Compress::None, "published as it is");
        fs::write(dir.path().join("disk.raw.xz"), "").unwrap();
        let message = find(dir.path(), &[output("*.xz"), compressed("*.raw", "xz:6")]).unwrap_err().to_string();
        assert_eq!(message, "`disk.raw` cannot be an output: `disk.raw.xz` would become the artifact disk.raw.xz, too");
    }

    #[test]
    fn what_is_compressed_is_published_where_its_own_output_says() {
        let dir = tempfile::tempdir().unwrap();
        let published = |glob: &str, compress: &str, to: &str| OutputSpec {
            publish: Some(to.parse().unwrap()),
            compress: compress.parse().unwrap(),
            optional: true,
            ..output(glob)
        };
        let outputs = [published("out/*", "auto", "plain"), published("out/text", "xz:6", "packed")];
        let find = || find(dir.path(), &outputs);
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::write(dir.path().join("out/text"), "").unwrap();
        let places: Vec<_> = find().unwrap().into_iter().map(|one| one.published.unwrap().to_string()).collect();
        assert_eq!(places, ["plain/text", "packed/text.xz"]);
        // A file that has the name already: with the other beside it two would be one artifact, and without it nobody who sees
        // the name could tell which output it is of.
        fs::write(dir.path().join("out/text.xz"), "").unwrap();
        for gone in ["nothing", "out/text"] {
            let _ = fs::remove_file(dir.path().join(gone));
            let message = find().unwrap_err().to_string();
            assert!(
                message.starts_with("`out/text.xz` cannot be an output: the output `out/text` gives this name"),
                "{message}"
            );
        }
    }

    #[test]
    fn two_files_cannot_be_published_at_one_path() {
        let dir = work();
        let all = OutputSpec { publish: Some("images".parse().unwrap()), ..output("out/**") };
        let found = find(dir.path(), std::slice::from_ref(&all)).unwrap();
        assert_eq!(found[1].published.as_ref().unwrap().as_str(), "images/b.raw");
        fs::write(dir.path().join("out/b.raw"), "other").unwrap();
        let message = find(dir.path(), &[all]).unwrap_err().to_string();
        assert!(message.contains("published at the same path, images/b.raw"), "{message}");
    }
}
