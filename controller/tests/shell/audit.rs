//! Who did what, as the controller records it.

use crate::common::controller::local;
use crate::common::disk::SmallDisk;
use crate::common::people::{Person, submission};
use crate::common::pipelines::ONE;
use crate::common::sweeps::Sweeps;
use crate::common::{Controller, refused, soon, until};
use railyard_controller::audit::{Verified, Wanted, verify};
use railyard_proto::v1;
use railyard_proto::v1::access_service_client::AccessServiceClient;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_service::tls::Role;
use std::collections::BTreeSet;
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

fn admin(controller: &Controller, who: Option<(Role, &str)>) -> AdminServiceClient<Channel> {
    AdminServiceClient::new(controller.channel(who))
}

async fn all(mut stream: Streaming<v1::AuditRecord>) -> Vec<v1::AuditRecord> {
    let mut records = Vec::new();
    while let Some(record) = stream.message().await.unwrap() {
        records.push(record);
    }
    records
}

pub(crate) async fn look(controller: &Controller, request: v1::ShowAuditRequest) -> Vec<v1::AuditRecord> {
    let request = v1::ShowAuditRequest { limit: 10_000, ..request };
    let stream = admin(controller, Some((Role::Operator, "olga"))).show_audit(request).await.unwrap();
    all(stream.into_inner()).await
}

/// The records of what was not done; they are written a moment later than it is told.
async fn refusals(controller: &Controller, count: usize) -> Vec<v1::AuditRecord> {
    until("the refusals", async || {
        let found = look(controller, v1::ShowAuditRequest::default()).await;
        let found: Vec<_> = found.into_iter().filter(|record| record.outcome != "done").collect();
        (found.len() >= count).then_some(found)
    })
    .await
}

fn story(record: &v1::AuditRecord) -> (&str, &str, &str, &str) {
    (&record.by, &record.what, &record.target, &record.outcome)
}

#[track_caller]
fn assert_good(controller: &Controller) -> Verified {
    let verified = verify(&controller.data_dir().join("audit"), &Wanted::default()).unwrap();
    assert!(verified.is_good(), "{:?}", verified.faults);
    verified
}

/// Of the case of the sweep in which three of six must not be carried out.
pub(crate) async fn assert_sweeps(controller: &Controller) {
    let sweeps = v1::ShowAuditRequest { what: "sweep".to_owned(), ..Default::default() };
    let records = look(controller, sweeps).await;
    assert!(records.iter().all(|one| (&*one.by, &*one.target) == ("operator/olga", "cache")), "{records:?}");
    let (done, refused): (Vec<_>, Vec<_>) = records.iter().partition(|one| one.outcome == "done");
    let why = ["builds/pub/3/build.json", "pub/2 needs", "the manifest of pub/3 cannot be read"];
    assert_eq!(refused.len(), why.len(), "{refused:?}");
    assert!(
        refused.iter().zip(why).all(|(one, why)| one.outcome == "refused" && one.reason.contains(why)),
        "{refused:?}"
    );
    let counts: Vec<_> = done.iter().map(|one| (&*one.details["reduced"], &*one.details["deleted"] != "0")).collect();
    assert_eq!(counts, [("1", false), ("0", true), ("0", false)]);
}

/// Of a plan, and the only sweep that carried it out.
pub(crate) async fn assert_plan_and_sweep(controller: &Controller, plan: &v1::SweepPlan) {
    let of_plan = |record: &v1::AuditRecord| record.details.get("plan") == Some(&plan.digest);
    let records = look(controller, v1::ShowAuditRequest::default()).await;
    let records: Vec<_> = records.iter().filter(|record| of_plan(record)).collect();
    let stories: Vec<_> = records.iter().map(|record| story(record)).collect();
    let want = ["sweep-plan", "sweep-begin", "sweep"].map(|what| ("operator/olga", what, "cache", "done"));
    assert_eq!(stories, want);
    let sum = |of: fn(&v1::SweepCount) -> u64| plan.gone.iter().map(of).sum::<u64>().to_string();
    let told = |name: &str| records[0].details.get(name).cloned();
    assert_eq!((told("objects"), told("bytes")), (Some(sum(|one| one.objects)), Some(sum(|one| one.bytes))));
    assert_eq!(told("stopped"), None);
}

