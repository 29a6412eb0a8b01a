//! The secrets of running steps: files in memory, one directory for each lease, there from when the worker begins with the step
//! until its container has ended.
//!
//! ```text
//! /run/railyard-FARM-WORKER/LEASE/NAME
//! ```
//! **Invariants:** a secret lies on a tmpfs or nowhere, below a directory that is this worker's alone. What has been removed is
//! not written any more.

use crate::config::WorkerConfig;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;
use railyard_common::id::{LeaseId, SecretName};
use railyard_common::secret::SecretValue;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Metadata, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where a tmpfs is on most hosts.
const USUAL: [&str; 2] = ["/run", "/dev/shm"];
/// The worker's directory.
const PRIVATE: u32 = 0o700;
/// What a container sees of it: a step may run its tools as another user, and a worker need not run as root.
const SEEN_DIR: u32 = 0o755;
const SEEN_FILE: u32 = 0o444;
const PERMISSIONS: u32 = 0o777;

/// Why a step cannot have its secrets here.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// There is no file system in memory.
    #[error(
        "no tmpfs is known here that secrets could lie on: {0}; name a directory on one with `secrets_dir` in the worker's settings"
    )]
    NoTmpfs(String),
    /// Somebody else has made the directory.
    #[error("{} is not this worker's alone: it belongs to user {owner} and has mode {mode:o}; remove it", path.display())]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Its permissions.
        mode: u32,
    },
    /// They were removed before they were written.
    #[error("{0} is over")]
    Over(LeaseId),
    /// The system.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Where the secrets of this worker's steps are. All calls but [`Self::begin`] block. Clones share what has begun.
#[derive(Clone, Debug)]
pub struct SecretsDir {
    /// The tmpfs that the settings name.
    chosen: Option<PathBuf>,
    /// The worker is in a container: what it calls `/run` is not what the engine calls so.
    is_apart: bool,
    name: String,
    /// The leases whose secrets may be written. Held while anything is written or removed.
    begun: Arc<Mutex<BTreeSet<LeaseId>>>,
}

impl SecretsDir {
    /// Of a worker of that farm.
    pub fn new(config: &WorkerConfig, farm: &str) -> Self {
        Self {
            chosen: config.secrets_dir.clone(),
            is_apart: config.host_data_dir.is_some(),
            name: format!("railyard-{farm}-{}", config.name),
            begun: Arc::default(),
        }
    }

