//! What must stay, as simply as it can be said. Nothing here asks the farm, the marks or the rules' own code.

use super::GRACE;
use super::store::Store;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, ChannelName, JobId, LeaseId, TagName};
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_common::platform::Platform;
use railyard_common::priority::Priority;
use railyard_common::retention::{Keep, Pin, Policy, Releases};
use railyard_common::time::Millis;
use railyard_core::{Event, Next, Reduction};
use std::collections::{BTreeMap, BTreeSet};

/// A build, as it was seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    number: u64,
    jobs: u64,
    channel: ChannelName,
    untrusted: bool,
    release: bool,
    promoted: bool,
    /// What was published for that.
    elsewhere: BTreeSet<RelPath>,
    platforms: Vec<Platform>,
    uses: Vec<BuildId>,
    /// What its jobs left.
    results: BTreeMap<u64, Vec<(Digest, u64, Option<RelPath>)>>,
    ended: Option<Millis>,
    pins: BTreeMap<String, Pin>,
    tags: BTreeSet<TagName>,
    keep: Keep,
    before: Keep,
    reduced: Millis,
}

/// All that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub builds: BTreeMap<BuildId, Seen>,
    /// What live leases were told that the cache has.
    told: BTreeMap<LeaseId, BTreeSet<Digest>>,
    /// Builds that the journal has lost, and whose manifest is in the cache: with their blobs and paths.
    lost: BTreeMap<BuildId, (BTreeSet<Digest>, BTreeSet<RelPath>)>,
    manifests: BTreeSet<BuildId>,
    /// Published files of before a restore: of those that the journal has lost, nobody can say whose they are.
    spared: BTreeSet<RelPath>,
    pub was_restored: bool,
}

impl Seen {
    fn is_success(&self) -> bool {
        self.ended.is_some() && self.results.len() as u64 == self.jobs
    }

    fn is_pinned(&self, now: Millis) -> bool {
        self.pins.values().any(|pin| pin.until.is_none_or(|until| until > now))
    }

    /// What must be there still.
    fn level(&self, now: Millis) -> Keep {
        if now.0 < self.reduced.0 + GRACE { self.before } else { self.keep }
    }

    fn blobs(&self, keep: Keep) -> impl Iterator<Item = &(Digest, u64, Option<RelPath>)> {
        let (all, success) = (self.results.values().flatten(), self.is_success());
        all.filter(move |(_, _, path)| keep == Keep::All || (keep == Keep::Published && success && path.is_some()))
    }

    /// What its manifest has.
    fn own_paths(&self) -> impl Iterator<Item = &RelPath> {
        self.blobs(Keep::All).filter_map(|(_, _, path)| path.as_ref())
    }

    fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.own_paths().chain(&self.elsewhere)
    }
}

impl Model {
    /// Whether what the farm is about to do is right.
    pub(super) fn judge(&self, now: Millis, event: &Event, policy: &Policy) -> Option<String> {
        match event {
            Event::BuildsReduced { builds, by, .. } => {
                builds.iter().find_map(|one| self.may_reduce(now, one, builds, by == "controller", policy))
            }
            Event::BuildAccepted { plan, .. } => {
                let gone =
                    plan.uses.iter().find(|used| self.builds.get(*used).is_none_or(|used| used.keep < Keep::All));
                gone.map(|used| format!("{} is made from {used}, which is not there", plan.build))
            }
            _ => None,
        }
    }

