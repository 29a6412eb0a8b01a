//! Secrets: stored by operators, given to the worker that runs a step that they are for, and to nobody else.

use crate::common::people::submission;
use crate::common::worker::{Worker, lease};
use crate::common::{Controller, refused};
use railyard_controller::backup;
use railyard_proto::v1;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use railyard_service::rpc_error;
use railyard_service::tls::Role;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use tonic::transport::Channel;
use tonic::{Code, Status};

const CANARY: &str = "canary-3b9d7e-signing\nsecond line of it\n";

fn admin(controller: &Controller, who: Option<(Role, &str)>) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(controller.channel(who))
}

fn olga(controller: &Controller) -> AdminServiceClient<Channel> {
    admin(controller, Some((Role::Operator, "olga")))
}

fn set(name: &str, value: &str, pipelines: &[&str], steps: &[&str]) -> v1::SetSecretRequest {
    let texts = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    v1::SetSecretRequest {
        name: name.to_owned(),
        value: value.as_bytes().to_vec(),
        pipelines: texts(pipelines),
        steps: texts(steps),
        replace: false,
    }
}

fn pipeline(name: &str, secrets: &str) -> String {
    format!(
        "name: {name}\nplatforms: [linux/amd64]\nsteps:\n  - name: sign\n    image: debian:bookworm\n    script: sign\n    secrets: {secrets}\n"
    )
}

async fn fetch(worker: &Worker, lease: v1::LeaseId) -> Result<Vec<(String, Vec<u8>)>, Status> {
    let request = v1::FetchSecretsRequest { lease: Some(lease) };
    let response = worker.rpc.clone().fetch_secrets(request).await?.into_inner();
    Ok(response.secrets.into_iter().map(|file| (file.name, file.value)).collect())
}

/// Files below `dir` with the canary in them, in whatever of its simple forms.
fn files_with_canary(dir: &Path) -> Vec<PathBuf> {
    let words = [b"canary-3b9d7e".to_vec(), hex::encode("canary-3b9d7e").into_bytes(), b"Y2FuYXJ5LTNiOWQ3".to_vec()];
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_with_canary(&path));
        } else if let Ok(bytes) = std::fs::read(&path)
            && words.iter().any(|word| bytes.windows(word.len()).any(|part| part == word))
        {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn a_secret_goes_to_the_worker_that_runs_its_step_and_lies_nowhere_in_the_clear() {
    let controller = Controller::start().await;
    let stored = olga(&controller).set_secret(set("key", CANARY, &["os"], &["sign"])).await.unwrap().into_inner();
    assert!(!stored.replaced);
    let person = controller.operator();
    let build = person.submit(&pipeline("os", "[{ name: key, env: KEY }, 'other?']"), "1").await;
    let mut worker = controller.worker("anvil").await;
    let order = worker.order().await;
    let run = order.run.clone().unwrap();
    assert_eq!(run.secrets.len(), 1, "the optional one is not there");
    assert_eq!((run.secrets[0].name.as_str(), run.secrets[0].env.as_str()), ("key", "KEY"));
    let held = lease(&order);
    assert_eq!(fetch(&worker, held).await.unwrap(), [("key".to_owned(), CANARY.as_bytes().to_vec())]);

    // Whoever does not hold the lease hears nothing, and neither does the one who held it.
    let other = controller.worker("bench").await;
    refused(fetch(&other, held).await, Code::FailedPrecondition, rpc_error::STALE_LEASE);
    let strange = v1::LeaseId { attempt: held.attempt + 1, ..held };
    refused(fetch(&worker, strange).await, Code::FailedPrecondition, rpc_error::STALE_LEASE);
    worker.succeed(held).await;
    refused(fetch(&worker, held).await, Code::FailedPrecondition, rpc_error::STALE_LEASE);
    person.ended(&build).await;

    let listed = olga(&controller).list_secrets(v1::ListSecretsRequest {}).await.unwrap().into_inner().secrets;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        (listed[0].pipelines.as_slice(), listed[0].steps.as_slice()),
        (&["os".to_owned()][..], &["sign".to_owned()][..])
    );
    assert_eq!((listed[0].set_by.as_str(), listed[0].fault.as_str()), ("operator/olga", ""));
    assert_eq!(files_with_canary(controller.data_dir()), Vec::<PathBuf>::new());
    let planned = person.rpc.clone().plan(submission(&pipeline("os", "[key]"), "2")).await.unwrap().into_inner();
    assert!(!format!("{planned:?} {order:?}").contains("canary"), "{planned:?}");
    // What the journal has is packed: unpacked, it is this.
    let state = backup::fetch(controller.channel(Some((Role::Operator, "olga")))).await.unwrap();
    let state = serde_json::to_string(&state).unwrap();
    assert!(state.contains("sign@linux/amd64") && !state.contains("canary"), "{state}");

    let records = v1::ShowAuditRequest { limit: 1000, ..Default::default() };
    let mut stream = olga(&controller).show_audit(records).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(record) = stream.message().await.unwrap() {
        if record.what.starts_with("secret-") {
            let given = record.details.get("secrets").cloned().unwrap_or_default();
            assert!(record.what == "secret-set" || record.outcome == "refused" || given == "key", "{given}");
            seen.push((record.by, record.what, record.target, record.outcome));
        }
    }
    let seen: Vec<_> =
        seen.iter().map(|(by, what, target, outcome)| [by, what, target, outcome].map(String::as_str)).collect();
    assert_eq!(
        seen,
        [
            ["operator/olga", "secret-set", "secret:key", "done"],
            ["worker/anvil", "secret-give", "os/1 sign@linux/amd64", "done"],
            ["worker/bench", "secret-give", "/railyard.v1.WorkerService/FetchSecrets", "refused"],
        ]
    );
}

