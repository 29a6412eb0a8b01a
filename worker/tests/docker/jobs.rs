//! Jobs that end by themselves, well or not.

use crate::engine::{self, base_image};
use crate::farm::Farm;
use crate::order::{order, output};
use railyard_common::blob::Artifact;
use railyard_common::digest::Digest;
use railyard_common::job::{Device, HostPath};
use railyard_common::order::{InputArtifact, OrderImage};
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_service::convert::FromProto as _;
use std::sync::Arc;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_succeeds_and_its_files_are_in_the_cache() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let mut order = order(
        1,
        &base_image().await,
        "echo \"$RAILYARD_JOB of $RAILYARD_BUILD in $PWD as $(id -u), $GREETING\"\n\
         mkdir out; echo one >out/one.txt; cp out/one.txt out/two.txt; dd if=/dev/zero of=big bs=1M count=3\n\
         : >empty",
    );
    Arc::make_mut(&mut order.run).env.insert("GREETING".into(), "hello there".into());
    Arc::make_mut(&mut order.run).outputs = vec![output("out/*"), output("big"), output("empty")];
    Arc::make_mut(&mut order.run).outputs[0].publish = Some("images/x".parse().unwrap());
    let ended = farm.run(&order).await;
    ended.expect_success();
    let said = format!("step1@{} of test/1.0+x in /work as 0, hello there\n", engine::native());
    assert!(ended.log.contains(&said), "{}", ended.log);
    let artifacts: Vec<Artifact> =
        ended.report.artifacts.into_iter().map(|one| Artifact::from_proto(one).unwrap()).collect();
    let names: Vec<&str> = artifacts.iter().map(|artifact| artifact.path.as_str()).collect();
    assert_eq!(names, ["big", "empty", "out/one.txt", "out/two.txt"]);
    assert_eq!(artifacts[2].published.as_ref().unwrap().as_str(), "images/x/one.txt");
    assert_eq!(farm.service.books().plain(artifacts[2].blob.digest), b"one\n");
    assert_eq!(farm.service.books().plain(artifacts[0].blob.digest), vec![0; 3 << 20]);
    assert_eq!(farm.service.books().sent.len(), 3, "two files with the same content are sent once");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_script_is_told_with_its_code_and_last_lines() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let ended = farm.run(&order(1, &image, "seq 100\nprintf 'last words' >&2\nexit 7")).await;
    ended.expect(OutcomeKind::Failed, Reason::ExitCode, "exit code 7");
    assert!(ended.outcome.message.contains(&format!("railyard logs test/1.0+x step1@{}", engine::native())));
    assert_eq!(ended.outcome.exit_code, Some(7));
    assert_eq!(ended.outcome.log_tail.len(), 20);
    assert_eq!(ended.outcome.log_tail.last().unwrap(), "last words");
    let ended = farm.run(&order(2, &image, "false\necho unreached")).await;
    ended.expect(OutcomeKind::Failed, Reason::ExitCode, "exit code 1");
    let ended = farm.run(&order(3, &image, "#!/bin/nothing")).await;
    ended.expect(OutcomeKind::Failed, Reason::ExitCode, "exit code 127");
    let ended = farm.run(&order(4, &image, "kill -TERM $$")).await;
    ended.expect(OutcomeKind::Failed, Reason::Signal, "SIGTERM");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_bytes_arrive_as_they_were_written() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    // More than a batch, every byte value, no line end; and the connection breaks twice.
    farm.service.change(|books| books.log_breaks = 2);
    let bytes: Vec<u8> = (0..700_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut order = order(1, &base_image().await, "cat /inputs/noise");
    let blob = farm.service.change(|books| books.add(&bytes));
    order.inputs = vec![input("/inputs/noise", "noise", blob.digest, bytes.len())];
    let ended = farm.run(&order).await;
    ended.expect_success();
    let log = farm.service.books().logs[&order.lease].clone();
    assert!(log.windows(bytes.len()).any(|window| window == bytes), "{} bytes", log.len());
    worker.stop().await;
}

fn input(mount: &str, path: &str, digest: Digest, size: usize) -> InputArtifact {
    let blob = railyard_common::blob::Blob::plain(digest, size as u64);
    let artifact = Artifact { path: path.parse().unwrap(), blob, media_type: String::new(), published: None };
    InputArtifact { mount_path: mount.to_owned(), artifact }
}

