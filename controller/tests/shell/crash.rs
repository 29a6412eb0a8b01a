//! A controller that is killed, in a process of its own: what it has acknowledged is still there.

use crate::common::controller::{endpoint, local};
use crate::common::people::{Person, submission};
use crate::common::pipelines::{CHAIN, PUBLISH};
use crate::common::transfers::artifact;
use crate::common::worker::{hello, lease, report, succeeded};
use crate::common::{Backend, Controller, Ground, Worker, on_both, soon, until};
use railyard_controller::ControllerConfig;
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_service::channel;
use railyard_service::tls::Role;
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::Channel;

/// Set in the child: it is the controller with these settings, and nothing else.
const CONFIG: &str = "RAILYARD_TEST_CONFIG";
/// What a child runs.
const TEST: &str = "crash::a_killed_controller_has_lost_nothing_that_it_acknowledged";

/// A controller in a process of its own; killed when it is dropped.
pub struct Process {
    child: Child,
    config: ControllerConfig,
    pub url: String,
}

impl Process {
    pub async fn start(config: ControllerConfig) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([TEST, "--exact", "--nocapture"])
            .env(CONFIG, serde_json::to_string(&config).unwrap())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = soon("the controller's start", async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the controller did not start");
                if let Some((_, url)) = line.split_once("listening at ") {
                    return url.to_owned();
                }
            }
        });
        Self { url: url.await, child, config }
    }

    /// SIGKILL, and the next one on what is left.
    pub async fn kill_and_start(self) -> Self {
        self.kill_and_start_after(|| ()).await
    }

    /// The same, with something done while there is none.
    pub async fn kill_and_start_after(mut self, meanwhile: impl FnOnce()) -> Self {
        self.child.kill().await.unwrap();
        meanwhile();
        Self::start(self.config).await
    }

    pub fn person(&self) -> Person {
        Person { rpc: ClientServiceClient::new(self.operator()) }
    }

    /// An operator's connection.
    pub fn operator(&self) -> Channel {
        channel::connect(&endpoint(&self.config, &self.url, Some((Role::Operator, "olga")))).unwrap()
    }

    pub async fn worker(&self, hello: v1::Hello) -> Worker {
        let endpoint = endpoint(&self.config, &self.url, Some((Role::Worker, &hello.worker)));
        Worker::connect(&endpoint, hello).await.unwrap()
    }
}

#[tokio::test]
async fn a_killed_controller_has_lost_nothing_that_it_acknowledged() {
    if let Ok(config) = std::env::var(CONFIG) {
        let controller = Controller::start_as(serde_json::from_str(&config).unwrap()).await;
        println!("listening at {}", controller.url);
        return std::future::pending().await;
    }
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(local(dir.path().to_owned())).await;
    let request = v1::SubmitRequest { idempotency_key: "once".to_owned(), ..submission(CHAIN, "1") };
    let build = process.person().try_submit(request.clone()).await.unwrap().build;

    // The submit was acknowledged.
    let process = process.kill_and_start().await;
    assert!(process.person().try_submit(request).await.unwrap().existing);
    let mut worker = process.worker(hello("anvil")).await;
    let held = lease(&worker.order().await);
    let deb = worker.upload(held, b"a package").await;
    assert_eq!(worker.log(held, 0, b"acked before the kill\n").await.unwrap(), 22);

    // The lease was given, the log bytes were acknowledged, a part was stored.
    let process = process.kill_and_start().await;
    assert_eq!(process.person().log(&build, "base", 0).await, b"acked before the kill\n");
    let mut worker = process.worker(v1::Hello { held: vec![held], ..hello("anvil") }).await;
    assert_eq!(worker.welcome.held, [held]);
    assert!(worker.beat(&[held], v1::Phase::Run).await.lost.is_empty());
    assert_eq!(worker.log(held, 22, b"and after\n").await.unwrap(), 32);
    let (image, uploads) = worker.image(held, b"{}", &[b"layer"]).await;
    let list = worker.upload(held, b"list").await;
    let mut request = v1::ReportRequest { image: Some(image), uploads, ..report(held, succeeded()) };
    request.artifacts = vec![artifact("pkg/a.deb", &deb.blob), artifact("packages.txt", &list.blob)];
    request.uploads.extend(deb.upload.into_iter().chain(list.upload));
    worker.try_report(request.clone()).await.unwrap();

    // The report was acknowledged; its sender may not know that.
    let process = process.kill_and_start().await;
    let mut worker = process.worker(hello("anvil")).await;
    worker.try_report(request).await.unwrap();
    // The order for the next job may have left before the kill; then that attempt was lost with it.
    let disk = lease(&worker.order().await);
    worker.succeed_with(disk, &[("out/disk.raw", b"disk")]).await;
    let test = lease(&worker.order().await);
    worker.succeed(test).await;

    // The last report was acknowledged: the build ends by itself.
    let process = process.kill_and_start().await;
    let view = process.person().ended(&build).await;
    assert_eq!(view.state(), v1::BuildState::Succeeded);
    assert_eq!(view.jobs[0].attempts.len(), 1);
    assert_eq!(process.person().log(&build, "base", 0).await, b"acked before the kill\nand after\n");
    let published = dir.path().join("cache/images/amd64/1/disk.raw");
    assert_eq!(std::fs::read(published).unwrap(), b"disk");
}

