//! The drill: a backup of a running farm, the loss of its data, and the farm that comes back.

use crate::common::pipelines::ONE;
use crate::common::worker::{hello, lease, report, succeeded};
use crate::common::{Backend, Controller, refused};
use railyard_common::time::Millis;
use railyard_controller::backup::{self, Backup, BackupError};
use railyard_proto::v1;
use railyard_proto::v1::admin_service_client::AdminServiceClient;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::tls::Role;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use tonic::Code;

pub async fn back_up(controller: &Controller, to: &Path) -> Backup {
    let snapshot = backup::fetch(controller.channel(Some((Role::Operator, "olga")))).await.unwrap();
    let made = Backup::new(snapshot, controller.data_dir(), None, SystemClock.now()).unwrap();
    backup::write(&made, to).unwrap();
    made
}

/// The same farm after a restore from `file`: its cache is what it was.
pub async fn restored(controller: Controller, backend: Backend, file: &Path) -> Controller {
    let address = controller.address();
    let stopped = controller.stop().await;
    let data_dir = stopped.config.data_dir.clone();
    let cache = data_dir.with_file_name("cache of before");
    if backend == Backend::Embedded {
        std::fs::rename(data_dir.join("cache"), &cache).unwrap();
    }
    std::fs::remove_dir_all(&data_dir).unwrap();
    backup::restore(file, &data_dir, false, SystemClock.now()).unwrap();
    if backend == Backend::Embedded {
        std::fs::rename(&cache, data_dir.join("cache")).unwrap();
    }
    stopped.start(address).await
}

#[tokio::test]
async fn a_farm_comes_back_and_gives_no_number_twice() {
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("farm.backup");
    let controller = Controller::start().await;
    let person = controller.operator();
    let (mut anvil, mut hammer) = (controller.worker("anvil").await, None);
    let done = person.submit(ONE, "done").await;
    let first = lease(&anvil.order().await);
    anvil.succeed(first).await;
    let before = person.ended(&done).await;
    let finished = person.submit(ONE, "finished-later").await;
    let finished_lease = lease(&anvil.order().await);
    // One that runs on another worker, all the time.
    let mut other = controller.worker_saying(v1::Hello { held: Vec::new(), ..hello("hammer") }).await;
    let running = person.submit(ONE, "running").await;
    let running_lease = tokio::select! {
        order = other.order() => { hammer = Some("hammer"); lease(&order) }
        order = anvil.order() => lease(&order),
    };
    let runs_on = hammer.unwrap_or("anvil");

    back_up(&controller, &file).await;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    anvil.succeed(finished_lease).await;
    person.ended(&finished).await;
    let forgotten = person.submit(ONE, "forgotten").await;
    let mut orders = Vec::new();
    tokio::select! { order = anvil.order() => orders.push(("anvil", order)), order = other.order() => orders.push(("hammer", order)) }
    let (forgotten_on, forgotten_lease) = (orders[0].0, lease(&orders[0].1));

    let address = controller.address();
    let stopped = controller.stop().await;
    let data_dir = stopped.config.data_dir.clone();
    std::fs::remove_dir_all(&data_dir).unwrap();
    let restored = backup::restore(&file, &data_dir, false, SystemClock.now()).unwrap();
    assert_eq!((restored.about.builds, restored.moved_aside), (3, None));
    // The same clients as before, with the certificates that they have.
    let controller = stopped.start(address).await;
    assert_eq!(person.build(&done).await, before);
    refused(person.try_build(&forgotten).await, Code::NotFound, "unknown-build");

    // Workers come back with what they hold; what the farm does not know of is told to be lost.
    let mut sessions = Vec::new();
    for name in ["anvil", "hammer"] {
        let mut held = Vec::new();
        held.extend((name == runs_on).then_some(running_lease));
        held.extend((name == forgotten_on).then_some(forgotten_lease));
        let mut worker = controller.worker_saying(v1::Hello { held: held.clone(), ..hello(name) }).await;
        let known: Vec<_> = held.iter().copied().filter(|lease| *lease == running_lease).collect();
        assert_eq!(worker.welcome.held, known);
        if name == forgotten_on {
            assert_eq!(worker.beat(&held, v1::Phase::Run).await.lost, [forgotten_lease]);
            let late = worker.try_report(report(forgotten_lease, succeeded())).await;
            refused(late, Code::FailedPrecondition, "stale-lease");
        }
        if name == runs_on {
            worker.succeed(running_lease).await;
        }
        sessions.push(worker);
    }
    let view = person.ended(&running).await;
    assert_eq!((view.state(), view.jobs[0].attempts.len()), (v1::BuildState::Succeeded, 1));

    // What ended after the backup runs again, and what is new gets a new number.
    let again = person.submit(ONE, "again").await;
    let [mut anvil, mut hammer] = <[_; 2]>::try_from(sessions).ok().unwrap();
    for _ in 0..2 {
        let (worker, order) = tokio::select! {
            order = anvil.order() => (&anvil, order),
            order = hammer.order() => (&hammer, order),
        };
        let next = lease(&order);
        assert!(next.attempt > 1_000, "{next:?}");
        match order.build == finished {
            true => assert_eq!(next.job, finished_lease.job),
            false => assert!(next.job > forgotten_lease.job + 100_000, "{next:?} after {forgotten_lease:?}"),
        }
        worker.succeed(next).await;
    }
    for build in [&finished, &again] {
        assert_eq!(person.ended(build).await.state(), v1::BuildState::Succeeded);
    }
    let address = controller.address();
    let controller = controller.stop().await.start(address).await;
    assert_eq!(controller.operator().build(&again).await.state(), v1::BuildState::Succeeded);
}

