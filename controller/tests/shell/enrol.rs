//! Joining with a token, renewing, and being shut out.

use crate::common::heard::Heard;
use crate::common::people::{Person, submission};
use crate::common::pipelines::ONE;
use crate::common::worker::{hello, lease};
use crate::common::{Controller, Worker, refused, soon, until};
use railyard_common::token::{Token, TokenKind};
use railyard_proto::v1::access_service_client::AccessServiceClient;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_proto::v1::{self, JoinAs};
use railyard_service::channel::{self, Endpoint};
use railyard_service::enrol::{self, EnrolError};
use railyard_service::tls::{KeyRequest, Role};
use tonic::Code;
use tonic::transport::Channel;

impl Controller {
    pub(crate) fn access(&self) -> AccessServiceClient<Channel> {
        AccessServiceClient::new(self.channel(Some((Role::Operator, "olga"))))
    }

    /// A token, as an operator gets it.
    pub(crate) async fn token(&self, kind: v1::TokenKind, identity: &str, ttl_secs: u64) -> v1::CreateTokenResponse {
        let identity = format!("railyard://{identity}");
        let request = v1::CreateTokenRequest { kind: kind.into(), identity, ttl_secs };
        self.access().create_token(request).await.unwrap().into_inner()
    }

    /// Joins with a fresh token.
    async fn joined(&self, identity: &str) -> Endpoint {
        let token = self.token(v1::TokenKind::Join, identity, 0).await.token;
        let enrolled = enrol::join(&self.url, &token).await.unwrap();
        Endpoint { url: self.url.clone(), ca_pem: enrolled.ca_pem, identity: Some(enrolled.pair) }
    }

    async fn revoke(&self, identity: &str) -> v1::RevokeResponse {
        let request = v1::RevokeRequest { identity: format!("railyard://{identity}"), why: "lost".to_owned() };
        self.access().revoke(request).await.unwrap().into_inner()
    }
}

fn why(result: Result<enrol::Enrolled, EnrolError>) -> String {
    result.expect_err("this must be refused").to_string()
}

#[tokio::test]
async fn a_worker_joins_with_a_token_and_works() {
    let controller = Controller::start().await;
    let token = controller.token(v1::TokenKind::Join, "worker/anvil?pool=", 0).await;
    let enrolled = enrol::join(&controller.url, &token.token).await.unwrap();
    assert_eq!(enrolled.identity.uri(), "railyard://worker/anvil?pool=");
    let left = railyard_service::tls::secs_left(&enrolled.pair.cert_pem, railyard_common::time::Millis(0)).unwrap();
    assert!(left > 0 && enrolled.ca_pem.contains("BEGIN CERTIFICATE"));
    let endpoint = Endpoint { url: controller.url.clone(), ca_pem: enrolled.ca_pem, identity: Some(enrolled.pair) };
    let mut worker = Worker::connect(&endpoint, hello("anvil")).await.unwrap();
    let person = controller.operator();
    let build = person.submit(ONE, "1").await;
    let lease = lease(&worker.order().await);
    worker.succeed(lease).await;
    person.ended(&build).await;
    assert_eq!(controller.audit_lines(&["\"enrol\"", "worker/anvil", &token.view.unwrap().id]), 1);
}

#[tokio::test]
async fn a_token_is_good_once_for_one_key_and_for_its_time() {
    let controller = Controller::start().await;
    let token = controller.token(v1::TokenKind::Join, "worker/anvil", 0).await.token;
    let key = KeyRequest::generate().unwrap();
    enrol::join_with(&controller.url, &token, &key, JoinAs::Worker).await.unwrap();
    // The answer may have been lost on the way.
    enrol::join_with(&controller.url, &token, &key, JoinAs::Worker).await.unwrap();
    // But not for ever: each time is a record.
    let again = until("the end of patience", async || {
        enrol::join_with(&controller.url, &token, &key, JoinAs::Worker).await.err()
    })
    .await;
    assert!(again.to_string().contains("too often"), "{again}");
    assert!((20..40).contains(&controller.audit_lines(&["\"enrol\"", "\"done\""])));
    let used = why(enrol::join(&controller.url, &token).await);
    assert!(used.contains("was used already"), "{used}");

    let short = controller.token(v1::TokenKind::Join, "worker/hammer", 1).await.token;
    let expired = until("the token's end", async || {
        let error = enrol::join_with(&controller.url, &short, &key, JoinAs::Worker).await.err()?.to_string();
        Some(error).filter(|error| error.contains("has expired"))
    });
    expired.await;
    controller.audited(&["login-failure", "was used already"]).await;
    controller.audited(&["login-failure", "has expired"]).await;
}

