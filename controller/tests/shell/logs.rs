//! Logs: acked when durable, followed live, filed when the attempt has ended, and whole in each of these states.

use crate::common::pipelines::{ONE, SHORT_LEASE};
use crate::common::wait::until;
use crate::common::worker::{failed, lease, report};
use crate::common::{Controller, Worker, refused, soon};
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::future::join_all;
use railyard_common::id::LeaseId;
use railyard_controller::cache::{self, CacheConfig, EmbeddedConfig};
use railyard_controller::journal::{Journal as _, SledJournal};
use railyard_controller::logs::LogStore;
use railyard_proto::v1;
use railyard_service::clock::SystemClock;
use railyard_service::task;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use tonic::Code;

/// A worker with the lease of the one job of [`ONE`].
async fn at_work(controller: &Controller) -> (String, Worker, v1::LeaseId) {
    let mut worker = controller.worker("anvil").await;
    let build = controller.operator().submit(ONE, "1").await;
    let lease = lease(&worker.order().await);
    (build, worker, lease)
}

fn local_file(controller: &Controller, lease: v1::LeaseId) -> PathBuf {
    controller.data_dir().join(format!("logs/j{}.{}.log", lease.job, lease.attempt))
}

/// Waits until the log is in the cache and nowhere else.
async fn filed(controller: &Controller, lease: v1::LeaseId) {
    let local = local_file(controller, lease);
    until("the filing of the log", async || (!local.exists()).then_some(())).await;
    assert!(controller.browser().get(archive(controller, lease)).send().await.unwrap().status().is_success());
}

fn archive(controller: &Controller, lease: v1::LeaseId) -> String {
    format!("{}/cache/logs/one/1/work-linux-amd64/{}.log.zst", controller.url, lease.attempt)
}

/// Lines that can be told apart, so that a repetition or a gap shows.
fn lines(from: usize, to: usize) -> Vec<u8> {
    (from..to).flat_map(|n| format!("line {n:06}\n").into_bytes()).collect()
}

#[tokio::test]
async fn a_follower_sees_every_byte_once_from_before_the_first_to_after_the_filing() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller).await;
    let person = controller.operator();
    let mut follower = person.read_log(&build, "work", 0, true).await;
    let mut stream = worker.log_stream().await;
    let first = lines(0, 10);
    assert_eq!(stream.append(lease, 0, &first).await.unwrap(), 120);
    assert_eq!(follower.take(120).await, first);
    // Somebody who comes in the middle, and starts in the middle.
    let late = person.read_log(&build, "work@linux/amd64", 60, true).await;

    let rest = lines(10, 50_000);
    let whole = lines(0, 50_000);
    let reading = task::spawn("follower", follower.rest());
    let reading_late = task::spawn("late follower", late.rest());
    for (n, batch) in rest.chunks(100_000).enumerate() {
        let offset = 120 + n as u64 * 100_000;
        assert_eq!(stream.append(lease, offset, batch).await.unwrap(), offset + batch.len() as u64);
    }
    let request = v1::ReportRequest { log_bytes: whole.len() as u64, ..report(lease, failed("on purpose")) };
    worker.try_report(request).await.unwrap();
    assert!(soon("the follower's end", reading).await.unwrap() == rest);
    assert!(soon("the late follower's end", reading_late).await.unwrap() == whole[60..]);

    filed(&controller, lease).await;
    assert!(person.log(&build, "work", 0).await == whole);
    assert!(person.log(&build, "work", 599_990).await == whole[599_990..]);
    assert!(person.log(&build, "work", 600_000).await.is_empty());
    assert!(person.log(&build, "work", 700_000).await.is_empty());
    assert!(person.read_log(&build, "work", 0, true).await.rest().await == whole);
    let view = person.ended(&build).await;
    assert_eq!(view.jobs[0].attempts[0].outcome.as_ref().unwrap().message, "on purpose");
    let manifest = controller.cached_json("builds/one/1/build.json").await;
    assert_eq!(manifest["jobs"][0]["attempts"][0]["log_bytes"], 600_000);
}

