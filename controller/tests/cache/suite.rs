//! What both backends must do. Where a service does less than it should, the case says which other guard holds.

use super::fixture::{Backend, Fixture, LEASE, Urls, blob_of, noise, path};
pub use super::sending::*;
pub use super::untrusted::*;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use railyard_common::blob::{Blob, Encoding, PartSum, PartToSign};
use railyard_common::digest::Digest;
use railyard_common::layout;
use railyard_controller::cache::{CacheError, Grant, PutMode, Uploader};
use railyard_transfer::{
    Form, Hashed, MoveError, PartLog, PartUrls, Scratch, Stored, TransferError, compress_zstd, hash_file, silent,
};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const MIB: usize = 1024 * 1024;

pub async fn round_trip(fixture: Fixture) {
    for (name, length, parts) in [("empty", 0, 0), ("one", 1, 1), ("odd", 5 * MIB + 1, 1), ("long", 40 * MIB, 3)] {
        let bytes = noise(length, length as u64);
        let file = fixture.file(name, &bytes);
        let blob = blob_of(&bytes);
        let hashed = hash_file(&file).await.unwrap();
        assert_eq!((hashed.digest, hashed.bytes), (blob.digest, blob.size_bytes));
        assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
        let sent = fixture.send(&blob, &file).await;
        assert_eq!(sent.etags.len(), parts, "{name}");
        assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None, "{name}: visible before it is complete");
        fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap();
        assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), Some(blob), "{name}");
        pull_equals(&fixture, &blob, &bytes).await;
    }
}

pub async fn pull_equals(fixture: &Fixture, blob: &Blob, bytes: &[u8]) {
    let dest = fixture.dir.path().join("pulled");
    let url = fixture.signed(&layout::blob(blob)).await;
    fixture.transfer.pull(&url, blob, &dest, Form::Plain, &silent).await.unwrap();
    assert!(std::fs::read(&dest).unwrap() == bytes, "{} came back changed", blob.digest);
    assert!(!Scratch::beside(&dest).part.exists());
}

pub async fn compressed(fixture: Fixture) {
    let plain = b"the same line again and again\n".repeat(300_000);
    let src = fixture.file("plain", &plain);
    let dst = fixture.dir.path().join("packed");
    let blob = compress_zstd(&src, &dst, 3).await.unwrap();
    assert_eq!((blob.digest, blob.size_bytes, blob.encoding), (Digest::of(&plain), plain.len() as u64, Encoding::Zstd));
    assert!(blob.stored_bytes < blob.size_bytes / 10);
    fixture.upload(&blob, &dst).await;
    assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), Some(blob), "the plain size comes out of the frame");
    pull_equals(&fixture, &blob, &plain).await;

    // Who wants to send it as it is need not; a published path has the plain bytes all the same.
    assert_eq!(
        fixture.cache.begin_upload(Uploader::trusted(LEASE), &blob_of(&plain)).await.unwrap(),
        Grant::Present(blob)
    );
    fixture.cache.publish(&blob_of(&plain), &path("images/plain.txt")).await.unwrap();
    fixture.cache.publish(&blob, &path("images/plain.txt")).await.unwrap();
    let (bytes, _) = fixture.cache.get(&path("images/plain.txt")).await.unwrap().unwrap();
    assert!(bytes == plain);

    let mut wrong = blob_of(b"something else");
    wrong.encoding = Encoding::Zstd;
    wrong.stored_bytes = blob.stored_bytes;
    let sent = fixture.send(&wrong, &dst).await;
    let error = fixture.complete(&wrong, &sent.upload_id, &sent.etags).await.unwrap_err();
    assert!(matches!(error, CacheError::Corrupt { .. }), "{error}");
    assert_eq!(fixture.cache.find(&wrong.digest).await.unwrap(), None);

    // Whoever unpacks it himself gets it as it is stored, and it was looked into all the same.
    let (dest, url) = (fixture.dir.path().join("stored"), fixture.signed(&layout::blob(&blob)).await);
    fixture.transfer.pull(&url, &blob, &dest, Form::Stored, &silent).await.unwrap();
    assert!(std::fs::read(&dest).unwrap() == std::fs::read(&dst).unwrap());
    let other = Blob { digest: Digest::of(b"other"), ..blob };
    let error = fixture.transfer.pull(&url, &other, &dest, Form::Stored, &silent).await.unwrap_err();
    assert!(matches!(error, TransferError::WrongDigest { .. }), "{error}");
}

