//! What people say about keeping builds: who may, what the farm then shows, and what it refuses.

use crate::audit;
use crate::common::people::{Person, submission};
use crate::common::pipelines::{ONE, PUBLISH};
use crate::common::sweeps::Sweeps;
use crate::common::worker::lease;
use crate::common::{Controller, Worker, refused, until};
use railyard_proto::v1;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::convert;
use railyard_service::tls::Role;
use tonic::{Code, Status};

/// Runs one build to its end.
async fn build(person: &Person, worker: &mut Worker, version: &str) -> String {
    let build = person.submit(PUBLISH, version).await;
    let lease = lease(&worker.order().await);
    worker.succeed_with(lease, &[("out/disk", version.as_bytes())]).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    build
}

fn pin(build: &str, name: &str) -> v1::PinBuildRequest {
    v1::PinBuildRequest {
        build: build.to_owned(),
        name: name.to_owned(),
        why: "in the field".to_owned(),
        ..Default::default()
    }
}

fn unpin(build: &str, name: &str) -> v1::UnpinBuildRequest {
    v1::UnpinBuildRequest { build: build.to_owned(), name: name.to_owned(), all: false }
}

async fn tag(person: &Person, build: &str, tag: &str) -> Result<v1::TagBuildResponse, Status> {
    let request = v1::TagBuildRequest { build: build.to_owned(), tag: tag.to_owned() };
    person.rpc.clone().tag_build(request).await.map(tonic::Response::into_inner)
}

async fn delete(person: &Person, build: &str, force: bool) -> Result<v1::DeleteBuildResponse, Status> {
    let request = v1::DeleteBuildRequest { build: build.to_owned(), why: "wrong key".to_owned(), force };
    person.rpc.clone().delete_build(request).await.map(tonic::Response::into_inner)
}

async fn names(person: &Person, build: &str) -> Vec<String> {
    person.build(build).await.pins.into_iter().map(|pin| pin.name).collect()
}

#[tokio::test]
async fn a_pin_has_a_name_a_reason_and_an_end() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let build = person.submit(ONE, "1").await;
    let timed = v1::PinBuildRequest { for_secs: 3600, ..pin(&build, "") };
    let set = person.rpc.clone().pin_build(timed).await.unwrap().into_inner();
    let shown = person.build(&build).await.pins;
    assert_eq!(set.build, build);
    assert_eq!(shown.len(), 1);
    let [one] = &shown[..] else { panic!("{shown:?}") };
    assert_eq!((one.by.as_str(), one.why.as_str()), (format!("operator/{}", one.name).as_str(), "in the field"));
    let ends = convert::millis(one.until.as_ref().unwrap());
    assert_eq!(ends, convert::millis(one.at.as_ref().unwrap()).plus(3_600_000));

    // By a date; one that is over holds nothing, and nobody is shown it.
    let soon = SystemClock.now().plus(300);
    let dated = v1::PinBuildRequest { until: Some(convert::timestamp(soon)), ..pin(&build, "soon") };
    person.rpc.clone().pin_build(dated).await.unwrap();
    until("the end of the pin", async || (names(&person, &build).await.len() == 1).then_some(())).await;
    for (bad, want) in [
        (v1::PinBuildRequest { until: Some(convert::timestamp(soon)), ..pin(&build, "past") }, "would be over already"),
        (v1::PinBuildRequest { for_secs: u64::MAX, ..pin(&build, "long") }, "a hundred years"),
        (
            v1::PinBuildRequest { until: Some(convert::timestamp(soon)), for_secs: 1, ..pin(&build, "two") },
            "nobody knows which",
        ),
        (pin(&build, "a b"), "name of a pin"),
    ] {
        let told = refused(person.rpc.clone().pin_build(bad).await, Code::InvalidArgument, "bad-request");
        assert!(told.contains(want), "{told}");
    }
    refused(person.rpc.clone().pin_build(pin("one/9", "")).await, Code::NotFound, "unknown-build");

    // A name that is none of a pin's.
    let dotted = controller.person(Role::Operator, ".olga");
    let told = refused(dotted.rpc.clone().pin_build(pin(&build, "")).await, Code::InvalidArgument, "bad-request");
    assert!(told.contains("--name"), "{told}");
    dotted.rpc.clone().pin_build(pin(&build, "olga")).await.unwrap();
}

