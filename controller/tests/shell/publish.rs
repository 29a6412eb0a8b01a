//! Published paths: immutable, all or none, with their sums beside them.

use crate::common::people::submission;
use crate::common::pipelines::{ONE, PUBLISH};
use crate::common::transfers::blob_of;
use crate::common::worker::lease;
use crate::common::{Controller, Worker, refused, until};
use railyard_proto::v1;
use tonic::Code;

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

#[tokio::test]
async fn other_bytes_for_a_published_path_fail_the_build_and_change_nothing() {
    let controller = Controller::start().await;
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
    std::fs::remove_file(controller.data_dir().join("cache/stable/disk")).unwrap();
    let retry = v1::RetryRequest { build: second.build.clone(), step: String::new() };
    assert!(controller.operator().rpc.retry(retry).await.unwrap().into_inner().jobs.is_empty());
    let again = controller.operator().ended(&second.build).await;
    assert_eq!((again.state(), again.finalize_error.as_str()), (v1::BuildState::Succeeded, ""));
    assert_eq!(controller.cached("stable/disk").await.unwrap(), "the second");
}

#[tokio::test]
async fn the_same_bytes_again_are_fine_and_sums_are_merged() {
    let controller = Controller::start().await;
    let mut worker = controller.worker("anvil").await;
    let shared: (&str, &[u8]) = ("out/disk", b"the same");
    for (version, own) in [("1", "out/a"), ("2", "out/b")] {
        let view = publish(&controller, &mut worker, version, "stable", &[shared, (own, b"own")]).await;
        assert_eq!(view.state(), v1::BuildState::Succeeded, "{}", view.finalize_error);
    }
    let wanted = sums(&[("a", b"own"), ("b", b"own"), ("disk", b"the same")]);
    assert_eq!(controller.cached("stable/SHA256SUMS").await.unwrap(), wanted);
}

/// Many pipelines make their own sums; those are published as they are.
#[tokio::test]
async fn a_pipeline_s_own_sums_stay_as_they_are() {
    let controller = Controller::start().await;
    let mut worker = controller.worker("anvil").await;
    let files: [(&str, &[u8]); 2] = [("out/SHA256SUMS", b"made by the step\n"), ("out/disk", b"disk")];
    let view = publish(&controller, &mut worker, "1", "stable", &files).await;
    assert_eq!(view.state(), v1::BuildState::Succeeded, "{}", view.finalize_error);
    assert_eq!(controller.cached("stable/SHA256SUMS").await.unwrap(), "made by the step\n");
}

/// A published file is immutable, also when its name is one that the farm would write.
#[tokio::test]
async fn a_later_build_does_not_write_over_a_pipeline_s_own_sums() {
    let controller = Controller::start().await;
    let mut worker = controller.worker("anvil").await;
    let own: (&str, &[u8]) = ("out/SHA256SUMS", b"made by the step\n");
    publish(&controller, &mut worker, "1", "stable", &[own, ("out/disk", b"disk")]).await;
    let view = publish(&controller, &mut worker, "2", "stable", &[("out/more", b"more")]).await;
    assert_eq!(view.state(), v1::BuildState::Succeeded, "{}", view.finalize_error);
    assert_eq!(controller.cached("stable/more").await.unwrap(), "more");
    assert_eq!(controller.cached("stable/SHA256SUMS").await.unwrap(), "made by the step\n");
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

#[tokio::test]
async fn a_build_that_cannot_be_written_out_yet_holds_up_no_other_and_no_stop() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    // A loop of links is a fault of the disk's, not of the build's.
    let place = controller.data_dir().join("cache/builds/one");
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("one", &place).unwrap();
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
    std::fs::remove_file(&place).unwrap();
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