pub async fn dedupe(fixture: Fixture) {
    let blob = fixture.upload_bytes(b"once").await;
    assert_eq!(fixture.cache.begin_upload(Uploader::trusted(LEASE), &blob).await.unwrap(), Grant::Present(blob));
}

pub async fn ranges(fixture: Fixture) {
    let bytes = noise(1000, 6);
    let blob = fixture.upload_bytes(&bytes).await;
    let url = fixture.signed(&layout::blob(&blob)).await;
    for (range, want) in
        [("bytes=0-0", 0..1), ("bytes=100-199", 100..200), ("bytes=990-", 990..1000), ("bytes=-5", 995..1000)]
    {
        let answer = fixture.http.get(&url).header("range", range).send().await.unwrap();
        assert_eq!(answer.status(), 206, "{range}");
        let told = answer.headers()["content-range"].to_str().unwrap().to_owned();
        assert_eq!(told, format!("bytes {}-{}/1000", want.start, want.end - 1));
        assert_eq!(answer.bytes().await.unwrap(), bytes[want]);
    }
    let answer = fixture.http.get(&url).header("range", "bytes=1000-").send().await.unwrap();
    assert_eq!(answer.status(), 416);
}

pub async fn interrupted_pull(fixture: Fixture) {
    let bytes = noise(40 * MIB, 7);
    let blob = fixture.upload_bytes(&bytes).await;
    let url = fixture.signed(&layout::blob(&blob)).await;
    let at = |name: &str| fixture.dir.path().join(name);
    let dest = at("dest");
    let Scratch { part, chunks, .. } = Scratch::beside(&dest);

    // The second of three chunks is there.
    let begun = |spoil: usize| {
        let mut begun = vec![0; bytes.len()];
        begun[16 * MIB..32 * MIB].copy_from_slice(&bytes[16 * MIB..32 * MIB]);
        begun[spoil] ^= 1;
        std::fs::write(&part, begun).unwrap();
        std::fs::write(&chunks, format!("{} {}\n1\n", bytes.len(), blob.digest)).unwrap();
    };
    begun(0);
    let least = AtomicU64::new(u64::MAX);
    let progress = |done: u64| {
        least.fetch_min(done, Ordering::SeqCst);
    };
    fixture.transfer.pull(&url, &blob, &dest, Form::Plain, &progress).await.unwrap();
    assert!(least.load(Ordering::SeqCst) >= 16 * MIB as u64, "it began at the beginning again");
    assert!(std::fs::read(&dest).unwrap() == bytes);
    assert!(!part.exists() && !chunks.exists());

    // What is there is not what it should be: all of it is fetched.
    std::fs::remove_file(&dest).unwrap();
    begun(20 * MIB);
    fixture.transfer.pull(&url, &blob, &dest, Form::Plain, &silent).await.unwrap();
    assert!(std::fs::read(&dest).unwrap() == bytes);
    std::fs::remove_file(&dest).unwrap();
    std::fs::write(&part, b"of something else").unwrap();
    fixture.transfer.pull(&url, &blob, &dest, Form::Plain, &silent).await.unwrap();
    assert!(std::fs::read(&dest).unwrap() == bytes);
}