#[tokio::test]
async fn what_is_known_is_skipped_and_a_gap_is_refused() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller).await;
    let mut stream = worker.log_stream().await;
    assert_eq!(stream.append(lease, 0, b"one two").await.unwrap(), 7);
    assert_eq!(stream.append(lease, 0, b"one").await.unwrap(), 7);
    assert_eq!(stream.append(lease, 4, b"two three").await.unwrap(), 13);
    assert_eq!(stream.append(lease, 13, b"").await.unwrap(), 13);
    let message = refused(stream.append(lease, 14, b"lost").await, Code::OutOfRange, "log-gap");
    assert!(message.contains("ends at byte 13") && message.contains("begins at 14"), "{message}");
    assert_eq!(worker.log(lease, 13, b" four").await.unwrap(), 18);
    assert_eq!(controller.operator().log(&build, "work", 0).await, b"one two three four");
}

/// A connection breaks, and the batches of the old stream are still on their way when the new one sends them again.
#[tokio::test]
async fn streams_of_one_attempt_that_overlap_do_not_harm_each_other() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller).await;
    let whole = lines(0, 20_000);
    for _ in 0..4 {
        // Each sends a different stretch of the same log from the start.
        let streams = (1..=8).map(|n| {
            let (worker, part) = (&worker, &whole[..whole.len() / 8 * n]);
            async move {
                let mut stream = worker.log_stream().await;
                for (n, batch) in part.chunks(4_000).enumerate() {
                    stream.append(lease, n as u64 * 4_000, batch).await.unwrap();
                }
            }
        });
        join_all(streams).await;
    }
    assert!(controller.operator().log(&build, "work", 0).await == whole);
    worker.succeed(lease).await;
    filed(&controller, lease).await;
    assert!(controller.operator().log(&build, "work", 0).await == whole);
}

#[tokio::test]
async fn readers_of_an_attempt_that_wrote_nothing_come_to_an_end() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller).await;
    let person = controller.operator();
    let early = person.read_log(&build, "work", 0, true).await;
    let early = task::spawn("follower", early.rest());
    worker.succeed(lease).await;
    assert!(soon("the end of an empty log", early).await.unwrap().is_empty());
    person.ended(&build).await;
    assert!(person.read_log(&build, "work", 0, true).await.rest().await.is_empty());
    assert!(person.log(&build, "work", 0).await.is_empty());
    let stopped = controller.address();
    let controller = controller.stop().await.start(stopped).await;
    assert!(controller.operator().read_log(&build, "work", 0, true).await.rest().await.is_empty());
}

#[tokio::test]
async fn a_log_is_not_there_before_its_job_has_started() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let build = person.submit(ONE, "1").await;
    let message = refused(person.try_read_log(&build, "work", 0, 0, true).await, Code::NotFound, "not-found");
    assert!(message.contains("has not started: no worker is connected"), "{message}");
}

#[tokio::test]
async fn each_attempt_has_its_own_log() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let pipeline = ONE.to_owned() + "    retries: 1\n";
    let build = person.submit(&pipeline, "1").await;
    let mut worker = controller.worker("anvil").await;
    let first = lease(&worker.order().await);
    worker.log(first, 0, b"the first\n").await.unwrap();
    worker.try_report(report(first, failed("no"))).await.unwrap();
    let second = lease(&worker.order().await);
    assert_eq!((second.job, second.attempt), (first.job, 2));
    worker.log(second, 0, b"the second\n").await.unwrap();
    worker.succeed(second).await;
    assert_eq!(person.ended(&build).await.state(), v1::BuildState::Succeeded);
    let log = async |attempt| person.try_read_log(&build, "work", attempt, 0, true).await.unwrap().rest().await;
    assert_eq!(
        (log(1).await, log(2).await, log(0).await),
        (b"the first\n".into(), b"the second\n".into(), b"the second\n".into())
    );
}

