//! What both backends must do with uploads: damaged, cut off, gone on with, given up.

use super::fixture::{Backend, Fixture, LEASE, OTHER_LEASE, blob_of, noise};
use super::suite::pull_equals;
use railyard_common::layout;
use railyard_controller::cache::{CacheError, Uploader};
use railyard_transfer::{Form, PartLog, compress_zstd, silent};
use std::sync::atomic::{AtomicU64, Ordering};

const MIB: usize = 1024 * 1024;

pub async fn damaged_part(fixture: Fixture) {
    let good = noise(1000, 1);
    let mut bad = good.clone();
    bad[500] ^= 1;
    let blob = blob_of(&good);
    let ticket = fixture.begin(&blob).await;
    let (status, text) = fixture.put(&fixture.part_url(&blob, &ticket, 1, &good).await, &bad, &good).await;
    let etags = match fixture.backend {
        Backend::Embedded => {
            assert!(status == 400 && text.contains("BadDigest"), "{status} {text}");
            vec![String::new()]
        }
        // s3s-fs does not look at a part's Content-MD5, as S3 itself does; the digest at the end catches it.
        Backend::S3 => {
            assert_eq!(status, 200, "{text}");
            vec![text]
        }
    };
    let error = fixture.complete(&blob, &ticket.upload_id, &etags).await.unwrap_err();
    match fixture.backend {
        Backend::Embedded => assert!(matches!(error, CacheError::Incomplete { .. }), "{error}"),
        Backend::S3 => assert!(matches!(error, CacheError::Corrupt { .. }), "{error}"),
    }
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
}

pub async fn wrong_digest(fixture: Fixture) {
    let blob = blob_of(b"what was promised");
    let file = fixture.file("other", b"what was givennnn");
    let sent = fixture.send(&blob, &file).await;
    let error = fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap_err();
    assert!(matches!(&error, CacheError::Corrupt { why, .. } if why.contains("digest")), "{error}");
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
    assert!(fixture.complete(&blob, &sent.upload_id, &sent.etags).await.is_err(), "the upload is gone");
    let url = fixture.signed(&layout::blob(&blob)).await;
    let error =
        fixture.transfer.pull(&url, &blob, &fixture.dir.path().join("x"), Form::Plain, &silent).await.unwrap_err();
    assert_eq!(error.kind(), "gone", "{error}");
    // The next worker is not hindered.
    fixture.upload_bytes(b"what was promised").await;
}

pub async fn oversized_part(fixture: Fixture) {
    let good = noise(1000, 2);
    let blob = blob_of(&good);
    let ticket = fixture.begin(&blob).await;
    let long = noise(1001, 2);
    let (status, text) = fixture.put(&fixture.part_url(&blob, &ticket, 1, &long).await, &long, &long).await;
    let less = &good[..999];
    let (short, short_text) = fixture.put(&fixture.part_url(&blob, &ticket, 1, less).await, less, less).await;
    match fixture.backend {
        Backend::Embedded => {
            assert_eq!(status, 413, "{text}");
            assert!(short == 400 && short_text.contains("IncompleteBody"), "{short} {short_text}");
        }
        // The length is a part of what was signed.
        Backend::S3 => {
            assert!(status == 403 && text.contains("SignatureDoesNotMatch"), "{status} {text}");
            assert!(short == 403 && short_text.contains("SignatureDoesNotMatch"), "{short} {short_text}");
            let error = fixture.complete(&blob, &ticket.upload_id, &["\"0\"".to_owned()]).await.unwrap_err();
            assert!(!matches!(error, CacheError::Corrupt { .. }), "there is nothing to complete: {error}");
        }
    }
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
}

