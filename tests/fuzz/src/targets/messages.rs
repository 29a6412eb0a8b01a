//! Messages of the protocol: to the controller, and to the worker.

use super::Target;
use prost::Message as _;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::order::Order;
use railyard_common::outcome::Outcome;
use railyard_controller::fuzz;
use railyard_proto::v1;
use railyard_service::convert::{FromProto as _, ToProto as _};

pub const MESSAGES: Target = Target {
    name: "messages",
    parse,
    examples,
    words: &[
        "\n\0",
        "\u{12}\0",
        "\u{1a}\0",
        "\u{22}\0",
        "linux/amd64",
        "sha256:",
        "name: a",
        "\u{0b}",
        "\u{0c}",
        "../",
        "step@linux/amd64",
    ],
    max_len: 64 * 1024,
    // A part of a message takes two bytes at least, and a few hundred in memory; from 100,000 parts on it is refused. A
    // pipeline that is in a message takes as much as one that is not.
    memory_factor: 4_000,
    memory_base: 0,
};

/// Orders go to workers; everything else here goes to the controller.
const ORDER: u8 = 255;

fn parse(bytes: &[u8]) -> String {
    let Some((&ORDER, order)) = bytes.split_first() else { return fuzz::messages::message(bytes) };
    let order = match v1::LeaseOrder::decode(order) {
        Ok(order) => order,
        Err(error) => return error.to_string(),
    };
    match Order::from_proto(order) {
        Ok(order) => {
            assert_eq!(Order::from_proto(order.to_proto()).as_ref(), Ok(&order));
            "an order".to_owned()
        }
        Err(bad) => bad.to_string(),
    }
}

fn examples() -> Vec<Vec<u8>> {
    let with = |kind: u8, message: Vec<u8>| [vec![kind], message].concat();
    let lease = Some(v1::LeaseId { job: 1, attempt: 1 });
    let blob = Some(Blob::plain(Digest::of(b"a"), 1).to_proto());
    let pipeline = "name: a\nplatforms: [linux/amd64]\nsteps:\n  - name: b\n    image: i\n    script: s\n".to_owned();
    let submit = v1::SubmitRequest {
        pipeline,
        version: "1".to_owned(),
        platforms: vec!["linux/amd64".to_owned()],
        files: [("a.sh".to_owned(), "true".to_owned())].into(),
        params: [("p".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let hello = v1::Hello {
        worker: "w".to_owned(),
        boot_id: "b".to_owned(),
        platforms: vec![v1::PlatformOffer { platform: "linux/amd64".to_owned(), emulated: false }],
        capacity: Some(v1::Capacity { cpu_millis: 1, memory_bytes: 1, disk_bytes: 1, slots: 1 }),
        labels: [("kvm".to_owned(), "yes".to_owned())].into(),
        held: Vec::from_iter(lease),
        ..Default::default()
    };
    let hello = v1::WorkerMessage { kind: Some(v1::worker_message::Kind::Hello(hello)) };
    let artifact = v1::Artifact {
        path: "a/b".to_owned(),
        blob: blob.clone(),
        media_type: "x/y".to_owned(),
        published: String::new(),
    };
    let image = v1::Image { config: blob.clone(), layers: Vec::from_iter(blob.clone()) };
    let report = v1::ReportRequest {
        lease,
        outcome: Some(Outcome::succeeded().to_proto()),
        artifacts: vec![artifact.clone()],
        image: Some(image.clone()),
        ..Default::default()
    };
    let upload = v1::PrepareUploadRequest { lease, blobs: Vec::from_iter(blob.clone()), ..Default::default() };
    let batch = v1::LogBatch { lease, offset: 5, data: "line\n".into() };
    let read = v1::ReadLogRequest { build: "a/1".to_owned(), job: "b@linux/amd64".to_owned(), ..Default::default() };
    let sums = [v1::part_to_sign::Checksum::Crc32(7), v1::part_to_sign::Checksum::ContentMd5(vec![7; 16])];
    let parts = (1..).zip(sums).map(|(number, sum)| v1::PartToSign { number, checksum: Some(sum) }).collect();
    let sign = v1::SignPartsRequest { lease, blob, upload_id: "u".to_owned(), parts };
    let run = v1::RunSpec {
        script: "true".to_owned(),
        outputs: vec![v1::OutputSpec {
            glob: "*.raw".to_owned(),
            publish: "images/a".to_owned(),
            ..Default::default()
        }],
        resources: Some(v1::Capacity { cpu_millis: 1, memory_bytes: 1, disk_bytes: 1, slots: 1 }),
        timeout_secs: 60,
        devices: vec![v1::Device { path: "/dev/kvm".to_owned(), optional: true }],
        ..Default::default()
    };
    let order = v1::LeaseOrder {
        lease,
        build: "a/1".to_owned(),
        job: "b@linux/amd64".to_owned(),
        ttl_millis: 1,
        image: Some(v1::lease_order::Image::Committed(image)),
        inputs: vec![v1::InputArtifact { mount_path: "/in".to_owned(), artifact: Some(artifact) }],
        run: Some(run),
        ..Default::default()
    };
    vec![
        with(0, submit.encode_to_vec()),
        with(1, hello.encode_to_vec()),
        with(2, report.encode_to_vec()),
        with(3, upload.encode_to_vec()),
        with(4, batch.encode_to_vec()),
        with(5, read.encode_to_vec()),
        with(7, sign.encode_to_vec()),
        with(ORDER, order.encode_to_vec()),
    ]
}
