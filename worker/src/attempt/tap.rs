//! What a container writes, on its way into the log.
//!
//! As long as nothing breaks, it is heard as it is written. When a connection broke, or another process heard what came
//! before, the engine's own log is read again from its beginning, and what the attempt's log has is left out. That log
//! has whole lines only; so the container is listened to as well, to know that it is not silent.

use super::fault::Fault;
use super::vigil::Vigil;
use crate::disk::DiskError;
use crate::log::{Catchup, JobLog, News};
use crate::runtime::{Chunk, Hearing, Output, RuntimeError, Source};
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
    Bytes(Chunk),
    /// The same, out of the engine's log.
    News(Source, News),
    /// The container writes; what, comes later.
    Sign,
    /// The connection was broken and is there again. What was written meanwhile is lost.
    Gap,
}

/// Where the output comes from.
enum Way {
    /// From the container, as it is written.
    Live(Output),
    /// From the engine's log.
    Written { log: Output, catchup: Catchup, signs: Option<Output> },
    /// It has ended, it seems with the container.
    Ended,
    /// It broke off, for this reason.
    Broken(String),
}

/// The connection to a container's output, made again for as long as the container runs.
pub struct Tap {
    runtime: Arc<dyn Hearing>,
    container: String,
    way: Way,
    /// An output that ended may have been cut off.
    doubtful: bool,
    /// The engine's log has thrown its beginning away.
    rotated: bool,
    vigil: Vigil,
    /// The engine may have been restarted since it was last asked.
    suspect: bool,
}

impl Tap {
    /// Reads from `output`, which is that of `container` from its first byte.
    pub fn live(runtime: Arc<dyn Hearing>, container: &str, output: Output, vigil: Vigil) -> Self {
        let (container, way) = (container.to_owned(), Way::Live(output));
        Self { runtime, container, way, doubtful: false, rotated: false, vigil, suspect: false }
    }

    /// Goes on with a container that another process has listened to.
    pub async fn resumed(
        runtime: Arc<dyn Hearing>,
        container: &str,
        log: &JobLog,
        vigil: Vigil,
    ) -> Result<Self, Fault> {
        let (container, way) = (container.to_owned(), Way::Broken("the worker was restarted".to_owned()));
        let mut tap = Self { runtime, container, way, doubtful: true, rotated: false, vigil, suspect: true };
        if let Err(error) = tap.open(log).await? {
            tracing::debug!(tap.container, %error, "cannot read a container's output yet");
        }
        Ok(tap)
    }

    /// What the container writes would be heard.
    pub fn is_attached(&self) -> bool {
        matches!(self.way, Way::Live(_) | Way::Written { signs: Some(_), .. })
    }

    /// The engine was away: what looked like the end of the output may have been its own.
    pub fn doubt(&mut self) {
        (self.doubtful, self.suspect) = (true, true);
    }