#[tokio::test]
async fn only_operators_take_the_state_away() {
    let controller = Controller::start().await;
    for role in [Role::Viewer, Role::Submitter, Role::Worker] {
        let error = backup::fetch(controller.channel(Some((role, "nosy")))).await.unwrap_err();
        let BackupError::Refused(status) = error else { panic!("{error}") };
        refused::<()>(Err(*status), Code::PermissionDenied, "forbidden");
    }
}

#[tokio::test]
async fn a_damaged_backup_touches_nothing_and_a_good_one_deletes_nothing() {
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("farm.backup");
    let controller = Controller::start().await;
    controller.operator().submit(ONE, "1").await;
    back_up(&controller, &file).await;
    let data_dir = controller.data_dir().to_owned();
    let error = backup::restore(&file, &data_dir, true, SystemClock.now()).unwrap_err();
    assert!(matches!(error, BackupError::Running { .. }), "{error}");
    let stopped = controller.stop().await;

    let whole = std::fs::read(&file).unwrap();
    let bad = kept.path().join("bad.backup");
    let flips = (0..whole.len()).step_by(whole.len() / 200).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    let cuts = (0..whole.len()).step_by(whole.len() / 50).map(|at| whole[..at].to_vec());
    for bytes in flips.chain(cuts) {
        std::fs::write(&bad, bytes).unwrap();
        let empty = kept.path().join("empty");
        let error = backup::restore(&bad, &empty, false, SystemClock.now()).unwrap_err();
        assert!(matches!(error, BackupError::Damaged { .. }), "{error}");
        assert!(!empty.exists());
    }

    let error = backup::restore(&file, &data_dir, false, SystemClock.now()).unwrap_err();
    assert!(matches!(error, BackupError::NotEmpty { .. }) && error.to_string().contains("--force"), "{error}");
    // Twice from the same backup: not even then the same numbers, and all that was there is there still.
    let mut first_jobs = Vec::new();
    let mut stopped = Some(stopped);
    for n in 0..2_u64 {
        let restored = backup::restore(&file, &data_dir, true, Millis(SystemClock.now().0 + n * 60_000)).unwrap();
        let aside = restored.moved_aside.unwrap();
        assert!(aside.join("journal").is_dir() && aside.join("pki/ca.key").is_file(), "{}", aside.display());
        let controller = stopped.take().unwrap().start(([127, 0, 0, 1], 0).into()).await;
        let mut worker = controller.worker("anvil").await;
        let next = controller.operator().submit(ONE, &format!("after-{n}")).await;
        let orders = [worker.order().await, worker.order().await];
        first_jobs.extend(orders.iter().map(|order| (order.build == next, lease(order).job, lease(order).attempt)));
        stopped = Some(controller.stop().await);
    }
    let distinct: std::collections::BTreeSet<_> = first_jobs.iter().map(|(_, job, attempt)| (job, attempt)).collect();
    assert_eq!(distinct.len(), 4, "{first_jobs:?}");
}

#[tokio::test]
async fn a_restore_that_was_cut_off_does_not_start_as_an_empty_farm() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("data/restoring")).unwrap();
    let config = crate::common::controller::local(dir.path().join("data"));
    let (tx, _ready) = tokio::sync::oneshot::channel();
    let error = railyard_controller::run(config, tokio_util::sync::CancellationToken::new(), tx).await.unwrap_err();
    assert!(error.to_string().contains("railyard controller restore"), "{error:#}");
}

#[tokio::test]
async fn secrets_come_back_with_their_key() {
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("farm.backup");
    let controller = Controller::start().await;
    let admin = || AdminServiceClient::new(controller.channel(Some((Role::Operator, "olga"))));
    let set = |name: &str, value: &str| v1::SetSecretRequest {
        name: name.to_owned(),
        value: value.as_bytes().to_vec(),
        pipelines: vec!["one".to_owned()],
        steps: Vec::new(),
        replace: false,
    };
    admin().set_secret(set("key", "the first value")).await.unwrap();
    back_up(&controller, &file).await;
    // Only after the backup.
    admin().set_secret(set("later", "another value")).await.unwrap();
    let address = controller.address();
    let stopped = controller.stop().await;
    let data_dir = stopped.config.data_dir.clone();
    let restored = backup::restore(&file, &data_dir, true, SystemClock.now()).unwrap();
    let aside = restored.moved_aside.unwrap();
    assert!(aside.join("secrets/later.json").exists() && aside.join("pki/secrets.key").exists());
    let controller = stopped.start(address).await;
    let mut admin = AdminServiceClient::new(controller.channel(Some((Role::Operator, "olga"))));
    let listed = admin.list_secrets(v1::ListSecretsRequest {}).await.unwrap().into_inner().secrets;
    let told: Vec<_> = listed.iter().map(|secret| (secret.name.as_str(), secret.fault.as_str())).collect();
    assert_eq!(told, [("key", "")], "it is there and can be opened");
}
