//! Signed URLs: for one thing, for a lease, for an hour at most; and the store's keys are told to nobody.

use crate::common::people::Person;
use crate::common::transfers::{artifact, blob_of};
use crate::common::worker::{cancelled, hello, lease, report, succeeded};
use crate::common::{Backend, Controller, Worker, on_both, refused, until};
use crate::store::{SECRET, Trouble};
use http::Method;
use railyard_common::blob::{Blob, PartSum, PartToSign};
use railyard_common::layout;
use railyard_common::redact::Masks;
use railyard_proto::v1;
use railyard_proto::v1::access_service_client::AccessServiceClient;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::convert::ToProto as _;
use railyard_service::tls::Role;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tonic::Code;

/// Two steps, of which the second reads what the first leaves.
const TWO: &str = "
name: two
platforms: [linux/amd64]
steps:
  - name: first
    image: debian
    script: make
    commit: true
    outputs:
      - path: left
  - name: second
    image: { step: first }
    script: make
    inputs:
      - step: first
    outputs:
      - path: out
";

on_both!(
    urls_die_with_a_lease_that_was_lost,
    urls_die_with_a_job_that_was_cancelled,
    urls_die_with_a_worker_that_was_revoked,
    urls_die_with_a_job_that_is_done,
    a_url_is_not_good_for_anything_else,
    no_url_is_good_for_more_than_an_hour,
);

const BYTES: &[u8] = b"what the second step makes";

/// In the middle of the second job, with a URL to send and one to fetch.
struct AtWork {
    controller: Controller,
    person: Person,
    build: String,
    worker: Worker,
    lease: v1::LeaseId,
    blob: Blob,
    upload_id: String,
    put: String,
    get: String,
}

async fn at_work(backend: Backend) -> AtWork {
    let controller = Controller::start_on(backend).await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let build = person.submit(TWO, "1").await;
    let first = lease(&worker.order().await);
    let (image, mut uploads) = worker.image(first, b"{}", &[b"a layer"]).await;
    let sent = worker.upload(first, b"what the first step left").await;
    uploads.extend(sent.upload);
    let (image, artifacts) = (Some(image), vec![artifact("left", &sent.blob)]);
    worker.try_report(v1::ReportRequest { image, uploads, artifacts, ..report(first, succeeded()) }).await.unwrap();

    let second = worker.order().await;
    let lease = lease(&second);
    let input = second.inputs[0].artifact.as_ref().unwrap().blob.clone().unwrap();
    let get = worker.signed_download(lease, &input).await;
    let blob = blob_of(BYTES);
    let upload_id = worker.prepare_upload(lease, &[blob]).await.unwrap().remove(0).upload_id;
    let put = worker.signed_part(lease, &blob, &upload_id, to_sign(backend, BYTES)).await;
    AtWork { controller, person, build, worker, lease, blob, upload_id, put, get }
}

/// The only part of these bytes.
fn to_sign(backend: Backend, bytes: &[u8]) -> PartToSign {
    use md5::Digest as _;
    let sum = match backend {
        Backend::Embedded => PartSum::Crc32(crc32fast::hash(bytes)),
        Backend::S3 => PartSum::ContentMd5(md5::Md5::digest(bytes).into()),
    };
    PartToSign { number: 1, sum }
}

impl Worker {
    async fn signed_download(&self, lease: v1::LeaseId, blob: &v1::Blob) -> String {
        let request = v1::PrepareDownloadRequest { lease: Some(lease), blobs: vec![blob.clone()] };
        self.rpc.clone().prepare_download(request).await.unwrap().into_inner().urls.remove(0)
    }

    async fn signed_part(&self, lease: v1::LeaseId, blob: &Blob, upload_id: &str, part: PartToSign) -> String {
        let (upload_id, blob) = (upload_id.to_owned(), Some(blob.to_proto()));
        let request = v1::SignPartsRequest { lease: Some(lease), blob, upload_id, parts: vec![part.to_proto()] };
        self.rpc.clone().sign_parts(request).await.unwrap().into_inner().urls.remove(0)
    }
}

