//! What makes no sense is refused with a word that a program knows, and recorded.

use crate::common::people::{Person, submission};
use crate::common::pipelines::{ONE, PUBLISH};
use crate::common::worker::{hello, lease, report, succeeded};
use crate::common::{Controller, refusal, refused};
use railyard_proto::v1;
use railyard_proto::v1::access_service_client::AccessServiceClient;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use railyard_proto::v1::worker_message::Kind as Say;
use railyard_service::tls::Role;
use tonic::{Code, Status};

fn bad<T: std::fmt::Debug>(answer: Result<T, Status>) {
    refused(answer, Code::InvalidArgument, "bad-request");
}

impl Controller {
    /// Waits for the record of a call that was refused.
    async fn refusal_of(&self, who: &str, what: &str, call: &str) {
        let what = format!("\"what\":\"{what}\"");
        self.audited(&[&format!("\"by\":\"{who}\""), &what, call, "\"outcome\":\"refused\""]).await;
    }
}

async fn looks_that_make_no_sense(olga: &Person) {
    let mut rpc = olga.rpc.clone();
    refused(rpc.plan(submission("no: pipeline", "1")).await, Code::InvalidArgument, "bad-pipeline");
    bad(olga.try_build("one/two/three").await);
    bad(rpc.list_builds(v1::ListBuildsRequest { pipeline: "A B".to_owned(), ..Default::default() }).await);
    bad(olga.try_read_log("one/1", "?", 0, 0, false).await.map(drop));
}

/// Values that use each other, in a circle and twice each.
const IN_A_CIRCLE: &str = include_str!("../../../common/tests/pipelines/bad/params-in-a-circle.yaml");
const DOUBLING: &str = include_str!("../../../common/tests/pipelines/bad/params-that-double.yaml");

#[tokio::test]
async fn parameters_that_use_each_other_are_a_bad_pipeline_and_nothing_worse() {
    let controller = Controller::start().await;
    let victor = controller.person(Role::Viewer, "victor");
    for pipeline in [IN_A_CIRCLE, DOUBLING] {
        let answer = victor.rpc.clone().plan(submission(pipeline, "1")).await;
        let message = refused(answer, Code::InvalidArgument, "bad-pipeline");
        assert!(message.contains("a parameter's value cannot use `"), "{message}");
    }
    let mut given = submission(
        "name: a\nparams: {p: {}}\nsteps:\n  - {name: a, image: {build: '{{ p }}', step: b}, script: s}",
        "1",
    );
    given.params.insert("p".to_owned(), "{{ p }}".to_owned());
    refused(victor.rpc.clone().plan(given).await, Code::InvalidArgument, "bad-pipeline");
    controller.refusal_of("viewer/victor", "refused", "ClientService/Plan").await;
    controller.operator().submit(ONE, "1").await;
}

#[tokio::test]
async fn arguments_that_make_no_sense_are_recorded_whatever_was_called() {
    let controller = Controller::start().await;
    let olga = controller.operator();
    olga.submit(ONE, "1").await;
    looks_that_make_no_sense(&olga).await;
    let channel = controller.channel(Some((Role::Operator, "olga")));
    let (mut admin, mut access) = (AdminServiceClient::new(channel.clone()), AccessServiceClient::new(channel));
    bad(admin.verify_audit(v1::VerifyAuditRequest { expect: "4".to_owned(), ..Default::default() }).await);
    bad(admin.remove_secret(v1::RemoveSecretRequest { name: "?".to_owned() }).await);
    bad(admin.run_sweep(v1::RunSweepRequest { digest: "4f0c".to_owned() }).await.map(drop));
    bad(access.revoke_token(v1::RevokeTokenRequest { id: "xyz".to_owned() }).await);
    bad(access.revoke(v1::RevokeRequest { identity: "railyard://king/olga".to_owned(), ..Default::default() }).await);
    for (what, call) in [
        ("refused", "ClientService/Plan"),
        ("refused", "ClientService/GetBuild"),
        ("refused", "ClientService/ListBuilds"),
        ("refused", "ClientService/ReadLog"),
        ("refused", "AdminService/VerifyAudit"),
        ("secret-remove", "AdminService/RemoveSecret"),
        ("sweep", "AdminService/RunSweep"),
        ("token-revoke", "AccessService/RevokeToken"),
        ("revoke", "AccessService/Revoke"),
    ] {
        controller.refusal_of("operator/olga", what, call).await;
    }
}