#[tokio::test]
async fn every_act_is_recorded_with_who_and_what_and_whence() {
    let controller = Controller::start().await;
    let (olga, ci) = (controller.operator(), controller.person(Role::Submitter, "ci"));
    let build = ci.submit(ONE, "1").await;
    olga.cancel_jobs(&build, "work", "not now").await.unwrap();
    let waits = ONE.replace("script:", "approval: look first\n    script:");
    let waiting = ci.submit(&waits, "2").await;
    olga.approve(&waiting, "").await.unwrap();
    olga.cancel(&waiting, "").await.unwrap();
    let retry = v1::RetryRequest { build: waiting.clone(), step: String::new() };
    olga.ended(&waiting).await;
    olga.rpc.clone().retry(retry).await.unwrap();
    let _anvil = controller.worker("anvil").await;
    for kind in [v1::HoldKind::Cordon, v1::HoldKind::Drain, v1::HoldKind::Retire] {
        let hold = v1::HoldWorkerRequest {
            worker: "anvil".to_owned(),
            kind: kind.into(),
            why: "new disk".to_owned(),
            ..Default::default()
        };
        olga.hold(hold).await.unwrap();
    }
    olga.release("anvil").await.unwrap();
    let backup = admin(&controller, Some((Role::Operator, "olga"))).backup(v1::BackupRequest {}).await;
    let _bytes = backup.unwrap().into_inner().message().await.unwrap();

    let records = look(&controller, v1::ShowAuditRequest::default()).await;
    let stories: Vec<_> = records.iter().skip(1).map(story).collect();
    let want = [
        ("submitter/ci", "submit", "one/1", "done"),
        ("operator/olga", "cancel", "one/1", "done"),
        ("submitter/ci", "submit", "one/2", "done"),
        ("operator/olga", "approve", "one/2", "done"),
        ("operator/olga", "cancel", "one/2", "done"),
        ("operator/olga", "retry", "one/2", "done"),
        ("operator/olga", "cordon", "anvil", "done"),
        ("operator/olga", "drain", "anvil", "done"),
        ("operator/olga", "retire", "anvil", "done"),
        ("operator/olga", "uncordon", "anvil", "done"),
        ("operator/olga", "backup", "", "done"),
    ];
    assert_eq!(stories, want);
    assert_eq!((records[0].by.as_str(), records[0].what.as_str()), ("controller", "start"));
    assert!(records.iter().skip(1).all(|record| record.from.starts_with("127.0.0.1:")), "{records:?}");
    let cancel = &records[2].details;
    assert_eq!((cancel["job"].as_str(), cancel["why"].as_str()), ("work", "not now"));
    assert_eq!(cancel["jobs"], "work@linux/amd64");
    assert_eq!(records.iter().map(|record| record.seq).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    assert_eq!(assert_good(&controller).head.to_string(), format!("12:{}", records[11].hash));
}

#[tokio::test]
async fn whoever_is_turned_away_is_recorded_once() {
    let controller = Controller::start().await;
    let nobody = Person { rpc: ClientServiceClient::new(controller.channel(None)) };
    let viewer = controller.person(Role::Viewer, "victor");
    let submitter = controller.person(Role::Submitter, "ci");
    refused(nobody.cancel("one/1", "").await, Code::Unauthenticated, "unauthenticated");
    refused(viewer.try_submit(submission(ONE, "1")).await, Code::PermissionDenied, "forbidden");
    let release = v1::SubmitRequest { priority: "release".to_owned(), ..submission(ONE, "1") };
    refused(submitter.try_submit(release).await, Code::PermissionDenied, "forbidden");
    refused(submitter.cancel("one/7", "").await, Code::NotFound, "unknown-build");
    refused(submitter.try_submit(submission("no: pipeline", "7")).await, Code::InvalidArgument, "bad-pipeline");
    let mut rpc = admin(&controller, Some((Role::Worker, "anvil")));
    refused(rpc.show_audit(v1::ShowAuditRequest::default()).await.map(drop), Code::PermissionDenied, "forbidden");
    refused(rpc.verify_audit(v1::VerifyAuditRequest::default()).await.map(drop), Code::PermissionDenied, "forbidden");
    let browser = controller.browser();
    let put = browser.put(format!("{}/cache/blobs/x?signature=secret", controller.url)).body("x").send().await.unwrap();
    assert_eq!(put.status(), 403);

    let found = refusals(&controller, 8).await;
    let stories: Vec<_> = found.iter().map(story).collect();
    let want = [
        ("nobody", "cancel", "/railyard.v1.ClientService/Cancel", "refused"),
        ("viewer/victor", "submit", "/railyard.v1.ClientService/Submit", "refused"),
        ("submitter/ci", "submit", "", "refused"),
        ("submitter/ci", "cancel", "one/7", "refused"),
        ("submitter/ci", "submit", "", "refused"),
        ("worker/anvil", "refused", "/railyard.v1.AdminService/ShowAudit", "refused"),
        ("worker/anvil", "refused", "/railyard.v1.AdminService/VerifyAudit", "refused"),
        ("viewer/reader", "refused", "PUT /cache/blobs/x", "refused"),
    ];
    assert_eq!(stories, want);
    assert!(
        found[2].reason.contains("priority release") && found[2].details["priority"] == "release",
        "{:?}",
        found[2]
    );
    let text = std::fs::read_to_string(controller.data_dir().join("audit/audit-0000000000000001.jsonl")).unwrap();
    assert!(!text.contains("secret"), "{text}");
    assert_good(&controller);
}

#[tokio::test]
async fn a_flood_of_guesses_is_a_few_records() {
    let controller = Controller::start().await;
    let viewer = controller.person(Role::Viewer, "victor");
    for _ in 0..300 {
        refused(viewer.cancel("one/1", "").await, Code::PermissionDenied, "forbidden");
    }
    let olga = controller.operator();
    olga.submit(ONE, "1").await;
    let found = look(&controller, v1::ShowAuditRequest { by: "victor".to_owned(), ..Default::default() }).await;
    assert!((1..=10).contains(&found.len()), "{}", found.len());
    let data_dir = controller.data_dir().to_owned();
    let _stopped = controller.stop().await;
    let text = std::fs::read_to_string(data_dir.join("audit/audit-0000000000000001.jsonl")).unwrap();
    let more = text.lines().find(|line| line.contains("\"more\":")).expect("what was not written is counted");
    assert!(more.contains(&format!("\"more\":\"{}\"", 300 - found.len())), "{more}");
}

#[tokio::test]
async fn hanging_up_hides_nothing() {
    let controller = Controller::start().await;
    let olga = controller.operator();
    for n in 0..40_u64 {
        let (olga, version) = (olga.clone(), n.to_string());
        let call = async move { olga.submit(ONE, &version).await };
        // Gone before its answer, or in the very moment.
        let _ = tokio::time::timeout(std::time::Duration::from_micros(n * 150), call).await;
    }
    until("the records of all builds", async || {
        let list = v1::ListBuildsRequest { limit: 1_000, ..Default::default() };
        let builds = olga.rpc.clone().list_builds(list).await.unwrap().into_inner().builds;
        let builds: BTreeSet<String> = builds.into_iter().map(|build| build.build).collect();
        let submits = v1::ShowAuditRequest { what: "submit".to_owned(), ..Default::default() };
        let recorded: BTreeSet<String> = look(&controller, submits).await.into_iter().map(|one| one.target).collect();
        assert!(recorded.is_subset(&builds) || recorded.iter().any(String::is_empty), "{recorded:?}");
        (!builds.is_empty() && builds.is_subset(&recorded)).then_some(())
    })
    .await;
    assert_good(&controller);
}

#[tokio::test]
async fn a_follower_hears_of_what_comes_and_ends_with_the_controller() {
    let controller = Controller::start().await;
    let olga = controller.operator();
    let cancels = v1::ShowAuditRequest { what: "cancel".to_owned(), follow: true, ..Default::default() };
    let follower = admin(&controller, Some((Role::Operator, "olga"))).show_audit(cancels).await;
    let mut follower = follower.unwrap().into_inner();
    let build = olga.submit(ONE, "1").await;
    olga.cancel(&build, "").await.unwrap();
    let record = soon("the record", follower.message()).await.unwrap().unwrap();
    assert_eq!(story(&record), ("operator/olga", "cancel", "one/1", "done"));
    controller.stop().await;
    assert!(matches!(soon("the end", follower.message()).await, Ok(None) | Err(_)));
}

#[tokio::test]
async fn the_chain_goes_on_after_a_restart_and_a_cut_end_is_told() {
    let controller = Controller::start().await;
    controller.operator().submit(ONE, "1").await;
    let (address, stopped) = (controller.address(), controller.stop().await);
    let controller = stopped.start(address).await;
    let whats: Vec<_> = look(&controller, Default::default()).await.into_iter().map(|record| record.what).collect();
    assert_eq!(whats, ["start", "submit", "stop", "start"]);
    let mut rpc = admin(&controller, Some((Role::Operator, "olga")));
    let verified = rpc.verify_audit(v1::VerifyAuditRequest::default()).await.unwrap().into_inner();
    assert_eq!((verified.records, verified.faults.len()), (4, 0));
    let bad = v1::VerifyAuditRequest { expect: "4".to_owned(), ..Default::default() };
    refused(rpc.verify_audit(bad).await.map(drop), Code::InvalidArgument, "bad-request");

    let (address, stopped) = (controller.address(), controller.stop().await);
    let path = stopped.config.data_dir.join("audit/audit-0000000000000001.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: String = text.split_inclusive('\n').take(3).collect();
    std::fs::write(&path, kept).unwrap();
    let controller = stopped.start(address).await;
    let expect = verified.head;
    let mut rpc = admin(&controller, Some((Role::Operator, "olga")));
    let verified =
        rpc.verify_audit(v1::VerifyAuditRequest { expect, ..Default::default() }).await.unwrap().into_inner();
    let told: Vec<_> = verified.faults.iter().map(|fault| fault.what.as_str()).collect();
    assert!(told.iter().any(|what| what.contains("records 4 to 6 are missing")), "{told:?}");
    assert!(told.iter().any(|what| what.contains("records 4 to 6 were cut off at the end")), "{told:?}");
    controller.operator().submit(ONE, "2").await;
}

#[tokio::test]
async fn while_the_audit_cannot_be_written_nothing_is_changed() {
    // Only the audit is on it.
    let disk = SmallDisk::mounted(4);
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    std::fs::create_dir(&data_dir).unwrap();
    std::os::unix::fs::symlink(disk.path(), data_dir.join("audit")).unwrap();
    let controller = Controller::start_at(local(data_dir).data_dir, None).await;
    let olga = controller.operator();
    disk.fill(0);
    // Room for so much is held: what was allowed is recorded, and long before it is used up nothing is allowed any more.
    let (mut done, long) = (0, "x".repeat(500));
    let message = loop {
        let request = v1::SubmitRequest { file_name: long.clone(), ..submission(ONE, &done.to_string()) };
        match olga.try_submit(request).await {
            Ok(_) => done += 1,
            refusal => break refused(refusal, Code::Unavailable, "busy"),
        }
        assert!(done < 10_000, "the disk is full");
    };
    assert!(done > 100, "{done}");
    assert!(message.contains("cannot write its audit") && message.contains("No space left"), "{message}");
    refused(olga.cancel("one/0", "").await, Code::Unavailable, "busy");
    assert_eq!(olga.build("one/0").await.state(), v1::BuildState::Running);
    // Whoever is dangerous is shut out all the same.
    let mut access = AccessServiceClient::new(controller.channel(Some((Role::Operator, "olga"))));
    let revoke = v1::RevokeRequest { identity: "railyard://worker/anvil".to_owned(), why: "stolen".to_owned() };
    access.revoke(revoke).await.unwrap();
    // And what a sweep would free is told when it is needed most.
    let plan = Sweeps::of(&controller).plan().await;
    let http = railyard_service::channel::http_client(&controller.endpoint(None)).unwrap();
    let ready = async || http.get(format!("{}/readyz", controller.url)).send().await.unwrap().status().as_u16();
    assert_eq!(ready().await, 503);
    disk.empty();
    until("room", async || (ready().await == 200).then_some(())).await;
    olga.cancel("one/0", "").await.unwrap();
    let submits = look(&controller, v1::ShowAuditRequest { what: "submit".to_owned(), ..Default::default() }).await;
    let recorded: BTreeSet<_> =
        submits.iter().filter(|record| record.outcome == "done").map(|one| &one.target).collect();
    assert_eq!(recorded.len(), done);
    let revoked = look(&controller, v1::ShowAuditRequest { what: "revoke".to_owned(), ..Default::default() }).await;
    let revoked: Vec<_> = revoked.iter().map(story).collect();
    assert_eq!(revoked, [("operator/olga", "revoke", "worker/anvil", "done")], "its record followed");
    let plans = look(&controller, v1::ShowAuditRequest { what: "sweep-plan".to_owned(), ..Default::default() }).await;
    let plans: Vec<_> = plans.iter().map(|one| (story(one), &one.details["plan"])).collect();
    assert_eq!(plans, [(("operator/olga", "sweep-plan", "cache", "done"), &plan.digest)]);
    assert_good(&controller);
}

/// A bearer token of a viewer.
async fn viewer_token(access: &mut AccessServiceClient<Channel>) -> v1::CreateTokenResponse {
    let request = v1::CreateTokenRequest {
        kind: v1::TokenKind::Bearer.into(),
        identity: "railyard://viewer/dash".to_owned(),
        ..Default::default()
    };
    access.create_token(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn who_is_let_in_and_shut_out_is_recorded_with_what_they_showed() {
    let controller = Controller::start().await;
    let mut access = AccessServiceClient::new(controller.channel(Some((Role::Operator, "olga"))));
    let made = viewer_token(&mut access).await;
    let id = made.view.unwrap().id;
    let nobody = ClientServiceClient::new(controller.channel(None));
    let with = |token: &str| {
        let mut request = Request::new(v1::CancelRequest { build: "one/1".to_owned(), ..Default::default() });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request
    };
    // It stands for a viewer; and it is altered.
    refused(nobody.clone().cancel(with(&made.token)).await, Code::PermissionDenied, "forbidden");
    let altered = made.token.replace(&made.token[30..34], "aaaa");
    nobody.clone().cancel(with(&altered)).await.unwrap_err();
    access.revoke_token(v1::RevokeTokenRequest { id: id.clone() }).await.unwrap();
    access.revoke_token(v1::RevokeTokenRequest { id: "0011223344556677".to_owned() }).await.unwrap_err();
    let revoke = v1::RevokeRequest { identity: "railyard://worker/anvil".to_owned(), why: "lost".to_owned() };
    access.revoke(revoke).await.unwrap();

    let found = refusals(&controller, 3).await;
    let (viewer, failure) = (&found[0], &found[1]);
    assert_eq!(story(viewer), ("viewer/dash", "cancel", "/railyard.v1.ClientService/Cancel", "refused"));
    assert_eq!(viewer.via, format!("token:{id}"));
    assert_eq!(
        (failure.by.as_str(), failure.what.as_str(), failure.outcome.as_str()),
        ("nobody", "login-failure", "refused")
    );
    assert_eq!((found.len(), found[2].what.as_str()), (3, "token-revoke"));
    let olga = look(&controller, v1::ShowAuditRequest { by: "olga".to_owned(), ..Default::default() }).await;
    let done: Vec<_> = olga.iter().filter(|record| record.outcome == "done").map(story).collect();
    let want = [
        ("operator/olga", "token-create", "viewer/dash", "done"),
        ("operator/olga", "token-revoke", &*format!("token:{id}"), "done"),
        ("operator/olga", "revoke", "worker/anvil", "done"),
    ];
    assert_eq!(done, want);
    assert!(olga.iter().all(|record| record.via.starts_with("cert:") && record.via.len() == 5 + 64), "{olga:?}");
    let text = std::fs::read_to_string(controller.data_dir().join("audit/audit-0000000000000001.jsonl")).unwrap();
    assert!(!text.contains(&made.token) && !text.contains(&made.token[30..60]), "{text}");
}

#[tokio::test]
async fn a_token_in_the_wrong_place_is_recorded_by_its_id() {
    let controller = Controller::start().await;
    let olga = controller.operator();
    let mut access = AccessServiceClient::new(controller.channel(Some((Role::Operator, "olga"))));
    let made = viewer_token(&mut access).await;
    let (token, id) = (made.token, format!("token:{}", made.view.unwrap().id));
    olga.cancel(&token, "").await.unwrap_err();
    olga.cancel(&format!("one/{token}"), &token).await.unwrap_err();
    olga.submit(ONE, &token).await;
    let put = controller.browser().put(format!("{}/cache/{token}", controller.url)).body("x").send().await.unwrap();
    assert_eq!(put.status(), 403);
    let found = refusals(&controller, 3).await;
    assert!(found.iter().all(|one| format!("{one:?}").contains(&id)), "{found:?}");
    let submits = look(&controller, v1::ShowAuditRequest { what: "submit".to_owned(), ..Default::default() }).await;
    assert_eq!((submits.len(), submits[0].target.clone()), (1, format!("one/{id}")));
    let text = std::fs::read_to_string(controller.data_dir().join("audit/audit-0000000000000001.jsonl")).unwrap();
    assert!(!text.contains("railyard-bearer-") && !text.contains(&token[30..60]), "{text}");
}