pub async fn missing_parts(fixture: Fixture) {
    let bytes = noise(17 * MIB, 3);
    let blob = blob_of(&bytes);
    let ticket = fixture.begin(&blob).await;
    let (first, second) = bytes.split_at(16 * MIB);
    let (_, one) = fixture.put(&fixture.part_url(&blob, &ticket, 1, first).await, first, first).await;
    let error = fixture.complete(&blob, &ticket.upload_id, std::slice::from_ref(&one)).await.unwrap_err();
    assert!(matches!(error, CacheError::Incomplete { .. }), "{error}");
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
    let (status, two) = fixture.put(&fixture.part_url(&blob, &ticket, 2, second).await, second, second).await;
    assert_eq!(status, 200, "{two}");
    let etags = [one, two];
    fixture.complete(&blob, &ticket.upload_id, &etags).await.unwrap();
    fixture.complete(&blob, &ticket.upload_id, &etags).await.unwrap();
    pull_equals(&fixture, &blob, &bytes).await;
}

pub async fn aborted(fixture: Fixture) {
    let bytes = noise(100, 4);
    let blob = blob_of(&bytes);
    let ticket = fixture.begin(&blob).await;
    let url = fixture.part_url(&blob, &ticket, 1, &bytes).await;
    fixture.cache.abort_upload(LEASE, &blob, &ticket.upload_id).await.unwrap();
    fixture.cache.abort_upload(LEASE, &blob, &ticket.upload_id).await.unwrap();
    let (status, text) = fixture.put(&url, &bytes, &bytes).await;
    assert!(status == 404 || status == 403, "{status} {text}");
    fixture.upload_bytes(&bytes).await;
}

pub async fn concurrent_uploads(fixture: Fixture) {
    let bytes = noise(20 * MIB, 5);
    let file = fixture.file("both", &bytes);
    let blob = blob_of(&bytes);
    let (one, two) = tokio::join!(fixture.send(&blob, &file), fixture.send_as(OTHER_LEASE, &blob, &file));
    assert_ne!(one.upload_id, two.upload_id);
    let (first, second) = tokio::join!(
        fixture.complete(&blob, &one.upload_id, &one.etags),
        fixture.cache.complete_upload(Uploader::trusted(OTHER_LEASE), &blob, &two.upload_id, &two.etags),
    );
    first.unwrap();
    second.unwrap();
    pull_equals(&fixture, &blob, &bytes).await;
    assert_eq!(fixture.cache.uploading().await.unwrap(), [], "nothing is left of either");
}

pub async fn a_corrupt_upload_does_not_replace_a_good_blob(fixture: Fixture) {
    let blob = blob_of(b"good bytes");
    let good = fixture.file("good", b"good bytes");
    let evil = fixture.file("evil", b"evil bytes");
    let (late, early) = (fixture.send_as(OTHER_LEASE, &blob, &evil).await, fixture.send(&blob, &good).await);
    fixture.complete(&blob, &early.upload_id, &early.etags).await.unwrap();
    fixture.cache.complete_upload(Uploader::trusted(OTHER_LEASE), &blob, &late.upload_id, &late.etags).await.unwrap();
    pull_equals(&fixture, &blob, b"good bytes").await;
}

/// A worker whose process was killed, or that asks again because it got no answer, goes on with what it has begun.
pub async fn an_upload_goes_on(fixture: Fixture) {
    let bytes = noise(40 * MIB, 10);
    let blob = blob_of(&bytes);
    let file = fixture.file("resumed", &bytes);
    let notes = fixture.dir.path().join("parts");
    let ticket = fixture.begin(&blob).await;
    let (first, _) = bytes.split_at(16 * MIB);
    let (status, etag) = fixture.put(&fixture.part_url(&blob, &ticket, 1, first).await, first, first).await;
    assert_eq!(status, 200, "{etag}");
    std::fs::write(&notes, format!("{}\n1 {etag}\n", ticket.upload_id)).unwrap();

    let again = fixture.begin(&blob).await;
    assert_eq!(again, ticket);
    let log = PartLog::open(&notes, &again.upload_id).unwrap();
    let sent = AtomicU64::new(u64::MAX);
    let urls = fixture.urls(LEASE, &blob, &again.upload_id);
    let progress = |bytes: u64| {
        sent.fetch_min(bytes, Ordering::SeqCst);
    };
    let finished = fixture.transfer.push(&file, &blob, &again, &urls, &log, &progress).await.unwrap();
    assert!(sent.load(Ordering::SeqCst) >= 16 * MIB as u64, "the first part was sent again");
    assert_eq!(finished.etags[0], etag);
    fixture.complete(&blob, &finished.upload_id, &finished.etags).await.unwrap();
    pull_equals(&fixture, &blob, &bytes).await;
    assert_eq!(fixture.cache.uploading().await.unwrap(), []);
}

