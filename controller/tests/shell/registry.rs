//! `/v2/`: the images of builds, pulled by a client that everybody has, and asked for by hand.

mod gaps;

use crate::common::controller::endpoint_of;
use crate::common::people::submission;
use crate::common::worker::{hello, lease, report, succeeded};
use crate::common::{Backend, Controller, Worker, on_both};
use crate::store::SECRET;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_controller::cache::{CacheConfig, EmbeddedConfig};
use railyard_proto::v1;
use railyard_service::channel::Endpoint;
use railyard_service::tls::{Role, client_config};
use serde_json::{Value, json};
use std::path::Path;
use tokio::process::Command;

const PLATFORMS: [&str; 2] = ["linux/amd64", "linux/arm64"];

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A step on two platforms, and one on a single platform.
const IMAGES: &str = "
name: mini
platforms: [linux/amd64, linux/arm64]
steps:
  - name: sdk
    image: debian
    script: make
    commit: true
  - name: test
    platforms: [linux/amd64]
    matrix: { kind: [fast] }
    image: debian
    script: make
    commit: true
  - name: plain
    platforms: [linux/amd64]
    image: debian
    script: make
";

on_both!(
    skopeo_takes_images_by_tag_digest_and_platform,
    documents_and_blobs_have_what_the_specification_says,
    a_tag_that_somebody_gave_is_a_tag_here,
    lists_go_by_pages,
    people_pull_and_others_do_not,
    who_is_limited_to_another_pipeline_finds_nothing_of_this_one,
    what_was_pulled_by_digest_is_there_after_a_restart,
    a_blob_s_bytes_come_from_the_store,
    what_the_cache_has_lost_is_unknown,
    what_is_damaged_gets_no_name,
);

fn tar(name: &str, bytes: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append_data(&mut header, name, bytes).unwrap();
    tar.into_inner().unwrap()
}

/// The layers of the image that a job commits: one is stored as zstd, the other as it is.
fn layers(job: &str, version: &str) -> [Vec<u8>; 2] {
    [tar("etc/base", b"the same for all"), tar("etc/job", format!("{job} {version}").repeat(5000).as_bytes())]
}

impl Worker {
    async fn layer(
        &self,
        lease: v1::LeaseId,
        plain: &[u8],
        encoding: Encoding,
    ) -> (v1::Blob, Option<v1::FinishedUpload>) {
        let stored = match encoding {
            Encoding::Identity => plain.to_vec(),
            Encoding::Zstd => zstd::bulk::compress(plain, 3).unwrap(),
        };
        let blob = Blob { encoding, stored_bytes: stored.len() as u64, ..crate::common::transfers::blob_of(plain) };
        let sent = self.upload_stored(lease, blob, &stored).await;
        (sent.blob, sent.upload)
    }

    /// Does whatever job comes next.
    async fn work(&mut self) {
        let order = self.order().await;
        let (lease, mut request) = (lease(&order), report(lease(&order), succeeded()));
        if order.run.unwrap().commit {
            let version = order.build.split_once('/').unwrap().1.to_owned();
            let [base, own] = layers(&order.job, &version);
            let diff_ids = [Digest::of(&base).to_string(), Digest::of(&own).to_string()];
            let arch = order.job.rsplit_once('/').unwrap().1;
            let config = json!({
                "architecture": arch, "os": "linux", "created": "2026-11-21T00:00:00Z",
                "config": { "Cmd": ["/bin/sh"], "Labels": { "job": order.job } },
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
                "history": [{ "created_by": "base" }, { "created_by": "job" }],
            });
            let (mut image, mut uploads) = self.image(lease, config.to_string().as_bytes(), &[]).await;
            for (layer, encoding) in [(base, Encoding::Zstd), (own, Encoding::Identity)] {
                let (blob, upload) = self.layer(lease, &layer, encoding).await;
                image.layers.push(blob);
                uploads.extend(upload);
            }
            (request.image, request.uploads) = (Some(image), uploads);
        }
        self.try_report(request).await.unwrap();
    }
}

/// A farm whose builds of [`IMAGES`] at these versions have succeeded, in this order.
async fn farm(backend: Backend, versions: &[&str]) -> Controller {
    let controller = Controller::start_on(backend).await;
    build(&controller, versions).await;
    controller
}