impl AtWork {
    /// Asks for something by a URL, as anybody would who has got hold of it; with the checksums that fit.
    async fn ask(&self, method: Method, url: &str, body: &[u8]) -> (u16, String) {
        let [(crc32, crc32_value), (md5, md5_value)] =
            [Backend::Embedded, Backend::S3].map(|backend| to_sign(backend, body).sum.header());
        let request = self.worker.http.request(method, url).header(crc32, crc32_value).header(md5, md5_value);
        let answer = request.body(body.to_vec()).send().await.unwrap();
        let (status, etag) = (answer.status().as_u16(), answer.headers().get("etag").cloned());
        let text = answer.text().await.unwrap();
        (status, etag.map_or(text, |etag| etag.to_str().unwrap().to_owned()))
    }

    /// Whether the cache has the second step's file.
    fn is_complete(&self) -> bool {
        self.controller.objects().join(layout::blob(&self.blob).as_str()).exists()
    }

    /// Files of parts that were sent.
    fn staged(&self) -> usize {
        let objects = self.controller.objects();
        let dir = match self.controller.store() {
            Some(_) => objects.parent().unwrap().to_owned(),
            None => objects.join("uploads"),
        };
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let parts = names.filter(|name| self.controller.store().is_none() || name.to_string_lossy().contains("upload"));
        parts.count()
    }

    /// The store is not able to end an upload, for now.
    fn keep_uploads(&self) {
        let Some(store) = self.controller.store() else { return };
        store.rules.set(|request| {
            let ends =
                request.method == Method::DELETE && request.uri.query().unwrap_or_default().contains("uploadId=");
            ends.then_some(Trouble::Refuse(503))
        });
    }

    /// The lease is over. What the embedded cache signed is dead from this moment on. The store asks nobody: it takes parts until
    /// it hears of the end, and nothing can come of them.
    async fn is_over(&self) {
        let put = self.ask(Method::PUT, &self.put, BYTES).await;
        let get = self.ask(Method::GET, &self.get, b"").await;
        match self.controller.store() {
            None => {
                // The upload may be gone already.
                assert!(put.0 == 404 || (put.0 == 403 && put.1.contains("lease that is over")), "{put:?}");
                assert!(get.0 == 403 && get.1.contains("lease that is over"), "{get:?}");
            }
            Some(store) => {
                assert_eq!((put.0, get.0), (200, 200));
                let (blob, etags) = (Some(self.blob.to_proto()), vec![put.1]);
                let upload = v1::FinishedUpload { blob, upload_id: self.upload_id.clone(), etags };
                let request = v1::ReportRequest { uploads: vec![upload], ..report(self.lease, succeeded()) };
                // Refused, or the repetition of a report that was accepted.
                drop(self.worker.try_report(request).await);
                assert!(!self.is_complete() && self.staged() > 0);
                store.rules.heal();
            }
        }
        until("the end of its uploads", async || (self.staged() == 0).then_some(())).await;
        assert!(matches!(self.ask(Method::PUT, &self.put, BYTES).await.0, 403 | 404));
        assert!(!self.is_complete());
    }
}

async fn urls_die_with_a_lease_that_was_lost(backend: Backend) {
    let mut work = at_work(backend).await;
    work.keep_uploads();
    // The machine was restarted: the job begins anew, here or elsewhere.
    let again = v1::Hello { boot_id: "boot-2".to_owned(), ..hello("anvil") };
    let rpc = work.worker.rpc.clone();
    drop(std::mem::replace(&mut work.worker, work.controller.worker("idle").await));
    until("the disconnect", async || (!work.person.worker("anvil").await.connected).then_some(())).await;
    let mut worker = work.controller.worker_saying(again).await;
    refused(rpc.clone().report(report(work.lease, succeeded())).await, Code::FailedPrecondition, "stale-lease");
    work.is_over().await;
    // The next attempt is not hindered.
    let mut idle = std::mem::replace(&mut work.worker, work.controller.worker("late").await);
    let (second, by) = tokio::select! {
        order = worker.order() => (lease(&order), &worker),
        order = idle.order() => (lease(&order), &idle),
    };
    assert_eq!((second.job, second.attempt), (work.lease.job, work.lease.attempt + 1));
    by.succeed_with(second, &[("out", BYTES)]).await;
    assert_eq!(work.person.ended(&work.build).await.state(), v1::BuildState::Succeeded);
    assert!(work.is_complete());
}

