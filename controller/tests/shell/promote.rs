//! Builds that go into another channel: what is published, what the lists say, and what is refused.

use crate::audit::look;
use crate::common::people::{Person, submission};
use crate::common::sweeps::{Sweeps, farm};
use crate::common::worker::{failed, lease, report};
use crate::common::{Backend, Controller, Worker, on_both, refused};
use railyard_controller::policy::PolicyRule;
use railyard_proto::v1;
use railyard_service::tls::Role;
use serde_json::Value;
use tonic::{Code, Status};

on_both!(
    a_promoted_build_is_where_its_channel_is,
    what_a_promotion_published_goes_with_its_build,
    a_file_of_another_build_stands_in_the_way,
    what_stands_there_from_before_is_looked_at_again,
);

/// Files for people below the channel, and a note beside that is of no channel.
const OS: &str = "
name: os
platforms: [linux/amd64]
channel: alpha
steps:
  - name: make
    image: debian:bookworm
    script: make
    outputs:
      - { path: out/*, publish: 'images/{{ channel }}/{{ version }}' }
      - { path: notes, publish: 'notes/{{ version }}' }
";

async fn promote(person: &Person, build: &str, channel: &str) -> Result<v1::PromoteBuildResponse, Status> {
    let request = v1::PromoteBuildRequest { build: build.to_owned(), channel: channel.to_owned() };
    person.rpc.clone().promote_build(request).await.map(tonic::Response::into_inner)
}

async fn build(person: &Person, worker: &mut Worker, version: &str) -> String {
    let build = person.submit(OS, version).await;
    let lease = lease(&worker.order().await);
    let disk = format!("disk {version}");
    worker.succeed_with(lease, &[("out/disk.raw", disk.as_bytes()), ("notes", b"read me")]).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    build
}

fn listed(list: &Value) -> Vec<(&str, &str)> {
    let builds = list["builds"].as_array().unwrap().iter();
    builds.map(|one| (one["version"].as_str().unwrap(), one["channel"].as_str().unwrap())).collect()
}

async fn a_promoted_build_is_where_its_channel_is(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    for version in ["1", "2"] {
        build(&person, &mut worker, version).await;
    }
    let done = promote(&person, "os/1", "beta").await.unwrap();
    let promotion = done.promotion.unwrap();
    assert_eq!((done.build.as_str(), done.from.as_str(), done.lists_wait.as_str()), ("os/1", "alpha", ""));
    assert_eq!((promotion.channel.as_str(), promotion.paths), ("beta", vec!["images/beta/1/disk.raw".to_owned()]));

    // All of it is there when it is answered; and what was there stays.
    for (path, want) in
        [("images/beta/1/disk.raw", "disk 1"), ("images/alpha/1/disk.raw", "disk 1"), ("notes/1/notes", "read me")]
    {
        assert_eq!(controller.cached(path).await.as_deref(), Some(want), "{path}");
    }
    let sums = controller.cached("images/beta/1/SHA256SUMS").await.unwrap();
    assert_eq!(sums, controller.cached("images/alpha/1/SHA256SUMS").await.unwrap());
    assert!(controller.cached("images/beta/2/disk.raw").await.is_none());
    let list = controller.cached_json("builds/os/builds.json").await;
    assert_eq!(listed(&list), [("2", "alpha"), ("1", "beta")]);
    for (channel, version) in [("alpha", "2"), ("beta", "1")] {
        let list = controller.cached_json(&format!("builds/os/channels/{channel}/builds.json")).await;
        assert_eq!(listed(&list), [(version, channel)]);
        let latest = controller.cached_json(&format!("builds/os/channels/{channel}/latest.json")).await;
        assert_eq!(latest["version"], version);
    }
    let shown = person.build("os/1").await;
    assert_eq!((shown.channel.as_str(), shown.promotions.len(), shown.promoting.as_str()), ("beta", 1, ""));

    // On, and back to where it was: what is published there already is published still.
    let again = promote(&person, "os/1", "beta").await.unwrap();
    assert_eq!((again.from.as_str(), again.promotion), ("beta", None));
    promote(&person, "os/1", "stable").await.unwrap();
    let back = promote(&person, "os/1", "alpha").await.unwrap().promotion.unwrap();
    assert!(back.paths.is_empty(), "{:?}", back.paths);
    let list = controller.cached_json("builds/os/channels/alpha/builds.json").await;
    assert_eq!(listed(&list), [("2", "alpha"), ("1", "alpha")]);
    assert!(controller.cached("builds/os/channels/beta/latest.json").await.is_none());

    let records = look(&controller, v1::ShowAuditRequest { what: "promote".to_owned(), ..Default::default() }).await;
    let told: Vec<_> = records
        .iter()
        .map(|one| {
            (
                one.target.as_str(),
                one.details["from"].as_str(),
                one.details["channel"].as_str(),
                one.details["published"].as_str(),
            )
        })
        .collect();
    let want = [
        ("os/1", "alpha", "beta", "1"),
        ("os/1", "beta", "beta", "0"),
        ("os/1", "beta", "stable", "1"),
        ("os/1", "stable", "alpha", "0"),
    ];
    assert_eq!(told, want);
}

async fn what_a_promotion_published_goes_with_its_build(backend: Backend) {
    let controller = farm(backend, 50, |_| {}).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1").await;
    build(&person, &mut worker, "2").await;
    promote(&person, "os/1", "beta").await.unwrap();
    let delete = |force| v1::DeleteBuildRequest { build: "os/1".to_owned(), why: String::new(), force };
    let told = refused(person.rpc.clone().delete_build(delete(false)).await, Code::FailedPrecondition, "build-needed");
    assert!(told.contains("promoted to beta"), "{told}");
    person.rpc.clone().delete_build(delete(true)).await.unwrap();
    Sweeps::of(&controller).settle().await;
    for path in ["images/beta/1/disk.raw", "images/beta/1/SHA256SUMS", "images/alpha/1/disk.raw", "notes/1/notes"] {
        assert!(controller.cached(path).await.is_none(), "{path}");
    }
    assert!(controller.cached("images/alpha/2/disk.raw").await.is_some());
    assert!(controller.cached("builds/os/channels/beta/latest.json").await.is_none());
}

async fn a_file_of_another_build_stands_in_the_way(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1").await;
    // Another pipeline has something at that place.
    let other = OS.replace("name: os", "name: other").replace("{{ version }}", "1").replace("{{ channel }}", "beta");
    let build = person.submit(&other, "9").await;
    let lease = lease(&worker.order().await);
    worker.succeed_with(lease, &[("out/disk.raw", b"not the same"), ("notes", b"read me")]).await;
    person.ended(&build).await;
    let told = refused(promote(&person, "os/1", "beta").await, Code::FailedPrecondition, "not-promotable");
    assert!(told.contains("images/beta/1/disk.raw"), "{told}");
    assert_eq!(controller.cached("images/beta/1/disk.raw").await.as_deref(), Some("not the same"));
    assert_eq!(person.build("os/1").await.channel, "alpha");
}

async fn what_stands_there_from_before_is_looked_at_again(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1").await;
    promote(&person, "os/1", "beta").await.unwrap();
    let [alpha, beta] = ["alpha", "beta"].map(|channel| format!("images/{channel}/1/disk.raw"));
    std::fs::remove_file(controller.objects().join(&alpha)).unwrap();
    let back = promote(&person, "os/1", "alpha").await.unwrap().promotion.unwrap();
    assert_eq!(back.paths, [alpha.as_str()], "what is gone is published again");
    assert_eq!(controller.cached(&alpha).await.as_deref(), Some("disk 1"));

    // A file of its own, not the blob that it may be another name of.
    std::fs::remove_file(controller.objects().join(&beta)).unwrap();
    std::fs::write(controller.objects().join(&beta), "disk l").unwrap();
    let told = refused(promote(&person, "os/1", "beta").await, Code::FailedPrecondition, "not-promotable");
    assert!(told.contains(&beta), "{told}");
    assert_eq!(person.build("os/1").await.channel, "alpha");
}

#[tokio::test]
async fn what_cannot_be_promoted_is_told_why() {
    let rule = PolicyRule {
        name: "releases".to_owned(),
        pipelines: vec!["release".to_owned()],
        allow: Vec::new(),
        reserve: vec!["publish:images/stable".parse().unwrap()],
        untrusted: false,
    };
    let controller = Controller::start_with(|config| config.policy = vec![rule]).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    build(&person, &mut worker, "1").await;
    let running = person.submit(OS, "2").await;
    refused(promote(&person, &running, "beta").await, Code::FailedPrecondition, "not-promotable");
    let lease = lease(&worker.order().await);
    worker.try_report(report(lease, failed("it broke"))).await.unwrap();
    person.ended(&running).await;
    refused(promote(&person, &running, "beta").await, Code::FailedPrecondition, "not-promotable");

    let told = refused(promote(&person, "os/1", "stable").await, Code::PermissionDenied, "policy");
    assert!(told.contains("publish:images/stable/1/disk.raw") && told.contains("rule `releases`"), "{told}");
    for (build, channel, code, reason) in [
        ("os", "beta", Code::InvalidArgument, "bad-request"),
        ("os/7", "beta", Code::NotFound, "unknown-build"),
        ("os/1", "a/b", Code::InvalidArgument, "bad-request"),
        ("os/1", "", Code::InvalidArgument, "bad-request"),
    ] {
        refused(promote(&person, build, channel).await, code, reason);
    }
    for role in [Role::Submitter, Role::Viewer] {
        refused(promote(&controller.person(role, "eva"), "os/1", "beta").await, Code::PermissionDenied, "forbidden");
    }
    // What nobody has looked at.
    let stranger = controller.limited("railyard://submitter/ci?tier=untrusted");
    let odd = stranger.try_submit(submission(crate::common::pipelines::ONE, "3")).await.unwrap().build;
    refused(promote(&person, &odd, "beta").await, Code::InvalidArgument, "build-untrusted");
}
