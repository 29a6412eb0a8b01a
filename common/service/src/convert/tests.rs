//! What goes out comes back in; what is wrong is refused and named.

use super::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use railyard_common::blob::{Artifact, Blob, Encoding, Image};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, JobName};
use railyard_common::job::{Device, HostPath, OutputSpec, RunSpec, SecretRef};
use railyard_common::order::{InputArtifact, Order, OrderImage};
use railyard_common::outcome::{LOG_TAIL_LINES, Outcome, OutcomeKind, Reason};
use railyard_common::path::{Glob, RelPath};
use railyard_common::platform::Platform;

fn path() -> impl Strategy<Value = RelPath> {
    "[a-z]{1,8}(/[a-z0-9.]{0,8}[a-z]){0,3}".prop_map(|text| text.parse().unwrap())
}

fn glob() -> impl Strategy<Value = Glob> {
    "[a-z]{1,8}(/[a-z*?]{1,8}){0,2}".prop_map(|text| text.parse().unwrap())
}

fn blob() -> impl Strategy<Value = Blob> {
    let plain =
        (any::<u64>(), any::<u64>()).prop_map(|(seed, size)| Blob::plain(Digest::of(&seed.to_le_bytes()), size));
    (plain, option::of(any::<u64>())).prop_map(|(blob, packed)| match packed {
        None => blob,
        Some(stored_bytes) => Blob { encoding: Encoding::Zstd, stored_bytes, ..blob },
    })
}

fn artifact() -> impl Strategy<Value = Artifact> {
    (path(), blob(), "[a-z]{1,8}/[a-z-]{0,8}", option::of(path()))
        .prop_map(|(path, blob, media_type, published)| Artifact { path, blob, media_type, published })
}

fn image() -> impl Strategy<Value = Image> {
    (blob(), vec(blob(), 0..4)).prop_map(|(config, layers)| Image { config, layers })
}

fn capacity() -> impl Strategy<Value = Capacity> {
    (any::<u32>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
        |(cpu_millis, memory_bytes, disk_bytes, slots)| Capacity { cpu_millis, memory_bytes, disk_bytes, slots },
    )
}

fn lease() -> impl Strategy<Value = LeaseId> {
    (any::<u64>(), 1..u32::MAX).prop_map(|(job, attempt)| LeaseId { job: JobId(job), attempt })
}

fn platform() -> impl Strategy<Value = Platform> {
    prop::sample::select(Platform::ALL.to_vec())
}

fn run_spec() -> impl Strategy<Value = RunSpec> {
    let compress = prop::sample::select(vec!["auto", "none", "zstd:19", "xz:0", "gzip:6", "bzip2:9"]);
    let output =
        (glob(), option::of(path()), any::<bool>(), compress).prop_map(|(glob, publish, optional, compress)| {
            OutputSpec { glob, publish, publish_by_channel: None, optional, compress: compress.parse().unwrap() }
        });
    let device = ("/dev/[a-z]{1,8}", any::<bool>()).prop_map(|(path, optional)| Device { path, optional });
    let host_path = ("/srv/[a-z]{1,8}", "/[a-z]{1,8}", any::<bool>()).prop_map(|(source, target, writable)| HostPath {
        source,
        target,
        writable,
    });
    let secret = ("[a-z][a-z0-9.-]{0,8}", option::of("[A-Z_]{1,8}"), any::<bool>())
        .prop_map(|(name, env, optional)| SecretRef { name: name.parse().unwrap(), env, optional });
    let container = (
        vec(device, 0..3),
        vec("[A-Z_]{1,12}", 0..3),
        any::<[bool; 3]>(),
        capacity(),
        vec(host_path, 0..2),
        vec(secret, 0..2),
    );
    let script = (".{0,64}", btree_map("[A-Z_]{1,8}", "[^\0]{0,16}", 0..4), vec(output, 0..3));
    (script, container, 1..u64::MAX, any::<u64>()).prop_map(
        |(script, container, timeout_secs, silence_timeout_secs)| {
            let (script, env, outputs) = script;
            let (devices, capabilities, [commit, privileged, network_none], resources, host_paths, secrets) = container;
            RunSpec {
                script,
                env,
                outputs,
                commit,
                resources,
                timeout_secs,
                silence_timeout_secs,
                privileged,
                devices,
                capabilities,
                network_none,
                host_paths,
                secrets,
            }
        },
    )
}

