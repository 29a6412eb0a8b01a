//! A host becomes a worker: a token is exchanged for a certificate, once.
//!
//! ```text
//! DATA/worker.toml      the settings, unless others are named; written once
//! DATA/pki/worker.key   made here, 0600, before anything is asked: a join that is tried again goes on with it
//! DATA/pki/ca.pem       the farm's CA
//! DATA/pki/worker.pem   the certificate, 0600, last: with it, this is a worker
//! DATA/pki/joined-with  the id of the token that it came for
//! ```

use crate::config::WorkerConfig;
use crate::host;
use anyhow::{Context as _, ensure};
use railyard_common::identity::{Identity, Limits, PoolLimit};
use railyard_common::platform::PlatformOffer;
use railyard_common::token::{Token, TokenKind};
use railyard_proto::v1::JoinAs;
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

/// The settings that a worker needs, with a word on those that it may want. What its token limits it to is in them: a worker that
/// offers more is refused.
fn write_settings(path: &Path, url: &str, identity: &Identity, data_dir: &Path) -> anyhow::Result<()> {
    let data_dir = data_dir.canonicalize().with_context(|| format!("cannot find {}", data_dir.display()))?;
    let text = format!(
        "# Written when this host joined the farm; change what you like. docs/operations.md tells what else there is.\n\
         # Certificate and key are in pki/ beside it; the worker renews them.\n\
         controller = {url:?}\nname = {:?}\ndata_dir = {:?}\n{}",
        identity.name,
        data_dir.display().to_string(),
        limits(&identity.limits, &host::found_platforms())?
    );
    tls::write_public(path, &text).map_err(Into::into)
}

/// The lines by which a worker on a host with these platforms keeps within the limits.
fn limits(limits: &Limits, found: &[PlatformOffer]) -> anyhow::Result<String> {
    let mut lines = String::new();
    if !limits.platforms.is_empty() {
        let within = found.iter().filter(|offer| limits.platforms.contains(&offer.platform));
        let within = within.map(|PlatformOffer { platform, emulated }| {
            format!("{{ platform = {:?}, emulated = {emulated} }}", platform.as_str())
        });
        let within: Vec<String> = within.collect();
        let wanted: Vec<&str> = limits.platforms.iter().map(|platform| platform.as_str()).collect();
        ensure!(
            !within.is_empty(),
            "the token is for a worker of {}, and this host runs no such programs; register binfmt and try again with the same \
             token, or ask for another one",
            wanted.join(", ")
        );
        lines += &format!("platforms = [{}]\n", within.join(", "));
    }
    if let PoolLimit::Only(pool) = &limits.pool {
        lines += &format!("pool = {:?}\n", pool.as_str());
    }
    Ok(lines)
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
        let enrolled = enrol::join_with(url, &token.reveal(), &key, JoinAs::Worker).await?;
        let Enrolled { pair, ca_pem, identity, .. } = enrolled;
        tls::write_public(&self.ca, &ca_pem)?;
        tls::write_secret(&self.cert, &pair.cert_pem)?;
        tls::write_public(&self.note(), &format!("{}\n", token.id))?;
        tracing::info!(%identity, url, "joined the farm");
        Ok(identity)
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::platform::Platform;

    #[test]
    fn the_settings_keep_within_the_token() {
        let found = [(Platform::LinuxAmd64, false), (Platform::LinuxArm64, true)];
        let found = found.map(|(platform, emulated)| PlatformOffer { platform, emulated });
        let of = |uri: &str| {
            let identity: Identity = uri.parse().unwrap();
            limits(&identity.limits, &found[..1 + usize::from(!uri.contains("alone"))])
        };
        assert_eq!(of("railyard://worker/any").unwrap(), "");
        assert_eq!(of("railyard://worker/outside?pool=").unwrap(), "");
        let text = of("railyard://worker/w?platform=linux/arm64&pool=signing").unwrap();
        assert_eq!(text, "platforms = [{ platform = \"linux/arm64\", emulated = true }]\npool = \"signing\"\n");
        let missing = of("railyard://worker/alone?platform=linux/arm64").unwrap_err().to_string();
        assert!(missing.contains("a worker of linux/arm64") && missing.contains("binfmt"), "{missing}");
    }
}
