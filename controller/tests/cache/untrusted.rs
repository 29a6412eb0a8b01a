//! What an untrusted build sends counts only when all of it was read, however long it is.

use super::fixture::{Backend, Fixture, LEASE, OTHER_LEASE, blob_of, noise};
use super::suite::pull_equals;
use crate::store::Trouble;
use bytesize::ByteSize;
use http::Method;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_controller::cache::{Begun, CacheError, Grant, Uploader};
use railyard_transfer::{Finished, PartLog, Ticket};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::Notify;

const MIB: usize = 1024 * 1024;
const STRANGER: Uploader = Uploader { lease: OTHER_LEASE, untrusted: true };

/// A cache that reads nothing back of what it need not.
async fn believing(fixture: Fixture) -> Fixture {
    match fixture.backend {
        Backend::Embedded => fixture,
        Backend::S3 => Fixture::s3_with(|config| config.read_back = ByteSize(0)).await,
    }
}

impl Fixture {
    /// Sends a file for an untrusted build, as whatever blob it is said to be.
    async fn send_untrusted(&self, blob: &Blob, file: &Path) -> Finished {
        let ticket = match self.cache.begin_upload(STRANGER, blob).await.unwrap() {
            Grant::Send(Begun { upload_id, part_bytes, checksum }) => Ticket { upload_id, part_bytes, checksum },
            Grant::Present(blob) => panic!("{} is there already", blob.digest),
        };
        self.push_as(OTHER_LEASE, file, blob, &ticket, &PartLog::unkept()).await.unwrap()
    }

    async fn complete_untrusted(&self, blob: &Blob, sent: &Finished) -> Result<(), CacheError> {
        self.cache.complete_upload(STRANGER, blob, &sent.upload_id, &sent.etags).await
    }

    /// From now on what untrusted builds have sent is read for ever. Tells when that begins.
    fn hold_reads(&self) -> Arc<Notify> {
        let read = Arc::new(Notify::new());
        let tell = read.clone();
        self.store().rules.set(move |request| {
            let is_read = request.method == Method::GET && request.uri.path().contains("uploads/untrusted/");
            is_read.then(|| tell.notify_one());
            is_read.then_some(Trouble::Hold)
        });
        read
    }

    /// What untrusted builds have sent and nobody has read yet.
    fn unread(&self) -> usize {
        let leases = std::fs::read_dir(self.dir.path().join("cache/farm/uploads/untrusted")).into_iter().flatten();
        leases.flatten().map(|lease| std::fs::read_dir(lease.path()).unwrap().count()).sum()
    }
}

/// The blob of `plain`, said to be stored as the zstd of `sent`.
fn packed(plain: &[u8], sent: &[u8]) -> (Blob, Vec<u8>) {
    let stored = zstd::bulk::compress(sent, 3).unwrap();
    let blob = Blob { encoding: Encoding::Zstd, stored_bytes: stored.len() as u64, ..blob_of(plain) };
    (blob, stored)
}

pub async fn wrong_bytes_of_an_untrusted_build_never_have_a_blob_s_name(fixture: Fixture) {
    let fixture = believing(fixture).await;
    let (right, mut wrong) = (noise(20 * MIB, 31), noise(20 * MIB, 31));
    wrong[19 * MIB] ^= 1;
    for (blob, stored) in [(blob_of(&right), wrong.clone()), packed(&right, &wrong)] {
        let sent = fixture.send_untrusted(&blob, &fixture.file("wrong", &stored)).await;
        // Somebody who builds the right ones has begun as well.
        let theirs = fixture.send(&blob_of(&right), &fixture.file("right", &right)).await;
        let error = fixture.complete_untrusted(&blob, &sent).await.unwrap_err();
        assert!(matches!(error, CacheError::Corrupt { .. }), "{error}");
        assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
        assert_eq!(fixture.unread(), 0);
        let again = fixture.complete_untrusted(&blob, &sent).await.unwrap_err();
        assert!(matches!(again, CacheError::UnknownUpload { .. }), "{again}");
        fixture.complete(&blob_of(&right), &theirs.upload_id, &theirs.etags).await.unwrap();
        pull_equals(&fixture, &blob_of(&right), &right).await;
        assert_eq!(fixture.cache.uploading().await.unwrap(), []);
        fixture.cache.delete(&railyard_common::layout::blob(&blob_of(&right))).await.unwrap();
    }
}

