//! A container engine whose containers are entries in a table: they run in simulated time, and survive the worker's process.

use crate::script::Script;
use crate::truth::{Container, Execution, Truth, now};
use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};
use railyard_common::id::LeaseId;
use railyard_common::platform::Platform;
use railyard_worker::runtime::{
    ByteStream, Chunk, ContainerSpec, ContainerState, Exit, FoundContainer, Hearing, ImageName, LocalImage, Output,
    Runtime, RuntimeError, Source, labels,
};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// How late a deaf one is.
const DEAF: Duration = Duration::from_secs(60);
/// How long an engine needs to make a container.
const MAKE: Duration = Duration::from_millis(40);
/// And to start it.
const START: Duration = Duration::from_millis(120);
/// What a process needs to end when it is told to.
const TERM: Duration = Duration::from_millis(700);
/// And when it is not asked.
const KILL: Duration = Duration::from_millis(60);

/// The engine of one host, as one life of its worker sees it.
pub struct SimEngine {
    truth: Truth,
    host: String,
    life: u64,
    /// How long it takes to obey.
    late: Duration,
}

impl SimEngine {
    /// The engine of `host`. One that is deaf says that it has stopped a container long before it has.
    pub fn new(truth: Truth, host: &str, life: u64, deaf: bool) -> Self {
        let late = if deaf { DEAF } else { Duration::ZERO };
        Self { truth, host: host.to_owned(), life, late }
    }

    fn key(&self, name: &str) -> (String, String) {
        (self.host.clone(), name.to_owned())
    }

    /// A container that was started. Whoever looks at it minds it from now on.
    fn watch(&self, name: &str) -> Result<Watched, RuntimeError> {
        let mut known = self.truth.lock();
        let container = known.containers.get(&self.key(name));
        let found = container.and_then(|container| Some((container, container.execution?)));
        let (container, execution) = found.ok_or_else(|| no_such(name))?;
        let ended = container.ended.subscribe();
        known.mind(execution, self.life);
        Ok(Watched { truth: self.truth.clone(), execution, ended })
    }
}

fn no_such(name: &str) -> RuntimeError {
    refused(404, &format!("find {name}"), "no such container")
}

fn refused(status: u16, doing: &str, message: &str) -> RuntimeError {
    RuntimeError::Refused { doing: doing.to_owned(), status: Some(status), message: message.to_owned() }
}

/// A container that was started.
struct Watched {
    truth: Truth,
    execution: usize,
    ended: watch::Receiver<bool>,
}

