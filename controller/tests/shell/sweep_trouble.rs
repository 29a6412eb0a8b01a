//! Sweeps of a cache that fails, or of one that is not what it seems: when nothing may go at all, and what goes all the same.

use crate::audit;
use crate::common::disk::{Immutable, Unreadable};
use crate::common::people::submission;
use crate::common::pipelines::PUBLISH;
use crate::common::sweeps::{Sweeps, build, farm, files, there};
use crate::common::transfers::blob_of;
use crate::common::worker::{failed, lease, report};
use crate::common::{Backend, Controller, on_both, refused, until};
use crate::restore::{back_up, restored};
use crate::store::Trouble;
use railyard_common::layout;
use railyard_common::retention::Keep;
use railyard_proto::v1;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::{Code, Status};

on_both!(
    half_a_view_deletes_nothing,
    after_a_restore_nothing_goes_before_somebody_has_looked,
    of_a_name_that_was_given_again_after_the_backup_the_new_build_stays,
    a_build_that_only_the_cache_knows_is_deleted_by_force,
    published_files_go_whose_blob_is_lost,
    what_a_build_of_nobody_was_about_to_publish_goes,
    thousands_of_objects_go_though_requests_fail,
);

/// More than three pages of a listing.
const ORPHANS: u32 = 3_200;
/// One of so many makes trouble.
const ONE_IN: usize = 20;

/// Blobs of nobody, of four bytes each.
fn orphans(controller: &Controller) -> Vec<String> {
    let objects = controller.objects();
    let orphan = |n: u32| {
        let path = layout::blob(&blob_of(&n.to_le_bytes())).to_string();
        let file = objects.join(&path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "1234").unwrap();
        path
    };
    (0..ORPHANS).map(orphan).collect()
}

/// What the audit says of sweeps that were refused, as soon as it has so many.
async fn refused_sweeps(controller: &Controller, count: usize) -> Vec<v1::AuditRecord> {
    until("the records of what was refused", async || {
        let mut records = audit::look(controller, v1::ShowAuditRequest::default()).await;
        records.retain(|record| (record.what.as_str(), record.outcome.as_str()) == ("sweep", "refused"));
        (records.len() >= count).then_some(records)
    })
    .await
}