#[tokio::test]
async fn altered_and_foreign_tokens_never_leave_the_host() {
    let (controller, other) = (Controller::start().await, Controller::start().await);
    let token = controller.token(v1::TokenKind::Join, "worker/anvil", 0).await.token;
    let foreign = why(enrol::join(&other.url, &token).await);
    assert!(foreign.contains("is not the farm that this token is for"), "{foreign}");
    let damaged = why(enrol::join(&controller.url, &token[..token.len() - 2]).await);
    assert!(damaged.contains("the token is damaged"), "{damaged}");
    let bearer = controller.token(v1::TokenKind::Bearer, "viewer/dash", 0).await.token;
    let bearer = why(enrol::join(&controller.url, &bearer).await);
    assert!(bearer.contains("a join token is needed"), "{bearer}");
    let nobody = why(enrol::join("https://127.0.0.1:1", &token).await);
    assert!(nobody.contains("cannot reach the controller"), "{nobody}");
    let elsewhere = why(enrol::join(&controller.url.replace("127.0.0.1", "127.0.0.2"), &token).await);
    assert!(elsewhere.contains("cannot reach") || elsewhere.contains("does not fit"), "{elsewhere}");
    // Nothing of all that used it up.
    enrol::join(&controller.url, &token).await.unwrap();
}

