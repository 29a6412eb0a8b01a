//! All that a promotion publishes or none, whatever happens between two calls of the cache, on both kinds of it.
//!
//! Each round is one build that has ended, and is promoted. Whoever promotes it is struck at one call: gone, or told of an error, before
//! the call is carried out or after. Then the controller's own worker, or the next one's, settles what is left.

use crate::common::stage::{ERROR, FILES, Farm, GONE, Stage};
use crate::common::watched::{Strike, Watched};
use crate::common::{Backend, on_both, soon, until};
use bytes::Bytes;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, ChannelName};
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_common::time::Millis;
use railyard_controller::cache::{Cache, PutMode};
use railyard_controller::driver::CommandError;
use railyard_controller::finalize::{Finalizer, PromoteError};
use railyard_controller::policy::Policy;
use railyard_core::{Event, Promotion, Refusal};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

on_both!(
    one_that_is_gone_at_any_call_leaves_all_or_none,
    an_error_of_the_store_at_any_call_leaves_all_or_none,
    a_conflict_at_any_path_leaves_nothing,
    what_is_impossible_by_the_next_start_leaves_nothing,
    what_others_have_published_there_is_counted_on_and_stays,
    what_the_cache_has_damaged_is_not_promoted,
);

/// Refusals of one kind within a minute that the audit writes out.
const WRITTEN_OUT: usize = 5;

struct Round<'s> {
    stage: &'s Stage,
    farm: Farm,
    /// Where its files lie once it is promoted.
    paths: Vec<RelPath>,
}

fn beta() -> ChannelName {
    "beta".parse().unwrap()
}

fn ended(build: &BuildId) -> Vec<Event> {
    vec![Event::BuildEnded { at: Millis(2), build: build.clone(), error: None }]
}

impl<'s> Round<'s> {
    /// A build that has ended well in the usual channel. What it has published there does not matter here.
    fn on(stage: &'s Stage, name: &str) -> Self {
        let farm = stage.farm(name, "{{ channel }}/", ended);
        let paths = FILES.iter().map(|file| format!("{name}/beta/{file}").parse().unwrap()).collect();
        Self { stage, farm, paths }
    }

    fn finalizer(&self, cache: Arc<dyn Cache>) -> Finalizer {
        self.stage.finalizer(&self.farm, cache)
    }

    async fn promote(&self, cache: Arc<dyn Cache>) -> Result<Option<Promotion>, PromoteError> {
        self.finalizer(cache).promote(&self.farm.build, &beta(), "olga", &Policy::default()).await
    }

    /// Whoever promotes it is gone at that call.
    async fn is_cut_off(&self, strike: Strike) {
        let struck = Arc::new(Watched::calm(self.stage.cache.clone()).struck(strike));
        tokio::select! {
            biased;
            () = soon("the strike", struck.is_struck()) => {}
            promoted = self.promote(struck.clone()) => panic!("{strike:?}: {promoted:?}"),
        }
    }

    /// The controller's own worker settles what was begun, and says so in the audit.
    async fn settle(&self, cache: Arc<dyn Cache>) {
        let finalizer = self.finalizer(cache);
        // Whoever saw it fail has recorded that, or told whoever does.
        let is_due =
            self.farm.farm.read(|farm, _| farm.promoting().any(|(_, one)| one.failed.is_none())).await.unwrap();
        let settled = async || {
            self.settled().await?;
            if is_due { self.recorded().await } else { Some(None) }
        };
        tokio::select! {
            biased;
            told = until("the end of the promotion", settled) => {
                let end = if self.is_promoted().await { "done" } else { "refused" };
                assert!(told.as_ref().is_none_or(|told| told == end), "{told:?}");
            }
            () = finalizer.run(CancellationToken::new()) => panic!("nobody has stopped it"),
        }
    }

