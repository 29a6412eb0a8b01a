//! Pulls from a registry that is not well.

use crate::engine::SOCKET;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Response, StatusCode, header};
use axum::routing::get;
use futures_util::stream;
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;
use railyard_worker::runtime::{Docker, Runtime as _, RuntimeError};
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;

const MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// An image of one layer, of which not a byte ever comes.
fn manifest() -> String {
    let part = |kind: &str, of: &[u8]| {
        let digest = Digest::of(of);
        serde_json::json!({ "mediaType": kind, "size": 1_000_000, "digest": format!("sha256:{}", digest.hex()) })
    };
    let config = part("application/vnd.docker.container.image.v1+json", b"config");
    let layer = part("application/vnd.docker.image.rootfs.diff.tar.gzip", b"layer");
    serde_json::json!({ "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [layer] })
        .to_string()
}

fn answer(content_type: &str, body: Body) -> Response<Body> {
    let answer = Response::builder().status(StatusCode::OK).header(header::CONTENT_TYPE, content_type);
    answer.body(body).unwrap()
}

/// A registry that begins to answer, and then says no more. Gives its address.
async fn stuck_registry() -> String {
    let silent = || async {
        answer("application/octet-stream", Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>()))
    };
    let routes = Router::new()
        .route("/v2/", get(|| async { answer("application/json", Body::from("{}")) }))
        .route("/v2/stuck/manifests/{tag}", get(|| async { answer(MANIFEST_TYPE, Body::from(manifest())) }))
        .route("/v2/stuck/blobs/{digest}", get(silent));
    // The engine takes a registry of its own machine without TLS.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    railyard_service::task::spawn("the stuck registry", async move { axum::serve(listener, routes).await });
    address.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_without_progress_is_given_up() {
    let engine = Docker::connect(Path::new(SOCKET)).await.unwrap().with_pull_silence(Duration::from_secs(2));
    let reference = format!("{}/stuck:1", stuck_registry().await);
    let ended = engine.pull(&reference, Platform::LinuxAmd64).await;
    let Err(RuntimeError::Refused { status: None, message, .. }) = ended else { panic!("{ended:?}") };
    assert_eq!(message, "no progress for 2 s");
}