async fn build(controller: &Controller, versions: &[&str]) {
    let mut said = hello("anvil");
    said.platforms = PLATFORMS.map(|p| v1::PlatformOffer { platform: p.to_owned(), emulated: false }).to_vec();
    let mut worker = controller.worker_saying(said).await;
    for version in versions {
        let build = controller.operator().try_submit(submission(IMAGES, version)).await.unwrap().build;
        for _ in 0..4 {
            worker.work().await;
        }
        assert_eq!(controller.operator().ended(&build).await.state(), v1::BuildState::Succeeded);
    }
}

/// An answer, taken apart.
struct Answer {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&self.body)))
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The code of the specification's error, with the status.
    fn error(&self) -> (u16, String) {
        (self.status, self.json()["errors"][0]["code"].as_str().unwrap().to_owned())
    }
}

/// An HTTP client that follows nowhere.
fn browser_of(endpoint: &Endpoint) -> reqwest::Client {
    let tls = client_config(&endpoint.ca_pem, endpoint.identity.as_ref()).unwrap();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls);
    client.redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

impl Controller {
    fn client(&self, who: Option<Role>) -> reqwest::Client {
        browser_of(&self.endpoint(who.map(|role| (role, "reader"))))
    }

    async fn ask(&self, request: reqwest::RequestBuilder) -> Answer {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers()["docker-distribution-api-version"], "registry/2.0");
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        Answer { status, headers, body: answer.bytes().await.unwrap().to_vec() }
    }

    async fn v2(&self, path: &str) -> Answer {
        self.ask(self.client(Some(Role::Viewer)).get(format!("{}/v2/{path}", self.url))).await
    }

    /// The digest of the packed layer of `mini/sdk:1.0`.
    async fn layer(&self) -> String {
        let index = self.v2("mini/sdk/manifests/1.0").await.json();
        let manifest =
            self.v2(&format!("mini/sdk/manifests/{}", index["manifests"][0]["digest"].as_str().unwrap())).await;
        manifest.json()["layers"][0]["digest"].as_str().unwrap().to_owned()
    }

    /// What `skopeo` wants to know of a registry: its CA and our certificate.
    fn certificates(&self, dir: &Path) {
        let endpoint = self.endpoint(Some((Role::Viewer, "reader")));
        let pair = endpoint.identity.unwrap();
        std::fs::create_dir_all(dir).unwrap();
        for (name, text) in [("ca.crt", endpoint.ca_pem), ("client.cert", pair.cert_pem), ("client.key", pair.key_pem)]
        {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
}

async fn skopeo(args: &[&str]) -> Vec<u8> {
    let done = Command::new("skopeo").args(args).output().await.unwrap();
    assert!(done.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

async fn skopeo_takes_images_by_tag_digest_and_platform(backend: Backend) {
    let controller = farm(backend, &["1.0+nightly", "1.1"]).await;
    let dir = tempfile::tempdir().unwrap();
    let (at, certs) = (|name: &str| dir.path().join(name).display().to_string(), dir.path().join("certs"));
    controller.certificates(&certs);
    let certs = certs.display().to_string();
    let address = controller.address();
    let name = |text: &str| format!("docker://{address}/mini/{text}");

    let told: Value =
        serde_json::from_slice(&skopeo(&["inspect", "--cert-dir", &certs, &name("sdk:1.0_nightly")]).await).unwrap();
    assert_eq!(told["Labels"]["job"], "sdk@linux/amd64");
    assert_eq!(told["RepoTags"], json!(["1.0_nightly", "1.1", "latest"]));
    let raw = skopeo(&["inspect", "--raw", "--cert-dir", &certs, &name("sdk:latest")]).await;
    let index: Value = serde_json::from_slice(&raw).unwrap();
    assert_eq!(index["annotations"]["org.opencontainers.image.version"], "1.1");

    // Every platform, as it is in the registry.
    let oci = format!("oci:{}:sdk", at("oci"));
    skopeo(&["copy", "--all", "--preserve-digests", "--src-cert-dir", &certs, &name("sdk:1.1"), &oci]).await;
    let blob = |digest: &Value| read(&dir.path().join("oci/blobs/sha256").join(&digest.as_str().unwrap()[7..]));
    for (n, platform) in PLATFORMS.into_iter().enumerate() {
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][n]["digest"])).unwrap();
        let wanted = layers(&format!("sdk@{platform}"), "1.1");
        let got: Vec<Vec<u8>> =
            manifest["layers"].as_array().unwrap().iter().map(|layer| blob(&layer["digest"])).collect();
        assert_eq!(zstd::decode_all(got[0].as_slice()).unwrap(), wanted[0], "{platform}");
        assert_eq!(got[1], wanted[1], "{platform}");
        assert!(manifest["layers"][0]["mediaType"].as_str().unwrap().ends_with("tar+zstd"));
    }

    // One platform, by its digest, and one that runs on a single platform.
    let arm = format!("sdk@{}", index["manifests"][1]["digest"].as_str().unwrap());
    skopeo(&["copy", "--src-cert-dir", &certs, &name(&arm), &format!("dir:{}", at("arm"))]).await;
    let manifest: Value = serde_json::from_slice(&read(Path::new(&at("arm")).join("manifest.json").as_path())).unwrap();
    let config: Value = serde_json::from_slice(&read(
        &dir.path().join("arm").join(&manifest["config"]["digest"].as_str().unwrap()[7..]),
    ))
    .unwrap();
    assert_eq!(config["architecture"], "arm64");
    skopeo(&["copy", "--src-cert-dir", &certs, &name("test.fast:1.1"), &format!("dir:{}", at("test"))]).await;
    let manifest: Value = serde_json::from_slice(&read(&dir.path().join("test/manifest.json"))).unwrap();
    assert_eq!(manifest["mediaType"], MANIFEST, "a step on one platform has no index");

    // Without a certificate or a token it is asked for one.
    let denied =
        Command::new("skopeo").args(["inspect", "--tls-verify=false", &name("sdk:1.1")]).output().await.unwrap();
    let said = String::from_utf8_lossy(&denied.stderr);
    assert!(!denied.status.success() && said.contains("authentication required"), "{said}");
}

