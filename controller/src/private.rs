//! What is only the controller's to read: its state and the logs of what runs say what others may not see.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Makes a directory for the controller's user only, and closes one that is there and open to others: older versions made such.
///
/// # Errors
/// If it cannot be made. One of another owner is left as it is: whoever made it knows why.
pub(crate) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mode = fs::metadata(dir)?.permissions().mode();
    if mode & 0o077 != 0
        && let Err(error) = fs::set_permissions(dir, Permissions::from_mode(mode & !0o077))
    {
        tracing::warn!(dir = %dir.display(), %error, "others can look into this directory");
    }
    Ok(())
}

/// How a file is opened that is made for the controller's user only.
pub(crate) fn file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_closed_to_others_whoever_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let (new, old) = (dir.path().join("data/new"), dir.path().join("old"));
        fs::create_dir(&old).unwrap();
        fs::set_permissions(&old, Permissions::from_mode(0o755)).unwrap();
        for path in [&new, &old, &old] {
            make_dir(path).unwrap();
            assert_eq!(mode(path), 0o700);
        }
        file().write(true).create_new(true).open(new.join("file")).unwrap();
        assert_eq!(mode(&new.join("file")), 0o600);
    }
}