#[tokio::test]
async fn submitters_have_pins_of_their_own_and_no_others() {
    let controller = Controller::start().await;
    let (olga, alice) = (controller.operator(), controller.person(Role::Submitter, "alice"));
    let bob = controller.limited("railyard://submitter/bob?pipeline=other");
    let stranger = controller.limited("railyard://submitter/ci?tier=untrusted");
    let build = olga.submit(ONE, "1").await;
    olga.rpc.clone().pin_build(pin(&build, "lab")).await.unwrap();
    alice.rpc.clone().pin_build(pin(&build, "")).await.unwrap();
    alice.rpc.clone().pin_build(pin(&build, "second")).await.unwrap();
    for person in [&bob, &stranger] {
        refused(person.rpc.clone().pin_build(pin(&build, "")).await, Code::PermissionDenied, "forbidden");
        refused(person.rpc.clone().unpin_build(unpin(&build, "lab")).await, Code::PermissionDenied, "forbidden");
    }
    let told = refused(alice.rpc.clone().unpin_build(unpin(&build, "lab")).await, Code::PermissionDenied, "forbidden");
    assert!(told.contains("is that of operator/"), "{told}");
    // Nor can the pin be made to end by setting it anew.
    let short = v1::PinBuildRequest { for_secs: 1, ..pin(&build, "lab") };
    refused(alice.rpc.clone().pin_build(short).await, Code::PermissionDenied, "forbidden");
    // Another one of that name in another role is somebody else.
    let namesake = controller.person(Role::Operator, "alice");
    namesake.rpc.clone().pin_build(pin(&build, "third")).await.unwrap();

    let all = v1::UnpinBuildRequest { build: build.clone(), all: true, ..Default::default() };
    let taken = alice.rpc.clone().unpin_build(all.clone()).await.unwrap().into_inner();
    assert_eq!(taken.names, ["alice", "second"]);
    assert_eq!(names(&olga, &build).await, ["lab", "third"]);
    refused(alice.rpc.clone().unpin_build(all.clone()).await, Code::NotFound, "not-pinned");
    assert_eq!(olga.rpc.clone().unpin_build(all).await.unwrap().into_inner().names, ["lab", "third"]);
    refused(olga.rpc.clone().unpin_build(unpin(&build, "lab")).await, Code::NotFound, "not-pinned");
    for (person, role) in [(&alice, "submitter alice"), (&controller.person(Role::Viewer, "vera"), "viewer vera")] {
        for refused_call in [tag(person, &build, "x").await.map(|_| ()), delete(person, &build, true).await.map(|_| ())]
        {
            let told = refused(refused_call, Code::PermissionDenied, "forbidden");
            assert!(told.contains(role), "{told}");
        }
    }
}

#[tokio::test]
async fn a_tag_names_a_build_wherever_one_is_named() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    let (one, two) = (build(&person, &mut worker, "1").await, build(&person, &mut worker, "2").await);
    assert_eq!(tag(&person, &one, "golden").await.unwrap().moved_from, "");
    assert_eq!(person.build("pub/golden").await.build, one);
    assert_eq!(person.sign("pub/golden", &[]).await.unwrap().len(), 1);
    let moved = tag(&person, "pub", "golden").await.unwrap();
    assert_eq!((moved.build, moved.moved_from), (two.clone(), one.clone()));
    assert_eq!((person.build(&one).await.tags.len(), person.build(&two).await.tags), (0, vec!["golden".to_owned()]));
    assert_eq!(person.build("pub/latest").await.build, two);

    // What means something else is no tag, and what is a tag is no version.
    for (bad, code, reason) in [
        ("latest", Code::InvalidArgument, "tag-taken"),
        ("1", Code::AlreadyExists, "tag-taken"),
        ("channels", Code::InvalidArgument, "bad-request"),
        ("golden.untrusted", Code::InvalidArgument, "bad-request"),
        ("a b", Code::InvalidArgument, "bad-request"),
    ] {
        refused(tag(&person, &one, bad).await, code, reason);
    }
    let told = refused(person.try_submit(submission(PUBLISH, "golden")).await, Code::AlreadyExists, "tag-taken");
    assert!(told.contains("`golden` is a tag of build `pub/2`"), "{told}");

    let request = |tag: &str| v1::UntagBuildRequest { pipeline: "pub".to_owned(), tag: tag.to_owned() };
    assert_eq!(person.rpc.clone().untag_build(request("golden")).await.unwrap().into_inner().build, two);
    refused(person.rpc.clone().untag_build(request("golden")).await, Code::NotFound, "no-such-tag");
    refused(person.try_build("pub/golden").await, Code::NotFound, "unknown-build");
}