fn order() -> impl Strategy<Value = Order> {
    let image = prop_oneof![
        "[a-z]{1,8}(:[a-z0-9]{1,8})?".prop_map(OrderImage::Registry),
        image().prop_map(OrderImage::Image),
        artifact().prop_map(OrderImage::Import),
    ];
    let input =
        ("/inputs/[a-z]{1,8}", artifact()).prop_map(|(mount_path, artifact)| InputArtifact { mount_path, artifact });
    let build = "[a-z][a-z0-9-]{0,8}/[0-9][A-Za-z0-9.+_-]{0,8}".prop_map(|text| text.parse::<BuildId>().unwrap());
    let job = ("[a-z][a-z0-9-]{0,8}(\\.[a-z0-9]{1,4})?", platform())
        .prop_map(|(name, platform)| format!("{name}@{platform}").parse::<JobName>().unwrap());
    let names = (lease(), build, job, 1..u32::MAX);
    (names, image, vec(input, 0..3), run_spec(), "[0-9a-f-]{0,55}").prop_map(
        |(names, image, inputs, run, traceparent)| {
            let (lease, build, job, ttl_millis) = names;
            Order { lease, build, job, ttl_millis, image, inputs, run: run.into(), traceparent }
        },
    )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let kinds = [
        OutcomeKind::Succeeded,
        OutcomeKind::Failed,
        OutcomeKind::TimedOut,
        OutcomeKind::Cancelled,
        OutcomeKind::Lost,
        OutcomeKind::Refused,
    ];
    let reasons = [Reason::Done, Reason::ExitCode, Reason::Oom, Reason::Silence, Reason::WorkerGone];
    let words = (prop::sample::select(kinds.to_vec()), prop::sample::select(reasons.to_vec()));
    (words, ".{0,64}", option::of(any::<i32>()), vec(".{0,32}", 0..=LOG_TAIL_LINES)).prop_map(
        |((kind, reason), message, exit_code, log_tail)| Outcome { kind, reason, message, exit_code, log_tail },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn an_order_survives_the_wire(order in order()) {
        prop_assert_eq!(Order::from_proto(order.to_proto()), Ok(order));
    }

    #[test]
    fn an_outcome_survives_the_wire(outcome in outcome()) {
        prop_assert_eq!(Outcome::from_proto(outcome.to_proto()), Ok(outcome));
    }

    #[test]
    fn an_offer_survives_the_wire(platform in platform(), emulated: bool) {
        let offer = PlatformOffer { platform, emulated };
        prop_assert_eq!(PlatformOffer::from_proto(offer.to_proto()), Ok(offer));
    }

    #[test]
    fn a_time_survives_the_wire(at in 0..u64::from(u32::MAX) * 1_000_000) {
        prop_assert_eq!(millis(&timestamp(Millis(at))), Millis(at));
    }
}

fn small_order() -> v1::LeaseOrder {
    let run = RunSpec {
        script: "true".to_owned(),
        env: [("KEY".to_owned(), "value".to_owned())].into(),
        outputs: vec![OutputSpec {
            glob: "out/*".parse().unwrap(),
            publish: None,
            publish_by_channel: None,
            optional: false,
            compress: Default::default(),
        }],
        commit: false,
        resources: Capacity::default(),
        timeout_secs: 60,
        silence_timeout_secs: 0,
        privileged: false,
        devices: vec![Device { path: "/dev/kvm".to_owned(), optional: true }],
        capabilities: vec!["default".to_owned()],
        network_none: false,
        host_paths: Vec::new(),
        secrets: Vec::new(),
    };
    let artifact = Artifact {
        path: "out/a".parse().unwrap(),
        blob: Blob::plain(Digest::of(b"a"), 1),
        media_type: "text/plain".to_owned(),
        published: None,
    };
    let order = Order {
        lease: LeaseId { job: JobId(1), attempt: 1 },
        build: "mini/1".parse().unwrap(),
        job: "image@linux/amd64".parse().unwrap(),
        ttl_millis: 120_000,
        image: OrderImage::Registry("debian:bookworm".to_owned()),
        inputs: vec![InputArtifact { mount_path: "/inputs/a".to_owned(), artifact }],
        run: run.into(),
        traceparent: String::new(),
    };
    order.to_proto()
}

/// The complaint about a small order that `spoil` has changed.
fn complaint(spoil: impl FnOnce(&mut v1::LeaseOrder)) -> String {
    let mut proto = small_order();
    spoil(&mut proto);
    Order::from_proto(proto).unwrap_err().to_string()
}

/// The complaint about a small order whose run part `spoil` has changed.
fn run_complaint(spoil: impl FnOnce(&mut v1::RunSpec)) -> String {
    complaint(|order| spoil(order.run.as_mut().unwrap()))
}

#[test]
fn what_is_missing_is_named() {
    assert!(Order::from_proto(small_order()).is_ok());
    assert_eq!(complaint(|order| order.lease = None), "bad message: lease: it is missing");
    assert_eq!(complaint(|order| order.image = None), "bad message: image: it is missing");
    assert_eq!(complaint(|order| order.run = None), "bad message: run: it is missing");
    assert_eq!(run_complaint(|run| run.resources = None), "bad message: run.resources: it is missing");
    let without_blob = complaint(|order| order.inputs[0].artifact.as_mut().unwrap().blob = None);
    assert_eq!(without_blob, "bad message: inputs[0].artifact.blob: it is missing");
}

#[test]
fn what_is_malformed_is_named() {
    type Spoil = fn(&mut v1::LeaseOrder);
    let cases: [(Spoil, &str); 8] = [
        (|order| order.lease.as_mut().unwrap().attempt = 0, "lease.attempt: it is 0"),
        (|order| order.build = "mini".to_owned(), "build: `mini` is not a build"),
        (|order| order.job = "image".to_owned(), "job: `image` is not a job"),
        (|order| order.ttl_millis = 0, "ttl_millis: it is 0"),
        (|order| order.image = Some(v1::lease_order::Image::Registry(String::new())), "image.registry: it is empty"),
        (|order| order.inputs[0].mount_path = "inputs".to_owned(), "inputs[0].mount_path: `inputs` is not absolute"),
        (|order| order.inputs[0].mount_path = "/a/../etc".to_owned(), "inputs[0].mount_path: `/a/../etc` has a `..`"),
        (
            |order| order.inputs[0].artifact.as_mut().unwrap().path = "../x".to_owned(),
            "inputs[0].artifact.path: `../x` is not a usable path",
        ),
    ];
    for (spoil, expected) in cases {
        let message = complaint(spoil);
        assert!(message.contains(expected), "{message}");
    }
    let message = run_complaint(|run| run.outputs[0].glob = "/etc/*".to_owned());
    assert!(message.contains("run.outputs[0].glob: `/etc/*` is not a usable path"), "{message}");
    let message = run_complaint(|run| run.devices[0].path = "/etc/shadow".to_owned());
    assert!(message.contains("run.devices[0].path: `/etc/shadow` is not below /dev"), "{message}");
    let message = run_complaint(|run| drop(run.env.insert("A=B".to_owned(), String::new())));
    assert!(message.contains("run.env: `A=B` is not a variable's name"), "{message}");
    let message = run_complaint(|run| run.timeout_secs = 0);
    assert!(message.contains("run.timeout_secs: it is 0"), "{message}");
}

#[test]
fn what_is_too_much_is_refused() {
    let message = run_complaint(|run| run.script = "x".repeat(SCRIPT_MAX_BYTES + 1));
    assert_eq!(message, "bad message: run.script: it has 1048577 bytes; the limit is 1048576");
    let message = run_complaint(|run| run.outputs = vec![run.outputs[0].clone(); LIST_MAX_LEN + 1]);
    assert_eq!(message, "bad message: run.outputs: it has 10001 entries; the limit is 10000");
    let message = run_complaint(|run| drop(run.env.insert("BIG".to_owned(), "x".repeat(ENV_VALUE_MAX_BYTES + 1))));
    assert_eq!(message, "bad message: run.env.BIG: it has 131073 bytes; the limit is 131072");
}

#[test]
fn a_plain_blob_has_one_size() {
    let mut proto = Blob::plain(Digest::of(b"a"), 1).to_proto();
    proto.stored_bytes = 2;
    let error = Blob::from_proto(proto).unwrap_err();
    assert_eq!(error.field, "stored_bytes");
    let proto = v1::Blob { encoding: 9, ..Blob::plain(Digest::of(b"a"), 1).to_proto() };
    assert_eq!(Blob::from_proto(proto).unwrap_err().field, "encoding");
}

#[test]
fn an_outcome_is_cut_rather_than_refused_so_that_the_result_gets_home() {
    let wordy = Outcome {
        log_tail: (0..30).map(|n| format!("{n} {}", "ä".repeat(4000))).collect(),
        message: "m".repeat(100_000),
        ..Outcome::succeeded()
    };
    let read = Outcome::from_proto(wordy.to_proto()).unwrap();
    assert_eq!(read.log_tail.len(), LOG_TAIL_LINES);
    assert!(read.log_tail[0].starts_with("10 ä") && read.log_tail[0].len() < 2100);
    assert!(read.message.len() < 17_000);
    let unknown = v1::Outcome { reason: "bad-mood".to_owned(), ..Outcome::succeeded().to_proto() };
    assert_eq!(Outcome::from_proto(unknown).unwrap_err().field, "reason");
    let kindless = v1::Outcome { kind: 0, ..Outcome::succeeded().to_proto() };
    assert_eq!(Outcome::from_proto(kindless).unwrap_err().to_string(), "bad message: kind: it is missing");
}

#[test]
fn a_bad_message_is_the_callers_fault() {
    let status = tonic::Status::from(BadMessage::new("run", "it is missing"));
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert_eq!(rpc_error::reason_of(&status).as_deref(), Some(rpc_error::BAD_REQUEST));
}
