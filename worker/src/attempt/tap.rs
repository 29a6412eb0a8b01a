//! What a container writes, on its way into the log.

use super::fault::Fault;
use crate::log::JobLog;
use crate::runtime::{Output, Runtime};
use bytes::Bytes;
use futures_util::StreamExt as _;
use std::sync::Arc;
use std::time::Duration;

/// After the end of a container, how long the rest of its output may take to arrive.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// Output that ends mostly means a container that ends. If that has not shown after this time, the connection broke.
const ATTACH_PAUSE: Duration = Duration::from_secs(2);

/// What comes out.
pub enum Heard {
    /// What the container wrote.
    Bytes(Bytes),
    /// The connection was broken and is there again. What was written meanwhile is lost.
    Gap,
}

/// The connection to a container's output, made again for as long as the container runs.
pub struct Tap {
    runtime: Arc<dyn Runtime>,
    container: String,
    output: Option<Output>,
    /// Why the connection broke, if it did not just end.
    broken: Option<String>,
}

impl Tap {
    /// Reads from `output`, which is that of `container`.
    pub fn new(runtime: Arc<dyn Runtime>, container: &str, output: Output) -> Self {
        Self { runtime, container: container.to_owned(), output: Some(output), broken: None }
    }

    /// What the container writes would be heard.
    pub fn is_attached(&self) -> bool {
        self.output.is_some()
    }

    /// What comes next. Does not return while the connection is broken. Can be dropped and asked again.
    pub async fn next(&mut self) -> Heard {
        loop {
            if let Some(bytes) = self.read().await {
                return Heard::Bytes(bytes);
            }
            tokio::time::sleep(ATTACH_PAUSE).await;
            match self.runtime.attach(&self.container).await {
                Ok(output) => {
                    (self.output, self.broken) = (Some(output), None);
                    return Heard::Gap;
                }
                Err(error) => tracing::debug!(self.container, %error, "cannot attach to a container again"),
            }
        }
    }

    /// Keeps what is written until `done` is, or the output ends before that.
    ///
    /// # Errors
    /// [`Fault`] if the log cannot be written; `done` is waited for all the same.
    pub async fn read_until<T>(&mut self, done: impl Future<Output = T>, log: &JobLog) -> Result<T, Fault> {
        let mut done = std::pin::pin!(done);
        let written = loop {
            tokio::select! {
                done = &mut done => return Ok(done),
                bytes = self.read() => match bytes {
                    Some(bytes) => if let Err(error) = log.write(&bytes).await { break Err(error) },
                    None => break Ok(()),
                }
            }
        };
        let done = done.await;
        written?;
        Ok(done)
    }

    /// The rest of the output of a container that has ended.
    ///
    /// # Errors
    /// [`Fault`] if the log cannot be written.
    pub async fn finish(mut self, log: &JobLog) -> Result<(), Fault> {
        loop {
            match tokio::time::timeout(LAST_OUTPUT_TIMEOUT, self.read()).await {
                Ok(Some(bytes)) => log.write(&bytes).await?,
                Ok(None) => break,
                Err(_) => {
                    self.broken = Some("it did not end with the container".to_owned());
                    break;
                }
            }
        }
        if let Some(why) = self.broken {
            log.note(&format!("the end of the output may be missing: {why}")).await?;
        }
        Ok(())
    }

    /// The next bytes; `None` when the connection is gone.
    async fn read(&mut self) -> Option<Bytes> {
        match self.output.as_mut()?.next().await {
            Some(Ok(bytes)) => return Some(bytes),
            Some(Err(error)) => {
                tracing::warn!(self.container, %error, "a container's output broke off");
                self.broken = Some(error.to_string());
            }
            None => {}
        }
        self.output = None;
        None
    }
}
