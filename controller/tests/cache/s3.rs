//! What only the cache in S3 has: a time between an object's appearance and its check.

use super::fixture::{Fixture, LEASE, blob_of};
use railyard_common::blob::Blob;
use railyard_controller::cache::{CacheError, Grant};
use std::sync::atomic::Ordering;

const PROMISED: &[u8] = b"what was promised";

/// Uploads `bytes` as the blob of [`PROMISED`]; the check after the upload fails, because the service does not let it read.
async fn unchecked(fixture: &Fixture, bytes: &[u8]) -> (Blob, String, Vec<String>) {
    let blob = blob_of(PROMISED);
    let sent = fixture.send(&blob, &fixture.file("sent", bytes)).await;
    let unreadable = &fixture.s3.as_ref().unwrap().blobs_unreadable;
    unreadable.store(true, Ordering::SeqCst);
    let error = fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap_err();
    assert!(matches!(error, CacheError::Store { .. } | CacheError::Io { .. }), "{error}");
    assert!(fixture.cache.find(&blob.digest).await.is_err(), "nobody knows yet whether it is there");
    unreadable.store(false, Ordering::SeqCst);
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
        let again = fixture.s3.as_ref().unwrap().open().await;
        assert_eq!(matches!(again.begin_upload(LEASE, &blob).await.unwrap(), Grant::Present(_)), good);
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
