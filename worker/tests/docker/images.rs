//! Images: made, sent, fetched, forgotten.

use crate::engine::{self, base_image, busybox_root, image_of};
use crate::farm::Farm;
use crate::faulty::Faults;
use crate::order::{order, output};
use railyard_common::blob::{Artifact, Image};
use railyard_common::digest::Digest;
use railyard_common::order::{Order, OrderImage};
use railyard_proto::v1;
use railyard_proto::v1::controller_message;
use railyard_service::convert::FromProto as _;
use railyard_worker::WorkerConfig;
use railyard_worker::runtime::Runtime as _;
use std::sync::Arc;
use std::time::Duration;

/// Everything about every file that a tar can carry, but for times of directories.
const LIST: &str = "find / -xdev ! -path '/work*' ! -path '/railyard*' ! -path '/proc*' ! -path '/sys*' ! -path '/dev*' \
     ! -path '/etc/hosts' ! -path '/etc/hostname' ! -path '/etc/resolv.conf' ! -path '/.dockerenv' | sort | \
     while read -r f; do echo \"$f $(stat -c '%f %h %u %g %t %T %s' \"$f\") $(readlink \"$f\" || true)\"; \
     if [ -f \"$f\" ] && [ ! -L \"$f\" ]; then sha256sum <\"$f\"; fi; done >list\n";

/// A tree with what makes image layers hard.
const NASTY: &str = "cd /opt\n\
     rm base/removed; rm -r opaque; mkdir opaque; echo new >opaque/new\n\
     echo linked >one; ln one two; ln -s one soft; ln -s /nowhere/at/all dangling\n\
     mkfifo pipe; mknod zero c 1 5; touch setuid; chmod 4755 setuid; mkdir -m 1700 sticky\n\
     touch 'with space' 'uml\u{e4}ut'; mkdir -p $(printf 'deep%.0s/' $(seq 60)); touch $(printf 'long%.0s' $(seq 60))\n\
     dd if=/dev/zero of=sparse bs=1 count=1 seek=1000000\n\
     mv base moved; cd /work\n";

pub fn image_in(report: &v1::ReportRequest) -> Image {
    Image::from_proto(report.image.clone().unwrap()).unwrap()
}

fn listing(farm: &Farm, report: &v1::ReportRequest) -> String {
    let artifact = Artifact::from_proto(report.artifacts[0].clone()).unwrap();
    String::from_utf8(farm.service.books().plain(artifact.blob.digest)).unwrap()
}

pub fn committing(job: u64, image: &str, script: &str) -> Order {
    let mut order = order(job, image, script);
    Arc::make_mut(&mut order.run).commit = true;
    Arc::make_mut(&mut order.run).capabilities = vec!["default".into()];
    Arc::make_mut(&mut order.run).outputs = vec![output("list")];
    order
}

