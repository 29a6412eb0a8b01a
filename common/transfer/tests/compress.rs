//! Compressed files, read by the tools that everybody has: `xz`, `gzip`, `bzip2` and `zstd` must be installed.

use proptest::prelude::*;
use railyard_common::compress::{Codec, Packing};
use railyard_common::digest::Digest;
use railyard_transfer::{Memory, Press, Pressed, Sum, TransferError, Want, pays};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tempfile::TempDir;

/// What a step may leave.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Zeros,
    Text,
    Noise,
    /// By turns, in stretches that no block fits.
    Mixed,
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x.to_le_bytes()
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(&mut next).take(length.div_ceil(8)).flatten().collect();
    bytes.truncate(length);
    bytes
}

fn content(kind: Kind, seed: u64, length: usize) -> Vec<u8> {
    match kind {
        Kind::Zeros => vec![0; length],
        Kind::Noise => noise(seed, length),
        Kind::Text => {
            let words: Vec<String> = noise(seed, 4096).chunks(3).map(hex::encode).collect();
            let picks = noise(seed + 1, length / 6 + 1);
            let mut text: Vec<u8> =
                picks.iter().flat_map(|pick| format!("{} ", words[usize::from(*pick)]).into_bytes()).collect();
            text.resize(length, b'x');
            text
        }
        Kind::Mixed => {
            let mut bytes = Vec::with_capacity(length);
            for (n, kind) in [Kind::Text, Kind::Noise, Kind::Zeros].into_iter().cycle().enumerate() {
                if bytes.len() >= length {
                    break;
                }
                bytes.extend(content(kind, seed + n as u64, 77_777));
            }
            bytes.truncate(length);
            bytes
        }
    }
}

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn with(content: &[u8]) -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(bench.plain(), content).unwrap();
        bench
    }

    fn plain(&self) -> PathBuf {
        self.dir.path().join("plain")
    }

    fn packed(&self, codec: Codec) -> PathBuf {
        self.dir.path().join(format!("packed{}", codec.suffix()))
    }

    async fn press(&self, packing: Packing, threads: usize) -> (Pressed, Vec<u8>) {
        let press = Press::with_threads(Memory::new(1 << 30), threads);
        let packed = self.packed(packing.codec);
        let pressed = press.compress(&self.plain(), &packed, packing, Want::Both, |_| {}).await.unwrap();
        (pressed, fs::read(packed).unwrap())
    }
}

