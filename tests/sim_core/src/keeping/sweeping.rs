//! A sweep, one step at a time.

use super::{GRACE, World};
use railyard_common::digest::Digest;
use railyard_common::id::BuildId;
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_common::retention::Keep;
use railyard_core::sweep::{Ask, Gone, GoneKind, Look, Planner, Stop, SweepPlan};
use railyard_core::{Command, Event, Force, Reduction};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Objects of a page: few, so that there are many pages.
const PAGE: usize = 4;
/// Objects of a batch.
const BATCH: usize = 3;

/// Where it is.
pub(super) enum Sweep {
    Planning(Box<Planner>),
    Carrying(Box<Carrying>),
}

/// A plan that is being carried out.
pub(super) struct Carrying {
    plan: SweepPlan,
    reduced: bool,
    unpublished: usize,
    done: usize,
    /// A batch that is on its way, with what of it may go.
    batch: Option<(Vec<Gone>, Vec<Digest>)>,
    failed: BTreeSet<BuildId>,
}

impl World {
    /// The next step of the sweep; without one, the first of a new one.
    pub(super) fn sweep_on(&mut self) {
        self.sweep = match self.sweep.take() {
            None => self.begin_sweep(),
            Some(Sweep::Planning(planner)) => self.plan_on(planner),
            Some(Sweep::Carrying(carrying)) => self.carry_on(carrying),
        };
    }

    /// A whole sweep.
    pub(super) fn sweep_to_its_end(&mut self) {
        // After a restore somebody looks, in the end.
        self.let_sweeps_go_on();
        loop {
            self.sweep_on();
            if self.sweep.is_none() || self.out.broken.is_some() {
                return;
            }
        }
    }

    /// After a restore: what the cache has lost since the backup is said to be deleted, and sweeps go on.
    pub(super) fn let_sweeps_go_on(&mut self) {
        if self.farm.restored_at().is_none() {
            return;
        }
        // One sweep at a time: the one before has ended.
        while matches!(self.sweep, Some(Sweep::Carrying(_))) {
            self.sweep_on();
        }
        let trouble = std::mem::take(&mut self.trouble);
        self.sweep = None;
        let mut next = self.begin_sweep();
        while let Some(Sweep::Planning(planner)) = next {
            if planner.ask() == Ask::Nothing {
                let known = self.farm.builds().map(|build| build.id().clone()).collect();
                if let Err((Stop::Restored { .. }, plan)) = planner.end(&known) {
                    let by = "olga".to_owned();
                    let lost = Command::Reduce { builds: plan.lost, by: by.clone(), force: Force::Forced };
                    // Refused while one of them is needed by a build that runs.
                    if self.decide(&lost).is_ok() {
                        let _ = self.decide(&Command::ResumeSweep { by });
                    }
                }
                break;
            }
            next = self.plan_on(planner);
        }
        self.trouble = trouble;
    }

    fn begin_sweep(&mut self) -> Option<Sweep> {
        self.claims.look();
        let look = Look::of(&self.farm, &self.policy, GRACE, self.now);
        self.say(|| "a sweep begins".to_owned());
        Some(Sweep::Planning(Box::new(Planner::new(look, PAGE))))
    }

    fn plan_on(&mut self, mut planner: Box<Planner>) -> Option<Sweep> {
        // A request that fails for good ends the sweep.
        if self.trouble && self.dice.chance(20) {
            return None;
        }
        let went_on = match planner.ask() {
            Ask::Page { prefix, after } => {
                let mut page = self.store.list(prefix, after.as_ref(), PAGE);
                if self.trouble && self.dice.chance(15) {
                    // A listing that ends too early, and does not say so.
                    page.truncate(self.dice.below(PAGE));
                }
                planner.page(page)
            }
            Ask::Manifests(builds) => {
                let read = builds.iter().try_for_each(|build| {
                    let object = self.store.objects.get(&layout::build_manifest(build));
                    planner.manifest(build, object.map(|object| object.bytes.as_slice()))
                });
                read.map(|()| planner.manifests_read())
            }
            Ask::Nothing => {
                let known = self.farm.builds().map(|build| build.id().clone()).collect();
                return self.planned(*planner, &known);
            }
        };
        match went_on {
            Ok(()) => Some(Sweep::Planning(planner)),
            Err(stop) => self.stopped(&stop),
        }
    }

