//! The directories of one attempt.

use crate::disk::{DiskError, remove_tree};
use railyard_common::id::LeaseId;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Where everything of this worker lies.
#[derive(Clone, Debug)]
pub struct DataDir {
    root: PathBuf,
    host_root: PathBuf,
}

impl DataDir {
    /// Makes `root` if it is missing. `host_root` is the same directory as the engine sees it.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn open(root: &Path, host_root: Option<&Path>) -> Result<Self, DiskError> {
        fs::create_dir_all(root).map_err(DiskError::at("create", root))?;
        let root = root.canonicalize().map_err(DiskError::at("find", root))?;
        let host_root = host_root.map_or_else(|| root.clone(), Path::to_owned);
        let data = Self { root, host_root };
        let jobs = data.jobs();
        let mut private = fs::DirBuilder::new();
        // Sources and secrets of jobs are nobody else's business on this host.
        private.recursive(true).mode(0o700).create(&jobs).map_err(DiskError::at("create", &jobs))?;
        Ok(data)
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Fetched blobs.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// One directory for each attempt.
    pub fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    /// The record of images.
    pub fn images(&self) -> PathBuf {
        self.root.join("images.json")
    }

    /// How much disk was offered when no job used any.
    pub fn offer(&self) -> PathBuf {
        self.root.join("disk-offer")
    }

    /// Held by the one worker that uses the directory.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// A path below this directory as the engine's host sees it.
    pub fn on_host(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).map_or_else(|_| path.to_owned(), |below| self.host_root.join(below))
    }
}

/// The directories of one attempt.
#[derive(Clone, Debug)]
pub struct JobDir {
    root: PathBuf,
}

impl JobDir {
    /// Those of a lease, as they are.
    pub fn of(data: &DataDir, lease: LeaseId) -> Self {
        Self { root: data.jobs().join(lease.to_string()) }
    }

    /// Makes those that are missing.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn create(data: &DataDir, lease: LeaseId) -> Result<Self, DiskError> {
        let dir = Self::of(data, lease);
        for path in [dir.work(), dir.inputs(), dir.scratch(), dir.image()] {
            fs::create_dir_all(&path).map_err(DiskError::at("create", &path))?;
            // The mode must not depend on the worker's umask: a step may run its tools as another user.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(DiskError::at("prepare", &path))?;
        }
        Ok(dir)
    }

    /// Mounted at `/work`.
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// The tree of input files, as the container sees it.
    pub fn inputs(&self) -> PathBuf {
        self.root.join("inputs")
    }

    /// Mounted at `/railyard/script`.
    pub fn script(&self) -> PathBuf {
        self.root.join("script")
    }

    /// Mounted at `/railyard/start`, if the step wants secrets in its environment.
    pub fn start(&self) -> PathBuf {
        self.root.join("start")
    }

    /// The log's file.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The order as it came.
    pub fn order(&self) -> PathBuf {
        self.root.join("order")
    }

    /// How far the attempt has come.
    pub fn state(&self) -> PathBuf {
        self.root.join("state.json")
    }

    /// When the lease was last confirmed.
    pub fn confirmed(&self) -> PathBuf {
        self.root.join("confirmed")
    }

    /// What the engine that hears the container was given to remember.
    pub fn mark(&self) -> PathBuf {
        self.root.join("mark")
    }

    /// The report, from when the attempt is over until it is accepted.
    pub fn report(&self) -> PathBuf {
        self.root.join("report")
    }

    /// Room for what is on its way.
    pub fn scratch(&self) -> PathBuf {
        self.root.join("scratch")
    }

    /// Which parts of the uploads were sent, a file for each blob.
    pub fn parts(&self) -> PathBuf {
        self.root.join("parts")
    }

    /// Room in it for the image that the container becomes.
    pub fn image(&self) -> PathBuf {
        self.scratch().join("image")
    }

    /// Removes what takes room: all but the log, which may still be on its way.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn clear(&self) -> Result<(), DiskError> {
        for path in [self.work(), self.inputs(), self.scratch()] {
            remove_tree(&path).await?;
        }
        Ok(())
    }

    /// Removes all of it.
    ///
    /// # Errors
    /// [`DiskError`].
    pub async fn remove(self) -> Result<(), DiskError> {
        remove_tree(&self.root).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_named_as_the_engine_s_host_sees_them() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path(), Some(Path::new("/srv/w1"))).unwrap();
        let job = JobDir::create(&data, "j1.1".parse().unwrap()).unwrap();
        assert_eq!(data.on_host(&job.work()), Path::new("/srv/w1/jobs/j1.1/work"));
        assert_eq!(data.on_host(Path::new("/elsewhere")), Path::new("/elsewhere"));
    }
}