#[tokio::test]
async fn the_key_can_lie_elsewhere_and_is_made_at_the_first_start_only() {
    let elsewhere = tempfile::tempdir().unwrap();
    let key = elsewhere.path().join("secrets.key");
    let there = key.clone();
    let controller = Controller::start_with(move |config| config.secret_key_file = Some(there)).await;
    olga(&controller).set_secret(set("key", CANARY, &["os"], &[])).await.unwrap();
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!controller.data_dir().join("pki/secrets.key").exists());
    let (address, made) = (controller.address(), std::fs::read(&key).unwrap());
    let controller = controller.stop().await.start(address).await;
    assert_eq!(std::fs::read(&key).unwrap(), made);
    let fault = async |controller: &Controller| {
        let listed = olga(controller).list_secrets(v1::ListSecretsRequest {}).await.unwrap().into_inner().secrets;
        listed[0].fault.clone()
    };
    assert_eq!(fault(&controller).await, "");
    // Without it the controller starts, says so, and gives nothing.
    let stopped = controller.stop().await;
    std::fs::remove_file(&key).unwrap();
    let controller = stopped.start(address).await;
    assert!(fault(&controller).await.contains("secrets.key, cannot be used"));
    let refusal = controller.operator().try_submit(submission(&pipeline("os", "[key]"), "1")).await;
    refused(refusal, Code::FailedPrecondition, rpc_error::SECRET);
}

#[tokio::test]
async fn a_submit_that_wants_what_it_cannot_have_is_refused_and_leaves_nothing() {
    let controller = Controller::start().await;
    olga(&controller).set_secret(set("key", CANARY, &["os"], &["sign"])).await.unwrap();
    olga(&controller).set_secret(set("binary", "one\0two\0three", &["os"], &["sign"])).await.unwrap();
    let person = controller.operator();
    for (name, secrets, word) in [
        ("os", "[nothing]", "wants secret `nothing`"),
        ("other", "[key]", "--pipeline other --step sign"),
        ("other", "[{ name: key, env: KEY }]", "write `key?`"),
        ("os", "[{ name: binary, env: KEY }]", "it has bytes of zero"),
    ] {
        let text = pipeline(name, secrets);
        let message =
            refused(person.try_submit(submission(&text, "1")).await, Code::FailedPrecondition, rpc_error::SECRET);
        assert!(message.contains(word) && message.contains("sign@linux/amd64"), "{message}");
        let planned = person.rpc.clone().plan(submission(&text, "1")).await;
        refused(planned.map(tonic::Response::into_inner), Code::FailedPrecondition, rpc_error::SECRET);
    }
    let all = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    assert_eq!(all.len(), 0);
    let answer = person.try_submit(submission(&pipeline("other", "['key?']"), "1")).await.unwrap();
    assert!(answer.warnings[0].contains("sign@linux/amd64 does without secret `key`"), "{:?}", answer.warnings);
}

