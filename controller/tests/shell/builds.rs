//! Builds of other builds: which one is meant, what of it is handed on, and to whom.

use crate::common::people::submission;
use crate::common::transfers::artifact;
use crate::common::worker::{failed, lease, report, succeeded};
use crate::common::{Controller, Worker, refused};
use railyard_proto::v1;
use railyard_proto::v1::lease_order::Image as OrderImage;
use tonic::Code;

const SDK: &str = "
name: sdk
platforms: [linux/amd64]
steps:
  - name: tools
    image: debian:bookworm
    script: make tools
    commit: true
    outputs: ['*.deb', notes.txt]
";

const OS: &str = "
name: os
platforms: [linux/amd64]
params: { sdk: { default: sdk } }
steps:
  - name: image
    image: { build: '{{ sdk }}', step: tools }
    inputs: [{ build: '{{ sdk }}', step: tools, artifacts: ['*.deb'] }]
    script: make image
";

/// Does a job of [`SDK`]; gives its image.
async fn make(worker: &mut Worker, mark: &str) -> v1::Image {
    let held = lease(&worker.order().await);
    let (image, uploads) = worker.image(held, format!("{{\"of\": \"{mark}\"}}").as_bytes(), &[mark.as_bytes()]).await;
    let mut request = v1::ReportRequest { image: Some(image.clone()), uploads, ..report(held, succeeded()) };
    for (path, text) in [("a.deb", format!("package of {mark}")), ("notes.txt", format!("notes of {mark}"))] {
        let sent = worker.upload(held, text.as_bytes()).await;
        request.artifacts.push(artifact(path, &sent.blob));
        request.uploads.extend(sent.upload);
    }
    worker.try_report(request).await.unwrap();
    image
}

fn os(version: &str, sdk: &str) -> v1::SubmitRequest {
    v1::SubmitRequest { params: [("sdk".to_owned(), sdk.to_owned())].into(), ..submission(OS, version) }
}

fn sdk(version: &str, channel: &str) -> v1::SubmitRequest {
    v1::SubmitRequest { channel: channel.to_owned(), ..submission(SDK, version) }
}

#[tokio::test]
async fn a_build_takes_an_image_and_artifacts_from_another_one() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let wanted = async |version: &str, reference: &str| {
        refused(person.try_submit(os(version, reference)).await, Code::InvalidArgument, "bad-pipeline")
    };
    let message = wanted("0", "sdk").await;
    assert_eq!(
        message,
        "railyard.yaml:7:22: no build of pipeline `sdk` has succeeded\nrailyard.yaml:8:24: no build of pipeline `sdk` has succeeded"
    );
    person.try_submit(sdk("1", "")).await.unwrap();
    assert!(wanted("0", "sdk/1").await.contains("build `sdk/1` has not succeeded: it has not ended"));
    let first = make(&mut worker, "1").await;
    person.ended("sdk/1").await;
    person.try_submit(sdk("2", "nightly")).await.unwrap();
    let second = make(&mut worker, "2").await;
    person.ended("sdk/2").await;

    let golden = v1::TagBuildRequest { build: "sdk/1".to_owned(), tag: "golden".to_owned() };
    person.rpc.clone().tag_build(golden).await.unwrap();
    for (version, reference, build, image) in [
        ("0", "sdk/golden", "sdk/1", &first),
        ("1", "sdk/1", "sdk/1", &first),
        ("2", "sdk", "sdk/2", &second),
        ("3", "sdk:default", "sdk/1", &first),
        ("4", "sdk:nightly", "sdk/2", &second),
    ] {
        let planned = person.rpc.clone().plan(os(version, reference)).await.unwrap().into_inner();
        let want = format!("image of tools@linux/amd64 of {build}");
        assert_eq!((planned.uses.as_slice(), planned.jobs[0].image.as_str()), (&[build.to_owned()][..], want.as_str()));
        let made = person.try_submit(os(version, reference)).await.unwrap().build;
        assert_eq!(person.build(&made).await.uses, [build]);
        let order = worker.order().await;
        assert_eq!(order.image, Some(OrderImage::Committed(image.clone())), "{reference}");
        let [input] = order.inputs.as_slice() else { panic!("{:?}", order.inputs) };
        assert_eq!(input.mount_path, "/inputs/tools/a.deb");
        let blob = input.artifact.as_ref().and_then(|artifact| artifact.blob.as_ref()).unwrap();
        let text = format!("package of {}", build.trim_start_matches("sdk/"));
        assert_eq!(worker.download(lease(&order), blob).await, text.as_bytes());
        worker.succeed(lease(&order)).await;
        person.ended(&made).await;
        assert_eq!(controller.cached_json(&format!("builds/{made}/build.json")).await["uses"][0], build);
    }

    person.try_submit(sdk("3", "")).await.unwrap();
    let third = lease(&worker.order().await);
    worker.try_report(report(third, failed("exit code 1"))).await.unwrap();
    person.ended("sdk/3").await;
    for (reference, why) in [
        ("sdk/3", "build `sdk/3` has not succeeded: it has failed"),
        ("sdk/4", "there is no build `sdk/4`, and no build of sdk has that tag"),
        ("tools", "no build of pipeline `tools` has succeeded"),
        ("sdk:beta", "no build of pipeline `sdk` has succeeded in the channel `beta`"),
        ("sdk/1/2", "`sdk/1/2` is not a build: expected PIPELINE/VERSION"),
    ] {
        let message = wanted("9", reference).await;
        assert!(message.contains(why) && message.starts_with("railyard.yaml:7:22: "), "{reference}: {message}");
    }
    let lacking = OS.replace("'*.deb'", "'*.rpm'");
    let message = refused(person.try_submit(submission(&lacking, "9")).await, Code::InvalidArgument, "bad-pipeline");
    assert!(message.contains("no artifact of step `tools` of build `sdk/2` matches `*.rpm`"), "{message}");
}

#[tokio::test]
async fn nobody_uses_what_is_not_for_them() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    person.try_submit(v1::SubmitRequest { untrusted: true, ..submission(SDK, "1") }).await.unwrap();
    make(&mut worker, "a stranger").await;
    person.ended("sdk/1.untrusted").await;
    // The newest of a pipeline is not a stranger's; one that is named is for strangers' builds.
    let message = refused(person.try_submit(os("1", "sdk")).await, Code::InvalidArgument, "bad-pipeline");
    assert!(message.contains("no build of pipeline `sdk` has succeeded"), "{message}");
    let message = refused(person.try_submit(os("1", "sdk/1.untrusted")).await, Code::InvalidArgument, "bad-pipeline");
    assert!(message.contains("build `sdk/1.untrusted` is untrusted, and this one is not"), "{message}");
    let change = v1::SubmitRequest { untrusted: true, ..os("1", "sdk/1.untrusted") };
    assert_eq!(person.try_submit(change).await.unwrap().build, "os/1.untrusted");
    let order = worker.order().await;
    worker.succeed(lease(&order)).await;

    person.try_submit(sdk("1", "")).await.unwrap();
    make(&mut worker, "1").await;
    person.ended("sdk/1").await;
    let outsider = controller.limited("railyard://submitter/ci?pipeline=os");
    let message = refused(outsider.try_submit(os("2", "sdk/1")).await, Code::PermissionDenied, "forbidden");
    assert!(message.contains("is limited to os, and pipeline sdk is not among them"), "{message}");
    assert!(outsider.rpc.clone().plan(os("2", "sdk")).await.is_err());
    person.try_submit(os("2", "sdk/1")).await.unwrap();
}