#[tokio::test]
async fn a_refusal_is_told_however_long_the_text_is_that_it_is_about() {
    let controller = Controller::start().await;
    let victor = controller.person(Role::Viewer, "victor");
    controller.operator().submit(ONE, "1").await;
    for long in ["a".repeat(20_000), "é\n".repeat(10_000), format!("one/{}", "b".repeat(20_000))] {
        let (_, reason, message) = refusal(victor.try_build(&long).await);
        assert!(reason == "bad-request" && message.len() <= 2_048, "{reason} {message}");
        let (_, reason, message) = refusal(victor.sign("one/1", &[&format!("[{long}")]).await);
        assert!(!reason.is_empty() && message.len() <= 2_048, "{reason} {message}");
        // Nothing is wrong with the connection.
        victor.try_build("one/1").await.unwrap();
    }
}

#[tokio::test]
async fn what_a_worker_says_wrong_is_recorded_wherever_it_is_refused() {
    let controller = Controller::start().await;
    let strange = v1::PlatformOffer { platform: "plan9/mips".to_owned(), emulated: false };
    bad(controller.try_worker("anvil", v1::Hello { platforms: vec![strange], ..hello("anvil") }).await.map(drop));
    controller.refusal_of("worker/anvil", "refused", "WorkerService/Session").await;

    let mut worker = controller.worker("hammer").await;
    controller.operator().submit(PUBLISH, "1").await;
    let lease = lease(&worker.order().await);
    bad(worker.try_report(report(lease, succeeded())).await);
    controller.refusal_of("worker/hammer", "refused", "WorkerService/Report").await;
    // At the end of its answers, not instead of them.
    refused(worker.log(lease, 999, b"beyond").await, Code::OutOfRange, "log-gap");
    controller.refusal_of("worker/hammer", "refused", "WorkerService/AppendLog").await;
    // And in the middle of a session.
    worker.say(Say::Hello(hello("hammer"))).await;
    worker.closed().await;
    controller.audited(&["worker/hammer", "WorkerService/Session", "this is the second"]).await;
}

#[tokio::test]
async fn requests_that_make_no_sense_are_recorded_with_their_path_and_status() {
    let controller = Controller::start().await;
    let olga = controller.operator();
    olga.submit(ONE, "1").await;
    olga.cancel("one/1", "").await.unwrap();
    olga.ended("one/1").await;
    let http = controller.browser();
    let manifest = "/cache/builds/one/1/build.json";
    for (method, path, range, status) in [
        ("GET", "/v2/One/work/tags/list", None, "400 Bad Request"),
        ("DELETE", manifest, None, "405 Method Not Allowed"),
        ("GET", manifest, Some("bytes=999999-"), "416 Range Not Satisfiable"),
    ] {
        let request = http.request(method.parse().unwrap(), format!("{}{path}?token=query", controller.url));
        let request = match range {
            Some(range) => request.header("range", range),
            None => request,
        };
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().to_string(), status, "{method} {path}");
        controller.refusal_of("viewer/reader", "refused", &format!("{method} {path}\"")).await;
        assert_eq!(controller.audit_lines(&[status]), 1);
    }
    // What was asked well is no line.
    assert_eq!(http.get(format!("{}{manifest}", controller.url)).send().await.unwrap().status(), 200);
    assert_eq!(http.get(format!("{}/cache/none", controller.url)).send().await.unwrap().status(), 404);
    assert_eq!((controller.audit_lines(&["refused"]), controller.audit_lines(&["query"])), (3, 0));
}