async fn half_a_view_deletes_nothing(backend: Backend) {
    let controller = farm(backend, 2, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    for version in ["1", "2", "3"] {
        build(&person, &mut worker, version, &[("out/disk", version.as_bytes())]).await;
    }
    sweeps.run().await;
    let stops = async |what: &str| {
        let told = refused(sweeps.try_run("").await, Code::FailedPrecondition, "sweep-stopped");
        assert!(told.contains(what), "{told}");
        assert!(there(&controller, b"1"), "nothing is deleted");
    };
    let objects = controller.objects();
    let hidden = objects.with_file_name("hidden");
    for (path, says) in [
        ("builds/pub/3/build.json".to_owned(), "builds/pub/3/build.json"),
        (layout::blob(&blob_of(b"2")).to_string(), "pub/2 needs"),
    ] {
        std::fs::rename(objects.join(&path), &hidden).unwrap();
        stops(says).await;
        std::fs::rename(&hidden, objects.join(&path)).unwrap();
    }
    let manifest = objects.join("builds/pub/3/build.json");
    let whole = std::fs::read(&manifest).unwrap();
    std::fs::write(&manifest, &whole[..whole.len() / 2]).unwrap();
    stops("the manifest of pub/3 cannot be read").await;
    std::fs::write(&manifest, whole).unwrap();
    sweeps.settle().await;
    assert!(!there(&controller, b"1") && there(&controller, b"2"));
    // One that reduces, three that must not be, one that deletes, and one that has nothing to do.
    audit::assert_sweeps(&controller).await;
}

async fn after_a_restore_nothing_goes_before_somebody_has_looked(backend: Backend) {
    let controller = farm(backend, 1, |_| {}).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    for version in ["1", "2"] {
        build(&person, &mut worker, version, &[("out/disk", version.as_bytes())]).await;
    }
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("farm.backup");
    back_up(&controller, &file).await;
    // Of this one the backup knows nothing.
    build(&person, &mut worker, "3", &[("out/disk", b"3")]).await;

    let controller = restored(controller, backend, &file).await;
    let sweeps = Sweeps::of(&controller);
    let told = refused(sweeps.try_run("").await, Code::FailedPrecondition, "sweep-stopped");
    assert!(told.contains("restored from a backup"), "{told}");
    let plan = sweeps.plan().await;
    assert!(plan.stopped.contains("railyard gc resume"), "{}", plan.stopped);
    refused(delete(&controller, "pub/3", true).await, Code::FailedPrecondition, "sweep-stopped");
    let unknown = plan.builds.iter().find(|one| one.build == "pub/3").unwrap();
    assert_eq!((unknown.keep.as_str(), unknown.why.len()), ("all", 1));
    controller.audited(&["operator/olga", "\"sweep-plan\"", "\"stopped\"", "restored from a backup", "\"done\""]).await;

    assert!(sweeps.0.clone().resume_sweep(v1::ResumeSweepRequest {}).await.unwrap().into_inner().resumed);
    controller
        .audited(&["operator/olga", "\"policy-change\"", "\"target\":\"sweep\"", "\"resumed\"", "\"done\""])
        .await;
    assert_eq!(controller.audit_lines(&["\"what\":\"sweep\"", "\"refused\"", "restored from a backup"]), 1);
    sweeps.settle().await;
    assert!(there(&controller, b"3"), "its manifest speaks for it");
    let told = refused(person.try_submit(submission(PUBLISH, "3")).await, Code::AlreadyExists, "build-exists");
    assert!(told.contains("builds/pub/3/build.json"), "{told}");
    assert_eq!(controller.cached("images/3/disk").await.unwrap(), "3");
    assert!(!there(&controller, b"1") && there(&controller, b"2"));
    assert!(!sweeps.0.clone().resume_sweep(v1::ResumeSweepRequest {}).await.unwrap().into_inner().resumed);
}

async fn a_build_that_only_the_cache_knows_is_deleted_by_force(backend: Backend) {
    let controller = farm(backend, 5, |_| {}).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1", &[("out/disk", b"1")]).await;
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("farm.backup");
    back_up(&controller, &file).await;
    for version in ["2", "3"] {
        build(&person, &mut worker, version, &[("out/disk", version.as_bytes())]).await;
    }
    // Two that publish the same bytes at the same place.
    let alike = PUBLISH.replace("{{ version }}", "alike");
    assert_ne!(alike, PUBLISH);
    for version in ["5", "6", "7"] {
        let untrusted = version == "7";
        let request = v1::SubmitRequest { untrusted, ..submission(&alike, version) };
        let build = person.try_submit(request).await.unwrap().build;
        let held = lease(&worker.order().await);
        worker.succeed_with(held, &[("out/disk", b"of both")]).await;
        assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    }
    let controller = restored(controller, backend, &file).await;
    let (sweeps, person) = (Sweeps::of(&controller), controller.operator());
    sweeps.0.clone().resume_sweep(v1::ResumeSweepRequest {}).await.unwrap();

    let told = refused(delete(&controller, "pub/2", false).await, Code::FailedPrecondition, "build-needed");
    assert!(told.contains("does not know who needs it") && told.contains("--force"), "{told}");
    refused(delete(&controller, "pub/4", true).await, Code::NotFound, "unknown-build");
    delete(&controller, "pub/2", true).await.unwrap();
    refused(delete(&controller, "pub/2", true).await, Code::NotFound, "unknown-build");
    assert_eq!(controller.cached("images/2/disk").await, None, "nobody gets it any more");
    delete(&controller, "pub/5", true).await.unwrap();
    assert_eq!(controller.cached("images/alike/disk").await.unwrap(), "of both", "the other one published it, too");
    delete(&controller, "pub/6", true).await.unwrap();
    delete(&controller, "pub/7.untrusted", true).await.unwrap();
    assert_eq!(controller.cached("images/alike/disk").await, None);
    let lists = controller.cached_json("builds/pub/builds.json").await;
    let versions: Vec<_> = lists["builds"].as_array().unwrap().iter().map(|one| one["version"].as_str()).collect();
    assert_eq!(versions, [Some("3"), Some("1")]);
    let graves = lists["tombstones"].as_array().unwrap();
    let graves: BTreeSet<_> = graves.iter().map(|one| (one["version"].as_str(), one["why"].as_str())).collect();
    // One that is untrusted has never been listed.
    assert_eq!(graves, ["2", "5", "6"].map(|version| (Some(version), Some("wrong key"))).into());
    controller.audited(&["operator/olga", "\"sweep-begin\"", "\"target\":\"pub/2\""]).await;
    controller.audited(&["operator/olga", "\"delete\"", "pub/2", "wrong key", "\"done\""]).await;

    // Of this one nobody can say what it published, or what it needs.
    std::fs::write(controller.objects().join("builds/pub/3/build.json"), "{").unwrap();
    refused(sweeps.try_run("").await, Code::FailedPrecondition, "sweep-stopped");
    delete(&controller, "pub/3", true).await.unwrap();
    sweeps.settle().await;
    assert!(there(&controller, b"1") && !there(&controller, b"2") && !there(&controller, b"3"));
    let left = files(&controller.objects());
    assert!(!left.iter().any(|path| path.starts_with("builds/pub/2/") || path.starts_with("logs/pub/2/")), "{left:?}");

    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "2", &[("out/disk", b"another")]).await;
    assert_eq!(controller.cached("images/2/disk").await.unwrap(), "another");
    until("the new one in the list", async || {
        let lists = controller.cached_json("builds/pub/builds.json").await;
        (lists["builds"][0]["version"] == "2").then_some(())
    })
    .await;
}

