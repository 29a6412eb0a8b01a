//! Steps that try what they must not be able to do, with the defaults of every worker.

use crate::engine::{self, base_image};
use crate::farm::{Ended, Farm};
use crate::order::order;
use railyard_common::order::Order;
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_proto::v1;
use railyard_proto::v1::controller_message;
use railyard_service::convert::ToProto as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The gap between heartbeats that a worker under attack may have: the test's controller wants one each 200 ms, and another
/// that asks for one each ten seconds gives a lease up after two minutes.
const GAP_MAX: Duration = Duration::from_secs(5);

/// So many of them are looked at while a step has all the processes that it may have.
const BEATS: usize = 20;

/// That is how many they are.
const PROCESSES_MAX: u64 = 8192;

/// A word that no other test and no other run has in any process, file or name.
fn canary() -> String {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    format!("canary-{}", hex::encode(bytes))
}

/// A job with the engine's usual capabilities: what steps that install packages have.
fn capable(job: u64, image: &str, script: &str) -> Order {
    let mut order = order(job, image, script);
    Arc::make_mut(&mut order.run).capabilities = vec!["default".into()];
    order
}

/// Processes of this machine with `word` in their arguments or their environment.
fn processes_with(word: &str) -> Vec<String> {
    let has = |path: &Path| std::fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(word));
    let entries = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let own = format!("/proc/{}", std::process::id());
    let others = entries.filter(|path| *path != Path::new(&own));
    let found = others.filter(|path| has(&path.join("cmdline")) || has(&path.join("environ")));
    found.map(|path| path.display().to_string()).collect()
}

/// Every line that the script wrote as `TRIED name: word`, in order.
fn tried(ended: &Ended) -> Vec<&str> {
    ended.log.lines().filter_map(|line| line.strip_prefix("TRIED ")).collect()
}

