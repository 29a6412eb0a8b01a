//! Secrets that operators have stored for steps.
//!
//! ```text
//! DATA/secrets/NAME.json      what is known of it, and the value, sealed
//! DATA/pki/secrets.key        the key, unless `secret_key_file` says where else
//! ```
//! The files are the truth: each use reads them. A secret is in no journal and no backup of the journal; whoever copies the data
//! directory without the key has nothing.

mod seal;

use railyard_common::id::{PipelineName, SecretName, StepName};
use railyard_common::redact::{MIN_SECRET_BYTES, is_maskable};
use railyard_common::secret::{SECRET_MAX_BYTES, SecretScope, SecretValue};
use railyard_common::time::Millis;
use railyard_service::{error_chain, tls};
use seal::{Key, Sealed};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Secrets on record at a time: each is read when they are listed.
pub const SECRETS_MAX: usize = 1_000;
/// What a secret's file has behind its name.
const SUFFIX: &str = ".json";

/// What went wrong with a secret. No message has its value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// It has too few bytes.
    #[error(
        "the secret has {0} bytes without the space around it; at least {MIN_SECRET_BYTES} are needed, because shorter ones cannot be told from ordinary text in \
         logs, and would not be hidden there"
    )]
    Short(usize),
    /// It has too many bytes.
    #[error("the secret has {0} bytes; at most {SECRET_MAX_BYTES} are allowed")]
    Long(usize),
    /// It is for nobody.
    #[error("the secret is for no pipeline; name at least one")]
    NoPipeline,
    /// There are too many.
    #[error("there are {SECRETS_MAX} secrets already; remove some")]
    TooMany,
    /// Another one has that name.
    #[error("there is a secret {name} for {scope}; give this one another name, or replace that one for good")]
    OtherScope {
        /// The name.
        name: SecretName,
        /// Whom it is for.
        scope: SecretScope,
    },
    /// There is none of that name.
    #[error("there is no secret {0}")]
    Unknown(SecretName),
    /// The key cannot be used.
    #[error("the key of the secrets, {}, cannot be used: {why}", path.display())]
    BadKey {
        /// Where it should be.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// It is sealed with another key.
    #[error(
        "secret {0} is sealed with another key than the one in use; bring that key back, or store the secret again"
    )]
    OtherKey(SecretName),
    /// Its file makes no sense.
    #[error("secret {name} cannot be used: {why}; store it again")]
    Damaged {
        /// Which.
        name: SecretName,
        /// What is wrong.
        why: String,
    },
    /// The disk.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file could not be written.
    #[error("cannot write it")]
    Write(#[source] tls::TlsError),
    /// The kernel.
    #[error("the controller's host gives no randomness")]
    NoRandomness,
}

impl SecretError {
    fn damaged(name: &SecretName, why: impl Into<String>) -> Self {
        Self::Damaged { name: name.clone(), why: why.into() }
    }
}

/// A secret without its value.
#[derive(Debug)]
pub struct Listed {
    /// Its name.
    pub name: SecretName,
    /// Who gets it.
    pub scope: SecretScope,
    /// When it was stored.
    pub set_at: Millis,
    /// By whom.
    pub set_by: String,
    /// Why nobody gets it.
    pub fault: Option<SecretError>,
}

/// The farm's secrets.
#[derive(Clone, Debug)]
pub struct Secrets {
    dir: PathBuf,
    key_file: PathBuf,
}

impl Secrets {
    /// Those in `dir`, sealed with the key in `key_file`. Both are made at the first start. A key that is missing or cannot be
    /// used is told, and no reason not to start: whoever needs a secret hears it.
    ///
    /// # Errors
    /// [`SecretError`] if the directory or a first key cannot be made.
    pub fn open(dir: PathBuf, key_file: PathBuf) -> Result<Self, SecretError> {
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        let secrets = Self { dir, key_file };
        // Another key would not open what is there.
        if !secrets.key_file.exists() && secrets.names()?.is_empty() {
            Key::create(&secrets.key_file)?;
        }
        if let Err(error) = Key::read(&secrets.key_file) {
            tracing::error!(error = error_chain(&error), "steps that need a secret cannot run");
        }
        Ok(secrets)
    }

