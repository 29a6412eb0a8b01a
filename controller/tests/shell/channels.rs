//! Channels: which one a build is for, and who says so.

use crate::common::people::submission;
use crate::common::pipelines::ONE;
use crate::common::{Controller, refused};
use railyard_proto::v1;
use tonic::Code;

/// [`ONE`], whose builds are for the channel `nightly` unless a parameter says otherwise.
fn nightly() -> String {
    ONE.replace("name: one\n", "name: one\nparams: { branch: { default: nightly } }\nchannel: '{{ branch }}'\n")
}

#[tokio::test]
async fn whoever_submits_names_the_channel_or_else_the_pipeline_does() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let named = |version: &str, channel: &str, branch: &str| v1::SubmitRequest {
        channel: channel.to_owned(),
        params: [("branch".to_owned(), branch.to_owned())].into(),
        ..submission(&nightly(), version)
    };
    for (version, channel, branch, want) in [
        ("1", "", "nightly", "nightly"),
        ("2", "", "main", "main"),
        ("3", "", "", "default"),
        ("4", "beta", "main", "beta"),
        ("5", "default", "main", "default"),
        ("6", "beta", "Not/A Channel", "beta"),
    ] {
        let request = named(version, channel, branch);
        let planned = person.rpc.clone().plan(request.clone()).await.unwrap().into_inner();
        let build = person.try_submit(request).await.unwrap().build;
        assert_eq!((planned.channel.as_str(), person.build(&build).await.channel.as_str()), (want, want), "{version}");
    }
    let message =
        refused(person.try_submit(named("7", "", "Not/A Channel")).await, Code::InvalidArgument, "bad-pipeline");
    assert!(message.contains("`Not/A Channel` is not a channel name"), "{message}");
    let message = refused(person.try_submit(named("7", "a/b", "x")).await, Code::InvalidArgument, "bad-request");
    assert!(message.contains("`a/b` is not a channel name"), "{message}");
    // The channels' directory lies where a build of that version would.
    let message = refused(person.try_submit(named("channels", "", "x")).await, Code::InvalidArgument, "bad-request");
    assert!(message.contains("not builds.json, latest.json or channels"), "{message}");
}

#[tokio::test]
async fn another_channel_is_another_request() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let keyed = |channel: &str| v1::SubmitRequest {
        idempotency_key: "k".to_owned(),
        channel: channel.to_owned(),
        ..submission(ONE, "")
    };
    let first = person.try_submit(keyed("beta")).await.unwrap();
    assert!(person.try_submit(keyed("beta")).await.unwrap().existing);
    for other in ["", "stable"] {
        let message = refused(person.try_submit(keyed(other)).await, Code::AlreadyExists, "key-reused");
        assert!(message.contains(&first.build), "{message}");
    }
}