pub async fn signatures(fixture: Fixture) {
    let bytes = noise(100, 8);
    let blob = blob_of(&bytes);
    let ticket = fixture.begin(&blob).await;
    let put_url = &fixture.part_url(&blob, &ticket, 1, &bytes).await;
    let get_path = path("images/secret.txt");
    fixture.cache.put(&get_path, Bytes::from_static(b"secret"), PutMode::Create).await.unwrap();
    fixture.cache.put(&path("images/other.txt"), Bytes::from_static(b"other"), PutMode::Create).await.unwrap();
    let get_url = fixture.signed(&get_path).await;
    assert!(!put_url.contains("secret-of-the-store") && !get_url.contains("secret-of-the-store"));

    let unsigned = put_url.split('?').next().unwrap();
    let flipped = flip_last(put_url);
    let altered: Vec<String> = match fixture.backend {
        Backend::Embedded => vec![
            put_url.replace("part=1", "part=2"),
            put_url.replace("length=100", "length=1000"),
            put_url.replace("expires=", "expires=9"),
            put_url.replace("crc32=", "crc32=1"),
            put_url.split('&').filter(|pair| !pair.starts_with("crc32=")).collect::<Vec<_>>().join("&"),
        ],
        Backend::S3 => vec![
            put_url.replace("partNumber=1", "partNumber=2"),
            put_url.replace("X-Amz-Expires=3600", "X-Amz-Expires=7200"),
        ],
    };
    for url in altered.iter().map(String::as_str).chain([unsigned, flipped.as_str()]) {
        assert_ne!(url, put_url);
        let (status, text) = fixture.put(url, &bytes, &bytes).await;
        assert_eq!(status, 403, "{url}: {text}");
    }
    let (status, _) = fixture.put(&get_url, &bytes, &bytes).await;
    assert_eq!(status, 403, "a URL to read is none to write");
    // Other bytes, as many of them, honestly announced, announced as those of the URL, and not at all.
    let others = noise(100, 9);
    let (status, text) = fixture.put(put_url, &others, &others).await;
    assert!(matches!(status, 400 | 403), "{status} {text}");
    let (status, text) = fixture.put(put_url, &others, &bytes).await;
    // A service may leave it to the sender to see by the ETag.
    assert!(status == 400 || fixture.backend == Backend::S3, "{status} {text}");
    let unannounced = fixture.http.put(put_url).body(bytes.clone()).send().await.unwrap().status();
    assert!(matches!(unannounced.as_u16(), 400 | 403), "{unannounced}");

    for url in [get_url.replace("secret.txt", "other.txt"), flip_last(&get_url), fixture.cache.url(&get_path)] {
        // Without any signature the embedded cache asks who it is.
        let status = fixture.http.get(&url).send().await.unwrap().status();
        assert!(matches!(status.as_u16(), 401 | 403), "{url}: {status}");
    }
    assert!(!fixture.http.delete(&get_url).send().await.unwrap().status().is_success());
    assert_eq!(fixture.http.get(&get_url).send().await.unwrap().text().await.unwrap(), "secret");
    let (status, text) = fixture.put(put_url, &bytes, &bytes).await;
    assert_eq!(status, 200, "{text}");
}

/// The URL with the last character of its signature changed.
fn flip_last(url: &str) -> String {
    let name = if url.contains("X-Amz-Signature=") { "X-Amz-Signature=" } else { "signature=" };
    let (before, rest) = url.split_once(name).unwrap();
    let (first, rest) = rest.split_at(1);
    format!("{before}{name}{}{rest}", if first == "0" { "1" } else { "0" })
}

