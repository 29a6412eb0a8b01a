//! A worker that dies over a step's image, and what the next one makes of it.

use crate::engine::{self, base_image};
use crate::farm::{Ended, Farm, Worker};
use crate::faulty::Faults;
use crate::images::{committing, forget_build, image_in};
use crate::order::order;
use railyard_common::order::{Order, OrderImage};
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_worker::WorkerConfig;
use railyard_worker::runtime::Runtime as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

const SCRIPT: &str = "echo made >/opt/made; touch list";

/// How often the log tells that the layer was packed.
fn packs(log: &str) -> usize {
    log.matches("packed what the script has changed").count()
}

fn job_dir(farm: &Farm, order: &Order) -> PathBuf {
    farm.data_dir().join("jobs").join(order.lease.to_string())
}

/// Waits until the record of the job is at that stage.
async fn at_stage(farm: &Farm, order: &Order, stage: &str) {
    let (path, text) = (job_dir(farm, order).join("state.json"), format!("\"stage\": \"{stage}\""));
    let there = async {
        while !tokio::fs::read_to_string(&path).await.is_ok_and(|state| state.contains(&text)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), there).await.expect("the stage is entered");
}

/// Work for a worker, which died when it was at that stage of the job.
async fn dead_at(farm: &Farm, worker: Worker, stage: &str) -> Order {
    let order = committing(1, &base_image().await, SCRIPT);
    farm.send(&order).await;
    at_stage(farm, &order, stage).await;
    worker.crash().await;
    order
}

/// The same of a worker that has packed the layer and cannot send it; the next one can.
async fn dead_before_sending(farm: &Farm) -> Order {
    farm.service.change(|books| books.no_uploads = true);
    let order = dead_at(farm, farm.worker().await, "upload").await;
    farm.service.change(|books| books.no_uploads = false);
    order
}

/// The image is a good one: the next job finds in it what the first has made.
async fn is_used(farm: &Farm, made: &Ended) {
    made.expect_success();
    let image = OrderImage::Image(image_in(&made.report));
    farm.run(&Order { image, ..order(2, "", "grep made /opt/made") }).await.expect_success();
    forget_build(farm).await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_while_it_packs_packs_again() {
    let farm = Farm::start().await;
    let never = Faults { overlay_waits: Some(Arc::new(Semaphore::new(0))), ..Faults::default() };
    let order = dead_at(&farm, farm.faulty_worker(farm.config(), never).await, "pack").await;
    // As if it had got somewhere.
    std::fs::write(job_dir(&farm, &order).join("scratch/image/layer.zst"), "half").unwrap();
    let worker = farm.worker().await;
    let made = farm.ended(order.lease).await;
    assert_eq!(packs(&made.log), 1, "{}", made.log);
    assert!(!made.log.contains("beginning again"), "{}", made.log);
    is_used(&farm, &made).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_packed_is_sent_by_the_next_worker_and_not_packed_again() {
    let farm = Farm::start().await;
    let order = dead_before_sending(&farm).await;
    // Nobody needs the container any more.
    let engine = engine::runtime().await;
    for container in engine::containers_of(&farm.id).await {
        engine.remove(&container).await.unwrap();
    }
    let worker = farm.worker().await;
    let made = farm.ended(order.lease).await;
    assert_eq!(packs(&made.log), 1, "{}", made.log);
    is_used(&farm, &made).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_has_no_room_gets_the_layers_once_more() {
    let farm = Farm::start().await;
    let worker = farm.worker_with(WorkerConfig { blob_cache: bytesize::ByteSize::b(0), ..farm.config() }).await;
    let made = farm.run(&committing(1, &base_image().await, SCRIPT)).await;
    worker.stop().await;
    let full = Faults { load_fails: 1.into(), ..Faults::default() };
    let worker = farm.faulty_worker(farm.config(), full).await;
    is_used(&farm, &made).await;
    let log = farm.log(order(2, "", "").lease);
    assert!(!log.contains("the engine is away"), "{log}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packed_layer_that_was_cut_off_is_not_sent() {
    let farm = Farm::start().await;
    let order = dead_before_sending(&farm).await;
    let layer = job_dir(&farm, &order).join("scratch/image/layer.zst");
    let length = std::fs::metadata(&layer).unwrap().len();
    std::fs::File::options().write(true).open(&layer).unwrap().set_len(length - 1).unwrap();
    let worker = farm.worker().await;
    let ended = farm.ended(order.lease).await;
    ended.expect(OutcomeKind::Lost, Reason::Engine, &format!("has {} bytes, and not the {length}", length - 1));
    worker.stop().await;
    farm.assert_no_leftovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_image_can_have_is_the_step_s_fault_and_named() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let ended = farm.run(&committing(1, &base_image().await, "touch /opt/.wh.name list")).await;
    ended.expect(OutcomeKind::Failed, Reason::OutputBad, "/opt/.wh.name cannot be in an image");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}
