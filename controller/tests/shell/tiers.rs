//! Untrusted builds: they read the cache, and write nothing that a release reads.

use crate::common::people::{Person, submission};
use crate::common::pipelines::{ONE, PUBLISH};
use crate::common::transfers::artifact;
use crate::common::worker::{hello, lease, report, succeeded};
use crate::common::{Backend, Controller, Worker, on_both, refused};
use bytesize::ByteSize;
use railyard_controller::cache::CacheConfig;
use railyard_controller::config::UntrustedConfig;
use railyard_controller::policy::PolicyRule;
use railyard_proto::v1;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tonic::Code;

on_both!(
    an_untrusted_build_changes_nothing_that_a_release_reads,
    a_blob_that_an_untrusted_build_spoils_is_not_there_for_a_release,
    an_untrusted_build_reads_what_a_release_has_left,
);

/// The second step takes what the first one made.
const CHAIN: &str = "
name: chain
platforms: [linux/amd64]
steps:
  - { name: make, image: 'debian:bookworm', script: make, outputs: [x] }
  - { name: take, image: 'debian:bookworm', script: take, inputs: [{ step: make }] }
";

async fn an_untrusted_build_reads_what_a_release_has_left(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let person = controller.operator();
    let mut worker = controller.worker("anvil").await;
    let bytes = b"what both of them make".as_slice();
    for untrusted in [false, true] {
        person.try_submit(v1::SubmitRequest { untrusted, ..submission(CHAIN, "1") }).await.unwrap();
        let order = worker.order().await;
        let sent = worker.upload(lease(&order), bytes).await;
        assert_eq!(sent.upload.is_none(), untrusted, "it is there, and nothing is sent");
        let artifacts = vec![artifact("x", &sent.blob)];
        let uploads = sent.upload.into_iter().collect();
        let done = v1::ReportRequest { artifacts, uploads, ..report(lease(&order), succeeded()) };
        worker.try_report(done).await.unwrap();
        let order = worker.order().await;
        let blob = order.inputs[0].artifact.clone().unwrap().blob.unwrap();
        assert_eq!(worker.download(lease(&order), &blob).await, bytes);
        worker.succeed(lease(&order)).await;
        person.ended(&order.build).await;
    }
}

/// It publishes where every build of it does, leaves an image, and its builds supersede each other.
const OS: &str = "
name: os
platforms: [linux/amd64]
supersede: main
steps:
  - name: image
    image: debian:bookworm
    script: make
    commit: true
    outputs:
      - { path: 'out/*', publish: images/stable }
";

fn untrusted(pipeline: &str, version: &str) -> v1::SubmitRequest {
    v1::SubmitRequest { untrusted: true, ..submission(pipeline, version) }
}

/// Does the next job of [`OS`], and waits for its build's end.
async fn make(person: &Person, worker: &mut Worker, files: &[(&str, &[u8])]) -> v1::BuildView {
    let order = worker.order().await;
    let (lease, build) = (lease(&order), order.build.clone());
    let layer = format!("layer of {build}");
    let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Labels": { "build": build } } });
    let (image, uploads) = worker.image(lease, config.to_string().as_bytes(), &[layer.as_bytes()]).await;
    let mut request = v1::ReportRequest { image: Some(image), uploads, ..report(lease, succeeded()) };
    for (path, bytes) in files {
        let sent = worker.upload(lease, bytes).await;
        request.artifacts.push(artifact(path, &sent.blob));
        request.uploads.extend(sent.upload);
    }
    worker.try_report(request).await.unwrap();
    person.ended(&build).await
}

/// Everything in the cache but blobs, which nobody reads who was not told their digest.
fn objects(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let (mut objects, mut waiting) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            match entry.file_type().unwrap().is_dir() {
                true if name == "blobs" || name == "uploads" => {}
                true => waiting.push(entry.path()),
                false => drop(objects.insert(name, std::fs::read(entry.path()).unwrap())),
            }
        }
    }
    objects
}

impl Controller {
    /// What the registry says of the step of [`OS`].
    async fn registry(&self, what: &str) -> String {
        let answer = self.browser().get(format!("{}/v2/os/image/{what}", self.url)).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{what}");
        answer.text().await.unwrap()
    }
}