/// The limit cuts a log and says so, to a follower and in the file; and a restart does not lose count in a harmful way.
#[tokio::test]
async fn a_log_above_its_limit_is_cut_with_a_note() {
    let controller = Controller::start_with(|config| config.log_max = ByteSize::b(120)).await;
    let (build, mut worker, lease) = at_work(&controller).await;
    let person = controller.operator();
    let whole = lines(0, 30);
    let follower = person.read_log(&build, "work", 0, true).await;
    let follower = task::spawn("follower", follower.rest());
    assert_eq!(worker.log(lease, 0, &whole[..200]).await.unwrap(), 200);
    assert_eq!(worker.log(lease, 200, &whole[200..]).await.unwrap(), 360);
    let address = controller.address();
    drop(person);
    let controller = controller.stop().await.start(address).await;
    drop(follower);

    worker.closed().await;
    let hello = v1::Hello { held: vec![lease], ..crate::common::worker::hello("anvil") };
    let worker = controller.worker_saying(hello).await;
    let person = controller.operator();
    let follower = person.read_log(&build, "work", 0, true).await;
    let follower = task::spawn("follower", follower.rest());
    assert_eq!(worker.log(lease, 360, b"and more\n").await.unwrap(), 369);
    worker.succeed(lease).await;
    let seen = String::from_utf8(soon("the follower's end", follower).await.unwrap()).unwrap();
    assert!(seen.starts_with(&String::from_utf8_lossy(&whole[..120]).into_owned()), "{seen}");
    let note = "[railyard: the log is longer than its limit of 120 bytes; 249 bytes are left out here]";
    assert!(seen.contains(note), "{seen}");
    filed(&controller, lease).await;
    assert_eq!(String::from_utf8(person.log(&build, "work", 0).await).unwrap(), seen);
}

#[tokio::test]
async fn the_log_of_a_lost_attempt_is_filed_as_far_as_it_came() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let build = person.submit(SHORT_LEASE, "1").await;
    let mut worker = controller.worker("anvil").await;
    let first = lease(&worker.order().await);
    worker.log(first, 0, b"then the power went\n").await.unwrap();
    let follower = task::spawn("follower", person.read_log(&build, "work", 0, true).await.rest());
    // The same process without the lease: the job is free at once.
    drop(worker);
    let mut worker = controller.worker("anvil").await;
    assert_eq!(soon("the follower's end", follower).await.unwrap(), b"then the power went\n");
    assert_eq!(lease(&worker.order().await).attempt, 2);
    let log = person.try_read_log(&build, "work", 1, 0, false).await.unwrap().rest().await;
    assert_eq!(log, b"then the power went\n");
}

#[tokio::test]
async fn the_log_of_a_job_that_ran_out_of_time_is_all_there() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller).await;
    let text = lines(0, 5_000);
    worker.log(lease, 0, &text).await.unwrap();
    let outcome = v1::Outcome {
        kind: v1::OutcomeKind::TimedOut.into(),
        reason: "wall-clock".to_owned(),
        message: "it ran for longer than its timeout of 1h".to_owned(),
        ..Default::default()
    };
    let log_bytes = text.len() as u64;
    worker.try_report(v1::ReportRequest { log_bytes, ..report(lease, outcome) }).await.unwrap();
    let person = controller.operator();
    let ended = person.ended(&build).await.jobs[0].attempts[0].outcome.clone().unwrap();
    assert_eq!((ended.kind(), ended.reason.as_str()), (v1::OutcomeKind::TimedOut, "wall-clock"));
    filed(&controller, lease).await;
    assert_eq!(person.log(&build, "work", 0).await, text);
}

#[tokio::test]
async fn no_byte_of_a_log_is_in_the_journal() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller).await;
    worker.log(lease, 0, &b"logs lie in files, not in records\n".repeat(1_000)).await.unwrap();
    worker.succeed(lease).await;
    controller.operator().ended(&build).await;
    filed(&controller, lease).await;
    let data_dir = controller.data_dir().to_owned();
    let _stopped = controller.stop().await;
    let loaded = SledJournal::open(&data_dir.join("journal")).unwrap().load().unwrap();
    let journal = serde_json::to_string(&(&loaded.snapshot, &loaded.events)).unwrap();
    assert!(journal.contains(&build) && journal.contains("succeeded"), "{journal}");
    assert!(!journal.contains("logs lie in files"), "{journal}");
}