pub async fn expired(fixture: Fixture) {
    let blob = fixture.upload_bytes(b"soon gone").await;
    let dest = fixture.dir.path().join("late");
    let url = fixture.cache.sign_get(&layout::blob(&blob), Duration::from_secs(1)).await.unwrap();
    fixture.clock.advance(Duration::from_secs(2));
    // The embedded cache goes by the clock that was just put forward; the S3 service has one of its own.
    let error = loop {
        match fixture.transfer.pull(&url, &blob, &dest, Form::Plain, &silent).await {
            Ok(()) => assert_eq!(fixture.backend, Backend::S3),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, TransferError::Expired { .. }), "{error}");

    // A push asks for another URL; one that is dead already when it is given is no way to send anything.
    let bytes = noise(MIB, 9);
    let blob = blob_of(&bytes);
    let file = fixture.file("late", &bytes);
    let ticket = fixture.begin(&blob).await;
    let dead = fixture.part_url(&blob, &ticket, 1, &bytes).await;
    let dead = match fixture.backend {
        Backend::Embedded => dead,
        // Its signature does not fit any more, but the date is looked at first.
        Backend::S3 => {
            let (_, date) = dead.split_once("X-Amz-Date=").unwrap();
            dead.replace(&date[..8], "20200101")
        }
    };
    fixture.clock.advance(Duration::from_secs(3601));
    let urls = Renewed { dead: Mutex::new([dead.clone()].into()), then: fixture.urls(LEASE, &blob, &ticket.upload_id) };
    fixture.transfer.push(&file, &blob, &ticket, &urls, &PartLog::unkept(), &silent).await.unwrap();
    let urls = Renewed {
        dead: Mutex::new(std::iter::repeat_n(dead, 9).collect()),
        then: fixture.urls(LEASE, &blob, &ticket.upload_id),
    };
    let error = fixture.transfer.push(&file, &blob, &ticket, &urls, &PartLog::unkept(), &silent).await.unwrap_err();
    assert!(matches!(error, MoveError::Transfer(TransferError::Expired { .. })), "{error}");
}

/// Gives URLs that have expired, and good ones when there are no more of them.
struct Renewed<'a> {
    dead: Mutex<VecDeque<String>>,
    then: Urls<'a>,
}

impl PartUrls for Renewed<'_> {
    type Error = CacheError;

    async fn sign(&self, parts: Vec<PartToSign>) -> Result<Vec<String>, CacheError> {
        let dead = self.dead.lock().unwrap().pop_front();
        match dead {
            Some(dead) => Ok(vec![dead; parts.len()]),
            None => self.then.sign(parts).await,
        }
    }
}

pub async fn conditional_put(fixture: Fixture) {
    let index = path("builds/mini/builds.json");
    let put = |text: &'static str, mode| fixture.cache.put(&index, Bytes::from_static(text.as_bytes()), mode);
    let conflict = |error: CacheError| assert!(matches!(error, CacheError::Conflict { .. }), "{error}");

    assert!(fixture.cache.get(&index).await.unwrap().is_none());
    conflict(put("0", PutMode::Match(Some("\"0123\"".to_owned()))).await.unwrap_err());
    let one = put("1", PutMode::Match(None)).await.unwrap();
    conflict(put("2", PutMode::Match(None)).await.unwrap_err());
    conflict(put("2", PutMode::Create).await.unwrap_err());
    assert_eq!(fixture.cache.get(&index).await.unwrap().unwrap(), (Bytes::from_static(b"1"), one.clone()));
    let two = put("2", PutMode::Match(Some(one.clone()))).await.unwrap();
    assert_ne!(one, two);
    conflict(put("3", PutMode::Match(Some(one))).await.unwrap_err());
    put("3", PutMode::Overwrite).await.unwrap();
    assert_eq!(fixture.cache.get(&index).await.unwrap().unwrap().0, "3");

    // Of many who saw the same state one wins.
    let (_, seen) = fixture.cache.get(&index).await.unwrap().unwrap();
    let racers = (0..8).map(|n| {
        let mode = PutMode::Match(Some(seen.clone()));
        fixture.cache.put(&index, Bytes::from(format!("racer {n}")), mode)
    });
    let won = futures_util::future::join_all(racers).await.into_iter().filter(Result::is_ok).count();
    assert_eq!(won, 1);
}

