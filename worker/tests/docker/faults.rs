//! What goes wrong around a job: the link, the engine, the disk, the worker itself.

use crate::engine::{self, SOCKET, base_image};
use crate::farm::Farm;
use crate::faulty::Faults;
use crate::order::{lease, order, output};
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_service::{rpc_error, task};
use railyard_worker::runtime::labels;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

/// Runs until it is told to go on by a file that it waits for.
const WAITING: &str = "echo running\nwhile [ ! -e go ]; do sleep 0.1; done\necho going";

fn go(farm: &Farm, job: u64) {
    std::fs::write(farm.data_dir().join(format!("jobs/{}/work/go", lease(job))), "").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_run_on_while_the_stream_is_down() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    farm.send(&order(1, &base_image().await, WAITING)).await;
    farm.logged(lease(1), "\nrunning\n").await;
    let broken = farm.service.change(|books| books.outbound.take()).unwrap();
    broken.send(Err(Status::unavailable("the test cuts the stream"))).await.unwrap();
    drop(broken);
    let hello = farm.until("the worker is back", |books| books.hellos.get(1).cloned()).await;
    assert_eq!(hello.held.len(), 1, "the job is still held");
    let first = farm.service.books().hellos[0].boot_id.clone();
    assert_eq!(hello.boot_id, first);
    go(&farm, 1);
    let ended = farm.ended(lease(1)).await;
    ended.expect_success();
    assert!(ended.log.contains("running\ngoing\n"), "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_without_room_is_waited_for_and_then_the_job_goes_elsewhere() {
    let farm = Farm::start().await;
    let mut config = farm.config();
    config.transfer.give_up_secs = 2;
    let worker = farm.worker_with(config).await;
    farm.service.change(|books| books.is_full = true);
    let mut order = order(1, &base_image().await, "echo x >out");
    Arc::make_mut(&mut order.run).outputs = vec![output("out")];
    farm.run(&order).await.expect(OutcomeKind::Lost, Reason::Transfer, "the cache's disk is full");
    farm.service.change(|books| books.is_full = false);
    order.lease.job.0 = 2;
    farm.run(&order).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_does_not_want_the_worker_ends_it_with_a_reason() {
    engine::runtime().await;
    let farm = Farm::start().await;
    let refusal = rpc_error::refusal(Code::FailedPrecondition, rpc_error::PROTOCOL, "speak protocol 7, not 1");
    farm.service.change(|books| books.unwelcome = Some(refusal));
    let error = Farm::launch(farm.config()).ended().await.unwrap_err();
    assert_eq!(error.to_string(), "the controller refuses this worker: speak protocol 7, not 1");
}

/// A worker that is retired is told by the end of its stream, and why by the answer to its next hello.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_sent_away_ends_and_says_why() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let why = "worker `w1` is retired by olga (sold); `railyard uncordon w1` takes it back";
    let refusal = rpc_error::refusal(Code::FailedPrecondition, rpc_error::WORKER_RETIRED, why);
    let stream = farm.service.change(|books| {
        books.unwelcome = Some(refusal);
        books.outbound.take()
    });
    let stream = stream.unwrap();
    stream.send(Err(Status::unavailable("the session is over"))).await.unwrap();
    drop(stream);
    let error = worker.ended().await.unwrap_err();
    assert_eq!(error.to_string(), format!("the controller refuses this worker: {why}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_do_not_share_a_data_directory() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let error = Farm::launch(farm.config()).ended().await.unwrap_err();
    assert!(format!("{error:#}").contains("another worker uses this data directory"), "{error:#}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_engine_the_worker_says_so() {
    let farm = Farm::start().await;
    let mut config = farm.config();
    config.docker_socket = farm.dir.path().join("no.sock");
    let error = Farm::launch(config).ended().await.unwrap_err();
    assert!(format!("{error:#}").contains("no container engine answers at"), "{error:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_gives_its_jobs_back() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    farm.send(&order(1, &base_image().await, WAITING)).await;
    farm.logged(lease(1), "\nrunning\n").await;
    worker.stop().await;
    assert!(farm.service.books().draining);
    farm.ended(lease(1)).await.expect(OutcomeKind::Lost, Reason::WorkerRestarted, "the worker was stopped");
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_worker_lets_its_jobs_end() {
    let farm = Farm::start().await;
    let mut config = farm.config();
    config.drain_grace_secs = 60;
    let worker = farm.worker_with(config).await;
    let image = base_image().await;
    farm.send(&order(1, &image, WAITING)).await;
    farm.logged(lease(1), "\nrunning\n").await;
    worker.begin_stop();
    farm.until("the worker says that it drains", |books| books.draining.then_some(())).await;
    farm.run(&order(2, &image, "true")).await.expect(OutcomeKind::Lost, Reason::WorkerRestarted, "can run elsewhere");
    go(&farm, 1);
    farm.ended(lease(1)).await.expect_success();
    worker.ended().await.unwrap();
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_start_removes_what_a_crash_left_and_nothing_else() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    farm.send(&order(1, &base_image().await, WAITING)).await;
    farm.logged(lease(1), "\nrunning\n").await;
    worker.crash().await;
    assert_eq!(engine::containers_of(&farm.id).await.len(), 1);
    // As another boot of the machine would find it.
    std::fs::remove_file(farm.data_dir().join(format!("jobs/{}/state.json", lease(1)))).unwrap();
    let other_worker = engine::foreign_container(&[(labels::FARM, &farm.id), (labels::WORKER, "w2")]).await;
    let other_farm = engine::foreign_container(&[(labels::FARM, "cafe"), (labels::WORKER, "w1")]).await;
    let worker = farm.worker().await;
    assert_eq!(engine::containers_of(&farm.id).await, vec![other_worker.clone()]);
    assert!(engine::exists(&other_farm).await);
    assert!(farm.service.books().hellos.last().unwrap().held.is_empty());
    let boots: Vec<String> = farm.service.books().hellos.iter().map(|hello| hello.boot_id.clone()).collect();
    assert_ne!(boots[0], boots[1]);
    for container in [other_worker, other_farm] {
        engine::client().remove_container(&container, Some(forced())).await.unwrap();
    }
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

fn forced() -> bollard::query_parameters::RemoveContainerOptions {
    bollard::query_parameters::RemoveContainerOptionsBuilder::default().force(true).build()
}

/// A way to the engine that can be cut.
struct Proxy {
    path: PathBuf,
    cut: CancellationToken,
}

impl Proxy {
    fn open(path: PathBuf) -> Self {
        let listener = UnixListener::bind(&path).unwrap();
        let cut = CancellationToken::new();
        let ended = cut.clone();
        task::spawn("proxy", async move {
            while let Some(Ok((client, _))) = ended.run_until_cancelled(listener.accept()).await {
                let ended = ended.clone();
                task::spawn("proxied", async move {
                    let (mut client, mut engine) = (client, UnixStream::connect(SOCKET).await.unwrap());
                    ended.run_until_cancelled(tokio::io::copy_bidirectional(&mut client, &mut engine)).await
                });
            }
        });
        Self { path, cut }
    }

    fn close(self) -> PathBuf {
        self.cut.cancel();
        std::fs::remove_file(&self.path).unwrap();
        self.path
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_goes_away_is_the_farm_s_fault_and_cleaned_up_when_it_is_back() {
    let farm = Farm::start().await;
    let proxy = Proxy::open(farm.dir.path().join("engine.sock"));
    let mut config = farm.config();
    config.docker_socket = proxy.path.clone();
    config.engine_grace_secs = 1;
    let worker = farm.worker_with(config).await;
    farm.send(&order(1, &base_image().await, WAITING)).await;
    farm.logged(lease(1), "\nrunning\n").await;
    let path = proxy.close();
    farm.ended(lease(1)).await.expect(OutcomeKind::Lost, Reason::Engine, "no container engine answers at");
    let left = engine::containers_of(&farm.id).await;
    assert_eq!(left.len(), 1, "the container outlived the engine's absence");
    let _proxy = Proxy::open(path);
    engine::removed(&left[0]).await;
    farm.run(&order(2, &base_image().await, "echo fine")).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_an_engine_that_is_away() {
    let farm = Farm::start().await;
    let proxy = Proxy::open(farm.dir.path().join("engine.sock"));
    let mut config = farm.config();
    config.docker_socket = proxy.path.clone();
    let worker = farm.worker_with(config).await;
    let image = base_image().await;
    let path = proxy.close();
    farm.send(&order(1, &image, "echo fine")).await;
    farm.logged(lease(1), "==> railyard: the engine is away; waiting for it\n").await;
    let _proxy = Proxy::open(path);
    farm.ended(lease(1)).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_the_engine_did_not_answer_is_looked_at_and_not_repeated() {
    let farm = Farm::start().await;
    let faults = Faults { start_unheard: 1.into(), ..Faults::default() };
    let worker = farm.faulty_worker(farm.config(), faults).await;
    let script = "echo begun >> begun; echo here; cat begun";
    let ended = farm.run(&order(1, &base_image().await, script)).await;
    ended.expect_success();
    assert!(ended.log.contains("beginning again") && ended.log.contains("\nhere\nbegun\n==> "), "{}", ended.log);
    worker.stop().await;

    let faults = Faults { start_unanswered: 1.into(), ..Faults::default() };
    let worker = farm.faulty_worker(farm.config(), faults).await;
    let ended = farm.run(&order(2, &base_image().await, script)).await;
    ended.expect_success();
    assert!(!ended.log.contains("beginning again") && ended.log.contains("\nhere\nbegun\n==> "), "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

/// Only what was not heard as it should be is a reason to ask; then it is said once, and where.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_where_another_engine_may_have_missed_something() {
    let farm = Farm::start().await;
    // The first is asked whether it is the one that has started the container.
    let faults = Faults { output_breaks: 1.into(), forgets: 2.into(), ..Faults::default() };
    let worker = farm.faulty_worker(farm.config(), faults).await;
    let script = "echo running\nsleep 0.5\nn=0\nwhile [ ! -e go ]; do n=$((n+1)); echo line $n; sleep 0.1; done";
    farm.send(&order(1, &base_image().await, script)).await;
    farm.logged(lease(1), "\nline 10\n").await;
    go(&farm, 1);
    let ended = farm.ended(lease(1)).await;
    ended.expect_success();
    let said = "\nrunning\n==> railyard: the engine was restarted while the step ran; what it wrote just then may be missing here\n\
                line 1\n";
    assert!(ended.log.contains(said) && ended.log.matches("missing here").count() == 1, "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

/// A small file system, gone with the value.
pub struct Small(PathBuf);

impl Small {
    pub fn mount(path: &Path, size: &str) -> Self {
        std::fs::create_dir_all(path).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "none"]).arg(path).status();
        assert!(mounted.unwrap().success(), "this test needs root, to mount a small file system");
        Self(path.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A panic is on its way if that fails; it has the better story.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_the_farm_s_fault_and_named() {
    let farm = Farm::start().await;
    let _small = Small::mount(&farm.data_dir(), "48m");
    let worker = farm.worker().await;
    let image = base_image().await;
    let ended = farm.run(&order(1, &image, "dd if=/dev/zero of=big bs=1M count=100")).await;
    ended.expect(OutcomeKind::Lost, Reason::DiskFull, "the worker's disk is full");
    let path = farm.data_dir().canonicalize().unwrap();
    assert!(ended.outcome.message.contains(path.to_str().unwrap()), "{}", ended.outcome.message);
    assert!(ended.outcome.message.contains("bytes"), "{}", ended.outcome.message);
    // There is room again: the job's files went with it.
    farm.run(&order(2, &image, "dd if=/dev/zero of=big bs=1M count=20")).await.expect_success();
    let mut fetch = order(3, &image, "true");
    let big = vec![7; 60 << 20];
    let blob = farm.service.change(|books| books.add(&big));
    let artifact = railyard_common::blob::Artifact {
        path: "big".parse().unwrap(),
        blob,
        media_type: String::new(),
        published: None,
    };
    fetch.inputs = vec![railyard_common::order::InputArtifact { mount_path: "/inputs/big".into(), artifact }];
    farm.run(&fetch).await.expect(OutcomeKind::Lost, Reason::DiskFull, "the worker's disk is full");
    // What the failed fetch had written went with it, or the next one would fail for it.
    fetch.lease = lease(4);
    fetch.inputs[0].artifact.blob = farm.service.change(|books| books.add(&vec![8; 20 << 20]));
    farm.run(&fetch).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_engine_is_the_farm_s_fault_too() {
    let farm = Farm::start().await;
    let dir = farm.dir.path().join("engine");
    let _small = Small::mount(&dir, "1m");
    let worker = farm.faulty_worker(farm.config(), Faults { disk: Some(dir.clone()), ..Faults::default() }).await;
    let ended = farm.run(&order(1, &base_image().await, "exit 1")).await;
    ended.expect(OutcomeKind::Lost, Reason::DiskFull, dir.to_str().unwrap());
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_ends_its_job_and_nothing_else() {
    let farm = Farm::start().await;
    let worker = farm.faulty_worker(farm.config(), Faults { start_panics: 1.into(), ..Faults::default() }).await;
    let image = base_image().await;
    let ended = farm.run(&order(1, &image, "true")).await;
    ended.expect(OutcomeKind::Lost, Reason::Engine, "the worker has a bug: panic: the test wants it so");
    assert_eq!(engine::containers_of(&farm.id).await, Vec::<String>::new());
    farm.run(&order(2, &image, "true")).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_that_breaks_off_goes_on_without_a_gap() {
    let farm = Farm::start().await;
    let worker = farm.faulty_worker(farm.config(), Faults { output_breaks: 1.into(), ..Faults::default() }).await;
    let script = "echo running\nn=0\nwhile [ ! -e go ]; do n=$((n+1)); echo line $n; sleep 0.1; done\nprintf going";
    let mut order = order(1, &base_image().await, script);
    // Longer silent than it may be, but nobody could have heard it.
    Arc::make_mut(&mut order.run).silence_timeout_secs = 1;
    farm.send(&order).await;
    farm.logged(lease(1), "\nline 40\n").await;
    go(&farm, 1);
    let ended = farm.ended(lease(1)).await;
    ended.expect_success();
    let lines: Vec<&str> = ended.log.lines().skip_while(|line| *line != "running").skip(1).collect();
    let count = lines.iter().position(|line| *line == "going").unwrap();
    let want: Vec<String> = (1..=count).map(|n| format!("line {n}")).collect();
    assert_eq!(lines[..count], want, "every line once, in order");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_writes_no_whole_line_is_not_silent_after_a_break() {
    let farm = Farm::start().await;
    let worker = farm.faulty_worker(farm.config(), Faults { output_breaks: 1.into(), ..Faults::default() }).await;
    let script = "echo running\nn=0\nwhile [ $n -lt 60 ]; do n=$((n+1)); printf .; sleep 0.1; done";
    let mut order = order(1, &base_image().await, script);
    Arc::make_mut(&mut order.run).silence_timeout_secs = 2;
    let ended = farm.run(&order).await;
    ended.expect_success();
    assert!(ended.log.contains(&format!("\n{}\n==> railyard: the script", ".".repeat(60))), "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_removed_does_not_keep_a_worker_from_its_work() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    farm.send(&order(1, &base_image().await, WAITING)).await;
    farm.logged(lease(1), "\nrunning\n").await;
    worker.crash().await;
    let left = engine::containers_of(&farm.id).await;
    assert_eq!(left.len(), 1);
    std::fs::remove_file(farm.data_dir().join(format!("jobs/{}/state.json", lease(1)))).unwrap();
    let worker = farm.faulty_worker(farm.config(), Faults { remove_fails: 1.into(), ..Faults::default() }).await;
    farm.run(&order(2, &base_image().await, "true")).await.expect_success();
    engine::removed(&left[0]).await;
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_the_engine_does_not_make_in_time_is_not_waited_for() {
    let farm = Farm::start().await;
    let permits = Arc::new(Semaphore::new(0));
    let faults = Faults { create_waits: Some(permits.clone()), ..Faults::default() };
    let removals = faults.removals.clone();
    let worker = farm.faulty_worker(farm.config(), faults).await;
    let mut order = order(1, &base_image().await, "true");
    order.ttl_millis = 4000;
    farm.service.change(|books| books.deaf = true);
    let ended = farm.run(&order).await;
    ended.expect(OutcomeKind::Lost, Reason::WorkerGone, "the container was stopped before its lease expired");
    permits.add_permits(1);
    // Once when the job ended, in vain, and once when the container was there.
    let both = removals.acquire_many(2);
    tokio::time::timeout(Duration::from_secs(60), both).await.expect("the container is removed").unwrap().forget();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_the_engine_cannot_stop_is_removed() {
    let farm = Farm::start().await;
    let worker = farm.faulty_worker(farm.config(), Faults { stop_fails: 1.into(), ..Faults::default() }).await;
    // It writes without end.
    let mut order = order(1, &base_image().await, "yes");
    Arc::make_mut(&mut order.run).timeout_secs = 1;
    farm.run(&order).await.expect(OutcomeKind::TimedOut, Reason::WallClock, "timeout of 1s");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_comes_too_late_is_given_back() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let mut late = order(1, &base_image().await, "true");
    late.ttl_millis = 1;
    farm.run(&late).await.expect(OutcomeKind::Lost, Reason::WorkerGone, "took so long to arrive");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}