    /// Whether secrets can be kept here, as far as can be seen without any.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn check(&self) -> Result<(), SecretsError> {
        let own = self.own()?;
        match fs::symlink_metadata(&own) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("look at", &own)(error)),
            Ok(meta) => is_private(&own, &meta),
        }
    }

    /// The secrets of a lease may be written, until they are removed. To be called before the write waits for a thread: whoever
    /// stops the attempt meanwhile removes them first, and must not find them there later.
    pub fn begin(&self, lease: LeaseId) {
        self.begun().insert(lease);
    }

    /// Where a lease's secrets are, or would be.
    ///
    /// # Errors
    /// [`SecretsError::NoTmpfs`].
    pub fn of(&self, lease: LeaseId) -> Result<PathBuf, SecretsError> {
        Ok(self.own()?.join(lease.to_string()))
    }

    /// Writes the secrets of a lease that has begun, in the place of what is there.
    ///
    /// # Errors
    /// [`SecretsError`], also if they have been removed since it began.
    pub fn write(&self, lease: LeaseId, secrets: &[(SecretName, SecretValue)]) -> Result<PathBuf, SecretsError> {
        let begun = self.begun();
        if !begun.contains(&lease) {
            return Err(SecretsError::Over(lease));
        }
        let dir = self.of(lease)?;
        remove_dir(&dir)?;
        self.make_own()?;
        DirBuilder::new().mode(PRIVATE).create(&dir).map_err(failed("create", &dir))?;
        for (name, value) in secrets {
            let path = dir.join(name.as_str());
            let file = OpenOptions::new().write(true).create_new(true).mode(SEEN_FILE).open(&path);
            file.and_then(|mut file| file.write_all(value.reveal())).map_err(failed("write", &path))?;
            // Whatever the worker's umask is.
            fs::set_permissions(&path, Permissions::from_mode(SEEN_FILE)).map_err(failed("write", &path))?;
        }
        fs::set_permissions(&dir, Permissions::from_mode(SEEN_DIR)).map_err(failed("write", &dir))?;
        Ok(dir)
    }

    /// The secrets of a lease, as they were written, by this process or the one before.
    ///
    /// # Errors
    /// [`SecretsError`], also if there are none.
    pub fn read(&self, lease: LeaseId) -> Result<Vec<SecretValue>, SecretsError> {
        let dir = self.of(lease)?;
        let mut values = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed("read", &dir))? {
            let path = entry.map_err(failed("read", &dir))?.path();
            values.push(SecretValue::new(fs::read(&path).map_err(failed("read", &path))?));
        }
        Ok(values)
    }

    /// Removes the secrets of a lease, and the worker's directory with the last. None there is fine.
    ///
    /// # Errors
    /// [`SecretsError::Io`].
    pub fn remove(&self, lease: LeaseId) -> Result<(), SecretsError> {
        let mut begun = self.begun();
        begun.remove(&lease);
        // Without a tmpfs there are none.
        let Ok(own) = self.own() else { return Ok(()) };
        remove_dir(&own.join(lease.to_string()))?;
        // Not empty: other steps have theirs.
        let _ = fs::remove_dir(&own);
        Ok(())
    }

    /// The directories of all leases but `keep`.
    ///
    /// # Errors
    /// [`SecretsError::Io`].
    pub fn others(&self, keep: &BTreeSet<LeaseId>) -> Result<Vec<PathBuf>, SecretsError> {
        let Ok(own) = self.own() else { return Ok(Vec::new()) };
        let entries = match fs::read_dir(&own) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("read", &own))?,
        };
        let mut others = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("read", &own))?;
            let lease = entry.file_name().to_str().and_then(|name| name.parse::<LeaseId>().ok());
            if lease.is_none_or(|lease| !keep.contains(&lease)) {
                others.push(entry.path());
            }
        }
        Ok(others)
    }

    fn begun(&self) -> MutexGuard<'_, BTreeSet<LeaseId>> {
        self.begun.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn own(&self) -> Result<PathBuf, SecretsError> {
        if let Some(chosen) = &self.chosen {
            is_in_memory(chosen).map_err(SecretsError::NoTmpfs)?;
            return Ok(chosen.join(&self.name));
        }
        if self.is_apart {
            let why = "this worker runs in a container, and mounts are resolved on the engine's host".to_owned();
            return Err(SecretsError::NoTmpfs(why));
        }
        let mut why = Vec::new();
        for usual in USUAL.map(Path::new) {
            match is_in_memory(usual) {
                Ok(()) => return Ok(usual.join(&self.name)),
                Err(not) => why.push(not),
            }
        }
        Err(SecretsError::NoTmpfs(why.join(", ")))
    }

    /// Makes the worker's directory. On a tmpfs that everybody may write to, somebody else may have been first.
    fn make_own(&self) -> Result<(), SecretsError> {
        let own = self.own()?;
        match DirBuilder::new().mode(PRIVATE).create(&own) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed("create", &own)(error)),
            _ => {}
        }
        let meta = fs::symlink_metadata(&own).map_err(failed("look at", &own))?;
        is_private(&own, &meta)
    }
}

/// Whether the worker's directory is one that it has made.
fn is_private(own: &Path, meta: &Metadata) -> Result<(), SecretsError> {
    let (owner, mode) = (meta.uid(), meta.mode() & PERMISSIONS);
    match meta.is_dir() && owner == geteuid().as_raw() && mode == PRIVATE {
        true => Ok(()),
        false => Err(SecretsError::Foreign { path: own.to_owned(), owner, mode }),
    }
}

fn remove_dir(dir: &Path) -> Result<(), SecretsError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(failed("remove", dir)),
    }
}

