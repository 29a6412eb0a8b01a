//! What a transfer does when the other side misbehaves: a server that plays a script, one connection per line of it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::Digest as _;
use railyard_common::backoff::Backoff;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_transfer::{Settings, Ticket, Transfer, TransferError, compress_zstd, hash_file, silent};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;

/// What the server does with one request.
enum Act {
    /// Sends these bytes and closes the connection.
    Answer(Vec<u8>),
    /// Sends these bytes and then nothing more, until the test is over.
    Hang(Vec<u8>),
    /// Does not even read the body.
    Ignore,
}

fn answer(head: &str, body: &[u8]) -> Act {
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    Act::Answer([head.as_bytes(), body].concat())
}

/// The start of an answer that is announced longer than it will be.
fn beginning(head: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    [head.as_bytes(), body].concat()
}

/// A server that plays a script.
struct Server {
    url: String,
    over: mpsc::Sender<()>,
    seen: JoinHandle<Vec<String>>,
}

impl Server {
    fn play(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/blob?signature=s3cret", listener.local_addr().unwrap());
        let (over, is_over) = mpsc::channel::<()>();
        let seen = std::thread::spawn(move || {
            let mut open = Vec::new();
            let heads = script.into_iter().map(|act| {
                let (stream, _) = listener.accept().unwrap();
                let (head, kept) = play_one(stream, act);
                open.push(kept);
                head
            });
            let heads = heads.collect();
            // Hanging connections stay open until the test has seen what it wants to see.
            let _ = is_over.recv();
            heads
        });
        Self { url, over, seen }
    }

    /// The heads of the requests, in lower case.
    fn requests(self) -> Vec<String> {
        drop(self.over);
        self.seen.join().unwrap()
    }
}

fn play_one(stream: TcpStream, act: Act) -> (String, Option<TcpStream>) {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(reader.read_line(&mut head).unwrap(), 0, "the connection ended in the head: {head}");
    }
    let head = head.to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if !matches!(act, Act::Ignore) {
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
    }
    let mut stream = reader.into_inner();
    match act {
        Act::Answer(bytes) => {
            stream.write_all(&bytes).unwrap();
            (head, None)
        }
        Act::Hang(bytes) => {
            stream.write_all(&bytes).unwrap();
            (head, Some(stream))
        }
        Act::Ignore => (head, Some(stream)),
    }
}