async fn a_tag_that_somebody_gave_is_a_tag_here(backend: Backend) {
    let controller = farm(backend, &["1.0", "1.1"]).await;
    let person = controller.operator();
    let tag = |build: &str| v1::TagBuildRequest { build: build.to_owned(), tag: "golden".to_owned() };
    let version = async || {
        let index = controller.v2("mini/sdk/manifests/golden").await.json();
        index["annotations"]["org.opencontainers.image.version"].as_str().map(str::to_owned)
    };
    assert_eq!(version().await, None);
    for wanted in ["1.0", "1.1"] {
        person.rpc.clone().tag_build(tag(&format!("mini/{wanted}"))).await.unwrap();
        assert_eq!(version().await.as_deref(), Some(wanted));
        let tags = controller.v2("mini/sdk/tags/list").await.json();
        assert_eq!(tags["tags"], json!(["1.0", "1.1", "golden", "latest"]));
    }
    // Of one platform it is the image itself.
    assert_eq!(controller.v2("mini/test.fast/manifests/golden").await.header("content-type"), MANIFEST);
    let untag = v1::UntagBuildRequest { pipeline: "mini".to_owned(), tag: "golden".to_owned() };
    person.rpc.clone().untag_build(untag).await.unwrap();
    assert_eq!(controller.v2("mini/sdk/manifests/golden").await.error(), (404, "MANIFEST_UNKNOWN".to_owned()));
}

