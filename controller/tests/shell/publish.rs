//! Published paths: immutable, all or none, with their sums beside them.

use crate::common::people::submission;
use crate::common::pipelines::{ONE, PUBLISH};
use crate::common::transfers::blob_of;
use crate::common::worker::lease;
use crate::common::{Backend, Controller, Worker, on_both, refused, until};
use crate::store::Trouble;
use railyard_controller::cache::{self, PutMode};
use railyard_proto::v1;
use railyard_service::clock::SystemClock;
use std::sync::Arc;
use tonic::Code;

on_both!(
    other_bytes_for_a_published_path_fail_the_build_and_change_nothing,
    the_same_bytes_again_are_fine_and_sums_are_merged,
    published_files_are_checked_by_sha256sum,
    a_pipeline_s_own_sums_stay_as_they_are,
    a_later_build_does_not_write_over_a_pipeline_s_own_sums,
    only_what_the_build_itself_placed_is_taken_back,
    a_build_that_cannot_be_written_out_yet_holds_up_no_other_and_no_stop,
);

/// For now nothing can be done at these paths and below, by a fault of the disk or of the service. Gives what ends that.
fn hinder(controller: &Controller, paths: &'static [&str]) -> impl FnOnce() + use<> {
    let (rules, objects) = (controller.store().map(|store| store.rules.clone()), controller.objects());
    let places: Vec<_> = paths.iter().map(|path| objects.join(path)).collect();
    match &rules {
        Some(rules) => rules.set(move |request| {
            let is_there = |path: &&str| request.uri.path().contains(path);
            paths.iter().any(is_there).then_some(Trouble::Refuse(403))
        }),
        None => places.iter().for_each(|place| {
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            // A loop of links is no fault of the build's.
            std::os::unix::fs::symlink(place.file_name().unwrap(), place).unwrap();
        }),
    }
    move || match rules {
        Some(rules) => rules.heal(),
        None => places.iter().for_each(|place| std::fs::remove_file(place).unwrap()),
    }
}

/// Runs one build of [`PUBLISH`] that publishes `files` in `place`.
async fn publish(
    controller: &Controller,
    worker: &mut Worker,
    version: &str,
    place: &str,
    files: &[(&str, &[u8])],
) -> v1::BuildView {
    let person = controller.operator();
    let params = [("place".to_owned(), place.to_owned())].into();
    let build = person.try_submit(v1::SubmitRequest { params, ..submission(PUBLISH, version) }).await.unwrap().build;
    let lease = lease(&worker.order().await);
    worker.succeed_with(lease, files).await;
    person.ended(&build).await
}

fn sums(files: &[(&str, &[u8])]) -> String {
    files.iter().map(|(name, bytes)| format!("{}  {name}\n", blob_of(bytes).digest.hex())).collect()
}

async fn other_bytes_for_a_published_path_fail_the_build_and_change_nothing(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let mut worker = controller.worker("anvil").await;
    let first = publish(&controller, &mut worker, "1", "stable", &[("out/disk", b"the first")]).await;
    assert_eq!(first.state(), v1::BuildState::Succeeded);

    let files: [(&str, &[u8]); 2] = [("out/another", b"innocent"), ("out/disk", b"the second")];
    let second = publish(&controller, &mut worker, "2", "stable", &files).await;
    assert_eq!(second.state(), v1::BuildState::Failed);
    assert!(second.finalize_error.contains("stable/disk has other content"), "{}", second.finalize_error);
    assert_eq!(second.jobs[0].state(), v1::JobState::Succeeded);
    assert_eq!(controller.cached("stable/disk").await.unwrap(), "the first");
    assert_eq!(controller.cached("stable/another").await, None);
    assert_eq!(controller.cached("stable/SHA256SUMS").await.unwrap(), sums(&[("disk", b"the first")]));
    let manifest = controller.cached_json("builds/pub/2/build.json").await;
    assert_eq!(manifest["verdict"], "failed");
    assert!(manifest["error"].as_str().unwrap().contains("stable/disk"));
    assert_eq!(manifest["jobs"][0]["artifacts"][0]["published"], serde_json::Value::Null);
    assert_eq!(controller.cached_json("builds/pub/latest.json").await["version"], "1");
    let index = controller.cached_json("builds/pub/builds.json").await;
    let versions: Vec<_> = index["builds"].as_array().unwrap().iter().map(|b| b["version"].as_str().unwrap()).collect();
    assert_eq!(versions, ["2", "1"]);

    // The path is free again: a retry that has nothing to run writes the build out once more.
    std::fs::remove_file(controller.objects().join("stable/disk")).unwrap();
    let retry = v1::RetryRequest { build: second.build.clone(), step: String::new() };
    assert!(controller.operator().rpc.retry(retry).await.unwrap().into_inner().jobs.is_empty());
    let again = controller.operator().ended(&second.build).await;
    assert_eq!((again.state(), again.finalize_error.as_str()), (v1::BuildState::Succeeded, ""));
    assert_eq!(controller.cached("stable/disk").await.unwrap(), "the second");
}