    fn may_reduce(
        &self,
        now: Millis,
        one: &Reduction,
        all: &[Reduction],
        by_rule: bool,
        policy: &Policy,
    ) -> Option<String> {
        let rule = &policy.rules[0];
        let Some(build) = self.builds.get(&one.build) else { return Some(format!("{} is not there", one.build)) };
        let wrong = |why: &str| Some(format!("{} is reduced to {}, and {why}", one.build, one.keep));
        if build.ended.is_none() {
            return wrong("it runs");
        }
        let stays = |id: &BuildId| !all.iter().any(|other| other.build == *id && other.keep < Keep::Published);
        let user = self.builds.iter().find(|(id, user)| {
            user.uses.contains(&one.build)
                && (user.ended.is_none() || (by_rule && user.keep >= Keep::Published && stays(id)))
        });
        if let Some((user, _)) = user {
            return wrong(&format!("{user} is made from it"));
        }
        if !by_rule {
            return None;
        }
        if build.is_pinned(now) || !build.tags.is_empty() {
            return wrong("somebody wants it");
        }
        if (build.promoted || build.release) && build.is_success() && rule.keep_releases == Releases::All {
            return wrong("it is a release, or was promoted");
        }
        let newer = |other: &&Seen| {
            other.number > build.number && other.is_success() && other.keep == Keep::All && self.is_alike(one, other)
        };
        let newer: Vec<&Seen> = self.builds.values().filter(newer).collect();
        let covered = |platform: &Platform| newer.iter().any(|other| other.platforms.contains(platform));
        let is_whole = build.is_success() && build.keep == Keep::All;
        if is_whole && !build.untrusted && !build.platforms.iter().all(covered) {
            return wrong("it is the last success of its channel for a platform");
        }
        let bounded = rule.max_age.is_some() || rule.max_bytes.is_some() || policy.max_bytes.is_some();
        if is_whole && !bounded && newer.len() < rule.keep_last as usize {
            return wrong("it is one of the newest");
        }
        if build.ended.is_some_and(|ended| now.0 - ended.0 < rule.min_age.millis()) {
            return wrong("it is too young");
        }
        None
    }

    /// Whether two builds are counted together.
    fn is_alike(&self, one: &Reduction, other: &Seen) -> bool {
        let Some(build) = self.builds.get(&one.build) else { return false };
        let same_pipeline =
            self.builds.iter().any(|(id, seen)| seen.number == other.number && id.pipeline == one.build.pipeline);
        same_pipeline && build.untrusted == other.untrusted && (build.untrusted || build.channel == other.channel)
    }

    /// Takes down what has become durable.
    pub(super) fn note(&mut self, now: Millis, event: &Event) {
        match event {
            Event::BuildAccepted { plan, first_job, priority, .. } => {
                let seen = Seen {
                    number: first_job.0,
                    jobs: plan.jobs.len() as u64,
                    channel: plan.channel.clone().expect("every build has one here"),
                    untrusted: plan.untrusted,
                    release: *priority == Priority::Release,
                    promoted: false,
                    elsewhere: BTreeSet::new(),
                    platforms: plan.platforms.clone(),
                    uses: plan.uses.clone(),
                    results: BTreeMap::new(),
                    ended: None,
                    pins: BTreeMap::new(),
                    tags: BTreeSet::new(),
                    keep: Keep::All,
                    before: Keep::All,
                    reduced: Millis(0),
                };
                self.builds.insert(plan.build.clone(), seen);
            }
            Event::AttemptEnded { lease, artifacts, outcome, next, .. } => {
                self.told.remove(lease);
                let good = outcome.kind == railyard_common::outcome::OutcomeKind::Succeeded && *next == Next::End;
                if let Some(seen) = self.of_job(lease.job).filter(|_| good) {
                    let left =
                        artifacts.iter().map(|one| (one.blob.digest, one.blob.stored_bytes, one.published.clone()));
                    seen.results.insert(lease.job.0, left.collect());
                }
            }
            Event::BuildEnded { build, .. } => self.change(build, |seen| seen.ended = Some(now)),
            Event::BuildResumed { build, jobs, .. } => self.change(build, |seen| {
                seen.ended = None;
                jobs.iter().for_each(|job| _ = seen.results.remove(&job.0));
            }),
            Event::BuildPinned { build, name, pin, .. } => {
                self.change(build, |seen| _ = seen.pins.insert(name.to_string(), pin.clone()));
            }
            Event::BuildUnpinned { build, names, .. } => self.change(build, |seen| {
                names.iter().for_each(|name| _ = seen.pins.remove(name.as_str()));
            }),
            Event::BuildTagged { build, tag, .. } => {
                let same = self.builds.iter_mut().filter(|(id, _)| id.pipeline == build.pipeline);
                same.for_each(|(_, seen)| _ = seen.tags.remove(tag));
                self.change(build, |seen| _ = seen.tags.insert(tag.clone()));
            }
            Event::BuildUntagged { build, tag, .. } => self.change(build, |seen| _ = seen.tags.remove(tag)),
            Event::BuildPromoted { build, promotion, .. } => self.change(build, |seen| {
                (seen.channel, seen.promoted) = (promotion.channel.clone(), true);
                seen.elsewhere.extend(promotion.paths.keys().cloned());
            }),
            Event::BuildsReduced { builds, .. } => builds.iter().for_each(|one| {
                self.change(&one.build, |seen| {
                    seen.before = if now.0 < seen.reduced.0 + GRACE { seen.before } else { seen.keep };
                    (seen.keep, seen.reduced) = (one.keep, now);
                });
            }),
            Event::BuildsForgotten { builds, .. } => builds.iter().for_each(|build| _ = self.builds.remove(build)),
            _ => {}
        }
    }

