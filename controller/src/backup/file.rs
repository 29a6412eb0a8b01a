//! The backup's file.
//!
//! ```text
//! railyard-backup\n
//! {"format":1,"made_at":…,"software":"0.1.0","builds":12,…}\n      for people and programs: `head -2 FILE`
//! zstd of a tar: snapshot, pki/ca.pem, pki/ca.key, …, secrets/NAME.json (sealed), …, client.toml
//! SHA-256 of all that, 64 hex digits and \n
//! ```

use super::BackupError;
use crate::journal;
use railyard_common::time::Millis;
use railyard_core::{Farm, Snapshot};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

/// The format that is written; all up to it are read.
const FORMAT: u32 = 1;
const MAGIC: &[u8] = b"railyard-backup\n";
/// Hex digits and a newline.
const TRAILER_BYTES: usize = 65;
/// Snapshots shrink some ten times.
const ZSTD_LEVEL: i32 = 3;
const SNAPSHOT: &str = "snapshot";
/// Who has the file can be anybody in the farm.
const SECRET: u32 = 0o600;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The format of the file.
    pub format: u32,
    /// When, in milliseconds since 1970.
    pub made_at: Millis,
    /// The version of this software.
    pub software: String,
    /// Builds in it.
    pub builds: usize,
    /// Where the farm's data was.
    pub data_dir: PathBuf,
    /// The controller's configuration file, if it was named: it is not in the backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
}

/// A backup in memory.
#[derive(Debug)]
pub struct Backup {
    /// What it says of itself.
    pub about: About,
    /// The farm's state.
    pub snapshot: Snapshot,
    /// Keys, certificates and client settings: path below the data directory, mode, bytes.
    pub files: BTreeMap<PathBuf, (u32, Vec<u8>)>,
}

impl Backup {
    /// Puts a farm's state and the small files of its data directory together.
    ///
    /// # Errors
    /// [`BackupError`] if a file cannot be read, or the directory has no authority.
    pub fn new(
        snapshot: Snapshot,
        data_dir: &Path,
        config: Option<&Path>,
        made_at: Millis,
    ) -> Result<Self, BackupError> {
        let farm = Farm::restore(snapshot);
        let about = About {
            format: FORMAT,
            made_at,
            software: railyard_common::VERSION.to_owned(),
            builds: farm.builds().count(),
            data_dir: std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned()),
            config: config.map(|path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned())),
        };
        Ok(Self { about, snapshot: farm.snapshot(), files: small_files(data_dir)? })
    }
}

/// `pki/*`, `secrets/*` and `client.toml`.
fn small_files(data_dir: &Path) -> Result<BTreeMap<PathBuf, (u32, Vec<u8>)>, BackupError> {
    let pki = data_dir.join("pki");
    if !pki.join("ca.key").is_file() {
        return Err(BackupError::NoFarm { path: data_dir.to_owned(), missing: "pki/ca.key" });
    }
    let mut files = BTreeMap::new();
    let mut paths = vec![data_dir.join("client.toml")];
    let secrets = data_dir.join("secrets");
    for dir in [&pki, &secrets].into_iter().filter(|dir| dir.is_dir()) {
        for entry in std::fs::read_dir(dir).map_err(BackupError::io("list", dir))? {
            paths.push(entry.map_err(BackupError::io("list", dir))?.path());
        }
    }
    for path in paths.into_iter().filter(|path| path.is_file()) {
        let bytes = std::fs::read(&path).map_err(BackupError::io("read", &path))?;
        let mode = path.metadata().map_err(BackupError::io("read", &path))?.permissions().mode() & 0o777;
        if let Ok(name) = path.strip_prefix(data_dir) {
            files.insert(name.to_owned(), (mode, bytes));
        }
    }
    Ok(files)
}

