//! Jobs and what they leave, with plain defaults.

use railyard_common::blob::{Artifact, Blob, Image, media_type_of};
use railyard_common::digest::Digest;
use railyard_common::id::JobName;
use railyard_common::job::{Capacity, ImageSource, JobSpec, RunSpec};
use std::collections::BTreeMap;
use std::sync::Arc;

/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// A job that needs nothing: 1 cpu, 1 GiB of memory and of disk, one slot, no retries, the default lease TTL of two minutes.
pub fn job_spec(name: JobName) -> JobSpec {
    JobSpec {
        name,
        needs: Vec::new(),
        image: ImageSource::Registry("debian:bookworm".to_owned()),
        inputs: Vec::new(),
        lease_ttl_secs: 120,
        retries: 0,
        approval: None,
        concurrency: None,
        pool: None,
        labels: BTreeMap::new(),
        run: Arc::new(RunSpec {
            script: "true".to_owned(),
            env: BTreeMap::new(),
            outputs: Vec::new(),
            commit: false,
            resources: Capacity { cpu_millis: 1000, memory_bytes: GIB, disk_bytes: GIB, slots: 1 },
            timeout_secs: 3600,
            silence_timeout_secs: 0,
            privileged: false,
            devices: Vec::new(),
            capabilities: Vec::new(),
            network_none: false,
            host_paths: Vec::new(),
            secrets: Vec::new(),
        }),
    }
}

/// A file of that path; its bytes are its path.
pub fn artifact(path: &str) -> Result<Artifact, String> {
    let path = path.parse().map_err(|error| format!("{error}"))?;
    let bytes = format!("{path}");
    Ok(Artifact {
        media_type: media_type_of(&bytes).to_owned(),
        blob: Blob::plain(Digest::of(bytes.as_bytes()), bytes.len() as u64),
        published: None,
        path,
    })
}

/// An image of one layer whose configuration is `config`.
pub fn image(config: &str) -> Image {
    let blob = |text: &str| Blob::plain(Digest::of(text.as_bytes()), text.len() as u64);
    Image { config: blob(config), layers: vec![blob("layer")] }
}
