//! What steps may have: by the operator's policy at submit, and by the worker's settings where they run.

use crate::common::people::submission;
use crate::common::worker::hello;
use crate::common::{Controller, refused};
use railyard_common::retention::Rule;
use railyard_controller::ControllerConfig;
use railyard_controller::cache::{CacheConfig, EmbeddedConfig};
use railyard_controller::policy::PolicyRule;
use railyard_proto::v1;
use railyard_service::tls::Role;
use tonic::Code;

/// A pipeline whose one step has more fields.
fn pipeline(name: &str, more: &str) -> String {
    format!("name: {name}\nsteps:\n  - name: work\n    image: debian:bookworm\n    script: work\n    {more}\n")
}

#[tokio::test]
async fn nobody_publishes_or_runs_where_a_rule_keeps_others_out() {
    let rule = PolicyRule {
        name: "releases".to_owned(),
        pipelines: vec!["os".to_owned()],
        allow: Vec::new(),
        reserve: vec!["pool:signing".parse().unwrap(), "publish:images".parse().unwrap()],
        untrusted: false,
    };
    let controller = Controller::start_with(|config| config.policy = vec![rule]).await;
    let person = controller.person(Role::Submitter, "ana");
    for more in ["pool: signing", "outputs: [{ path: x, publish: images/amd64/1 }]"] {
        let refusal = person.try_submit(submission(&pipeline("other", more), "1")).await;
        let message = refused(refusal, Code::PermissionDenied, "policy");
        assert!(message.contains("rule `releases`") && message.contains("work@linux/amd64"), "{message}");
        person.submit(&pipeline("os", more), if more.starts_with("pool") { "1" } else { "2" }).await;
    }
}

async fn farm() -> Controller {
    let rule = |name: &str, pipeline: &str, allow: &[&str]| PolicyRule {
        name: name.to_owned(),
        pipelines: vec![pipeline.to_owned()],
        allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        reserve: Vec::new(),
        untrusted: false,
    };
    Controller::start_with(|config| {
        config.policy = vec![rule("images", "os-*", &["privileged"]), rule("boot", "vm", &["devices:/dev/kvm"])];
    })
    .await
}

#[tokio::test]
async fn what_no_rule_allows_is_refused_at_submit_with_the_rule_s_name() {
    let controller = farm().await;
    let person = controller.operator();
    for (name, more, words) in [
        ("any", "privileged: true", ["`privileged`", "no rule is for pipeline any"]),
        ("vm", "privileged: true", ["`privileged`", "rule `boot` allows only devices:/dev/kvm"]),
        ("vm", "devices: [/dev/sda]", ["`devices:/dev/sda`", "rule `boot`"]),
        ("vm", "capabilities: [SYS_ADMIN]", ["`capabilities:SYS_ADMIN`", "rule `boot`"]),
        ("vm", "host_paths: [/etc]", ["`host-paths:/etc`", "[[policy]]"]),
    ] {
        let text = pipeline(name, more);
        let message = refused(person.try_submit(submission(&text, "1")).await, Code::PermissionDenied, "policy");
        assert!(words.iter().all(|word| message.contains(word)) && message.contains("work@linux/amd64"), "{message}");
        let planned = person.rpc.clone().plan(submission(&text, "1")).await;
        refused(planned.map(tonic::Response::into_inner), Code::PermissionDenied, "policy");
    }
    let all = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    assert_eq!(all.len(), 0, "what is refused leaves nothing");
    for (name, more) in
        [("os-one", "privileged: true"), ("os-two", "host_paths: [/etc]"), ("any", "capabilities: [default]")]
    {
        person.submit(&pipeline(name, more), "1").await;
    }
}

#[tokio::test]
async fn a_job_goes_only_to_a_worker_that_allows_what_it_needs() {
    let controller = farm().await;
    let person = controller.operator();
    let _plain = controller.worker("plain").await;
    let build = person.submit(&pipeline("vm", "devices: [/dev/kvm]"), "1").await;
    assert_eq!(person.job(&build, "work@linux/amd64").await.why, "plain does not allow devices:/dev/kvm");
    let allows = vec!["devices:/dev/k*".to_owned(), "something-newer:x".to_owned()];
    let mut kvm = controller.worker_saying(v1::Hello { allows, ..hello("kvm") }).await;
    let order = kvm.order().await;
    assert_eq!((order.build.as_str(), order.run.unwrap().devices[0].path.as_str()), ("vm/1", "/dev/kvm"));
}