async fn delete(controller: &Controller, build: &str, force: bool) -> Result<(), Status> {
    let request = v1::DeleteBuildRequest { build: build.to_owned(), why: "wrong key".to_owned(), force };
    controller.operator().rpc.clone().delete_build(request).await.map(drop)
}

/// What the backup has of the build whose name is given again after it.
#[derive(Clone, Copy, Debug)]
enum Before {
    Whole,
    /// Retention has deleted it, and its grace is not over.
    Deleted,
    /// Retention has left its manifest.
    Manifest,
    /// It has failed and left nothing else, and no rule keeps it.
    Failed,
}

/// A build was deleted since the backup, and its name was given again. The state that came back knows the first one.
async fn of_a_name_that_was_given_again_after_the_backup_the_new_build_stays(backend: Backend) {
    for before in [Before::Whole, Before::Deleted, Before::Manifest, Before::Failed] {
        given_again(backend, before).await;
    }
}

async fn given_again(backend: Backend, before: Before) {
    let controller = farm(backend, 1, |config| {
        let rule = &mut config.retention[0];
        match before {
            Before::Whole => rule.keep_last = 5,
            Before::Failed => (rule.keep_last, rule.keep_failed) = (5, 0),
            Before::Deleted => {}
            Before::Manifest => rule.old = Keep::Manifest,
        }
    })
    .await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    match before {
        Before::Failed => {
            let first = person.submit(PUBLISH, "1").await;
            let held = lease(&worker.order().await);
            worker.try_report(report(held, failed("exit code 1"))).await.unwrap();
            assert_eq!(person.ended(&first).await.state(), v1::BuildState::Failed);
        }
        _ => drop(build(&person, &mut worker, "1", &[("out/disk", b"first")]).await),
    }
    build(&person, &mut worker, "2", &[("out/disk", b"other")]).await;
    if matches!(before, Before::Deleted | Before::Manifest) {
        assert_eq!(sweeps.run().await.reduced, 1, "{before:?}");
    }
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("farm.backup");
    back_up(&controller, &file).await;
    if !matches!(before, Before::Deleted) {
        delete(&controller, "pub/1", true).await.unwrap();
    }
    sweeps.settle().await;
    assert!(!there(&controller, b"first"), "{before:?}");
    build(&person, &mut worker, "1", &[("out/disk", b"second")]).await;

    let controller = restored(controller, backend, &file).await;
    let sweeps = Sweeps::of(&controller);
    assert!(sweeps.0.clone().resume_sweep(v1::ResumeSweepRequest {}).await.unwrap().into_inner().resumed);
    sweeps.settle().await;
    assert!(
        there(&controller, b"second") && there(&controller, b"other"),
        "{before:?}: their manifests speak for them"
    );
    assert_eq!(controller.cached("images/1/disk").await.unwrap(), "second", "{before:?}");
    // First what the state knows by that name goes, then what the cache has.
    if !matches!(before, Before::Deleted) {
        delete(&controller, "pub/1", true).await.unwrap();
        sweeps.settle().await;
    }
    assert!(there(&controller, b"second"), "{before:?}");
    delete(&controller, "pub/1", true).await.unwrap();
    sweeps.settle().await;
    assert!(!there(&controller, b"second") && there(&controller, b"other"), "{before:?}");
}