/// What the codec's own tool says.
fn tool(codec: Codec, args: &[&str], file: &Path) -> Vec<u8> {
    let done = Command::new(codec.as_str()).args(args).arg(file).output().unwrap();
    assert!(done.status.success(), "{codec} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    done.stdout
}

fn sum(bytes: &[u8]) -> Sum {
    Sum { digest: Some(Digest::of(bytes)), bytes: bytes.len() as u64 }
}

async fn roundtrip(packing: Packing, plain: &[u8]) {
    let bench = Bench::with(plain);
    let (pressed, one) = bench.press(packing, 1).await;
    assert_eq!((pressed.plain, pressed.packed), (sum(plain), sum(&one)));
    let file = bench.packed(packing.codec);
    tool(packing.codec, &["-t"], &file);
    assert!(tool(packing.codec, &["-d", "-c"], &file) == plain, "{packing}, {} bytes", plain.len());
    let (_, three) = bench.press(packing, 3).await;
    assert!(one == three, "{packing}, {} bytes: the number of threads shows", plain.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tools_read_every_codec_at_every_level() {
    let plain = content(Kind::Mixed, 7, 2_500_001);
    for codec in Codec::ALL {
        for level in codec.levels() {
            roundtrip(Packing { codec, level }, &plain).await;
        }
    }
}

/// A length near a border of one of the codecs' blocks, at the fastest level.
fn length() -> impl Strategy<Value = usize> {
    let blocks = [512 << 10, 1 << 20, 2 << 20, 2 * (100_000 - 20), 100_000, 32 << 10];
    let near = (prop::sample::select(blocks.to_vec()), 0..4usize, -2..=2isize)
        .prop_map(|(block, n, off)| (block * n).saturating_add_signed(off));
    prop_oneof![3 => near, 1 => 0..3_000_000usize]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn files_of_any_length_come_back(
        codec in prop::sample::select(Codec::ALL.to_vec()),
        kind in prop::sample::select(vec![Kind::Zeros, Kind::Text, Kind::Noise, Kind::Mixed]),
        length in length(),
        seed in 1..1_000_000u64,
    ) {
        let level = *codec.levels().start();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(roundtrip(Packing { codec, level }, &content(kind, seed, length)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_cut_into_blocks_and_say_their_size() {
    let plain = content(Kind::Text, 3, 40 << 20);
    let bench = Bench::with(&plain);
    for (codec, level) in [(Codec::Xz, 1), (Codec::Gzip, 1), (Codec::Zstd, 1)] {
        let (_, packed) = bench.press(Packing { codec, level }, 2).await;
        let listed = String::from_utf8(tool(codec, &["-l"], &bench.packed(codec))).unwrap();
        match codec {
            // Streams and blocks stand first on the last line.
            Codec::Xz => assert_eq!(listed.lines().last().unwrap().split_whitespace().nth(1), Some("40"), "{listed}"),
            Codec::Gzip => {
                assert!(
                    listed.contains(&plain.len().to_string()) && listed.contains(&packed.len().to_string()),
                    "{listed}"
                );
            }
            _ => assert!(listed.contains("40.0 MiB"), "{listed}"),
        }
    }
}

/// Disk images often are: then zstd's last job is full, and whether an empty one follows must not be a matter of luck.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_whole_jobs_long_are_always_the_same_bytes() {
    for (level, mib) in [(1, 2), (1, 8), (3, 4), (3, 16), (6, 16)] {
        let bench = Bench::with(&noise(level, mib << 20));
        let packing = Packing { codec: Codec::Zstd, level: level as u8 };
        let (_, first) = bench.press(packing, 1).await;
        for threads in [1, 2, 3, 4] {
            let (_, packed) = bench.press(packing, threads).await;
            assert!(packed == first, "{mib} MiB, level {level}, {threads} threads");
            // In front of the checksum: a last block without bytes.
            assert!(!packed[..packed.len() - 4].ends_with(&[1, 0, 0]), "{mib} MiB, level {level}, {threads} threads");
        }
        assert!(tool(Codec::Zstd, &["-d", "-c"], &bench.packed(Codec::Zstd)) == fs::read(bench.plain()).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_packing_is_as_good_as_the_tool_s_own() {
    let bench = Bench::with(&content(Kind::Mixed, 5, 12 << 20));
    for codec in Codec::ALL {
        let packing = Packing { codec, level: codec.default_level() };
        let (pressed, _) = bench.press(packing, 2).await;
        let theirs = tool(codec, &["-c", "-k", &format!("-{}", packing.level)], &bench.plain()).len() as u64;
        let percent = pressed.packed.bytes * 100 / theirs;
        assert!(percent <= 103, "{codec}: {} bytes against {theirs}", pressed.packed.bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_wanted_digests_are_taken_and_progress_is_told() {
    let bench = Bench::with(&content(Kind::Text, 9, 3 << 20));
    let packing = Packing { codec: Codec::Gzip, level: 1 };
    let told = Arc::new(AtomicU64::new(0));
    let seen = told.clone();
    let progress = move |bytes| seen.store(bytes, Ordering::Relaxed);
    let press = Press::new(Memory::default());
    let packed = bench.packed(Codec::Gzip);
    let pressed = press.compress(&bench.plain(), &packed, packing, Want::Nothing, progress).await.unwrap();
    assert_eq!((pressed.plain.digest, pressed.packed.digest), (None, None));
    assert_eq!(told.load(Ordering::Relaxed), 3 << 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_told_and_leaves_nothing() {
    let bench = Bench::with(&content(Kind::Noise, 11, 5 << 20));
    let press = Press::new(Memory::default());
    for codec in Codec::ALL {
        let packing = Packing { codec, level: 1 };
        let packed = bench.packed(codec);
        let full = press.compress(&bench.plain(), Path::new("/dev/full"), packing, Want::Both, |_| {}).await;
        assert!(matches!(&full, Err(TransferError::DiskFull { .. })), "{codec}: {full:?}");
        assert!(Path::new("/dev/full").exists(), "a device is nobody's to remove");
        let none = press.compress(&bench.dir.path().join("none"), &packed, packing, Want::Both, |_| {}).await;
        assert!(matches!(&none, Err(TransferError::NotFound { .. })), "{codec}: {none:?}");
        // It grows, or shrinks, while it is read.
        for (change, by) in [("grow", 100_000i64), ("shrink", -100_000)] {
            let (plain, once) = (bench.plain(), std::sync::Once::new());
            let before = fs::metadata(&plain).unwrap().len();
            let file = fs::OpenOptions::new().write(true).open(&plain).unwrap();
            let changing = move |_| once.call_once(|| file.set_len(before.strict_add_signed(by)).unwrap());
            let changed = press.compress(&plain, &packed, packing, Want::Both, changing).await;
            assert!(matches!(&changed, Err(TransferError::Changed { .. })), "{codec} {change}: {changed:?}");
            assert!(!packed.exists(), "{codec} {change}: something half written is left");
            fs::OpenOptions::new().write(true).open(&plain).unwrap().set_len(before).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn work_that_nobody_waits_for_stops_and_gives_its_memory_back() {
    let bench = Bench::with(&vec![0; 1 << 20]);
    // More than could be read in a day: only giving up ends it.
    fs::OpenOptions::new().write(true).open(bench.plain()).unwrap().set_len(1 << 42).unwrap();
    let memory = Memory::default();
    let press = Press::new(memory.clone());
    for codec in Codec::ALL {
        let packing = Packing { codec, level: 1 };
        let (begun, has_begun) = tokio::sync::oneshot::channel();
        let begun = std::sync::Mutex::new(Some(begun));
        let progress = move |_| {
            if let Some(begun) = begun.lock().unwrap().take() {
                begun.send(()).unwrap();
            }
        };
        let (plain, packed) = (bench.plain(), bench.packed(codec));
        tokio::select! {
            biased;
            done = press.compress(&plain, &packed, packing, Want::Both, progress) => panic!("{codec}: {done:?}"),
            begun = has_begun => begun.unwrap(),
        }
        drop(memory.take(memory.total_bytes()).await);
        assert!(!packed.exists(), "{codec}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_fit_the_memory_and_those_who_do_not_fit_wait() {
    let bench = Bench::with(&content(Kind::Zeros, 13, 30 << 20));
    let xz = Packing { codec: Codec::Xz, level: 6 };
    for (mebibytes, threads) in [(32, 1), (140, 1), (256, 2)] {
        let press = Press::with_threads(Memory::new(mebibytes << 20), 64);
        let pressed =
            press.compress(&bench.plain(), &bench.packed(Codec::Xz), xz, Want::Nothing, |_| {}).await.unwrap();
        assert_eq!(pressed.threads, threads, "{mebibytes} MiB");
    }
    // Everything at once: each takes its share in turn, and none is stuck.
    let press = Press::with_threads(Memory::new(64 << 20), 4);
    let all = Codec::ALL.into_iter().flat_map(|codec| [1, 2].map(|level| Packing { codec, level }));
    let mut running = tokio::task::JoinSet::new();
    for (n, packing) in all.enumerate() {
        let (press, plain, packed) = (press.clone(), bench.plain(), bench.dir.path().join(n.to_string()));
        running.spawn(async move { press.compress(&plain, &packed, packing, Want::Nothing, |_| {}).await });
    }
    while let Some(done) = running.join_next().await {
        done.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_compression_and_those_who_wait_for_it_leave_room_for_transfers() {
    let bench = Bench::with(&content(Kind::Zeros, 17, 30 << 20));
    let memory = Memory::default();
    let press = Press::with_threads(memory.clone(), 2);
    // It would take more than there is, and so it has all that it may have.
    let packing = Packing { codec: Codec::Xz, level: 9 };
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (go, word) = std::sync::mpsc::channel::<()>();
    let begun = std::sync::Mutex::new(Some(begun));
    let word = std::sync::Mutex::new(word);
    let progress = move |_| {
        if let Some(begun) = begun.lock().unwrap().take() {
            begun.send(()).unwrap();
            // Goes on when the sender is dropped.
            let _ = word.lock().unwrap().recv();
        }
    };
    let (first, second) = (bench.dir.path().join("1"), bench.dir.path().join("2"));
    let plain = bench.plain();
    let mut one = std::pin::pin!(press.compress(&plain, &first, packing, Want::Nothing, progress));
    tokio::select! {
        done = &mut one => panic!("{done:?}"),
        begun = has_begun => begun.unwrap(),
    }
    let mut two = std::pin::pin!(press.compress(&plain, &second, packing, Want::Nothing, |_| {}));
    let stream = memory.take(16 << 20);
    tokio::select! {
        biased;
        done = &mut two => panic!("{done:?}"),
        _held = stream => {}
    }
    drop(go);
    let (one, two) = tokio::join!(one, two);
    assert_eq!((one.unwrap().threads, two.unwrap().threads), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_looks_beyond_a_file_s_head() {
    let mebi = 1 << 20;
    let verdict = |bytes: Vec<u8>| async move { pays(&Bench::with(&bytes).plain()).await.unwrap() };
    assert!(verdict(content(Kind::Text, 1, 3 * mebi)).await);
    assert!(verdict(content(Kind::Zeros, 1, 3 * mebi)).await);
    assert!(!verdict(content(Kind::Noise, 1, 3 * mebi)).await);
    assert!(!verdict(content(Kind::Text, 1, 100_000)).await, "too small to matter");
    let mut head = content(Kind::Zeros, 1, mebi);
    head.extend(content(Kind::Noise, 1, 63 * mebi));
    assert!(!verdict(head.clone()).await, "only its head is compressible");
    head.reverse();
    assert!(!verdict(head).await, "only its end is compressible");
    let mut head = content(Kind::Noise, 1, mebi);
    head.extend(content(Kind::Text, 1, 31 * mebi));
    assert!(verdict(head).await, "only its head is not");
    // A disk image with more holes than anything else.
    let bench = Bench::with(&content(Kind::Noise, 1, 4096));
    let file = fs::OpenOptions::new().write(true).open(bench.plain()).unwrap();
    file.write_all_at(b"end", (6 << 30) - 3).unwrap();
    (&file).flush().unwrap();
    assert!(pays(&bench.plain()).await.unwrap());
}