#[tokio::test]
async fn an_altered_token_is_refused_by_the_farm_as_well() {
    let controller = Controller::start().await;
    let made = controller.token(v1::TokenKind::Join, "worker/anvil", 0).await;
    let (token, id) = (made.token, made.view.unwrap().id);
    let whole = Token::parse(&token, TokenKind::Join).unwrap();
    let mut rpc = AccessServiceClient::new(controller.channel(None));
    let csr = KeyRequest::generate().unwrap().csr().to_vec();
    let at = token.len() / 2;
    let other = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
    let altered = format!("{}{other}{}", &token[..at], &token[at + 1..]);
    // Of the same form, with a secret that somebody made up.
    let id_bytes = hex::decode(&id).unwrap().try_into().unwrap();
    let made_up = Token::join(id_bytes, [7; 32], *whole.ca().unwrap()).reveal();
    for (token, why, target) in [
        (altered, "the token is damaged", "\"target\":\"token\"".to_owned()),
        (made_up, "is not known here", format!("\"target\":\"token:{id}\"")),
    ] {
        let message = refused(
            rpc.enrol(v1::EnrolRequest { token, csr: csr.clone(), ..Default::default() }).await,
            Code::Unauthenticated,
            "bad-token",
        );
        assert!(message.contains(why), "{message}");
        controller.audited(&["\"login-failure\"", "\"refused\"", &target, why]).await;
    }
    enrol::join(&controller.url, &token).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_wrong_does_not_use_the_token_up() {
    let controller = Controller::start().await;
    let token = controller.token(v1::TokenKind::Join, "worker/anvil", 0).await.token;
    let mut rpc = AccessServiceClient::new(controller.channel(None));
    for csr in [Vec::new(), b"nonsense".to_vec(), vec![0x30; 20_000]] {
        let request = v1::EnrolRequest { token: token.clone(), csr, ..Default::default() };
        refused(rpc.enrol(request).await, Code::InvalidArgument, "bad-request");
    }
    enrol::join(&controller.url, &token).await.unwrap();
}

#[tokio::test]
async fn a_token_that_is_for_something_else_stays_good() {
    let controller = Controller::start().await;
    let key = KeyRequest::generate().unwrap();
    for (identity, wrong, right, verb) in [
        ("worker/anvil", JoinAs::Person, JoinAs::Worker, "railyard worker --join"),
        ("viewer/vic", JoinAs::Worker, JoinAs::Person, "railyard login"),
    ] {
        let token = controller.token(v1::TokenKind::Join, identity, 0).await.token;
        let told = why(enrol::join_with(&controller.url, &token, &key, wrong).await);
        assert!(told.contains(identity) && told.contains(verb) && told.contains("still good"), "{told}");
        controller.audited(&["\"enrol\"", "\"refused\"", identity]).await;
        enrol::join_with(&controller.url, &token, &key, right).await.unwrap();
    }
}

#[tokio::test]
async fn whoever_guesses_waits() {
    let controller = Controller::start().await;
    let mut rpc = AccessServiceClient::new(controller.channel(None));
    let foreign = Controller::start().await.token(v1::TokenKind::Join, "worker/anvil", 0).await.token;
    let csr = KeyRequest::generate().unwrap().csr().to_vec();
    let request = v1::EnrolRequest { token: foreign, csr, ..Default::default() };
    for _ in 0..10 {
        refused(rpc.enrol(request.clone()).await, Code::Unauthenticated, "bad-token");
    }
    let message = refused(rpc.enrol(request).await, Code::ResourceExhausted, "busy");
    assert!(message.contains("too many wrong tokens"), "{message}");
    let good = controller.token(v1::TokenKind::Join, "worker/anvil", 0).await.token;
    let waits = why(enrol::join(&controller.url, &good).await);
    assert!(waits.contains("too many wrong tokens"), "{waits}");
    // Whoever has a certificate is somebody.
    controller.operator().submit(ONE, "1").await;
    controller.audited(&["login-failure", "is not known here"]).await;
    let data_dir = controller.data_dir().to_owned();
    let _stopped = controller.stop().await;
    let text = std::fs::read_to_string(data_dir.join("audit/audit-0000000000000001.jsonl")).unwrap();
    let failures: Vec<&str> = text.lines().filter(|line| line.contains("login-failure")).collect();
    assert_eq!(failures.len(), 5 + 1, "written down, and bounded: {failures:?}");
    assert!(failures[5].contains("\"more\":\"7\""), "and who waits is counted: {}", failures[5]);
}

#[tokio::test]
async fn a_worker_keeps_within_what_it_was_let_in_for() {
    let controller = Controller::start().await;
    let endpoint = controller.joined("worker/anvil?platform=linux/arm64&pool=signing").await;
    let arm = || vec![v1::PlatformOffer { platform: "linux/arm64".to_owned(), emulated: false }];
    let tries = [
        (hello("anvil"), "was let in for linux/arm64, and offers linux/amd64"),
        (
            v1::Hello { platforms: arm(), ..hello("anvil") },
            "was let in for pool signing, and says that it works for no pool",
        ),
        (v1::Hello { worker: "other".to_owned(), ..hello("anvil") }, "the certificate is anvil's"),
    ];
    for (hello, why) in tries {
        let answer = Worker::connect(&endpoint, hello).await.map(|_| ());
        let message = refused(answer, Code::PermissionDenied, "forbidden");
        assert!(message.contains(why), "{message}");
    }
    let right = v1::Hello { platforms: arm(), pool: "signing".to_owned(), ..hello("anvil") };
    Worker::connect(&endpoint, right).await.unwrap();
}

#[tokio::test]
async fn a_certificate_is_renewed_within_the_same_limits() {
    let controller = Controller::start().await;
    let endpoint = controller.joined("worker/anvil?pool=").await;
    let mut worker = Worker::connect(&endpoint, hello("anvil")).await.unwrap();
    let key = KeyRequest::from_pem(&endpoint.identity.as_ref().unwrap().key_pem).unwrap();
    let renewed = enrol::renew(channel::connect(&endpoint).unwrap(), &key).await.unwrap();
    assert_eq!(renewed.identity.uri(), "railyard://worker/anvil?pool=");
    assert_ne!(Some(&renewed.pair), endpoint.identity.as_ref());
    // The stream that was open has noticed nothing.
    let person = controller.operator();
    let build = person.submit(ONE, "1").await;
    let lease = lease(&worker.order().await);
    // And calls with the new certificate are the same worker's.
    let endpoint = Endpoint { identity: Some(renewed.pair), ..endpoint };
    worker.rpc = railyard_proto::v1::worker_service_client::WorkerServiceClient::new(Heard::new(
        channel::connect(&endpoint).unwrap(),
    ));
    worker.succeed(lease).await;
    person.ended(&build).await;
    let stranger = controller.channel(None);
    assert!(
        matches!(enrol::renew(stranger, &key).await, Err(EnrolError::Refused(status)) if status.code() == Code::Unauthenticated)
    );
}

#[tokio::test]
async fn a_revoked_worker_is_cut_off_at_once_and_its_jobs_run_elsewhere() {
    let controller = Controller::start().await;
    let endpoint = controller.joined("worker/anvil").await;
    let mut anvil = Worker::connect(&endpoint, hello("anvil")).await.unwrap();
    let person = controller.operator();
    let build = person.submit(ONE, "1").await;
    let old = lease(&anvil.order().await);
    let mut log = anvil.log_stream().await;
    log.append(old, 0, b"begun\n").await.unwrap();
    let unused = controller.token(v1::TokenKind::Join, "worker/anvil", 0).await.token;

    let revoked = controller.revoke("worker/anvil").await;
    assert_eq!((revoked.tokens, revoked.leases), (2, 1), "the token that it joined with, and the one that nobody used");
    assert!(soon("the end of the stream", anvil.next()).await.is_none());
    assert!(log.ack().await.is_err(), "its log's stream is cut as well");
    let status = anvil.rpc.report(crate::common::worker::report(old, crate::common::worker::succeeded())).await;
    refused(status, Code::Unauthenticated, "revoked");
    refused(Worker::connect(&endpoint, hello("anvil")).await.map(drop), Code::Unauthenticated, "revoked");
    assert!(why(enrol::join(&controller.url, &unused).await).contains("is not known here"));

    let mut hammer = controller.worker("hammer").await;
    let new = lease(&hammer.order().await);
    assert!(new.job == old.job && new.attempt > old.attempt);
    hammer.succeed(new).await;
    person.ended(&build).await;
    assert_eq!(controller.audit_lines(&["\"revoke\"", "worker/anvil", "lost"]), 1);

    // Let in again, with another token.
    let endpoint = controller.joined("worker/anvil").await;
    Worker::connect(&endpoint, hello("anvil")).await.unwrap();
}

#[tokio::test]
async fn a_revocation_outlives_a_restart() {
    let controller = Controller::start().await;
    let endpoint = controller.joined("submitter/ana").await;
    let ana = |endpoint: &Endpoint| Person { rpc: ClientServiceClient::new(channel::connect(endpoint).unwrap()) };
    ana(&endpoint).submit(ONE, "1").await;
    controller.revoke("submitter/ana").await;
    let (listen, stopped) = (controller.address(), controller.stop().await);
    let controller = stopped.start(listen).await;
    assert!(ana(&endpoint).try_build("one/1").await.is_err());
    let endpoint = controller.joined("submitter/ana").await;
    ana(&endpoint).build("one/1").await;
}

#[tokio::test]
async fn what_a_revoked_person_watches_ends() {
    let controller = Controller::start().await;
    let endpoint = controller.joined("submitter/ana").await;
    let ana = Person { rpc: ClientServiceClient::new(channel::connect(&endpoint).unwrap()) };
    let build = ana.submit(ONE, "1").await;
    let watch = v1::GetBuildRequest { build };
    let mut watch = ana.rpc.clone().watch_build(watch).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    controller.revoke("submitter/ana").await;
    let end = soon("the end of the stream", async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                end => return end,
            }
        }
    });
    assert!(end.await.is_err(), "cut, not ended");
}