/// Writes a backup: the file appears whole or not at all, and only its owner may read it.
///
/// # Errors
/// [`BackupError::Io`]
pub fn write(backup: &Backup, to: &Path) -> Result<(), BackupError> {
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let bytes = encode(backup).map_err(BackupError::io("put together", to))?;
    // Temporary files are made with mode 0600.
    let mut staged = tempfile::NamedTempFile::new_in(dir).map_err(BackupError::io("write in", dir))?;
    staged.write_all(&bytes).map_err(BackupError::io("write", to))?;
    staged.as_file().set_permissions(Permissions::from_mode(SECRET)).map_err(BackupError::io("write", to))?;
    staged.as_file().sync_all().map_err(BackupError::io("sync", to))?;
    staged.persist(to).map_err(|error| BackupError::io("write", to)(error.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(BackupError::io("sync", dir))
}

fn encode(backup: &Backup) -> std::io::Result<Vec<u8>> {
    let mut bytes = MAGIC.to_vec();
    serde_json::to_writer(&mut bytes, &backup.about)?;
    bytes.push(b'\n');
    let mut archive = tar::Builder::new(zstd::Encoder::new(bytes, ZSTD_LEVEL)?);
    let mut add = |path: &Path, mode: u32, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_mtime(backup.about.made_at.0 / 1000);
        archive.append_data(&mut header, path, data)
    };
    add(Path::new(SNAPSHOT), SECRET, &journal::encode_snapshot(&backup.snapshot))?;
    for (path, (mode, data)) in &backup.files {
        add(path, *mode, data)?;
    }
    let mut bytes = archive.into_inner()?.finish()?;
    let sum = hex::encode(Sha256::digest(&bytes));
    bytes.extend_from_slice(sum.as_bytes());
    bytes.push(b'\n');
    Ok(bytes)
}

/// Reads a backup and verifies all of it.
///
/// # Errors
/// [`BackupError::Damaged`], [`BackupError::TooNew`], [`BackupError::Io`].
pub fn read(from: &Path) -> Result<Backup, BackupError> {
    let damaged = |why: String| BackupError::Damaged { path: from.to_owned(), why };
    let bytes = std::fs::read(from).map_err(BackupError::io("read", from))?;
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(damaged("it does not begin with `railyard-backup`".to_owned()));
    };
    let Some((content, trailer)) = bytes.len().checked_sub(TRAILER_BYTES).map(|at| bytes.split_at(at)) else {
        return Err(damaged("it is cut off".to_owned()));
    };
    let sum = hex::encode(Sha256::digest(content));
    if trailer[..TRAILER_BYTES - 1] != *sum.as_bytes() || trailer[TRAILER_BYTES - 1] != b'\n' {
        return Err(damaged("its checksum is not that of its bytes; it is cut off or altered".to_owned()));
    }
    let rest = &rest[..rest.len() - TRAILER_BYTES];
    let end = rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("it has no header".to_owned()))?;
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let version: Version = serde_json::from_slice(&rest[..end]).map_err(|error| damaged(error.to_string()))?;
    if version.format > FORMAT {
        return Err(BackupError::TooNew { path: from.to_owned(), found: version.format, known: FORMAT });
    }
    let about: About = serde_json::from_slice(&rest[..end]).map_err(|error| damaged(error.to_string()))?;
    let mut files = unpack(&rest[end + 1..]).map_err(|error| damaged(error.to_string()))?;
    let snapshot = files.remove(Path::new(SNAPSHOT)).ok_or_else(|| damaged("the state is not in it".to_owned()))?;
    let snapshot = journal::decode_snapshot(&snapshot.1, from)?;
    Ok(Backup { about, snapshot, files })
}

fn unpack(packed: &[u8]) -> std::io::Result<BTreeMap<PathBuf, (u32, Vec<u8>)>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(zstd::Decoder::new(packed)?);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        if !path.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(std::io::Error::other(format!("{} leads out of the data directory", path.display())));
        }
        let mode = entry.header().mode()? & 0o777;
        let mut data = Vec::new();
        entry.read_to_end(&mut data)?;
        files.insert(path, (mode, data));
    }
    Ok(files)
}