pub async fn publish(fixture: Fixture) {
    let first = fixture.upload_bytes(&noise(3000, 10)).await;
    let other = fixture.upload_bytes(&noise(3000, 11)).await;
    let empty = fixture.upload_bytes(b"").await;
    let at = path("images/amd64/4799.0.0+nightly/disk image.json");
    fixture.cache.publish(&first, &at).await.unwrap();
    fixture.cache.publish(&first, &at).await.unwrap();
    let error = fixture.cache.publish(&other, &at).await.unwrap_err();
    assert!(matches!(&error, CacheError::Conflict { path } if *path == at), "{error}");
    fixture.cache.publish(&empty, &path("images/amd64/empty")).await.unwrap();
    fixture.cache.publish(&empty, &path("images/amd64/empty")).await.unwrap();
    for (reserved, kind) in [("blobs/x", "bad-path"), ("uploads/x", "bad-path"), ("builds/x/y", "bad-path")] {
        assert_eq!(fixture.cache.publish(&first, &path(reserved)).await.unwrap_err().kind(), kind);
    }
    // What was placed can be taken back; the place is free then, and the blob is still there.
    let taken_back = path("images/amd64/taken back");
    fixture.cache.publish(&first, &taken_back).await.unwrap();
    fixture.cache.delete(&taken_back).await.unwrap();
    assert!(fixture.cache.get_stream(&taken_back).await.unwrap().is_none());
    fixture.cache.publish(&other, &taken_back).await.unwrap();
    fixture.cache.publish(&first, &taken_back).await.unwrap_err();
    assert_eq!(fixture.cache.get(&taken_back).await.unwrap().unwrap().0, noise(3000, 11));
    fixture.cache.delete(&taken_back).await.unwrap();
    assert_eq!(fixture.cache.find(&first.digest).await.unwrap(), Some(first));
    let missing = blob_of(b"never sent");
    assert_eq!(fixture.cache.publish(&missing, &path("images/none")).await.unwrap_err().kind(), "no-blob");

    let url = fixture.signed(&at).await;
    let answer = fixture.http.get(&url).send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    assert_eq!(Digest::of(&answer.bytes().await.unwrap()), first.digest);
    // Deleting the blob leaves what was published.
    fixture.cache.delete(&layout::blob(&first)).await.unwrap();
    assert_eq!(fixture.cache.find(&first.digest).await.unwrap(), None);
    assert_eq!(Digest::of(&fixture.cache.get(&at).await.unwrap().unwrap().0), first.digest);
}

