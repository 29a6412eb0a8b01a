//! What a transfer does when the other side misbehaves.

mod landing;
mod server;
mod urls;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Digest as _;
use railyard_common::backoff::Backoff;
use railyard_common::blob::{Blob, Encoding, PartChecksum, PartSum, PartToSign};
use railyard_common::digest::Digest;
use railyard_transfer::{
    Finished, Form, MoveError, PartLog, PartUrls, Scratch, Settings, Stored, Ticket, Transfer, TransferError,
    compress_zstd, hash_file, silent,
};
use server::{Act, Server, answer, beginning};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

struct Bench {
    transfer: Transfer,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = Settings {
            stall_timeout: Duration::from_millis(300),
            progress_deadline: Duration::from_millis(1500),
            backoff: Backoff { base_millis: 1, max_millis: 5 },
            ..Settings::default()
        };
        Self { transfer: Transfer::new(reqwest::Client::new(), settings), dir: tempfile::tempdir().unwrap() }
    }

    fn one_stream() -> Self {
        let bench = Self::new();
        let settings = Settings { parallel_streams: 1, ..Settings::default() };
        Self { transfer: Transfer::new(reqwest::Client::new(), settings), ..bench }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn push(&self, bytes: &[u8], server: &Server) -> Result<Vec<String>, TransferError> {
        let file = self.path("source");
        std::fs::write(&file, bytes).unwrap();
        let finished = self.send(&file, &blob_of(bytes), 64 << 20, &server.url, &PartLog::unkept()).await;
        finished.map(|finished| finished.etags).map_err(|error| match error {
            MoveError::Transfer(error) => error,
            MoveError::Urls(never) => match never {},
        })
    }

    async fn send(
        &self,
        file: &Path,
        blob: &Blob,
        part_bytes: u64,
        url: &str,
        log: &PartLog,
    ) -> Result<Finished, MoveError<Infallible>> {
        let ticket = Ticket { upload_id: "u".to_owned(), part_bytes, checksum: PartChecksum::ContentMd5 };
        self.transfer.push(file, blob, &ticket, &OneUrl(url), log, &silent).await
    }

    async fn pull(&self, blob: &Blob, server: &Server) -> Result<Vec<u8>, TransferError> {
        let dest = self.path("dest");
        let done = self.transfer.pull(&server.url, blob, &dest, Form::Plain, &silent).await;
        assert_eq!(dest.exists(), done.is_ok());
        done.map(|()| std::fs::read(dest).unwrap())
    }

    fn part_exists(&self) -> bool {
        Scratch::beside(&self.path("dest")).part.exists()
    }
}

/// Gives one URL for every part, and in it the checksum that it is for.
struct OneUrl<'a>(&'a str);

impl PartUrls for OneUrl<'_> {
    type Error = Infallible;

    async fn sign(&self, parts: Vec<PartToSign>) -> Result<Vec<String>, Infallible> {
        Ok(parts.iter().map(|part| format!("{}&for={}", self.0, hex_of(part.sum))).collect())
    }
}

fn hex_of(sum: PartSum) -> String {
    match sum {
        PartSum::ContentMd5(md5) => hex::encode(md5),
        PartSum::Crc32(crc32) => hex::encode(crc32.to_be_bytes()),
    }
}

fn blob_of(bytes: &[u8]) -> Blob {
    Blob::plain(Digest::of(bytes), bytes.len() as u64)
}

const TAKEN: &str = "200 OK\r\nETag: \"e\"";

#[tokio::test]
async fn a_part_is_sent_again_after_a_passing_fault() {
    let bench = Bench::new();
    let server = Server::play(vec![
        answer("503 Slow Down", b""),
        answer("400 Bad Request", b"<Code>BadDigest</Code>"),
        answer(TAKEN, b""),
    ]);
    assert_eq!(bench.push(b"bytes", &server).await.unwrap(), ["\"e\""]);
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    // Of "bytes", in lower case as the whole head is.
    let md5 = STANDARD.encode(md5::Md5::digest(b"bytes")).to_lowercase();
    assert!(requests[2].contains(&format!("content-md5: {md5}\r\n")), "{}", requests[2]);
    assert!(requests[2].contains("content-length: 5\r\n"), "{}", requests[2]);
}

