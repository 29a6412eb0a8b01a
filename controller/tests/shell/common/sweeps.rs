//! A farm that sweeps when it is told, and what it leaves.

use super::people::Person;
use super::pipelines::PUBLISH;
use super::transfers::blob_of;
use super::worker::lease;
use super::{Backend, Controller, Worker};
use railyard_common::layout;
use railyard_common::retention::{Age, Rule};
use railyard_controller::ControllerConfig;
use railyard_proto::v1;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use railyard_service::tls::Role;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tonic::Status;
use tonic::transport::Channel;

/// A farm that keeps `keep_last` builds, sweeps when it is told, and waits for nobody.
pub async fn farm(backend: Backend, keep_last: u32, change: impl FnOnce(&mut ControllerConfig)) -> Controller {
    Controller::start_on_with(backend, |config| {
        config.retention = vec![Rule { keep_last, keep_failed: 1, ..Rule::default() }];
        config.sweep.every = Age::default();
        config.sweep.grace = Age::default();
        change(config);
    })
    .await
}

/// Who sweeps.
pub struct Sweeps(pub AdminServiceClient<Channel>);

impl Sweeps {
    pub fn of(controller: &Controller) -> Self {
        Self(AdminServiceClient::new(controller.channel(Some((Role::Operator, "olga")))))
    }

    pub async fn plan(&self) -> v1::SweepPlan {
        self.0.clone().plan_sweep(v1::PlanSweepRequest { objects: true }).await.unwrap().into_inner()
    }

    pub async fn try_run(&self, digest: &str) -> Result<v1::SweepReport, Status> {
        let request = v1::RunSweepRequest { digest: digest.to_owned() };
        let mut steps = self.0.clone().run_sweep(request).await?.into_inner();
        let mut last = None;
        while let Some(step) = steps.message().await? {
            last = step.report.or(last);
        }
        Ok(last.expect("a sweep ends with a report"))
    }

    pub async fn run(&self) -> v1::SweepReport {
        self.try_run("").await.unwrap()
    }

    /// Sweeps until there is nothing to do: tombstones first, then what lies under them.
    pub async fn settle(&self) {
        for _ in 0..8 {
            let report = self.run().await;
            assert_eq!(report.failures, 0, "{}", report.first_failure);
            if (report.reduced, report.forgotten, report.deleted_objects) == (0, 0, 0) {
                return;
            }
        }
        panic!("the sweeps never come to an end");
    }
}

/// Runs one build of [`PUBLISH`] with these files.
pub async fn build(person: &Person, worker: &mut Worker, version: &str, files: &[(&str, &[u8])]) -> String {
    let build = person.submit(PUBLISH, version).await;
    let lease = lease(&worker.order().await);
    worker.succeed_with(lease, files).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    build
}

/// Files below a directory, relative to it.
pub fn files(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut dirs = vec![PathBuf::from(root)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                dirs.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                // The service's own notes.
                let is_note = path.split('/').any(|part| part.starts_with('.'));
                found.extend((!is_note).then_some(path));
            }
        }
    }
    found
}

/// Whether the cache has a blob of these bytes.
pub fn there(controller: &Controller, bytes: &[u8]) -> bool {
    controller.objects().join(layout::blob(&blob_of(bytes)).as_str()).exists()
}