pub async fn list_and_delete(fixture: Fixture) {
    let mut paths =
        ["builds/mini/1.0.0+a/build.json", "builds/mini/1.0.0-a/build.json", "images/a/b", "images/a.txt", "logs/x"];
    for at in paths {
        fixture.cache.put(&path(at), Bytes::from_static(b"12345"), PutMode::Create).await.unwrap();
    }
    let hidden = fixture.begin(&blob_of(b"not complete")).await;
    paths.sort_unstable();
    let list = async |prefix: &str, after: Option<&str>, limit| {
        let entries = fixture.cache.list(prefix, after, limit).await.unwrap();
        entries.into_iter().map(|entry| entry.path.as_str().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(list("", None, 100).await, paths);
    assert_eq!(list("builds", None, 100).await, paths[..2]);
    assert_eq!(list("images/", None, 100).await, ["images/a.txt", "images/a/b"]);
    assert_eq!(list("images/a", None, 100).await, ["images/a/b"]);
    assert_eq!(list("", Some(paths[1]), 2).await, paths[2..4]);
    assert!(list("nowhere", None, 10).await.is_empty());
    let entry = fixture.cache.list("logs", None, 1).await.unwrap().remove(0);
    assert!(entry.size == 5 && entry.modified.0 > 1_700_000_000_000);

    fixture.cache.delete(&path("logs/x")).await.unwrap();
    fixture.cache.delete(&path("logs/x")).await.unwrap();
    assert!(list("logs", None, 10).await.is_empty());
    fixture.cache.abort_upload(LEASE, &blob_of(b"not complete"), &hidden.upload_id).await.unwrap();
}

pub async fn files_and_streams(fixture: Fixture) {
    let at = path("logs/mini/1.0.0/job/1.log.zst");
    assert!(fixture.cache.get_stream(&at).await.unwrap().is_none());
    for length in [0, 40 * MIB, 10] {
        let bytes = noise(length, 12);
        let file = fixture.file("log", &bytes);
        fixture.cache.put_file(&at, &file).await.unwrap();
        let chunks: Vec<Bytes> = fixture.cache.get_stream(&at).await.unwrap().unwrap().try_collect().await.unwrap();
        assert!(chunks.concat() == bytes, "{length}");
    }
    let huge = fixture.file("huge", b"");
    std::fs::File::options().write(true).open(&huge).unwrap().set_len(65 * MIB as u64).unwrap();
    fixture.cache.put_file(&at, &huge).await.unwrap();
    assert_eq!(fixture.cache.get(&at).await.unwrap_err().kind(), "too-large");
    assert!(fixture.cache.put_file(&at, &fixture.dir.path().join("missing")).await.is_err());
}

/// No store may get them under the digest of what was hashed, however it looks at what it gets.
pub async fn bytes_that_changed_after_they_were_hashed(fixture: Fixture) {
    let file = fixture.file("output", &noise(3 * MIB + 7, 31));
    let Hashed { digest, bytes, crc32s } = hash_file(&file).await.unwrap();
    let blob = Blob::plain(digest, bytes);
    fixture.file("output", &noise(3 * MIB + 7, 32));
    let ticket = fixture.begin(&blob).await;
    let (urls, log) = (fixture.urls(LEASE, &blob, &ticket.upload_id), PartLog::unkept());
    let stored = Stored { file: &file, crc32s: Some(&crc32s) };
    let sent = fixture.transfer.push(stored, &blob, &ticket, &urls, &log, &silent).await;
    match fixture.backend {
        // It hears the sums of what was hashed, and hashes what it gets.
        Backend::Embedded => {
            let sent = sent.unwrap();
            let error = fixture.complete(&blob, &sent.upload_id, &sent.etags).await.unwrap_err();
            assert!(matches!(error, CacheError::Corrupt { .. }), "{error}");
        }
        Backend::S3 => {
            let error = sent.unwrap_err();
            assert!(matches!(error, MoveError::Transfer(TransferError::Rewritten { .. })), "{error}");
        }
    }
    assert_eq!(fixture.cache.find(&digest).await.unwrap(), None);
}

pub async fn senseless_requests(fixture: Fixture) {
    let mut blob = blob_of(b"x");
    blob.stored_bytes = 2;
    assert_eq!(fixture.cache.begin_upload(Uploader::trusted(LEASE), &blob).await.unwrap_err().kind(), "invalid");
    blob = Blob::plain(Digest::of(b"y"), 6 << 40);
    assert_eq!(fixture.cache.begin_upload(Uploader::trusted(LEASE), &blob).await.unwrap_err().kind(), "too-large");
    let blob = blob_of(b"z");
    for id in ["", "nonsense", "../../etc", "00000000000000000000000000000000"] {
        assert!(fixture.complete(&blob, id, &[String::new()]).await.is_err(), "{id}");
    }
    let changed = fixture.file("changed", b"zz");
    let ticket = fixture.begin(&blob).await;
    let error = fixture.push(&changed, &blob, &ticket).await.unwrap_err();
    assert!(matches!(error, MoveError::Transfer(TransferError::Changed { .. })), "{error}");
    let error = fixture.push(&fixture.dir.path().join("none"), &blob, &ticket).await.unwrap_err();
    assert!(matches!(error, MoveError::Transfer(TransferError::NotFound { .. })), "{error}");
    let part = |number| fixture.to_sign(number, b"z");
    let another_kind = match fixture.backend {
        Backend::Embedded => PartSum::ContentMd5([0; 16]),
        Backend::S3 => PartSum::Crc32(0),
    };
    for parts in
        [vec![part(0)], vec![part(2)], vec![part(1), part(2)], vec![PartToSign { number: 1, sum: another_kind }]]
    {
        let error = fixture.cache.sign_parts(LEASE, &blob, &ticket.upload_id, &parts).await.unwrap_err();
        assert!(matches!(error, CacheError::Invalid { .. }), "{error}");
    }
}