    fn change(&mut self, build: &BuildId, change: impl FnOnce(&mut Seen)) {
        if let Some(seen) = self.builds.get_mut(build) {
            change(seen);
        }
    }

    fn of_job(&mut self, job: JobId) -> Option<&mut Seen> {
        self.builds.values_mut().find(|seen| (seen.number..seen.number + seen.jobs).contains(&job.0))
    }

    pub(super) fn told(&mut self, lease: LeaseId, there: BTreeSet<Digest>) {
        self.told.insert(lease, there);
    }

    pub(super) fn promised(&self, lease: LeaseId) -> impl Iterator<Item = &Digest> {
        self.told.get(&lease).into_iter().flatten()
    }

    pub(super) fn leases_are(&mut self, live: &BTreeSet<LeaseId>) {
        self.told.retain(|lease, _| live.contains(lease));
    }

    pub(super) fn written(&mut self, build: &BuildId) {
        self.manifests.insert(build.clone());
    }

    /// This is what the backup knew; `now` is what was so until then.
    pub(super) fn restored(&mut self, now: &Self, store: &Store) {
        self.told.clear();
        (self.spared, self.was_restored) = (now.spared.clone(), true);
        self.spared.extend(store.objects.keys().filter(|path| path.as_str().starts_with("images/")).cloned());
        (self.lost, self.manifests) = (now.lost.clone(), now.manifests.clone());
        for (id, seen) in now.builds.iter().filter(|(id, _)| !self.builds.contains_key(*id)) {
            // A manifest that is there speaks for its build, whatever was said of it since.
            if store.objects.contains_key(&layout::build_manifest(id)) {
                let blobs = seen.blobs(Keep::All).map(|(digest, _, _)| *digest).collect();
                let paths = seen.own_paths().filter(|_| seen.is_success()).cloned().collect();
                self.lost.insert(id.clone(), (blobs, paths));
            }
        }
    }

    /// Why a path must not be deleted, if it must not.
    pub(super) fn deleting(&self, now: Millis, path: &RelPath) -> Option<String> {
        let text = path.as_str();
        let user = match text.strip_prefix("blobs/sha256/") {
            Some(rest) => {
                let digest = Digest::from_hex(rest.split_once('/')?.1).ok()?;
                self.needs_blob(now, &digest)
            }
            None => {
                // builds/PIPELINE/VERSION/… and logs/PIPELINE/VERSION/…
                let mut parts = text.split('/').skip(1);
                let build: BuildId = format!("{}/{}", parts.next()?, parts.next()?).parse().ok()?;
                let kept = self.builds.get(&build).is_some_and(|seen| seen.level(now) >= Keep::Manifest);
                (kept || self.lost.contains_key(&build)).then(|| build.to_string())
            }
        };
        user.map(|user| format!("{path} is deleted, and {user} needs it"))
    }

    fn needs_blob(&self, now: Millis, digest: &Digest) -> Option<String> {
        let has = |seen: &Seen| seen.blobs(seen.level(now)).any(|(other, _, _)| other == digest);
        let builds = self.builds.iter().find(|(_, seen)| has(seen)).map(|(id, _)| id.to_string());
        let leases = || self.told.iter().find(|(_, told)| told.contains(digest)).map(|(lease, _)| lease.to_string());
        let lost = || self.lost.iter().find(|(_, (blobs, _))| blobs.contains(digest)).map(|(id, _)| id.to_string());
        builds.or_else(leases).or_else(lost)
    }

