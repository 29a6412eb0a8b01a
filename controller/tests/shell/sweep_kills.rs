//! A controller that is killed in the middle of sweeps: what is kept stays whole, and the rest goes in the end.

use crate::common::pipelines::PUBLISH;
use crate::common::sweeps::{Sweeps, files};
use crate::common::transfers::blob_of;
use crate::common::worker::{hello, lease};
use crate::common::{Backend, Ground, on_both, until};
use crate::crash::Process;
use railyard_common::layout;
use railyard_common::retention::{Age, Rule};
use railyard_proto::v1;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use railyard_service::task;
use std::path::Path;

on_both!(a_controller_that_is_killed_in_the_middle_of_a_sweep_loses_nothing_and_leaves_nothing);

/// Kills that must have struck in the middle, and how many may miss.
const HITS: usize = 20;
const ROUNDS_MAX: usize = 240;
/// Orphans of each round: so that a sweep takes a while.
const ORPHANS: u32 = 400;

async fn a_controller_that_is_killed_in_the_middle_of_a_sweep_loses_nothing_and_leaves_nothing(backend: Backend) {
    let ground = Ground::of(backend).await;
    let (objects, mut config) = (ground.objects(), ground.config());
    config.retention = vec![Rule { keep_last: 2, ..Rule::default() }];
    (config.sweep.every, config.sweep.grace, config.sweep.deletes_per_sec) = (Age::default(), Age::default(), 0);
    let mut process = Process::start(config).await;
    let (mut hits, mut round) = (0, 0u32);
    while hits < HITS {
        assert!((round as usize) < ROUNDS_MAX, "only {hits} of {round} kills struck in the middle");
        let mut worker = process.worker(hello("anvil")).await;
        let build = process.person().submit(PUBLISH, &format!("1.{round}")).await;
        let held = lease(&worker.order().await);
        let own = format!("made in round {round}");
        worker.succeed_with(held, &[("out/disk", own.as_bytes()), ("out/same", b"in all of them")]).await;
        assert_eq!(process.person().ended(&build).await.state(), v1::BuildState::Succeeded);
        let orphans: Vec<String> = (0..ORPHANS).map(|n| orphan(&objects, round, n)).collect();
        let sweeps = Sweeps(AdminServiceClient::new(process.operator()));
        let sweeping = task::spawn("sweep", async move { sweeps.try_run("").await });
        // At another place in each round, from the first delete to the last.
        let wanted = ORPHANS as usize * (round as usize % 10) / 10;
        let gone = || orphans.iter().filter(|path| !objects.join(path).exists()).count();
        until("deletes", async || (gone() > wanted || sweeping.is_finished()).then_some(())).await;
        let mut left = 0;
        process = process.kill_and_start_after(|| left = ORPHANS as usize - gone()).await;
        hits += usize::from(left > 0);
        // Whether it was told of its end does not matter.
        let _ = sweeping.await.unwrap();
        kept(&process, &objects, round).await;
        round += 1;
    }
    assert!(cut_off(&process).await >= HITS, "each that was cut off is known by its beginning");
    let sweeps = Sweeps(AdminServiceClient::new(process.operator()));
    sweeps.settle().await;
    kept(&process, &objects, round - 1).await;
    let left = files(&objects);
    let blobs = left.iter().filter(|path| path.starts_with("blobs/") && !path.ends_with("~end")).count();
    assert_eq!(blobs, 3, "two of their own and one of both: {left:?}");
    let of_builds = left.iter().filter(|path| path.starts_with("images/")).count();
    assert_eq!(of_builds, 2 * 3, "each with its sums");
}

/// Sweeps that the audit saw begin, and not end.
async fn cut_off(process: &Process) -> usize {
    let mut records = AdminServiceClient::new(process.operator())
        .show_audit(v1::ShowAuditRequest { limit: 10_000, ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    let (mut begun, mut ended) = (0, 0);
    while let Some(record) = records.message().await.unwrap() {
        begun += usize::from(record.what == "sweep-begin");
        ended += usize::from(record.what == "sweep" && record.outcome == "done");
    }
    begun - ended
}

/// A blob of nobody.
fn orphan(objects: &Path, round: u32, n: u32) -> String {
    let path = layout::blob(&blob_of(format!("{round} {n}").as_bytes())).to_string();
    let file = objects.join(&path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, "1234").unwrap();
    path
}

/// The two newest builds are there, with every byte.
async fn kept(process: &Process, objects: &Path, newest: u32) {
    for round in newest.saturating_sub(1)..=newest {
        let build = format!("pub/1.{round}");
        assert_eq!(process.person().build(&build).await.state(), v1::BuildState::Succeeded);
        for (name, text) in [("disk", format!("made in round {round}")), ("same", "in all of them".to_owned())] {
            let published = objects.join(format!("images/1.{round}/{name}"));
            assert_eq!(std::fs::read_to_string(published).unwrap(), text, "{build}");
            let blob = objects.join(layout::blob(&blob_of(text.as_bytes())).as_str());
            assert_eq!(std::fs::read_to_string(blob).unwrap(), text, "{build}");
        }
    }
}