async fn documents_and_blobs_have_what_the_specification_says(backend: Backend) {
    let controller = farm(backend, &["1.0"]).await;
    let client = controller.client(Some(Role::Viewer));
    let url = |path: &str| format!("{}/v2/{path}", controller.url);
    assert_eq!(controller.v2("").await.json(), json!({}));

    let index = controller.v2("mini/sdk/manifests/1.0").await;
    assert_eq!((index.status, index.header("content-type")), (200, INDEX));
    let digest = Digest::of(&index.body).to_string();
    assert_eq!(index.header("docker-content-digest"), digest);
    assert_eq!(index.header("etag"), format!("\"{digest}\""));
    let head = controller.ask(client.head(url("mini/sdk/manifests/latest"))).await;
    assert_eq!((head.status, head.header("content-length")), (200, index.body.len().to_string().as_str()));
    assert_eq!((head.header("docker-content-digest"), head.body.len()), (digest.as_str(), 0));
    let same = client.get(url("mini/sdk/manifests/1.0")).header("if-none-match", format!("\"x\", \"{digest}\""));
    assert_eq!(controller.ask(same).await.status, 304);
    let same = client.head(url("mini/sdk/manifests/1.0")).header("if-none-match", format!("\"{digest}\""));
    let same = same.send().await.unwrap();
    assert_eq!((same.status().as_u16(), same.headers().get("content-length")), (304, None));

    let by_digest = controller.v2(&format!("mini/sdk/manifests/{digest}")).await;
    assert_eq!(by_digest.body, index.body);
    let elsewhere = controller.v2(&format!("mini/test.fast/manifests/{digest}")).await;
    assert_eq!(elsewhere.error(), (404, "MANIFEST_UNKNOWN".to_owned()), "another repository's");
    let only_manifest = client.get(url("mini/sdk/manifests/1.0")).header("accept", MANIFEST);
    let amd64 = controller.ask(only_manifest).await;
    assert_eq!(amd64.header("docker-content-digest"), index.json()["manifests"][0]["digest"]);
    let another = client.get(url(&format!("mini/sdk/manifests/{digest}"))).header("accept", MANIFEST);
    assert_eq!(controller.ask(another).await.error(), (404, "MANIFEST_UNKNOWN".to_owned()), "not another's bytes");
    let neither = client.get(url("mini/sdk/manifests/1.0")).header("accept", "text/html");
    assert_eq!(controller.ask(neither).await.error(), (404, "MANIFEST_UNKNOWN".to_owned()));

    let manifest = amd64.json();
    let layer = &manifest["layers"][0];
    let path = format!("mini/sdk/blobs/{}", layer["digest"].as_str().unwrap());
    let head = controller.ask(client.head(url(&path))).await;
    assert_eq!((head.status, head.header("content-length")), (200, layer["size"].to_string().as_str()));
    let there = controller.v2(&path).await;
    assert_eq!(there.status, 307);
    // From the store, with ranges, for whoever has the URL.
    let range = controller.client(None).get(there.header("location")).header("range", "bytes=4-");
    let range = range.send().await.unwrap();
    assert_eq!(range.status(), 206);
    let packed = zstd::bulk::compress(&layers("", "")[0], 3).unwrap();
    assert_eq!(range.bytes().await.unwrap(), packed[4..]);
    let path = format!("mini/sdk/blobs/{}", manifest["config"]["digest"].as_str().unwrap());
    let config = controller.v2(&path).await;
    assert_eq!((config.status, &config.json()["architecture"]), (200, &json!("amd64")));
    assert_eq!(Digest::of(&config.body).to_string(), manifest["config"]["digest"]);
    let head = controller.ask(client.head(url(&path))).await;
    assert_eq!((head.status, head.header("content-length")), (200, config.body.len().to_string().as_str()));
    assert_eq!((head.header("docker-content-digest"), head.body.len()), (config.header("docker-content-digest"), 0));
    let path = format!("mini/test.fast/blobs/{}", manifest["config"]["digest"].as_str().unwrap());
    assert_eq!(controller.v2(&path).await.error(), (404, "BLOB_UNKNOWN".to_owned()), "another repository's");
}