/// Whoever knows the name of another lease's upload can do nothing with it.
pub async fn an_upload_is_one_lease_s(fixture: Fixture) {
    let bytes = noise(1000, 12);
    let blob = blob_of(&bytes);
    let sent = fixture.send(&blob, &fixture.file("mine", &bytes)).await;
    let other = fixture.begin_as(OTHER_LEASE, &blob).await;
    for upload_id in [&sent.upload_id, "no-such-upload"] {
        let error = fixture
            .cache
            .complete_upload(Uploader::trusted(OTHER_LEASE), &blob, upload_id, &sent.etags)
            .await
            .unwrap_err();
        assert!(matches!(error, CacheError::UnknownUpload { .. }), "{error}");
    }
    assert_ne!(other.upload_id, sent.upload_id);
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
    fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap();
}

/// The same bytes in another form are another upload, and the first is no more.
pub async fn another_form_begins_anew(fixture: Fixture) {
    let plain = b"one or the other ".repeat(10_000);
    let packed = fixture.dir.path().join("packed");
    let blob = compress_zstd(&fixture.file("plain", &plain), &packed, 3).await.unwrap();
    let first = fixture.begin(&blob_of(&plain)).await;
    let second = fixture.begin(&blob).await;
    assert_ne!(first.upload_id, second.upload_id);
    let part = fixture.to_sign(1, &plain);
    let error = fixture.cache.sign_parts(LEASE, &blob_of(&plain), &first.upload_id, &[part]).await.unwrap_err();
    assert!(matches!(error, CacheError::UnknownUpload { .. }), "{error}");
    fixture.upload(&blob, &packed).await;
    pull_equals(&fixture, &blob, &plain).await;
}

/// Uploads end with their lease: what was sent is gone, and nothing more is taken.
pub async fn uploads_end_with_their_lease(fixture: Fixture) {
    let bytes = noise(17 * MIB, 11);
    let blob = blob_of(&bytes);
    let ticket = fixture.begin(&blob).await;
    let other = fixture.begin_as(OTHER_LEASE, &blob).await;
    let (first, second) = bytes.split_at(16 * MIB);
    let late = fixture.part_url(&blob, &ticket, 2, second).await;
    let (status, _) = fixture.put(&fixture.part_url(&blob, &ticket, 1, first).await, first, first).await;
    assert_eq!(status, 200);
    assert_eq!(fixture.cache.uploading().await.unwrap(), [LEASE, OTHER_LEASE]);
    // Also after a restart of the controller.
    let cache = fixture.reopen().await;
    assert_eq!(cache.uploading().await.unwrap(), [LEASE, OTHER_LEASE]);
    cache.end_uploads(LEASE).await.unwrap();
    cache.end_uploads(LEASE).await.unwrap();
    assert_eq!(cache.uploading().await.unwrap(), [OTHER_LEASE]);
    let (status, text) = fixture.put(&late, second, second).await;
    assert!(status == 404 || status == 403, "{status} {text}");
    assert!(cache.sign_parts(LEASE, &blob, &ticket.upload_id, &[fixture.to_sign(2, second)]).await.is_err());
    let error = cache.sign_parts(LEASE, &blob, &other.upload_id, &[fixture.to_sign(1, first)]).await.unwrap_err();
    assert!(matches!(error, CacheError::UnknownUpload { .. }), "another lease's: {error}");
    cache.end_uploads(OTHER_LEASE).await.unwrap();
    assert_eq!(fixture.staged_bytes(), 0, "parts are left");
}