    /// What comes next. Does not return while the connection is broken. Can be dropped and asked again.
    ///
    /// # Errors
    /// [`Fault`] if the attempt's log cannot be read.
    pub async fn next(&mut self, log: &JobLog) -> Result<Heard, Fault> {
        loop {
            if let Some(heard) = self.read().await {
                return Ok(heard);
            }
            tokio::time::sleep(ATTACH_PAUSE).await;
            self.suspect = true;
            match self.open(log).await? {
                Ok(()) => {}
                Err(error) => tracing::debug!(self.container, %error, "cannot read a container's output again"),
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
                biased;
                done = &mut done => return Ok(done),
                heard = self.read() => match heard {
                    Some(heard) => if let Err(error) = keep(heard, log).await { break Err(error) },
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
        self.drain(log).await?;
        if matches!(self.way, Way::Ended) && !self.doubtful {
            return Ok(());
        }
        // Once more, from what the engine wrote down.
        self.suspect |= matches!(self.way, Way::Broken(_));
        match self.open(log).await? {
            Ok(()) => self.drain(log).await?,
            Err(error) => self.way = Way::Broken(error.to_string()),
        }
        if let Way::Broken(why) = self.way {
            log.note(&format!("the end of the output may be missing here: {why}")).await?;
        }
        Ok(())
    }

    async fn drain(&mut self, log: &JobLog) -> Result<(), Fault> {
        loop {
            match tokio::time::timeout(LAST_OUTPUT_TIMEOUT, self.read()).await {
                Ok(Some(heard)) => keep(heard, log).await?,
                Ok(None) => return Ok(()),
                Err(_) => {
                    self.way = Way::Broken("it did not end with the container".to_owned());
                    return Ok(());
                }
            }
        }
    }

    /// Begins to read the engine's log, behind what `log` has of it.
    async fn open(&mut self, log: &JobLog) -> Result<Result<(), RuntimeError>, DiskError> {
        // Listened to first: whatever the log has not, is heard.
        let signs = self.runtime.attach(&self.container).await;
        // Before a note is written: the log knows what came last only as long as that is the last.
        let catchup = Catchup::new(log.taken().await?);
        let way = if self.rotated {
            signs.map(Way::Live)
        } else {
            let written = self.runtime.log(&self.container).await;
            written.map(|log| Way::Written { log, catchup, signs: signs.ok() })
        };
        // Asked last: an engine that is the same now was the same when it was asked for the output.
        let checked = match way {
            Ok(_) if self.suspect => self.vigil.check(log).await?,
            _ => Ok(()),
        };
        Ok(way.and_then(|way| {
            checked?;
            (self.way, self.suspect) = (way, false);
            Ok(())
        }))
    }

    /// What comes next; `None` when the connection is gone.
    async fn read(&mut self) -> Option<Heard> {
        loop {
            let heard = match &mut self.way {
                Way::Live(output) => output.next().await,
                Way::Written { log, signs, .. } => tokio::select! {
                    biased;
                    message = log.next() => message,
                    sign = sign(signs) => {
                        if !sign {
                            *signs = None;
                            continue;
                        }
                        return Some(Heard::Sign);
                    }
                },
                Way::Ended | Way::Broken(_) => return None,
            };
            let chunk = match heard {
                Some(Ok(chunk)) => chunk,
                Some(Err(error)) => {
                    tracing::warn!(self.container, %error, "a container's output broke off");
                    self.way = Way::Broken(error.to_string());
                    return None;
                }
                None => {
                    // Who follows the engine's log to its end may miss the last line of it.
                    self.doubtful |= matches!(self.way, Way::Written { .. });
                    self.way = Way::Ended;
                    return None;
                }
            };
            if let Some(heard) = self.news(chunk) {
                return Some(heard);
            }
        }
    }

    /// What of it was not heard before.
    fn news(&mut self, chunk: Chunk) -> Option<Heard> {
        let Way::Written { catchup, .. } = &mut self.way else { return Some(Heard::Bytes(chunk)) };
        match catchup.take(chunk.source, chunk.bytes) {
            Ok(news) => news.map(|news| Heard::News(chunk.source, news)),
            Err(rotated) => {
                tracing::warn!(self.container, %rotated, "something of a container's output is lost");
                (self.way, self.rotated) = (Way::Broken(rotated.to_string()), true);
                Some(Heard::Gap)
            }
        }
    }
}

/// Waits for a sign of life; `false` if there will be none.
async fn sign(signs: &mut Option<Output>) -> bool {
    match signs {
        Some(output) => matches!(output.next().await, Some(Ok(_))),
        None => std::future::pending().await,
    }
}

/// What the log says where something of it may be missing.
const GAP: &str = "the connection to the container's output was broken; what it wrote meanwhile is missing here";

/// Puts what was heard into the log.
pub async fn keep(heard: Heard, log: &JobLog) -> Result<(), Fault> {
    match heard {
        Heard::Bytes(Chunk { source, bytes }) => log.write(source, &bytes).await?,
        Heard::News(source, news) => log.write_news(source, news).await?,
        Heard::Gap => log.note(GAP).await?,
        Heard::Sign => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests;
