//! Jobs that go too far, and jobs that are stopped.

use crate::engine::{self, base_image};
use crate::farm::Farm;
use crate::order::{lease, order};
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_proto::v1;
use railyard_proto::v1::controller_message;
use railyard_service::convert::ToProto as _;
use std::sync::Arc;

/// Writes a line, and then ignores SIGTERM.
const STUBBORN: &str = "trap '' TERM\necho running\nwhile :; do sleep 1; done";

#[tokio::test(flavor = "multi_thread")]
async fn too_much_memory_is_named_as_such() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    // Killed itself, or its child: then the shell ends with a code of its own.
    let eat = "dd if=/dev/zero of=/dev/null bs=200M count=1";
    for (job, script, code) in [(1, format!("exec {eat}"), 137), (2, format!("{eat} || exit 3"), 3)] {
        let ended = farm.run(&order(job, &image, &script)).await;
        ended.expect(OutcomeKind::Failed, Reason::Oom, "64.0 MiB");
        assert_eq!(ended.outcome.exit_code, Some(code));
    }
    // The same exit code for other reasons.
    for (job, script) in [(3, "exit 137"), (4, "kill -9 $$")] {
        let ended = farm.run(&order(job, &image, script)).await;
        ended.expect(OutcomeKind::Failed, Reason::Signal, "SIGKILL");
        assert_eq!(ended.outcome.exit_code, Some(137));
    }
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn time_runs_out() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let mut wall = order(1, &image, STUBBORN);
    Arc::make_mut(&mut wall.run).timeout_secs = 2;
    // It never stops writing, which must not keep the clock from being looked at.
    let mut chatty = order(2, &image, "yes");
    Arc::make_mut(&mut chatty.run).timeout_secs = 2;
    let mut silent = order(3, &image, "echo one; sleep 1; echo two; sleep 600");
    Arc::make_mut(&mut silent.run).silence_timeout_secs = 3;
    for order in [&wall, &chatty, &silent] {
        farm.send(order).await;
    }
    farm.ended(wall.lease).await.expect(OutcomeKind::TimedOut, Reason::WallClock, "timeout of 2s");
    farm.ended(chatty.lease).await.expect(OutcomeKind::TimedOut, Reason::WallClock, "timeout of 2s");
    let ended = farm.ended(silent.lease).await;
    ended.expect(OutcomeKind::TimedOut, Reason::Silence, "silence timeout of 3s");
    assert_eq!(ended.outcome.log_tail.last().unwrap(), "two");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_kills_what_does_not_listen() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let order = order(1, &base_image().await, STUBBORN);
    farm.send(&order).await;
    farm.logged(order.lease, "\nrunning\n").await;
    let reason = "a person wanted it".to_owned();
    farm.tell(controller_message::Kind::Cancel(v1::CancelLease { lease: Some(order.lease.to_proto()), reason })).await;
    farm.ended(order.lease).await.expect(OutcomeKind::Cancelled, Reason::Cancelled, "a person wanted it");
    assert_eq!(engine::containers_of(&farm.id).await, Vec::<String>::new());
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_and_limits_are_those_of_the_step() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let script = "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status\n\
                  cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max\n\
                  cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max\n\
                  ls /sys/class/net";
    let ended = farm.run(&order(1, &image, script)).await;
    ended.expect_success();
    for line in [
        "CapEff:\t0000000000000000\n",
        "CapBnd:\t0000000000000000\n",
        "NoNewPrivs:\t1\nSeccomp:\t2\n",
        "\n67108864\n8192\nlo\n",
    ] {
        assert!(ended.log.contains(line), "{line:?} is not in {}", ended.log);
    }
    worker.stop().await;
    let mut config = farm.config();
    config.allow = vec!["capabilities:SYS_PTRACE".parse().unwrap()];
    let worker = farm.worker_with(config).await;
    let mut more = order(2, &image, script);
    Arc::make_mut(&mut more.run).capabilities = vec!["default".into(), "SYS_PTRACE".into()];
    let ended = farm.run(&more).await;
    assert!(ended.log.contains("CapEff:\t00000000a80c05fb\n"), "{}", ended.log);
    assert!(ended.log.contains("Seccomp:\t2\n"), "a capability more is not the end of the filter: {}", ended.log);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_word_from_the_controller_the_container_is_stopped_before_its_lease_expires() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let mut order = order(1, &base_image().await, STUBBORN);
    order.ttl_millis = 4000;
    farm.send(&order).await;
    farm.logged(order.lease, "\nrunning\n").await;
    farm.service.change(|books| books.deaf = true);
    let ended = farm.ended(order.lease).await;
    ended.expect(OutcomeKind::Lost, Reason::WorkerGone, "the controller was not heard for 3 s");
    assert_eq!(engine::containers_of(&farm.id).await, Vec::<String>::new());
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_grace_of_a_cancelled_job_ends_with_its_lease() {
    let farm = Farm::start().await;
    let mut config = farm.config();
    config.stop_grace_secs = 3600;
    let worker = farm.worker_with(config).await;
    let mut order = order(1, &base_image().await, STUBBORN);
    order.ttl_millis = 4000;
    farm.send(&order).await;
    farm.logged(order.lease, "\nrunning\n").await;
    farm.service.change(|books| books.deaf = true);
    let reason = "a person wanted it".to_owned();
    farm.tell(controller_message::Kind::Cancel(v1::CancelLease { lease: Some(order.lease.to_proto()), reason })).await;
    farm.ended(order.lease).await.expect(OutcomeKind::Cancelled, Reason::Cancelled, "a person wanted it");
    assert_eq!(engine::containers_of(&farm.id).await, Vec::<String>::new());
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lease_is_dropped_without_a_word() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    for job in [1, 2] {
        farm.send(&order(job, &image, STUBBORN)).await;
        farm.logged(lease(job), "\nrunning\n").await;
    }
    // One is lost in a heartbeat's ack, the other by the refusal of its log.
    farm.service.change(|books| books.held.remove(&lease(1)));
    farm.service.change(|books| books.stale.insert(lease(2)));
    farm.tell(controller_message::Kind::Cancel(v1::CancelLease {
        lease: Some(lease(2).to_proto()),
        reason: "so that there is something to log".into(),
    }))
    .await;
    // A third job shows that the worker goes on; when it has ended, so have the others.
    farm.run(&order(3, &image, "while [ -e /dev/null ]; do echo x; break; done")).await.expect_success();
    worker.stop().await;
    assert_eq!(farm.service.books().reports.keys().copied().collect::<Vec<_>>(), [lease(3)]);
    farm.assert_no_leftovers().await;
}
