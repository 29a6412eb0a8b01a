//! Steps that fill the disk, in every place that they can write to.

use crate::engine::base_image;
use crate::farm::Farm;
use crate::order::order;
use railyard_common::outcome::{OutcomeKind, Reason};
use std::sync::Arc;

/// What each of them reserves.
const LIMIT_BYTES: u64 = 32 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fills_the_disk_is_ended_wherever_it_writes() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let ways = [
        ("the work directory", "dd if=/dev/zero of=/work/big bs=1M count=100"),
        ("its own root", "dd if=/dev/zero of=/tmp/big bs=1M count=100"),
        ("many files", "mkdir -p a/b; for n in $(seq 100); do dd if=/dev/zero of=a/b/$n bs=1M count=1; done"),
        ("a file of the engine's", "dd if=/dev/zero of=/etc/hosts bs=1M count=100"),
        ("a file without a name", "exec 3>/work/x; rm /work/x; dd if=/dev/zero bs=1M count=100 >&3"),
        ("bit by bit", "while :; do dd if=/dev/zero bs=1M count=4 >>/tmp/big; sleep 1; done"),
    ];
    for (job, (place, fill)) in (1..).zip(ways) {
        // It does not end by itself, and does not listen.
        let script = format!("trap '' TERM\nset +e\n{fill}\necho filled\nwhile :; do sleep 1; done");
        let mut order = order(job, &image, &script);
        let run = Arc::make_mut(&mut order.run);
        run.resources.disk_bytes = LIMIT_BYTES;
        run.resources.memory_bytes = 256 << 20;
        run.capabilities = vec!["default".into()];
        let ended = farm.run(&order).await;
        ended.expect(OutcomeKind::Failed, Reason::DiskLimit, "more than the 32.0 MiB that it reserves");
        assert_eq!(ended.outcome.message.contains("removed and are still open"), place.contains("without a name"));
        println!("{place}: {}", ended.outcome.message);
    }
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_and_memory_are_no_disk_and_an_operator_can_let_steps_have_it() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let image = base_image().await;
    let script = "busybox truncate -s 1000G /work/disk.raw /tmp/disk.raw\n\
                  dd if=/dev/zero of=/dev/shm/x bs=1M count=40\nexec 3>/dev/shm/y; rm /dev/shm/y; head -c 1000000 /dev/zero >&3\n\
                  dd if=/dev/zero of=/work/fits bs=1M count=20\nsleep 8";
    let mut order = order(1, &image, script);
    let run = Arc::make_mut(&mut order.run);
    run.resources.disk_bytes = LIMIT_BYTES;
    run.resources.memory_bytes = 256 << 20;
    farm.run(&order).await.expect_success();
    worker.stop().await;

    let mut config = farm.config();
    config.enforce_disk = false;
    let worker = farm.worker_with(config).await;
    order.lease.job.0 = 2;
    Arc::make_mut(&mut order.run).script = "dd if=/dev/zero of=/work/big bs=1M count=100; sleep 3".to_owned();
    farm.run(&order).await.expect_success();
    worker.stop().await;
    farm.assert_no_leftovers().await;
}