#[tokio::test]
async fn checksums_that_are_known_are_believed_once() {
    let bench = Bench::new();
    let (old, new) = (bench.path("old"), bench.path("new"));
    std::fs::write(&old, b"bites").unwrap();
    std::fs::write(&new, b"bytes").unwrap();
    let known = hash_file(&old).await.unwrap().crc32s;
    let server = Server::play(vec![answer("400 Bad Request", b"<Code>BadDigest</Code>"), answer(TAKEN, b"")]);
    let ticket = Ticket { upload_id: "u".to_owned(), part_bytes: 64 << 20, checksum: PartChecksum::Crc32 };
    let stored = Stored { file: &new, crc32s: Some(&known) };
    let (blob, urls, log) = (blob_of(b"bytes"), OneUrl(&server.url), PartLog::unkept());
    bench.transfer.push(stored, &blob, &ticket, &urls, &log, &silent).await.unwrap();
    let told = |bytes: &[u8]| {
        let crc32 = STANDARD.encode(crc32fast::hash(bytes).to_be_bytes()).to_lowercase();
        format!("x-amz-checksum-crc32: {crc32}\r\n")
    };
    let requests = server.requests();
    for (request, bytes) in requests.iter().zip([b"bites", b"bytes"]) {
        let signed = format!("&for={} http/1.1", hex_of(PartSum::Crc32(crc32fast::hash(bytes))));
        assert!(request.contains(&told(bytes)) && request.contains(&signed), "{request}");
    }
}

#[tokio::test]
async fn tries_end_when_nothing_moves_for_long() {
    let bench = Bench::new();
    let server = Server::always(|| answer("500 Internal Server Error", b"it broke"));
    let error = bench.push(b"bytes", &server).await.unwrap_err();
    assert!(matches!(&error, TransferError::Status { status: 500, why, .. } if why == "it broke"), "{error}");
    assert!(!error.to_string().contains("s3cret"), "the signature must not get into logs: {error}");
    assert!(server.requests().len() > 10, "it was tried for as long as the deadline allows");
}