/// What a build published is its own, though the cache has lost the blob.
async fn published_files_go_whose_blob_is_lost(backend: Backend) {
    let controller = farm(backend, 5, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    for version in ["1", "2"] {
        build(&person, &mut worker, version, &[("out/disk", version.as_bytes())]).await;
    }
    std::fs::remove_file(controller.objects().join(layout::blob(&blob_of(b"1")).as_str())).unwrap();
    let told = refused(sweeps.try_run("").await, Code::FailedPrecondition, "sweep-stopped");
    assert!(told.contains("railyard delete pub/1 --force"), "{told}");
    delete(&controller, "pub/1", true).await.unwrap();
    sweeps.settle().await;
    assert_eq!(controller.cached("images/1/disk").await, None);
    assert_eq!(controller.cached("images/2/disk").await.unwrap(), "2");
    build(&person, &mut worker, "1", &[("out/disk", b"other bytes")]).await;
    assert_eq!(controller.cached("images/1/disk").await.unwrap(), "other bytes");
}

/// It was publishing when its farm was lost, and the backup is of before it was submitted.
async fn what_a_build_of_nobody_was_about_to_publish_goes(backend: Backend) {
    let controller = farm(backend, 5, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1", &[("out/disk", b"1"), ("out/same", b"same")]).await;
    let objects = controller.objects();
    let write = |path: &str, bytes: &[u8]| {
        let file = objects.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, bytes).unwrap();
    };
    write("images/9/disk", b"9");
    write("images/9/foreign", b"of somebody else");
    let paths: serde_json::Value = [
        ("images/9/disk", blob_of(b"9")),
        ("images/9/foreign", blob_of(b"9")),
        ("images/9/later", blob_of(b"9")),
        ("images/1/same", blob_of(b"same")),
    ]
    .map(|(path, blob)| (path.to_owned(), serde_json::to_value(blob).unwrap()))
    .into_iter()
    .collect();
    write("builds/pub/9/placing.json", serde_json::json!({ "paths": paths }).to_string().as_bytes());
    sweeps.settle().await;
    let left = files(&objects);
    assert!(!left.contains("images/9/disk") && !left.contains("builds/pub/9/placing.json"), "{left:?}");
    assert!(left.contains("images/9/foreign") && left.contains("images/1/same"), "{left:?}");
}

async fn thousands_of_objects_go_though_requests_fail(backend: Backend) {
    let controller = farm(backend, 1, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1", &[("out/disk", b"1")]).await;
    let orphans = orphans(&controller);
    let batches = Arc::new(AtomicUsize::new(0));
    if let Some(store) = controller.store() {
        let (mut asked, batches) = (0u32, batches.clone());
        store.rules.set(move |request| {
            let query = request.uri.query().unwrap_or_default();
            let concerned = request.method == http::Method::DELETE
                || (request.method == http::Method::POST && query.starts_with("delete"))
                || (request.method == http::Method::GET && query.contains("list-type"));
            asked += u32::from(concerned);
            batches.fetch_add(usize::from(concerned && request.method != http::Method::GET), Ordering::Relaxed);
            // Every twentieth, and what the client itself tries again meets it sooner or later.
            (concerned && asked.is_multiple_of(ONE_IN as u32)).then_some(Trouble::Refuse(503))
        });
    }
    let report = sweeps.run().await;
    assert_eq!(
        (report.deleted_objects, report.deleted_bytes, report.failures),
        (3_200, 12_800, 0),
        "{}",
        report.first_failure
    );
    assert!(batches.load(Ordering::Relaxed) < 20, "many objects in one request");
    let left = files(&controller.objects());
    assert!(orphans.iter().all(|path| !left.contains(path)));
    assert!(there(&controller, b"1"));
}

/// A farm with a build that is kept and one that is deleted, both with all their objects.
async fn one_stays_and_one_goes() -> (Controller, Sweeps) {
    let controller = farm(Backend::Embedded, 1, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    for version in ["1", "2"] {
        build(&person, &mut worker, version, &[("out/disk", version.as_bytes())]).await;
    }
    assert_eq!(sweeps.run().await.reduced, 1);
    (controller, sweeps)
}

#[tokio::test]
async fn directories_that_cannot_be_read_stop_the_sweep_of_an_embedded_cache() {
    let (controller, sweeps) = one_stays_and_one_goes().await;
    let orphans = orphans(&controller);
    let objects = controller.objects();
    let before = files(&objects);
    let shards = std::fs::read_dir(objects.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let mut shards: Vec<PathBuf> = shards.collect();
    shards.sort();
    let unreadable: Vec<Unreadable> = shards.iter().skip(7).step_by(ONE_IN).map(|dir| Unreadable::at(dir)).collect();
    assert!(unreadable.len() > 10, "{} of {} directories", unreadable.len(), shards.len());

    let told = refused(sweeps.try_run("").await, Code::Unavailable, "busy");
    let first = shards[7].to_str().unwrap();
    for part in ["so nothing is deleted", first, "not connected"] {
        assert!(told.contains(part), "{told}");
    }
    let [record] = &refused_sweeps(&controller, 1).await[..] else { panic!("one sweep was refused") };
    assert!(record.reason.contains(first), "{record:?}");
    drop(unreadable);
    assert!(files(&objects) == before, "nothing is deleted");

    sweeps.settle().await;
    let left = files(&objects);
    assert!(orphans.iter().all(|path| !left.contains(path)));
    assert!(!there(&controller, b"1") && there(&controller, b"2"));
    assert_eq!(controller.cached("images/2/disk").await.unwrap(), "2");
}

#[tokio::test]
async fn what_an_embedded_cache_cannot_remove_is_told_and_goes_with_a_later_sweep() {
    let (controller, sweeps) = one_stays_and_one_goes().await;
    let person = controller.operator();
    let orphans = orphans(&controller);
    let objects = controller.objects();
    // A published file is another name of its blob.
    let own = layout::blob(&blob_of(b"1")).to_string();
    let stuck: Vec<&String> = orphans.iter().step_by(ONE_IN).chain([&own]).collect();
    let held = Immutable::of(stuck.iter().map(|path| objects.join(path)).collect());

    let report = sweeps.run().await;
    let went = u64::from(ORPHANS) - (stuck.len() as u64 - 1);
    assert_eq!(report.failures, stuck.len() as u64 + 1, "and the published file: {}", report.first_failure);
    assert!(report.first_failure.contains("Operation not permitted"), "{}", report.first_failure);
    assert!(report.deleted_objects >= went && report.deleted_bytes >= went * 4, "{report:?}");
    let left = files(&objects);
    let blobs: Vec<&String> =
        left.iter().filter(|path| path.starts_with("blobs/") && !path.ends_with("~end")).collect();
    assert_eq!(blobs.len(), stuck.len() + 1, "and the blob that is kept");
    assert!(stuck.iter().all(|path| left.contains(*path)) && there(&controller, b"2"));
    // The farm does not forget what is not gone, and its manifest says what that is.
    assert_eq!((report.forgotten, report.left), (0, 0), "nobody wants any of it");
    let records =
        audit::look(&controller, v1::ShowAuditRequest { what: "sweep".to_owned(), ..Default::default() }).await;
    let told = &records.last().unwrap().details;
    assert_eq!(
        (told["failures"].as_str(), &told["first_failure"]),
        (report.failures.to_string().as_str(), &report.first_failure)
    );
    assert!(left.contains("images/1/disk") && left.contains("builds/pub/1/build.json"), "{left:?}");
    refused(person.try_build("pub/1").await, Code::NotFound, "build-deleted");

    drop(held);
    let report = sweeps.run().await;
    assert_eq!((report.failures, report.forgotten), (0, 1), "{}", report.first_failure);
    let left = files(&objects);
    assert!(stuck.iter().all(|path| !left.contains(*path)), "{left:?}");
    assert!(!left.contains("images/1/disk") && !left.contains("builds/pub/1/build.json"), "{left:?}");
    assert_eq!(controller.cached("images/2/disk").await.unwrap(), "2");
}