#[tokio::test]
async fn a_log_that_was_not_filed_before_a_crash_is_filed_at_the_next_start() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller).await;
    worker.log(lease, 0, b"to be filed\n").await.unwrap();
    worker.succeed(lease).await;
    controller.operator().ended(&build).await;
    filed(&controller, lease).await;
    let (local, address) = (local_file(&controller, lease), controller.address());
    let archived = controller.data_dir().join("cache/logs/one/1/work-linux-amd64/1.log.zst");
    let stopped = controller.stop().await;
    // As it is when the crash comes between the report and the filing.
    std::fs::remove_file(&archived).unwrap();
    std::fs::write(local, b"to be filed\n").unwrap();
    let controller = stopped.start(address).await;
    filed(&controller, lease).await;
    assert!(archived.exists());
    assert_eq!(controller.operator().log(&build, "work", 0).await, b"to be filed\n");
}

#[tokio::test]
async fn a_place_that_no_log_reaches_has_nothing() {
    let controller = Controller::start().await;
    let (build, worker, lease) = at_work(&controller).await;
    worker.log(lease, 0, b"so far\n").await.unwrap();
    let person = controller.operator();
    assert!(person.log(&build, "work", u64::MAX).await.is_empty());
    let follower = task::spawn("follower", person.read_log(&build, "work", u64::MAX, true).await.rest());
    worker.succeed(lease).await;
    assert!(soon("the follower's end", follower).await.unwrap().is_empty());
    filed(&controller, lease).await;
    assert!(person.log(&build, "work", u64::MAX).await.is_empty());
}

/// A log store without a controller, and one attempt.
async fn store(dir: &std::path::Path, max_bytes: u64) -> (LogStore, LeaseId) {
    let config = EmbeddedConfig { dir: dir.join("cache"), public_read: false, key_file: None };
    let clock = Arc::new(SystemClock);
    let opened = cache::open(&CacheConfig::Embedded(config), "https://localhost/cache", clock).await.unwrap();
    (LogStore::open(&dir.join("logs"), opened.cache, max_bytes).unwrap(), "j1.1".parse().unwrap())
}

#[tokio::test]
async fn a_log_that_is_written_cannot_be_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (store, lease) = store(dir.path(), 100).await;
    let first = store.writer(lease).await;
    store.forget(lease);
    let mut second = pin!(store.writer(lease));
    assert!(futures_util::poll!(&mut second).is_pending(), "two writers have a turn");
    assert_eq!(first.append(0, Bytes::from_static(b"one")).await.unwrap(), 3);
    drop(soon("the next turn", second).await);
    // What is still to be filed is not forgotten either, and what is gone is.
    let growth = store.subscribe(lease);
    store.forget(lease);
    assert_eq!(growth.borrow().taken_bytes, 3);
    assert!(growth.has_changed().is_ok());
    std::fs::remove_file(dir.path().join("logs/j1.1.log")).unwrap();
    store.forget(lease);
    assert!(growth.has_changed().is_err());
}

#[tokio::test]
async fn counting_above_the_limit_does_not_overflow() {
    let dir = tempfile::tempdir().unwrap();
    let (store, lease) = store(dir.path(), 4).await;
    let append = async |offset, data: &'static [u8]| {
        let writer = store.writer(lease).await;
        writer.append(offset, Bytes::from_static(data)).await.unwrap()
    };
    assert_eq!(append(0, b"1234").await, 4);
    assert_eq!(append(u64::MAX - 1, b"1234").await, u64::MAX);
}

#[tokio::test]
async fn what_an_earlier_process_wrote_is_known() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("logs")).unwrap();
    std::fs::write(dir.path().join("logs/j1.1.log"), b"12345").unwrap();
    let (store, lease) = store(dir.path(), 100).await;
    assert_eq!(store.writer(lease).await.append(0, Bytes::from_static(b"123")).await.unwrap(), 5);
    assert_eq!(store.writer(lease).await.append(3, Bytes::from_static(b"4567")).await.unwrap(), 7);
    assert_eq!(std::fs::read(dir.path().join("logs/j1.1.log")).unwrap(), b"1234567");
}
