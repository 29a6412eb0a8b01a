//! What only the cache in S3 has: a time between an object's appearance and its check, and copies of many requests.

use super::fixture::{Fixture, LEASE, blob_of, noise, path};
use crate::store::Trouble;
use bytesize::ByteSize;
use http::Method;
use http::request::Parts;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_controller::cache::{CacheError, Grant, Uploader};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::Notify;

const PROMISED: &[u8] = b"what was promised";

/// Uploads `bytes` as the blob of [`PROMISED`]; the check after the upload fails, because the service does not let it read.
async fn unchecked(fixture: &Fixture, bytes: &[u8]) -> (Blob, String, Vec<String>) {
    let blob = blob_of(PROMISED);
    let sent = fixture.send(&blob, &fixture.file("sent", bytes)).await;
    fixture.store().rules.set(|request| {
        let is_read = request.method == Method::GET && request.uri.path().contains("/blobs/");
        is_read.then_some(Trouble::Refuse(403))
    });
    let error = fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap_err();
    assert!(matches!(error, CacheError::Store { .. } | CacheError::Io { .. }), "{error}");
    assert!(fixture.cache.find(&blob.digest).await.is_err(), "nobody knows yet whether it is there");
    fixture.store().rules.heal();
    (blob, sent.upload_id, sent.etags)
}

fn marks(fixture: &Fixture) -> usize {
    std::fs::read_dir(fixture.dir.path().join("cache/farm/uploads/unverified")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn an_upload_whose_check_failed_is_checked_when_it_is_completed_again() {
    let fixture = Fixture::s3().await;
    let (blob, upload_id, etags) = unchecked(&fixture, PROMISED).await;
    fixture.complete(&blob, &upload_id, &etags).await.unwrap();
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), Some(blob));
    assert_eq!(marks(&fixture), 0);
}

#[tokio::test]
async fn wrong_bytes_whose_check_failed_are_never_found() {
    let fixture = Fixture::s3().await;
    let (blob, upload_id, etags) = unchecked(&fixture, b"what was givennnn").await;
    assert!(fixture.complete(&blob, &upload_id, &etags).await.is_err());
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
    assert_eq!(marks(&fixture), 0);
    fixture.upload_bytes(PROMISED).await;
}

#[tokio::test]
async fn an_upload_whose_check_failed_is_checked_after_a_restart() {
    for (bytes, good) in [(PROMISED, true), (b"what was givennnn", false)] {
        let fixture = Fixture::s3().await;
        let (blob, ..) = unchecked(&fixture, bytes).await;
        let again = fixture.reopen().await;
        assert_eq!(
            matches!(again.begin_upload(Uploader::trusted(LEASE), &blob).await.unwrap(), Grant::Present(_)),
            good
        );
        assert_eq!(again.find(&blob.digest).await.unwrap(), good.then_some(blob));
        assert_eq!(marks(&fixture), 0);
    }
}

/// A service that was killed between the two has forgotten the upload and has no object. Some say "denied" then.
#[tokio::test]
async fn an_upload_that_the_service_lost_is_unknown_and_does_not_stay_in_doubt() {
    let fixture = Fixture::s3().await;
    let blob = blob_of(PROMISED);
    let sent = fixture.send(&blob, &fixture.file("sent", PROMISED)).await;
    let known = std::fs::read_dir(fixture.dir.path().join("cache")).unwrap().flatten();
    let of_upload = known.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains(".upload"));
    of_upload.for_each(|path| std::fs::remove_file(path).unwrap());
    let error = fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap_err();
    assert!(matches!(error, CacheError::UnknownUpload { .. }), "{error}");
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
    assert_eq!(marks(&fixture), 0);
    fixture.upload_bytes(PROMISED).await;
}

const MIB: usize = 1024 * 1024;

/// A copy within the service: what is asked of it, in the order in which it came.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Begin,
    /// The range.
    Part(String),
    Complete,
    Abort,
}