#[tokio::test]
async fn a_submitter_has_its_own_pipelines_only() {
    let controller = Controller::start().await;
    let olga = controller.operator();
    olga.submit(ONE, "1").await;
    let mini = ONE.replace("one", "two");
    olga.submit(&mini, "1").await;
    let endpoint = controller.joined("submitter/ana?pipeline=two").await;
    let ana = Person { rpc: ClientServiceClient::new(channel::connect(&endpoint).unwrap()) };
    let is_refused = |message: String| assert!(message.contains("is limited to two"), "{message}");
    is_refused(refused(ana.try_submit(submission(ONE, "2")).await, Code::PermissionDenied, "forbidden"));
    for build in ["one/1", "one", "one/7"] {
        is_refused(refused(ana.try_build(build).await, Code::PermissionDenied, "forbidden"));
        is_refused(refused(ana.cancel(build, "").await, Code::PermissionDenied, "forbidden"));
        is_refused(refused(ana.sign(build, &[]).await, Code::PermissionDenied, "forbidden"));
        is_refused(refused(ana.try_read_log(build, "work", 0, 0, false).await, Code::PermissionDenied, "forbidden"));
        let retry = v1::RetryRequest { build: build.to_owned(), step: String::new() };
        is_refused(refused(ana.rpc.clone().retry(retry).await, Code::PermissionDenied, "forbidden"));
        let watch = v1::GetBuildRequest { build: build.to_owned() };
        is_refused(refused(ana.rpc.clone().watch_build(watch).await.map(drop), Code::PermissionDenied, "forbidden"));
    }
    is_refused(refused(ana.rpc.clone().plan(submission(ONE, "2")).await, Code::PermissionDenied, "forbidden"));
    let listed = ana.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    assert_eq!(listed.iter().map(|build| build.build.as_str()).collect::<Vec<_>>(), ["two/1"]);
    let one = v1::ListBuildsRequest { pipeline: "one".to_owned(), ..Default::default() };
    is_refused(refused(ana.rpc.clone().list_builds(one).await, Code::PermissionDenied, "forbidden"));
    ana.try_submit(submission(&mini, "2")).await.unwrap();
    ana.cancel("two/1", "").await.unwrap();
}

