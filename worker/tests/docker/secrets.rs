//! Secrets of steps: in memory while the container runs, hidden in its output, and nowhere else.

use crate::engine::{self, base_image, client};
use crate::farm::Farm;
use crate::faulty::Faults;
use crate::images::{committing, forget_build};
use crate::order::{order, output};
use bollard::query_parameters as query;
use railyard_common::blob::Image;
use railyard_common::digest::Digest;
use railyard_common::id::LeaseId;
use railyard_common::job::SecretRef;
use railyard_common::order::Order;
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_proto::v1;
use railyard_service::convert::FromProto as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Something that no other test and no other run has.
fn canary(kind: &str) -> String {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes).unwrap();
    format!("canary-{kind}-{}", hex::encode(bytes))
}

fn wants(order: Order, secrets: &[(&str, Option<&str>, bool)]) -> Order {
    let mut order = order;
    let refs = secrets.iter().map(|(name, env, optional)| SecretRef {
        name: name.parse().unwrap(),
        env: env.map(str::to_owned),
        optional: *optional,
    });
    Arc::make_mut(&mut order.run).secrets = refs.collect();
    order
}

fn gives(farm: &Farm, lease: LeaseId, secrets: &[(&str, &str)]) {
    let file =
        |(name, value): &(&str, &str)| v1::SecretFile { name: (*name).to_owned(), value: value.as_bytes().to_vec() };
    let files = secrets.iter().map(file).collect();
    farm.service.change(|books| books.secrets.insert(lease, files));
}

/// The worker's directory in memory, whichever of the usual places it is in.
fn in_memory(farm: &Farm) -> Vec<PathBuf> {
    let name = format!("railyard-{}-w1", farm.id);
    ["/run", "/dev/shm"].map(|root| Path::new(root).join(&name)).into_iter().filter(|path| path.exists()).collect()
}

fn contains(bytes: &[u8], word: &str) -> bool {
    bytes.windows(word.len()).any(|part| part == word.as_bytes())
}

/// Files below `dir` with `word` in them.
fn files_with(dir: &Path, word: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => found.extend(files_with(&path, word)),
            // One that went meanwhile has nothing in it.
            Ok(kind) if kind.is_file() && std::fs::read(&path).is_ok_and(|bytes| contains(&bytes, word)) => {
                found.push(path);
            }
            _ => {}
        }
    }
    found
}

/// Processes with `word` in their arguments.
fn commands_with(word: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path().join("cmdline"));
    entries.filter(|path| std::fs::read(path).is_ok_and(|bytes| contains(&bytes, word))).collect()
}