impl Step {
    fn of(request: &Parts) -> Option<Self> {
        let query = request.uri.query().unwrap_or_default();
        let range = request.headers.get("x-amz-copy-source-range");
        match (&request.method, range) {
            (&Method::POST, _) if query.contains("uploadId=") => Some(Self::Complete),
            (&Method::POST, _) if query.contains("uploads") => Some(Self::Begin),
            (&Method::PUT, Some(range)) => Some(Self::Part(range.to_str().unwrap().to_owned())),
            (&Method::DELETE, _) if query.contains("uploadId=") => Some(Self::Abort),
            _ => None,
        }
    }
}

/// A blob of three ranges, published through a service in which this goes wrong: it is told the bucket's directory, every
/// step, and how often that one was taken before.
async fn copied(
    mut trouble: impl FnMut(&Path, &Step, usize) -> Option<Trouble> + Send + 'static,
) -> (Fixture, Blob, Result<(), CacheError>, Vec<Step>) {
    let fixture = Fixture::s3_with(|config| config.copy_part = ByteSize::mib(5)).await;
    let blob = fixture.upload_bytes(&noise(12 * MIB, 20)).await;
    let steps = Arc::new(Mutex::new(Vec::new()));
    let (noted, bucket) = (steps.clone(), fixture.store().bucket.clone());
    fixture.store().rules.set(move |request| {
        let step = Step::of(request)?;
        let mut noted = noted.lock().unwrap();
        let before = noted.iter().filter(|known| **known == step).count();
        noted.push(step.clone());
        trouble(&bucket, &step, before)
    });
    let published = fixture.cache.publish(&blob, &path(COPY)).await;
    fixture.store().rules.heal();
    let steps = steps.lock().unwrap().clone();
    (fixture, blob, published, steps)
}

const COPY: &str = "images/1.0/disk.raw";

/// All of it is there; and nothing else that costs money.
async fn is_whole(fixture: &Fixture, blob: &Blob) {
    let (bytes, _) = fixture.cache.get(&path(COPY)).await.unwrap().unwrap();
    assert_eq!(Digest::of(&bytes), blob.digest);
    assert_eq!(fixture.staged_bytes(), 0);
}

#[tokio::test]
async fn what_is_longer_than_one_copy_may_be_is_copied_in_ranges() {
    let (fixture, blob, published, steps) = copied(|_, _, _| None).await;
    published.unwrap();
    is_whole(&fixture, &blob).await;
    let ranges = ["bytes=0-5242879", "bytes=5242880-10485759", "bytes=10485760-12582911"];
    assert_eq!((steps.first(), steps.last()), (Some(&Step::Begin), Some(&Step::Complete)));
    assert_eq!(steps.len(), 5);
    assert!(ranges.iter().all(|range| steps.contains(&Step::Part((*range).to_owned()))), "{steps:?}");
    // What was published stands: the same again is found, and asks for no copy.
    fixture.store().rules.set(|request| Step::of(request).map(|_| Trouble::Refuse(403)));
    fixture.cache.publish(&blob, &path(COPY)).await.unwrap();
}

/// A range that was refused, and two requests whose answers were lost.
#[tokio::test]
async fn a_service_that_is_busy_for_a_moment_is_asked_again() {
    let (fixture, blob, published, steps) = copied(|_, step, before| match (step, before) {
        (Step::Part(range), 0) if range.starts_with("bytes=0-") => Some(Trouble::Refuse(503)),
        (Step::Part(range), 0) if range.starts_with("bytes=5242880-") => Some(Trouble::Deny(500)),
        (Step::Complete, 0) => Some(Trouble::Deny(503)),
        _ => None,
    })
    .await;
    published.unwrap();
    is_whole(&fixture, &blob).await;
    let count = |wanted: fn(&Step) -> bool| steps.iter().filter(|step| wanted(step)).count();
    assert_eq!(count(|step| *step == Step::Begin), 1, "nothing begins anew: {steps:?}");
    assert_eq!(count(|step| matches!(step, Step::Part(_))), 3 + 2);
    assert_eq!(count(|step| *step == Step::Complete), 2);
}

