//! All of a build's paths or none, whatever happens between two calls of the cache, on both kinds of it.
//!
//! Each round is one build that waits to be written out. Its finalizer is struck at one call: gone, or told of an error, before
//! the call is carried out or after. Then it, or the next one, ends the build.

use crate::common::stage::{ERROR, FILES, Farm, GONE, Stage};
use crate::common::watched::{Strike, Watched};
use crate::common::{Backend, on_both, soon, until};
use crate::store::Trouble;
use bytes::Bytes;
use http::Method;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_controller::cache::Cache;
use railyard_core::{BuildState, Verdict};
use std::ops::Deref;
use std::sync::Arc;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

on_both!(
    a_finalizer_that_is_gone_at_any_call_leaves_all_or_none,
    an_error_of_the_store_at_any_call_leaves_all_or_none,
    a_conflict_at_any_path_takes_back_those_before_it,
    a_conflict_that_a_gone_finalizer_has_met_is_taken_back_by_the_next,
    what_is_impossible_by_the_next_start_is_taken_back,
);

/// One build on its way out.
struct Round<'s> {
    stage: &'s Stage,
    farm: Farm,
}

impl Deref for Round<'_> {
    type Target = Farm;

    fn deref(&self) -> &Farm {
        &self.farm
    }
}

impl<'s> Round<'s> {
    fn on(stage: &'s Stage, name: &str) -> Self {
        Self { stage, farm: stage.farm(name, "", |_| Vec::new()) }
    }

    /// A finalizer works with this cache until `over`; then it is gone, wherever it is.
    async fn finalize_until<T>(&self, cache: Arc<dyn Cache>, over: impl Future<Output = T>) -> T {
        let finalizer = self.stage.finalizer(&self.farm, cache);
        tokio::select! {
            biased;
            over = over => over,
            () = finalizer.run(CancellationToken::new()) => panic!("nobody has stopped it"),
        }
    }

    async fn verdict(&self) -> Option<Verdict> {
        let build = self.build.clone();
        let state =
            self.farm.farm.read(move |farm, _| farm.build(&build).map(|build| build.state.clone())).await.unwrap();
        match state.unwrap() {
            BuildState::Ended { verdict, .. } => Some(verdict),
            _ => None,
        }
    }

    async fn ended(&self) {
        until("the end of the build", || self.verdict()).await;
    }

    /// A finalizer to which nothing happens ends it; gives its calls.
    async fn end(&self) -> usize {
        let watched = Arc::new(Watched::calm(self.stage.cache.clone()));
        self.finalize_until(watched.clone(), self.ended()).await;
        watched.calls()
    }

    async fn bytes(&self, path: &RelPath) -> Option<Bytes> {
        self.stage.cache.get(path).await.unwrap().map(|(bytes, _)| bytes)
    }

    async fn is_there(&self, path: &RelPath, blob: &Blob) -> bool {
        self.bytes(path).await.is_some_and(|bytes| Digest::of(&bytes) == blob.digest)
    }

    /// The names in the sums beside the files.
    async fn summed(&self) -> Vec<String> {
        let mut names = Vec::new();
        for directory in ["a", "b"] {
            let sums = format!("{}/{directory}/SHA256SUMS", self.build.pipeline).parse().unwrap();
            let text = self.bytes(&sums).await.unwrap_or_default();
            let lines = std::str::from_utf8(&text).unwrap().lines().map(|line| line.split_once("  ").unwrap().1);
            names.extend(lines.map(|name| format!("{directory}/{name}")));
        }
        names
    }

    async fn manifest(&self) -> serde_json::Value {
        serde_json::from_slice(&self.bytes(&layout::build_manifest(&self.build)).await.unwrap()).unwrap()
    }

    async fn is_published(&self, why: &str) {
        assert_eq!(self.verdict().await, Some(Verdict::Succeeded), "{why}");
        for (path, blob) in self.paths.iter().zip(&self.stage.blobs) {
            assert!(self.is_there(path, blob).await, "{why}: {path} is not there");
        }
        assert_eq!(self.summed().await, FILES, "{why}");
        assert_eq!(self.manifest().await["verdict"], "succeeded", "{why}");
        assert!(self.bytes(&layout::placing(&self.build)).await.is_none(), "{why}");
    }

    /// Nothing but what somebody else has put at `taken`.
    async fn is_taken_back(&self, taken: usize, why: &str) {
        assert_eq!(self.verdict().await, Some(Verdict::Failed), "{why}");
        for (n, path) in self.paths.iter().enumerate() {
            match n == taken {
                true => assert!(self.is_there(path, &self.stage.other).await, "{why}: {path} was changed"),
                false => assert!(self.bytes(path).await.is_none(), "{why}: {path} is still there"),
            }
        }
        assert!(self.summed().await.is_empty(), "{why}");
        let manifest = self.manifest().await;
        assert_eq!(manifest["verdict"], "failed", "{why}");
        assert!(manifest["error"].as_str().unwrap().contains(self.paths[taken].as_str()), "{why}");
        assert!(self.bytes(&layout::placing(&self.build)).await.is_none(), "{why}");
    }

