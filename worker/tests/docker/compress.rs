//! Outputs that are compressed: what the job's artifacts are then, and what the tools say of them.

use crate::engine::base_image;
use crate::farm::{Ended, Farm};
use crate::faults::Small;
use crate::order::{order, output};
use railyard_common::blob::{Artifact, Encoding};
use railyard_common::compress::Codec;
use railyard_common::job::OutputSpec;
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_service::convert::FromProto as _;
use std::process::Command;
use std::sync::Arc;

fn compressed(glob: &str, compress: &str) -> OutputSpec {
    OutputSpec { compress: compress.parse().unwrap(), ..output(glob) }
}

fn artifacts(ended: &Ended) -> Vec<Artifact> {
    ended.expect_success();
    ended.report.artifacts.iter().map(|one| Artifact::from_proto(one.clone()).unwrap()).collect()
}

/// A script that writes 3 MiB that compress and 3 MiB that do not.
const SCRIPT: &str = "mkdir out; seq 500000 | head -c 3145728 >out/disk.raw; head -c 3145728 /dev/urandom >out/noise";

#[tokio::test(flavor = "multi_thread")]
async fn every_codec_makes_an_artifact_that_its_tool_reads() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let mut order = order(1, &base_image().await, SCRIPT);
    let run = Arc::make_mut(&mut order.run);
    run.outputs = ["none", "zstd:19", "xz:6", "gzip:9", "bzip2:1"].map(|way| compressed("out/disk.raw", way)).to_vec();
    run.outputs[2].publish = Some("images/x".parse().unwrap());
    let ended = farm.run(&order).await;
    let made = artifacts(&ended);
    let told: Vec<_> = made.iter().map(|one| (one.path.as_str(), one.media_type.as_str())).collect();
    let want = [
        ("out/disk.raw", "application/octet-stream"),
        ("out/disk.raw.bz2", "application/x-bzip2"),
        ("out/disk.raw.gz", "application/gzip"),
        ("out/disk.raw.xz", "application/x-xz"),
        ("out/disk.raw.zst", "application/zstd"),
    ];
    assert_eq!(told, want);
    assert_eq!(made[3].published.as_ref().unwrap().as_str(), "images/x/disk.raw.xz");
    assert!(made.iter().filter(|one| one.published.is_some()).count() == 1);
    let bytes = |one: &Artifact| farm.service.books().plain(one.blob.digest);
    let plain = bytes(&made[0]);
    let dir = tempfile::tempdir().unwrap();
    for codec in Codec::ALL {
        let one = made.iter().find(|one| one.path.as_str().ends_with(codec.suffix())).unwrap();
        assert_eq!(one.blob.encoding, Encoding::Identity, "{codec}: stored as it is");
        let file = dir.path().join(format!("file{}", codec.suffix()));
        std::fs::write(&file, bytes(one)).unwrap();
        assert!(one.blob.size_bytes < 1 << 20 && one.blob.size_bytes == file.metadata().unwrap().len());
        let read = Command::new(codec.as_str()).args(["-d", "-c"]).arg(&file).output().unwrap();
        assert!(read.status.success() && read.stdout == plain, "{codec}");
        let note = format!("compressed out/disk.raw with {codec} ");
        assert!(ended.log.contains(&note) && ended.log.contains("3.0 MiB to "), "{}", ended.log);
    }
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stays_in_the_farm_is_sent_small_where_that_pays_and_not_packed_twice() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let script =
        format!("{SCRIPT}; cp out/disk.raw shown; echo x >>shown; cp out/disk.raw kept; echo y >>kept; echo >small");
    let mut job = order(1, &base_image().await, &script);
    let run = Arc::make_mut(&mut job.run);
    run.outputs = vec![output("out/*"), output("shown"), compressed("kept", "none"), output("small")];
    run.outputs[1].publish = Some("images".parse().unwrap());
    let ended = farm.run(&job).await;
    let made = artifacts(&ended);
    let blob = |name: &str| made.iter().find(|one| one.path.as_str() == name).unwrap().blob;
    let packed = blob("out/disk.raw");
    assert_eq!((packed.encoding, packed.size_bytes), (Encoding::Zstd, 3 << 20));
    assert!(packed.stored_bytes < packed.size_bytes / 2, "{}", packed.stored_bytes);
    for plain in ["out/noise", "shown", "kept", "small"] {
        assert_eq!(blob(plain).encoding, Encoding::Identity, "{plain}");
    }
    assert!(farm.service.books().plain(packed.digest).starts_with(b"1\n2\n3\n"));
    // The next job leaves the same: nothing is sent, and nothing is packed again.
    let sent = farm.service.books().sent.len();
    let mut again = order(2, &base_image().await, "seq 500000 | head -c 3145728 >same");
    Arc::make_mut(&mut again.run).outputs = vec![output("same")];
    let ended = farm.run(&again).await;
    assert_eq!(artifacts(&ended)[0].blob, packed);
    assert_eq!(farm.service.books().sent.len(), sent);
    assert!(ended.log.contains("saved 1 file, 3.0 MiB (0 B of them sent)"), "{}", ended.log);
    // And whoever takes it in sees the plain file.
    let mut reader =
        order(3, &base_image().await, "cmp /inputs/disk.raw /inputs/disk.raw && tail -c 7 /inputs/disk.raw");
    reader.inputs = vec![railyard_common::order::InputArtifact {
        mount_path: "/inputs/disk.raw".into(),
        artifact: made.iter().find(|one| one.path.as_str() == "out/disk.raw").unwrap().clone(),
    }];
    let ended = farm.run(&reader).await;
    ended.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn big_files_are_packed_while_they_are_hashed_unless_the_cache_has_them() {
    const BYTES: u64 = 40 << 20;
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let script = format!("yes 'the same line again' | head -c {BYTES} >big; tr a-z A-Z <big >other; cp other kept");
    let mut job = order(1, &base_image().await, &script);
    Arc::make_mut(&mut job.run).outputs = vec![output("big"), output("other"), compressed("kept", "none")];
    let made = artifacts(&farm.run(&job).await);
    let [big, kept, other] = &made[..] else { panic!("{made:?}") };
    assert_eq!((big.blob.encoding, big.blob.size_bytes), (Encoding::Zstd, BYTES));
    assert!(big.blob.stored_bytes < BYTES / 50, "{big:?}");
    assert!(farm.service.books().plain(big.blob.digest).ends_with(b"the same line again\n"));
    assert_eq!(other.blob, kept.blob, "what is also wanted as it is, is stored once");
    assert_eq!((kept.blob.encoding, kept.blob.stored_bytes), (Encoding::Identity, BYTES));
    // The next job leaves the same: nothing is sent.
    let sent = farm.service.books().sent.len();
    let mut again = order(2, &base_image().await, &script);
    Arc::make_mut(&mut again.run).outputs = vec![output("big"), output("other")];
    let ended = farm.run(&again).await;
    assert_eq!(artifacts(&ended).iter().map(|one| one.blob).collect::<Vec<_>>(), [big.blob, other.blob]);
    assert_eq!(farm.service.books().sent.len(), sent);
    assert!(ended.log.contains("saved 2 files, 80.0 MiB (0 B of them sent)"), "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

/// Big files are packed while they are hashed, others later: both once, and both only where they fit.
#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_room_to_be_packed_is_sent_as_it_is_and_that_is_said_once() {
    for mib in [20, 40] {
        let farm = Farm::start().await;
        let _small = Small::mount(&farm.data_dir(), &format!("{}m", mib + 8));
        let worker = farm.worker().await;
        let bytes = mib << 20;
        let mut job =
            order(1, &base_image().await, &format!("head -c {bytes} /dev/urandom | base64 | head -c {bytes} >big"));
        Arc::make_mut(&mut job.run).outputs = vec![output("big")];
        let ended = farm.run(&job).await;
        let made = artifacts(&ended);
        assert_eq!((made[0].blob.encoding, made[0].blob.stored_bytes), (Encoding::Identity, bytes));
        assert_eq!(ended.log.matches("no room to compress big; it is sent as it is").count(), 1, "{}", ended.log);
        worker.stop().await;
        farm.assert_no_leftovers().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_files_that_would_be_one_artifact_are_named() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let mut order = order(1, &base_image().await, "echo a >a; echo b >a.xz");
    Arc::make_mut(&mut order.run).outputs = vec![output("*.xz"), compressed("a", "xz:6")];
    let ended = farm.run(&order).await;
    ended.expect(OutcomeKind::Failed, Reason::OutputBad, "`a.xz` would become the artifact a.xz, too");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}