#[tokio::test]
async fn a_copy_that_fails_leaves_nothing() {
    let (fixture, blob, published, steps) = copied(|_, step, _| match step {
        Step::Part(range) if range.starts_with("bytes=5242880-") => Some(Trouble::Refuse(403)),
        _ => None,
    })
    .await;
    let error = published.unwrap_err();
    assert!(matches!(error, CacheError::Store { .. }), "{error}");
    assert_eq!(steps.last(), Some(&Step::Abort));
    assert!(fixture.cache.get(&path(COPY)).await.unwrap().is_none());
    assert_eq!(fixture.staged_bytes(), 0);
    fixture.cache.publish(&blob, &path(COPY)).await.unwrap();
    is_whole(&fixture, &blob).await;
}

/// S3 may say 409 to both of two writes at the very same time. Nothing is there then, and nothing is wrong with the build.
#[tokio::test]
async fn two_writes_at_once_of_which_none_is_done_are_no_conflict() {
    let (fixture, blob, published, _) =
        copied(|_, step, _| (*step == Step::Complete).then_some(Trouble::Refuse(409))).await;
    let error = published.unwrap_err();
    assert!(matches!(error, CacheError::Store { .. }), "{error}");
    fixture.cache.publish(&blob, &path(COPY)).await.unwrap();
    is_whole(&fixture, &blob).await;
}

/// Nothing was there when it was looked; then somebody else was faster.
#[tokio::test]
async fn what_somebody_else_wrote_meanwhile_stays() {
    let (fixture, blob, published, _) = copied(|bucket, step, _| {
        if *step == Step::Complete {
            std::fs::create_dir_all(bucket.join(COPY).parent().unwrap()).unwrap();
            std::fs::write(bucket.join(COPY), "somebody else's").unwrap();
        }
        None
    })
    .await;
    let error = published.unwrap_err();
    assert!(matches!(error, CacheError::Conflict { .. }), "{error}");
    assert_eq!(fixture.cache.get(&path(COPY)).await.unwrap().unwrap().0, "somebody else's");
    assert_eq!(fixture.staged_bytes(), 0);
    assert!(matches!(fixture.cache.publish(&blob, &path(COPY)).await, Err(CacheError::Conflict { .. })));
}

/// The controller is gone in the middle of a copy: nothing can be seen of it, and the next one places it.
#[tokio::test]
async fn a_copy_that_was_cut_off_is_done_again() {
    for last in [Step::Begin, Step::Part("bytes=5242880-10485759".to_owned()), Step::Complete] {
        let fixture = Fixture::s3_with(|config| config.copy_part = ByteSize::mib(5)).await;
        let blob = fixture.upload_bytes(&noise(12 * MIB, 21)).await;
        let held = Arc::new(Notify::new());
        let (tell, at, to) = (held.clone(), last.clone(), path(COPY));
        fixture.store().rules.set(move |request| {
            let is_last = Step::of(request).as_ref() == Some(&at);
            is_last.then(|| tell.notify_one());
            is_last.then_some(Trouble::Hold)
        });
        tokio::select! {
            biased;
            published = fixture.cache.publish(&blob, &to) => panic!("{last:?}: {published:?}"),
            () = held.notified() => {}
        }
        fixture.store().rules.heal();
        let next = fixture.reopen().await;
        assert!(next.get_stream(&path(COPY)).await.unwrap().is_none(), "{last:?}");
        next.publish(&blob, &path(COPY)).await.unwrap();
        let (bytes, _) = next.get(&path(COPY)).await.unwrap().unwrap();
        assert_eq!(Digest::of(&bytes), blob.digest, "{last:?}");
    }
}