#[tokio::test(flavor = "multi_thread")]
async fn inputs_are_there_and_cannot_be_changed() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let (one, two) = farm.service.change(|books| (books.add(b"one"), books.add(b"two")));
    let script = "cat /inputs/a/x.txt /inputs/a/deep/y.txt /other\n\
                  ! touch /inputs/a/x.txt && ! rm /inputs/a/x.txt && ! touch /inputs/a/new && ! touch /railyard/script\n\
                  touch /work/fine";
    let mut order1 = order(1, &base_image().await, script);
    Arc::make_mut(&mut order1.run).capabilities = vec!["default".into()];
    order1.inputs = vec![
        input("/inputs/a/x.txt", "x.txt", one.digest, 3),
        input("/inputs/a/deep/y.txt", "deep/y.txt", two.digest, 3),
        input("/other", "other", one.digest, 3),
    ];
    let mut order2 = order1.clone();
    order2.lease.job.0 = 2;
    farm.send(&order1).await;
    farm.send(&order2).await;
    let ended = farm.ended(order1.lease).await;
    ended.expect_success();
    assert!(ended.log.contains("onetwoone"), "{}", ended.log);
    farm.ended(order2.lease).await.expect_success();
    assert_eq!(farm.service.books().reads[&one.digest], 1, "two jobs that want the same blob fetch it once");
    order2.lease.job.0 = 3;
    order2.inputs[2].mount_path = "/inputs/a/x.txt/z".into();
    farm.run(&order2).await.expect(OutcomeKind::Refused, Reason::Unsupported, "two inputs want to be at");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_and_bad_outputs_are_named() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let mut missing = order(1, &image, "echo x >disk.img");
    Arc::make_mut(&mut missing.run).outputs = vec![output("*.raw")];
    let ended = farm.run(&missing).await;
    ended.expect(
        OutcomeKind::Failed,
        Reason::OutputMissing,
        "no file matches the output `*.raw`; the work directory has disk.img",
    );
    let mut escape = order(2, &image, "ln -s /etc/passwd out.txt");
    Arc::make_mut(&mut escape.run).outputs = vec![output("*.txt")];
    let ended = farm.run(&escape).await;
    ended.expect(OutcomeKind::Failed, Reason::OutputBad, "a link to /etc/passwd, outside the work directory");
    let mut pipe = order(3, &image, "mkfifo pipe");
    Arc::make_mut(&mut pipe.run).outputs = vec![output("pipe")];
    farm.run(&pipe).await.expect(OutcomeKind::Failed, Reason::OutputBad, "not a plain file");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_had_is_named() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    // A registry on a port where nobody listens: it cannot be asked, so another worker may have better luck.
    let ended = farm.run(&order(1, "127.0.0.1:1/no/such:image", "true")).await;
    ended.expect(OutcomeKind::Lost, Reason::ImageMissing, "image 127.0.0.1:1/no/such:image cannot be pulled");
    // Where no step may reach the engine is not sent either.
    let ended = farm.run(&order(4, "169.254.169.254/latest/meta-data", "true")).await;
    ended.expect(OutcomeKind::Failed, Reason::ImageMissing, "is not pulled: its registry 169.254.169.254 is at");
    let ended = farm.run(&order(2, "No Such Image", "true")).await;
    ended.expect(OutcomeKind::Failed, Reason::ImageMissing, "image No Such Image cannot be");
    let mut order = order(3, "", "true");
    let blob = farm.service.change(|books| books.add(b"this is no tarball"));
    let artifact = input("/x", "root.tar.zst", blob.digest, 18).artifact;
    order.image = OrderImage::Import(artifact);
    farm.run(&order).await.expect(OutcomeKind::Failed, Reason::ImageMissing, "root.tar.zst cannot become an image");
    // A tar that is whole, and that the engine cannot unpack all the same.
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Link);
    header.set_size(0);
    tar.append_link(&mut header, "etc/passwd", "nowhere/at/all").unwrap();
    let tar = tar.into_inner().unwrap();
    let blob = farm.service.change(|books| books.add(&tar));
    order.lease.job.0 = 5;
    order.image = OrderImage::Import(input("/x", "linked.tar", blob.digest, tar.len()).artifact);
    farm.run(&order).await.expect(OutcomeKind::Failed, Reason::ImageMissing, "linked.tar cannot become an image");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_image_is_made_that_no_engine_takes() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let mut order = order(1, &engine::image_of_layers(125).await, "true");
    Arc::make_mut(&mut order.run).commit = true;
    let told = "on top of one with 125 layers";
    farm.run(&order).await.expect(OutcomeKind::Failed, Reason::ImageMissing, told);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_worker_does_not_allow_is_refused() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let mut privileged = order(1, &image, "true");
    Arc::make_mut(&mut privileged.run).privileged = true;
    farm.run(&privileged).await.expect(OutcomeKind::Refused, Reason::Unsupported, "allow_privileged");
    let mut device = order(2, &image, "[ ! -e /dev/nothing ]; echo fine >/dev/full || exit 0");
    Arc::make_mut(&mut device.run).devices = vec![Device { path: "/dev/nothing".into(), optional: false }];
    farm.run(&device).await.expect(
        OutcomeKind::Refused,
        Reason::Unsupported,
        "add \"devices:/dev/nothing\" to `allow`",
    );
    let mut capable = order(5, &image, "true");
    Arc::make_mut(&mut capable.run).capabilities = vec!["default".into(), "SYS_ADMIN".into()];
    farm.run(&capable).await.expect(OutcomeKind::Refused, Reason::Unsupported, "capabilities:SYS_ADMIN");
    let mut path = order(6, &image, "true");
    Arc::make_mut(&mut path.run).host_paths = vec![host_path("/etc", "/host-etc", false)];
    farm.run(&path).await.expect(OutcomeKind::Refused, Reason::Unsupported, "host-paths:/etc");
    device.lease.job.0 = 3;
    Arc::make_mut(&mut device.run).devices[0].optional = true;
    farm.run(&device).await.expect_success();
    worker.stop().await;
    let mut config = farm.config();
    config.allow = vec!["devices:/dev/n*".parse().unwrap()];
    let worker = farm.worker_with(config.clone()).await;
    device.lease.job.0 = 7;
    Arc::make_mut(&mut device.run).devices[0].optional = false;
    farm.run(&device).await.expect(OutcomeKind::Refused, Reason::Unsupported, "has no /dev/nothing");
    worker.stop().await;
    config.allow_privileged = true;
    let worker = farm.worker_with(config).await;
    privileged.lease.job.0 = 4;
    Arc::make_mut(&mut privileged.run).script = "mkdir m; mount -t tmpfs none m".into();
    let ended = farm.run(&privileged).await;
    // Inside a sandbox the engine itself may lack what privileged means. That is asked of it, not of the worker.
    match engine::refuses_privileged().await {
        None => ended.expect_success(),
        Some(why) if why.contains("unable to apply caps") => {
            ended.expect(OutcomeKind::Refused, Reason::Unsupported, "this worker's host cannot give the capabilities");
        }
        Some(why) => ended.expect(OutcomeKind::Lost, Reason::Engine, why.trim()),
    }
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

