//! What a controller measures, as a collector gets it: each test is a controller in a process of its own, with a story.

use crate::audit::look;
use crate::common::sweeps::{Sweeps, build, farm};
use crate::common::{Backend, Controller, Worker, refused, until};
use crate::restore::{back_up, restored};
use crate::store::Trouble;
use railyard_common::layout;
use railyard_common::retention::Age;
use railyard_common::time::Millis;
use railyard_controller::metrics;
use railyard_proto::v1;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::telemetry;
use railyard_tests::collector::{Collector, Point};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tokio::process::Command;
use tonic::Code;

/// Set in the child: it lives the story, and its metrics leave it.
const CHILD: &str = "RAILYARD_TEST_MEASURED";
/// Stands before what the child says to the test, as JSON.
const TOLD: &str = "what the child tells: ";

/// What came of a story.
struct Measured {
    points: Vec<Point>,
    /// What the child told.
    told: serde_json::Value,
    begun: Millis,
}

/// In the test: runs `test` again, as a process that lives the story, and gives what was measured. In that process: lives it. The
/// variables are read when telemetry is set up, so they must be there from the start.
async fn measure(test: &str, story: impl Future<Output = serde_json::Value>) -> Option<Measured> {
    if std::env::var_os(CHILD).is_some() {
        let telemetry = telemetry::init("controller", "warn").unwrap();
        println!("{TOLD}{}", story.await);
        telemetry.shutdown().await;
        return None;
    }
    let (collector, begun) = (Collector::start(), SystemClock.now());
    let mut child = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTEL_")) {
        child.env_remove(name);
    }
    child.args([test, "--exact", "--nocapture"]).env(CHILD, "1").kill_on_drop(true);
    let child = child.env("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.endpoint).output().await.unwrap();
    let (said, log) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success(), "{said}{log}");
    let told = said.lines().find_map(|line| line.split_once(TOLD)).unwrap_or_else(|| panic!("{said}{log}")).1;
    Some(Measured { points: collector.points(), told: serde_json::from_str(told).unwrap(), begun })
}

impl Measured {
    /// The only point of a metric with these values of its attributes.
    #[track_caller]
    fn point(&self, metric: &str, values: &[&str]) -> &Point {
        let is_it = |point: &&Point| {
            point.metric == metric && point.attributes.values().map(String::as_str).eq(values.iter().copied())
        };
        let found: Vec<&Point> = self.points.iter().filter(is_it).collect();
        assert_eq!(found.len(), 1, "{metric} {values:?}: {:?}", self.points);
        found[0]
    }

    #[track_caller]
    fn value(&self, metric: &str) -> f64 {
        self.point(metric, &[]).value
    }

    /// How often plans or sweeps ended, by who asked and how.
    fn ends(&self, metric: &str) -> Vec<(&str, &str, u64)> {
        let durations = self.points.iter().filter(|point| point.metric == metric);
        let ends = durations.map(|point| {
            let of = |name: &str| point.attributes[name].as_str();
            (of("railyard.sweep.by"), of("railyard.sweep.result"), point.count)
        });
        ends.collect()
    }

    fn names(&self) -> BTreeSet<&str> {
        self.points.iter().map(|point| point.metric.as_str()).collect()
    }

    /// Everything came as it is described.
    fn is_as_described(&self) {
        for point in &self.points {
            assert_eq!(point.resource["service.name"], "railyard-controller");
            let metric = metrics::all().find(|one| one.name == point.metric).unwrap_or_else(|| panic!("{point:?}"));
            let told = (point.kind, point.unit.as_str(), point.about.as_str());
            assert_eq!(told, (metric.kind.as_str(), metric.unit, metric.about), "{point:?}");
            assert_eq!(point.attributes.len(), metric.attributes.len(), "{point:?}");
            for attribute in metric.attributes {
                assert!(attribute.values.contains(&point.attributes[attribute.name].as_str()), "{point:?}");
            }
            if point.kind == "histogram" {
                assert!(point.value > 0.0 && point.value < 60.0, "in seconds: {point:?}");
                assert!(point.bounds.first() < Some(&0.1) && point.bounds.last() > Some(&3_600.0), "{point:?}");
            }
        }
    }

    #[track_caller]
    fn last_success_is_of_the_story(&self) {
        let last = self.value("railyard.sweep.last_success");
        let (begun, now) = ((self.begun.0 / 1_000) as f64, SystemClock.now().0 as f64 / 1_000.0);
        assert!((begun..=now).contains(&last), "{begun} {last} {now}");
    }
}