#[tokio::test]
async fn a_part_that_never_arrives_whole_is_given_up() {
    let bench = Bench::new();
    let script = || answer("400 Bad Request", b"<Code>BadDigest</Code>");
    let server = Server::always(script);
    let error = bench.push(b"bytes", &server).await.unwrap_err();
    assert!(matches!(&error, TransferError::Damaged { .. }), "{error}");
    assert_eq!(server.requests().len(), 8);

    // A store that does not look at checksums tells by the part's ETag what it has.
    let other = hex::encode(md5::Md5::digest(b"bites"));
    let server = Server::always(move || answer(&format!("200 OK\r\nETag: \"{other}\""), b""));
    let error = bench.push(b"bytes", &server).await.unwrap_err();
    assert!(matches!(&error, TransferError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_full_cache_is_waited_for() {
    let bench = Bench::new();
    let full = || answer("507 Insufficient Storage", b"");
    let server = Server::play(vec![full(), full(), answer(TAKEN, b"")]);
    assert_eq!(bench.push(b"bytes", &server).await.unwrap(), ["\"e\""]);
    let server = Server::always(full);
    let lines = Lines::default();
    let written = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).finish();
    let heard = tracing::subscriber::set_default(subscriber);
    assert_eq!(bench.push(b"bytes", &server).await.unwrap_err().kind(), "cache-full");
    drop(heard);
    // Of many tries, one line.
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(text.matches("WARN").count() == 1 && text.contains("the cache's disk is full"), "{text}");
}

/// What was logged.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn what_cannot_pass_is_not_tried_again() {
    for (head, body, kind) in [
        ("403 Forbidden", "<Code>SignatureDoesNotMatch</Code>", "denied"),
        ("404 Not Found", "", "gone"),
        ("413 Payload Too Large", "", "status"),
    ] {
        let bench = Bench::new();
        let server = Server::play(vec![answer(head, body.as_bytes())]);
        let error = bench.push(b"bytes", &server).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let server = Server::play(vec![answer(head, body.as_bytes())]);
        let error = bench.pull(&blob_of(b"bytes"), &server).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
}

#[tokio::test]
async fn parts_that_are_in_the_cache_are_not_sent_again() {
    let bench = Bench::one_stream();
    let bytes = b"0123456789";
    let (file, notes) = (bench.path("source"), bench.path("notes"));
    std::fs::write(&file, bytes).unwrap();
    // One part is taken, the next one is refused for good.
    let refused = || answer("413 Payload Too Large", b"");
    let server = Server::play(vec![answer(TAKEN, b""), refused()]);
    let log = PartLog::open(&notes, "u").unwrap();
    bench.send(&file, &blob_of(bytes), 4, &server.url, &log).await.unwrap_err();
    assert_eq!(server.requests().len(), 2);

    let log = PartLog::open(&notes, "u").unwrap();
    let server = Server::play(vec![answer(TAKEN, b""), answer(TAKEN, b"")]);
    let finished = bench.send(&file, &blob_of(bytes), 4, &server.url, &log).await.unwrap();
    assert_eq!(finished.etags, ["\"e\""; 3]);
    assert_eq!(server.requests().len(), 2, "the two that were missing");
}

#[tokio::test]
async fn a_broken_pull_goes_on_where_it_ended() {
    let bench = Bench::new();
    let bytes = b"0123456789";
    let server = Server::play(vec![
        Act::Answer(beginning("200 OK", 10, &bytes[..4])),
        answer("206 Partial Content\r\nContent-Range: bytes 4-9/10", &bytes[4..]),
    ]);
    assert_eq!(bench.pull(&blob_of(bytes), &server).await.unwrap(), bytes);
    assert!(server.requests()[1].contains("range: bytes=4-9\r\n"));

    let server = Server::play(vec![Act::Answer(beginning("200 OK", 10, &bytes[..4])), answer("200 OK", bytes)]);
    assert_eq!(bench.pull(&blob_of(bytes), &server).await.unwrap(), bytes, "a server without ranges");
}

#[tokio::test]
async fn a_broken_pull_of_a_compressed_blob_goes_on_too() {
    let bench = Bench::new();
    let plain: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(bench.path("plain"), &plain).unwrap();
    let blob = compress_zstd(&bench.path("plain"), &bench.path("packed"), 3).await.unwrap();
    let stored = std::fs::read(bench.path("packed")).unwrap();
    let half = stored.len() / 2;
    let range = format!("206 Partial Content\r\nContent-Range: bytes {half}-{}/{}", stored.len() - 1, stored.len());
    let server = Server::play(vec![
        Act::Answer(beginning("200 OK", stored.len(), &stored[..half])),
        answer(&range, &stored[half..]),
    ]);
    assert!(bench.pull(&blob, &server).await.unwrap() == plain);
}

#[tokio::test]
async fn a_compressed_blob_may_be_stored_in_another_length() {
    let bench = Bench::new();
    let plain = b"two hosts pack the same bytes in two ways ".repeat(1000);
    std::fs::write(bench.path("plain"), &plain).unwrap();
    let blob = compress_zstd(&bench.path("plain"), &bench.path("packed"), 3).await.unwrap();
    for level in [-5, 19] {
        let stored = zstd::bulk::compress(&plain, level).unwrap();
        assert_ne!(stored.len() as u64, blob.stored_bytes);
        let server = Server::always(move || answer("200 OK", &stored));
        assert!(bench.pull(&blob, &server).await.unwrap() == plain);
    }
}

#[tokio::test]
async fn a_compressed_blob_may_be_shorter_than_what_has_come_of_it() {
    let bench = Bench::new();
    let plain = b"two hosts pack the same bytes in two ways ".repeat(1000);
    let [long, short] = [-5, 19].map(|level| zstd::bulk::compress(&plain, level).unwrap());
    assert!(short.len() + 1 < long.len());
    let blob = Blob {
        encoding: Encoding::Zstd,
        stored_bytes: long.len() as u64,
        ..Blob::plain(Digest::of(&plain), plain.len() as u64)
    };
    let beyond = "416 Range Not Satisfiable";
    let told_by_header = answer(&format!("{beyond}\r\nContent-Range: bytes */{}", short.len()), b"");
    let told_as_s3_does = format!("<Error><ActualObjectSize>{}</ActualObjectSize></Error>", short.len());
    for told in [told_by_header, answer(beyond, told_as_s3_does.as_bytes())] {
        let most = Act::Answer(beginning("200 OK", long.len(), &long[..long.len() - 1]));
        let server = Server::play(vec![most, told, answer("200 OK", &short)]);
        assert!(bench.pull(&blob, &server).await.unwrap() == plain);
        std::fs::remove_file(bench.path("dest")).unwrap();
    }
    // What says nothing new is an error.
    let told = answer(&format!("{beyond}\r\nContent-Range: bytes */{}", long.len()), b"");
    let error = bench.pull(&blob, &Server::play(vec![told])).await.unwrap_err();
    assert!(matches!(error, TransferError::Status { status: 416, .. }), "{error}");
}

#[tokio::test]
async fn progress_between_faults_keeps_a_pull_alive() {
    let bench = Bench::new();
    let bytes = b"0123456789";
    let mut script = vec![Act::Answer(beginning("200 OK", 10, &bytes[..1]))];
    script.extend((1..10).map(|n| {
        let range = format!("206 Partial Content\r\nContent-Range: bytes {n}-9/10");
        Act::Answer(beginning(&range, 10 - n, &bytes[n..=n]))
    }));
    let server = Server::play(script);
    assert_eq!(bench.pull(&blob_of(bytes), &server).await.unwrap(), bytes);
}

#[tokio::test]
async fn a_silent_peer_is_an_error_and_not_a_hang() {
    let bench = Bench::new();
    let server = Server::always(|| Act::Ignore);
    let error = bench.push(&vec![7; 32 << 20], &server).await.unwrap_err();
    assert!(matches!(error, TransferError::Stalled { .. }), "{error}");

    let bytes = b"0123456789";
    let hang = || Act::Hang(beginning("206 Partial Content\r\nContent-Range: bytes 4-9/10", 6, b""));
    let mut first = Some(Act::Hang(beginning("200 OK", 10, &bytes[..4])));
    let server = Server::always(move || first.take().unwrap_or_else(hang));
    let error = bench.pull(&blob_of(bytes), &server).await.unwrap_err();
    assert!(matches!(error, TransferError::Stalled { .. }), "{error}");
    assert_eq!(
        &std::fs::read(Scratch::beside(&bench.path("dest")).part).unwrap()[..4],
        &bytes[..4],
        "kept for the next try"
    );
}

#[tokio::test]
async fn a_connection_that_drips_is_given_up_for_another() {
    let bench = Bench::new();
    let bytes = vec![7; 1 << 20];
    let server = Server::play(vec![
        Act::Drip(beginning("200 OK", bytes.len(), b""), Duration::from_millis(20)),
        answer(&format!("206 Partial Content\r\nContent-Range: bytes 0-{}/{}", bytes.len() - 1, bytes.len()), &bytes),
    ]);
    // What dripped in is kept; the rest comes with the second answer, whose first bytes are skipped.
    assert!(bench.pull(&blob_of(&bytes), &server).await.unwrap() == bytes);
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_removed() {
    let bench = Bench::new();
    for (body, kind) in
        [(&b"0123456780"[..], "wrong-digest"), (&b"0123456789 and more"[..], "corrupt"), (&b"01234"[..], "corrupt")]
    {
        let server = Server::always(move || answer("200 OK", body));
        let error = bench.pull(&blob_of(b"0123456789"), &server).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!bench.part_exists(), "{kind}");
    }
    for stored in [b"not zstd at all".to_vec(), zstd::bulk::compress(&[0; 1 << 20], 3).unwrap()] {
        let blob = Blob {
            encoding: Encoding::Zstd,
            stored_bytes: stored.len() as u64,
            ..blob_of(b"far less than a megabyte")
        };
        let server = Server::always(move || answer("200 OK", &stored));
        let error = bench.pull(&blob, &server).await.unwrap_err();
        assert_eq!(error.kind(), "corrupt", "{error}");
        assert!(!bench.part_exists());
    }
}

#[tokio::test]
async fn bytes_that_were_damaged_on_their_way_are_fetched_once_more() {
    let bench = Bench::new();
    let server = Server::play(vec![answer("200 OK", b"0123456780"), answer("200 OK", b"0123456789")]);
    assert_eq!(bench.pull(&blob_of(b"0123456789"), &server).await.unwrap(), b"0123456789");
}

#[tokio::test]
async fn a_server_without_ranges_gives_big_files_too() {
    let bench = Bench::new();
    let bytes: Vec<u8> = (0..10_000_000u32).flat_map(u32::to_le_bytes).collect();
    let whole = bytes.clone();
    let server = Server::always(move || answer("200 OK", &whole));
    assert!(bench.pull(&blob_of(&bytes), &server).await.unwrap() == bytes);
}

#[tokio::test]
async fn an_empty_blob_needs_no_connection() {
    let bench = Bench::new();
    let blob = blob_of(b"");
    let mut nowhere = Server::play(Vec::new());
    nowhere.url = "http://127.0.0.1:1/".to_owned();
    assert_eq!(bench.pull(&blob, &nowhere).await.unwrap(), b"");
    std::fs::write(bench.path("empty"), b"").unwrap();
    let sent = bench.send(&bench.path("empty"), &blob, 16, "http://127.0.0.1:1/", &PartLog::unkept()).await.unwrap();
    assert!(sent.etags.is_empty());
    let hashed = hash_file(&bench.path("empty")).await.unwrap();
    assert_eq!((hashed.digest, hashed.bytes), (blob.digest, 0));
}

#[tokio::test]
async fn a_ticket_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    std::fs::write(bench.path("file"), b"12345").unwrap();
    let sent = bench.send(&bench.path("file"), &blob_of(b"12345"), 0, "http://127.0.0.1:1/", &PartLog::unkept()).await;
    let error = sent.unwrap_err();
    assert!(matches!(error, MoveError::Transfer(TransferError::BadTicket { .. })), "{error}");
}

#[tokio::test]
async fn local_errors_have_types() {
    let bench = Bench::new();
    let missing = bench.path("missing");
    assert!(matches!(hash_file(&missing).await, Err(TransferError::NotFound { path }) if path == missing));
    assert!(matches!(compress_zstd(&missing, &bench.path("x"), 3).await, Err(TransferError::NotFound { .. })));
    assert!(!bench.path("x").exists());
    std::fs::write(bench.path("file"), vec![1; 1 << 20]).unwrap();
    // A device that says what a full disk says. It is not a file of ours, so it stays.
    std::os::unix::fs::symlink("/dev/full", bench.path("full")).unwrap();
    let full = compress_zstd(&bench.path("file"), &bench.path("full"), 3).await;
    assert!(matches!(full, Err(TransferError::DiskFull { .. })), "{full:?}");
    assert!(bench.path("full").exists());
}
