//! What the registry does not have.

use super::{IMAGES, farm};
use crate::common::{Backend, on_both};
use railyard_common::digest::Digest;
use railyard_service::tls::Role;
use serde_json::json;

on_both!(what_there_is_not_has_the_specification_s_name);

async fn what_there_is_not_has_the_specification_s_name(backend: Backend) {
    let controller = farm(backend, &["1.0"]).await;
    let client = controller.client(Some(Role::Submitter));
    let digest = Digest::of(b"nothing");
    for (path, status, code) in [
        ("mini/sdk/manifests/2.0".to_owned(), 404, "MANIFEST_UNKNOWN"),
        (format!("mini/sdk/manifests/{digest}"), 404, "MANIFEST_UNKNOWN"),
        ("mini/plain/manifests/1.0".to_owned(), 404, "MANIFEST_UNKNOWN"),
        ("mini/plain/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        ("other/sdk/tags/list".to_owned(), 404, "NAME_UNKNOWN"),
        (format!("other/sdk/blobs/{digest}"), 404, "NAME_UNKNOWN"),
        (format!("mini/sdk/blobs/{digest}"), 404, "BLOB_UNKNOWN"),
        (format!("mini/sdk/referrers/{digest}"), 404, "UNSUPPORTED"),
        ("mini/sdk/blobs/sha256:12".to_owned(), 400, "DIGEST_INVALID"),
        ("Mini/sdk/tags/list".to_owned(), 400, "NAME_INVALID"),
    ] {
        assert_eq!(controller.v2(&path).await.error(), (status, code.to_owned()), "{path}");
    }
    for method in [reqwest::Method::PUT, reqwest::Method::POST, reqwest::Method::PATCH, reqwest::Method::DELETE] {
        for path in ["mini/sdk/manifests/1.0", "mini/sdk/blobs/uploads/", ""] {
            let answer = controller.ask(client.request(method.clone(), format!("{}/v2/{path}", controller.url))).await;
            assert_eq!(answer.error(), (405, "UNSUPPORTED".to_owned()), "{method} {path}");
            assert_eq!(answer.header("allow"), "GET, HEAD");
        }
    }
}

#[tokio::test]
async fn what_has_no_image_yet_is_in_no_list() {
    let controller = farm(Backend::Embedded, &["1.0"]).await;
    controller.operator().submit(&IMAGES.replace("name: mini", "name: never"), "1.0").await;
    let there = json!({ "repositories": ["mini/sdk", "mini/test.fast"] });
    assert_eq!(controller.v2("_catalog").await.json(), there);
    assert_eq!(controller.v2("never/sdk/tags/list").await.json()["tags"], json!([]));
}