    /// Somebody else puts something there as soon as this build would.
    fn taken(&self, path: usize) -> Watched {
        let (path, blob) = (self.paths[path].clone(), self.stage.other);
        Watched::calm(self.stage.cache.clone()).taken(path, blob)
    }
}

async fn a_finalizer_that_is_gone_at_any_call_leaves_all_or_none(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let calls = Round::on(stage, "calm").end().await;
    let round = async |name: String, strike: Strike| {
        let (round, why) = (Round::on(stage, &name), format!("{strike:?}"));
        let struck = Arc::new(Watched::calm(stage.cache.clone()).struck(strike));
        round.finalize_until(struck.clone(), soon("the strike", struck.is_struck())).await;
        round.end().await;
        round.is_published(&why).await;
    };
    stage.rounds(calls, &GONE, round).await;
}

async fn an_error_of_the_store_at_any_call_leaves_all_or_none(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let calls = Round::on(stage, "calm").end().await;
    let round = async |name: String, strike: Strike| {
        let (round, why) = (Round::on(stage, &name), format!("{strike:?}"));
        let struck = Arc::new(Watched::calm(stage.cache.clone()).struck(strike));
        // The same finalizer tries again.
        round.finalize_until(struck.clone(), round.ended()).await;
        soon("the strike", struck.is_struck()).await;
        round.is_published(&why).await;
    };
    stage.rounds(calls, &ERROR, round).await;
}

async fn a_conflict_at_any_path_takes_back_those_before_it(backend: Backend) {
    let stage = &Stage::on(backend).await;
    for path in 0..FILES.len() {
        let round = Round::on(stage, &format!("p{path}"));
        round.finalize_until(Arc::new(round.taken(path)), round.ended()).await;
        round.is_taken_back(path, &format!("path {path}")).await;
    }
}

async fn a_conflict_that_a_gone_finalizer_has_met_is_taken_back_by_the_next(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let round = Round::on(stage, "calm");
    let calm = Arc::new(round.taken(2));
    round.finalize_until(calm.clone(), round.ended()).await;
    let round = async |name: String, strike: Strike| {
        let (round, why) = (Round::on(stage, &name), format!("{strike:?}"));
        let struck = Arc::new(round.taken(2).struck(strike));
        round.finalize_until(struck.clone(), soon("the strike", struck.is_struck())).await;
        // It may have been gone before there was a conflict.
        let is_taken = round.is_there(&round.paths[2], &stage.other).await;
        round.end().await;
        match is_taken {
            true => round.is_taken_back(2, &why).await,
            false => round.is_published(&why).await,
        }
    };
    stage.rounds(calm.calls(), &GONE, round).await;
}

async fn what_is_impossible_by_the_next_start_is_taken_back(backend: Backend) {
    let stage = &Stage::on(backend).await;
    let calls = Round::on(stage, "calm").end().await;
    let round = async |name: String, strike: Strike| {
        let (round, why) = (Round::on(stage, &name), format!("{strike:?}"));
        let struck = Arc::new(Watched::calm(stage.cache.clone()).struck(strike));
        round.finalize_until(struck.clone(), soon("the strike", struck.is_struck())).await;
        // Somebody else is faster than the next one, if there is still room.
        let is_taken = stage.cache.publish(&stage.other, &round.paths[2]).await.is_ok();
        round.end().await;
        match is_taken {
            true => round.is_taken_back(2, &why).await,
            false => round.is_published(&why).await,
        }
    };
    stage.rounds(calls, &GONE, round).await;
}

/// The same between two requests that write: one call of the cache is many of the service.
#[tokio::test]
async fn a_finalizer_that_is_gone_at_any_request_to_s3_leaves_all_or_none() {
    let stage = Stage::on(Backend::S3).await;
    let rules = &stage.ground.store.as_ref().unwrap().rules;
    for n in 0usize.. {
        for trouble in [Trouble::Hold, Trouble::Deny(403)] {
            let (round, why) =
                (Round::on(&stage, &format!("p{n}-{}", trouble == Trouble::Hold)), format!("{trouble:?} at {n}"));
            let (struck, mut left) = (Arc::new(Notify::new()), n);
            let tell = struck.clone();
            rules.set(move |request| {
                // Between two that write it does not matter when.
                if matches!(request.method, Method::GET | Method::HEAD) {
                    return None;
                }
                let is_it = left == 0;
                left = left.wrapping_sub(1);
                is_it.then(|| tell.notify_one());
                is_it.then_some(trouble)
            });
            let over = async {
                tokio::select! {
                    () = struck.notified() => false,
                    () = round.ended() => true,
                }
            };
            let is_over = round.finalize_until(stage.cache.clone(), over).await;
            rules.heal();
            round.end().await;
            round.is_published(&why).await;
            if is_over {
                assert!(n > 10, "only {n} requests to strike at");
                return;
            }
        }
    }
}
