//! Where pulled bytes land: beside other files, and beside other pulls into the same directory.

use super::{Bench, Lines, blob_of};
use crate::server::{Act, Server, answer, beginning};
use railyard_common::blob::Blob;
use railyard_transfer::{Form, Transfer, TransferError, silent};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;

async fn pull(transfer: &Transfer, url: &str, blob: &Blob, dest: &Path) -> Result<(), TransferError> {
    transfer.pull(url, blob, dest, Form::Plain, &silent).await
}

/// Everything in the bench's directory.
fn files(bench: &Bench) -> Vec<PathBuf> {
    fs::read_dir(bench.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// What a pull of `bytes` to `dest` leaves that stalls after the first byte.
async fn leave_a_part(bench: &Bench, bytes: &[u8], dest: &Path) -> PathBuf {
    let server = hanging(bytes);
    let error = pull(&bench.transfer, &server.url, &blob_of(bytes), dest).await.unwrap_err();
    assert_eq!(error.kind(), "stalled", "{error}");
    files(bench).into_iter().find(|path| path.extension().is_some_and(|ending| ending == "part")).unwrap()
}

/// Sends the first byte and no more.
fn hanging(bytes: &[u8]) -> Server {
    let mut script = vec![Act::Hang(beginning("200 OK", bytes.len(), &bytes[..1]))];
    let range = format!("206 Partial Content\r\nContent-Range: bytes 1-{}/{}", bytes.len() - 1, bytes.len());
    script.extend((0..20).map(|_| Act::Hang(beginning(&range, bytes.len() - 1, b""))));
    Server::play(script)
}

/// Waits until somebody waits for the lock of `file`; the kernel tells nobody of that.
async fn waited_for(file: &File) {
    let inode = format!(":{} ", file.metadata().unwrap().ino());
    let waits = |line: &str| line.contains("->") && line.contains(&inode);
    let waiting = async {
        while !fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("somebody waits for the lock");
}

#[tokio::test]
async fn files_with_the_endings_of_unfinished_ones_lie_beside_each_other() {
    let bench = Bench::new();
    for name in ["x.part", "x.chunks", "x.plain", "x.part.part", "x"] {
        let server = Server::always(move || answer("200 OK", name.as_bytes()));
        pull(&bench.transfer, &server.url, &blob_of(name.as_bytes()), &bench.path(name)).await.unwrap();
    }
    for name in ["x", "x.part", "x.chunks", "x.plain", "x.part.part"] {
        assert_eq!(fs::read(bench.path(name)).unwrap(), name.as_bytes());
    }
    assert_eq!(files(&bench).len(), 5);
}

#[tokio::test]
async fn the_longest_names_can_be_had() {
    let bench = Bench::new();
    let server = Server::always(|| answer("200 OK", b"bytes"));
    for name in ["x".repeat(255), "ü".repeat(127), "x".repeat(249)] {
        pull(&bench.transfer, &server.url, &blob_of(b"bytes"), &bench.path(&name)).await.unwrap();
        assert_eq!(fs::read(bench.path(&name)).unwrap(), b"bytes");
    }
    assert_eq!(files(&bench).len(), 3);
}

#[tokio::test]
async fn a_link_where_bytes_shall_land_is_not_followed() {
    for ending in ["part", "chunks"] {
        let bench = Bench::new();
        let (bytes, dest, victim) = (b"0123456789", bench.path("dest"), bench.path("victim"));
        let planted = leave_a_part(&bench, bytes, &dest).await.with_extension(ending);
        fs::remove_file(&planted).unwrap();
        fs::write(&victim, b"of somebody else").unwrap();
        std::os::unix::fs::symlink(&victim, &planted).unwrap();
        let server = Server::always(|| answer("200 OK", bytes));
        // The link is in nobody's way either: the name is ours.
        pull(&bench.transfer, &server.url, &blob_of(bytes), &dest).await.unwrap();
        assert_eq!(fs::read(&dest).unwrap(), bytes);
        assert_eq!(fs::read(&victim).unwrap(), b"of somebody else", "{ending}");
    }
}

#[tokio::test]
async fn whoever_waited_for_another_pull_leaves_its_file_alone() {
    let bench = Bench::new();
    let (first, second, dest) = (b"the first file", b"another file!!", bench.path("dest"));
    let part = leave_a_part(&bench, first, &dest).await;
    // As a pull of another process does it: it holds the lock, writes, and gives the file its name.
    let winner = OpenOptions::new().write(true).open(&part).unwrap();
    winner.lock().unwrap();
    let (server, transfer, to) = (hanging(second), bench.transfer.clone(), dest.clone());
    let url = server.url.clone();
    let mut loser = JoinSet::new();
    loser.spawn(async move { pull(&transfer, &url, &blob_of(second), &to).await });
    waited_for(&winner).await;
    fs::write(&part, first).unwrap();
    fs::rename(&part, &dest).unwrap();
    drop(winner);
    // It never gets all of its bytes.
    assert_eq!(loser.join_next().await.unwrap().unwrap().unwrap_err().kind(), "stalled");
    assert_eq!(fs::read(&dest).unwrap(), first, "a finished file was written to");
}

#[tokio::test]
async fn whoever_waited_for_the_same_file_has_it() {
    let bench = Bench::new();
    let (bytes, dest) = (b"the file", bench.path("dest"));
    let lines = Lines::default();
    let written = lines.clone();
    // Of the whole process: it is told on a thread of the runtime's.
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || written.clone()).init();
    let part = leave_a_part(&bench, bytes, &dest).await;
    let winner = OpenOptions::new().write(true).open(&part).unwrap();
    winner.lock().unwrap();
    let (server, transfer, to) = (Server::play(Vec::new()), bench.transfer.clone(), dest.clone());
    let url = server.url.clone();
    let mut loser = JoinSet::new();
    loser.spawn(async move { pull(&transfer, &url, &blob_of(bytes), &to).await });
    waited_for(&winner).await;
    fs::write(&part, bytes).unwrap();
    fs::remove_file(part.with_extension("chunks")).unwrap();
    fs::rename(&part, &dest).unwrap();
    drop(winner);
    loser.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(server.requests(), [""; 0], "there was nothing to fetch");
    assert_eq!(files(&bench), std::slice::from_ref(&dest));
    let told = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let waiting = format!("waiting for them to end path={}", dest.display());
    assert_eq!(told.matches(&waiting).count(), 1, "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_of_one_file_all_succeed() {
    let bytes = b"0123456789".repeat(10_000);
    for _ in 0..20 {
        let bench = Bench::new();
        let body = bytes.clone();
        let server = Server::always(move || answer("200 OK", &body));
        let mut pulls = JoinSet::new();
        for _ in 0..4 {
            let (transfer, url, blob, dest) =
                (bench.transfer.clone(), server.url.clone(), blob_of(&bytes), bench.path("dest"));
            pulls.spawn(async move { pull(&transfer, &url, &blob, &dest).await });
        }
        while let Some(pulled) = pulls.join_next().await {
            pulled.unwrap().unwrap();
        }
        assert!(fs::read(bench.path("dest")).unwrap() == bytes);
        assert_eq!(files(&bench), [bench.path("dest")]);
    }
}

#[tokio::test]
async fn what_landed_of_another_file_of_the_same_length_does_not_count() {
    let bench = Bench::new();
    let (first, second, dest) = (b"0123456789", b"\0\0\0\0\0\0\0\0\0\0", bench.path("dest"));
    leave_a_part(&bench, first, &dest).await;
    // Once only: a second try would hide what is wrong with the first.
    let server = Server::play(vec![answer("200 OK", second)]);
    pull(&bench.transfer, &server.url, &blob_of(second), &dest).await.unwrap();
    assert_eq!(fs::read(&dest).unwrap(), second);
}