async fn an_untrusted_build_changes_nothing_that_a_release_reads(backend: Backend) {
    let controller = Controller::start_on(backend).await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let release = |version| v1::SubmitRequest { priority: "release".to_owned(), ..submission(OS, version) };
    person.try_submit(release("1.0")).await.unwrap();
    let first = make(&person, &mut worker, &[("out/disk", b"the release")]).await;
    assert_eq!((first.state(), first.untrusted), (v1::BuildState::Succeeded, false), "{}", first.finalize_error);
    let before = objects(&controller.objects());
    let documents =
        async || [controller.registry("manifests/latest").await, controller.registry("manifests/1.0").await];
    let images = documents().await;

    // The same version, the same files with other bytes; and the bytes of the sums, as a file of its own.
    let made = person.try_submit(untrusted(OS, "1.0")).await.unwrap();
    assert_eq!(made.build, "os/1.0.untrusted");
    assert_eq!(made.warnings, ["image@linux/amd64: out/* is not published at images/stable: the build is untrusted"]);
    let sums = before["images/stable/SHA256SUMS"].clone();
    let files: [(&str, &[u8]); 3] = [("out/disk", b"the change"), ("out/more", b"more"), ("out/SHA256SUMS", &sums)];
    let change = make(&person, &mut worker, &files).await;
    assert_eq!((change.state(), change.untrusted), (v1::BuildState::Succeeded, true), "{}", change.finalize_error);
    assert_eq!(change.priority, "change");
    assert!(change.jobs[0].artifacts.iter().all(|artifact| artifact.published.is_empty()));
    let signed = person.sign("os/1.0.untrusted", &["disk"]).await.unwrap();
    assert_eq!(worker.http.get(&signed[0].url).send().await.unwrap().text().await.unwrap(), "the change");

    let mut after = objects(&controller.objects());
    let own: Value = serde_json::from_slice(&after.remove("builds/os/1.0.untrusted/build.json").unwrap()).unwrap();
    assert_eq!((&own["untrusted"], &own["verdict"]), (&json!(true), &json!("succeeded")));
    assert_eq!(own["jobs"][0]["artifacts"][0].get("published"), None);
    assert!(!String::from_utf8_lossy(&before["builds/os/1.0/build.json"]).contains("untrusted"));
    after.retain(|path, _| !path.starts_with("logs/os/1.0.untrusted/"));
    assert_eq!(after, before, "something that a release reads is not as it was");
    assert_eq!(documents().await, images);
    let tags: Value = serde_json::from_str(&controller.registry("tags/list").await).unwrap();
    assert_eq!(tags["tags"], json!(["1.0", "1.0.untrusted", "latest"]));
    assert_eq!(person.build("os").await.build, "os/1.0", "the newest of a pipeline is not a stranger's");

    // And the next release is right, its sums included.
    person.try_submit(release("2.0")).await.unwrap();
    let second = make(&person, &mut worker, &[("out/disk", b"the release"), ("out/more", b"of the release")]).await;
    assert_eq!(second.state(), v1::BuildState::Succeeded, "{}", second.finalize_error);
    assert_eq!(controller.cached("images/stable/more").await.unwrap(), "of the release");
    let sums = controller.cached("images/stable/SHA256SUMS").await.unwrap();
    let names: Vec<&str> = sums.lines().filter_map(|line| line.split_once("  ")).map(|(_, name)| name).collect();
    assert_eq!(names, ["disk", "more"]);
    assert_eq!(controller.cached_json("builds/os/latest.json").await["version"], "2.0");
    let index = controller.cached_json("builds/os/builds.json").await;
    let versions: Vec<&Value> = index["builds"].as_array().unwrap().iter().map(|build| &build["version"]).collect();
    assert_eq!(versions, ["2.0", "1.0"]);
}

