//! A worker's disks: what is on them is told by kind, what is too much goes, and what others have there stays.

use crate::engine::{self, base_image, busybox_root, client, native};
use crate::farm::Farm;
use crate::order::{lease, order};
use bollard::models::{ContainerCreateBody, NetworkCreateRequest, VolumeCreateRequest};
use bollard::query_parameters as query;
use bytesize::ByteSize;
use railyard_common::blob::{Artifact, Blob};
use railyard_common::digest::Digest;
use railyard_common::disk::{DiskReport, FileSystem, Kind, Role};
use railyard_common::order::{InputArtifact, Order};
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_service::convert::FromProto as _;
use railyard_worker::WorkerConfig;
use railyard_worker::image_move::archive::{self, Content, Layer, LayerTar};
use railyard_worker::image_move::config;
use railyard_worker::image_move::root::Packing;
use railyard_worker::runtime::{ImageName, Runtime as _, labels};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

const MIB: u64 = 1 << 20;

/// A small ext4 file system in a file, gone with the value.
struct Loop {
    at: PathBuf,
    _image: tempfile::NamedTempFile,
}

impl Loop {
    fn mount(at: &Path, bytes: u64) -> Self {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(bytes).unwrap();
        std::fs::create_dir_all(at).unwrap();
        let run = |command: &mut Command| {
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{command:?}: {said}; this test needs root, loop devices and mkfs.ext4");
        };
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image.path()));
        run(Command::new("mount").args(["-o", "loop"]).arg(image.path()).arg(at));
        Self { at: at.to_owned(), _image: image }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A panic is on its way if that fails; it has the better story.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

impl Farm {
    /// A blob in the cache that does not compress, as an input at that path.
    fn input(&self, seed: u8, bytes: u64) -> InputArtifact {
        let mut state = u64::from(seed) + 1;
        let content: Vec<u8> = (0..bytes)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect();
        let blob = self.service.change(|books| books.add(&content));
        let artifact = Artifact { path: "in".parse().unwrap(), blob, media_type: String::new(), published: None };
        InputArtifact { mount_path: "/inputs/in".into(), artifact }
    }

    fn kept(&self, input: &InputArtifact) -> PathBuf {
        let Blob { digest, .. } = input.artifact.blob;
        self.data_dir().join("blobs").join(digest.hex())
    }

    /// Waits until the worker says that of its disks.
    async fn disks(&self, what: &str, seen: impl Fn(&DiskReport) -> bool) -> DiskReport {
        let found = |disk: &railyard_proto::v1::DiskReport| {
            Some(DiskReport::from_proto(disk.clone()).unwrap()).filter(|report| seen(report))
        };
        self.until(what, |books| books.disk.as_ref().and_then(found)).await
    }
}

fn bytes_of(report: &DiskReport, kind: Kind) -> u64 {
    report.uses.iter().find(|used| used.kind == kind).map_or(0, |used| used.bytes)
}

fn data(report: &DiskReport) -> &FileSystem {
    report.file_systems.iter().find(|found| found.role == Role::Data).expect("a worker has a directory")
}

fn taking(input: &InputArtifact, job: u64, image: &str, script: &str) -> Order {
    Order { inputs: vec![input.clone()], ..order(job, image, script) }
}

/// The settings of a worker whose directory is on a disk of 256 MiB.
fn small(farm: &Farm) -> WorkerConfig {
    let mut config = farm.config();
    config.capacity.disk_reserve = ByteSize::mib(8);
    config.disk.high = "60%".parse().unwrap();
    config.disk.low = "30%".parse().unwrap();
    config
}