    /// Why a published path must not go, if it must not.
    pub(super) fn unpublishing(&self, now: Millis, path: &RelPath) -> Option<String> {
        let user = self.path_of(now, path)?;
        Some(format!("{path} is not published any more, and {user} has it there"))
    }

    fn path_of(&self, now: Millis, path: &RelPath) -> Option<String> {
        let has = |seen: &Seen| {
            seen.is_success() && seen.level(now) >= Keep::Published && seen.paths().any(|own| own == path)
        };
        let builds = self.builds.iter().find(|(_, seen)| has(seen)).map(|(id, _)| id.to_string());
        builds.or_else(|| self.lost.iter().find(|(_, (_, paths))| paths.contains(path)).map(|(id, _)| id.to_string()))
    }

    /// What is wrong when nothing has happened for long but sweeps.
    pub(super) fn at_the_end(&self, now: Millis, store: &Store, policy: &Policy) -> Option<String> {
        if let Some((id, _)) = self.builds.iter().find(|(_, seen)| seen.keep == Keep::Nothing) {
            return Some(format!("{id} was deleted, and is not forgotten"));
        }
        for path in store.objects.keys() {
            let text = path.as_str();
            // After a restore, manifests of before it may speak for more than anybody knows.
            let unneeded = if text.ends_with("/~end") || (self.was_restored && text.starts_with("blobs/")) {
                false
            } else if text.starts_with("images/") {
                self.path_of(now, path).is_none() && !self.spared.contains(path)
            } else {
                self.deleting(now, path).is_none()
            };
            if unneeded {
                return Some(format!("nobody needs {path}, and it is still there"));
            }
        }
        let needed =
            self.builds.values().flat_map(|seen| seen.blobs(seen.keep)).map(|(digest, bytes, _)| (digest, bytes));
        for (digest, bytes) in needed {
            let blob = railyard_common::blob::Blob::plain(*digest, *bytes);
            if !store.has(&blob) {
                return Some(format!("{digest} is needed, and is not there"));
            }
        }
        // After a restore nobody knows what was taken away since the backup.
        let whole = self.builds.iter().filter(|(_, seen)| seen.is_success() && seen.keep >= Keep::Published);
        for (id, path) in whole.flat_map(|(id, seen)| seen.paths().map(move |path| (id, path))) {
            if !self.was_restored && !store.objects.contains_key(path) {
                return Some(format!("{id} has published {path}, and it is not there"));
            }
        }
        self.bounds(now, policy)
    }

    /// No more builds, and no more bytes, than the rules say, but for what is protected.
    fn bounds(&self, now: Millis, policy: &Policy) -> Option<String> {
        let rule = &policy.rules[0];
        let protected = |id: &BuildId, seen: &Seen| {
            let one = Reduction { build: id.clone(), keep: Keep::Nothing, why: String::new() };
            let lenient = Policy {
                rules: vec![railyard_common::retention::Rule { keep_last: 0, ..rule.clone() }],
                ..policy.clone()
            };
            let releases = (seen.promoted || seen.release) && seen.is_success();
            releases || self.may_reduce(now, &one, &[], true, &lenient).is_some()
        };
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for (id, seen) in &self.builds {
            if seen.keep == Keep::All && seen.is_success() && !protected(id, seen) {
                let channel = if seen.untrusted { "untrusted" } else { seen.channel.as_str() };
                *counts.entry(format!("{} {channel} {}", id.pipeline, seen.untrusted)).or_default() += 1;
            }
        }
        if let Some((group, count)) = counts.iter().find(|(_, count)| **count > rule.keep_last) {
            return Some(format!("{count} builds of {group} are kept, and {} may", rule.keep_last));
        }
        let max = policy.max_bytes?.as_u64();
        let mut seen_blobs = BTreeSet::new();
        let bytes: u64 = self
            .builds
            .values()
            .flat_map(|seen| seen.blobs(seen.keep))
            .filter(|(digest, _, _)| seen_blobs.insert(*digest))
            .map(|(_, bytes, _)| bytes)
            .sum();
        let could_go = self.builds.iter().any(|(id, seen)| seen.keep > Keep::Nothing && !protected(id, seen));
        (bytes > max && could_go).then(|| format!("{bytes} bytes are kept, and {max} may"))
    }
}