pub async fn forget_build(farm: &Farm) {
    farm.tell(controller_message::Kind::BuildOver(v1::BuildOver { build: "test/1.0+x".into() })).await;
    let gone = async {
        while !engine::images_of(&farm.id).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the build's images go");
}

/// Waits until the engine has no image with that layer: it takes away the name first, and the rest after that.
pub async fn layer_goes(layer: Digest) {
    let engine = engine::runtime().await;
    let gone = async {
        while engine.layer_chains().await.unwrap().iter().any(|chain| chain.contains(&layer)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the layer goes with its images");
}

/// The engine makes images itself, as where the worker cannot read what the engine keeps of a container.
pub fn by_engine() -> Faults {
    Faults { no_overlay: true, ..Faults::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_back_with_the_same_files_and_settings() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    // The engine has never heard of it, but the worker has it.
    let log = comes_back(&farm, "fetching the image: 1 of 2 layers").await;
    assert!(farm.service.books().reads.is_empty(), "{:?}", farm.service.books().reads);
    assert!(log.contains("packed what the script has changed"), "{log}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_engine_made_comes_back_the_same() {
    let farm = Farm::start().await;
    // Nor are blobs kept here: each comes from the cache.
    let forgetful = WorkerConfig { blob_cache: bytesize::ByteSize::b(0), ..farm.config() };
    let worker = farm.faulty_worker(forgetful, by_engine()).await;
    let log = comes_back(&farm, "the image is here").await;
    assert!(!farm.service.books().reads.is_empty());
    assert!(!log.contains("packed what the script has changed"), "{log}");
    worker.stop().await;
}

/// A nasty image is made, and used again while more and more of it has gone from the engine. `then` is what the worker says when
/// the first job wants it. Gives the log of the job that made it.
async fn comes_back(farm: &Farm, then: &str) -> String {
    let base = image_of("railyard-test-nasty", &busybox_root(&farm.id)).await;
    let engine = engine::runtime().await;
    let base_layers = engine.image(&base).await.unwrap().unwrap().layers;
    let mut first = committing(1, &base, &format!("{NASTY}{LIST}"));
    Arc::make_mut(&mut first.run).env.insert("ONLY_HERE".into(), "yes".into());
    let made = farm.run(&first).await;
    made.expect_success();
    let image = image_in(&made.report);
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.layers[0].digest, base_layers[0]);
    let want = listing(farm, &made.report);
    assert!(want.contains("/opt/moved/kept") && want.contains("/opt/opaque/new"), "{want}");

    // The same job again finds its layers in the cache.
    let use_it = |job| {
        let mut order = committing(job, "", &format!("[ -z \"$ONLY_HERE\" ]\n{LIST}"));
        order.image = OrderImage::Image(image.clone());
        order
    };
    let local = farm.run(&use_it(2)).await;
    local.expect_success();
    assert!(local.log.contains(then), "{}", local.log);
    assert_eq!(listing(farm, &local.report), want);

    // Gone from the engine, but for its base: only the new layer is fetched.
    forget_build(farm).await;
    layer_goes(image.layers[1].digest).await;
    farm.service.change(|books| books.reads.clear());
    let partial = farm.run(&use_it(3)).await;
    partial.expect_success();
    assert!(partial.log.contains("fetching the image: 1 of 2 layers"), "{}", partial.log);
    assert!(!farm.service.books().reads.contains_key(&image.layers[0].digest));
    assert_eq!(listing(farm, &partial.report), want);

    // Gone altogether.
    forget_build(farm).await;
    engine.untag(&base).await.unwrap();
    layer_goes(image.layers[0].digest).await;
    let mut plain = use_it(4);
    Arc::make_mut(&mut plain.run).commit = false;
    let whole = farm.run(&plain).await;
    whole.expect_success();
    assert!(whole.log.contains("fetching the image: 2 of 2 layers"), "{}", whole.log);
    assert_eq!(listing(farm, &whole.report), want);
    let loaded = engine.image(&image.config.digest.to_string()).await.unwrap().unwrap();
    assert_eq!(loaded.layers, image.layers.iter().map(|layer| layer.digest).collect::<Vec<_>>());
    forget_build(farm).await;
    farm.assert_no_leftovers().await;
    made.log
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_the_cache_has_are_neither_packed_nor_sent() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let made = farm.run(&committing(1, &base_image().await, "echo first >/opt/first; touch list")).await;
    made.expect_success();
    let image = image_in(&made.report);
    let sent = farm.service.change(|books| std::mem::take(&mut books.sent));
    assert!(sent.contains_key(&image.layers[0].digest) && sent.contains_key(&image.layers[1].digest));
    let mut next = committing(2, "", "cat /opt/first; echo second >/opt/second; touch list");
    next.image = OrderImage::Image(image.clone());
    let next = farm.run(&next).await;
    next.expect_success();
    let longer = image_in(&next.report);
    assert_eq!(longer.layers[..2], image.layers[..]);
    let sent = farm.service.change(|books| std::mem::take(&mut books.sent));
    let sent: Vec<_> = sent.into_keys().collect();
    let mut want = vec![longer.config.digest, longer.layers[2].digest];
    want.sort();
    assert_eq!(sent, want);
    assert!(next.log.contains("1 of 3 layers were new"), "{}", next.log);
    forget_build(&farm).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_tarball_becomes_an_image_once() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let root = busybox_root(&format!("import {}", farm.id));
    let packed = zstd::encode_all(&root[..], 1).unwrap();
    let blob = farm.service.change(|books| books.add(&packed));
    let path = "root.tar.zst".parse().unwrap();
    let artifact = Artifact { path, blob, media_type: String::new(), published: None };
    let mut order = committing(1, "", "cat /etc/marker; touch list");
    order.image = OrderImage::Import(artifact);
    let first = farm.run(&order).await;
    first.expect_success();
    assert!(first.log.contains(&format!("import {}", farm.id)), "{}", first.log);
    assert!(first.log.contains("making an image of root.tar.zst"), "{}", first.log);
    order.lease.job.0 = 2;
    let second = farm.run(&order).await;
    second.expect_success();
    assert!(second.log.contains("the image of root.tar.zst is here"), "{}", second.log);
    forget_build(&farm).await;
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_image_is_of_the_job_s_platform_and_so_is_what_is_committed_from_it() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let root = busybox_root(&format!("foreign {}", farm.id));
    let blob = farm.service.change(|books| books.add(&root));
    let artifact = Artifact { path: "root.tar".parse().unwrap(), blob, media_type: String::new(), published: None };
    // What is in it runs here, whatever the image says it is for.
    let job = "step1@linux/arm64".parse().unwrap();
    let mut order = Order { image: OrderImage::Import(artifact), job, ..committing(1, "", "touch list /opt/new") };
    let made = farm.run(&order).await;
    made.expect_success();
    let image = image_in(&made.report);
    let config = farm.service.books().plain(image.config.digest);
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["architecture"], "arm64");
    for own in ["Env", "Cmd", "Entrypoint", "Labels"] {
        assert!(config["config"][own].is_null(), "nothing of the job's own settings: {config}");
    }
    forget_build(&farm).await;
    order.lease.job.0 = 2;
    order.image = OrderImage::Image(image.clone());
    farm.run(&order).await.expect_success();
    let engine = engine::runtime().await;
    assert_eq!(engine.image(&image.config.digest.to_string()).await.unwrap().unwrap().architecture, "arm64");
    forget_build(&farm).await;
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_reference_gives_each_platform_its_image_and_stays_what_it_was() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let reference = registry::serve(&format!("railyard-test/{}", farm.id), &farm.id).await;
    let on = |job: u64, platform: &str| Order {
        job: format!("step{job}@{platform}").parse().unwrap(),
        ..order(job, &reference, "cat /etc/marker")
    };
    let first = farm.run(&on(1, "linux/amd64")).await;
    first.expect_success();
    let engine = engine::runtime().await;
    let before = engine.image(&reference).await.unwrap().unwrap();
    for job in [2, 4] {
        let (amd64, arm64) = (on(job, "linux/amd64"), on(job + 1, "linux/arm64"));
        let (amd64, arm64) = tokio::join!(farm.run(&amd64), farm.run(&arm64));
        for (ended, platform) in [(amd64, "amd64"), (arm64, "arm64")] {
            ended.expect_success();
            assert!(ended.log.contains(&format!("{platform} {}", farm.id)), "{}", ended.log);
            assert!(job == 2 || ended.log.contains("is here\n"), "pulled once for a build: {}", ended.log);
        }
    }
    assert_eq!(engine.image(&reference).await.unwrap().unwrap(), before);
    forget_build(&farm).await;
    engine.untag(&reference).await.unwrap();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

/// A registry with one name, that has an image for each platform.
mod registry {
    use crate::engine::busybox_root;
    use axum::extract::Path;
    use axum::http::StatusCode;
    use axum::http::header::CONTENT_TYPE;
    use axum::response::IntoResponse as _;
    use axum::routing::any;
    use railyard_common::digest::Digest;
    use railyard_common::platform::Platform;
    use railyard_service::task;
    use railyard_worker::image_move::config;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::sync::Arc;
    use tokio::net::TcpListener;

    const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

    type Objects = BTreeMap<String, (&'static str, Vec<u8>)>;

    /// The reference of the image. The registry ends with the test.
    pub async fn serve(repository: &str, marker: &str) -> String {
        let mut objects = Objects::new();
        let manifests: Vec<_> = ["linux/amd64", "linux/arm64"]
            .map(|platform| add_image(&mut objects, platform.parse().unwrap(), marker))
            .into();
        let list = json!({ "schemaVersion": 2, "mediaType": LIST, "manifests": manifests });
        add(&mut objects, LIST, list.to_string().into_bytes());
        objects.insert("latest".to_owned(), (LIST, list.to_string().into_bytes()));
        let objects = Arc::new(objects);
        let answer = move |Path(path): Path<String>| async move {
            match objects.get(path.rsplit('/').next().unwrap_or_default()) {
                Some((media_type, bytes)) => ([(CONTENT_TYPE, *media_type)], bytes.clone()).into_response(),
                None if path.is_empty() => StatusCode::OK.into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let app = axum::Router::new().route("/v2/", any(|| async {})).route("/v2/{*path}", any(answer));
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = tcp.local_addr().unwrap();
        task::spawn("registry", async move { axum::serve(tcp, app).await });
        format!("{host}/{repository}:latest")
    }

    fn add_image(objects: &mut Objects, platform: Platform, marker: &str) -> serde_json::Value {
        let root = busybox_root(&format!("{} {marker}", platform.arch()));
        let config = config::imported(platform, Digest::of(&root), "test").to_vec();
        let gzipped = gzip_of(&root);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": add(objects, CONFIG, config),
            "layers": [add(objects, LAYER, gzipped)],
        });
        let mut entry = add(objects, MANIFEST, manifest.to_string().into_bytes());
        entry["platform"] = json!({ "os": "linux", "architecture": platform.arch() });
        entry
    }

    fn gzip_of(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    }

    fn add(objects: &mut Objects, media_type: &'static str, bytes: Vec<u8>) -> serde_json::Value {
        let digest = Digest::of(&bytes).to_string();
        let descriptor = json!({ "mediaType": media_type, "size": bytes.len(), "digest": digest });
        objects.insert(digest, (media_type, bytes));
        descriptor
    }
}