    /// How it ended, as the audit has it; `None` once it has so many that were refused that it counts the others.
    async fn recorded(&self) -> Option<Option<String>> {
        let mut records = self.stage.audited("promote");
        let refused = records.iter().filter(|record| record["outcome"] == "refused").count();
        records.retain(|record| record["target"] == self.farm.build.to_string());
        let is_counted = refused >= WRITTEN_OUT && !self.is_promoted().await;
        let Some(own) = records.pop() else { return is_counted.then_some(None) };
        assert_eq!((&own["by"], &own["details"]["asked_by"]), (&"controller".into(), &"olga".into()));
        Some(own["outcome"].as_str().map(str::to_owned))
    }

    async fn settled(&self) -> Option<()> {
        self.farm.farm.read(|farm, _| farm.promoting().next().is_none().then_some(())).await.unwrap()
    }

    async fn is_promoted(&self) -> bool {
        let build = self.farm.build.clone();
        self.farm.farm.read(move |farm, _| *farm.build(&build).unwrap().channel() == beta()).await.unwrap()
    }

    async fn bytes(&self, path: &RelPath) -> Option<Bytes> {
        self.stage.cache.get(path).await.unwrap().map(|(bytes, _)| bytes)
    }

    async fn summed(&self) -> Vec<String> {
        let mut names = Vec::new();
        for directory in ["a", "b"] {
            let sums = format!("{}/beta/{directory}/SHA256SUMS", self.farm.build.pipeline).parse().unwrap();
            let text = self.bytes(&sums).await.unwrap_or_default();
            let lines = std::str::from_utf8(&text).unwrap().lines().map(|line| line.split_once("  ").unwrap().1);
            names.extend(lines.map(|name| format!("{directory}/{name}")));
        }
        names
    }

    async fn has_all(&self, why: &str) {
        assert!(self.is_promoted().await, "{why}");
        for (path, blob) in self.paths.iter().zip(&self.stage.blobs) {
            let bytes = self.bytes(path).await.unwrap_or_else(|| panic!("{why}: {path} is not there"));
            assert_eq!(Digest::of(&bytes), blob.digest, "{why}: {path}");
        }
        assert_eq!(self.summed().await, FILES, "{why}");
    }

    /// Nothing but what somebody else has put at `taken`.
    async fn has_nothing(&self, taken: Option<usize>, why: &str) {
        assert!(!self.is_promoted().await, "{why}");
        for (n, path) in self.paths.iter().enumerate() {
            let bytes = self.bytes(path).await.map(|bytes| Digest::of(&bytes));
            let want = (taken == Some(n)).then_some(self.stage.other.digest);
            assert_eq!(bytes, want, "{why}: {path}");
        }
        assert!(self.summed().await.is_empty(), "{why}");
    }

    /// Whichever of the two it is.
    async fn has_all_or_nothing(&self, why: &str) {
        if self.is_promoted().await { self.has_all(why).await } else { self.has_nothing(None, why).await }
    }
}

/// How many calls there are to strike at.
async fn calls(stage: &Stage) -> usize {
    let round = Round::on(stage, "calm");
    let watched = Arc::new(Watched::calm(stage.cache.clone()));
    let promotion = round.promote(watched.clone()).await.unwrap().unwrap();
    assert_eq!(promotion.paths.keys().collect::<Vec<_>>(), round.paths.iter().collect::<Vec<_>>());
    round.has_all("calm").await;
    assert!(round.promote(stage.cache.clone()).await.unwrap().is_none(), "it is there already");
    watched.calls()
}

async fn one_that_is_gone_at_any_call_leaves_all_or_none(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let round = async |name: String, strike: Strike| {
        let (round, why) = (Round::on(stage, &name), format!("{strike:?}"));
        round.is_cut_off(strike).await;
        round.settle(stage.cache.clone()).await;
        round.has_all_or_nothing(&why).await;
        round.promote(stage.cache.clone()).await.unwrap();
        round.has_all(&why).await;
    };
    stage.rounds(calls(stage).await, &GONE, round).await;
}

async fn an_error_of_the_store_at_any_call_leaves_all_or_none(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let round = async |name: String, strike: Strike| {
        let (round, why) = (Round::on(stage, &name), format!("{strike:?}"));
        let struck = Arc::new(Watched::calm(stage.cache.clone()).struck(strike));
        let promoted = round.promote(struck.clone()).await;
        soon("the strike", struck.is_struck()).await;
        assert!(matches!(promoted, Err(PromoteError::Cache(_))), "{why}: {promoted:?}");
        round.settle(struck).await;
        round.has_nothing(None, &why).await;
        round.promote(stage.cache.clone()).await.unwrap();
        round.has_all(&why).await;
    };
    stage.rounds(calls(stage).await, &ERROR, round).await;
}