/// The controller says where they are, to those who may know. The way there needs no certificate, and shows no key.
async fn a_blob_s_bytes_come_from_the_store(backend: Backend) {
    let controller = farm(backend, &["1.0"]).await;
    let digest = controller.layer().await;
    let path = format!("mini/sdk/blobs/{digest}");
    let ranged = controller.client(Some(Role::Viewer)).get(format!("{}/v2/{path}", controller.url));
    for asked in [ranged.try_clone().unwrap(), ranged.header("range", "bytes=0-3").header("if-none-match", "*")] {
        let there = controller.ask(asked).await;
        assert_eq!((there.status, there.header("docker-content-digest")), (307, digest.as_str()));
        assert_eq!((there.header("cache-control"), there.body.len()), ("no-store", 0));
        let url = there.header("location");
        assert!(url.starts_with(&controller.store_url()) && !url.contains(SECRET), "{url}");
    }
    // Clients that follow at once: with their certificate, as docker and skopeo do, and for a part.
    let follows = controller.browser().get(format!("{}/v2/{path}", controller.url));
    let whole = follows.try_clone().unwrap().send().await.unwrap();
    assert_eq!(whole.status(), 200);
    let whole = whole.bytes().await.unwrap();
    assert_eq!(Digest::of(&whole).to_string(), digest);
    let part = follows.header("range", "bytes=2-5").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.bytes().await.unwrap()), (206, whole.slice(2..6)));
    // Nobody writes by such a URL.
    let there = controller.v2(&path).await;
    let written = controller.client(None).put(there.header("location")).body("other").send().await.unwrap();
    assert!(written.status().is_client_error(), "{}", written.status());
}

/// Somebody has cleaned up in the store.
async fn what_the_cache_has_lost_is_unknown(backend: Backend) {
    let controller = farm(backend, &["1.0"]).await;
    let digest = controller.layer().await;
    let plain = layers("", "")[0].clone();
    let (hex, url) = (Digest::of(&plain).hex(), format!("{}/v2/mini/sdk/blobs/{digest}", controller.url));
    std::fs::remove_file(controller.objects().join(format!("blobs/sha256/{}/{hex}.zst", &hex[..2]))).unwrap();
    let client = controller.client(Some(Role::Viewer));
    assert_eq!(controller.ask(client.head(&url)).await.status, 404);
    assert_eq!(controller.ask(client.get(&url)).await.error(), (404, "BLOB_UNKNOWN".to_owned()));
}

/// The disk of the store has not kept what it was given. Nobody has asked for it before.
async fn what_is_damaged_gets_no_name(backend: Backend) {
    let controller = farm(backend, &["1.0"]).await;
    let hex = Digest::of(&layers("", "")[0]).hex();
    let other = zstd::bulk::compress(b"what nobody has built", 1).unwrap();
    std::fs::write(controller.objects().join(format!("blobs/sha256/{}/{hex}.zst", &hex[..2])), other).unwrap();
    let told = controller.v2("mini/sdk/manifests/1.0").await;
    assert_eq!(told.error(), (404, "BLOB_UNKNOWN".to_owned()));
}

async fn lists_go_by_pages(backend: Backend) {
    let controller = farm(backend, &["1.0", "1.0+x", "0.9"]).await;
    let tags = controller.v2("mini/sdk/tags/list").await;
    assert_eq!(tags.json(), json!({ "name": "mini/sdk", "tags": ["0.9", "1.0", "1.0_x", "latest"] }));
    assert_eq!(tags.header("link"), "");
    let page = controller.v2("mini/sdk/tags/list?n=3").await;
    assert_eq!(page.json()["tags"], json!(["0.9", "1.0", "1.0_x"]));
    assert_eq!(page.header("link"), "</v2/mini/sdk/tags/list?n=3&last=1.0_x>; rel=\"next\"");
    let page = controller.v2("mini/sdk/tags/list?n=3&last=1.0_x").await;
    assert_eq!((page.json()["tags"].clone(), page.header("link")), (json!(["latest"]), ""));
    let none = controller.v2("mini/sdk/tags/list?n=0").await;
    assert_eq!((none.json()["tags"].clone(), none.header("link")), (json!([]), ""));
    let catalog = controller.v2("_catalog?n=1").await;
    assert_eq!(catalog.json(), json!({ "repositories": ["mini/sdk"] }));
    assert_eq!(catalog.header("link"), "</v2/_catalog?n=1&last=mini%2Fsdk>; rel=\"next\"");
    assert_eq!(
        controller.v2("_catalog?n=1&last=mini%2Fsdk").await.json(),
        json!({ "repositories": ["mini/test.fast"] })
    );
    // The newest success, not the highest version.
    let latest = controller.v2("mini/sdk/manifests/latest").await.json();
    assert_eq!(latest["annotations"]["org.opencontainers.image.version"], "0.9");
}

