//! Who goes first, who waits for whom, and where a job may run; and that everybody is told why it waits.

use crate::common::people::submission;
use crate::common::pipelines::ONE;
use crate::common::worker::{hello, lease};
use crate::common::{Controller, refused};
use railyard_proto::v1;
use tonic::Code;

/// A worker for one job at a time.
fn narrow(name: &str) -> v1::Hello {
    let capacity = v1::Capacity { cpu_millis: 1_000, memory_bytes: 1 << 40, disk_bytes: 12 << 30, slots: 1 };
    v1::Hello { capacity: Some(capacity), ..hello(name) }
}

/// One step with these fields.
fn step(fields: &str) -> String {
    format!("{ONE}{fields}")
}

#[tokio::test]
async fn the_urgent_go_first() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker_saying(narrow("anvil")).await);
    let first = person.submit(ONE, "first").await;
    let order = worker.order().await;
    assert_eq!(order.build, first);
    let mut held = lease(&order);
    for priority in ["change", "schedule", "manual", "release"] {
        let request = v1::SubmitRequest { priority: priority.to_owned(), ..submission(ONE, priority) };
        person.try_submit(request).await.unwrap();
    }
    let why = person.job("one/change", "work@linux/amd64").await.why;
    assert_eq!(why, "needs 1 cpu; anvil has 0 cpu free");
    for wanted in ["one/release", "one/manual", "one/schedule", "one/change"] {
        worker.succeed(held).await;
        let order = worker.order().await;
        assert_eq!(order.build, wanted);
        held = lease(&order);
    }
    let list = person.rpc.clone().list_builds(v1::ListBuildsRequest::default()).await.unwrap().into_inner().builds;
    let listed: Vec<_> = list.iter().map(|build| build.priority.as_str()).collect();
    assert_eq!(listed, ["release", "manual", "schedule", "change", "manual"]);
}

#[tokio::test]
async fn a_newer_build_takes_the_place_of_those_that_wait() {
    let pipeline =
        ONE.replace("name: one\n", "name: one\nparams: { branch: { default: main } }\nsupersede: '{{ branch }}'\n");
    let controller = Controller::start().await;
    let person = controller.operator();
    let submit = async |version: &str, branch: &str, priority: &str| {
        let params = [("branch".to_owned(), branch.to_owned())].into();
        let request = v1::SubmitRequest { params, priority: priority.to_owned(), ..submission(&pipeline, version) };
        person.try_submit(request).await.unwrap().superseded
    };
    for (version, branch, priority) in [("1", "main", ""), ("2", "fix", "change"), ("3", "main", "release")] {
        assert_eq!(submit(version, branch, priority).await, if version == "3" { vec!["one/1"] } else { vec![] });
    }
    assert_eq!(submit("4", "main", "").await, [""; 0]);
    let old = person.ended("one/1").await;
    assert_eq!((old.state(), old.cancel_reason.as_str()), (v1::BuildState::Cancelled, "superseded by one/3"));

    // What has begun goes on.
    let mut worker = controller.worker_saying(narrow("anvil")).await;
    assert_eq!(worker.order().await.build, "one/3");
    assert_eq!(submit("5", "main", "").await, ["one/4"]);
    assert_eq!(person.build("one/3").await.state(), v1::BuildState::Running);
    assert_eq!(person.build("one/2").await.state(), v1::BuildState::Running);
}

#[tokio::test]
async fn jobs_of_a_group_take_turns() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("anvil").await);
    let pipeline = step("    concurrency: '{{ pipeline }}/signing'\n");
    let planned = &person.plan(&pipeline).await.jobs[0];
    let group = planned.concurrency.as_ref().unwrap();
    assert_eq!((group.group.as_str(), group.limit, planned.why.as_str()), ("one/signing", 1, ""));
    for version in ["1", "2", "3"] {
        person.submit(&pipeline, version).await;
    }
    let first = worker.order().await;
    assert_eq!(first.build, "one/1");
    assert_eq!(
        person.job("one/3", "work@linux/amd64").await.why,
        "waits for its turn in group one/signing: one/1 work@linux/amd64 runs, 1 before it"
    );
    assert_eq!(
        person.plan(&pipeline).await.jobs[0].why,
        "would wait for its turn in group one/signing: one/1 work@linux/amd64 runs"
    );
    worker.succeed(lease(&first)).await;
    let second = worker.order().await;
    assert_eq!(second.build, "one/2");
    worker.succeed(lease(&second)).await;
    assert_eq!(worker.order().await.build, "one/3");
}