async fn a_conflict_at_any_path_leaves_nothing(backend: Backend) {
    let stage = &Stage::on(backend).await;
    for path in 0..FILES.len() {
        let (round, why) = (Round::on(stage, &format!("p{path}")), format!("path {path}"));
        // It comes between the look and the deed.
        let taken = Watched::calm(stage.cache.clone()).taken(round.paths[path].clone(), stage.other);
        let Err(PromoteError::Impossible { why: told, .. }) = round.promote(Arc::new(taken)).await else {
            panic!("{why} is taken");
        };
        assert!(told.contains(round.paths[path].as_str()), "{told}");
        assert!(round.settled().await.is_some(), "nothing is left to do");
        round.has_nothing(Some(path), &why).await;
        // Now it is seen beforehand.
        let again = round.promote(stage.cache.clone()).await;
        assert!(matches!(again, Err(PromoteError::Impossible { .. })), "{again:?}");
        round.has_nothing(Some(path), &why).await;
    }
}

async fn what_is_impossible_by_the_next_start_leaves_nothing(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let round = async |name: String, strike: Strike| {
        let (round, why) = (Round::on(stage, &name), format!("{strike:?}"));
        round.is_cut_off(strike).await;
        // Nobody else touches it now, but the next one must say so to whoever would delete it.
        if round.settled().await.is_none() {
            let again = round.promote(stage.cache.clone()).await;
            let runs = matches!(again, Err(PromoteError::Farm(CommandError::Refused(Refusal::PromotionRuns { .. }))));
            assert!(runs, "{why}: {again:?}");
        }
        // Somebody else is faster than the next one, if there is still room.
        let is_taken = stage.cache.publish(&stage.other, &round.paths[2]).await.is_ok();
        round.settle(stage.cache.clone()).await;
        match is_taken {
            true => round.has_nothing(Some(2), &why).await,
            false => round.has_all(&why).await,
        }
    };
    stage.rounds(calls(stage).await, &GONE, round).await;
}

/// The same bytes at the same path, of another build: neither takes them from the other.
async fn what_others_have_published_there_is_counted_on_and_stays(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let round = Round::on(stage, "shared");
    stage.cache.publish(&stage.blobs[0], &round.paths[0]).await.unwrap();
    let taken = Watched::calm(stage.cache.clone()).taken(round.paths[2].clone(), stage.other);
    let failed = round.promote(Arc::new(taken)).await;
    assert!(matches!(failed, Err(PromoteError::Impossible { .. })), "{failed:?}");
    assert!(round.bytes(&round.paths[0]).await.is_some(), "it was there before");
    assert!(round.bytes(&round.paths[1]).await.is_none());
    stage.cache.delete(&round.paths[2]).await.unwrap();
    let promotion = round.promote(stage.cache.clone()).await.unwrap().unwrap();
    assert_eq!(promotion.paths.len(), 3);
    round.has_all("all are its own now").await;
}

async fn what_the_cache_has_damaged_is_not_promoted(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let round = Round::on(stage, "rotten");
    let place = layout::blob(&stage.blobs[1]);
    let (whole, _) = stage.cache.get(&place).await.unwrap().unwrap();
    stage.cache.put(&place, Bytes::from("sec0nd"), PutMode::Overwrite).await.unwrap();
    let Err(PromoteError::Impossible { why, .. }) = round.promote(stage.cache.clone()).await else {
        panic!("damaged bytes are promoted");
    };
    assert!(why.contains("has damaged rotten/beta/a/second"), "{why}");
    round.has_nothing(None, "it is all taken back").await;
    stage.cache.put(&place, whole, PutMode::Overwrite).await.unwrap();
    round.promote(stage.cache.clone()).await.unwrap();
    round.has_all("the blob is whole again").await;
}
