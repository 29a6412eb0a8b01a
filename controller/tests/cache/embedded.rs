//! What only the embedded cache has: its listing, its access rules, its disk.

use super::fixture::{Fixture, LEASE, TestClock, blob_of, noise, path};
use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use railyard_common::layout;
use railyard_controller::cache::{self, CacheConfig, CacheError, EmbeddedConfig, PutMode, Uploader};
use railyard_service::task;
use railyard_service::tls::Role;
use railyard_transfer::{Form, MoveError, PartLog, Settings, Transfer, TransferError, silent};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tower::ServiceExt as _;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn headers_of_a_file() {
    let fixture = Fixture::embedded(true, None).await;
    let at = path("images/amd64/version.txt");
    fixture.cache.put(&at, Bytes::from_static(b"1.0.0\n"), PutMode::Create).await.unwrap();
    let url = fixture.cache.url(&at);
    assert_eq!(url, format!("{}/images/amd64/version.txt", fixture.base_url));

    let head = fixture.http.head(&url).send().await.unwrap();
    assert_eq!((head.status(), &head.headers()["content-length"]), (StatusCode::OK, &"6".parse().unwrap()));
    assert_eq!(head.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(head.headers()["accept-ranges"], "bytes");
    assert!(head.headers()["last-modified"].to_str().unwrap().ends_with(" GMT"));
    let etag = head.headers()["etag"].clone();
    assert_eq!(head.bytes().await.unwrap(), "");

    let same = fixture.http.get(&url).header("if-none-match", &etag).send().await.unwrap();
    assert_eq!(same.status(), StatusCode::NOT_MODIFIED);
    for method in [Method::GET, Method::HEAD] {
        let same = fixture.http.request(method.clone(), &url).header("if-none-match", &etag).send().await.unwrap();
        // Any length but that of the 200 would be wrong.
        assert_eq!((same.status(), same.headers().get("content-length")), (StatusCode::NOT_MODIFIED, None), "{method}");
    }
    fixture.cache.put(&at, Bytes::from_static(b"1.0.1\n"), PutMode::Overwrite).await.unwrap();
    let other = fixture.http.get(&url).header("if-none-match", &etag).send().await.unwrap();
    assert_eq!((other.status(), other.text().await.unwrap()), (StatusCode::OK, "1.0.1\n".to_owned()));
    let resumed = fixture.http.get(&url).header("range", "bytes=2-").header("if-range", &etag).send().await.unwrap();
    assert_eq!(resumed.status(), StatusCode::OK, "the file changed: the rest of it would be of another one");
    assert_eq!(fixture.http.post(&url).send().await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(fixture.http.get(format!("{url}x")).send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn listings_for_people_and_programs() {
    let fixture = Fixture::embedded(true, None).await;
    for at in ["images/<b>&.txt", "images/deep/er", "builds/mini/1.0.0+x/build.json"] {
        fixture.cache.put(&path(at), Bytes::from_static(b"12345"), PutMode::Create).await.unwrap();
    }
    let waiting = fixture.begin(&blob_of(b"not complete")).await;
    let get = async |at: &str| fixture.http.get(format!("{}{at}", fixture.base_url)).send().await.unwrap();

    let root = get("").await;
    assert!(root.url().path().ends_with("/cache/"), "not sent to the slash: {}", root.url());
    let front = get("/").await.text().await.unwrap();
    assert!(front.contains("builds/mini/1.0.0+x/build.json") && front.contains("images/"), "{front}");
    assert!(!front.contains("uploads"), "{front}");
    let page = get("/images").await;
    assert!(page.url().path().ends_with("/images/"), "not sent to the slash: {}", page.url());
    let page = page.text().await.unwrap();
    assert!(page.contains("./%3Cb%3E%26.txt") && !page.contains("<b>"), "{page}");

    let json: serde_json::Value =
        serde_json::from_str(&get("/images/?format=json").await.text().await.unwrap()).unwrap();
    assert_eq!(json["path"], "images");
    assert_eq!((&json["entries"][0]["name"], &json["entries"][0]["kind"]), (&"deep".into(), &"directory".into()));
    assert_eq!((&json["entries"][1]["size"], &json["entries"][1]["kind"]), (&5.into(), &"file".into()));
    let sent_on = get("/images?format=json&sort=size").await;
    assert_eq!(
        sent_on.url().query(),
        Some("format=json&sort=size"),
        "what was asked for is lost on the way to the slash"
    );
    assert_eq!(sent_on.headers()["content-type"], "application/json");
    let accepted = fixture.http.get(format!("{}/builds/", fixture.base_url)).header("accept", "application/json");
    assert_eq!(accepted.send().await.unwrap().headers()["content-type"], "application/json");
    for hidden in ["/uploads/".to_owned(), format!("/uploads/{}/data", waiting.upload_id), "/nothing/".to_owned()] {
        assert_eq!(get(&hidden).await.status(), StatusCode::NOT_FOUND, "{hidden}");
    }
}

/// With `curl`, as people do it.
async fn curl(fixture: &Fixture, args: &[&str]) -> std::process::Output {
    let ca = fixture.file("ca.pem", fixture.authority.as_ref().unwrap().ca_pem().as_bytes());
    let mut curl = tokio::process::Command::new("curl");
    curl.args(["--silent", "--show-error", "--fail", "--cacert"]).arg(ca).args(args).output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_resumes_checks_and_asks_only_for_what_is_new() {
    let fixture = Fixture::embedded(true, None).await;
    let bytes = noise(3 * MIB, 77);
    let blob = fixture.upload_bytes(&bytes).await;
    let at = path("images/disk.raw");
    fixture.cache.publish(&blob, &at).await.unwrap();
    let url = fixture.cache.url(&at);
    let got = fixture.dir.path().join("got");
    let out = got.display().to_string();

    // Broken off, and resumed.
    std::fs::write(&got, &bytes[..1_234_567]).unwrap();
    let done = curl(&fixture, &["-C", "-", "-o", &out, "-w", "%{http_code} %{size_download}", &url]).await;
    let rest = bytes.len() - 1_234_567;
    assert_eq!(String::from_utf8_lossy(&done.stdout), format!("206 {rest}"), "{done:?}");
    assert!(std::fs::read(&got).unwrap() == bytes);
    // Complete already: there is nothing behind its end, and nothing is added to the file.
    let done = curl(&fixture, &["-C", "-", "-o", &out, "-w", "%{http_code}", &url]).await;
    assert_eq!(String::from_utf8_lossy(&done.stdout), "416", "{done:?}");
    assert!(std::fs::read(&got).unwrap() == bytes);
    // The last bytes.
    let done = curl(&fixture, &["-r", "-5", &url]).await;
    assert_eq!(done.stdout, bytes[bytes.len() - 5..]);
    // By date and by tag, with the copy that is there.
    let etag = fixture.dir.path().join("etag").display().to_string();
    curl(&fixture, &["-R", "-o", &out, "--etag-save", &etag, &url]).await;
    for asked in [["-z", &out], ["--etag-compare", &etag]] {
        let done = curl(&fixture, &[asked[0], asked[1], "-w", "%{http_code} %{size_download}", &url]).await;
        assert_eq!(String::from_utf8_lossy(&done.stdout), "304 0", "{asked:?}");
    }
    for (header, code) in [
        ("If-Match: \"other\"", "412"),
        ("If-Unmodified-Since: Sun, 06 Nov 1994 08:49:37 GMT", "412"),
        ("If-Modified-Since: Sun, 06 Nov 1994 08:49:37 GMT", "200"),
    ] {
        let done = curl(&fixture, &["-o", "/dev/null", "-H", header, "-w", "%{http_code}", &url]).await;
        assert_eq!(String::from_utf8_lossy(&done.stdout), code, "{header}");
    }
    // What HEAD tells is what GET gives; of a directory, too.
    for (url, http) in
        [(url.clone(), "--http1.1"), (url, "--http2"), (format!("{}/images/", fixture.base_url), "--http1.1")]
    {
        let format = "%{http_code} %header{content-type} %header{content-length} %header{last-modified}";
        let head = curl(&fixture, &["-I", http, "-o", "/dev/null", "-w", format, &url]).await;
        let get = curl(&fixture, &["-o", "/dev/null", http, "-w", format, &url]).await;
        assert_eq!(String::from_utf8_lossy(&head.stdout), String::from_utf8_lossy(&get.stdout), "{url}");
        assert!(head.stdout.starts_with(b"200 "), "{url}");
    }
    // A range is for GET.
    let done =
        curl(&fixture, &["-I", "-r", "0-4", "-w", "%{http_code}", "-o", "/dev/null", &fixture.cache.url(&at)]).await;
    assert_eq!(String::from_utf8_lossy(&done.stdout), "200");
}

#[tokio::test]
async fn nothing_outside_of_the_cache_can_be_read_or_written() {
    let fixture = Fixture::embedded(true, None).await;
    std::fs::write(fixture.dir.path().join("private"), "private").unwrap();
    let root = fixture.dir.path().join("cache");
    std::fs::create_dir_all(root.join("images")).unwrap();
    std::os::unix::fs::symlink(fixture.dir.path(), root.join("images/out")).unwrap();
    std::os::unix::fs::symlink(fixture.dir.path().join("private"), root.join("images/file")).unwrap();
    std::os::unix::fs::symlink("../uploads", root.join("images/staging")).unwrap();
    std::fs::write(root.join("images/real"), "fine").unwrap();
    std::os::unix::fs::symlink("real", root.join("images/inside")).unwrap();

    // Straight to the routes: clients would tidy these paths up before they send them.
    let ask = async |method: &str, raw: &str| {
        let request = Request::builder().method(method).uri(raw).body(Body::from("x")).unwrap();
        fixture.router.clone().unwrap().oneshot(request).await.unwrap().status().as_u16()
    };
    for raw in [
        "/cache/../private",
        "/cache/images/../../private",
        "/cache/%2e%2e/private",
        "/cache/images/%2E%2E/%2e./private",
        "/cache/..%2fprivate",
        "/cache/%2fetc/passwd",
        "/cache//etc/passwd",
        "/cache/images/real%00.txt",
        "/cache/./images/real",
        "/cache/images/out/private",
        "/cache/images/file",
        "/cache/images/staging/",
        "/cache/images/out/",
    ] {
        let status = ask("GET", raw).await;
        assert!(status == 400 || status == 404, "GET {raw}: {status}");
        let status = ask("PUT", raw).await;
        assert!(status == 400 || status == 403, "PUT {raw}: {status}");
    }
    assert_eq!(ask("GET", "/cache/images/inside").await, 200);
    for raw in ["/cache/", "/cache/images/new", "/cache/uploads/x", "/cache/uploads/x?part=1&length=1"] {
        assert_eq!(ask("PUT", raw).await, 403, "{raw}");
    }
}

#[tokio::test]
async fn a_private_cache_is_read_by_people_of_the_farm() {
    let fixture = Fixture::embedded(false, None).await;
    let at = path("images/a.txt");
    fixture.cache.put(&at, Bytes::from_static(b"a"), PutMode::Create).await.unwrap();
    let urls = [fixture.cache.url(&at), format!("{}/", fixture.base_url), format!("{}/images/", fixture.base_url)];
    for url in &urls {
        let answer = fixture.http.get(url).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{url}");
        assert_eq!(answer.headers()["www-authenticate"], "Basic realm=\"railyard\"");
        assert_eq!(fixture.http_as(Role::Worker, "w1").get(url).send().await.unwrap().status(), 403, "{url}");
        for role in [Role::Viewer, Role::Submitter, Role::Operator] {
            assert_eq!(fixture.http_as(role, "anna").get(url).send().await.unwrap().status(), 200, "{role} {url}");
        }
    }
    let url = fixture.signed(&at).await;
    assert_eq!(fixture.http.get(&url).send().await.unwrap().text().await.unwrap(), "a");
    assert_eq!(fixture.http.head(&url).send().await.unwrap().status(), 403, "signed for GET only");
}

#[tokio::test]
async fn publishing_moves_no_bytes() {
    let fixture = Fixture::embedded(false, None).await;
    let blob = fixture.upload_bytes(&noise(1000, 1)).await;
    fixture.cache.publish(&blob, &path("images/disk.raw")).await.unwrap();
    let root = fixture.dir.path().join("cache");
    let inode = |at: &str| std::fs::metadata(root.join(at)).unwrap().ino();
    assert_eq!(inode("images/disk.raw"), inode(layout::blob(&blob).as_str()));
    assert_eq!(std::fs::read_dir(root.join("uploads")).unwrap().count(), 0, "staging is empty");
}

#[tokio::test]
async fn an_upload_outlives_a_restart() {
    let fixture = Fixture::embedded(false, None).await;
    let bytes = noise(17 * MIB, 2);
    let blob = blob_of(&bytes);
    let ticket = fixture.begin(&blob).await;
    let (first, second) = bytes.split_at(16 * MIB);
    let (_, one) = fixture.put(&fixture.part_url(&blob, &ticket, 1, first).await, first, first).await;
    let (_, two) = fixture.put(&fixture.part_url(&blob, &ticket, 2, second).await, second, second).await;
    let config = EmbeddedConfig {
        dir: fixture.dir.path().join("cache"),
        public_read: false,
        key_file: Some(fixture.dir.path().join("cache.key")),
    };
    let again = cache::open(&CacheConfig::Embedded(config), &fixture.base_url, Arc::new(TestClock::default())).await;
    let again = again.unwrap().cache;
    again.complete_upload(Uploader::trusted(LEASE), &blob, &ticket.upload_id, &[one, two]).await.unwrap();
    assert_eq!(again.find(&blob.digest).await.unwrap(), Some(blob));
}

#[tokio::test]
async fn abandoned_uploads_are_swept() {
    let fixture = Fixture::embedded(false, None).await;
    let staged = || std::fs::read_dir(fixture.dir.path().join("cache/uploads")).unwrap().count();
    let (old, blob) = (blob_of(b"left behind"), blob_of(b"next"));
    let ticket = fixture.begin(&old).await;
    fixture.clock.advance(Duration::from_secs(23 * 3600));
    fixture.begin(&blob).await;
    assert_eq!(staged(), 2);
    fixture.clock.advance(Duration::from_secs(2 * 3600));
    // By the clock of the test both are old by now.
    fixture.begin(&blob).await;
    assert_eq!(staged(), 1);
    let error = fixture.complete(&old, &ticket.upload_id, &[String::new()]).await.unwrap_err();
    assert!(matches!(error, CacheError::UnknownUpload { .. }), "{error}");
}

#[tokio::test]
async fn nobody_ends_the_upload_of_another_blob() {
    let fixture = Fixture::embedded(false, None).await;
    let (mine, other) = (blob_of(b"mine"), blob_of(b"other"));
    let ticket = fixture.begin(&mine).await;
    let (_, etag) = fixture.put(&fixture.part_url(&mine, &ticket, 1, b"mine").await, b"mine", b"mine").await;
    assert_eq!(fixture.cache.abort_upload(LEASE, &other, &ticket.upload_id).await.unwrap_err().kind(), "invalid");
    let etags = [etag];
    let error = fixture.complete(&other, &ticket.upload_id, &etags).await.unwrap_err();
    assert_eq!(error.kind(), "invalid");
    fixture.complete(&mine, &ticket.upload_id, &etags).await.unwrap();
}

#[tokio::test]
async fn a_body_without_a_signature_is_not_waited_for() {
    let fixture = Fixture::embedded(true, None).await;
    let blob = blob_of(b"promised");
    let ticket = fixture.begin(&blob).await;
    let url = path_of(&fixture.part_url(&blob, &ticket, 1, b"promised").await);
    let altered = url.replace("part=1", "part=2");
    for raw in ["/cache/uploads/x?part=1&length=1&crc32=0", "/cache/images/a", &altered] {
        let endless = Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        let request = Request::builder().method("PUT").uri(raw).body(endless).unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), fixture.router.clone().unwrap().oneshot(request));
        assert_eq!(answer.await.expect("it waits for the body").unwrap().status(), StatusCode::FORBIDDEN, "{raw}");
    }
}

#[tokio::test]
async fn slow_senders_hold_no_threads() {
    let fixture = Fixture::embedded(false, None).await;
    // More than there are blocking threads, and than there are writers.
    let mut hanging = Vec::new();
    for seed in 0..600_u64 {
        let bytes = seed.to_le_bytes();
        let blob = blob_of(&bytes);
        let ticket = fixture.begin(&blob).await;
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"1"))]);
        let body = Body::from_stream(body.chain(futures_util::stream::pending()));
        let url = fixture.part_url(&blob, &ticket, 1, &bytes).await;
        let (name, sum) = fixture.sum(&bytes);
        let request = Request::builder().method("PUT").uri(path_of(&url)).header(name, sum).body(body).unwrap();
        let mut answer = Box::pin(fixture.router.clone().unwrap().oneshot(request));
        assert!(futures_util::poll!(&mut answer).is_pending());
        hanging.push(answer);
    }
    let waiting = task::spawn("slow senders", futures_util::future::join_all(hanging));
    let quick = tokio::time::timeout(Duration::from_secs(20), fixture.upload_bytes(b"quick"));
    quick.await.expect("a quick sender waits for the slow ones");
    waiting.abort();
}