#[tokio::test]
async fn a_deleted_build_is_listed_only_among_those_and_what_is_needed_stays() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    let (one, two) = (build(&person, &mut worker, "1").await, build(&person, &mut worker, "2").await);
    person.rpc.clone().pin_build(pin(&one, "lab")).await.unwrap();
    let told = refused(delete(&person, &one, false).await, Code::FailedPrecondition, "build-needed");
    assert!(told.contains("it is pinned by lab: in the field"), "{told}");
    // What moves by itself names nothing that could not be taken back.
    for moving in ["pub", "pub/latest"] {
        let told = refused(delete(&person, moving, true).await, Code::InvalidArgument, "bad-request");
        assert!(told.contains("PIPELINE/VERSION"), "{told}");
        let promote = v1::PromoteBuildRequest { build: moving.to_owned(), channel: "beta".to_owned() };
        let told = refused(person.rpc.clone().promote_build(promote).await, Code::InvalidArgument, "bad-request");
        assert!(told.contains("name the one to promote"), "{told}");
    }
    let running = person.submit(PUBLISH, "3").await;
    refused(delete(&person, &running, true).await, Code::FailedPrecondition, "build-runs");

    assert_eq!(delete(&person, &one, true).await.unwrap().build, one);
    refused(person.try_build(&one).await, Code::NotFound, "build-deleted");
    refused(delete(&person, &one, true).await, Code::NotFound, "build-deleted");
    let told = refused(person.try_submit(submission(PUBLISH, "1")).await, Code::AlreadyExists, "build-exists");
    assert!(told.contains("was deleted and is not swept yet") && told.contains("free again"), "{told}");
    let listed = async |deleted| {
        let request = v1::ListBuildsRequest { deleted, ..Default::default() };
        person.rpc.clone().list_builds(request).await.unwrap().into_inner().builds
    };
    let there: Vec<String> = listed(false).await.into_iter().map(|build| build.build).collect();
    assert_eq!(there, [running, two]);
    let gone = listed(true).await;
    let [gone] = &gone[..] else { panic!("{gone:?}") };
    let reduced = gone.reduced.as_ref().unwrap();
    assert_eq!((gone.build.as_str(), gone.keep.as_str(), reduced.why.as_str()), (one.as_str(), "nothing", "wrong key"));
    assert!(reduced.by.starts_with("operator/"), "{}", reduced.by);
    until("the list of builds to say so", async || {
        let index = controller.cached_json("builds/pub/builds.json").await;
        (index["tombstones"][0]["why"] == "wrong key").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_delete_without_a_reason_is_told_once() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    let one = build(&person, &mut worker, "1").await;
    let request = v1::DeleteBuildRequest { build: one.clone(), ..Default::default() };
    person.rpc.clone().delete_build(request).await.unwrap();
    let by = until("the tombstone", async || {
        let index = controller.cached_json("builds/pub/builds.json").await;
        index["tombstones"][0]["why"].as_str()?.strip_prefix("deleted by ").map(str::to_owned)
    })
    .await;
    assert!(by.starts_with("operator/") && !by.contains(' '), "{by}");
    let plan = Sweeps::of(&controller).plan().await;
    assert_eq!(plan.builds.iter().find(|row| row.build == one).unwrap().why, [format!("deleted by {by}")]);
}

#[tokio::test]
async fn each_of_it_is_recorded_with_what_it_was_about() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    let one = build(&person, &mut worker, "1").await;
    person.rpc.clone().pin_build(pin("pub", "lab")).await.unwrap();
    person.rpc.clone().unpin_build(unpin(&one, "lab")).await.unwrap();
    tag(&person, &one, "golden").await.unwrap();
    refused(delete(&person, "pub/golden", false).await, Code::FailedPrecondition, "build-needed");
    let untag = v1::UntagBuildRequest { pipeline: "pub".to_owned(), tag: "golden".to_owned() };
    person.rpc.clone().untag_build(untag).await.unwrap();
    delete(&person, &one, false).await.unwrap();
    let told = |record: &v1::AuditRecord| {
        let about = ["names", "tag", "name", "why"].iter().find_map(|name| record.details.get(*name).cloned());
        (record.what.clone(), record.target.clone(), about.unwrap_or_default(), record.outcome.clone())
    };
    let mut records = until("the refusal", async || {
        let all = audit::look(&controller, v1::ShowAuditRequest::default()).await;
        let found: Vec<_> = all.iter().filter(|record| record.what != "submit").skip(1).map(told).collect();
        found.iter().any(|(.., outcome)| outcome == "refused").then_some(found)
    })
    .await;
    // What was refused is written down a moment later than it is told.
    records.sort_by_key(|(what, _, _, outcome)| (what == "delete", outcome == "done"));
    let record = |what: &str, target: &str, about: &str, outcome: &str| {
        (what.to_owned(), target.to_owned(), about.to_owned(), outcome.to_owned())
    };
    let want = [
        record("pin", "pub/1", "lab", "done"),
        record("unpin", "pub/1", "lab", "done"),
        record("tag", "pub/1", "golden", "done"),
        record("untag", "pub/1", "golden", "done"),
        record("delete", "pub/golden", "wrong key", "refused"),
        record("delete", "pub/1", "wrong key", "done"),
    ];
    assert_eq!(records, want);
}