async fn the_same_bytes_again_are_fine_and_sums_are_merged(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let mut worker = controller.worker("anvil").await;
    let shared: (&str, &[u8]) = ("out/disk", b"the same");
    for (version, own) in [("1", "out/a"), ("2", "out/b")] {
        let view = publish(&controller, &mut worker, version, "stable", &[shared, (own, b"own")]).await;
        assert_eq!(view.state(), v1::BuildState::Succeeded, "{}", view.finalize_error);
    }
    let wanted = sums(&[("a", b"own"), ("b", b"own"), ("disk", b"the same")]);
    assert_eq!(controller.cached("stable/SHA256SUMS").await.unwrap(), wanted);
}

/// As the manual has it: fetch a published directory, and check it.
async fn published_files_are_checked_by_sha256sum(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let mut worker = controller.worker("anvil").await;
    let files: [(&str, &[u8]); 3] = [("out/disk.raw", b"disk"), ("out/a name", b"spaces"), ("out/empty", b"")];
    publish(&controller, &mut worker, "1", "stable/x", &files).await;
    let dir = tempfile::tempdir().unwrap();
    for name in ["disk.raw", "a name", "empty", "SHA256SUMS"] {
        let text = controller.cached(&format!("stable/x/{name}")).await.unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let check =
        || std::process::Command::new("sha256sum").args(["-c", "SHA256SUMS"]).current_dir(dir.path()).output().unwrap();
    let checked = check();
    assert!(checked.status.success(), "{checked:?}");
    assert_eq!(String::from_utf8_lossy(&checked.stdout), "a name: OK\ndisk.raw: OK\nempty: OK\n");
    std::fs::write(dir.path().join("disk.raw"), "desk").unwrap();
    assert!(!check().status.success());
}

/// Many pipelines make their own sums; those are published as they are.
async fn a_pipeline_s_own_sums_stay_as_they_are(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let mut worker = controller.worker("anvil").await;
    let files: [(&str, &[u8]); 2] = [("out/SHA256SUMS", b"made by the step\n"), ("out/disk", b"disk")];
    let view = publish(&controller, &mut worker, "1", "stable", &files).await;
    assert_eq!(view.state(), v1::BuildState::Succeeded, "{}", view.finalize_error);
    assert_eq!(controller.cached("stable/SHA256SUMS").await.unwrap(), "made by the step\n");
}

/// A published file is immutable, also when its name is one that the farm would write.
async fn a_later_build_does_not_write_over_a_pipeline_s_own_sums(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let mut worker = controller.worker("anvil").await;
    let own: (&str, &[u8]) = ("out/SHA256SUMS", b"made by the step\n");
    publish(&controller, &mut worker, "1", "stable", &[own, ("out/disk", b"disk")]).await;
    let view = publish(&controller, &mut worker, "2", "stable", &[("out/more", b"more")]).await;
    assert_eq!(view.state(), v1::BuildState::Succeeded, "{}", view.finalize_error);
    assert_eq!(controller.cached("stable/more").await.unwrap(), "more");
    assert_eq!(controller.cached("stable/SHA256SUMS").await.unwrap(), "made by the step\n");
}

/// What of a build's paths is found to be impossible late takes back those that were placed before it.
#[tokio::test]
async fn a_conflict_after_some_paths_were_placed_takes_them_back() {
    let controller = Controller::start().await;
    let mut worker = controller.worker("anvil").await;
    let first = publish(&controller, &mut worker, "1", "stable/x", &[("out/disk", b"disk")]).await;
    assert_eq!(first.state(), v1::BuildState::Succeeded, "{}", first.finalize_error);
    let shared = publish(&controller, &mut worker, "2", "stable", &[("out/both", b"both")]).await;
    assert_eq!(shared.state(), v1::BuildState::Succeeded, "{}", shared.finalize_error);
    // `x` is a directory; `a` comes before it, `z` behind it, and `both` is another build's.
    let files: [(&str, &[u8]); 4] = [("out/a", b"a"), ("out/both", b"both"), ("out/x", b"other"), ("out/z", b"z")];
    let second = publish(&controller, &mut worker, "3", "stable", &files).await;
    assert_eq!(second.state(), v1::BuildState::Failed);
    for gone in ["stable/a", "stable/z", "builds/pub/3/placing.json"] {
        assert_eq!(controller.cached(gone).await, None, "{gone}");
    }
    assert_eq!(controller.cached("stable/both").await.unwrap(), "both");
    assert_eq!(controller.cached("stable/x/disk").await.unwrap(), "disk");
    assert_eq!(controller.cached("stable/SHA256SUMS").await.unwrap(), sums(&[("both", b"both")]));
    assert_eq!(controller.cached_json("builds/pub/3/build.json").await["verdict"], "failed");
    // The places are free again.
    let files: [(&str, &[u8]); 2] = [("out/a", b"another"), ("out/both", b"both")];
    let third = publish(&controller, &mut worker, "4", "stable", &files).await;
    assert_eq!(third.state(), v1::BuildState::Succeeded, "{}", third.finalize_error);
    assert_eq!(controller.cached("builds/pub/4/placing.json").await, None);
}

/// One file goes to a place that builds share, the others to one of the build's own.
const TWO_PLACES: &str = "
name: pub
platforms: [linux/amd64]
steps:
  - name: make
    image: debian:bookworm
    script: make
    outputs:
      - { path: out/both, publish: shared }
      - { path: 'out/own*', publish: 'own/{{ version }}' }
";

/// What an earlier process placed is taken back by the next one; but neither what another build has published meanwhile, nor
/// what somebody else has put there.
async fn only_what_the_build_itself_placed_is_taken_back(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let mut worker = controller.worker("anvil").await;
    let person = controller.operator();
    let files: [(&str, &[u8]); 3] = [("out/both", b"both"), ("out/own-1", b"own"), ("out/own-2", b"own, too")];
    // Two builds whose sums cannot be written for now.
    let relieve = hinder(&controller, &["own/1/SHA256SUMS", "own/2/SHA256SUMS"]);
    for version in ["1", "2"] {
        let stuck = person.submit(TWO_PLACES, version).await;
        let held = lease(&worker.order().await);
        worker.succeed_with(held, &files).await;
        until("the failure", async || Some(person.build(&stuck).await).filter(|view| !view.finalize_error.is_empty()))
            .await;
    }
    assert_eq!(controller.cached("own/1/own-1").await.unwrap(), "own");
    let placing = controller.cached_json("builds/pub/1/placing.json").await;
    let listed: Vec<_> = placing["paths"].as_object().unwrap().keys().collect();
    assert_eq!(listed, ["own/1/own-1", "own/1/own-2", "shared/both"]);
    let third = person.submit(TWO_PLACES, "3").await;
    let held = lease(&worker.order().await);
    worker.succeed_with(held, &files).await;
    assert_eq!(person.ended(&third).await.state(), v1::BuildState::Succeeded);

    // Then something stands in their way for good: at the first of the one's places, and at the last of the other's.
    let taken = ["own/1/own-1", "own/2/own-2"];
    let address = controller.address();
    let stopped = controller.stop().await;
    relieve();
    let cache = cache::open(&stopped.config.cache(), "https://farm/cache", Arc::new(SystemClock)).await.unwrap().cache;
    for path in taken {
        cache.put(&path.parse().unwrap(), "somebody else's".into(), PutMode::Overwrite).await.unwrap();
    }
    let controller = stopped.start(address).await;
    for build in ["pub/1", "pub/2"] {
        let view = controller.operator().ended(build).await;
        assert_eq!(view.state(), v1::BuildState::Failed, "{}", view.finalize_error);
    }
    for path in taken {
        assert_eq!(controller.cached(path).await.unwrap(), "somebody else's");
    }
    for gone in ["own/1/own-2", "own/1/SHA256SUMS", "own/2/own-1", "own/2/SHA256SUMS"] {
        assert_eq!(controller.cached(gone).await, None, "{gone}");
    }
    assert_eq!(controller.cached("shared/both").await.unwrap(), "both");
    assert_eq!(controller.cached("shared/SHA256SUMS").await.unwrap(), sums(&[("both", b"both")]));
    for version in ["1", "2", "3"] {
        assert_eq!(controller.cached(&format!("builds/pub/{version}/placing.json")).await, None, "{version}");
    }
}

/// No other try would do better: the build ends, and says why.
#[tokio::test]
async fn a_path_that_is_a_file_and_a_directory_ends_the_build() {
    let controller = Controller::start().await;
    let mut worker = controller.worker("anvil").await;
    let first = publish(&controller, &mut worker, "1", "a/stable", &[("out/disk", b"disk")]).await;
    assert_eq!(first.state(), v1::BuildState::Succeeded, "{}", first.finalize_error);
    // Below a file, and where a directory is.
    for (version, place, file) in [("2", "a/stable/disk", "out/raw"), ("3", "a", "out/stable")] {
        let view = publish(&controller, &mut worker, version, place, &[(file, b"other")]).await;
        assert_eq!(view.state(), v1::BuildState::Failed, "{version}");
        assert!(view.finalize_error.contains("a/stable"), "{}", view.finalize_error);
    }
    assert_eq!(controller.cached("a/stable/disk").await.unwrap(), "disk");
}

async fn a_build_that_cannot_be_written_out_yet_holds_up_no_other_and_no_stop(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    let relieve = hinder(&controller, &["builds/one"]);
    let stuck = person.submit(ONE, "1").await;
    let held = lease(&worker.order().await);
    worker.succeed(held).await;
    let view = until("the failure", async || {
        let request = v1::GetBuildRequest { build: stuck.clone() };
        let view = person.rpc.clone().get_build(request).await.unwrap().into_inner();
        (!view.finalize_error.is_empty()).then_some(view)
    })
    .await;
    assert_eq!(view.state(), v1::BuildState::Finalizing, "{}", view.finalize_error);
    let other = publish(&controller, &mut worker, "1", "stable", &[("out/disk", b"disk")]).await;
    assert_eq!(other.state(), v1::BuildState::Succeeded);
    let address = controller.address();
    let stopped = controller.stop().await;
    relieve();
    let controller = stopped.start(address).await;
    assert_eq!(controller.operator().ended(&stuck).await.state(), v1::BuildState::Succeeded);
    assert_eq!(controller.cached_json("builds/one/latest.json").await["version"], "1");
}

#[tokio::test]
async fn the_farm_s_own_places_cannot_be_published_into() {
    let controller = Controller::start().await;
    let person = controller.operator();
    for place in ["builds/pub", "blobs", "../up", "/absolute"] {
        let params = [("place".to_owned(), place.to_owned())].into();
        let request = v1::SubmitRequest { params, ..submission(PUBLISH, "1") };
        let message = refused(person.try_submit(request).await, Code::InvalidArgument, "bad-pipeline");
        assert!(message.contains("railyard.yaml:"), "{message}");
    }
}