/// A stranger's step has broken out, and its worker sends other bytes than it says, under a digest that a release will have.
async fn a_blob_that_an_untrusted_build_spoils_is_not_there_for_a_release(backend: Backend) {
    let believing = |cache: &mut CacheConfig| match cache {
        CacheConfig::S3(config) => config.read_back = ByteSize(0),
        CacheConfig::Embedded(_) => {}
    };
    let controller = Controller::start_on_with(backend, |config| config.cache.iter_mut().for_each(believing)).await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let (right, wrong): (&[u8], &[u8]) = (b"what the release has", b"what strangers send!");
    person.try_submit(untrusted(PUBLISH, "1")).await.unwrap();
    let stranger = lease(&worker.order().await);
    let sent = worker.upload_as(stranger, right, wrong).await;
    let lie = v1::ReportRequest {
        artifacts: vec![artifact("out/disk", &sent.blob)],
        uploads: sent.upload.into_iter().collect(),
        ..report(stranger, succeeded())
    };
    let message = refused(worker.try_report(lie.clone()).await, Code::DataLoss, "bad-upload");
    assert!(message.contains("is corrupt and was removed"), "{message}");
    // Said once more it is no truer; nor without the upload.
    refused(worker.try_report(lie.clone()).await, Code::NotFound, "not-found");
    let claimed = v1::ReportRequest { uploads: Vec::new(), ..lie };
    refused(worker.try_report(claimed).await, Code::FailedPrecondition, "bad-upload");

    let build = person.submit(PUBLISH, "2").await;
    let own = lease(&worker.order().await);
    let sent = worker.upload(own, right).await;
    assert!(sent.upload.is_some(), "what nobody has verified is not there");
    let done = v1::ReportRequest {
        artifacts: vec![artifact("out/disk", &sent.blob)],
        uploads: sent.upload.into_iter().collect(),
        ..report(own, succeeded())
    };
    worker.try_report(done).await.unwrap();
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    assert_eq!(controller.cached("images/2/disk").await.unwrap().as_bytes(), right);
}

#[tokio::test]
async fn a_build_supersedes_only_builds_of_its_own_tier() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let trusted = person.try_submit(submission(OS, "1")).await.unwrap();
    let first = person.try_submit(untrusted(OS, "1")).await.unwrap();
    let second = person.try_submit(untrusted(OS, "2")).await.unwrap();
    assert_eq!((first.superseded, second.superseded), (vec![], vec!["os/1.untrusted".to_owned()]));
    let third = person.try_submit(submission(OS, "3")).await.unwrap();
    assert_eq!(third.superseded, [trusted.build]);
    assert_eq!(person.build("os/2.untrusted").await.state(), v1::BuildState::Running);
}

#[tokio::test]
async fn the_name_tells_the_tier() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let build = async |request| person.try_submit(request).await.unwrap().build;
    assert_eq!(build(untrusted(ONE, "1.0")).await, "one/1.0.untrusted");
    assert_eq!(build(untrusted(ONE, "1.1.untrusted")).await, "one/1.1.untrusted");
    let generated = build(untrusted(ONE, "")).await;
    assert!(generated.starts_with("one/20") && generated.ends_with(".untrusted"), "{generated}");
    refused(person.try_submit(untrusted(ONE, "1.0")).await, Code::AlreadyExists, "build-exists");
    let posing = submission(ONE, "1.2.untrusted");
    for refused_here in
        [person.try_submit(posing.clone()).await.map(drop), person.rpc.clone().plan(posing).await.map(drop)]
    {
        let message = refused(refused_here, Code::InvalidArgument, "bad-request");
        assert!(message.contains("which only untrusted builds have"), "{message}");
    }
    let long = refused(person.try_submit(untrusted(ONE, &"1".repeat(119))).await, Code::InvalidArgument, "bad-request");
    assert!(long.contains("too long for an untrusted build"), "{long}");

    // A key is its tier's.
    let keyed = |request| v1::SubmitRequest { idempotency_key: "k".to_owned(), ..request };
    let (one, other) = (build(keyed(submission(ONE, ""))).await, build(keyed(untrusted(ONE, ""))).await);
    assert_ne!(one, other);
    let again = person.try_submit(keyed(untrusted(ONE, ""))).await.unwrap();
    assert_eq!((again.build, again.existing), (other, true));
    // Nobody makes up a key of the other tier.
    let odd = v1::SubmitRequest { idempotency_key: "untrusted:olga/one/k".to_owned(), ..submission(ONE, "") };
    assert!(!person.try_submit(odd).await.unwrap().existing);

    let listed = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    let marked = |view: &v1::BuildView| view.untrusted == view.build.ends_with(".untrusted");
    assert!(listed.len() == 6 && listed.iter().all(marked));
}