on_both!(a_controller_that_is_killed_while_it_places_has_placed_all_or_none_in_the_end);

/// Files that the first build publishes, all in one directory; and the most that one does. A kill that comes too late doubles them: how
/// long they take is the disk's affair.
const PLACED: usize = 60;
const PLACED_MAX: usize = 1_920;
/// Kills that must have struck in the middle, of each kind; and how many may miss.
const HITS: usize = 2;
const KILLS_MAX: usize = 20;

/// In every other round somebody else has taken the last place by the time when the next controller starts.
async fn a_controller_that_is_killed_while_it_places_has_placed_all_or_none_in_the_end(backend: Backend) {
    let ground = Ground::of(backend).await;
    let objects = ground.objects();
    let mut process = Process::start(ground.config()).await;
    let mut placed = PLACED;
    let mut hits = [0; 2];
    for round in 0.. {
        let names: Vec<String> = (0..placed).map(|n| format!("out/{n:04}")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
        let place = objects.join(format!("images/{round}"));
        let there = || std::fs::read_dir(&place).map_or(0, Iterator::count);
        let mut worker = process.worker(hello("anvil")).await;
        let build = process.person().submit(PUBLISH, &round.to_string()).await;
        let held = lease(&worker.order().await);
        worker.succeed_with(held, &files).await;
        until("the first file", async || (there() > 0).then_some(())).await;
        let (mut is_middle, mut is_taken) = (false, false);
        process = process
            .kill_and_start_after(|| {
                is_middle = there() < placed;
                is_taken = is_middle && round % 2 == 1;
                if is_taken {
                    std::fs::write(place.join(format!("{:04}", placed - 1)), "somebody else's").unwrap();
                }
            })
            .await;
        let view = process.person().ended(&build).await;
        let wanted = if is_taken { v1::BuildState::Failed } else { v1::BuildState::Succeeded };
        assert_eq!(view.state(), wanted, "round {round}: {}", view.finalize_error);
        // With their sums; or nothing but what is somebody else's.
        assert_eq!(there(), if is_taken { 1 } else { placed + 1 }, "round {round}");
        if is_middle {
            hits[usize::from(is_taken)] += 1;
        } else {
            placed = PLACED_MAX.min(placed * 2);
        }
        if hits.iter().all(|hits| *hits >= HITS) {
            return;
        }
        assert!(round < KILLS_MAX, "only {hits:?} of {round} kills struck in the middle");
    }
}
