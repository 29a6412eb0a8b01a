//! What the operator allows is in the settings, which the controller only reads. A change of it is seen at the next start, or when the
//! settings are read again, by the digests of what held before.

use crate::audit::{Act, Audit, Entry};
use crate::config::ControllerConfig;
use railyard_common::digest::Digest;
use railyard_service::{error_chain, tls};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Beside the journal: the digests of what was allowed before, one line for each part.
const FILE: &str = "policy.digest";

/// A part of the settings by which an operator says who may what, what is kept, and what one client may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `[[policy]]` and `[untrusted]`.
    Policy,
    /// `[[retention]]`.
    Retention,
    /// `[sweep]`.
    Sweep,
    /// Whether everybody may read the cache.
    PublicRead,
    /// `[limits]`, and how long a log may be.
    Limits,
    /// How long certificates are good.
    Certificates,
}

impl Part {
    /// Every part.
    pub const ALL: [Self; 6] =
        [Self::Policy, Self::Retention, Self::Sweep, Self::PublicRead, Self::Limits, Self::Certificates];
    /// Those that hold as soon as the settings are read again.
    pub const RELOADED: [Self; 3] = [Self::Policy, Self::Retention, Self::Sweep];

    /// Its name in records and in the file.
    fn as_str(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Retention => "retention",
            Self::Sweep => "sweep",
            Self::PublicRead => "public_read",
            Self::Limits => "limits",
            Self::Certificates => "certificates",
        }
    }

    fn digest(self, config: &ControllerConfig) -> Result<String, serde_json::Error> {
        fn of(value: impl Serialize) -> Result<String, serde_json::Error> {
            serde_json::to_vec(&value).map(|text| Digest::of(&text).to_string())
        }
        match self {
            Self::Policy => of((&config.policy, &config.untrusted)),
            Self::Retention => of(&config.retention),
            Self::Sweep => of(&config.sweep),
            Self::PublicRead => of(config.cache().is_public()),
            Self::Limits => of((&config.limits, config.log_max.as_u64())),
            Self::Certificates => of((config.worker_certificate_secs, config.person_certificate_secs)),
        }
    }

    /// The record of its change, with what it says now as far as that is short.
    fn entry(self, config: &ControllerConfig) -> Entry {
        let entry = Entry::new(Act::PolicyChange).target(self.as_str());
        match self {
            Self::Policy => {
                let rules: Vec<&str> = config.policy.iter().map(|rule| rule.name.as_str()).collect();
                let rules = if rules.is_empty() { "none".to_owned() } else { rules.join(", ") };
                let entry = entry.detail("rules", rules);
                match &config.untrusted.pool {
                    Some(pool) => entry.detail("untrusted_pool", pool.as_str()),
                    None => entry,
                }
            }
            Self::Retention => entry.detail("rules", config.retention.len().to_string()),
            Self::Sweep | Self::Limits => entry,
            Self::PublicRead => entry.detail("public_read", config.cache().is_public().to_string()),
            Self::Certificates => {
                let entry = entry.detail("worker_certificate_secs", config.worker_certificate_secs.to_string());
                entry.detail("person_certificate_secs", config.person_certificate_secs.to_string())
            }
        }
    }
}

/// Records which of these parts differ from what held before. What cannot be recorded or noted now is found at the next start: on a
/// full disk the controller starts all the same.
pub async fn note(config: &ControllerConfig, audit: &Audit, parts: &[Part]) {
    if let Err(why) = note_now(config, audit, parts).await {
        tracing::error!(%why, "whether the policy has changed is not recorded; it is looked at again at the next start");
    }
}

async fn note_now(config: &ControllerConfig, audit: &Audit, parts: &[Part]) -> Result<(), String> {
    let path: PathBuf = config.data_dir.join(FILE);
    let before = read(&path)?;
    let mut now = before.clone();
    for part in parts {
        let digest = part.digest(config).map_err(|error| error_chain(&error))?;
        let known = now.insert(part.as_str().to_owned(), digest.clone());
        // Without one it is the first start of a controller that looks at this part.
        let Some(known) = known.filter(|known| *known != digest) else { continue };
        let entry = part.entry(config).detail("before", known).detail("after", digest);
        audit.record(entry).await.map_err(|error| error_chain(&error))?;
    }
    if now == before {
        return Ok(());
    }
    let text: String = now.iter().map(|(part, digest)| format!("{part} {digest}\n")).collect();
    tls::write_public(&path, &text).map_err(|error| error_chain(&error))
}

fn read(path: &Path) -> Result<BTreeMap<String, String>, String> {
    match std::fs::read_to_string(path) {
        // A line with a digest alone is of the time when only the policy was looked at.
        Ok(text) => Ok(text
            .lines()
            .map(|line| line.split_once(' ').unwrap_or((Part::Policy.as_str(), line)))
            .map(|(part, digest)| (part.to_owned(), digest.trim().to_owned()))
            .collect()),
        // The first start.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}
