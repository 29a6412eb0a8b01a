//! What to do when the connection is lost in the middle: say so, try again, not for ever.

use crate::failure::Failure;
use crate::farm::{Farm, is_passing, root_cause};
use crate::view::Build;
use railyard_common::backoff::Backoff;
use railyard_proto::v1::{BuildView, GetBuildRequest};
use railyard_service::clock::{Clock as _, SystemClock};
use std::time::Duration;
use tonic::{Status, Streaming};

/// How long a lost connection is tried again: longer than a controller needs to be restarted or replaced.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
/// The waits in between.
const BACKOFF: Backoff = Backoff { base_millis: 250, max_millis: 5_000 };

/// Where news about the connection goes.
pub type Say<'a> = &'a (dyn Fn(&str) + Sync);

/// Counts tries since the connection was lost.
#[derive(Debug, Default)]
pub struct Patience {
    lost_since: Option<Duration>,
    tries: u32,
}

impl Patience {
    /// Something came through.
    pub fn restored(&mut self, say: Say<'_>) {
        if self.lost_since.take().is_some() {
            say("connected again");
        }
        self.tries = 0;
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The failure itself, if it will not pass or lasts too long.
    pub async fn lost(&mut self, farm: &Farm, status: &Status, say: Say<'_>) -> Result<(), Failure> {
        if !is_passing(status) {
            return Err(farm.refused(status));
        }
        let now = SystemClock.monotonic();
        if self.lost_since.is_none() {
            let (cause, secs) = (root_cause(status), GIVE_UP_AFTER.as_secs());
            say(&format!("the connection to {} is lost ({cause}); trying again for {secs}s", farm.endpoint().url));
        }
        let since = *self.lost_since.get_or_insert(now);
        if now.saturating_sub(since) >= GIVE_UP_AFTER {
            return Err(farm.refused(status));
        }
        self.tries += 1;
        let mut noise = [0; 8];
        // Without randomness the wait is merely the same for everybody.
        let _ = getrandom::fill(&mut noise);
        let millis = BACKOFF.jittered_millis(self.tries, u64::from_le_bytes(noise));
        tokio::time::sleep(Duration::from_millis(millis)).await;
        Ok(())
    }
}

/// A build as it changes, across lost connections.
pub struct Watch {
    farm: Farm,
    build: String,
    stream: Option<Streaming<BuildView>>,
    patience: Patience,
}

impl Watch {
    /// Of that build; nothing is asked yet.
    pub fn new(farm: &Farm, build: &str) -> Self {
        Self { farm: farm.clone(), build: build.to_owned(), stream: None, patience: Patience::default() }
    }

    /// The next look at the build. Not to be called again once the build is over. Can be dropped and called again.
    ///
    /// # Errors
    /// [`Failure::Farm`].
    pub async fn next(&mut self, say: Say<'_>) -> Result<Build, Failure> {
        loop {
            match self.try_next().await {
                Ok(Some(view)) => {
                    self.patience.restored(say);
                    let build = Build::from(view);
                    // `mini` means its newest build now, not another one that is submitted while we look.
                    self.build.clone_from(&build.build);
                    return Ok(build);
                }
                Ok(None) => {
                    self.stream = None;
                    self.patience.lost(&self.farm, &Status::unavailable("the stream ended"), say).await?;
                }
                Err(status) => {
                    self.stream = None;
                    self.patience.lost(&self.farm, &status, say).await?;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<Option<BuildView>, Status> {
        if self.stream.is_none() {
            let request = self.farm.stream_request(GetBuildRequest { build: self.build.clone() });
            self.stream = Some(self.farm.client().watch_build(request).await?.into_inner());
        }
        match &mut self.stream {
            Some(stream) => stream.message().await,
            None => Ok(None),
        }
    }
}