#[tokio::test]
async fn a_device_that_a_step_can_do_without_is_left_out_and_that_is_said() {
    let controller = farm().await;
    let (person, mut worker) = (controller.operator(), controller.worker("w1").await);
    let text = pipeline("any", "devices: ['/dev/kvm?']");
    let words = "work@linux/amd64 does without `devices:/dev/kvm`: no rule is for pipeline any";
    assert_eq!(person.plan(&text).await.warnings, [words]);
    assert_eq!(person.try_submit(submission(&text, "1")).await.unwrap().warnings, [words]);
    assert!(worker.order().await.run.unwrap().devices.is_empty());
    // Where it is allowed, it is for the worker to look whether it is there.
    person.submit(&pipeline("vm", "devices: ['/dev/kvm?']"), "1").await;
    assert_eq!(worker.order().await.run.unwrap().devices.len(), 1);
}

#[tokio::test]
async fn a_policy_that_changed_is_recorded_at_the_next_start() {
    let controller = farm().await;
    let address = controller.address();
    let changes = |controller: &Controller| {
        let text = std::fs::read_to_string(controller.data_dir().join("audit/audit-0000000000000001.jsonl")).unwrap();
        text.lines().filter(|line| line.contains("\"policy-change\"")).map(str::to_owned).collect::<Vec<_>>()
    };
    // The first start has nothing to compare with, the second finds the same.
    let controller = controller.stop().await.start(address).await;
    assert_eq!(changes(&controller), [""; 0]);
    let mut stopped = controller.stop().await;
    stopped.config.policy.remove(0);
    let controller = stopped.start(address).await;
    let found = changes(&controller);
    assert!(found.len() == 1 && found[0].contains("\"rules\":\"boot\""), "{found:?}");
    let mut stopped = controller.stop().await;
    stopped.config.untrusted.pool = Some("strangers".parse().unwrap());
    let controller = stopped.start(address).await;
    let controller = controller.stop().await.start(address).await;
    let found = changes(&controller);
    assert!(found.len() == 2 && found[1].contains("\"untrusted_pool\":\"strangers\""), "{found:?}");
    // Each other part by itself, and by its name.
    let mut stopped = controller.stop().await;
    type Change = fn(&mut ControllerConfig);
    let settings: [(&str, Change); 5] = [
        ("\"retention\"", |config| config.retention = vec![Rule::default()]),
        ("\"sweep\"", |config| config.sweep.deletes_per_sec = 7),
        ("\"public_read\"", |config| {
            let dir = config.data_dir.join("cache");
            config.cache = Some(CacheConfig::Embedded(EmbeddedConfig { dir, public_read: true, key_file: None }));
        }),
        ("\"limits\"", |config| config.limits.requests_per_client = 77),
        ("\"certificates\"", |config| config.worker_certificate_secs = 3_600),
    ];
    for (n, (part, change)) in settings.into_iter().enumerate() {
        change(&mut stopped.config);
        let controller = stopped.start(address).await;
        let found = changes(&controller);
        assert!(found.len() == 3 + n && found[2 + n].contains(&format!("\"target\":{part}")), "{found:?}");
        stopped = controller.stop().await;
    }
}

#[tokio::test]
async fn a_digest_of_an_earlier_version_is_that_of_the_policy() {
    let controller = farm().await;
    let address = controller.address();
    let mut stopped = controller.stop().await;
    let file = stopped.config.data_dir.join("policy.digest");
    let text = std::fs::read_to_string(&file).unwrap();
    let policy = text.lines().find_map(|line| line.strip_prefix("policy ")).unwrap();
    std::fs::write(&file, format!("{policy}\n")).unwrap();
    stopped.config.limits.requests_per_client = 77;
    let controller = stopped.start(address).await;
    assert_eq!(controller.audit_lines(&["\"policy-change\""]), 0, "of the others nothing was known");
    let mut stopped = controller.stop().await;
    stopped.config.policy.clear();
    let controller = stopped.start(address).await;
    assert_eq!(controller.audit_lines(&["\"policy-change\"", "\"target\":\"policy\"", policy]), 1);
}
