//! Heads of requests that are too long or never end.

use super::attacker::{self, END_HEADERS, END_STREAM, HEADERS, Http2, address, call, frame, headers, request, rest};
use super::bystander::Bystander;
use super::{MIB, farm, resident_bytes};
use crate::common::Controller;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// What the audit says of a head that begins and does not go on.
const SLOW: &str = "did not come to its end in time";

/// What the farm says to these bytes of HTTP/1.
async fn answer(controller: &Controller, bytes: &[u8]) -> String {
    let mut tls = attacker::tls(controller, address(1), None, "http/1.1").await.unwrap();
    // It may stop reading before the end.
    let _ = tls.write_all(bytes).await;
    let _ = tls.flush().await;
    String::from_utf8_lossy(&rest(&mut tls).await).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_drips_is_cut() {
    let controller = farm(|_| {}).await;
    let mut bystander = Bystander::watch(&controller);
    let mut dripping = Vec::new();
    for _ in 0..50 {
        let tls = attacker::tls(&controller, address(1), None, "http/1.1").await.unwrap();
        let (mut from, mut to) = tokio::io::split(tls);
        let drip = async move {
            let _ = to.write_all(b"GET /healthz HTTP/1.1\r\nHost: farm\r\n").await;
            while to.write_all(b"X: y\r\n").await.is_ok() && to.flush().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            std::future::pending::<()>().await;
        };
        dripping.push(async move {
            tokio::select! {
                bytes = rest(&mut from) => bytes,
                () = drip => unreachable!("a drip never ends"),
            }
        });
    }
    let (answers, ()) = tokio::join!(futures_util::future::join_all(dripping), bystander.is_served());
    // Cut without a word, or told that it took too long.
    assert!(answers.iter().all(|bytes| bytes.is_empty() || bytes.starts_with(b"HTTP/1.1 408")));
    controller.audited(&[&address(1).to_string(), "\"refused\"", "\"target\":\"request\"", SLOW]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_end_is_recorded_and_a_connection_that_says_nothing_is_not() {
    let controller = farm(|_| {}).await;
    let ask = b"GET /healthz HTTP/1.1\r\nHost: farm\r\n\r\n";
    // As browsers open them before they have anything to ask, or keep them afterwards.
    let mut silent = attacker::tls(&controller, address(1), None, "http/1.1").await.unwrap();
    let mut kept = attacker::tls(&controller, address(1), None, "http/1.1").await.unwrap();
    kept.write_all(ask).await.unwrap();
    let mut quiet = Http2::connect(&controller, address(1), None).await;
    rest(&mut silent).await;
    assert!(rest(&mut kept).await.starts_with(b"HTTP/1.1 200"));
    while quiet.next().await.is_ok() {}
    // The second head of a connection, and a first of HTTP/2.
    let mut second = attacker::tls(&controller, address(2), None, "http/1.1").await.unwrap();
    second.write_all(ask).await.unwrap();
    second.read_exact(&mut [0; 12]).await.unwrap();
    second.write_all(b"GET /healthz HT").await.unwrap();
    rest(&mut second).await;
    let mut first = Http2::connect(&controller, address(3), None).await;
    first.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/healthz"))).await.unwrap();
    while first.next().await.is_ok() {}
    for n in [2, 3] {
        controller.audited(&[&address(n).to_string(), "\"refused\"", "\"target\":\"request\"", SLOW]).await;
    }
    assert_eq!(controller.audit_lines(&["\"refused\""]), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_long_are_refused() {
    let controller = farm(|_| {}).await;
    let mut bystander = Bystander::watch(&controller);
    let head = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n{more}\r\n");
    let (long, fits) = ("a".repeat(100 << 10), "a".repeat(8_000));
    let many = "X: y\r\n".repeat(101);
    for (text, wanted) in [
        (head("/healthz", &format!("X: {long}\r\n")), "HTTP/1.1 431"),
        (head("/healthz", &many), "HTTP/1.1 431"),
        (head(&format!("/{}", "a".repeat(9_000)), ""), "HTTP/1.1 414"),
        (head(&format!("/healthz?{fits}"), &"X: y\r\n".repeat(90)), "HTTP/1.1 200"),
    ] {
        let answer = answer(&controller, text.as_bytes()).await;
        assert!(answer.starts_with(wanted), "wanted {wanted} for {} bytes, got {answer:.200}", text.len());
    }
    let from = address(1).to_string();
    controller.audited(&[&from, "\"refused\"", "\"target\":\"GET /aaa", "414 URI Too Long"]).await;
    // With so many headers it is none that anybody sees.
    controller.audited(&[&from, "\"refused\"", "\"target\":\"request\"", "too large"]).await;
    let before = resident_bytes();
    let mut open = Vec::new();
    for _ in 0..200 {
        // As much as fits, and no end.
        let mut tls = attacker::tls(&controller, address(1), None, "http/1.1").await.unwrap();
        tls.write_all(format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(60 << 10)).as_bytes()).await.unwrap();
        open.push(tls);
    }
    bystander.is_served().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 200 * (256 << 10), "{grown} bytes for 200 connections");
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_answered_or_cut() {
    let controller = farm(|_| {}).await;
    let mut bystander = Bystander::watch(&controller);
    for bytes in [
        &b"\0\0\0\0\0\0\0\0\0\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /cache/x HTTP/1.1\r\nHost: farm\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"PUT /cache/uploads/x?part=1&length=5 HTTP/1.1\r\nHost: farm\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFFF\r\n",
        b"GET /cache/%%% HTTP/1.1\r\nHost: farm\r\nConnection: close\r\n\r\n",
    ] {
        let answer = answer(&controller, bytes).await;
        let status = answer.get(9..12).unwrap_or("cut").to_owned();
        assert!(status.starts_with('4') || status == "cut", "{:?}: {answer}", String::from_utf8_lossy(bytes));
    }
    bystander.is_served().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn long_http2_heads_are_refused_and_the_connection_goes_on() {
    let controller = farm(|limits| limits.head_secs = 20).await;
    let mut http2 = Http2::connect(&controller, address(1), None).await;
    let mut block = request("GET", "/healthz");
    block.extend(headers(&[("x", &"a".repeat(15 << 10))]));
    // Two frames, each as long as a frame may be at most.
    let more = headers(&[("y", &"a".repeat(4 << 10))]);
    http2.send(&frame(HEADERS, END_STREAM, 1, &block)).await.unwrap();
    http2.send(&frame(attacker::CONTINUATION, END_HEADERS, 1, &more)).await.unwrap();
    let answer = http2.wait_for(HEADERS, 1).await.unwrap();
    // `:status` of the static table, and `431` in the Huffman code of HPACK.
    assert!(answer.payload.starts_with(&[0x48, 0x83, 0x69, 0x90, 0xff]), "{:x?}", answer.payload);
    http2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &request("GET", "/healthz"))).await.unwrap();
    http2.wait_for(HEADERS, 3).await.unwrap();
    let from = address(1).to_string();
    controller.audited(&[&from, "\"refused\"", "GET /healthz", "431", "19458 bytes; the limit is 16384"]).await;

    // A call hears it as a call does.
    let mut block = call("/railyard.v1.ClientService/ListBuilds");
    block.extend(headers(&[("x", &"a".repeat(12 << 10))]));
    http2.send(&frame(HEADERS, END_STREAM, 5, &block)).await.unwrap();
    http2.send(&frame(attacker::CONTINUATION, END_HEADERS, 5, &more)).await.unwrap();
    let answer = http2.wait_for(HEADERS, 5).await.unwrap();
    assert_eq!(answer.payload[0], 0x88, "`200` of the static table, and the status of the call behind it");
    controller.audited(&[&from, "POST /railyard.v1.ClientService/ListBuilds", "the limit is 16384"]).await;

    // One that is so long that nobody reads it.
    http2.send(&frame(HEADERS, END_STREAM, 7, &request("GET", "/healthz"))).await.unwrap();
    for n in 0..5 {
        let flags = if n == 4 { END_HEADERS } else { 0 };
        let more = headers(&[("x", &"a".repeat(15 << 10))]);
        http2.send(&frame(attacker::CONTINUATION, flags, 7, &more)).await.unwrap();
    }
    http2.wait_for(HEADERS, 7).await.unwrap();
    controller.audited(&[&from, "\"refused\"", "\"target\":\"request\"", "longer than 65536 bytes"]).await;
}

/// A few bytes that name the same header again and again, which HPACK makes many of.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_grows_when_it_is_read_is_refused_and_recorded() {
    let controller = farm(|limits| limits.head_secs = 20).await;
    let before = resident_bytes();
    let mut http2 = Http2::connect(&controller, address(1), None).await;
    let mut block = request("GET", "/healthz");
    // Literal with indexing, a new name: the newest entry of the dynamic table from here on, index 62.
    block.extend([0x40, 1, b'x', 0x7f, 0xc1, 0x1e]);
    block.extend([b'a'; 4_032]);
    let too_many = [block.as_slice(), &[0xbe; 10_000]].concat();
    block.extend([0xbe; 30]);
    http2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await.unwrap();
    let answer = http2.wait_for(HEADERS, 1).await.unwrap();
    assert!(answer.payload.starts_with(&[0x48, 0x83, 0x69, 0x90, 0xff]), "{:x?}", answer.payload);
    controller.audited(&[&address(1).to_string(), "\"refused\"", "longer than 65536 bytes"]).await;
    http2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &request("GET", "/healthz"))).await.unwrap();
    http2.wait_for(HEADERS, 3).await.unwrap();
    // Much more of it, and the connection ends.
    http2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 5, &too_many)).await.unwrap();
    while http2.next().await.is_ok() {}
    controller.audited(&[&address(1).to_string(), "\"refused\"", "\"target\":\"connection\"", "breaks HTTP/2"]).await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 20 * MIB, "{grown} bytes for 40 MB of headers");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_continued_for_ever_ends_the_connection() {
    let controller = farm(|limits| limits.head_secs = 20).await;
    let mut bystander = Bystander::watch(&controller);
    let before = resident_bytes();
    for block in [headers(&[("x", &"a".repeat(8 << 10))]), Vec::new()] {
        let mut http2 = Http2::connect(&controller, address(1), None).await;
        http2.send(&frame(HEADERS, END_STREAM, 1, &request("GET", "/healthz"))).await.unwrap();
        let (sent, came) = http2.flood(100_000, |_| frame(attacker::CONTINUATION, 0, 1, &block)).await;
        assert!(sent < 20_000, "{sent} frames were taken");
        assert!(attacker::goodbye(&came).is_none_or(|code| code != 0));
    }
    controller.audited(&[&address(1).to_string(), "\"refused\"", "\"target\":\"connection\"", "HTTP"]).await;
    bystander.is_served().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 50 * MIB, "{grown} bytes");
}
