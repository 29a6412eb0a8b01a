//! Keys and certificates on disk.

use super::TlsError;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// A certificate with its private key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PemPair {
    /// The certificate.
    pub cert_pem: String,
    /// Its private key (PKCS#8).
    pub key_pem: String,
}

/// The key stays out of logs.
impl fmt::Debug for PemPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PemPair").field("cert_pem", &self.cert_pem).finish_non_exhaustive()
    }
}

impl PemPair {
    /// Writes `NAME.pem` and `NAME.key` (mode 0600) in `dir`, which is made if missing. Each file appears whole or not
    /// at all; the key comes first, so that a certificate on disk always has its key.
    ///
    /// # Errors
    /// [`TlsError::Write`], which names the file.
    pub fn write(&self, dir: &Path, name: &str) -> Result<(), TlsError> {
        make_dir(dir)?;
        write_atomic(&dir.join(format!("{name}.key")), &self.key_pem, SECRET)?;
        write_atomic(&dir.join(format!("{name}.pem")), &self.cert_pem, PUBLIC)
    }

    /// Reads `NAME.pem` and `NAME.key` in `dir`.
    ///
    /// # Errors
    /// [`TlsError::Read`], which names the file.
    pub fn read(dir: &Path, name: &str) -> Result<Self, TlsError> {
        let cert_pem = read(&dir.join(format!("{name}.pem")))?;
        let key_pem = read(&dir.join(format!("{name}.key")))?;
        Ok(Self { cert_pem, key_pem })
    }
}

/// Writes a text that everybody may read: a certificate, settings. Its directory is made if missing.
///
/// # Errors
/// [`TlsError::Write`], which names the file. It appears whole or not at all.
pub fn write_public(path: &Path, text: &str) -> Result<(), TlsError> {
    path.parent().map_or(Ok(()), make_dir)?;
    write_atomic(path, text, PUBLIC)
}

/// Writes a text that is for its owner only, mode 0600: a key, a token. Its directory is made if missing.
///
/// # Errors
/// As [`write_public`].
pub fn write_secret(path: &Path, text: &str) -> Result<(), TlsError> {
    path.parent().map_or(Ok(()), make_dir)?;
    write_atomic(path, text, SECRET)
}

/// Mode of a certificate.
pub(super) const PUBLIC: u32 = 0o644;
/// Mode of a private key.
pub(super) const SECRET: u32 = 0o600;

pub(super) fn make_dir(dir: &Path) -> Result<(), TlsError> {
    std::fs::create_dir_all(dir).map_err(|source| TlsError::Write { path: dir.to_owned(), source })
}

pub(super) fn read(path: &Path) -> Result<String, TlsError> {
    std::fs::read_to_string(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// Writes beside `path`, then renames over it: a reader sees the old file or the new one, never half of one.
pub(super) fn write_atomic(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let attempt = || -> std::io::Result<()> {
        let mut noise = [0; 8];
        getrandom::fill(&mut noise).map_err(std::io::Error::other)?;
        let part = path.with_added_extension(format!("{}.part", hex::encode(noise)));
        let done = write_new(&part, text, mode).and_then(|()| std::fs::rename(&part, path));
        if done.is_err() {
            // The error that matters is the one at hand; a leftover part is harmless and never read.
            let _ = std::fs::remove_file(&part);
        }
        done?;
        // The parent of a bare name is "", which is this directory.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir)?.sync_all()
    };
    attempt().map_err(|source| TlsError::Write { path: path.to_owned(), source })
}

fn write_new(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