#[tokio::test]
async fn an_untrusted_build_gets_none_and_does_not_hear_whether_there_is_one() {
    let controller = Controller::start().await;
    olga(&controller).set_secret(set("key", CANARY, &["os"], &[])).await.unwrap();
    let person = controller.operator();
    let untrusted = |secrets: &str| v1::SubmitRequest { untrusted: true, ..submission(&pipeline("os", secrets), "1") };
    for name in ["key", "nothing"] {
        let answer = person.try_submit(untrusted(&format!("[{name}]"))).await;
        let message = refused(answer, Code::PermissionDenied, rpc_error::SECRET);
        assert_eq!(
            message,
            format!(
                "job sign@linux/amd64 wants secret `{name}`, and untrusted builds get none; write `{name}?` if the step can do without"
            )
        );
    }
    let answer = person.try_submit(untrusted("['key?', 'nothing?']")).await.unwrap();
    assert!(answer.warnings.iter().filter(|line| line.contains("the build is untrusted")).count() == 2, "{answer:?}");
    let mut worker = controller.worker("anvil").await;
    let order = worker.order().await;
    assert_eq!(order.run.clone().unwrap().secrets, []);
    assert_eq!(fetch(&worker, lease(&order)).await.unwrap(), []);
}

#[tokio::test]
async fn a_secret_that_went_or_changed_meanwhile_is_told_or_given_as_it_is_now() {
    let controller = Controller::start().await;
    for name in ["gone", "new"] {
        olga(&controller).set_secret(set(name, CANARY, &["os"], &[])).await.unwrap();
    }
    let person = controller.operator();
    let keyed = v1::SubmitRequest { idempotency_key: "k".to_owned(), ..submission(&pipeline("os", "[gone]"), "1") };
    assert!(!person.try_submit(keyed.clone()).await.unwrap().existing);
    person.submit(&pipeline("os", "[new]"), "2").await;
    let name = || "gone".to_owned();
    olga(&controller).remove_secret(v1::RemoveSecretRequest { name: name() }).await.unwrap();
    let repeated = person.try_submit(keyed).await.unwrap();
    assert!(repeated.existing && repeated.build == "os/1", "{repeated:?}");
    let again = olga(&controller).remove_secret(v1::RemoveSecretRequest { name: name() }).await;
    refused(again, Code::NotFound, rpc_error::NOT_FOUND);
    let replaced = olga(&controller).set_secret(set("new", "another value", &["os"], &[])).await.unwrap();
    assert!(replaced.into_inner().replaced);
    let mut worker = controller.worker("anvil").await;
    for _ in 0..2 {
        let order = worker.order().await;
        let fetched = fetch(&worker, lease(&order)).await;
        match order.build.as_str() {
            "os/1" => {
                let message = refused(fetched, Code::FailedPrecondition, rpc_error::SECRET);
                assert!(message.contains("wants secret `gone`"), "{message}");
            }
            _ => assert_eq!(fetched.unwrap(), [("new".to_owned(), b"another value".to_vec())]),
        }
    }
}

#[tokio::test]
async fn bad_secrets_are_refused_and_never_repeated_to_anybody() {
    let controller = Controller::start().await;
    let long = "canary-3b9d7e".repeat(6_000);
    for (request, word) in [
        (set("key", "short", &["os"], &[]), "at least 8"),
        (set("key", &long, &["os"], &[]), "at most 65536"),
        (set("key", CANARY, &[], &["sign"]), "name at least one"),
        (set("../key", CANARY, &["os"], &[]), "is not a secret name"),
        (set("key", CANARY, &["No Pipeline"], &[]), "pipelines"),
        (set("key", CANARY, &["os"], &["No Step"]), "steps"),
    ] {
        let answer = olga(&controller).set_secret(request).await;
        let message = refused(answer, Code::InvalidArgument, rpc_error::BAD_REQUEST);
        assert!(message.contains(word) && !message.contains("canary"), "{message}");
    }
    for who in [Some((Role::Submitter, "ana")), Some((Role::Viewer, "vic")), Some((Role::Worker, "anvil"))] {
        let answer = admin(&controller, who).set_secret(set("key", CANARY, &["os"], &[])).await;
        refused(answer, Code::PermissionDenied, rpc_error::FORBIDDEN);
        let answer = admin(&controller, who).list_secrets(v1::ListSecretsRequest {}).await;
        refused(answer, Code::PermissionDenied, rpc_error::FORBIDDEN);
    }
    let listed = olga(&controller).list_secrets(v1::ListSecretsRequest {}).await.unwrap().into_inner().secrets;
    assert_eq!(listed, []);
    assert_eq!(files_with_canary(controller.data_dir()), Vec::<PathBuf>::new());
}