async fn inspected(farm: &Farm) -> String {
    let mut told = String::new();
    for id in engine::containers_of(&farm.id).await {
        let found = client().inspect_container(&id, None::<query::InspectContainerOptions>).await.unwrap();
        told.push_str(&serde_json::to_string(&found).unwrap());
    }
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_has_its_secrets_in_memory_and_nothing_else_has_them() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let (key, token) = (canary("key"), canary("token"));
    let key_file = format!("-----BEGIN KEY-----\n{key}\n-----END KEY-----\n");
    let script = "\
        stat -f -c 'on %T' /run/secrets
        for file in /run/secrets/*; do echo \"file $file\"; done
        sha256sum </run/secrets/key
        printf %s \"$TOKEN\" | sha256sum
        env | grep TOKEN
        cat /run/secrets/key
        printf %s \"${TOKEN%????????}\"; printf '%s\\n' \"${TOKEN#\"${TOKEN%????????}\"}\"
        (echo x >/run/secrets/key) 2>/dev/null || echo read-only
        grep '^Max core' /proc/self/limits
        echo \"absent $(ls /run/secrets | grep -c absent)\" \"${ABSENT-unset}\"
        echo done >list; echo kept >/opt/kept
        echo running; while ! test -e go; do sleep 0.1; done";
    let order = wants(
        committing(1, &base_image().await, script),
        &[("key", None, false), ("token", Some("TOKEN"), false), ("absent", Some("ABSENT"), true)],
    );
    gives(&farm, order.lease, &[("key", &key_file), ("token", &token)]);
    farm.send(&order).await;
    farm.logged(order.lease, "\nrunning\n").await;

    let own = in_memory(&farm);
    assert_eq!(own.len(), 1, "{own:?}");
    for word in [&key, &token] {
        assert_eq!(files_with(&own[0], word).len(), 1);
        assert_eq!(files_with(farm.dir.path(), word), Vec::<PathBuf>::new());
        assert_eq!(commands_with(word), Vec::<PathBuf>::new());
        let told = inspected(&farm).await;
        assert!(told.contains("/run/secrets") && !told.contains(word.as_str()), "{told}");
    }
    std::fs::write(farm.data_dir().join("jobs").join(order.lease.to_string()).join("work/go"), "").unwrap();
    let ended = farm.ended(order.lease).await;
    ended.expect_success();
    for line in [
        "fetched 2 secrets".to_owned(),
        "on tmpfs".to_owned(),
        "file /run/secrets/key\nfile /run/secrets/token\n".to_owned(),
        format!("{}  -\n{}  -\n", Digest::of(key_file.as_bytes()).hex(), Digest::of(token.as_bytes()).hex()),
        format!("\nTOKEN={}\n", "*".repeat(token.len())),
        // The whole file, line by line.
        format!("\n{}\n{}\n{}\n", "*".repeat(19), "*".repeat(key.len()), "*".repeat(17)),
        format!("\n{}\nread-only\nMax core file size", "*".repeat(token.len())),
        "\nabsent 0 unset\n".to_owned(),
    ] {
        assert!(ended.log.contains(&line), "{line:?} is not in {}", ended.log);
    }
    assert!(!ended.log.contains("canary"), "{}", ended.log);
    let core = ended.log.lines().find(|line| line.starts_with("Max core")).unwrap();
    // Less than any file, and what a dump into a pipe is left out for.
    assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["1", "1"], "{core}");
    assert_eq!(in_memory(&farm), Vec::<PathBuf>::new(), "they went with the container");

    let image = Image::from_proto(ended.report.image.clone().unwrap()).unwrap();
    let blobs = image.layers.iter().chain([&image.config]);
    let all: Vec<u8> = blobs.flat_map(|blob| farm.service.books().plain(blob.digest)).collect();
    assert!(contains(&all, "opt/kept") && !contains(&all, "canary") && !contains(&all, "TOKEN"), "the image has none");
    forget_build(&farm).await;
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_the_environment_only_where_that_is_asked_for_and_in_no_other_step() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    // Processes of the container, its own first one among them. No script has the words in it.
    let looks = "\
        environ() { cat $1 | busybox tr '\\0' '\\n' | grep -c \"$2\"; }
        echo \"has $(environ '/proc/*/environ' canary-key) $(environ /proc/1/environ canary-) $(environ /proc/self/environ canary-token)\"
        echo \"mounted $(grep -c /run/secrets /proc/mounts) $(ls -A /run/secrets 2>/dev/null | wc -l)\"
        echo looked";
    let waits = format!("{looks}; while ! test -e go; do sleep 0.1; done");
    let one = wants(order(1, &image, &waits), &[("key", None, false), ("token", Some("TOKEN"), false)]);
    gives(&farm, one.lease, &[("key", &canary("key")), ("token", &canary("token"))]);
    farm.send(&one).await;
    farm.logged(one.lease, "\nlooked\n").await;
    assert!(farm.log(one.lease).contains("\nhas 0 0 1\nmounted 1 2\n"), "{}", farm.log(one.lease));
    // Another step of the same build, at the same time on the same worker.
    let two = farm.run(&order(2, &image, looks)).await;
    two.expect_success();
    assert!(two.log.contains("\nhas 0 0 0\nmounted 0 0\n"), "{}", two.log);
    std::fs::write(farm.data_dir().join("jobs").join(one.lease.to_string()).join("work/go"), "").unwrap();
    farm.ended(one.lease).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_crashes_with_a_secret_leaves_no_core_file() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let script = "\
        ulimit -c unlimited 2>/dev/null || echo cannot raise it
        sh -c 'kill -ABRT $$' || echo crashed with $?
        echo \"cores $(find /work -type f -name 'core*' | wc -l)\"
        kill -SEGV $$";
    let crashes = wants(order(1, &image, script), &[("token", Some("TOKEN"), false)]);
    gives(&farm, crashes.lease, &[("token", &canary("token"))]);
    let ended = farm.run(&crashes).await;
    ended.expect(OutcomeKind::Failed, Reason::Signal, "SIGSEGV");
    assert!(
        ended.log.contains("\ncannot raise it\n") && ended.log.contains("\ncrashed with 134\ncores 0\n"),
        "{}",
        ended.log
    );
    assert!(!ended.log.contains("core dumped"), "{}", ended.log);
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    if !pattern.starts_with(['/', '|']) {
        // Without a secret it may, where the kernel puts such files into the work directory.
        let ended = farm.run(&order(2, &image, script)).await;
        assert!(ended.log.contains("\ncores 1\n"), "{}", ended.log);
    }
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

/// What this process says, at every level.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Write for Said {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_with_a_secret_in_hand_and_all_that_can_be_logged_tell_nothing_of_it() {
    let said = Said::default();
    let (log, crash) = (said.clone(), said.clone());
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let stack = std::backtrace::Backtrace::force_capture();
        crash.0.lock().unwrap().extend(format!("{panic}\n{stack}\n").bytes());
        before(panic);
    }));
    let lines = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || log.clone());
    tracing::subscriber::set_global_default(lines.finish()).unwrap();
    let farm = Farm::start().await;
    let worker = farm.faulty_worker(farm.config(), Faults { start_panics: 1.into(), ..Faults::default() }).await;
    let (key, token) = (canary("key"), canary("token"));
    let order =
        wants(order(1, &base_image().await, "echo ran"), &[("key", None, false), ("token", Some("TOKEN"), false)]);
    gives(&farm, order.lease, &[("key", &key), ("token", &token)]);
    let ended = farm.run(&order).await;
    ended.expect(OutcomeKind::Lost, Reason::Engine, "panic: the test wants it so");
    assert!(ended.log.contains("fetched 2 secrets"), "it had them: {}", ended.log);
    let said = said.0.lock().unwrap().clone();
    for word in ["the test wants it so", "faulty.rs", " TRACE ", "h2::"] {
        assert!(contains(&said, word), "{word} is not in what was said");
    }
    for word in [&key, &token] {
        // As text, and as the list of numbers that a derived `Debug` would write.
        let bytes = format!("{:?}", word.as_bytes());
        for form in [word.as_str(), bytes.trim_matches(['[', ']'])] {
            assert!(!contains(&said, form), "{form} was said");
            assert!(!contains(ended.log.as_bytes(), form), "{}", ended.log);
        }
        assert_eq!(files_with(farm.dir.path(), word), Vec::<PathBuf>::new());
    }
    assert_eq!(in_memory(&farm), Vec::<PathBuf>::new(), "and they went with it");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