async fn people_pull_and_others_do_not(backend: Backend) {
    let controller = farm(backend, &["1.0"]).await;
    let url = format!("{}/v2/mini/sdk/manifests/1.0", controller.url);
    let layer = format!("{}/v2/mini/sdk/blobs/{}", controller.url, controller.layer().await);
    for who in [None, Some(Role::Worker)] {
        let answer = controller.ask(controller.client(who).get(&layer)).await;
        assert!(matches!(answer.status, 401 | 403), "{who:?} is told {} {}", answer.status, answer.header("location"));
    }
    for (who, want) in [
        (None, Some((401, "UNAUTHORIZED"))),
        (Some(Role::Worker), Some((403, "DENIED"))),
        (Some(Role::Viewer), None),
        (Some(Role::Submitter), None),
        (Some(Role::Operator), None),
    ] {
        let answer = controller.ask(controller.client(who).get(&url)).await;
        match want {
            Some((status, code)) => assert_eq!(answer.error(), (status, code.to_owned()), "{who:?}"),
            None => assert_eq!(answer.status, 200, "{who:?}"),
        }
        if who.is_none() {
            assert!(!answer.header("www-authenticate").is_empty());
        }
    }
}

async fn who_is_limited_to_another_pipeline_finds_nothing_of_this_one(backend: Backend) {
    let controller = farm(backend, &["1.0"]).await;
    let blob = format!("blobs/{}", controller.layer().await);
    for (pipeline, has, there) in [("other", 403, json!([])), ("mini", 200, json!(["mini/sdk", "mini/test.fast"]))] {
        let eve = format!("railyard://viewer/eve?pipeline={pipeline}").parse().unwrap();
        let client = browser_of(&endpoint_of(&controller.config, &controller.url, Some(&eve)));
        let ask = async |path: &str| controller.ask(client.get(format!("{}/v2/{path}", controller.url))).await;
        for (path, found) in [("manifests/1.0", 200), ("manifests/none", 404), (&*blob, 307), ("tags/list", 200)] {
            let answer = ask(&format!("mini/sdk/{path}")).await;
            match has {
                403 => assert_eq!(answer.error(), (403, "DENIED".to_owned()), "{pipeline} {path}"),
                _ => assert_eq!(answer.status, found, "{pipeline} {path}"),
            }
        }
        assert_eq!(ask("_catalog").await.json(), json!({ "repositories": there }), "{pipeline}");
    }
}

#[tokio::test]
async fn anybody_pulls_from_a_public_cache() {
    let public = Controller::start_with(|config| {
        let dir = config.data_dir.join("cache");
        config.cache = Some(CacheConfig::Embedded(EmbeddedConfig { dir, public_read: true, key_file: None }));
    })
    .await;
    let anybody = public.client(None);
    assert_eq!(public.ask(anybody.get(format!("{}/v2/", public.url))).await.status, 200);
    let write = public.ask(anybody.put(format!("{}/v2/mini/sdk/manifests/1", public.url))).await;
    assert_eq!(write.error(), (405, "UNSUPPORTED".to_owned()));
}

async fn what_was_pulled_by_digest_is_there_after_a_restart(backend: Backend) {
    let controller = farm(backend, &["1.0", "1.1"]).await;
    let index = controller.v2("mini/sdk/manifests/1.0").await;
    let arm = index.json()["manifests"][1]["digest"].as_str().unwrap().to_owned();
    let manifest = controller.v2(&format!("mini/sdk/manifests/{arm}")).await;
    let layer = manifest.json()["layers"][0]["digest"].as_str().unwrap().to_owned();
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;
    // In the order in which a client that knows the digests may ask: nothing was asked by tag.
    assert_eq!(controller.v2(&format!("mini/sdk/blobs/{layer}")).await.status, 307);
    assert_eq!(controller.v2(&format!("mini/sdk/manifests/{arm}")).await.body, manifest.body);
    // The digest was kept: nobody has to read the layer again.
    let beside = controller.objects().join("blobs/sha256");
    let plain = Digest::of(&layers("", "")[0]).hex();
    let kept = std::fs::read_to_string(beside.join(&plain[..2]).join(format!("{plain}.zst.sha256"))).unwrap();
    assert!(kept.starts_with(&layer), "{kept}");
}
