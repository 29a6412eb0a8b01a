//! What the operator allows is in the settings, which the controller only reads. A change of it is seen at the next start, by the
//! digest of what held before.

use crate::audit::{Act, Audit, Entry};
use crate::config::ControllerConfig;
use railyard_common::digest::Digest;
use railyard_service::{error_chain, tls};
use std::io;
use std::path::Path;

/// Beside the journal: the digest of what was allowed at the last start.
const FILE: &str = "policy.digest";

/// Records that `[[policy]]` or `[untrusted]` differ from those of the last start. What cannot be recorded or noted now is found
/// at the next start: on a full disk the controller starts all the same.
pub async fn note(config: &ControllerConfig, audit: &Audit) {
    let path = config.data_dir.join(FILE);
    if let Err(why) = note_at(&path, config, audit).await {
        tracing::error!(%why, "whether the policy has changed is not recorded; it is looked at again at the next start");
    }
}

async fn note_at(path: &Path, config: &ControllerConfig, audit: &Audit) -> Result<(), String> {
    let allowed = serde_json::to_vec(&(&config.policy, &config.untrusted)).map_err(|error| error_chain(&error))?;
    let digest = Digest::of(&allowed).to_string();
    match std::fs::read_to_string(path) {
        Ok(before) if before.trim() == digest => return Ok(()),
        Ok(before) => {
            let entry = entry(config).detail("before", before.trim()).detail("after", &digest);
            audit.record(entry).await.map_err(|error| error_chain(&error))?;
        }
        // The first start.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
    }
    tls::write_public(path, &format!("{digest}\n")).map_err(|error| error_chain(&error))
}

fn entry(config: &ControllerConfig) -> Entry {
    let rules: Vec<&str> = config.policy.iter().map(|rule| rule.name.as_str()).collect();
    let rules = if rules.is_empty() { "none".to_owned() } else { rules.join(", ") };
    let entry = Entry::new(Act::PolicyChange).target("policy").detail("rules", rules);
    match &config.untrusted.pool {
        Some(pool) => entry.detail("untrusted_pool", pool.as_str()),
        None => entry,
    }
}
