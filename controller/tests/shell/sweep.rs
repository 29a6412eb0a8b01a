//! Retention with a real controller and a real cache: what goes, and what stays.

use crate::audit;
use crate::common::pipelines::PUBLISH;
use crate::common::sweeps::{Sweeps, build, farm, files, there};
use crate::common::transfers::{artifact, blob_of};
use crate::common::worker::{failed, lease, report, succeeded};
use crate::common::{Backend, Controller, on_both, refused, until};
use railyard_common::layout;
use railyard_common::retention::{Age, Keep};
use railyard_controller::ControllerConfig;
use railyard_proto::v1;
use std::collections::BTreeSet;
use tonic::Code;

on_both!(
    the_newest_stay_whole_and_nothing_is_left_of_the_others,
    what_is_kept_of_an_old_build_is_what_the_rule_says,
    nothing_goes_within_the_grace,
    a_plan_is_carried_out_as_it_was_shown_or_not_at_all,
    a_blob_that_a_lease_was_told_of_stays,
    leftovers_of_nobody_go_and_what_is_not_the_farm_s_stays,
    builds_come_and_go_while_sweeps_run_without_pause,
);

async fn the_newest_stay_whole_and_nothing_is_left_of_the_others(backend: Backend) {
    let controller = farm(backend, 2, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    for version in ["1.1", "1.10", "1.2", "1.3"] {
        let own = format!("made by {version}");
        let files: [(&str, &[u8]); 2] = [("out/disk", own.as_bytes()), ("out/same", b"in all of them")];
        build(&person, &mut worker, version, &files).await;
    }
    let plan = sweeps.plan().await;
    assert_eq!(plan.stopped, "");
    let keeps: Vec<_> = plan.builds.iter().map(|one| (one.build.as_str(), one.keep.as_str())).collect();
    assert_eq!(keeps, [("pub/1.3", "all"), ("pub/1.2", "all"), ("pub/1.10", "nothing"), ("pub/1.1", "nothing")]);
    assert_eq!(plan.builds[3].why, ["not one of the last 2 successes of its channel"]);
    // In a bucket each published file is a copy, and both of them go; the embedded cache just gives a blob another name.
    let bytes = match backend {
        Backend::Embedded => (25, 11),
        Backend::S3 => (25 + 25, 11 + 25),
    };
    assert_eq!((plan.builds[3].bytes, plan.builds[3].frees_bytes), bytes, "what others share is not freed");
    assert_eq!(
        person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds.len(),
        4
    );

    let first = sweeps.run().await;
    assert_eq!((first.reduced, first.deleted_objects), (2, 0), "tombstones come first");
    let listed = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    assert_eq!(listed.iter().map(|build| build.build.as_str()).collect::<Vec<_>>(), ["pub/1.3", "pub/1.2"]);
    refused(person.try_build("pub/1.10").await, Code::NotFound, "build-deleted");
    assert!(there(&controller, b"made by 1.1"), "nothing goes before the next sweep");

    sweeps.settle().await;
    let left = files(&controller.objects());
    let gone: Vec<_> = left.iter().filter(|path| path.contains("/1.1/") || path.contains("/1.10/")).collect();
    assert!(gone.is_empty(), "{gone:?}");
    for version in ["1.2", "1.3"] {
        let disk = controller.cached(&format!("images/{version}/disk")).await.unwrap();
        assert_eq!(disk, format!("made by {version}"));
        assert!(there(&controller, disk.as_bytes()));
        assert_eq!(person.sign(&format!("pub/{version}"), &[]).await.unwrap().len(), 2);
    }
    assert!(there(&controller, b"in all of them") && !there(&controller, b"made by 1.1"));
    let blobs = left.iter().filter(|path| path.starts_with("blobs/")).count();
    assert_eq!(blobs, 3 + 1, "and the mark at their end: {left:?}");
    refused(person.try_build("pub/1.10").await, Code::NotFound, "unknown-build");

    let index = controller.cached_json("builds/pub/builds.json").await;
    let names = |list: &str| -> Vec<String> {
        index[list].as_array().unwrap().iter().map(|one| one["version"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("builds"), ["1.3", "1.2"]);
    assert_eq!(
        names("tombstones").iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([&"1.1".to_owned(), &"1.10".to_owned()])
    );
    // The version is free again.
    build(&person, &mut worker, "1.1", &[("out/disk", b"made anew")]).await;
    assert_eq!(controller.cached("images/1.1/disk").await.unwrap(), "made anew");
}

async fn what_is_kept_of_an_old_build_is_what_the_rule_says(backend: Backend) {
    let old = |config: &mut ControllerConfig| {
        config.retention[0].old = Keep::Published;
        config.retention[0].old_last = Some(1);
    };
    let controller = farm(backend, 1, old).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    const BOTH: &str = "
name: both
platforms: [linux/amd64]
steps:
  - name: make
    image: debian
    script: make
    outputs:
      - { path: out/*, publish: 'images/{{ version }}' }
      - path: tmp/*
";
    for version in ["1", "2", "3"] {
        let build = person.submit(BOTH, version).await;
        let lease = lease(&worker.order().await);
        let own = [format!("disk {version}"), format!("tmp {version}")];
        let files: [(&str, &[u8]); 2] = [("out/disk", own[0].as_bytes()), ("tmp/x", own[1].as_bytes())];
        worker.succeed_with(lease, &files).await;
        person.ended(&build).await;
    }
    sweeps.settle().await;
    let there = |text: &str| there(&controller, text.as_bytes());
    assert_eq!(
        ["disk 1", "tmp 1", "disk 2", "tmp 2", "disk 3", "tmp 3"].map(there),
        [false, false, true, false, true, true]
    );
    assert_eq!(controller.cached("images/2/disk").await.unwrap(), "disk 2");
    assert_eq!(controller.cached("images/1/disk").await, None);
    let signed = person.sign("both/2", &[]).await.unwrap();
    assert_eq!(signed.iter().map(|one| one.artifact.as_ref().unwrap().path.as_str()).collect::<Vec<_>>(), ["out/disk"]);
    let again = v1::RetryRequest { build: "both/2".to_owned(), step: "make".to_owned() };
    refused(person.rpc.clone().retry(again).await, Code::FailedPrecondition, "build-reduced");
}

async fn nothing_goes_within_the_grace(backend: Backend) {
    let controller = farm(backend, 1, |config| config.sweep.grace = Age::days(1)).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    for version in ["1", "2"] {
        build(&person, &mut worker, version, &[("out/disk", version.as_bytes())]).await;
    }
    for _ in 0..3 {
        let report = sweeps.run().await;
        assert_eq!((report.deleted_objects, report.unpublished, report.forgotten), (0, 0, 0));
    }
    refused(person.try_build("pub/1").await, Code::NotFound, "build-deleted");
    assert!(there(&controller, b"1"));
    assert_eq!(controller.cached("images/1/disk").await.unwrap(), "1", "whoever reads it now reads on");
}

/// Builds on the first page of an embedded cache, as programs get it, and that page as people do.
async fn front_page(controller: &Controller) -> (Vec<String>, String) {
    let get = async |query: &str| {
        let answer = controller.browser().get(format!("{}/cache/{query}", controller.url)).send().await.unwrap();
        answer.error_for_status().unwrap().text().await.unwrap()
    };
    let page: serde_json::Value = serde_json::from_str(&get("?format=json").await).unwrap();
    let builds = page["builds"].as_array().unwrap().iter();
    (builds.map(|build| build["build"].as_str().unwrap().to_owned()).collect(), get("").await)
}

#[tokio::test]
async fn a_deleted_build_is_not_on_the_front_page_of_an_embedded_cache() {
    let controller = farm(Backend::Embedded, 1, |config| config.sweep.grace = Age::days(1)).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    for version in ["1", "2"] {
        build(&person, &mut worker, version, &[("out/disk", version.as_bytes())]).await;
    }
    assert_eq!(front_page(&controller).await.0, ["pub/2", "pub/1"]);
    assert_eq!(sweeps.run().await.reduced, 1);
    let (_, html) = until("the page without it", async || {
        let page = front_page(&controller).await;
        (page.0 == ["pub/2"]).then_some(page)
    })
    .await;
    assert!(html.contains("builds/pub/2/build.json") && !html.contains("pub/1"), "{html}");
    assert!(files(&controller.objects()).contains("builds/pub/1/build.json"), "it is not gone yet");
}

async fn a_plan_is_carried_out_as_it_was_shown_or_not_at_all(backend: Backend) {
    let controller = farm(backend, 1, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    for version in ["1", "2"] {
        build(&person, &mut worker, version, &[("out/disk", version.as_bytes())]).await;
    }
    let plan = sweeps.plan().await;
    // What comes afterwards and changes nothing of it does not matter.
    let running = person.submit(PUBLISH, "3").await;
    let report = sweeps.try_run(&plan.digest).await.unwrap();
    assert_eq!((report.digest.as_str(), report.reduced), (plan.digest.as_str(), 1));
    audit::assert_plan_and_sweep(&controller, &plan).await;
    let told = refused(sweeps.try_run(&plan.digest).await, Code::FailedPrecondition, "sweep-stopped");
    assert!(told.contains("is not to be reduced"), "{told}");
    let unknown = format!("sha256:{}", "0".repeat(64));
    refused(sweeps.try_run(&unknown).await, Code::NotFound, "not-found");
    refused(sweeps.try_run("4f0c").await, Code::InvalidArgument, "bad-request");

    // A plan that somebody needs to be another by now.
    let lease = lease(&worker.order().await);
    worker.succeed_with(lease, &[("out/disk", b"3")]).await;
    person.ended(&running).await;
    let plan = sweeps.plan().await;
    assert_eq!(plan.builds.iter().find(|one| one.build == "pub/2").unwrap().keep, "nothing");
    let again = build(&person, &mut worker, "4", &[("out/disk", b"1")]).await;
    // Its blob is the one that the plan would delete.
    let told = refused(sweeps.try_run(&plan.digest).await, Code::FailedPrecondition, "sweep-stopped");
    assert!(told.contains("out of date"), "{told}");
    assert_eq!(person.sign(&again, &[]).await.unwrap().len(), 1);
}

/// The case that every collector gets wrong once: "the cache has it already" is said a moment before it goes.
async fn a_blob_that_a_lease_was_told_of_stays(backend: Backend) {
    let controller = farm(backend, 1, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1", &[("out/disk", b"the same again")]).await;
    build(&person, &mut worker, "2", &[("out/disk", b"another")]).await;
    let third = person.submit(PUBLISH, "3").await;
    let lease = lease(&worker.order().await);
    // Deleted, and still in the cache.
    assert_eq!(sweeps.run().await.reduced, 1);
    let ticket = worker.prepare_upload(lease, &[blob_of(b"the same again")]).await.unwrap().remove(0);
    assert!(ticket.present);
    sweeps.settle().await;
    assert!(there(&controller, b"the same again"), "a lease counts on it");
    // Also when the controller has forgotten everything that it held in memory.
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;
    let sweeps = Sweeps::of(&controller);
    sweeps.settle().await;
    assert!(there(&controller, b"the same again"));
    let person = controller.operator();
    let worker =
        controller.worker_saying(v1::Hello { held: vec![lease], ..crate::common::worker::hello("anvil") }).await;
    let mut done = report(lease, succeeded());
    done.artifacts.push(artifact("out/disk", &ticket.blob.unwrap()));
    worker.try_report(done).await.unwrap();
    assert_eq!(person.ended(&third).await.state(), v1::BuildState::Succeeded);
    sweeps.settle().await;
    assert_eq!(controller.cached("images/3/disk").await.unwrap(), "the same again");
    assert!(there(&controller, b"the same again") && !there(&controller, b"another"));
}

async fn leftovers_of_nobody_go_and_what_is_not_the_farm_s_stays(backend: Backend) {
    let controller = farm(backend, 1, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1", &[("out/disk", b"1")]).await;
    // An upload of a lease that is lost, and a blob of one that failed.
    let lost = person.submit(PUBLISH, "2").await;
    let lease = lease(&worker.order().await);
    let sent = worker.upload(lease, b"never reported").await;
    let mut request = report(lease, failed("no"));
    request.uploads.extend(sent.upload);
    worker.try_report(request).await.unwrap();
    person.ended(&lost).await;
    let objects = controller.objects();
    let orphan = layout::blob(&blob_of(b"orphan")).to_string();
    let leftovers = [orphan.as_str(), "logs/gone/7/make-linux-amd64/1.log.zst", "builds/gone/7/placing.json"];
    let foreign =
        ["blobs/README", "blobs/sha256/ab/notes.txt", "builds/NOTES", "images/by-hand/disk", "logs/by-hand.txt"];
    for path in leftovers.iter().chain(&foreign) {
        let file = objects.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "x").unwrap();
    }
    let plan = sweeps.plan().await;
    assert_eq!(plan.foreign_objects, 4, "published files are not even looked at");
    sweeps.settle().await;
    let left = files(&objects);
    assert!(leftovers.iter().all(|path| !left.contains(*path)), "{left:?}");
    assert!(foreign.iter().all(|path| left.contains(*path)), "{left:?}");
    assert!(!there(&controller, b"never reported") && there(&controller, b"1"));
}

async fn builds_come_and_go_while_sweeps_run_without_pause(backend: Backend) {
    let controller = farm(backend, 3, |_| {}).await;
    let (person, sweeps) = (controller.operator(), Sweeps::of(&controller));
    let mut worker = controller.worker("anvil").await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let without_pause = async {
        let mut rounds = 0u32;
        while stopped.try_recv().is_err() {
            let report = sweeps.run().await;
            assert_eq!(report.failures, 0, "{}", report.first_failure);
            rounds += 1;
        }
        rounds
    };
    let builds = async {
        for round in 0..20u32 {
            // Each has something of its own, something of the one before, and something that comes back after it has gone.
            let texts = [format!("own {round}"), format!("pair {}", round / 2), format!("often {}", round % 5)];
            let files: Vec<(String, &[u8])> =
                texts.iter().enumerate().map(|(n, text)| (format!("out/{n}"), text.as_bytes())).collect();
            let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), *bytes)).collect();
            let build = build(&person, &mut worker, &format!("1.{round}"), &files).await;
            for (path, bytes) in &files {
                let published = format!("images/1.{round}/{}", path.trim_start_matches("out/"));
                assert_eq!(controller.cached(&published).await.unwrap().as_bytes(), *bytes, "{build}");
                assert!(there(&controller, bytes), "{build} {path}");
            }
        }
        // Nobody listens if a sweep has panicked, and that is told by its own error.
        let _ = stop.send(());
    };
    let (rounds, ()) = tokio::join!(without_pause, builds);
    assert!(rounds >= 20, "{rounds} sweeps ran");
    sweeps.settle().await;
    let builds = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    assert_eq!(builds.iter().map(|one| one.build.as_str()).collect::<Vec<_>>(), ["pub/1.19", "pub/1.18", "pub/1.17"]);
    let blobs = files(&controller.objects()).iter().filter(|path| path.starts_with("blobs/")).count();
    assert_eq!(blobs, 3 + 2 + 3 + 1, "three own, two pairs, three that come back, and the mark at the end");
}

#[tokio::test]
async fn what_goes_is_spread_over_time_also_when_it_is_little() {
    const OBJECTS: u64 = 3;
    let controller = farm(Backend::Embedded, 1, |config| config.sweep.deletes_per_sec = 1).await;
    for n in 0..OBJECTS {
        let file = controller.objects().join(layout::blob(&blob_of(&n.to_le_bytes())).as_str());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, "x").unwrap();
    }
    let request = v1::RunSweepRequest { digest: String::new() };
    let mut steps = Sweeps::of(&controller).0.run_sweep(request).await.unwrap().into_inner();
    let mut done = Vec::new();
    while let Some(step) = steps.message().await.unwrap() {
        done.push(step.done_objects);
    }
    done.dedup();
    done.retain(|done| *done > 0);
    assert_eq!(done, (1..=OBJECTS).collect::<Vec<_>>(), "one at a time");
}
