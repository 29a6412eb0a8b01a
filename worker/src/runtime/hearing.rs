//! What a container says, and whether the engine was there to hear it.

use super::docker::Docker;
use super::engine_log::Lines;
use super::forms::chunk;
use super::watch::attribute;
use super::{Hearing, Output, RuntimeError};
use async_trait::async_trait;
use bollard::models::ExecConfig;
use bollard::query_parameters as query;
use futures_util::{StreamExt as _, TryStreamExt as _};

#[async_trait]
impl Hearing for Docker {
    async fn attach(&self, container: &str) -> Result<Output, RuntimeError> {
        let options = query::AttachContainerOptionsBuilder::default().stream(true).stdout(true).stderr(true).build();
        let doing = format!("attach to container {container}");
        let attached = self.short.attach_container(container, Some(options)).await.map_err(self.error(&doing))?;
        let socket = self.socket.clone();
        Ok(attached
            .output
            .map_ok(chunk)
            .map_err(move |error| RuntimeError::from_engine(&socket, "read a container's output", error))
            .boxed())
    }

    async fn log(&self, container: &str) -> Result<Output, RuntimeError> {
        let options = query::LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).timestamps(true);
        let socket = self.socket.clone();
        let messages = self
            .long
            .logs(container, Some(options.build()))
            .map_ok(chunk)
            .map_err(move |error| RuntimeError::from_engine(&socket, "read a container's log", error));
        Ok(Lines::new(messages.boxed()).into_output())
    }

    async fn leave_mark(&self, container: &str) -> Result<String, RuntimeError> {
        // A command that is never started: the engine keeps it in its memory and nowhere else.
        let never = ExecConfig { cmd: Some(vec!["true".to_owned()]), ..ExecConfig::default() };
        let doing = format!("leave a mark with container {container}");
        Ok(self.short.create_exec(container, never).await.map_err(self.error(&doing))?.id)
    }

    async fn remembers(&self, container: &str, mark: Option<&str>) -> Result<bool, RuntimeError> {
        if let Some(mark) = mark {
            match self.short.inspect_exec(mark).await.map_err(self.error("look at a mark")) {
                Ok(_) => return Ok(true),
                // It goes with the end of the container as well. The event that it was left stays longer.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let events = self.past_events(container).await?;
        Ok(events.iter().any(|event| match mark {
            Some(mark) => attribute(event, "execID") == Some(mark),
            None => event.action.as_deref() == Some("start"),
        }))
    }
}
