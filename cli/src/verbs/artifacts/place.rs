//! Where each fetched file goes.

use super::Wanted;
use crate::failure::Failure;
use railyard_common::path::RESERVED_PREFIX;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Each file at its path, or below its job's name if another chosen one has the same path.
///
/// # Errors
/// [`Failure::Failed`] if two would be in each other's way, or one in the way of files that are being fetched.
pub(super) fn place(dir: &Path, wanted: Vec<Wanted>) -> Result<Vec<(PathBuf, Wanted)>, Failure> {
    let mut takers: BTreeMap<String, usize> = BTreeMap::new();
    for file in &wanted {
        *takers.entry(file.artifact.path.as_str().to_owned()).or_default() += 1;
    }
    let target = |file: &Wanted| match takers.get(file.artifact.path.as_str()) {
        Some(1) => dir.join(file.artifact.path.as_str()),
        _ => dir.join(file.job.slug()).join(file.artifact.path.as_str()),
    };
    let files: Vec<_> = wanted.into_iter().map(|file| (target(&file), file)).collect();
    check(&files)?;
    Ok(files)
}

fn check(files: &[(PathBuf, Wanted)]) -> Result<(), Failure> {
    if let Some((_, file)) = files.iter().find(|(_, file)| file.artifact.path.is_reserved()) {
        let path = &file.artifact.path;
        return Err(Failure::Failed(format!(
            "{path} of {} cannot be fetched: names that begin with `{RESERVED_PREFIX}` are those of files that are being fetched; choose others",
            file.job
        )));
    }
    let mut sorted: Vec<_> = files.iter().collect();
    // By parts: whatever lies below a target comes right behind it.
    sorted.sort_by(|(a, _), (b, _)| a.cmp(b));
    for pair in sorted.windows(2) {
        let [(first, one), (second, other)] = pair else { continue };
        if second.starts_with(first) {
            let name = |file: &Wanted| format!("{} of {}", file.artifact.path, file.job);
            let how = if first == second {
                "both would be"
            } else {
                "the second needs a directory where the first would be:"
            };
            return Err(Failure::Failed(format!(
                "cannot fetch {} and {} into one directory: {how} {}; fetch them one after the other, by JOB/PATH, with another -o",
                name(one),
                name(other),
                first.display()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::wanted;
    use super::*;

    #[test]
    fn files_of_the_same_path_do_not_overwrite_each_other() {
        let files = place(
            Path::new("d"),
            vec![
                wanted("image@linux/amd64", "out/disk.raw"),
                wanted("image@linux/arm64", "out/disk.raw"),
                wanted("test@linux/amd64", "test.tap"),
            ],
        )
        .unwrap();
        let paths: Vec<&Path> = files.iter().map(|(path, _)| path.as_path()).collect();
        assert_eq!(
            paths,
            [
                Path::new("d/image-linux-amd64/out/disk.raw"),
                Path::new("d/image-linux-arm64/out/disk.raw"),
                Path::new("d/test.tap")
            ]
        );
    }

    #[test]
    fn what_would_be_in_each_other_s_way_is_refused_before_anything_is_fetched() {
        let message = |files| match place(Path::new("d"), files) {
            Err(Failure::Failed(message)) => message,
            other => panic!("{other:?}"),
        };
        let same = vec![
            wanted("c@linux/amd64", "a"),
            wanted("c@linux/amd64", "c-linux-amd64/a"),
            wanted("d@linux/amd64", "a"),
        ];
        assert_eq!(
            message(same),
            "cannot fetch a of c@linux/amd64 and c-linux-amd64/a of c@linux/amd64 into one directory: both would be \
             d/c-linux-amd64/a; fetch them one after the other, by JOB/PATH, with another -o"
        );
        let below = vec![
            wanted("b@linux/amd64", "out/x/y/z"),
            wanted("b@linux/amd64", "out/x-y"),
            wanted("c@linux/amd64", "out/x"),
            wanted("c@linux/amd64", "out/x.y"),
        ];
        let message_below = message(below);
        assert!(
            message_below.starts_with(
                "cannot fetch out/x of c@linux/amd64 and out/x/y/z of b@linux/amd64 into one directory: the second needs a \
                 directory where the first would be: d/out/x;"
            ),
            "{message_below}"
        );
        assert!(message(vec![wanted("b@linux/amd64", "out/.railyard-x")]).contains("`.railyard-`"));
    }
}