#[tokio::test]
async fn a_job_runs_in_its_pool_and_where_its_labels_are() {
    let controller = Controller::start().await;
    let person = controller.operator();
    let labels = [("kvm".to_owned(), "yes".to_owned())].into();
    let mut kvm = controller.worker_saying(v1::Hello { labels, ..narrow("kvm") }).await;
    let mut plain = controller.worker_saying(narrow("plain")).await;
    let (label, pool) = (step("    labels: { kvm: 'yes' }\n"), step("    pool: big\n"));
    let planned = person.plan(&label).await;
    assert_eq!(
        (&planned.jobs[0].workers, &planned.jobs[0].labels["kvm"]),
        (&vec!["kvm".to_owned()], &"yes".to_owned())
    );
    person.submit(&label, "label").await;
    assert_eq!(kvm.order().await.build, "one/label");
    let odd = person.submit(&step("    labels: { kvm: nested }\n"), "odd").await;
    assert_eq!(
        person.job(&odd, "work@linux/amd64").await.why,
        "needs label kvm=nested; kvm has kvm=yes; needs label kvm=nested; plain has no such label"
    );
    person.submit(ONE, "any").await;
    assert_eq!(plain.order().await.build, "one/any");

    let waits = person.submit(&pool, "pool").await;
    assert_eq!(
        person.job(&waits, "work@linux/amd64").await.why,
        "needs pool big; kvm is in none; needs pool big; plain is in none"
    );
    let mut big = controller.worker_saying(v1::Hello { pool: "big".to_owned(), ..narrow("big") }).await;
    assert_eq!(big.order().await.build, waits);
    assert_eq!(person.worker("big").await.pool, "big");
    assert_eq!((person.plan(&pool).await.jobs[0].pool.as_str(), person.worker("kvm").await.pool.as_str()), ("big", ""));
}

#[tokio::test]
async fn show_and_plan_say_what_is_short() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker_saying(narrow("w1")).await);
    let large = step("    resources: { disk: 40GiB }\n");
    let build = person.submit(&large, "large").await;
    let why = "needs 40.0 GiB disk; w1 has 12.0 GiB";
    assert_eq!(person.job(&build, "work@linux/amd64").await.why, why);
    assert_eq!(person.plan(&large).await.jobs[0].why, why);

    let half = step("    resources: { disk: 8GiB, cpu: 500m }\n");
    assert_eq!(person.plan(&half).await.jobs[0].workers, ["w1"]);
    person.submit(&half, "half").await;
    worker.order().await;
    let plan = person.plan(&half).await;
    assert_eq!((plan.jobs[0].workers.len(), plan.jobs[0].why.as_str()), (0, "needs 8.0 GiB disk; w1 has 4.0 GiB free"));
    assert_eq!(person.worker("w1").await.free_disk_bytes, 0);
    worker.beat(&[], v1::Phase::Run).await;
    assert_eq!(person.worker("w1").await.free_disk_bytes, 1 << 40);
    refused(person.try_submit(submission(&step("    pool: Big\n"), "1")).await, Code::InvalidArgument, "bad-pipeline");
}

#[tokio::test]
async fn what_a_worker_says_of_its_disks_is_shown_and_counts_before_a_lease() {
    let controller = Controller::start().await;
    let report = |room_bytes| v1::DiskReport {
        file_systems: vec![v1::FileSystem {
            role: v1::FileSystemRole::Data.into(),
            total_bytes: 100 << 30,
            free_bytes: 20 << 30,
            ..Default::default()
        }],
        uses: vec![v1::DiskUse {
            kind: v1::DiskKind::Blobs.into(),
            on: v1::FileSystemRole::Data.into(),
            count: 3,
            bytes: 7 << 30,
            evictable_bytes: 5 << 30,
        }],
        room_bytes,
        counted_millis_ago: 4,
    };
    let hello = v1::Hello { disk: Some(report(3 << 30)), ..narrow("w1") };
    let (person, mut worker) = (controller.operator(), controller.worker_saying(hello).await);
    assert_eq!(person.worker("w1").await.disk, Some(report(3 << 30)));
    let half = step("    resources: { disk: 8GiB }\n");
    let build = person.submit(&half, "half").await;
    assert_eq!(person.job(&build, "work@linux/amd64").await.why, "needs 8.0 GiB disk; w1 has 3.0 GiB free");
    worker.disk = Some(report(9 << 30));
    worker.beat(&[], v1::Phase::Run).await;
    worker.order().await;
    assert_eq!(person.worker("w1").await.disk, Some(report(9 << 30)));
    // What makes no sense is as if it had not been said: then what is free counts.
    worker.disk = Some(v1::DiskReport { uses: vec![v1::DiskUse::default(); 1000], ..report(0) });
    worker.beat(&[], v1::Phase::Run).await;
    assert_eq!(person.worker("w1").await.disk, None);
}

#[tokio::test]
async fn a_worker_under_pressure_gets_nothing_new_and_says_why() {
    let controller = Controller::start().await;
    let (person, mut worker) = (controller.operator(), controller.worker("w1").await);
    worker.pressure = Some(v1::Pressure { scarce: v1::Scarce::Memory.into(), percent: 34 });
    worker.beat(&[], v1::Phase::Run).await;
    assert_eq!(person.worker("w1").await.pressure, worker.pressure);
    let words = "w1 takes nothing new: its processes wait for memory 34 % of the time";
    let build = person.submit(ONE, "1").await;
    assert_eq!(person.job(&build, "work@linux/amd64").await.why, words);
    let planned = person.plan(ONE).await.jobs.remove(0);
    assert_eq!((planned.workers.as_slice(), planned.why.as_str()), ([].as_slice(), words));
    worker.pressure = None;
    worker.beat(&[], v1::Phase::Run).await;
    assert_eq!(worker.order().await.build, build);
}