#[tokio::test]
async fn a_part_that_hangs_gives_way_to_its_next_try() {
    let fixture = Fixture::embedded(false, None).await;
    let bytes = noise(100, 3);
    let blob = blob_of(&bytes);
    let ticket = fixture.begin(&blob).await;
    let url = fixture.part_url(&blob, &ticket, 1, &bytes).await;

    // The first try sends half of the part and then nothing more.
    let half = Bytes::copy_from_slice(&noise(100, 4)[..50]);
    let (half_taken, taken) = tokio::sync::oneshot::channel();
    let body = futures_util::stream::once(async { Ok::<_, std::io::Error>(half) }).chain(futures_util::stream::once(
        async move {
            let _ = half_taken.send(());
            std::future::pending().await
        },
    ));
    let (name, sum) = fixture.sum(&bytes);
    let hanging = fixture.http.put(&url).header("content-length", 100).header(name, sum);
    let hanging = task::spawn("hanging try", hanging.body(reqwest::Body::wrap_stream(body)).send());
    taken.await.unwrap();

    let (status, etag) = fixture.put(&url, &bytes, &bytes).await;
    assert_eq!(status, 200, "{etag}");
    fixture.complete(&blob, &ticket.upload_id, &[etag]).await.unwrap();
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), Some(blob));
    hanging.abort();
}

