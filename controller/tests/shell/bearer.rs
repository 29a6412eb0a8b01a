//! Bearer tokens: what they let in, and until when.

use crate::common::pipelines::ONE;
use crate::common::{Controller, refused, soon};
use railyard_proto::v1;
use railyard_proto::v1::access_service_client::AccessServiceClient;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_service::tls::KeyRequest;
use std::process::Stdio;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

/// A request with a bearer token.
fn bearing<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", MetadataValue::try_from(format!("Bearer {token}")).unwrap());
    request
}

/// How a stream ends.
async fn last_of(mut watch: Streaming<v1::BuildView>) -> Result<(), Status> {
    while watch.message().await?.is_some() {}
    Ok(())
}

#[tokio::test]
async fn a_bearer_token_stands_for_somebody_until_it_is_taken_back() {
    let controller = Controller::start().await;
    controller.operator().submit(ONE, "1").await;
    let made = controller.token(v1::TokenKind::Bearer, "viewer/dash?pipeline=one", 0).await;
    let (token, id) = (made.token, made.view.unwrap().id);
    let mut rpc = ClientServiceClient::new(controller.channel(None));
    let get = || v1::GetBuildRequest { build: "one/1".to_owned() };
    let farm = v1::GetFarmRequest { client_version: "0".to_owned(), protocol: railyard_common::PROTOCOL };
    assert_eq!(rpc.get_farm(bearing(&token, farm)).await.unwrap().into_inner().identity, "viewer dash");
    rpc.get_build(bearing(&token, get())).await.unwrap();
    let cancel = v1::CancelRequest { build: "one/1".to_owned(), ..Default::default() };
    refused(rpc.cancel(bearing(&token, cancel)).await, Code::PermissionDenied, "forbidden");
    let csr = KeyRequest::generate().unwrap().csr().to_vec();
    let mut access = AccessServiceClient::new(controller.channel(None));
    refused(access.renew(bearing(&token, v1::RenewRequest { csr })).await, Code::PermissionDenied, "forbidden");

    // A stream that it opened ends with it.
    let mut watch = rpc.watch_build(bearing(&token, get())).await.unwrap().into_inner();
    watch.message().await.unwrap().unwrap();
    controller.access().revoke_token(v1::RevokeTokenRequest { id: id.clone() }).await.unwrap();
    let end = soon("the end of the stream", last_of(watch)).await;
    assert!(end.is_err(), "cut, not ended");
    let message = refused(rpc.get_build(bearing(&token, get())).await, Code::Unauthenticated, "unauthenticated");
    assert!(message.contains("is not known here"), "{message}");
    let message = refused(rpc.get_build(bearing("secret", get())).await, Code::Unauthenticated, "unauthenticated");
    assert!(message.contains("is not a token of Railyard"), "{message}");
    let gone = controller.access().revoke_token(v1::RevokeTokenRequest { id }).await;
    refused(gone, Code::NotFound, "no-such-token");
}

#[tokio::test]
async fn a_bearer_token_is_a_password_for_browsers_curl_and_container_tools() {
    let controller = Controller::start().await;
    let made = controller.token(v1::TokenKind::Bearer, "viewer/dash?pipeline=one", 0).await.token;
    let endpoint = controller.endpoint(None);
    let tls = railyard_service::tls::client_config(&endpoint.ca_pem, None).unwrap();
    let http = reqwest::Client::builder().tls_backend_preconfigured(tls).http1_only().build().unwrap();
    let status = async |path: &str, password: Option<&str>| {
        let request = http.get(format!("{}{path}", controller.url));
        let request = match password {
            Some(_) => request.basic_auth("dash", password),
            None => request,
        };
        request.send().await.unwrap().status().as_u16()
    };
    controller.operator().submit(ONE, "1").await;
    controller.operator().cancel("one/1", "").await.unwrap();
    controller.operator().ended("one/1").await;
    for (path, with) in
        [("/v2/", 200), ("/cache/builds/one/1/build.json", 200), ("/cache/builds/two/", 403), ("/cache/", 403)]
    {
        assert_eq!(status(path, None).await, 401, "{path}");
        assert_eq!(status(path, Some(&made)).await, with, "{path}");
        assert_eq!(status(path, Some("guess")).await, 401, "{path}");
    }
    assert_eq!(status("/healthz", None).await, 200);

    let name = format!("docker://{}/one/work:1", controller.address());
    let creds = format!("dash:{made}");
    let skopeo = tokio::process::Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--creds", &creds, &name])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&skopeo.stderr);
    assert!(said.contains("no step of a build commits an image one/work") || said.contains("unknown"), "{said}");
    assert!(!said.contains("unauthorized"), "{said}");
}

#[tokio::test]
async fn a_bearer_token_that_expires_takes_its_streams_along() {
    let controller = Controller::start().await;
    controller.operator().submit(ONE, "1").await;
    let made = controller.token(v1::TokenKind::Bearer, "viewer/dash", 3).await;
    let (token, id) = (made.token, made.view.unwrap().id);
    let mut rpc = ClientServiceClient::new(controller.channel(None));
    let get = || v1::GetBuildRequest { build: "one/1".to_owned() };
    let watch = rpc.watch_build(bearing(&token, get())).await.unwrap().into_inner();
    let end = soon("the end of the stream", last_of(watch)).await;
    assert!(end.is_err(), "cut, not ended");
    let message = refused(rpc.get_build(bearing(&token, get())).await, Code::Unauthenticated, "unauthenticated");
    assert!(message.contains("has expired"), "{message}");
    controller.audited(&["\"login-failure\"", &format!("token:{id}"), "has expired", "\"by\":\"nobody\""]).await;
}

#[tokio::test]
async fn whoever_guesses_bearer_tokens_waits() {
    let controller = Controller::start().await;
    let good = controller.token(v1::TokenKind::Bearer, "viewer/dash", 0).await.token;
    let elsewhere = Controller::start().await.token(v1::TokenKind::Bearer, "viewer/dash", 0).await.token;
    let mut rpc = ClientServiceClient::new(controller.channel(None));
    let list = v1::ListBuildsRequest::default;
    for _ in 0..10 {
        refused(rpc.list_builds(bearing(&elsewhere, list())).await, Code::Unauthenticated, "unauthenticated");
    }
    for token in [&elsewhere, &good] {
        let message = refused(rpc.list_builds(bearing(token, list())).await, Code::ResourceExhausted, "busy");
        assert!(message.contains("too many wrong tokens"), "{message}");
    }
    // Whoever has a certificate is somebody.
    controller.operator().submit(ONE, "1").await;
    controller.audited(&["\"login-failure\"", "is not known here"]).await;
    let data_dir = controller.data_dir().to_owned();
    let _stopped = controller.stop().await;
    let text = std::fs::read_to_string(data_dir.join("audit/audit-0000000000000001.jsonl")).unwrap();
    let failures: Vec<&str> = text.lines().filter(|line| line.contains("login-failure")).collect();
    assert!(failures.len() == 6 && failures[5].contains("\"more\":\"7\""), "each is written or counted: {failures:?}");
}