fn host_path(source: &str, target: &str, writable: bool) -> HostPath {
    HostPath { source: source.to_owned(), target: target.to_owned(), writable }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_this_worker_allows_is_there_and_no_more() {
    let farm = Farm::start().await;
    let (shared, image) = (tempfile::tempdir().unwrap(), base_image().await);
    let source = shared.path().to_str().unwrap();
    std::fs::write(shared.path().join("file"), "from the host").unwrap();
    let mut config = farm.config();
    config.allow = vec![
        format!("host-paths:{source}").parse().unwrap(),
        "devices:/dev/net/*".parse().unwrap(),
        "capabilities:SYS_PTRACE".parse().unwrap(),
    ];
    let worker = farm.worker_with(config.clone()).await;
    let script =
        "cat /shared/file; ! touch /shared/new; [ -c /dev/net/tun ]; [ ! -e /dev/fuse ]; grep CapEff /proc/self/status";
    let mut given = order(1, &image, script);
    let run = Arc::make_mut(&mut given.run);
    run.host_paths = vec![host_path(source, "/shared", false)];
    run.devices = ["/dev/net/tun", "/dev/fuse"].map(|path| Device { path: path.into(), optional: true }).to_vec();
    run.capabilities = vec!["SYS_PTRACE".into()];
    let ended = farm.run(&given).await;
    ended.expect_success();
    assert!(ended.log.contains("from the host") && ended.log.contains("CapEff:\t0000000000080000\n"), "{}", ended.log);
    let mut more = order(2, &image, "echo by a step >/shared/new");
    Arc::make_mut(&mut more.run).host_paths = vec![host_path(source, "/shared", true)];
    farm.run(&more).await.expect(OutcomeKind::Refused, Reason::Unsupported, &format!("host-paths:{source}:rw"));
    worker.stop().await;

    config.allow = vec![format!("host-paths:{source}:rw").parse().unwrap()];
    let worker = farm.worker_with(config).await;
    more.lease.job.0 = 3;
    farm.run(&more).await.expect_success();
    assert_eq!(std::fs::read_to_string(shared.path().join("new")).unwrap(), "by a step\n");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_outputs_are_one_log_in_order() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let script = "for n in $(seq 500); do echo \"out $n\"; echo \"err $n\" >&2; done";
    let ended = farm.run(&order(1, &base_image().await, script)).await;
    ended.expect_success();
    let want: String = (1..=500).map(|n| format!("out {n}\nerr {n}\n")).collect();
    assert!(ended.log.contains(&want), "{}", ended.log);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_needs_no_shell() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let ended = farm.run(&order(1, &engine::image_without_shell().await, "#!/bin/cat\nthis is printed\n")).await;
    ended.expect_success();
    assert!(ended.log.contains("\nthis is printed\n"), "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}