/// Waits for files that come or go without anybody being told.
async fn until(what: &str, seen: impl Fn() -> bool) {
    let waited = async {
        while !seen() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited)
        .await
        .unwrap_or_else(|_| panic!("waited in vain until {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_too_full_is_cleaned_and_what_a_running_job_uses_stays() {
    let farm = Farm::start().await;
    let _disk = Loop::mount(&farm.data_dir(), 256 * MIB);
    let worker = farm.worker_with(small(&farm)).await;
    let image = base_image().await;
    let [old, newer, used] = [1, 2, 3].map(|seed| farm.input(seed, 15 * MIB));
    farm.run(&taking(&old, 1, &image, "true")).await.expect_success();
    farm.run(&taking(&newer, 2, &image, "true")).await.expect_success();
    assert!(farm.kept(&old).exists() && farm.kept(&newer).exists());
    let script = "dd if=/dev/zero of=/work/big bs=1M count=130\necho full\n\
                  while [ ! -e go ]; do sleep 0.1; done\nsha256sum /inputs/in";
    farm.send(&taking(&used, 3, &image, script)).await;
    farm.logged(lease(3), "full").await;
    // All that can go is less than what should.
    until("the others are gone", || !farm.kept(&old).exists() && !farm.kept(&newer).exists()).await;
    assert!(farm.kept(&used).exists(), "a job has it");
    let report = farm.disks("it is all told", |report| {
        bytes_of(report, Kind::Work) > 130 * MIB && bytes_of(report, Kind::Blobs) == 15 * MIB
    });
    let report = report.await;
    let found = data(&report);
    assert!(found.total_bytes > 200 * MIB && found.total_bytes < 256 * MIB, "{found:?}");
    assert_eq!((found.evictable_bytes, found.high_bytes / MIB), (0, found.total_bytes * 60 / 100 / MIB), "{found:?}");
    assert!(found.total_bytes - found.free_bytes > found.high_bytes, "{found:?}");
    std::fs::write(farm.data_dir().join(format!("jobs/{}/work/go", lease(3))), "").unwrap();
    let ended = farm.ended(lease(3)).await;
    ended.expect_success();
    assert!(ended.log.contains(&used.artifact.blob.digest.hex()), "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_recently_used_goes_first_also_after_a_restart() {
    let farm = Farm::start().await;
    let _disk = Loop::mount(&farm.data_dir(), 256 * MIB);
    let worker = farm.worker_with(small(&farm)).await;
    let image = base_image().await;
    let [first, second, third] = [1, 2, 3].map(|seed| farm.input(seed, 15 * MIB));
    for (job, input) in (1..).zip([&first, &second, &third, &first]) {
        farm.run(&taking(input, job, &image, "true")).await.expect_success();
    }
    worker.stop().await;
    // Two of them are too much now.
    let report = farm.service.books().disk.clone().unwrap();
    let used = report.file_systems[0].total_bytes - report.file_systems[0].free_bytes;
    let mut config = small(&farm);
    config.disk.high = format!("{}B", used - 20 * MIB).parse().unwrap();
    config.disk.low = config.disk.high;
    let worker = farm.worker_with(config).await;
    until("two have gone", || !farm.kept(&second).exists() && !farm.kept(&third).exists()).await;
    assert!(farm.kept(&first).exists(), "it was used last");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_full_of_cache_takes_a_job_and_one_without_room_says_so() {
    let farm = Farm::start().await;
    let _disk = Loop::mount(&farm.data_dir(), 256 * MIB);
    let mut config = small(&farm);
    (config.disk.high, config.disk.low) = ("100%".parse().unwrap(), "100%".parse().unwrap());
    let worker = farm.worker_with(config).await;
    let image = base_image().await;
    let inputs = [1, 2, 3].map(|seed| farm.input(seed, 15 * MIB));
    for (job, input) in (1..).zip(&inputs) {
        farm.run(&taking(input, job, &image, "true")).await.expect_success();
    }
    let full = farm.disks("the cache is full", |report| data(report).evictable_bytes == 45 * MIB).await;
    let (room, free) = (full.room_bytes, data(&full).free_bytes);
    assert_eq!(room, free + 45 * MIB - 8 * MIB, "what can be freed counts as free: {full:?}");

    // Most of what is kept has to go for it, and no more.
    let mut big = order(4, &image, "dd if=/dev/zero of=/work/big bs=1M count=20");
    Arc::make_mut(&mut big.run).resources.disk_bytes = free + 12 * MIB;
    farm.run(&big).await.expect_success();
    assert_eq!(inputs.each_ref().map(|input| farm.kept(input).exists()), [false, false, true]);

    // While one job has a claim to nearly all, there is no room for another.
    let mut greedy = order(5, &image, "echo running\nwhile [ ! -e go ]; do sleep 0.1; done");
    Arc::make_mut(&mut greedy.run).resources.disk_bytes = room - 30 * MIB;
    farm.send(&greedy).await;
    farm.logged(lease(5), "\nrunning\n").await;
    farm.disks("its share is not offered again", |report| report.room_bytes <= 31 * MIB).await;
    let mut late = order(6, &image, "true");
    Arc::make_mut(&mut late.run).resources.disk_bytes = 60 * MIB;
    let ended = farm.run(&late).await;
    ended.expect(OutcomeKind::Lost, Reason::DiskFull, "the step reserves 60.0 MiB");
    assert!(ended.log.contains("no room for this job yet"), "{}", ended.log);
    std::fs::write(farm.data_dir().join(format!("jobs/{}/work/go", lease(5))), "").unwrap();
    farm.ended(lease(5)).await.expect_success();
    late.lease = lease(7);
    farm.run(&late).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_without_a_byte_is_cleaned_with_what_was_held_in_reserve() {
    let farm = Farm::start().await;
    let _disk = Loop::mount(&farm.data_dir(), 256 * MIB);
    let worker = farm.worker_with(small(&farm)).await;
    let image = base_image().await;
    let reserve = farm.data_dir().join("reserve");
    until("the reserve is there", || reserve.exists()).await;
    // Whoever else writes there leaves not a byte.
    let ballast = farm.data_dir().join("ballast");
    let filled = Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", ballast.display())).output();
    assert!(!filled.unwrap().status.success(), "the disk is full");
    let ended = farm.run(&order(1, &image, "echo started; echo x >/work/x; sync /work/x; exit 3")).await;
    ended.expect(OutcomeKind::Lost, Reason::DiskFull, "the worker's disk is full");
    assert!(!reserve.exists(), "it was given for that");
    worker.stop().await;
    farm.assert_no_leftovers().await;
    // It starts on a full disk, and makes the reserve again when there is room.
    let worker = farm.worker_with(small(&farm)).await;
    std::fs::remove_file(&ballast).unwrap();
    until("the reserve is there again", || reserve.exists()).await;
    farm.run(&order(2, &image, "true")).await.expect_success();
    worker.stop().await;
}

/// The base image, which wants a volume at `/data`.
async fn image_with_volume() -> String {
    let root = busybox_root("volume");
    let digest = Digest::of(&root);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layer.tar");
    std::fs::write(&file, &root).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config::imported(native(), digest, "test")).unwrap();
    config["config"] = serde_json::json!({ "Volumes": { "/data": {}, "/work": {} } });
    let name = ImageName { repository: "railyard-test-volume".into(), tag: digest.hex()[..12].to_owned() };
    let content = Content::File { file, packing: Packing::Plain };
    let layer = Layer { digest, tar: Some(LayerTar { content, size_bytes: root.len() as u64 }) };
    let archive = archive::stream(config.to_string().into_bytes().into(), vec![layer], name.clone());
    engine::runtime().await.load(archive).await.unwrap();
    name.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_containers_write_is_counted_by_kind() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let script = "dd if=/dev/zero of=/work/w bs=1M count=3\ndd if=/dev/zero of=/opt/r bs=1M count=5\n\
                  dd if=/dev/zero of=/data/v bs=1M count=7\necho written\nwhile [ ! -e go ]; do sleep 0.1; done";
    let mut order = order(1, &image_with_volume().await, script);
    Arc::make_mut(&mut order.run).capabilities = vec!["default".into()];
    farm.send(&order).await;
    farm.logged(lease(1), "\nwritten\n").await;
    let counted = farm.disks("all is counted", |report| {
        [(Kind::Work, 3), (Kind::Containers, 5), (Kind::Volumes, 7)]
            .iter()
            .all(|(kind, mib)| (mib * MIB..(mib + 1) * MIB).contains(&bytes_of(report, *kind)))
    });
    let report = counted.await;
    assert!(bytes_of(&report, Kind::Logs) > 0, "{report:?}");
    assert_eq!(bytes_of(&report, Kind::Images), 0, "the engine had the image before: it is none of the worker's");
    let volume = report.uses.iter().find(|used| used.kind == Kind::Volumes).unwrap();
    assert_eq!(volume.count, 1, "{report:?}");
    std::fs::write(farm.data_dir().join(format!("jobs/{}/work/go", lease(1))), "").unwrap();
    farm.ended(lease(1)).await.expect_success();
    assert!(volumes_of(&farm).await.is_empty(), "it went with its container");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

async fn volumes_of(farm: &Farm) -> Vec<String> {
    let own = labels::own(&farm.id, &"w1".parse().unwrap());
    let found = engine::runtime().await.volumes(&own).await.unwrap();
    found.into_iter().map(|found| found.name).collect()
}

/// What is on the engine and none of the worker's business, however much it looks like it.
struct Foreign {
    containers: Vec<String>,
    volumes: Vec<String>,
    networks: Vec<String>,
    images: Vec<String>,
}

impl Foreign {
    async fn make(farm: &Farm) -> Self {
        let text = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let id = farm.id.as_str();
        let strangers: [HashMap<String, String>; 4] = [
            HashMap::new(),
            text(&[(labels::FARM, id), (labels::WORKER, "w2"), (labels::LEASE, "j9.9")]),
            text(&[(labels::FARM, "cafe"), (labels::WORKER, "w1"), (labels::LEASE, "j9.9")]),
            text(&[(labels::WORKER, "w1"), (labels::LEASE, "j9.9"), (labels::NETWORK, "ry-x")]),
        ];
        let image = base_image().await;
        let mut foreign = Self { containers: vec![], volumes: vec![], networks: vec![], images: vec![] };
        for (n, labels) in strangers.into_iter().enumerate() {
            let name = format!("railyard-{id}-w1-j9.{n}");
            let body = ContainerCreateBody {
                image: Some(image.clone()),
                cmd: Some(vec!["/bin/true".into()]),
                labels: Some(labels.clone()),
                ..Default::default()
            };
            let options = query::CreateContainerOptionsBuilder::default().name(&name).build();
            foreign.containers.push(client().create_container(Some(options), body).await.unwrap().id);
            let volume =
                VolumeCreateRequest { name: Some(name.clone()), labels: Some(labels.clone()), ..Default::default() };
            foreign.volumes.push(client().create_volume(volume).await.unwrap().name);
            let network = NetworkCreateRequest { name: name.clone(), labels: Some(labels), ..Default::default() };
            client().create_network(network).await.unwrap();
            foreign.networks.push(name);
        }
        let engine = engine::runtime().await;
        for repository in
            [format!("railyard.local/{id}/w10/test"), format!("railyard.local/{id}0/w1/test"), format!("w1-{id}")]
        {
            let name = ImageName { repository, tag: "1".into() };
            engine.tag(&image, &name).await.unwrap();
            foreign.images.push(name.to_string());
        }
        foreign
    }

    /// All of it is there.
    async fn check(&self) {
        let engine = client();
        for container in &self.containers {
            assert!(engine::exists(container).await, "{container}");
        }
        for volume in &self.volumes {
            engine.inspect_volume(volume).await.unwrap();
        }
        for network in &self.networks {
            engine.inspect_network(network, None::<query::InspectNetworkOptions>).await.unwrap();
        }
        for image in &self.images {
            engine.inspect_image(image).await.unwrap();
        }
    }

    async fn remove(self) {
        let engine = client();
        for container in &self.containers {
            engine.remove_container(container, None).await.unwrap();
        }
        for volume in &self.volumes {
            engine.remove_volume(volume, None::<query::RemoveVolumeOptions>).await.unwrap();
        }
        for network in &self.networks {
            engine.remove_network(network).await.unwrap();
        }
        for image in &self.images {
            engine.remove_image(image, None::<query::RemoveImageOptions>, None).await.unwrap();
        }
    }
}

/// As an earlier life of the worker would leave them: the engine, or whoever else, took them apart.
async fn strays(farm: &Farm, mark: &str) -> (String, String, String) {
    let own: HashMap<String, String> = labels::own(&farm.id, &"w1".parse().unwrap()).into_iter().collect();
    let of_a_lease =
        || own.iter().map(|(k, v)| (k.clone(), v.clone())).chain([(labels::LEASE.to_owned(), "j77.1".to_owned())]);
    let engine = client();
    let body = ContainerCreateBody {
        image: Some(base_image().await),
        cmd: Some(vec!["/bin/true".into()]),
        labels: Some(of_a_lease().collect()),
        ..Default::default()
    };
    let container = engine.create_container(None::<query::CreateContainerOptions>, body).await.unwrap().id;
    let volume = VolumeCreateRequest { labels: Some(of_a_lease().collect()), ..Default::default() };
    let volume = engine.create_volume(volume).await.unwrap().name;
    let network = format!("railyard-test-{mark}-{}", farm.id);
    let request = NetworkCreateRequest { name: network.clone(), labels: Some(own), ..Default::default() };
    engine.create_network(request).await.unwrap();
    std::fs::create_dir_all(farm.data_dir().join("jobs/j77.1/work")).unwrap();
    (container, volume, network)
}

async fn gone((container, volume, network): &(String, String, String)) {
    let engine = client();
    let none = async {
        while engine::exists(container).await
            || engine.inspect_volume(volume).await.is_ok()
            || engine.inspect_network(network, None::<query::InspectNetworkOptions>).await.is_ok()
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), none).await.expect("what was left behind goes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_left_behind_goes_at_the_start_and_later_and_nothing_of_others() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = image_with_volume().await;
    let waiting = "echo running\nwhile [ ! -e go ]; do sleep 0.1; done\ncat /data/kept";
    farm.send(&order(1, &image, waiting)).await;
    farm.logged(lease(1), "\nrunning\n").await;
    let volume = volumes_of(&farm).await;
    assert_eq!(volume.len(), 1, "it carries the labels of its container: {volume:?}");
    worker.crash().await;
    // As another boot of the machine would find it; and somebody has put something of his own among the blobs.
    std::fs::remove_file(farm.data_dir().join(format!("jobs/{}/state.json", lease(1)))).unwrap();
    let odd = ["half-a-blob", "lost+found"].map(|name| farm.data_dir().join("blobs").join(name));
    std::fs::write(&odd[0], "x").unwrap();
    std::fs::create_dir(&odd[1]).unwrap();
    let foreign = Foreign::make(&farm).await;
    let left = strays(&farm, "start").await;

    let mut config = farm.config();
    config.disk.reap_secs = 1;
    let worker = farm.worker_with(config).await;
    gone(&left).await;
    let own = [(labels::FARM, farm.id.as_str()), (labels::WORKER, "w1")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    assert!(engine::runtime().await.containers(&own).await.unwrap().is_empty());
    assert!(volumes_of(&farm).await.is_empty());
    assert_eq!(std::fs::read_dir(farm.data_dir().join("jobs")).unwrap().count(), 0);
    assert!(odd.iter().all(|path| path.exists()), "what the worker has not put there is left alone");
    foreign.check().await;

    // While it works, and a job of its own runs.
    farm.send(&order(2, &image, &format!("echo kept >/data/kept\n{waiting}"))).await;
    farm.logged(lease(2), "\nrunning\n").await;
    gone(&strays(&farm, "later").await).await;
    until("its directory goes as well", || !farm.data_dir().join("jobs/j77.1").exists()).await;
    foreign.check().await;
    std::fs::write(farm.data_dir().join(format!("jobs/{}/work/go", lease(2))), "").unwrap();
    let ended = farm.ended(lease(2)).await;
    ended.expect_success();
    assert!(ended.log.contains("\nkept\n"), "{}", ended.log);
    worker.stop().await;
    foreign.check().await;
    foreign.remove().await;
    farm.assert_no_leftovers().await;
}