/// As a download does whose URL has a token in it: the file is called so.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_of_a_job_shows_no_secret_that_its_files_are_named_by() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    for (job, reason, glob, script) in [
        (1, Reason::OutputMissing, "file", "echo data >\"file?token=$TOKEN\""),
        (2, Reason::OutputBad, "x*", "ln -s \"/$TOKEN\" x"),
        (3, Reason::OutputBad, "x*", "mkfifo \"x$TOKEN\""),
    ] {
        let token = canary("token");
        let mut order = wants(order(job, &image, script), &[("token", Some("TOKEN"), false)]);
        Arc::make_mut(&mut order.run).outputs = vec![output(glob)];
        gives(&farm, order.lease, &[("token", &token)]);
        let ended = farm.run(&order).await;
        let hidden = "*".repeat(token.len());
        ended.expect(OutcomeKind::Failed, reason, &hidden);
        assert!(ended.log.contains(&hidden) && !ended.log.contains("canary"), "{}", ended.log);
        assert!(!format!("{:?}", ended.outcome).contains("canary"), "{:?}", ended.outcome);
    }
    assert_eq!(in_memory(&farm), Vec::<PathBuf>::new());
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_stay_hidden_when_another_process_of_the_worker_goes_on() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let token = canary("token");
    // The first half of it is written, without a line end, when the worker dies.
    let script = "\
        echo \"first $TOKEN\"
        printf %s \"${TOKEN%????????????}\"
        echo half >half; while ! test -e go; do sleep 0.1; done
        printf '%s\\n' \"${TOKEN#\"${TOKEN%????????????}\"}\"
        echo \"last $TOKEN\"";
    let order = wants(order(1, &base_image().await, script), &[("token", Some("TOKEN"), false)]);
    gives(&farm, order.lease, &[("token", &token)]);
    farm.send(&order).await;
    let work = farm.data_dir().join("jobs").join(order.lease.to_string()).join("work");
    farm.logged(order.lease, "\nfirst ***").await;
    let half = async {
        while !work.join("half").exists() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), half).await.expect("half of it is written");
    worker.crash().await;
    assert_eq!(in_memory(&farm).len(), 1);

    let worker = farm.worker().await;
    std::fs::write(work.join("go"), "").unwrap();
    let ended = farm.ended(order.lease).await;
    ended.expect_success();
    let mask = "*".repeat(token.len());
    assert!(!ended.log.contains(&token[..12]) && !ended.log.contains(&token[token.len() - 12..]), "{}", ended.log);
    assert!(
        ended.log.contains(&format!("first {mask}\n")) && ended.log.contains(&format!("last {mask}\n")),
        "{}",
        ended.log
    );
    assert_eq!(ended.log.matches(&mask).count(), 3, "each once: {}", ended.log);
    assert_eq!(in_memory(&farm), Vec::<PathBuf>::new());
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_has_ended_is_not_lost_when_the_worker_dies_before_it_goes_on() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let token = canary("token");
    let script = "echo on; while ! test -e go; do sleep 0.1; done; echo \"last $TOKEN\"";
    let order = wants(order(1, &base_image().await, script), &[("token", Some("TOKEN"), false)]);
    gives(&farm, order.lease, &[("token", &token)]);
    farm.send(&order).await;
    farm.logged(order.lease, "\non\n").await;
    worker.crash().await;

    // The next process hears the end, and dies before it has written down more than that the container was started.
    let image_waits = Some(Arc::new(Semaphore::new(0)));
    let worker = farm.faulty_worker(farm.config(), Faults { image_waits, ..Faults::default() }).await;
    std::fs::write(farm.data_dir().join("jobs").join(order.lease.to_string()).join("work/go"), "").unwrap();
    farm.logged(order.lease, "the script ended well").await;
    worker.crash().await;
    assert_eq!(in_memory(&farm).len(), 1, "whoever goes on needs them");

    let worker = farm.worker().await;
    let ended = farm.ended(order.lease).await;
    ended.expect_success();
    assert!(ended.log.contains(&format!("last {}\n", "*".repeat(token.len()))), "{}", ended.log);
    assert!(!ended.log.contains("canary"), "{}", ended.log);
    assert_eq!(in_memory(&farm), Vec::<PathBuf>::new());
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_without_its_secret_does_not_run_and_leftovers_go_at_the_next_start() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    // Nor is anything fetched for it: an image that is nowhere is not missed.
    let one = wants(order(1, "registry.invalid/none:1", "echo ran"), &[("token", None, false)]);
    let ended = farm.run(&one).await;
    ended.expect(OutcomeKind::Failed, Reason::SecretMissing, "there is none of that name");
    assert!(!ended.log.contains("running the script"), "{}", ended.log);

    let two = wants(order(2, &base_image().await, "echo on; while :; do sleep 1; done"), &[("token", None, false)]);
    gives(&farm, two.lease, &[("token", &canary("token"))]);
    farm.send(&two).await;
    farm.logged(two.lease, "\non\n").await;
    worker.crash().await;
    assert_eq!(in_memory(&farm).len(), 1);
    // Nobody holds it any more, and nothing tells of it.
    farm.service.change(|books| books.held.remove(&two.lease));
    std::fs::remove_dir_all(farm.data_dir().join("jobs").join(two.lease.to_string())).unwrap();
    let worker = farm.worker().await;
    let three = wants(order(3, &base_image().await, "cat /run/secrets/token"), &[("token", None, false)]);
    gives(&farm, three.lease, &[("token", &canary("token"))]);
    farm.run(&three).await.expect_success();
    worker.stop().await;
    assert_eq!(in_memory(&farm), Vec::<PathBuf>::new());
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_not_put_on_a_disk() {
    let farm = Farm::start().await;
    let mut config = farm.config();
    let disk = farm.dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    config.secrets_dir = Some(disk.clone());
    let worker = farm.worker_with(config).await;
    let order = wants(order(1, &base_image().await, "echo ran"), &[("token", None, false)]);
    gives(&farm, order.lease, &[("token", &canary("token"))]);
    let ended = farm.run(&order).await;
    // Not lost: whoever loses three jobs gets no others for a while.
    ended.expect(OutcomeKind::Refused, Reason::Unsupported, "is no tmpfs");
    assert!(!ended.log.contains("fetched"), "it did not ask for what it cannot keep: {}", ended.log);
    assert_eq!(std::fs::read_dir(&disk).unwrap().count(), 0);
    worker.stop().await;
}