    fn stopped(&mut self, stop: &Stop) -> Option<Sweep> {
        self.say(|| format!("the sweep stops: {stop}"));
        self.out.stopped += 1;
        // A build that ran when the backup was made may lack what was deleted since; whoever reads the message does as it says.
        if let (Stop::NoBlob { build, .. } | Stop::NoManifest { build, .. }, true) = (stop, self.model.was_restored) {
            let reduction = Reduction { build: build.clone(), keep: Keep::Nothing, why: "lost".to_owned() };
            let delete = Command::Reduce { builds: vec![reduction], by: "olga".to_owned(), force: Force::Forced };
            let _ = self.decide(&delete);
        } else if !self.trouble {
            self.breaks(format!("nothing goes wrong, and the sweep stops: {stop}"));
        }
        None
    }

    fn planned(&mut self, planner: Planner, known: &BTreeSet<BuildId>) -> Option<Sweep> {
        match planner.end(known) {
            Err((stop, _)) => {
                self.say(|| format!("the sweep waits: {stop}"));
                None
            }
            Ok(plan) => Some(Sweep::Carrying(Box::new(Carrying {
                plan,
                reduced: false,
                unpublished: 0,
                done: 0,
                batch: None,
                failed: BTreeSet::new(),
            }))),
        }
    }

    fn carry_on(&mut self, mut carrying: Box<Carrying>) -> Option<Sweep> {
        if !carrying.reduced {
            let builds = carrying.plan.reductions();
            carrying.reduced = true;
            let by = "controller".to_owned();
            // The world has changed: the next sweep sees how.
            self.decide(&Command::Reduce { builds, by, force: Force::Rules(Arc::new(self.policy.clone())) }).ok()?;
        } else if let Some((batch, deleting)) = carrying.batch.take() {
            self.delete_batch(&mut carrying, batch, &deleting);
        } else if carrying.unpublished < carrying.plan.reduced.len() && self.promotion.is_some() {
            // It waits for its turn.
            self.promote_on();
        } else if let Some(one) = carrying.plan.reduced.get(carrying.unpublished).cloned() {
            carrying.unpublished += 1;
            let in_use = self.farm.paths_in_use(self.now, GRACE);
            let in_use: BTreeMap<RelPath, bool> = in_use.into_iter().map(|(path, is)| (path.clone(), is)).collect();
            if one.paths.iter().any(|(path, _)| in_use.get(path) == Some(&false)) {
                carrying.failed.insert(one.build);
                return Some(Sweep::Carrying(carrying));
            }
            for (path, blob) in &one.paths {
                let has_own = self.store.objects.get(path).is_some_and(|object| object.digest == Some(blob.digest));
                let is_own = has_own && !in_use.contains_key(path);
                if is_own {
                    if let Some(why) = self.model.unpublishing(self.now, path) {
                        self.breaks(why);
                    }
                    self.store.objects.remove(path);
                }
            }
        } else if carrying.done < carrying.plan.gone.len() {
            let end = (carrying.done + BATCH).min(carrying.plan.gone.len());
            let batch: Vec<Gone> = carrying.plan.gone[carrying.done..end].to_vec();
            carrying.done = end;
            let blobs = batch.iter().filter_map(|gone| match gone.kind {
                GoneKind::Blob(digest) => Some(digest),
                GoneKind::Log | GoneKind::Record => None,
            });
            let deleting = self.claims.delete(blobs);
            carrying.batch = Some((batch, deleting));
        } else {
            let swept = carrying.plan.reduced.iter().filter(|one| !carrying.failed.contains(&one.build));
            let builds = swept.map(|one| (one.build.clone(), one.keep)).collect();
            let events = self.decide(&Command::Swept { builds }).unwrap_or_default();
            for event in events {
                if let Event::BuildsForgotten { builds, .. } = event {
                    self.out.forgotten += builds.len() as u64;
                }
            }
            return None;
        }
        Some(Sweep::Carrying(carrying))
    }

    fn delete_batch(&mut self, carrying: &mut Carrying, batch: Vec<Gone>, deleting: &[Digest]) {
        for gone in batch {
            let is_wanted = match gone.kind {
                GoneKind::Blob(digest) => !deleting.contains(&digest),
                GoneKind::Log | GoneKind::Record => {
                    let build = gone.build.as_ref();
                    let known = build.and_then(|build| self.farm.build(build));
                    let came_back = known.is_some_and(|build| build.keep_for_now(self.now, GRACE) > Keep::Nothing);
                    came_back
                        || (gone.kind == GoneKind::Record && build.is_some_and(|build| carrying.failed.contains(build)))
                }
            };
            if is_wanted {
                continue;
            }
            if self.trouble && self.dice.chance(50) {
                carrying.failed.extend(gone.build.clone());
                continue;
            }
            if let Some(why) = self.model.deleting(self.now, &gone.path) {
                self.breaks(why);
            }
            self.say(|| format!("deleted {}", gone.path));
            if self.store.objects.remove(&gone.path).is_some() {
                self.out.deleted += 1;
            }
        }
        self.claims.deleted(deleting);
    }
}