impl Watched {
    /// Waits until it has ended, or until `at`. Its end, if it has.
    async fn until(&mut self, at: Option<Duration>) -> Option<(Duration, i64)> {
        loop {
            let end = self.truth.lock().executions[self.execution].end();
            let wake = [at, end.map(|(end, _)| end)].into_iter().flatten().min();
            if let Some(wake) = wake
                && wake <= now()
            {
                return end.filter(|(end, _)| *end <= wake);
            }
            let sleep = async {
                match wake {
                    Some(wake) => tokio::time::sleep(wake.saturating_sub(now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                _ = self.ended.changed() => {}
                () = sleep => {}
            }
        }
    }

    async fn exit(mut self) -> Exit {
        loop {
            if let Some((_, code)) = self.until(None).await {
                return Exit { code, oom_killed: false };
            }
        }
    }

    /// What it writes from line `first` on.
    fn output(self, first: u32) -> Output {
        stream::unfold((self, first), |(mut watched, index)| async move {
            let (lease, script, since) = {
                let known = watched.truth.lock();
                let execution = &known.executions[watched.execution];
                (execution.lease, execution.script.clone(), execution.since)
            };
            if index >= script.lines {
                watched.exit().await;
                return None;
            }
            match watched.until(Some(since + script.line_at(index))).await {
                Some(_) => None,
                None => {
                    let bytes = script.line(&lease.to_string(), index).into();
                    Some((Ok(Chunk { source: Source::Stdout, bytes }), (watched, index + 1)))
                }
            }
        })
        .boxed()
    }
}

#[async_trait]
impl Hearing for SimEngine {
    async fn attach(&self, name: &str) -> Result<Output, RuntimeError> {
        let watched = self.watch(name)?;
        let first = {
            let known = watched.truth.lock();
            let execution = &known.executions[watched.execution];
            let ran = now().saturating_sub(execution.since);
            (0..execution.script.lines)
                .find(|index| execution.script.line_at(*index) > ran)
                .unwrap_or(execution.script.lines)
        };
        Ok(watched.output(first))
    }

    async fn log(&self, name: &str) -> Result<Output, RuntimeError> {
        Ok(self.watch(name)?.output(0))
    }

    async fn leave_mark(&self, name: &str) -> Result<String, RuntimeError> {
        Ok(name.to_owned())
    }

    /// It is never restarted.
    async fn remembers(&self, _: &str, _: Option<&str>) -> Result<bool, RuntimeError> {
        Ok(true)
    }
}

#[async_trait]
impl Runtime for SimEngine {
    fn disk(&self) -> Option<&Path> {
        None
    }

    async fn ping(&self) -> Result<String, RuntimeError> {
        Ok("simulated".to_owned())
    }

    async fn image(&self, reference: &str) -> Result<Option<LocalImage>, RuntimeError> {
        Ok(Some(LocalImage {
            id: reference.to_owned(),
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            created: String::new(),
            layers: Vec::new(),
            config: serde_json::Value::Null,
            size_bytes: 0,
        }))
    }

    async fn pull(&self, reference: &str, _: Platform) -> Result<(), RuntimeError> {
        Err(refused(404, &format!("pull {reference}"), "there are no registries here"))
    }

    async fn tag(&self, _: &str, _: &ImageName) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn untag(&self, _: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn names_below(&self, _: &str) -> Result<Vec<String>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn layer_chains(&self) -> Result<Vec<Vec<railyard_common::digest::Digest>>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn export(&self, reference: &str) -> Result<ByteStream, RuntimeError> {
        Err(refused(501, &format!("export {reference}"), "images do not travel here"))
    }

    async fn load(&self, _: ByteStream) -> Result<(), RuntimeError> {
        Err(refused(501, "load an image", "images do not travel here"))
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        tokio::time::sleep(MAKE).await;
        let bad = |why: &str| refused(400, &format!("create {}", spec.name), why);
        let lease: LeaseId = spec
            .labels
            .get(labels::LEASE)
            .and_then(|lease| lease.parse().ok())
            .ok_or_else(|| bad("it has no lease"))?;
        let file = spec
            .mounts
            .iter()
            .find(|mount| mount.target == "/railyard/script")
            .ok_or_else(|| bad("it has no script"))?;
        let text = std::fs::read_to_string(&file.source).map_err(|error| bad(&error.to_string()))?;
        let script = Script::parse(&text).ok_or_else(|| bad("its script is none of ours"))?;
        let container =
            Container { lease, script, labels: spec.labels.clone(), execution: None, ended: watch::Sender::new(false) };
        self.truth.lock().containers.insert(self.key(&spec.name), container);
        Ok(())
    }

    async fn start(&self, name: &str) -> Result<Output, RuntimeError> {
        if self.state(name).await? == Some(ContainerState::Running) {
            return self.attach(name).await;
        }
        {
            let mut known = self.truth.lock();
            let container = known.containers.get(&self.key(name)).ok_or_else(|| no_such(name))?;
            let execution = Execution {
                lease: container.lease,
                worker: self.host.clone(),
                life: self.life,
                script: container.script.clone(),
                since: now() + START,
                ended: None,
            };
            // Begun now: whoever waits may go away, and the engine starts it all the same.
            let index = known.start(execution);
            if let Some(container) = known.containers.get_mut(&self.key(name)) {
                container.execution = Some(index);
            }
        }
        tokio::time::sleep(START).await;
        Ok(self.watch(name)?.output(0))
    }

    async fn state(&self, name: &str) -> Result<Option<ContainerState>, RuntimeError> {
        let known = self.truth.lock();
        let container = known.containers.get(&self.key(name));
        Ok(container.map(|container| match container.execution.and_then(|index| known.executions[index].end()) {
            Some((end, _)) if end <= now() => ContainerState::Ended,
            _ if container.execution.is_some() => ContainerState::Running,
            _ => ContainerState::Created,
        }))
    }

    async fn exit(&self, name: &str) -> Result<Exit, RuntimeError> {
        Ok(self.watch(name)?.exit().await)
    }

    async fn is_live_restore(&self) -> Result<bool, RuntimeError> {
        Ok(true)
    }

    async fn stop(&self, name: &str, grace: Duration) -> Result<(), RuntimeError> {
        let (after, code) = if grace.is_zero() { (KILL, 137) } else { (TERM.min(grace), 143) };
        self.truth.lock().end(&self.host, name, now() + after + self.late, code);
        match self.watch(name) {
            _ if !self.late.is_zero() => {}
            Ok(watched) => drop(watched.exit().await),
            // Nothing to stop.
            Err(_) => tokio::time::sleep(KILL).await,
        }
        Ok(())
    }

    async fn commit(&self, name: &str, _: &ImageName) -> Result<(), RuntimeError> {
        Err(refused(501, &format!("commit {name}"), "images do not travel here"))
    }

    async fn remove(&self, name: &str) -> Result<(), RuntimeError> {
        {
            let mut known = self.truth.lock();
            known.end(&self.host, name, now() + self.late, 137);
            known.containers.remove(&self.key(name));
        }
        tokio::time::sleep(KILL).await;
        Ok(())
    }

    async fn containers(&self, wanted: &[(String, String)]) -> Result<Vec<FoundContainer>, RuntimeError> {
        let known = self.truth.lock();
        let here = known.containers.iter().filter(|((host, _), _)| *host == self.host);
        let marked = here.filter(|(_, found)| wanted.iter().all(|(key, value)| found.labels.get(key) == Some(value)));
        let found = marked.map(|((_, name), container)| FoundContainer {
            id: name.clone(),
            labels: container.labels.clone().into_iter().collect(),
        });
        Ok(found.collect())
    }
}
