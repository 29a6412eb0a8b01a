//! Too many requests.

use super::attacker::{self, address};
use super::bystander::Bystander;
use super::farm;
use crate::common::{Controller, refusal, soon};
use futures_util::future::join_all;
use railyard_proto::v1;
use railyard_service::tls::Role;
use tonic::{Code, Status};

async fn asks(controller: &Controller, name: &str, times: usize) -> Vec<Result<(), Status>> {
    let rpc = controller.person(Role::Viewer, name).rpc;
    let calls = (0..times).map(|_| {
        let mut rpc = rpc.clone();
        async move { rpc.list_workers(v1::ListWorkersRequest {}).await.map(drop) }
    });
    soon("the answers", join_all(calls)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let controller = farm(|limits| limits.requests_per_client_per_sec = 50).await;
    let mut bystander = Bystander::watch(&controller);
    let answers = asks(&controller, "greedy", 500).await;
    let served = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((200..400).contains(&served), "{served} of 500");
    for answer in answers.into_iter().filter(Result::is_err) {
        assert!(answer.as_ref().unwrap_err().metadata().contains_key("retry-after"));
        let (code, reason, message) = refusal(answer);
        assert_eq!((code, reason.as_str()), (Code::ResourceExhausted, "busy"), "{message}");
    }
    bystander.is_served().await;
    controller.audited(&["viewer/greedy", "\"refused\"", "too many requests in a short time"]).await;
    assert!(asks(&controller, "modest", 100).await.iter().all(Result::is_ok));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_listen_is_cut() {
    let controller = farm(|limits| limits.requests_per_client_per_sec = 10).await;
    let mut bystander = Bystander::watch(&controller);
    let http2 = attacker::Http2::connect(&controller, address(1), Some((Role::Viewer, "deaf"))).await;
    let block = attacker::call("/railyard.v1.ClientService/ListWorkers");
    let flags = attacker::END_HEADERS | attacker::END_STREAM;
    let ask = |n: usize| attacker::frame(attacker::HEADERS, flags, u32::try_from(2 * n + 1).unwrap(), &block);
    let (sent, _) = http2.flood(200_000, ask).await;
    assert!(sent < 100_000, "{sent} requests were read");
    bystander.is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http1_it_is_429() {
    let controller = farm(|limits| limits.requests_per_client_per_sec = 5).await;
    let browser = controller.browser();
    let mut refused = None;
    for _ in 0..100 {
        let answer = browser.get(format!("{}/healthz", controller.url)).send().await.unwrap();
        if answer.status() != 200 {
            refused = Some(answer);
            break;
        }
    }
    let refused = refused.expect("a hundred at once are too many");
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (429, "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_requests_at_a_time_and_no_more() {
    let controller = farm(|limits| limits.requests_per_client = 20).await;
    let mut bystander = Bystander::watch(&controller);
    let build = controller.operator().submit(crate::common::pipelines::ONE, "1").await;
    let rpc = controller.person(Role::Viewer, "greedy").rpc;
    let watch = || {
        let mut rpc = rpc.clone();
        let build = build.clone();
        async move { rpc.watch_build(v1::GetBuildRequest { build }).await }
    };
    let mut watched = Vec::new();
    for _ in 0..20 {
        watched.push(soon("a watch", watch()).await.unwrap());
    }
    let (code, reason, message) = refusal(soon("the refusal", watch()).await);
    assert_eq!((code, reason.as_str()), (Code::ResourceExhausted, "busy"), "{message}");
    bystander.is_served().await;
    watched.pop();
    crate::common::until("room for another", async || watch().await.ok()).await;
}