/// Of a URL, what the routes see.
fn path_of(url: &str) -> String {
    url[url.find("/cache/").unwrap()..].to_owned()
}

/// A file system of a few megabytes.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m", "railyard-test"]).arg(at);
        assert!(mount.status().unwrap().success(), "this test mounts a tmpfs and needs root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazy: files may still be open while a failing test unwinds.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_is_told_as_such() {
    let mount = tempfile::tempdir().unwrap();
    let disk = SmallDisk::mount(&mount.path().join("disk"));
    let fixture = Fixture::embedded(false, Some(&disk.0.join("cache"))).await;

    let long = blob_of(&noise(9 * MIB, 5));
    let error = fixture.cache.begin_upload(Uploader::trusted(LEASE), &long).await.unwrap_err();
    assert!(matches!(error, CacheError::DiskFull { .. }), "{error}");

    let bytes = noise(5 * MIB, 6);
    let blob = blob_of(&bytes);
    let file = fixture.file("blob", &bytes);
    let ticket = fixture.begin(&blob).await;
    let filler = disk.0.join("filler");
    std::fs::write(&filler, vec![0; 5 * MIB]).unwrap();
    let (status, text) = fixture.put(&fixture.part_url(&blob, &ticket, 1, &bytes).await, &bytes, &bytes).await;
    assert_eq!(status, 507, "{text}");
    let impatient = Settings { progress_deadline: Duration::from_millis(100), ..Settings::default() };
    let impatient = Transfer::new(fixture.http.clone(), impatient);
    let (urls, log) = (fixture.urls(LEASE, &blob, &ticket.upload_id), PartLog::unkept());
    let error = impatient.push(&file, &blob, &ticket, &urls, &log, &silent).await.unwrap_err();
    assert!(matches!(error, MoveError::Transfer(TransferError::CacheFull { .. })), "{error}");
    let error = fixture.cache.put_file(&path("logs/x"), &file).await.unwrap_err();
    assert!(matches!(error, CacheError::DiskFull { .. }), "{error}");

    // Whoever comes back to it needs room only for what is missing, and hears of that when it comes.
    assert_eq!(fixture.begin(&blob).await.upload_id, ticket.upload_id);

    // With room again the same upload goes on.
    std::fs::remove_file(&filler).unwrap();
    let sent = fixture.push(&file, &blob, &ticket).await.unwrap();
    fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap();

    // And a pull onto a full disk is typed as well.
    let url = fixture.signed(&layout::blob(&blob)).await;
    let error = fixture.transfer.pull(&url, &blob, &disk.0.join("dest"), Form::Plain, &silent).await.unwrap_err();
    assert!(matches!(error, TransferError::DiskFull { .. }), "{error}");
    assert!(!disk.0.join("dest").exists());
}