/// Runs builds `1`, `2`…, each with one file of its own.
async fn builds(controller: &Controller, worker: &mut Worker, count: u32) {
    let person = controller.operator();
    for version in 1..=count {
        build(&person, worker, &version.to_string(), &[("out/disk", format!("made by {version}").as_bytes())]).await;
    }
}

/// Makes a build's manifest one that cannot be read; gives its path and what it was.
fn spoil(controller: &Controller, build: &str) -> (PathBuf, Vec<u8>) {
    let path = controller.objects().join(layout::build_manifest(&build.parse().unwrap()).as_str());
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    (path, whole)
}

/// Plans, sweeps until nothing is left, is refused twice, and plans once more.
async fn by_people() -> serde_json::Value {
    let controller = farm(Backend::Embedded, 1, |_| {}).await;
    let (sweeps, mut worker) = (Sweeps::of(&controller), controller.worker("anvil").await);
    builds(&controller, &mut worker, 3).await;
    sweeps.plan().await;
    let mut reports: Vec<v1::SweepReport> = Vec::new();
    while reports.last().is_none_or(|last| last.reduced + last.forgotten + last.deleted_objects > 0) {
        reports.push(sweeps.run().await);
    }
    let (path, whole) = spoil(&controller, "pub/3");
    refused(sweeps.try_run("").await, Code::FailedPrecondition, "sweep-stopped");
    let plan = sweeps.0.clone().plan_sweep(v1::PlanSweepRequest { objects: false }).await;
    refused(plan, Code::FailedPrecondition, "sweep-stopped");
    controller.audited(&["operator/olga", "\"sweep-plan\"", "\"refused\""]).await;
    std::fs::write(path, whole).unwrap();
    let last = sweeps.plan().await;
    controller.stop().await;
    let sum = |of: fn(&v1::SweepReport) -> u64| reports.iter().map(of).sum::<u64>();
    serde_json::json!({
        "runs": reports.len(),
        "reduced": sum(|one| one.reduced),
        "forgotten": sum(|one| one.forgotten),
        "unpublished": sum(|one| one.unpublished),
        "objects": sum(|one| one.deleted_objects),
        "bytes": sum(|one| one.deleted_bytes),
        "listed_objects": last.listed_objects,
        "listed_bytes": last.listed_bytes,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_people_plan_and_run_is_measured() {
    let Some(measured) = measure("metrics::what_people_plan_and_run_is_measured", by_people()).await else { return };
    measured.is_as_described();
    assert_eq!(measured.names(), metrics::all().map(|one| one.name).collect(), "every metric came");

    let told = |name: &str| measured.told[name].as_u64().unwrap();
    let runs = told("runs");
    // Two were asked for and made, and one was made by each run; without a good manifest one of each was not.
    let plans = [("operator", "refused", 2), ("operator", "success", runs + 2)];
    assert_eq!(measured.ends("railyard.sweep.plan.duration"), plans);
    assert_eq!(measured.ends("railyard.sweep.duration"), [("operator", "refused", 1), ("operator", "success", runs)]);
    measured.last_success_is_of_the_story();

    assert_eq!([told("reduced"), told("forgotten"), told("unpublished")], [2; 3]);
    assert!(told("objects") > 2 && told("bytes") > 22, "{}", measured.told);
    for (metric, of) in [
        ("railyard.sweep.builds.reduced", "reduced"),
        ("railyard.sweep.builds.forgotten", "forgotten"),
        ("railyard.sweep.unpublished.files", "unpublished"),
        ("railyard.sweep.deleted.objects", "objects"),
        ("railyard.sweep.deleted.bytes", "bytes"),
        ("railyard.cache.objects", "listed_objects"),
        ("railyard.cache.bytes", "listed_bytes"),
    ] {
        assert_eq!(measured.value(metric), told(of) as f64, "{metric}");
    }
    assert_eq!(measured.value("railyard.sweep.failures"), 0.0, "it is there before the first");
    let left = ["all", "published", "manifest", "nothing"]
        .map(|keep| measured.point("railyard.retention.builds", &[keep]).value);
    assert_eq!(left, [1.0, 0.0, 0.0, 0.0], "what is gone is counted no more");
}

/// Sweeps by itself, first what there is to do, then in vain.
async fn by_the_schedule() -> serde_json::Value {
    let controller = farm(Backend::Embedded, 1, |config| config.sweep.every = Age { secs: 1 }).await;
    let mut worker = controller.worker("anvil").await;
    builds(&controller, &mut worker, 2).await;
    let recorded = async |is_it: fn(&v1::AuditRecord) -> bool| {
        until("the sweep's record", async || {
            let records = look(&controller, v1::ShowAuditRequest::default()).await;
            assert!(records.iter().all(|one| one.what != "sweep" || one.by == "controller"));
            records.iter().any(|one| one.what == "sweep" && is_it(one)).then_some(())
        })
        .await;
    };
    recorded(|one| one.outcome == "done" && one.details["reduced"] == "1").await;
    spoil(&controller, "pub/2");
    recorded(|one| one.outcome == "refused").await;
    controller.stop().await;
    serde_json::Value::Null
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_schedule_sweeps_is_measured_as_its_own() {
    let test = "metrics::what_the_schedule_sweeps_is_measured_as_its_own";
    let Some(measured) = measure(test, by_the_schedule()).await else { return };
    measured.is_as_described();
    for metric in ["railyard.sweep.plan.duration", "railyard.sweep.duration"] {
        let ends = measured.ends(metric);
        let kinds: Vec<_> = ends.iter().map(|(by, result, _)| (*by, *result)).collect();
        assert_eq!(kinds, [("schedule", "refused"), ("schedule", "success")], "{metric}");
        assert!(ends.iter().all(|(_, _, count)| *count >= 1), "{ends:?}");
    }
    measured.last_success_is_of_the_story();
    assert_eq!(measured.value("railyard.sweep.builds.reduced"), 1.0);
}

/// The state comes from a backup; a plan is shown all the same.
async fn after_a_restore() -> serde_json::Value {
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("farm.backup");
    let controller = farm(Backend::Embedded, 1, |_| {}).await;
    let mut worker = controller.worker("anvil").await;
    builds(&controller, &mut worker, 2).await;
    back_up(&controller, &file).await;
    let controller = restored(controller, Backend::Embedded, &file).await;
    let sweeps = Sweeps::of(&controller);
    refused(sweeps.try_run("").await, Code::FailedPrecondition, "sweep-stopped");
    let plan = sweeps.plan().await;
    assert!(plan.stopped.contains("restored from a backup"), "{}", plan.stopped);
    controller.stop().await;
    serde_json::json!([plan.listed_objects, plan.listed_bytes])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_must_wait_after_a_restore_is_measured_as_refused() {
    let test = "metrics::what_must_wait_after_a_restore_is_measured_as_refused";
    let Some(measured) = measure(test, after_a_restore()).await else { return };
    measured.is_as_described();
    assert_eq!(measured.ends("railyard.sweep.plan.duration"), [("operator", "refused", 2)]);
    assert_eq!(measured.ends("railyard.sweep.duration"), [("operator", "refused", 1)]);
    assert!(!measured.names().contains("railyard.sweep.last_success"), "none has succeeded");
    let listed = ["railyard.cache.objects", "railyard.cache.bytes"].map(|metric| measured.value(metric) as u64);
    assert_eq!(serde_json::json!(listed), measured.told, "what was seen is told");
    assert_eq!(["all", "nothing"].map(|keep| measured.point("railyard.retention.builds", &[keep]).value), [1.0, 1.0]);
}

/// A store that deletes nothing, and then lists nothing.
async fn with_a_bad_store() -> serde_json::Value {
    let controller = farm(Backend::S3, 1, |_| {}).await;
    let sweeps = Sweeps::of(&controller);
    for text in ["x", "y"] {
        let file =
            controller.objects().join(layout::blob(&crate::common::transfers::blob_of(text.as_bytes())).as_str());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }
    let rules = &controller.store().unwrap().rules;
    rules.set(|request| {
        let query = request.uri.query().unwrap_or_default();
        let deletes = request.method == http::Method::DELETE || query.starts_with("delete");
        deletes.then_some(Trouble::Refuse(403))
    });
    let report = sweeps.run().await;
    rules.set(|request| (request.method == http::Method::GET).then_some(Trouble::Refuse(403)));
    let plan = sweeps.0.clone().plan_sweep(v1::PlanSweepRequest { objects: false }).await;
    refused(plan, Code::Unavailable, "busy");
    controller.stop().await;
    serde_json::json!([report.deleted_objects, report.failures])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_bad_store_spoils_is_measured_as_an_error() {
    let test = "metrics::what_a_bad_store_spoils_is_measured_as_an_error";
    let Some(measured) = measure(test, with_a_bad_store()).await else { return };
    measured.is_as_described();
    assert_eq!(measured.told, serde_json::json!([0, 2]));
    assert_eq!(measured.value("railyard.sweep.failures"), 2.0);
    assert_eq!(measured.value("railyard.sweep.deleted.objects"), 0.0);
    let plans = [("operator", "error", 1), ("operator", "success", 1)];
    assert_eq!(measured.ends("railyard.sweep.plan.duration"), plans);
    assert_eq!(measured.ends("railyard.sweep.duration"), [("operator", "error", 1)]);
    assert!(!measured.names().contains("railyard.sweep.last_success"), "none has succeeded");
}