#[tokio::test]
async fn everybody_else_goes_first() {
    let controller = Controller::start().await;
    let person = controller.operator();
    for priority in ["release", "manual", "schedule"] {
        let urgent = v1::SubmitRequest { priority: priority.to_owned(), ..untrusted(ONE, "1") };
        let message = refused(person.try_submit(urgent).await, Code::InvalidArgument, "bad-request");
        assert_eq!(message, format!("an untrusted build has priority change at most, not {priority}"));
    }
    for (version, priority) in [("1", ""), ("2", "change")] {
        let request = v1::SubmitRequest { priority: priority.to_owned(), ..untrusted(ONE, version) };
        let build = person.try_submit(request).await.unwrap().build;
        assert_eq!(person.build(&build).await.priority, "change");
    }
}

/// Whoever builds strangers' changes has a token for that and for nothing else.
#[tokio::test]
async fn a_submitter_of_untrusted_builds_submits_cancels_and_retries_no_others() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let busy = v1::Capacity { slots: 1, ..hello("anvil").capacity.unwrap() };
    let mut worker = controller.worker_saying(v1::Hello { capacity: Some(busy), ..hello("anvil") }).await;
    let bot = controller.limited("railyard://submitter/ci-changes?pipeline=one&tier=untrusted");
    let trusted = person.submit(ONE, "1").await;
    let held = lease(&worker.order().await);

    let words = "submitter ci-changes is limited to untrusted builds";
    let made = bot.try_submit(submission(ONE, "pr-7")).await.unwrap();
    assert_eq!(
        (made.build.as_str(), made.warnings),
        ("one/pr-7.untrusted", vec![format!("{words}: this one is untrusted")])
    );
    assert!(bot.build(&made.build).await.untrusted);
    assert_eq!(bot.plan(ONE).await.warnings, [format!("{words}: this one is untrusted")]);
    assert!(bot.try_submit(untrusted(ONE, "pr-8")).await.unwrap().warnings.is_empty());
    let urgent = v1::SubmitRequest { priority: "manual".to_owned(), ..submission(ONE, "pr-9") };
    refused(bot.try_submit(urgent).await, Code::InvalidArgument, "bad-request");
    refused(bot.try_submit(submission(PUBLISH, "1")).await, Code::PermissionDenied, "forbidden");

    // It reads what is trusted, and stops and repeats what is not.
    assert_eq!(bot.build("one").await.build, trusted);
    let retry = |build: &str| v1::RetryRequest { build: build.to_owned(), step: String::new() };
    for tried in [
        bot.cancel(&trusted, "").await,
        bot.cancel("one", "").await,
        bot.cancel_jobs(&trusted, "work", "").await.map(drop),
    ] {
        let message = refused(tried, Code::PermissionDenied, "forbidden");
        assert_eq!(message, format!("{words}, and {trusted} is none"));
    }
    refused(bot.rpc.clone().retry(retry(&trusted)).await, Code::PermissionDenied, "forbidden");
    assert_eq!(person.build(&trusted).await.state(), v1::BuildState::Running);
    worker.succeed(held).await;
    person.ended(&trusted).await;
    let other = person.try_submit(untrusted(PUBLISH, "1")).await.unwrap().build;
    refused(bot.cancel(&other, "").await, Code::PermissionDenied, "forbidden");
    bot.cancel("one/pr-8.untrusted", "wrong").await.unwrap();
    assert_eq!(bot.ended("one/pr-8.untrusted").await.state(), v1::BuildState::Cancelled);
    bot.rpc.clone().retry(retry("one/pr-8.untrusted")).await.unwrap();
    assert!(bot.build("one/pr-8.untrusted").await.untrusted);

    let audit = std::fs::read_dir(controller.data_dir().join("audit")).unwrap();
    let audit: String = audit.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect();
    let submits = audit.lines().filter(|line| line.contains(r#""submit""#) && line.contains(r#""outcome":"done""#));
    let submits: Vec<bool> = submits.map(|line| line.contains(r#""tier":"untrusted""#)).collect();
    assert_eq!(submits, [false, true, true, true], "who asked for which tier");
}

/// One step with more fields, in a pipeline that an operator lets do all that there is.
fn wanting(more: &str) -> String {
    format!("name: vm\nsteps:\n  - name: work\n    image: debian:bookworm\n    script: work\n    {more}\n")
}

fn rule(name: &str, allow: &[&str], untrusted: bool) -> PolicyRule {
    let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
    PolicyRule { name: name.to_owned(), pipelines: vec!["vm".to_owned()], allow, reserve: Vec::new(), untrusted }
}

#[tokio::test]
async fn rights_of_the_trusted_are_not_those_of_strangers() {
    let all = ["privileged", "devices:/dev/kvm", "host-paths:/srv/ccache:rw"];
    let controller = Controller::start_with(|config| {
        config.policy = vec![rule("all", &all, false), rule("kvm", &["devices:/dev/kvm"], true)];
    })
    .await;
    let person = controller.operator();
    let said = v1::Hello { allows_privileged: true, allows: vec!["devices:/dev/kvm".to_owned()], ..hello("anvil") };
    let mut worker = controller.worker_saying(said).await;
    for (more, help) in [
        ("privileged: true", "No rule can allow it, for the build is untrusted: a privileged step has its host"),
        ("capabilities: [SYS_ADMIN]", "No rule can allow it, for the build is untrusted"),
        ("host_paths: ['/srv/ccache:/c:rw']", "No rule can allow it, for the build is untrusted"),
        ("host_paths: ['/srv/ccache:/c']", "rule with `untrusted = true` for pipeline vm"),
        ("devices: [/dev/fuse]", "rule with `untrusted = true` for pipeline vm"),
    ] {
        let request = untrusted(&wanting(more), "1");
        let message = refused(person.try_submit(request.clone()).await, Code::PermissionDenied, "policy");
        assert!(message.contains(help) && message.contains("rule `kvm` allows only devices:/dev/kvm"), "{message}");
        let planned = person.rpc.clone().plan(request).await;
        assert_eq!(refused(planned, Code::PermissionDenied, "policy"), message);
    }
    person.submit(&wanting("privileged: true"), "1").await;
    assert!(worker.order().await.run.unwrap().privileged, "others have what they had");
    person
        .try_submit(untrusted(&wanting("devices: [/dev/kvm, '/dev/fuse?']"), "2"))
        .await
        .map(|made| {
            assert_eq!(
                made.warnings,
                ["work@linux/amd64 does without `devices:/dev/fuse`: rule `kvm` allows only devices:/dev/kvm"]
            );
        })
        .unwrap();
    let devices = worker.order().await.run.unwrap().devices;
    assert_eq!(devices.iter().map(|device| device.path.as_str()).collect::<Vec<_>>(), ["/dev/kvm"]);
}

#[tokio::test]
async fn strangers_jobs_share_no_host_with_others() {
    let signing = ONE.replace("script: work", "script: work\n    pool: signing");
    for (pool, place) in [(Some("changes"), "in pool changes"), (None, "on workers without a pool")] {
        let setting = UntrustedConfig { pool: pool.map(|name| name.parse().unwrap()) };
        let controller = Controller::start_with(|config| config.untrusted = setting).await;
        let person = controller.operator();
        let in_pool = |name: &str, pool: &str| v1::Hello { pool: pool.to_owned(), ..hello(name) };
        let mut signer = controller.worker_saying(in_pool("signer", "signing")).await;
        let (mut stranger, mut plain) =
            (controller.worker_saying(in_pool("stranger", "changes")).await, controller.worker("plain").await);
        let line = format!("work@linux/amd64: it runs {place}, not in pool signing: the build is untrusted");
        let planned = person.rpc.clone().plan(untrusted(&signing, "1")).await.unwrap().into_inner();
        assert_eq!((planned.warnings, planned.jobs[0].pool.as_str()), (vec![line.clone()], pool.unwrap_or_default()));
        let made = person.try_submit(untrusted(&signing, "1")).await.unwrap();
        assert_eq!(made.warnings, [line]);
        person.submit(&signing, "1").await;
        person.submit(&ONE.replace("name: one", "name: plain"), "1").await;
        assert_eq!(signer.order().await.build, "one/1");
        let own = if pool.is_some() { &mut stranger } else { &mut plain };
        let first = own.order().await.build;
        if pool.is_some() {
            assert_eq!((first.as_str(), plain.order().await.build.as_str()), ("one/1.untrusted", "plain/1"));
        } else {
            let both = BTreeSet::from([first, own.order().await.build]);
            assert_eq!(both, BTreeSet::from(["one/1.untrusted".to_owned(), "plain/1".to_owned()]));
        }
    }
}
