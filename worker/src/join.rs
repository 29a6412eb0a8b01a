//! A host becomes a worker: a token is exchanged for a certificate, once.
//!
//! ```text
//! DATA/worker.toml      the settings, unless others are named; written once
//! DATA/pki/worker.key   made here, 0600, before anything is asked: a join that is tried again goes on with it
//! DATA/pki/ca.pem       the farm's CA
//! DATA/pki/worker.pem   the certificate, last: with it, this is a worker
//! DATA/pki/joined-with  the id of the token that it came for
//! ```

use crate::config::WorkerConfig;
use anyhow::{Context as _, ensure};
use railyard_common::identity::{Identity, Role};
use railyard_common::token::{Token, TokenKind};
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::enrol::{self, Enrolled};
use railyard_service::tls::{self, KeyRequest};
use std::path::{Path, PathBuf};

/// Where a worker that joins without settings keeps everything.
pub const DATA_DIR: &str = "/var/lib/railyard-worker";

/// The settings of a worker in its data directory.
pub const SETTINGS: &str = "worker.toml";

/// Joins the farm at `url`, unless that was done with this token before; gives the settings to work with. With `settings`, the
/// worker has its own; else they are made in `data_dir`, or are there from before.
///
/// # Errors
/// If the token is not taken, or a file cannot be read or written, or the settings are another worker's.
pub async fn join(url: &str, token: &str, settings: Option<&Path>, data_dir: &Path) -> anyhow::Result<WorkerConfig> {
    let url = url.trim_end_matches('/');
    let token = Token::parse(token, TokenKind::Join)?;
    let made = data_dir.join(SETTINGS);
    let config = match settings {
        Some(path) => Some(load(path)?),
        None if made.is_file() => Some(load(&made)?),
        None => None,
    };
    if let Some(config) = &config {
        ensure!(
            config.controller.trim_end_matches('/') == url,
            "the settings say that the controller is {}, not {url}; give the one URL in both places",
            config.controller
        );
    }
    let data_dir = config.as_ref().map_or(data_dir, |config| &config.data_dir);
    let files = config.as_ref().map_or_else(|| Files::in_dir(&data_dir.join("pki")), WorkerConfig::files);
    let identity = match files.joined_with(&token)? {
        Some(identity) => identity,
        None => files.join(url, &token).await?,
    };
    let config = match config {
        Some(config) => config,
        None => {
            write_settings(&made, url, &identity, data_dir)?;
            load(&made)?
        }
    };
    ensure!(
        config.name.as_str() == identity.name,
        "the token is for worker {}, and the settings are {}'s; set `name`, or ask for another token",
        identity.name,
        config.name
    );
    Ok(config)
}

fn load(path: &Path) -> anyhow::Result<WorkerConfig> {
    Ok(railyard_service::config::load(path)?)
}

/// The settings that a worker needs, with a word on those that it may want.
fn write_settings(path: &Path, url: &str, identity: &Identity, data_dir: &Path) -> anyhow::Result<()> {
    let data_dir = data_dir.canonicalize().with_context(|| format!("cannot find {}", data_dir.display()))?;
    let text = format!(
        "# Written when this host joined the farm; change what you like. docs/operations.md tells what else there is.\n\
         # Certificate and key are in pki/ beside it; the worker renews them.\n\
         controller = {url:?}\nname = {:?}\ndata_dir = {:?}\n",
        identity.name,
        data_dir.display().to_string()
    );
    tls::write_public(path, &text).map_err(Into::into)
}

/// Where certificate, key and CA lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The farm's CA certificate (PEM).
    pub ca: PathBuf,
    /// The worker's certificate (PEM).
    pub cert: PathBuf,
    /// The worker's private key (PEM).
    pub key: PathBuf,
}

impl Files {
    /// As [`join`] makes them.
    pub fn in_dir(pki: &Path) -> Self {
        Self { ca: pki.join("ca.pem"), cert: pki.join("worker.pem"), key: pki.join("worker.key") }
    }

    fn note(&self) -> PathBuf {
        self.cert.with_file_name("joined-with")
    }

    /// Who this is already, if that came with the same token and is still good.
    fn joined_with(&self, token: &Token) -> anyhow::Result<Option<Identity>> {
        let known = std::fs::read_to_string(self.note()).unwrap_or_default();
        if known.trim() != token.id.to_string() || !self.cert.is_file() {
            return Ok(None);
        }
        let cert_pem = read(&self.cert)?;
        let left = tls::secs_left(&cert_pem, SystemClock.now())?;
        Ok(if left > 0 { Some(tls::identity_of_pem(&cert_pem)?) } else { None })
    }

    async fn join(&self, url: &str, token: &Token) -> anyhow::Result<Identity> {
        let key = match self.key.is_file() {
            true => {
                KeyRequest::from_pem(&read(&self.key)?).with_context(|| format!("{} is damaged", self.key.display()))?
            }
            false => {
                let key = KeyRequest::generate()?;
                tls::write_secret(&self.key, &key.key_pem())?;
                key
            }
        };
        let Enrolled { pair, ca_pem, identity, .. } = enrol::join_with(url, &token.reveal(), &key).await?;
        ensure!(
            identity.role == Role::Worker,
            "this token is for {identity}, not for a worker; `railyard login` takes it"
        );
        tls::write_public(&self.ca, &ca_pem)?;
        tls::write_public(&self.cert, &pair.cert_pem)?;
        tls::write_public(&self.note(), &format!("{}\n", token.id))?;
        tracing::info!(%identity, url, "joined the farm");
        Ok(identity)
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