struct Bench {
    transfer: Transfer,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let settings = Settings {
            attempts: 3,
            progress_timeout: Duration::from_millis(300),
            backoff: Backoff { base_millis: 1, max_millis: 5 },
            ..Settings::default()
        };
        Self { transfer: Transfer::new(reqwest::Client::new(), settings), dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn push(&self, bytes: &[u8], server: &Server) -> Result<Vec<String>, TransferError> {
        let file = self.path("source");
        std::fs::write(&file, bytes).unwrap();
        let part_urls = vec![server.url.clone()];
        let ticket = Ticket { upload_id: "u".to_owned(), part_bytes: 64 << 20, part_urls };
        let finished = self.transfer.push(&file, &blob_of(bytes), &ticket, &silent).await?;
        Ok(finished.etags)
    }

    async fn pull(&self, blob: &Blob, server: &Server) -> Result<Vec<u8>, TransferError> {
        let dest = self.path("dest");
        let done = self.transfer.pull(&server.url, blob, &dest, &silent).await;
        assert_eq!(dest.exists(), done.is_ok());
        done.map(|()| std::fs::read(dest).unwrap())
    }

    fn part_exists(&self) -> bool {
        self.path("dest.part").exists()
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
async fn tries_are_finite() {
    let bench = Bench::new();
    let server = Server::play((0..3).map(|_| answer("500 Internal Server Error", b"it broke")).collect());
    let error = bench.push(b"bytes", &server).await.unwrap_err();
    assert!(matches!(&error, TransferError::Status { status: 500, why, .. } if why == "it broke"), "{error}");
    assert!(!error.to_string().contains("s3cret"), "the signature must not get into logs: {error}");
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn what_cannot_pass_is_not_tried_again() {
    for (head, body, kind) in [
        ("403 Forbidden", "<Message>Request has expired</Message>", "expired"),
        ("403 Forbidden", "<Code>SignatureDoesNotMatch</Code>", "denied"),
        ("404 Not Found", "", "gone"),
        ("507 Insufficient Storage", "", "cache-full"),
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
async fn a_broken_pull_goes_on_where_it_ended() {
    let bench = Bench::new();
    let bytes = b"0123456789";
    let server = Server::play(vec![
        Act::Answer(beginning("200 OK", 10, &bytes[..4])),
        answer("206 Partial Content\r\nContent-Range: bytes 4-9/10", &bytes[4..]),
    ]);
    assert_eq!(bench.pull(&blob_of(bytes), &server).await.unwrap(), bytes);
    assert!(server.requests()[1].contains("range: bytes=4-\r\n"));

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
        let server = Server::play(vec![answer("200 OK", &stored)]);
        assert!(bench.pull(&blob, &server).await.unwrap() == plain);
    }
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
    let server = Server::play((0..3).map(|_| Act::Ignore).collect());
    let error = bench.push(&vec![7; 32 << 20], &server).await.unwrap_err();
    assert!(matches!(error, TransferError::Stalled { .. }), "{error}");

    let bytes = b"0123456789";
    let script = |_| Act::Hang(beginning("206 Partial Content\r\nContent-Range: bytes 4-9/10", 6, b""));
    let mut script: Vec<_> = (0..3).map(script).collect();
    script.insert(0, Act::Hang(beginning("200 OK", 10, &bytes[..4])));
    let server = Server::play(script);
    let error = bench.pull(&blob_of(bytes), &server).await.unwrap_err();
    assert!(matches!(error, TransferError::Stalled { .. }), "{error}");
    assert_eq!(std::fs::read(bench.path("dest.part")).unwrap(), &bytes[..4], "kept for the next try");
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_removed() {
    let bench = Bench::new();
    for (body, kind) in
        [(&b"0123456780"[..], "wrong-digest"), (&b"0123456789 and more"[..], "corrupt"), (&b"01234"[..], "corrupt")]
    {
        let server = Server::play(vec![answer("200 OK", body)]);
        let error = bench.pull(&blob_of(b"0123456789"), &server).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!bench.part_exists(), "{kind}");
    }
    for stored in [&b"not zstd at all"[..], &zstd::bulk::compress(&[0; 1 << 20], 3).unwrap()] {
        let blob = Blob {
            encoding: Encoding::Zstd,
            stored_bytes: stored.len() as u64,
            ..blob_of(b"far less than a megabyte")
        };
        let server = Server::play(vec![answer("200 OK", stored)]);
        let error = bench.pull(&blob, &server).await.unwrap_err();
        assert_eq!(error.kind(), "corrupt", "{error}");
        assert!(!bench.part_exists());
    }
}

#[tokio::test]
async fn an_empty_blob_needs_no_connection() {
    let bench = Bench::new();
    let blob = blob_of(b"");
    let nowhere = Server { url: "http://127.0.0.1:1/".to_owned(), ..Server::play(Vec::new()) };
    assert_eq!(bench.pull(&blob, &nowhere).await.unwrap(), b"");
    std::fs::write(bench.path("empty"), b"").unwrap();
    let ticket = Ticket { upload_id: "u".to_owned(), part_bytes: 16, part_urls: Vec::new() };
    assert!(bench.transfer.push(&bench.path("empty"), &blob, &ticket, &silent).await.unwrap().etags.is_empty());
    assert_eq!(hash_file(&bench.path("empty")).await.unwrap(), (blob.digest, 0));
}

#[tokio::test]
async fn a_ticket_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    std::fs::write(bench.path("file"), b"12345").unwrap();
    for (part_bytes, urls) in [(2, 2), (5, 2), (0, 0), (0, 1), (5, 0)] {
        let ticket =
            Ticket { upload_id: "u".to_owned(), part_bytes, part_urls: vec!["http://127.0.0.1:1/".to_owned(); urls] };
        let error = bench.transfer.push(&bench.path("file"), &blob_of(b"12345"), &ticket, &silent).await.unwrap_err();
        assert!(matches!(error, TransferError::BadTicket { .. }), "{error}");
    }
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