pub async fn right_bytes_of_an_untrusted_build_are_a_blob_for_everybody(fixture: Fixture) {
    let fixture = believing(fixture).await;
    let plain = noise(20 * MIB, 32);
    let text = b"the same line again and again\n".repeat(100_000);
    for (bytes, (blob, stored)) in [
        (&plain, (blob_of(&plain), plain.clone())),
        (&text, packed(&text, &text)),
        (&Vec::new(), (blob_of(b""), vec![])),
    ] {
        let sent = fixture.send_untrusted(&blob, &fixture.file("sent", &stored)).await;
        assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
        fixture.complete_untrusted(&blob, &sent).await.unwrap();
        // As after an answer that was lost.
        fixture.complete_untrusted(&blob, &sent).await.unwrap();
        pull_equals(&fixture, &blob, bytes).await;
        let known = fixture.cache.begin_upload(Uploader::trusted(LEASE), &blob).await.unwrap();
        assert_eq!(known, Grant::Present(blob));
        assert_eq!((fixture.unread(), fixture.cache.uploading().await.unwrap()), (0, vec![]));
    }
}

/// An upload of an untrusted build that is being read, and the cache at that moment.
async fn being_read(bytes: &[u8], sent: &[u8]) -> (Fixture, Blob, Finished) {
    let fixture = Fixture::s3_with(|config| config.read_back = ByteSize(0)).await;
    let blob = blob_of(bytes);
    let sent = fixture.send_untrusted(&blob, &fixture.file("sent", sent)).await;
    let read = fixture.hold_reads();
    tokio::select! {
        biased;
        completed = fixture.complete_untrusted(&blob, &sent) => panic!("{completed:?}"),
        () = read.notified() => {}
    }
    (fixture, blob, sent)
}

#[tokio::test]
async fn nobody_waits_while_it_is_read() {
    let fixture = Fixture::s3_with(|config| config.read_back = ByteSize(0)).await;
    let (right, wrong) = (noise(MIB, 33), noise(MIB, 34));
    let blob = blob_of(&right);
    let sent = fixture.send_untrusted(&blob, &fixture.file("wrong", &wrong)).await;
    let read = fixture.hold_reads();
    let reading = fixture.complete_untrusted(&blob, &sent);
    let others = async {
        read.notified().await;
        assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
        fixture.upload_bytes(&right).await;
        pull_equals(&fixture, &blob, &right).await;
    };
    tokio::select! {
        biased;
        () = others => {}
        completed = reading => panic!("{completed:?}"),
    }
}

#[tokio::test]
async fn what_was_not_read_before_a_crash_is_read_after_it() {
    let (right, wrong) = (noise(MIB, 35), noise(MIB, 36));
    for (sent, is_right) in [(&right, true), (&wrong, false)] {
        let (fixture, blob, sent) = being_read(&right, sent).await;
        let cache = fixture.reopen().await;
        assert_eq!((fixture.unread(), cache.find(&blob.digest).await.unwrap()), (1, None));
        fixture.store().rules.heal();
        let completed = cache.complete_upload(STRANGER, &blob, &sent.upload_id, &sent.etags).await;
        assert_eq!(completed.is_ok(), is_right, "{completed:?}");
        assert_eq!(cache.find(&blob.digest).await.unwrap(), is_right.then_some(blob));
        assert_eq!((fixture.unread(), cache.uploading().await.unwrap()), (0, vec![]));
    }
}

#[tokio::test]
async fn what_was_not_read_when_its_lease_ends_goes() {
    let bytes = noise(MIB, 37);
    let (fixture, blob, sent) = being_read(&bytes, &bytes).await;
    fixture.store().rules.heal();
    let cache = fixture.reopen().await;
    cache.end_uploads(OTHER_LEASE).await.unwrap();
    assert_eq!((fixture.unread(), cache.uploading().await.unwrap()), (0, vec![]));
    let late = cache.complete_upload(STRANGER, &blob, &sent.upload_id, &sent.etags).await.unwrap_err();
    assert!(matches!(late, CacheError::UnknownUpload { .. }), "{late}");
    assert_eq!(cache.find(&blob.digest).await.unwrap(), None);
}

/// What untrusted builds send would do harm, were it taken as what others send is.
#[tokio::test]
async fn above_the_limit_a_trusted_worker_is_believed() {
    let fixture = Fixture::s3_with(|config| config.read_back = ByteSize(0)).await;
    let blob = blob_of(b"what was promised");
    let sent = fixture.send(&blob, &fixture.file("sent", b"what was givennnn")).await;
    fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap();
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), Some(blob));
    let (bytes, _) = fixture.cache.get(&railyard_common::layout::blob(&blob)).await.unwrap().unwrap();
    assert_ne!(Digest::of(&bytes), blob.digest);
}