    /// Stores one; `true` if that replaces another of its name. One that is for others is replaced only if `replace` says so: nobody
    /// can read it back.
    ///
    /// # Errors
    /// [`SecretError`].
    pub fn set(
        &self,
        name: SecretName,
        scope: SecretScope,
        (at, by): (Millis, String),
        value: &SecretValue,
        replace: bool,
    ) -> Result<bool, SecretError> {
        if !is_maskable(value.reveal()) {
            return Err(SecretError::Short(value.reveal().trim_ascii().len()));
        }
        if value.reveal().len() > SECRET_MAX_BYTES {
            return Err(SecretError::Long(value.reveal().len()));
        }
        if scope.pipelines.is_empty() {
            return Err(SecretError::NoPipeline);
        }
        let path = self.file(&name);
        let replaces = path.exists();
        if let (false, Ok(Some(there))) = (replace, self.read(&name))
            && there.header.scope != scope
        {
            return Err(SecretError::OtherScope { name, scope: there.header.scope });
        }
        if !replaces && self.names()?.len() >= SECRETS_MAX {
            return Err(SecretError::TooMany);
        }
        let sealed = Key::read(&self.key_file)?.seal(name.clone(), scope, (at, by), value)?;
        let text =
            serde_json::to_string_pretty(&sealed).map_err(|error| SecretError::damaged(&name, error.to_string()))?;
        tls::write_secret(&path, &text).map_err(SecretError::Write)?;
        Ok(replaces)
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// [`SecretError`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, SecretError> {
        let key = Key::read(&self.key_file);
        let mut listed = Vec::new();
        for name in self.names()? {
            listed.push(match self.read(&name) {
                Ok(None) => continue,
                Ok(Some(sealed)) => {
                    let fault = match &key {
                        Ok(key) => key.open(&sealed).err(),
                        Err(_) => Key::read(&self.key_file).err(),
                    };
                    let header = sealed.header;
                    Listed { name, scope: header.scope, set_at: header.set_at, set_by: header.set_by, fault }
                }
                Err(error) => {
                    let (scope, set_by) = (SecretScope { pipelines: [].into(), steps: [].into() }, String::new());
                    Listed { name, scope, set_at: Millis(0), set_by, fault: Some(error) }
                }
            });
        }
        Ok(listed)
    }

    /// Removes one.
    ///
    /// # Errors
    /// [`SecretError::Unknown`], [`SecretError::Io`].
    pub fn remove(&self, name: &SecretName) -> Result<(), SecretError> {
        let path = self.file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(SecretError::Unknown(name.clone())),
            Err(error) => Err(failed("remove", &path)(error)),
            Ok(()) => fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("remove", &path)),
        }
    }

    /// The value, for a step that may have it; `None` if there is none of that name for this step.
    ///
    /// # Errors
    /// [`SecretError`] if it is there and cannot be opened.
    pub fn get(
        &self,
        name: &SecretName,
        pipeline: &PipelineName,
        step: &StepName,
    ) -> Result<Option<SecretValue>, SecretError> {
        let Some(sealed) = self.read(name)?.filter(|sealed| sealed.header.scope.covers(pipeline, step)) else {
            return Ok(None);
        };
        // What the file says of itself counts only when the seal is right.
        Key::read(&self.key_file)?.open(&sealed).map(Some)
    }

    fn file(&self, name: &SecretName) -> PathBuf {
        self.dir.join(format!("{name}{SUFFIX}"))
    }

    fn read(&self, name: &SecretName) -> Result<Option<Sealed>, SecretError> {
        let path = self.file(name);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed("read", &path))?,
        };
        let sealed: Sealed =
            serde_json::from_str(&text).map_err(|error| SecretError::damaged(name, error.to_string()))?;
        if sealed.header.name != *name {
            return Err(SecretError::damaged(name, format!("its file is that of {}", sealed.header.name)));
        }
        Ok(Some(sealed))
    }

    fn names(&self) -> Result<Vec<SecretName>, SecretError> {
        let entries = fs::read_dir(&self.dir).map_err(failed("read", &self.dir))?;
        let mut names = Vec::new();
        for entry in entries {
            let file = entry.map_err(failed("read", &self.dir))?.file_name();
            // Anything else is not ours: a file that was being written when the power went, an editor's copy.
            names.extend(file.to_str().and_then(|file| file.strip_suffix(SUFFIX)?.parse::<SecretName>().ok()));
        }
        names.sort();
        Ok(names)
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SecretError + use<> {
    let path = path.to_owned();
    move |source| SecretError::Io { what, path, source }
}

#[cfg(test)]
mod tests;
