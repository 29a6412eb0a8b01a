//! A cache, and farms with a journal in memory whose builds have something to publish there.

use super::memory::{Driven, Memory, offer};
use super::watched::{Fault, Strike};
use super::{Backend, Ground};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use railyard_common::blob::{Artifact, Blob};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, JobId, LeaseId};
use railyard_common::job::Placement;
use railyard_common::layout;
use railyard_common::outcome::Outcome;
use railyard_common::path::RelPath;
use railyard_common::pipeline::{Pipeline, Request, Source};
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use railyard_controller::audit::Audit;
use railyard_controller::cache::{Cache, PutMode};
use railyard_controller::driver::Handle;
use railyard_controller::finalize::Finalizer;
use railyard_core::{Event, Next, Trace};
use railyard_service::clock::SystemClock;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::DropGuard;

/// What a build publishes, in the order in which it is placed; sums lie beside them.
pub const FILES: [&str; 3] = ["a/first", "a/second", "b/third"];
/// Rounds at a time.
const AT_A_TIME: usize = 8;

pub const GONE: [Fault; 2] = [Fault::Gone { carried_out: false }, Fault::Gone { carried_out: true }];
pub const ERROR: [Fault; 2] = [Fault::Error { carried_out: false }, Fault::Error { carried_out: true }];

/// A cache with what every round needs.
pub struct Stage {
    pub cache: Arc<dyn Cache>,
    pub blobs: [Blob; 3],
    /// Somebody else's.
    pub other: Blob,
    audit: Audit,
    pub ground: Ground,
}

/// A farm with one build.
pub struct Farm {
    pub farm: Handle,
    pub wake: Arc<Notify>,
    pub build: BuildId,
    pub paths: Vec<RelPath>,
    _stop: DropGuard,
}

impl Stage {
    pub async fn on(backend: Backend) -> Self {
        let ground = Ground::of(backend).await;
        let cache = ground.cache().await;
        let blob = async |text: &'static str| {
            let blob = Blob::plain(Digest::of(text.as_bytes()), text.len() as u64);
            cache.put(&layout::blob(&blob), Bytes::from(text), PutMode::Create).await.unwrap();
            blob
        };
        let blobs = [blob("first").await, blob("second").await, blob("third").await];
        let other = blob("somebody else's").await;
        let audit = Audit::open(&ground.data_dir().join("audit"), Arc::new(SystemClock)).unwrap();
        Self { cache, blobs, other, audit, ground }
    }

    /// Ends the builds of that farm with this cache.
    pub fn finalizer(&self, farm: &Farm, cache: Arc<dyn Cache>) -> Finalizer {
        Finalizer::new(farm.farm.clone(), cache, Arc::new(SystemClock), farm.wake.clone(), self.audit.clone())
    }

    /// What the audit has of acts of one kind.
    pub fn audited(&self, what: &str) -> Vec<Value> {
        let file = self.audit.dir().join("audit-0000000000000001.jsonl");
        let text = std::fs::read_to_string(file).unwrap_or_default();
        let records = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        records.filter(|record: &Value| record["what"] == what).collect()
    }

    /// A build of its own pipeline, which has done its work and is to be written out. What it leaves is published below a directory of
    /// that name, as `publish` says; then the farm has heard of `more`.
    pub fn farm(&self, name: &str, publish: &str, more: impl FnOnce(&BuildId) -> Vec<Event>) -> Farm {
        let outputs: Vec<String> = ["a", "b"]
            .iter()
            .map(|dir| format!("{{ path: '{name}/{dir}/*', publish: '{name}/{publish}{dir}' }}"))
            .collect();
        let text = format!(
            "name: {name}\nplatforms: [linux/amd64]\nsteps:\n  - name: make\n    image: debian\n    script: make\n    outputs: [{}]\n",
            outputs.join(", ")
        );
        let files = BTreeMap::new();
        let pipeline = Pipeline::parse(&Source { file_name: "railyard.yaml", text: &text, files: &files }).unwrap();
        let request = Request::of("1.0".parse().unwrap());
        let plan = Arc::new(pipeline.plan(&request).unwrap());
        let build = plan.build.clone();
        let placement = Placement::new(&plan.jobs[0].run.outputs);
        let artifacts: Vec<Artifact> = FILES
            .iter()
            .zip(self.blobs)
            .map(|(file, blob)| {
                let path: RelPath = format!("{name}/{file}").parse().unwrap();
                let published = placement.of(&path).unwrap().unwrap();
                Artifact { path, blob, media_type: "text/plain".to_owned(), published }
            })
            .collect();
        let paths = artifacts.iter().filter_map(|artifact| artifact.published.clone()).collect();
        let (at, lease) = (Millis(1), LeaseId { job: JobId(1), attempt: 1 });
        let mut events = vec![
            Event::BuildAccepted {
                at,
                plan: plan.clone(),
                first_job: lease.job,
                by: "olga".to_owned(),
                key: None,
                trace: Trace::default(),
                priority: Priority::default(),
                request: String::new(),
            },
            Event::WorkerOnline { at, offer: offer("anvil") },
            Event::JobLeased { at, lease, worker: offer("anvil").name },
            Event::AttemptEnded {
                at,
                lease,
                outcome: Outcome::succeeded(),
                artifacts,
                image: None,
                log_bytes: 0,
                next: Next::End,
            },
        ];
        events.extend(more(&build));
        let Driven { farm, finalize: wake, stop, .. } = Driven::start(Memory(events), Arc::new(SystemClock));
        Farm { farm, wake, build, paths, _stop: stop.drop_guard() }
    }

    /// As many rounds as a finalizer that nothing happens to has calls, with each of these things that may happen.
    pub async fn rounds<F: Future<Output = ()>>(
        &self,
        calls: usize,
        faults: &[Fault],
        round: impl Fn(String, Strike) -> F,
    ) {
        assert!(calls > 10, "only {calls} calls to strike at");
        let strikes = (0..calls).flat_map(|at| faults.iter().map(move |fault| Strike { at, fault: *fault }));
        let rounds = strikes.enumerate().map(|(n, strike)| round(format!("p{n}"), strike));
        stream::iter(rounds).for_each_concurrent(AT_A_TIME, |round| round).await;
    }
}
