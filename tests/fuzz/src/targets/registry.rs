//! Requests to the registry of images.

use super::{Target, texts};
use railyard_controller::fuzz;

pub const REGISTRY: Target = Target {
    name: "registry",
    parse: fuzz::registry::request,
    examples: || {
        texts(&[
            "/v2/",
            "/v2/_catalog?n=10&last=a/b",
            "/v2/a/b.c/tags/list?n=5",
            "/v2/a/b/manifests/4799.0.0\napplication/vnd.oci.image.index.v1+json;q=0.5, */*;q=0",
            "/v2/a/b/manifests/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "/v2/a/b/blobs/sha256%3Ae3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "/v2/a/b/blobs/uploads/",
        ])
    },
    words: &[
        "/v2/",
        "/tags/list",
        "/manifests/",
        "/blobs/",
        "uploads",
        "sha256:",
        "%3A",
        "_catalog",
        "?n=",
        "&last=",
        "../",
        "%2e%2e",
        "\napplication/vnd.oci.image.manifest.v1+json",
        "application/*",
        "*/*",
        ";q=0",
        ",",
        "A",
        "é",
        "-",
    ],
    max_len: 8 * 1024,
    memory_factor: 64,
    memory_base: 0,
};
