//! URLs that are too old when they are used.

use super::server::{Act, Server, answer, beginning};
use super::{Bench, TAKEN, blob_of};
use railyard_transfer::{BlobUrls, Form, MoveError, silent};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

#[tokio::test]
async fn an_expired_url_is_renewed_and_not_for_ever() {
    let bench = Bench::new();
    let server = Server::play(vec![expired(), answer(TAKEN, b"")]);
    assert_eq!(bench.push(b"bytes", &server).await.unwrap(), ["\"e\""]);
    let server = Server::always(expired);
    assert_eq!(bench.push(b"bytes", &server).await.unwrap_err().kind(), "expired");
    assert_eq!(bench.pull(&blob_of(b"bytes"), &server).await.unwrap_err().kind(), "expired");
    assert_eq!(server.requests().len(), 2 * 4);
}

fn expired() -> Act {
    answer("403 Forbidden", b"<Message>Request has expired</Message>")
}

/// URLs of one server, numbered.
struct Numbered<'a> {
    server: &'a str,
    given: AtomicUsize,
    /// How many there are.
    most: usize,
}

impl BlobUrls for Numbered<'_> {
    type Error = &'static str;

    async fn sign(&self) -> Result<String, &'static str> {
        let number = self.given.fetch_add(1, Ordering::Relaxed);
        if number < self.most { Ok(format!("{}&number={number}", self.server)) } else { Err("no more") }
    }
}

/// A byte of each URL, which is expired then.
#[tokio::test]
async fn a_pull_takes_as_many_urls_as_bytes_come() {
    let bench = Bench::new();
    let bytes = b"0123456789";
    let script = || {
        let part = |at: usize| {
            let head = format!("206 Partial Content\r\nContent-Range: bytes {at}-9/10");
            Act::Answer(beginning(&head, 10 - at, &bytes[at..=at]))
        };
        (0..10).flat_map(|at| [part(at), expired()]).take(19).collect()
    };
    let server = Server::play(script());
    let dest = bench.path("dest");
    let urls = Numbered { server: &server.url, given: 0.into(), most: 10 };
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ear = heard.clone();
    let tap = move |bytes: &[u8]| {
        ear.lock().unwrap().extend_from_slice(bytes);
        true
    };
    let blob = blob_of(bytes);
    bench.transfer.pull_from(&urls, &blob, &dest, Form::Plain, Some(Box::new(tap)), &silent).await.unwrap();
    assert_eq!(std::fs::read(&dest).unwrap(), bytes);
    assert_eq!(*heard.lock().unwrap(), bytes, "once, and all of them");
    let numbers = server.requests();
    let numbers: Vec<&str> = numbers.iter().map(|head| &head[head.find("number=").unwrap()..][7..8]).collect();
    assert_eq!(numbers.concat(), "0011223344556677889");

    // What came stays when there is no URL any more.
    std::fs::remove_file(&dest).unwrap();
    let server = Server::play(script());
    let urls = Numbered { server: &server.url, given: 0.into(), most: 6 };
    let error = bench.transfer.pull_from(&urls, &blob, &dest, Form::Plain, None, &silent).await.unwrap_err();
    assert!(matches!(error, MoveError::Urls("no more")), "{error}");
    assert!(bench.part_exists() && !dest.exists());
}
