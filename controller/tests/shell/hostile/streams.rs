//! Streams without number, and frames that bring nothing.

use super::attacker::{
    self, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, HEADERS, Http2, PING, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    address, call, frame, goodbye, headers, request,
};
use super::bystander::Bystander;
use super::{MIB, farm, resident_bytes};
use railyard_service::tls::Role;

const SUBMIT: &str = "/railyard.v1.ClientService/Submit";

fn stream(n: usize) -> u32 {
    u32::try_from(n * 2 + 1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_beyond_the_limit_are_refused() {
    let controller = farm(|limits| limits.body_secs = 20).await;
    let mut bystander = Bystander::watch(&controller);
    let before = resident_bytes();
    let mut http2 = Http2::connect(&controller, address(1), Some((Role::Operator, "mallory"))).await;
    // Calls that never end; the client does not care how many the farm would have.
    let begun: Vec<u8> = (0..200).flat_map(|n| frame(HEADERS, END_HEADERS, stream(n), &call(SUBMIT))).collect();
    http2.send(&begun).await.unwrap();
    bystander.is_served().await;
    let (sent, came) = http2.flood(20_000, |n| frame(HEADERS, END_HEADERS, stream(200 + n), &call(SUBMIT))).await;
    assert!(sent < 20_000, "{sent} streams were taken");
    let refused = came.iter().filter(|frame| frame.kind == RST_STREAM && frame.payload == [0, 0, 0, 7]).count();
    assert!(refused > 0 || goodbye(&came) == Some(ENHANCE_YOUR_CALM), "{:?}", goodbye(&came));
    bystander.is_served().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 50 * MIB, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_reset_at_once_end_the_connection() {
    let controller = farm(|_| {}).await;
    let mut bystander = Bystander::watch(&controller);
    for (who, block) in [
        (None, request("GET", "/healthz")),
        (Some((Role::Operator, "mallory")), call("/railyard.v1.ClientService/ListBuilds")),
    ] {
        for flags in [END_HEADERS, END_HEADERS | END_STREAM] {
            let http2 = Http2::connect(&controller, address(1), who).await;
            let begin_and_reset = |n| {
                let mut frames = frame(HEADERS, flags, stream(n), &block);
                frames.extend(frame(RST_STREAM, 0, stream(n), &[0, 0, 0, 8]));
                frames
            };
            let (sent, _) = http2.flood(200_000, begin_and_reset).await;
            assert!(sent < 50_000, "{sent} streams were begun and reset");
            bystander.is_served().await;
        }
        let who = who.map_or("\"by\":\"nobody\"", |_| "\"by\":\"operator/mallory\"");
        controller.audited(&[who, "\"refused\"", "\"target\":\"connection\"", "HTTP"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_bring_nothing_end_the_connection() {
    let controller = farm(|limits| limits.head_secs = 20).await;
    let mut bystander = Bystander::watch(&controller);
    let before = resident_bytes();
    for (n, who) in [(1, None), (2, Some((Role::Worker, "mallory")))] {
        for frame in [
            frame(PING, 0, 0, &[7; 8]),
            frame(SETTINGS, 0, 0, &[]),
            frame(SETTINGS, 0, 0, &[0, 4, 0, 1, 0, 0].repeat(100)),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
            // Of a priority that nobody uses any more, and of a kind that nobody knows.
            frame(2, 0, 1, &[0, 0, 0, 0, 1]),
            frame(99, 0, 0, &[]),
        ] {
            let http2 = Http2::connect(&controller, address(n), who).await;
            let (sent, _) = http2.flood(1_000_000, |_| frame.clone()).await;
            assert!(sent < 500_000, "{sent} frames of kind {}", frame[3]);
        }
        let who = who.map_or("\"by\":\"nobody\"", |_| "\"by\":\"worker/mallory\"");
        controller.audited(&[who, "\"refused\"", "\"target\":\"connection\"", "frames that bring nothing"]).await;
    }
    bystander.is_served().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 50 * MIB, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_protocol_is_recorded() {
    let controller = farm(|limits| limits.head_secs = 20).await;
    let (halved, upper) = (headers(&[(":method", "GET"), (":path", "/healthz")]), headers(&[("Upper", "case")]));
    for (n, bytes, target, why) in [
        (1, frame(HEADERS, END_HEADERS | END_STREAM, 1, &halved), "request", "PROTOCOL_ERROR"),
        (5, frame(HEADERS, END_HEADERS | END_STREAM, 1, &upper), "connection", "PROTOCOL_ERROR"),
        (2, frame(HEADERS, END_HEADERS | END_STREAM, 2, &request("GET", "/healthz")), "connection", "PROTOCOL_ERROR"),
        (3, frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 9]), "connection", "PROTOCOL_ERROR"),
        (4, frame(DATA, 0, 1, &[7; 20_000]), "connection", "FRAME_SIZE_ERROR"),
    ] {
        let mut http2 = Http2::connect(&controller, address(n), None).await;
        http2.send(&bytes).await.unwrap();
        let target = format!("\"target\":\"{target}\"");
        controller.audited(&[&address(n).to_string(), "\"refused\"", &target, why]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_data_ends_the_connection() {
    let controller = farm(|limits| limits.body_secs = 20).await;
    let mut http2 = Http2::connect(&controller, address(1), Some((Role::Operator, "mallory"))).await;
    http2.send(&frame(HEADERS, END_HEADERS, 1, &call(SUBMIT))).await.unwrap();
    let (sent, came) = http2.flood(1_000_000, |_| frame(DATA, 0, 1, &[])).await;
    assert!(sent < 500_000 && goodbye(&came).is_none_or(|code| code != 0), "{sent} frames");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_no_answer_is_cut() {
    use tokio::io::AsyncWriteExt as _;
    let controller = farm(|_| {}).await;
    let mut bystander = Bystander::watch(&controller);
    let images = controller.data_dir().join("cache/images");
    std::fs::create_dir_all(&images).unwrap();
    std::fs::File::create(images.join("big")).unwrap().set_len(1 << 30).unwrap();
    let before = resident_bytes();
    let mut asking = Vec::new();
    for _ in 0..50 {
        let mut tls =
            attacker::tls(&controller, address(1), Some((Role::Viewer, "mallory")), "http/1.1").await.unwrap();
        tls.write_all(b"GET /cache/images/big HTTP/1.1\r\nHost: farm\r\n\r\n").await.unwrap();
        asking.push(tls);
    }
    assert!(open_connections(controller.address().port()) > 0);
    bystander.is_served().await;
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 50 * 4 * MIB, "{grown} bytes");
    // What was sent lies in the kernel's buffers, unread; the farm has closed its side.
    let farm = controller.address().port();
    crate::common::until("the cut", async || (open_connections(farm) == 0).then_some(())).await;
    bystander.is_served().await;
}

/// Connections to this port at this end that nobody has closed here.
fn open_connections(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let open = |line: &&str| {
        let words: Vec<_> = line.split_whitespace().collect();
        // The local address, and 01 for ESTABLISHED.
        words[1].ends_with(&format!(":{port:04X}")) && words[2].starts_with("0142007F") && words[3] == "01"
    };
    table.lines().filter(open).count()
}