/// Tells what became of a command: `TRIED name: done`, or `failed`.
const TRY: &str = "try() { name=$1; shift; if \"$@\" >/dev/null 2>&1; then echo \"TRIED $name: done\"; \
                   else echo \"TRIED $name: failed\"; fi; }\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_step_writes_nowhere_but_to_its_own_work_directory_and_root() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let word = canary();
    let root = Path::new("/").metadata().map(|meta| std::os::unix::fs::MetadataExt::dev(&meta)).unwrap();
    let (major, minor) = (nix::sys::stat::major(root), nix::sys::stat::minor(root));
    let script = format!(
        "{TRY}
        try own-root sh -c 'echo x > /etc/{word}'
        try work touch /work/{word}
        try script sh -c 'echo x >> /railyard/script'
        try sysctl sh -c 'cat /proc/sys/kernel/core_pattern > /proc/sys/kernel/core_pattern'
        try sysrq sh -c 'echo h > /proc/sysrq-trigger'
        try cgroup mkdir /sys/fs/cgroup/memory/{word} /sys/fs/cgroup/{word}
        try sysfs sh -c 'echo 1 > /sys/kernel/mm/ksm/run'
        try mount mount -t tmpfs none /tmp
        try remount mount -o remount,rw /sys
        try node mknod /tmp/disk b {major} {minor}
        try disk dd if=/tmp/disk of=/dev/null count=1
        try memory mknod /tmp/mem c 1 1
        try read-memory dd if=/tmp/mem of=/dev/null count=1
        try namespace busybox unshare -m true
        try host-root ls /proc/1/root/work/{word}
        true"
    );
    let ended = farm.run(&capable(1, &base_image().await, &script)).await;
    ended.expect_success();
    let want = [
        "own-root: done",
        "work: done",
        "script: failed",
        "sysctl: failed",
        "sysrq: failed",
        "cgroup: failed",
        "sysfs: failed",
        "mount: failed",
        "remount: failed",
        "node: done",
        "disk: failed",
        "memory: done",
        "read-memory: failed",
        "namespace: failed",
        // Its first process is its own as well.
        "host-root: done",
    ];
    assert_eq!(tried(&ended), want, "{}", ended.log);
    assert!(!Path::new("/etc").join(&word).exists() && !Path::new("/work").join(&word).exists());
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_sees_neither_other_jobs_nor_the_host_nor_the_engine() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let (image, word) = (base_image().await, canary());
    let script =
        format!("echo {word} > /tmp/{word}; echo {word} > /work/{word}\nexport S={word}\necho ready\nsleep 600");
    let holder = capable(1, &image, &script);
    farm.send(&holder).await;
    farm.logged(holder.lease, "\nready\n").await;
    // The word stands in the script only in two halves: it would find itself.
    let (first, second) = word.split_at(10);
    let script = format!(
        "W={first}; W=${{W}}{second}
        find / -name \"*$W*\" ! -path '/proc/*' 2>/dev/null | grep . && echo FOUND A FILE
        grep -l -r \"$W\" /work /tmp /etc /railyard 2>/dev/null | grep . && echo FOUND A TEXT
        for p in /proc/[0-9]*; do
          if grep -q \"S=$W\" $p/environ 2>/dev/null; then echo FOUND PROCESS $p; fi
        done
        ls -d /proc/[0-9]* | wc -l
        find / -type s 2>/dev/null | grep . && echo FOUND A SOCKET
        [ -e /var/run/docker.sock ] || [ -e /run/docker.sock ] || [ -e /run/containerd ] && echo FOUND THE ENGINE
        grep sock /proc/mounts && echo FOUND A MOUNT
        env | grep -v -E '^(RAILYARD_|CI=|PATH=|HOME=|HOSTNAME=|PWD=|SHLVL=|W=|OLDPWD=|_=)' && echo FOUND A VARIABLE
        true"
    );
    let ended = farm.run(&capable(2, &image, &script)).await;
    ended.expect_success();
    assert!(!ended.log.contains("FOUND"), "{}", ended.log);
    assert!(!processes_with(&word).is_empty(), "the other job's word would be found if it could be seen");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_gains_nothing_from_a_program_that_runs_as_root() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = engine::setuid_image().await;
    let script = "busybox su -s /bin/sh nobody -c \"/opt/setuid/busybox su root -c 'id -u'; id -u\" 2>&1";
    let elsewhere = engine::output_of(&image, script).await;
    assert_eq!(elsewhere, "0\n65534\n", "in a container without our defaults the program works");
    let ended = farm.run(&capable(1, &image, script)).await;
    let said: Vec<&str> = ended.log.lines().filter(|line| !line.starts_with("==>")).collect();
    assert_eq!(said, ["su: must be suid to work properly", "65534"], "{}", ended.log);
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_step_outlives_it() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let word = canary();
    // It holds the output open, is in a session of its own, has no parent and hears no signal.
    let daemon = "busybox setsid sh -c \"trap '' TERM HUP INT; : $WORD; while :; do sleep 1; done\" &";
    let script = format!("export WORD={word}\n{daemon}\n{daemon}\necho ready\n");
    for (job, end) in [(1, "exit 0"), (2, "exit 3"), (3, "sleep 600")] {
        let mut order = capable(job, &base_image().await, &format!("{script}{end}"));
        Arc::make_mut(&mut order.run).timeout_secs = if job == 3 { 2 } else { 60 };
        let ended = farm.run(&order).await;
        match job {
            1 => ended.expect_success(),
            2 => ended.expect(OutcomeKind::Failed, Reason::ExitCode, "exit code 3"),
            _ => ended.expect(OutcomeKind::TimedOut, Reason::WallClock, "timeout"),
        }
        assert!(ended.log.contains("ready"), "{}", ended.log);
        assert_eq!(processes_with(&word), Vec::<String>::new());
    }
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_nobody_waits_for_are_reaped() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    // A hundred orphans end at once; their new parent takes them in.
    let script = "for n in $(seq 100); do sh -c 'true & exec true' & done; wait; n=0
        while grep -q '^State:.Z' /proc/[0-9]*/status 2>/dev/null; do
          n=$((n + 1)); [ $n -lt 300 ] || exit 9; busybox usleep 100000
        done
        cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l";
    let ended = farm.run(&order(1, &base_image().await, script)).await;
    ended.expect_success();
    assert!(ended.log.contains("docker-init") || ended.log.contains("tini"), "{}", ended.log);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_ended_before_the_worker_and_have_a_control_group_of_their_own() {
    let farm = Farm::start().await;
    let (image, parent) = (base_image().await, format!("/{}", canary()));
    let mut config = farm.config();
    config.cgroup_parent = Some(parent.clone());
    let worker = farm.worker_with(config).await;
    let script = "cat /proc/self/oom_score_adj; cat /sys/fs/cgroup/cpu/cpu.shares || cat /sys/fs/cgroup/cpu.weight
        echo -1000 >/proc/self/oom_score_adj; cat /proc/self/oom_score_adj\necho ready; exec sleep 600";
    let mut order = order(1, &image, &format!("set +e; exec 2>/dev/null\n{script}"));
    Arc::make_mut(&mut order.run).timeout_secs = 5;
    farm.send(&order).await;
    farm.logged(order.lease, "ready\n").await;
    let groups = processes_with("RAILYARD_JOB=step1@")
        .into_iter()
        .map(|path| std::fs::read_to_string(format!("{path}/cgroup")).unwrap_or_default());
    let groups: Vec<String> = groups.filter(|groups| groups.contains(&parent)).collect();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    assert!(!groups.is_empty() && !own.contains(&parent), "{groups:?} {own}");
    // Not everybody may be better off than others; who may is.
    let mut may = std::process::Command::new("/bin/sh");
    may.args(["-c", "echo -900 >/proc/self/oom_score_adj"]).stderr(std::process::Stdio::null());
    let want = if may.status().unwrap().success() { "-900" } else { "0" };
    assert_eq!(std::fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim(), want);
    let ended = farm.ended(order.lease).await;
    // The shares are the kernel's weight of 1024 for others; version 2 of control groups has 100 for them.
    assert!(
        ended.log.contains("\n800\n128\n800\nready\n") || ended.log.contains("\n800\n5\n800\nready\n"),
        "{}",
        ended.log
    );
    worker.stop().await;
    farm.assert_no_leftovers().await;
    for controller in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        // Empty by now; in version 2 there is only one, and no directory for each controller.
        let _ = std::fs::remove_dir(controller.path().join(&parent[1..]));
    }
    let _ = std::fs::remove_dir(Path::new("/sys/fs/cgroup").join(&parent[1..]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_heartbeats_on_while_steps_fork_and_eat_what_they_can() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let bomb = "printf '#!/bin/sh\\n/tmp/bomb & /tmp/bomb & exec sleep 600' >/tmp/bomb; chmod 755 /tmp/bomb; echo begun
        exec busybox awk 'BEGIN { while (1) system(\"/tmp/bomb 2>/dev/null &\") }'";
    let mut bomb = order(1, &image, bomb);
    let mut eater = order(2, &image, "echo begun\nwhile :; do dd if=/dev/zero of=/dev/null bs=1G count=1; done");
    let mut shared = order(3, &image, "echo begun\nwhile :; do dd if=/dev/zero of=/dev/shm/x bs=1M; done");
    for order in [&mut bomb, &mut eater, &mut shared] {
        let run = Arc::make_mut(&mut order.run);
        run.resources.memory_bytes = 256 << 20;
    }
    // Docker gives it 64 MiB of files in memory.
    Arc::make_mut(&mut shared.run).resources.memory_bytes = 32 << 20;
    // Enough for all the processes that it may have.
    Arc::make_mut(&mut bomb.run).resources.memory_bytes = 2 << 30;
    for order in [&bomb, &eater, &shared] {
        farm.send(order).await;
    }
    farm.logged(bomb.lease, "begun").await;
    let from = farm.service.books().beats.len();
    // All that it may have, and it goes on.
    let container = format!("railyard-{}-w1-{}", farm.id, bomb.lease);
    while engine::process_count(&container).await < PROCESSES_MAX {}
    let full = farm.service.books().beats.len();
    farm.until("heartbeats come", |books| (books.beats.len() >= full + BEATS).then_some(())).await;
    let beats = farm.service.books().beats[from..].to_vec();
    let gap = beats.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    println!("{} heartbeats, the longest gap {gap:?}", beats.len());
    assert!(gap < GAP_MAX, "the longest gap between heartbeats was {gap:?}");
    let reason = "the bomb has gone off".to_owned();
    farm.tell(controller_message::Kind::Cancel(v1::CancelLease { lease: Some(bomb.lease.to_proto()), reason })).await;
    farm.ended(bomb.lease).await.expect(OutcomeKind::Cancelled, Reason::Cancelled, "gone off");
    for lease in [eater.lease, shared.lease] {
        farm.ended(lease).await.expect(OutcomeKind::Failed, Reason::Oom, "more memory than its limit");
    }
    // The worker, its engine and this machine go on.
    farm.run(&order(4, &image, "true")).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}
