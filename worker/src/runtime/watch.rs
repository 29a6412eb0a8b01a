//! Watching a container of the Docker engine: whether it still runs, how it ended, what happened to it.

use super::docker::Docker;
use super::{Exit, RuntimeError};
use bollard::errors::Error;
use bollard::models::EventMessage;
use bollard::query_parameters as query;
use futures_util::{StreamExt as _, TryStreamExt as _};
use railyard_service::clock::{Clock as _, SystemClock};
use std::collections::HashMap;
use std::time::Duration;

/// The engine may hear of a process that was killed for want of memory after its container has ended.
const OOM_SETTLE: Duration = Duration::from_secs(1);

/// The exit code of a process that SIGKILL ended.
const KILLED_CODE: i64 = 137;

/// Before a wait that broke off is begun again.
const WAIT_PAUSE: Duration = Duration::from_secs(1);

/// How often a container that runs is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks in a row that find no process of a container before the engine is told: it takes a while to notice by itself.
const LOOKS_MAX: u32 = 2;

/// A signal that does nothing to what runs.
const HARMLESS: &str = "SIGCONT";

impl Docker {
    /// Waits until the container does not run. A connection that breaks is an error: the engine may be another one when it
    /// answers again.
    pub(super) async fn wait(&self, container: &str) -> Result<Exit, RuntimeError> {
        loop {
            let options = query::WaitContainerOptionsBuilder::default().condition("not-running").build();
            let mut waiting = self.short.wait_container(container, Some(options));
            // A non-zero exit comes as an error; inspect tells the truth about both.
            let heard = self.until_heard(container, waiting.next()).await;
            let doing = format!("wait for container {container}");
            match &heard {
                None => {
                    let why = "it broke off a wait".to_owned();
                    return Err(RuntimeError::Unreachable { socket: self.socket.clone(), why });
                }
                Some(Ok(_) | Err(Error::DockerContainerWaitError { .. } | Error::DockerResponseServerError { .. })) => {
                }
                Some(Err(_)) => heard.transpose().map(drop).map_err(self.error(&doing))?,
            }
            let doing = format!("inspect container {container}");
            let inspect = self.short.inspect_container(container, None).await.map_err(self.error(&doing))?;
            let state = inspect.state.unwrap_or_default();
            if state.running != Some(true) {
                let code = state.exit_code.unwrap_or(-1);
                let known = state.oom_killed == Some(true);
                let since = state.started_at.unwrap_or_default();
                let oom_killed = known || (code == KILLED_CODE && self.ran_out_of_memory(container, &since).await);
                return Ok(Exit { code, oom_killed });
            }
            tracing::debug!(container, "a container that had ended runs; waiting again");
            tokio::time::sleep(WAIT_PAUSE).await;
        }
    }

    /// Waits for the engine's word about the end of a container, and reminds it: one whose containerd is killed never hears of
    /// what ended meanwhile. A signal makes it look, and it learns that there is nothing to send that to.
    async fn until_heard<T>(&self, container: &str, word: impl Future<Output = T>) -> T {
        let mut word = std::pin::pin!(word);
        let mut looks = 0;
        loop {
            tokio::select! {
                biased;
                heard = &mut word => return heard,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            looks = match self.lives(container).await {
                Ok(false) => looks + 1,
                // An engine that does not answer tells that by the word as well.
                Ok(true) | Err(_) => 0,
            };
            if looks >= LOOKS_MAX {
                tracing::warn!(container, "the engine has not noticed that a container has ended");
                let options = query::KillContainerOptionsBuilder::default().signal(HARMLESS).build();
                // If that fails there will be another time.
                let _ = self.short.kill_container(container, Some(options)).await;
                looks = 0;
            }
        }
    }

    /// Whether there are processes of a container that runs, as far as the engine knows. Others count as well.
    async fn lives(&self, container: &str) -> Result<bool, Error> {
        let inspect = self.short.inspect_container(container, None).await?;
        let state = inspect.state.unwrap_or_default();
        let (Some(pid), Some(id), Some(true)) = (state.pid, inspect.id, state.running) else { return Ok(true) };
        let groups = tokio::fs::read_to_string(format!("/proc/{pid}/cgroup")).await;
        if groups.is_ok_and(|groups| groups.contains(&id)) {
            return Ok(true);
        }
        // This worker may live among other processes than the engine.
        let options = query::TopOptionsBuilder::default().ps_args("-eo pid").build();
        let top = self.short.top_processes(container, Some(options)).await?;
        Ok(top.processes.is_some_and(|processes| !processes.is_empty()))
    }

    /// What the engine still remembers of the container: its last events, and those of all others count as well.
    pub(super) async fn past_events(&self, container: &str) -> Result<Vec<EventMessage>, RuntimeError> {
        let filters = HashMap::from([("container".to_owned(), vec![container.to_owned()])]);
        // Without an end it would wait for more of them.
        let until = SystemClock.now().0 + 1;
        let until = format!("{}.{:03}", until / 1000, until % 1000);
        let options = query::EventsOptionsBuilder::default().since("0").until(&until).filters(&filters).build();
        let doing = format!("tell what happened to container {container}");
        self.short.events(Some(options)).try_collect().await.map_err(self.error(&doing))
    }

    /// Whether the kernel has killed something in the container for want of memory, as the engine's events tell.
    async fn ran_out_of_memory(&self, container: &str, since: &str) -> bool {
        let only = |key: &str, value: &str| (key.to_owned(), vec![value.to_owned()]);
        let filters = HashMap::from([only("container", container), only("event", "oom")]);
        let options = query::EventsOptionsBuilder::default().since(since).filters(&filters).build();
        let mut events = std::pin::pin!(self.short.events(Some(options)));
        matches!(tokio::time::timeout(OOM_SETTLE, events.next()).await, Ok(Some(Ok(_))))
    }
}

/// What the event says about that.
pub(super) fn attribute<'a>(event: &'a EventMessage, name: &str) -> Option<&'a str> {
    event.actor.as_ref()?.attributes.as_ref()?.get(name).map(String::as_str)
}