#[tokio::test]
async fn tokens_are_listed_without_their_secrets_and_never_written_down() {
    let controller = Controller::start().await;
    let join = controller.token(v1::TokenKind::Join, "worker/anvil", 0).await;
    let bearer = controller.token(v1::TokenKind::Bearer, "submitter/ci", 3600).await;
    enrol::join(&controller.url, &join.token).await.unwrap();
    let listed = controller.access().list_tokens(v1::ListTokensRequest {}).await.unwrap().into_inner().tokens;
    assert_eq!(listed.len(), 2);
    let view = listed.iter().find(|view| view.id == join.view.as_ref().unwrap().id).unwrap();
    assert!(view.used_at.is_some() && view.made_by == "operator/olga");
    let life = |view: &v1::TokenView| view.expires_at.unwrap().seconds - view.made_at.unwrap().seconds;
    assert_eq!((life(view), life(bearer.view.as_ref().unwrap())), (15 * 60, 3600));
    for wrong in [
        ("worker/anvil", v1::TokenKind::Bearer, 0),
        ("worker/anvil", v1::TokenKind::Join, 3600),
        ("worker/Anvil!", v1::TokenKind::Join, 0),
        ("king/olga", v1::TokenKind::Join, 0),
        ("viewer/v", v1::TokenKind::Bearer, u64::MAX),
        ("viewer/v", v1::TokenKind::Unspecified, 0),
    ] {
        let (identity, kind, ttl_secs) = (format!("railyard://{}", wrong.0), wrong.1.into(), wrong.2);
        let answer = controller.access().create_token(v1::CreateTokenRequest { kind, identity, ttl_secs }).await;
        refused(answer, Code::InvalidArgument, "bad-request");
    }
    // The secret is in nothing that the controller wrote: journal, audit, snapshots.
    let data = controller.data_dir().to_owned();
    let secrets: Vec<String> = [&join.token, &bearer.token].map(|token| token[24..60].to_owned()).into();
    let _stopped = controller.stop().await;
    let mut seen = 0;
    for entry in walk(&data) {
        let bytes = std::fs::read(&entry).unwrap();
        seen += 1;
        for secret in &secrets {
            assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{}", entry.display());
        }
    }
    assert!(seen > 5);
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}
