//! The others: what people do with the engine's own client.

use crate::Round;
use crate::bridge;
use crate::events::{self, Events};
use crate::scene::Scene;
use anyhow::Context as _;
use railyard_tests::engine::Engine;
use railyard_tests::farm::free_port;
use railyard_tests::process::Process;
use railyard_tests::wait;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The container that writes.
const CONTAINER: &str = "railyard-bench";

/// How long the registry may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A way to get an image of that name from one engine to the other. What tells that it is there is the engine's event.
type Way<'a> = &'a dyn Fn(&str) -> anyhow::Result<()>;

/// The whole image as one compressed archive: to the cache, from the cache, into the engine. rsync goes over no network here,
/// which is to its advantage.
pub fn save_and_load(scene: &Scene, round: usize) -> anyhow::Result<Round> {
    let dir = tempfile::tempdir_in(scene.dir.path())?;
    let hand_over = |image: &str| {
        let script = format!(
            "cd '{dir}' && mkdir -p cache there && \
             {first} save '{image}' | zstd -T0 -q -f -o image.tar.zst && \
             rsync --partial -a image.tar.zst cache/ && rsync --partial -a cache/image.tar.zst there/ && \
             zstd -d -q -c there/image.tar.zst | {second} load --quiet >/dev/null",
            dir = dir.path().display(),
            first = client(&scene.first),
            second = client(&scene.second),
        );
        shell(&script)
    };
    measured(scene, &format!("railyard-bench-saved-{round}"), "event=load", &hand_over)
}

/// Only the layers that the registry and the engine lack.
pub fn push_and_pull(scene: &Scene, round: usize) -> anyhow::Result<Round> {
    let dir = tempfile::tempdir_in(scene.dir.path())?;
    let port = free_port();
    let _registry = registry(dir.path(), port)?;
    let engine = std::fs::read_to_string(scene.second.dir().context("a private engine")?.join("dockerd.pid"))?;
    let _bridge = bridge::into_network_of(engine.trim().parse()?, port, dir.path())?;
    let hand_over = |image: &str| {
        shell(&format!(
            "{first} push --quiet '{image}' >/dev/null && {second} pull --quiet '{image}' >/dev/null",
            first = client(&scene.first),
            second = client(&scene.second),
        ))
    };
    // Registry and engine have the base, as they would.
    let base = format!("localhost:{port}/base:1");
    scene.first.query(&["tag", &scene.base, &base]);
    hand_over(&base)?;
    let measured = measured(scene, &format!("localhost:{port}/railyard-bench-{round}"), "event=pull", &hand_over);
    for engine in [&scene.first, &scene.second] {
        engine.docker(&["image", "rm", &base]);
    }
    measured
}

/// Makes both layers and hands both images over, from the end of the container to the other engine's event.
fn measured(scene: &Scene, repository: &str, arrives: &str, hand_over: Way<'_>) -> anyhow::Result<Round> {
    let (big, small) = (format!("{repository}:big"), format!("{repository}:small"));
    let mut arrivals = Events::listen(&scene.second, &[arrives])?;
    let mut ends = Events::listen(&scene.first, &["event=die", &format!("container={CONTAINER}")])?;
    let mut figures = Vec::new();
    for (base, script, image) in [(&scene.base, scene.big_script(), &big), (&big, scene.small_script(), &small)] {
        let begun = events::now();
        scene.first.docker(&["rm", "--force", CONTAINER]);
        scene.first.query(&["run", "--name", CONTAINER, "--network=none", base, "sh", "-c", &script]);
        scene.first.query(&["commit", CONTAINER, image]);
        hand_over(image)?;
        let end = ends.next(begun)?;
        figures.push(arrivals.next(end)? - end);
    }
    scene.first.docker(&["rm", "--force", CONTAINER]);
    for engine in [&scene.first, &scene.second] {
        engine.docker(&["image", "rm", &small, &big]);
    }
    Ok(Round { big: figures[0], small: figures[1] })
}

fn registry(dir: &Path, port: u16) -> anyhow::Result<Process> {
    let config = dir.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{ level: error }}\nstorage: {{ filesystem: {{ rootdirectory: {}/registry }} }}\n\
         http: {{ addr: '127.0.0.1:{port}' }}\n",
        dir.display()
    );
    std::fs::write(&config, text)?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config);
    let registry = Process::start(command, &dir.join("registry.log"));
    wait::until("the registry's port", START_LIMIT, || {
        TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| format!("{error}; {}", registry.log()))
    });
    Ok(registry)
}

fn client(engine: &Engine) -> String {
    format!("docker --host 'unix://{}'", engine.socket().display())
}

fn shell(script: &str) -> anyhow::Result<()> {
    let output = Command::new("bash").args(["-e", "-o", "pipefail", "-c", script]).output()?;
    anyhow::ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
