//! A controller that is killed, in a process of its own: what it has acknowledged is still there.

use crate::common::controller::{endpoint, local};
use crate::common::people::{Person, submission};
use crate::common::pipelines::CHAIN;
use crate::common::transfers::artifact;
use crate::common::worker::{hello, lease, report, succeeded};
use crate::common::{Controller, Worker, soon};
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use railyard_service::channel;
use railyard_service::tls::Role;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Set in the child: it is the controller of this data directory, and nothing else.
const DATA_DIR: &str = "RAILYARD_TEST_DATA_DIR";
const TEST: &str = "crash::a_killed_controller_has_lost_nothing_that_it_acknowledged";

/// A controller in a process of its own; killed when it is dropped.
struct Process {
    child: Child,
    data_dir: PathBuf,
    url: String,
}

impl Process {
    async fn start(data_dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([TEST, "--exact", "--nocapture"])
            .env(DATA_DIR, data_dir)
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
        Self { url: url.await, child, data_dir: data_dir.to_owned() }
    }

    /// SIGKILL, and the next one on what is left.
    async fn kill_and_start(mut self) -> Self {
        self.child.kill().await.unwrap();
        Self::start(&self.data_dir).await
    }

    fn person(&self) -> Person {
        let endpoint = endpoint(&local(self.data_dir.clone()), &self.url, Some((Role::Operator, "olga")));
        Person { rpc: ClientServiceClient::new(channel::connect(&endpoint).unwrap()) }
    }

    async fn worker(&self, hello: v1::Hello) -> Worker {
        let endpoint = endpoint(&local(self.data_dir.clone()), &self.url, Some((Role::Worker, &hello.worker)));
        Worker::connect(&endpoint, hello).await.unwrap()
    }
}

#[tokio::test]
async fn a_killed_controller_has_lost_nothing_that_it_acknowledged() {
    if let Some(data_dir) = std::env::var_os(DATA_DIR) {
        let controller = Controller::start_at(data_dir.into()).await;
        println!("listening at {}", controller.url);
        return std::future::pending().await;
    }
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path()).await;
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
