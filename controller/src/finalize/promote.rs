//! A build goes into another channel: what it publishes there, all of it or none, and only then is the build in it.
//!
//! What is about to be placed is an event of the farm, so whoever comes after this process knows it: it goes on where this one was,
//! or takes everything back.

use super::{Failure, Finalizer};
use crate::audit::{Act, Entry};
use crate::driver::CommandError;
use crate::policy::{Denied, Policy};
use futures_util::StreamExt as _;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, ChannelName};
use railyard_common::path::RelPath;
use railyard_core::{Command, Event, InChannel, Promoting, Promotion, Refusal};
use railyard_service::error_chain;
use railyard_service::task::{self, blocking};
use railyard_transfer::Hasher;
use std::collections::{BTreeMap, BTreeSet};

/// Why a build is not promoted.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// The farm does not want it, or does not answer.
    #[error(transparent)]
    Farm(#[from] CommandError),
    /// The operator's policy does not allow it.
    #[error("what it publishes there is not allowed")]
    Denied(#[from] Denied),
    /// What it publishes cannot be published there.
    #[error("it cannot be promoted to {channel}: {why}")]
    Impossible {
        /// The channel.
        channel: ChannelName,
        /// Why.
        why: String,
    },
    /// The cache does not do what it should.
    #[error("the cache fails, and nothing was promoted; try again: {0}")]
    Cache(String),
}

impl From<Refusal> for PromoteError {
    fn from(refusal: Refusal) -> Self {
        Self::Farm(CommandError::Refused(refusal))
    }
}

impl Finalizer {
    /// Publishes what a build has for a channel, and puts it into that. `None` if it was there already.
    ///
    /// # Errors
    /// [`PromoteError`]: then it is where it was, and nothing of it is published there, or not for long. With
    /// [`CommandError::Journal`] and [`CommandError::Stopping`] that is open.
    pub async fn promote(
        &self,
        id: &BuildId,
        channel: &ChannelName,
        by: &str,
        policy: &Policy,
    ) -> Result<Option<Promotion>, PromoteError> {
        let _placing = self.placing.lock().await;
        let (asked, to) = (id.clone(), channel.clone());
        let wanted = self.farm.read(move |farm, _| farm.published_in(&asked, &to)).await??;
        if wanted.is_there {
            return Ok(None);
        }
        policy.check_published(&id.pipeline, wanted.new.keys())?;
        let paths = self.wanted_paths(wanted).await.map_err(|failure| not_published(channel, failure))?;
        let fresh = self.look(&paths).await.map_err(|failure| not_published(channel, failure))?;
        let begin = Command::Promote {
            build: id.clone(),
            channel: channel.clone(),
            paths: paths.clone(),
            fresh,
            by: by.to_owned(),
        };
        let begun = self.farm.decide(begin).await?;
        let Some(Event::PromotionBegun { promotion, fresh, .. }) = begun.first().cloned() else {
            return Ok(promoted(begun));
        };
        match self.place_and_verify(id, &paths, &fresh).await {
            Ok(()) => Ok(promoted(self.end_promotion(id, None).await?)),
            // Whoever comes next goes on with it.
            Err(Failure::Stopping) => Err(CommandError::Stopping.into()),
            Err(failure) => {
                self.end_promotion(id, Some(failure.to_string())).await?;
                let promoting = Promoting { promotion, fresh, failed: None };
                if let Err(left) = self.forget(id, &promoting).await {
                    tracing::warn!(build = %id, %channel, error = %left, "what was published for a promotion that has failed is removed later");
                }
                Err(not_published(channel, failure))
            }
        }
    }

    /// What is to be published: what is new, and what should be there and is gone. What is there is what was built.
    async fn wanted_paths(&self, wanted: InChannel) -> Result<BTreeMap<RelPath, Blob>, Failure> {
        let InChannel { new: mut paths, standing, .. } = wanted;
        let gone = self.look(&standing).await?;
        for (path, blob) in standing {
            if gone.contains(&path) {
                paths.insert(path, blob);
            } else {
                self.verify(&path, &blob).await?;
            }
        }
        Ok(paths)
    }

    /// Goes on with a promotion that somebody else has begun, or takes it back. Returns whether there is nothing left to do.
    pub(super) async fn resume_promotion(&self, id: &BuildId, last: bool) -> bool {
        // Whoever holds it may be the one who carries this promotion out, and builds that wait for their end must not wait for that.
        let Ok(_placing) = self.placing.try_lock() else { return false };
        let asked = id.clone();
        let found = self.farm.read(move |farm, _| farm.build(&asked).and_then(|build| build.kept.promoting.clone()));
        let promoting = match found.await {
            Ok(Some(promoting)) => promoting,
            // It was ended while this one waited for its turn.
            Ok(None) => return true,
            Err(_) => return false,
        };
        let tried = match &promoting.failed {
            Some(_) => self.forget(id, &promoting).await,
            None => self.go_on(id, &promoting, last).await,
        };
        let why = match tried {
            Ok(()) => return true,
            Err(Failure::Stopping) => return false,
            Err(failure) => failure.to_string(),
        };
        tracing::error!(build = %id, channel = %promoting.promotion.channel, error = why, "the promotion is not ended yet; it is tried again");
        self.farm.note_finalize_error(id.clone(), why).await;
        false
    }

    async fn go_on(&self, id: &BuildId, promoting: &Promoting, last: bool) -> Result<(), Failure> {
        let paths = &promoting.promotion.paths;
        let placed = match self.look(paths).await {
            Ok(fresh) => self.place_and_verify(id, paths, &fresh).await,
            Err(failure) => Err(failure),
        };
        let error = match placed {
            Ok(()) => None,
            Err(Failure::ForGood(why)) => Some(why),
            Err(failure @ Failure::ForNow(_)) if last => Some(failure.to_string()),
            Err(failure) => return Err(failure),
        };
        let has_failed = error.is_some();
        tracing::info!(build = %id, channel = %promoting.promotion.channel, ?error, "a promotion that was cut off has ended");
        let ending = self.clone().end_for_nobody(id.clone(), promoting.promotion.clone(), error);
        // What is ended is recorded, also if this controller stops just now.
        let ended = task::spawn("end of a promotion", self.audit.under_way(ending)).await;
        ended.map_err(|_| Failure::Stopping)?.map_err(|_| Failure::Stopping)?;
        if has_failed { self.forget(id, promoting).await } else { Ok(()) }
    }

    /// Whoever asked for it is not there to be told, and their call has no record of its end.
    async fn end_for_nobody(
        self,
        id: BuildId,
        promotion: Promotion,
        error: Option<String>,
    ) -> Result<(), CommandError> {
        self.end_promotion(&id, error.clone()).await?;
        let entry = Entry::new(Act::Promote)
            .target(id.to_string())
            .detail("channel", promotion.channel.as_str())
            .detail("asked_by", &promotion.by);
        let entry = match error {
            Some(why) => entry.refused(why),
            None => entry.detail("published", promotion.paths.len().to_string()),
        };
        if let Err(error) = self.audit.record(entry).await {
            tracing::error!(build = %id, error = error_chain(&error), "the end of a promotion is not recorded yet");
        }
        Ok(())
    }

    async fn place_and_verify(
        &self,
        id: &BuildId,
        paths: &BTreeMap<RelPath, Blob>,
        fresh: &BTreeSet<RelPath>,
    ) -> Result<(), Failure> {
        self.place(id, paths, fresh).await?;
        for (path, blob) in paths {
            self.verify(path, blob).await?;
        }
        Ok(())
    }

    /// Reads what is published: the build may be months old, and what people get from now on is what was built.
    async fn verify(&self, path: &RelPath, blob: &Blob) -> Result<(), Failure> {
        match self.digest_at(path).await? {
            Some(digest) if digest == blob.digest => Ok(()),
            Some(_) => Err(Failure::ForGood(format!(
                "the cache has damaged {path}: its bytes are not those of {}; build it again",
                blob.digest
            ))),
            None => Err(Failure::ForGood(format!("{path} is gone again"))),
        }
    }

    /// The digest of what lies at a path, if anything does.
    pub(super) async fn digest_at(&self, path: &RelPath) -> Result<Option<Digest>, Failure> {
        let Some(mut bytes) = self.cache.get_stream(path).await? else { return Ok(None) };
        let mut hasher = Hasher::in_place();
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk?;
            hasher = blocking(move || {
                hasher.update(&chunk);
                hasher
            })
            .await;
        }
        Ok(Some(hasher.finish()))
    }

    /// Takes back what was placed for a promotion that has failed.
    async fn forget(&self, id: &BuildId, promoting: &Promoting) -> Result<(), Failure> {
        let fresh = of(&promoting.promotion.paths, &promoting.fresh);
        // What another build has published there meanwhile is in use, and stays.
        self.remove(id, &fresh, 0).await.map_err(Failure::ForGood)?;
        let forget = Command::ForgetPromotion { build: id.clone() };
        self.farm.decide(forget).await.map_err(|_| Failure::Stopping).map(drop)
    }

    async fn end_promotion(&self, id: &BuildId, error: Option<String>) -> Result<Vec<Event>, CommandError> {
        self.farm.decide(Command::EndPromotion { build: id.clone(), error }).await
    }
}

fn of(paths: &BTreeMap<RelPath, Blob>, fresh: &BTreeSet<RelPath>) -> Vec<(RelPath, Blob)> {
    let fresh = paths.iter().filter(|(path, _)| fresh.contains(*path));
    fresh.map(|(path, blob)| (path.clone(), *blob)).collect()
}

fn promoted(events: Vec<Event>) -> Option<Promotion> {
    events.into_iter().find_map(|event| match event {
        Event::BuildPromoted { promotion, .. } => Some(promotion),
        _ => None,
    })
}

fn not_published(channel: &ChannelName, failure: Failure) -> PromoteError {
    match failure {
        Failure::ForGood(why) => PromoteError::Impossible { channel: channel.clone(), why },
        Failure::ForNow(error) => PromoteError::Cache(error_chain(&error)),
        Failure::Stopping => CommandError::Stopping.into(),
    }
}
