//! How long images stay in the engine.

use crate::engine::{self, base_image};
use crate::farm::Farm;
use crate::images::{by_engine, committing, forget_build, image_in, layer_goes};
use crate::order::order;
use railyard_common::order::{Order, OrderImage};
use railyard_proto::v1;
use railyard_proto::v1::controller_message;
use railyard_worker::WorkerConfig;
use railyard_worker::runtime::Runtime as _;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn images_are_kept_for_running_builds_and_told_at_the_next_start() {
    let farm = Farm::start().await;
    let worker = farm.worker().await;
    let made = farm.run(&committing(1, &base_image().await, "echo kept >/opt/kept; touch list")).await;
    let image = OrderImage::Image(image_in(&made.report));
    farm.run(&Order { image, ..order(2, "", "cat /opt/kept") }).await.expect_success();
    worker.stop().await;
    assert_eq!(engine::images_of(&farm.id).await.len(), 1);
    // As if an earlier worker with another data directory had left it.
    let stray = format!("railyard.local/{}/w1/test", farm.id);
    let name = railyard_worker::runtime::ImageName { repository: stray, tag: "stray".into() };
    engine::runtime().await.tag(&base_image().await, &name).await.unwrap();
    let worker = farm.worker().await;
    assert_eq!(farm.service.books().hellos.last().unwrap().builds, ["test/1.0+x"]);
    assert_eq!(engine::images_of(&farm.id).await.len(), 1, "the stray is gone");
    forget_build(&farm).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_builds_that_are_over_stay_while_there_is_room() {
    let farm = Farm::start().await;
    let roomy = WorkerConfig { image_cache: bytesize::ByteSize::gib(1), ..farm.config() };
    let worker = farm.worker_with(roomy).await;
    let made = farm.run(&committing(1, &base_image().await, "echo kept >/opt/kept; touch list")).await;
    let image = image_in(&made.report);
    let use_it = |job, build: &str| {
        let build = build.parse().unwrap();
        Order { image: OrderImage::Image(image.clone()), build, ..order(job, "", "cat /opt/kept") }
    };
    farm.run(&use_it(2, "test/1.0+x")).await.expect_success();
    farm.tell(controller_message::Kind::BuildOver(v1::BuildOver { build: "test/1.0+x".into() })).await;
    let record = farm.data_dir().join("images.json");
    let over = async {
        while !tokio::fs::read_to_string(&record).await.unwrap().contains("\"over\": true") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), over).await.expect("the worker hears that the build is over");
    let next = farm.run(&use_it(3, "test/2.0")).await;
    next.expect_success();
    assert!(next.log.contains("the image is here"), "{}", next.log);
    assert_eq!(engine::images_of(&farm.id).await.len(), 2, "one name for each build");
    worker.stop().await;

    // There is no room any more: only the build that runs has its image.
    let worker = farm.worker().await;
    assert_eq!(farm.service.books().hellos.last().unwrap().builds, ["test/2.0"]);
    let names = engine::images_of(&farm.id).await;
    assert!(names.len() == 1 && names[0].contains(":2.0-"), "{names:?}");
    farm.tell(controller_message::Kind::BuildOver(v1::BuildOver { build: "test/2.0".into() })).await;
    layer_goes(image.layers[1].digest).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_earlier_attempt_committed_goes_with_it() {
    let farm = Farm::start().await;
    let worker = farm.faulty_worker(farm.config(), by_engine()).await;
    let engine = engine::runtime().await;
    let mut made = Vec::new();
    for attempt in 1..=2 {
        let script = format!("echo {attempt} {} >/opt/attempt; touch list", farm.id);
        let mut order = committing(1, &base_image().await, &script);
        order.lease.attempt = attempt;
        let ended = farm.run(&order).await;
        ended.expect_success();
        made.push(image_in(&ended.report).config.digest.to_string());
    }
    assert_ne!(made[0], made[1]);
    assert!(
        engine.image(&made[0]).await.unwrap().is_none(),
        "the first attempt's image is still there, without a name"
    );
    forget_build(&farm).await;
    // Its name goes a moment before the image itself.
    let gone = async { while engine.image(&made[1]).await.unwrap().is_some() {} };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the second attempt's image goes");
    worker.stop().await;
    farm.assert_no_leftovers().await;
}
