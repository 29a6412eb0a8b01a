//! Bytes through a bad network: everything arrives, and nothing that is damaged is ever seen.

use super::fixture::{Backend, Fixture, LEASE, Urls, blob_of, noise};
use super::proxy::{Fault, Proxy};
use railyard_common::backoff::Backoff;
use railyard_common::blob::{Blob, Encoding};
use railyard_common::digest::Digest;
use railyard_common::layout;
use railyard_controller::cache::{CacheError, Grant, Uploader};
use railyard_service::tls::client_config;
use railyard_transfer::{Form, PartLog, Settings, Ticket, Transfer, compress_zstd, silent};
use std::collections::HashSet;
use std::io::Read as _;
use std::mem::Discriminant;
use std::path::PathBuf;
use std::time::Duration;

const MIB: usize = 1024 * 1024;

/// Rounds at least, and at most.
const ROUNDS: u32 = 3;
const ROUNDS_MAX: u32 = 20;
/// Kinds of faults that must have been among them.
const KINDS: usize = 6;

/// What is sent in each round.
struct Load {
    blob: Blob,
    /// The stored bytes.
    file: PathBuf,
    plain: Vec<u8>,
}

async fn loads(fixture: &Fixture, seed: u64) -> Vec<Load> {
    let mut loads = Vec::new();
    for (n, length) in [1, 100_000, 17 * MIB, 40 * MIB].into_iter().enumerate() {
        let plain = noise(length, seed * 100 + n as u64);
        let file = fixture.file(&format!("plain-{n}"), &plain);
        loads.push(Load { blob: blob_of(&plain), file, plain });
    }
    let text: Vec<u8> =
        noise(2 * MIB, seed).iter().flat_map(|byte| [*byte, 0, *byte, 1]).cycle().take(40 * MIB).collect();
    let packed = fixture.dir.path().join("packed");
    let blob = compress_zstd(&fixture.file("text", &text), &packed, 1).await.unwrap();
    loads.push(Load { blob, file: packed, plain: text });
    loads
}

/// A worker's way to the store, through the proxy.
fn through(proxy: &Proxy, fixture: &Fixture) -> Transfer {
    let client = reqwest::Client::builder().http1_only().proxy(reqwest::Proxy::all(&proxy.url).unwrap());
    // A connection for each request, so that each has its own bad luck.
    let mut client = client.pool_max_idle_per_host(0);
    if let Some(authority) = &fixture.authority {
        client = client.tls_backend_preconfigured(client_config(authority.ca_pem(), None).unwrap());
    }
    let settings = Settings {
        stall_timeout: Duration::from_millis(700),
        progress_deadline: Duration::from_secs(60),
        backoff: Backoff { base_millis: 5, max_millis: 50 },
        ..Settings::default()
    };
    Transfer::new(client.build().unwrap(), settings)
}

/// Sends one load until the cache has it, as a worker does.
async fn deliver(fixture: &Fixture, transfer: &Transfer, load: &Load) {
    let Load { blob, file, .. } = load;
    for _ in 0..20 {
        let begun = match fixture.cache.begin_upload(Uploader::trusted(LEASE), blob).await.unwrap() {
            Grant::Present(_) => return,
            Grant::Send(begun) => begun,
        };
        let urls: Urls<'_> = fixture.urls(LEASE, blob, &begun.upload_id);
        let (part_bytes, checksum) = (begun.part_bytes, begun.checksum);
        let ticket = Ticket { upload_id: begun.upload_id.clone(), part_bytes, checksum };
        let sent = transfer.push(file, blob, &ticket, &urls, &PartLog::unkept(), &silent).await.unwrap();
        match fixture.complete(blob, &sent.upload_id, &sent.etags).await {
            Ok(()) => return,
            Err(CacheError::Corrupt { .. } | CacheError::Incomplete { .. }) => {
                assert_eq!(fixture.cache.find(&blob.digest).await.unwrap(), None);
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("{} could not be delivered", blob.digest);
}

/// What the store has under the blob's name is the blob.
fn is_whole(fixture: &Fixture, blob: &Blob) {
    let root = fixture.dir.path().join("cache");
    let root = if fixture.backend == Backend::S3 { root.join("farm") } else { root };
    let stored = std::fs::read(root.join(layout::blob(blob).as_str())).unwrap();
    let mut plain = Vec::new();
    match blob.encoding {
        Encoding::Identity => plain = stored,
        Encoding::Zstd => drop(zstd::Decoder::new(&stored[..]).unwrap().read_to_end(&mut plain).unwrap()),
    }
    assert_eq!(Digest::of(&plain), blob.digest, "something damaged can be seen");
}

/// Rounds of other faults, until most kinds of them were there: what goes wrong in one round is a matter of luck.
async fn rounds<F: Future<Output = Fixture>>(open: impl Fn() -> F) {
    let mut kinds = HashSet::new();
    for number in 1.. {
        kinds.extend(there_and_back(open().await).await);
        if number >= ROUNDS && kinds.len() >= KINDS {
            return;
        }
        assert!(number < ROUNDS_MAX, "only {} kinds of faults in {number} rounds", kinds.len());
    }
}

/// Gives the kinds of what went wrong.
async fn there_and_back(fixture: Fixture) -> HashSet<Discriminant<Fault>> {
    let seed = fastrand::u64(1..1 << 32);
    println!("seed {seed}");
    let proxy = Proxy::start(seed);
    let transfer = through(&proxy, &fixture);
    let loads = loads(&fixture, seed).await;
    let delivering: Vec<_> = loads.iter().map(|load| deliver(&fixture, &transfer, load)).collect();
    futures_util::future::join_all(delivering).await;
    for Load { blob, plain, .. } in &loads {
        let found = fixture.cache.find(&blob.digest).await.unwrap().unwrap();
        is_whole(&fixture, &found);
        let url = fixture.signed(&layout::blob(&found)).await;
        for form in [Form::Plain, Form::Stored] {
            let dest = fixture.dir.path().join(format!("back-{form:?}"));
            // A damaged file is fetched once more by itself; a network that damages it twice is another matter.
            let mut tries = 0;
            while let Err(error) = transfer.pull(&url, &found, &dest, form, &silent).await {
                assert!(!dest.exists(), "{error}, and yet it appeared");
                tries += 1;
                assert!(tries < 20, "seed {seed}: {error}");
            }
            let bytes = std::fs::read(&dest).unwrap();
            let is_packed = form == Form::Stored && found.encoding == Encoding::Zstd;
            let right = if is_packed { zstd::decode_all(&bytes[..]).unwrap() == *plain } else { bytes == *plain };
            assert!(right, "seed {seed}: {} came back changed", blob.digest);
            std::fs::remove_file(dest).unwrap();
        }
    }
    assert_eq!(fixture.cache.uploading().await.unwrap(), []);
    proxy.kinds()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_plain_http_into_the_embedded_cache() {
    rounds(Fixture::embedded_plain).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_into_the_embedded_cache() {
    rounds(|| Fixture::open(Backend::Embedded)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn into_s3() {
    rounds(|| Fixture::open(Backend::S3)).await;
}
