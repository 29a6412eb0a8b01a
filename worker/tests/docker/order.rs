//! Orders, with what most tests do not care about filled in.

use crate::engine::native;
use railyard_common::id::{JobId, LeaseId};
use railyard_common::job::{Capacity, OutputSpec, RunSpec};
use railyard_common::order::{Order, OrderImage};
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn lease(job: u64) -> LeaseId {
    LeaseId { job: JobId(job), attempt: 1 }
}

/// A job that runs `script` in `image`.
pub fn order(job: u64, image: &str, script: &str) -> Order {
    Order {
        lease: lease(job),
        build: "test/1.0+x".parse().unwrap(),
        job: format!("step{job}@{}", native()).parse().unwrap(),
        ttl_millis: 60_000,
        image: OrderImage::Registry(image.to_owned()),
        inputs: Vec::new(),
        run: Arc::new(RunSpec {
            script: script.to_owned(),
            env: BTreeMap::new(),
            outputs: Vec::new(),
            commit: false,
            resources: Capacity { cpu_millis: 1000, memory_bytes: 64 << 20, disk_bytes: 0, slots: 1 },
            timeout_secs: 60,
            silence_timeout_secs: 0,
            privileged: false,
            devices: Vec::new(),
            capabilities: Vec::new(),
            network_none: true,
            host_paths: Vec::new(),
            secrets: Vec::new(),
        }),
        traceparent: String::new(),
    }
}

pub fn output(glob: &str) -> OutputSpec {
    OutputSpec {
        glob: glob.parse().unwrap(),
        publish: None,
        publish_by_channel: None,
        optional: false,
        compress: Default::default(),
    }
}