async fn urls_die_with_a_job_that_was_cancelled(backend: Backend) {
    let mut work = at_work(backend).await;
    work.keep_uploads();
    work.person.cancel(&work.build, "not needed").await.unwrap();
    work.worker.cancel().await;
    work.worker.try_report(report(work.lease, cancelled("stopped"))).await.unwrap();
    work.is_over().await;
    assert_eq!(work.person.ended(&work.build).await.state(), v1::BuildState::Cancelled);
}

async fn urls_die_with_a_worker_that_was_revoked(backend: Backend) {
    let work = at_work(backend).await;
    work.keep_uploads();
    let mut access = AccessServiceClient::new(work.controller.channel(Some((Role::Operator, "olga"))));
    let request = v1::RevokeRequest { identity: "railyard://worker/anvil".to_owned(), why: "stolen".to_owned() };
    assert_eq!(access.revoke(request).await.unwrap().into_inner().leases, 1);
    work.is_over().await;
}

async fn urls_die_with_a_job_that_is_done(backend: Backend) {
    let work = at_work(backend).await;
    work.keep_uploads();
    work.worker.succeed_with(work.lease, &[("out", b"something else than was begun")]).await;
    work.is_over().await;
    assert_eq!(work.person.ended(&work.build).await.state(), v1::BuildState::Succeeded);
}

async fn a_url_is_not_good_for_anything_else(backend: Backend) {
    let work = at_work(backend).await;
    // Another way to ask.
    for method in [Method::GET, Method::HEAD, Method::POST, Method::DELETE] {
        let (status, text) = work.ask(method.clone(), &work.put, b"").await;
        assert!((400..500).contains(&status), "{method} {status} {text}");
    }
    for method in [Method::HEAD, Method::PUT, Method::POST, Method::DELETE] {
        let (status, text) = work.ask(method.clone(), &work.get, b"").await;
        assert!((400..500).contains(&status), "{method} {status} {text}");
    }
    // More, or less.
    for body in [&BYTES[..BYTES.len() - 1], &[BYTES, b"more"].concat()] {
        let (status, text) = work.ask(Method::PUT, &work.put, body).await;
        assert!((400..500).contains(&status), "{status} {text}");
    }
    // As much, and something else.
    let changed: Vec<u8> = BYTES.iter().rev().copied().collect();
    let (status, text) = work.ask(Method::PUT, &work.put, &changed).await;
    assert!(matches!(status, 400 | 403), "{status} {text}");
    // Another object, or upload, or lease; a longer time.
    let other = blob_of(b"another");
    let other_id = work.worker.prepare_upload(work.lease, &[other]).await.unwrap().remove(0).upload_id;
    let digest = |url: &str| url.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let mut altered = vec![
        (Method::PUT, work.put.replace(&work.upload_id, &other_id)),
        (Method::GET, work.get.replace(&digest(&work.get), &blob_of(b"a layer").digest.hex())),
    ];
    match backend {
        Backend::Embedded => {
            let lease = format!("lease=j{}.{}", work.lease.job, work.lease.attempt);
            altered.push((Method::GET, work.get.replace(&lease, "lease=j4711.1")));
            altered.push((Method::GET, work.get.replace(&format!("{lease}&"), "")));
            altered.push((Method::PUT, work.put.replace(&format!("length={}", BYTES.len()), "length=1")));
            for (method, url) in [(Method::PUT, &work.put), (Method::GET, &work.get)] {
                altered.push((method, url.replace("expires=", "expires=1")));
            }
        }
        Backend::S3 => {
            altered.push((Method::PUT, work.put.replace(&digest(&work.put), &other.digest.hex())));
            for (method, url) in [(Method::PUT, &work.put), (Method::GET, &work.get)] {
                altered.push((method, url.replace("X-Amz-Expires=3600", "X-Amz-Expires=36000")));
            }
        }
    }
    for (method, url) in altered {
        assert!(url != work.put && url != work.get, "{url}");
        let body = if method == Method::PUT { BYTES } else { b"" };
        let (status, text) = work.ask(method.clone(), &url, body).await;
        assert_eq!(status, 403, "{method} {url}: {text}");
    }
    // And for what it was made for it still is.
    assert_eq!(work.ask(Method::GET, &work.get, b"").await.0, 200);
    let (status, etag) = work.ask(Method::PUT, &work.put, BYTES).await;
    assert_eq!(status, 200, "{etag}");
    let (blob, upload_id) = (work.blob.to_proto(), work.upload_id.clone());
    let mut request = report(work.lease, succeeded());
    request.artifacts = vec![artifact("out", &blob)];
    request.uploads = vec![v1::FinishedUpload { blob: Some(blob), upload_id, etags: vec![etag] }];
    work.worker.try_report(request).await.unwrap();
    assert!(work.is_complete());
}