/// Whether `dir` is on a tmpfs that this process may write to; why not.
fn is_in_memory(dir: &Path) -> Result<(), String> {
    let shown = dir.display();
    let found = statfs(dir).map_err(|error| format!("{shown}: {error}"))?;
    if found.filesystem_type() != TMPFS_MAGIC {
        return Err(format!("{shown} is no tmpfs"));
    }
    nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).map_err(|error| format!("{shown}: {error}"))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretsError + use<> {
    let path = path.to_owned();
    move |source| SecretsError::Io { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir(chosen: Option<&Path>, name: &str) -> SecretsDir {
        let chosen = chosen.map(Path::to_owned);
        SecretsDir { chosen, is_apart: false, name: name.to_owned(), begun: Arc::default() }
    }

    fn write(dir: &SecretsDir, lease: LeaseId, secrets: &[(SecretName, SecretValue)]) -> Result<PathBuf, SecretsError> {
        dir.begin(lease);
        dir.write(lease, secrets)
    }

    fn tmpfs() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").unwrap()
    }

    fn lease(text: &str) -> LeaseId {
        text.parse().unwrap()
    }

    fn secret(name: &str, value: &str) -> (SecretName, SecretValue) {
        (name.parse().unwrap(), SecretValue::new(value.as_bytes().to_vec()))
    }

    #[test]
    fn secrets_are_in_memory_for_their_lease_and_gone_with_it() {
        let room = tmpfs();
        let secrets = dir(Some(room.path()), "railyard-f-w");
        let one = write(&secrets, lease("j1.1"), &[secret("key", "old")]).unwrap();
        assert_eq!(write(&secrets, lease("j1.1"), &[secret("key", "value one"), secret("b", "two")]).unwrap(), one);
        write(&secrets, lease("j2.1"), &[secret("key", "other")]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & PERMISSIONS;
        assert_eq!(mode(one.parent().unwrap()), PRIVATE, "nobody else on this host looks in");
        assert_eq!([mode(&one), mode(&one.join("key"))], [SEEN_DIR, SEEN_FILE]);
        let mut values: Vec<_> =
            secrets.read(lease("j1.1")).unwrap().iter().map(|value| value.reveal().to_vec()).collect();
        values.sort();
        assert_eq!(values, [b"two".to_vec(), b"value one".to_vec()]);

        assert_eq!(secrets.others(&[lease("j2.1")].into()).unwrap(), [one]);
        secrets.remove(lease("j1.1")).unwrap();
        assert!(secrets.read(lease("j1.1")).is_err() && secrets.read(lease("j2.1")).is_ok());
        secrets.remove(lease("j2.1")).unwrap();
        secrets.remove(lease("j2.1")).unwrap();
        assert!(secrets.others(&BTreeSet::new()).unwrap().is_empty());
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0, "nothing is left");
    }

    #[test]
    fn what_has_been_removed_is_not_written_any_more() {
        let room = tmpfs();
        let secrets = dir(Some(room.path()), "railyard-f-w");
        let late = secrets.clone();
        late.begin(lease("j1.1"));
        write(&secrets, lease("j2.1"), &[secret("key", "of another")]).unwrap();
        // Whoever stops the attempt is first.
        secrets.remove(lease("j1.1")).unwrap();
        assert!(matches!(late.write(lease("j1.1"), &[secret("key", "value")]), Err(SecretsError::Over(_))));
        assert_eq!(fs::read_dir(room.path().join("railyard-f-w")).unwrap().count(), 1, "the other's");
        secrets.remove(lease("j2.1")).unwrap();
        assert!(late.write(lease("j2.1"), &[secret("key", "value")]).is_err());
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
        // The next attempt of that name may.
        assert!(write(&late, lease("j1.1"), &[secret("key", "value")]).is_ok());
    }

    #[test]
    fn secrets_are_never_put_on_a_disk() {
        let disk = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let secrets = dir(Some(disk.path()), "railyard-f-w");
        let error = write(&secrets, lease("j1.1"), &[secret("key", "value")]).unwrap_err().to_string();
        assert!(error.contains("is no tmpfs") && error.contains("`secrets_dir`"), "{error}");
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
        assert!(matches!(secrets.check(), Err(SecretsError::NoTmpfs(_))));
        let apart = SecretsDir { is_apart: true, ..dir(None, "railyard-f-w") };
        assert!(write(&apart, lease("j1.1"), &[]).unwrap_err().to_string().contains("runs in a container"));
        assert!(secrets.others(&BTreeSet::new()).unwrap().is_empty());
    }

    #[test]
    fn a_directory_that_others_may_use_is_not_taken() {
        let room = tmpfs();
        let secrets = dir(Some(room.path()), "railyard-f-w");
        let own = room.path().join("railyard-f-w");
        fs::create_dir(&own).unwrap();
        fs::set_permissions(&own, Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(write(&secrets, lease("j1.1"), &[]), Err(SecretsError::Foreign { mode: 0o777, .. })));
        assert!(matches!(secrets.check(), Err(SecretsError::Foreign { mode: 0o777, .. })));
        fs::remove_dir(&own).unwrap();
        secrets.check().unwrap();
        let elsewhere = tmpfs();
        std::os::unix::fs::symlink(elsewhere.path(), &own).unwrap();
        assert!(matches!(write(&secrets, lease("j1.1"), &[]), Err(SecretsError::Foreign { .. })));
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}