#[tokio::test]
async fn every_pattern_must_match_an_artifact() {
    let work = at_work(Backend::Embedded).await;
    work.worker.succeed_with(work.lease, &[("out", BYTES)]).await;
    work.person.ended(&work.build).await;
    let signed = work.person.sign(&work.build, &["o*", "first@linux/amd64/left", "out"]).await.unwrap();
    assert_eq!(signed.len(), 2);
    let refused = work.person.sign(&work.build, &["nope", "out", "no/*"]).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(
        refused.message().starts_with("no artifact matches nope, no/*; `railyard artifacts "),
        "{}",
        refused.message()
    );
}

async fn no_url_is_good_for_more_than_an_hour(backend: Backend) {
    let work = at_work(backend).await;
    work.worker.succeed_with(work.lease, &[("out", BYTES)]).await;
    work.person.ended(&work.build).await;
    let mut urls: Vec<String> =
        work.person.sign(&work.build, &[]).await.unwrap().into_iter().map(|signed| signed.url).collect();
    assert_eq!(urls.len(), 2);
    urls.extend([work.put.clone(), work.get.clone()]);
    for url in urls {
        let value = |name: &str| {
            let value = url.split(['?', '&']).find_map(|pair| pair.strip_prefix(name));
            value.unwrap_or_else(|| panic!("{url}")).parse::<u64>().unwrap()
        };
        let millis = match backend {
            Backend::Embedded => value("expires=").saturating_sub(SystemClock.now().0),
            Backend::S3 => value("X-Amz-Expires=") * 1_000,
        };
        assert!(millis > 0 && millis <= 3_600_000, "{url}");
    }
}

/// Whatever the controller and its libraries log.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// All files below a directory.
fn files(dir: &Path, into: &mut Vec<(String, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, into),
            false => into.push((path.display().to_string(), std::fs::read(&path).unwrap())),
        }
    }
}

/// A whole job with everything that there is between a controller and a worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_keys_of_the_store_are_told_to_nobody() {
    let logged = Logged::default();
    let writer = logged.clone();
    let told = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    told.with_writer(move || writer.clone()).init();
    let mut work = at_work(Backend::S3).await;
    work.worker.beat(&[work.lease], v1::Phase::Run).await;
    work.worker.log(work.lease, 0, b"a line\n").await.unwrap();
    let refusal = work.worker.upload_as(work.lease, b"right", b"wrong").await;
    let request = v1::ReportRequest { uploads: Vec::from_iter(refusal.upload), ..report(work.lease, succeeded()) };
    refused(work.worker.try_report(request).await, Code::DataLoss, "bad-upload");
    work.worker.succeed_with(work.lease, &[("out", BYTES)]).await;
    work.person.ended(&work.build).await;
    assert_eq!(work.worker.build_over().await, work.build);

    let said = work.worker.rpc_said().bytes();
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    // It was listened at the right place: URLs, an order, a welcome and a refusal went by.
    for known in ["X-Amz-Signature=", "X-Amz-Credential=AKTEST", "make", "corrupt", "grpc-status"] {
        assert!(has(&said, known), "{known}");
    }
    let logged = logged.bytes();
    assert!(has(&logged, "TRACE") && has(&logged, "railyard_controller"), "nothing was logged");
    let mut all = vec![("what was said to the worker".to_owned(), said), ("the log".to_owned(), logged)];
    files(work.controller.data_dir(), &mut all);
    files(&work.controller.objects(), &mut all);
    assert!(all.len() > 10, "{}", all.len());
    let masks = Masks::new([SECRET.as_bytes()]);
    for (name, bytes) in all {
        assert!(!has(&bytes, SECRET) && masks.mask(&bytes) == bytes, "the store's key is in {name}");
    }
}
