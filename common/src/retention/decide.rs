//! The decision.
//!
//! Each build first has a word of its own, by its channel's rule. What a kept build was made from is kept with it. If there is still
//! too much, the oldest that nothing protects go, until there is little enough.

use super::policy::{Copies, Policy, Releases, Rule};
use super::{Keep, Pin, Why};
use crate::blob::{Blob, Encoding};
use crate::digest::Digest;
use crate::id::{BuildId, ChannelName, PinName, PipelineName, TagName};
use crate::path::RelPath;
use crate::platform::Platform;
use crate::time::Millis;
use bytesize::ByteSize;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::LazyLock;

/// A blob that a build refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobFact {
    /// Of its plain bytes.
    pub digest: Digest,
    /// Length as stored.
    pub bytes: u64,
    /// The file that it is published as.
    pub published: Option<FileFact>,
}

/// A published file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileFact {
    /// Where it lies.
    pub path: RelPath,
    /// Bytes that it takes besides the blob's: none if it is just another name of them.
    pub bytes: u64,
}

impl BlobFact {
    /// A blob that is published at `path`, or not; `copies` says what that takes.
    pub fn new(blob: &Blob, path: Option<&RelPath>, copies: Copies) -> Self {
        let bytes = if copies == Copies::Always || blob.encoding != Encoding::Identity { blob.size_bytes } else { 0 };
        let published = path.map(|path| FileFact { path: path.clone(), bytes });
        Self { digest: blob.digest, bytes: blob.stored_bytes, published }
    }

    /// Whether it is kept when that is kept of its build.
    pub fn is_kept_by(&self, keep: Keep) -> bool {
        keep == Keep::All || (keep == Keep::Published && self.published.is_some())
    }
}

/// Where a build stands, as far as retention cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildStage {
    /// It has not ended.
    Running,
    /// It has.
    Ended {
        /// Every job succeeded.
        succeeded: bool,
        /// When.
        at: Millis,
    },
}

/// What retention must know of a build.
#[derive(Clone, Debug)]
pub struct BuildFact {
    /// Which.
    pub build: BuildId,
    /// Its channel now.
    pub channel: ChannelName,
    /// Nobody had looked at what it builds.
    pub untrusted: bool,
    /// Its place in the order of all builds: later ones have higher numbers.
    pub number: u64,
    /// Where it stands.
    pub stage: BuildStage,
    /// What was left of it so far.
    pub keep: Keep,
    /// The platforms that it is for.
    pub platforms: Vec<Platform>,
    /// Who wants it kept.
    pub pins: BTreeMap<PinName, Pin>,
    /// Its tags.
    pub tags: BTreeSet<TagName>,
    /// It was put into its channel by hand.
    pub promoted: bool,
    /// It was submitted as a release.
    pub release: bool,
    /// What it was made from.
    pub uses: Vec<BuildId>,
    /// What it refers to.
    pub blobs: Vec<BlobFact>,
}

impl BuildFact {
    /// Ended well.
    fn is_success(&self) -> bool {
        matches!(self.stage, BuildStage::Ended { succeeded: true, .. })
    }

    /// Milliseconds since it ended.
    fn age(&self, now: Millis) -> u64 {
        match self.stage {
            BuildStage::Running => 0,
            BuildStage::Ended { at, .. } => now.since(at),
        }
    }
}

/// What is to be left of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// This.
    pub keep: Keep,
    /// Why not less; or why less than before.
    pub why: Vec<Why>,
}

/// The builds that are counted together. Strangers choose the channels of untrusted builds, so those of a pipeline are one group.
type GroupKey = (PipelineName, ChannelName, bool);

/// The channel that all untrusted builds of a pipeline count as, whatever they name.
pub(super) fn strangers() -> &'static ChannelName {
    static STRANGERS: LazyLock<ChannelName> = LazyLock::new(|| "untrusted".parse().expect("a valid name"));
    &STRANGERS
}

struct Group<'a> {
    rule: &'a Rule,
    /// Places among the facts, newest first.
    members: Vec<usize>,
}

/// What is to be left of each build, in the order of the facts.
pub fn decide(policy: &Policy, facts: &[BuildFact], now: Millis) -> Vec<Decision> {
    let default = Rule::default();
    let groups = groups(policy, &default, facts);
    let mut own: Vec<Decision> = facts.iter().map(|fact| Decision { keep: fact.keep, why: Vec::new() }).collect();
    for (key, group) in &groups {
        decide_group(key, group, facts, now, &mut own);
    }
    let mut round = Round::new(facts, own);
    for group in groups.values() {
        if let Some((max, low)) = group.rule.marks() {
            let scope: Vec<usize> = group.members.clone();
            round.shrink(&scope, |_| group.rule, (max, low), now, || Why::ChannelFull { low });
        }
    }
    if let Some((max, low)) = policy.marks() {
        let rules: HashMap<usize, &Rule> =
            groups.values().flat_map(|group| group.members.iter().map(|place| (*place, group.rule))).collect();
        let mut scope: Vec<usize> = (0..facts.len()).collect();
        scope.sort_by_key(|place| std::cmp::Reverse(facts[*place].number));
        round.shrink(
            &scope,
            |place| rules.get(&place).copied().unwrap_or(&default),
            (max, low),
            now,
            || Why::CacheFull { low },
        );
    }
    round.end()
}

fn groups<'a>(policy: &'a Policy, default: &'a Rule, facts: &[BuildFact]) -> BTreeMap<GroupKey, Group<'a>> {
    let mut groups: BTreeMap<GroupKey, Group<'a>> = BTreeMap::new();
    for (place, fact) in facts.iter().enumerate() {
        let channel = if fact.untrusted { strangers().clone() } else { fact.channel.clone() };
        let rule = policy.rules.iter().find(|rule| rule.is_for(&fact.build, &channel, fact.untrusted));
        let key = (fact.build.pipeline.clone(), channel, fact.untrusted);
        let group = groups.entry(key).or_insert_with(|| Group { rule: rule.unwrap_or(default), members: Vec::new() });
        group.members.push(place);
    }
    for group in groups.values_mut() {
        group.members.sort_by_key(|place| std::cmp::Reverse(facts[*place].number));
    }
    groups
}

/// Each build's own word, newest first.
fn decide_group(key: &GroupKey, group: &Group<'_>, facts: &[BuildFact], now: Millis, own: &mut [Decision]) {
    let rule = group.rule;
    let (mut successes, mut failures, mut releases, mut old) = (0u32, 0u32, 0u32, 0u32);
    let mut covered: BTreeSet<Platform> = BTreeSet::new();
    for place in &group.members {
        let (fact, decision) = (&facts[*place], &mut own[*place]);
        if fact.keep == Keep::Nothing {
            continue;
        }
        let mut why = binding(fact, now);
        if (fact.release || fact.promoted) && fact.is_success() {
            releases += 1;
            let is_kept = match rule.keep_releases {
                Releases::All => true,
                Releases::Last(most) => releases <= most,
            };
            let reason = if fact.promoted { Why::Promoted(fact.channel.clone()) } else { Why::Release };
            why.extend(is_kept.then_some(reason));
        }
        let is_whole = fact.keep == Keep::All;
        if is_whole && fact.is_success() && !fact.untrusted {
            let channel = key.1.clone();
            let news = fact.platforms.iter().filter(|platform| covered.insert(**platform));
            why.extend(news.map(|platform| Why::LastSuccess { channel: channel.clone(), platform: *platform }));
        }
        let gone = match fact.stage {
            BuildStage::Running => None,
            BuildStage::Ended { succeeded, .. } if is_whole => {
                let (rank, of) =
                    if succeeded { (&mut successes, rule.keep_last) } else { (&mut failures, rule.keep_failed) };
                *rank += 1;
                out_of_window(rule, fact.age(now), *rank, of, !succeeded, &mut why)
            }
            BuildStage::Ended { .. } => {
                why.extend(is_young(rule, fact, now).then_some(Why::Young(rule.min_age)));
                Some(Why::Old)
            }
        };
        match gone {
            Some(reason) if why.is_empty() => {
                old += 1;
                let is_kept = rule.old_last.is_none_or(|most| old <= most)
                    && rule.old_max_age.is_none_or(|most| fact.age(now) <= most.millis());
                let keep = if is_kept { of_old(rule, fact) } else { Keep::Nothing };
                decision.keep = keep.min(fact.keep);
                let too_old = rule.old_max_age.filter(|most| !is_kept && fact.age(now) > most.millis());
                decision.why = vec![too_old.map_or(reason, Why::TooOld)];
            }
            _ => decision.why = why,
        }
    }
}

/// What is left of an old build. One that failed has published nothing; were it kept for that, so would be what it was made from.
fn of_old(rule: &Rule, fact: &BuildFact) -> Keep {
    if fact.is_success() { rule.old } else { rule.old.min(Keep::Manifest) }
}

fn is_young(rule: &Rule, fact: &BuildFact, now: Millis) -> bool {
    fact.age(now) < rule.min_age.millis()
}

/// Why it is not one of the newest; if it is, that is one more reason to keep it.
fn out_of_window(rule: &Rule, age: u64, rank: u32, of: u32, failed: bool, why: &mut Vec<Why>) -> Option<Why> {
    let max_age = if failed { Some(rule.failed_max_age) } else { rule.max_age };
    let too_old = max_age.filter(|most| age > most.millis());
    let is_recent = rank <= of && too_old.is_none();
    why.extend(is_recent.then_some(Why::Recent { of, failed }));
    why.extend((age < rule.min_age.millis()).then_some(Why::Young(rule.min_age)));
    if !why.is_empty() {
        return None;
    }
    Some(if rank > of { Why::Beyond { of, failed } } else { too_old.map_or(Why::Beyond { of, failed }, Why::TooOld) })
}

/// What protects a build on its own.
fn binding(fact: &BuildFact, now: Millis) -> Vec<Why> {
    let running = (fact.stage == BuildStage::Running).then_some(Why::Running);
    let pins = fact.pins.iter().filter(|(_, pin)| pin.holds(now));
    let pins = pins.map(|(name, pin)| Why::Pinned { name: name.clone(), why: pin.why.clone() });
    running.into_iter().chain(pins).chain(fact.tags.iter().cloned().map(Why::Tagged)).collect()
}

/// The words so far, what follows from them, and how many bytes that is.
struct Round<'a> {
    facts: &'a [BuildFact],
    places: HashMap<&'a BuildId, usize>,
    /// Newest first.
    order: Vec<usize>,
    own: Vec<Decision>,
    /// What is kept in the end: a build's own word, or that of what was made from it.
    all: Vec<Keep>,
}

impl<'a> Round<'a> {
    fn new(facts: &'a [BuildFact], own: Vec<Decision>) -> Self {
        let places = facts.iter().enumerate().map(|(place, fact)| (&fact.build, place)).collect();
        let mut order: Vec<usize> = (0..facts.len()).collect();
        order.sort_by_key(|place| std::cmp::Reverse(facts[*place].number));
        let mut round = Self { facts, places, order, own, all: Vec::new() };
        round.all = round.keeps();
        round
    }

    /// Each build's own word, and with those that stay all that they were made from. A build is made from older ones, but names are
    /// all that says so: in no order of the builds is it enough to look at each once.
    fn keeps(&self) -> Vec<Keep> {
        let mut all: Vec<Keep> = self.own.iter().map(|decision| decision.keep).collect();
        let stays = |keep: Keep| keep >= Keep::Published;
        let mut open: Vec<usize> = (0..all.len()).filter(|place| stays(all[*place])).collect();
        while let Some(place) = open.pop() {
            for used in self.facts[place].uses.iter().filter_map(|build| self.places.get(build).copied()) {
                if all[used] < self.facts[used].keep {
                    // What stays anyway is among the open ones already.
                    if !stays(all[used]) && stays(self.facts[used].keep) {
                        open.push(used);
                    }
                    all[used] = self.facts[used].keep;
                }
            }
        }
        all
    }

    /// Reduces the oldest of `scope` (newest first) that nothing protects: first to what is kept of old builds, then to nothing.
    fn shrink<'r>(
        &mut self,
        scope: &[usize],
        rule: impl Fn(usize) -> &'r Rule,
        (max, low): (ByteSize, ByteSize),
        now: Millis,
        why: impl Fn() -> Why,
    ) {
        let mut counted = Counted::of(self, scope);
        if counted.bytes <= max.as_u64() {
            return;
        }
        for last_resort in [false, true] {
            loop {
                let before = counted.bytes;
                for place in scope.iter().rev() {
                    if counted.bytes <= low.as_u64() {
                        return;
                    }
                    let rule = rule(*place);
                    let fact = &self.facts[*place];
                    let target = if last_resort { Keep::Nothing } else { of_old(rule, fact) };
                    let is_protected = self.own[*place].why.iter().any(Why::is_binding)
                        || fact.stage == BuildStage::Running
                        || is_young(rule, fact, now);
                    if is_protected || self.own[*place].keep <= target {
                        continue;
                    }
                    self.own[*place] = Decision { keep: target, why: vec![why()] };
                    let after = self.keeps();
                    counted.change(self.facts, scope, &self.all, &after);
                    self.all = after;
                }
                // What goes may set free what it was made from, which is older.
                if counted.bytes == before {
                    break;
                }
            }
        }
    }

    fn end(self) -> Vec<Decision> {
        let Self { facts, places, order, own, all } = self;
        let mut decisions = own;
        for place in order {
            if all[place] < Keep::Published {
                continue;
            }
            for used in &facts[place].uses {
                let Some(used) = places.get(used).copied() else { continue };
                let decision = &mut decisions[used];
                if decision.keep < all[used] {
                    // What was said against it does not hold.
                    *decision = Decision { keep: all[used], why: Vec::new() };
                }
                if all[used] > Keep::Nothing {
                    decision.why.push(Why::UsedBy(facts[place].build.clone()));
                }
            }
        }
        decisions
    }
}

/// Bytes in the cache that several builds may have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Held<'a> {
    /// A blob.
    Blob(&'a Digest),
    /// A published file that is a copy.
    File(&'a RelPath),
}

/// What a build has in the cache while that is kept of it, with its bytes.
pub fn held(blobs: &[BlobFact], keep: Keep) -> impl Iterator<Item = (Held<'_>, u64)> {
    blobs.iter().filter(move |blob| blob.is_kept_by(keep)).flat_map(|blob| {
        let file = blob.published.iter().filter(|file| file.bytes > 0);
        std::iter::once((Held::Blob(&blob.digest), blob.bytes))
            .chain(file.map(|file| (Held::File(&file.path), file.bytes)))
    })
}

/// How many builds of a scope keep each blob and each copy of one, and how many bytes that is. Builds may disagree over a blob's
/// bytes, when it was lost and stored again in another form: what the first one says counts.
struct Counted<'a> {
    builds: HashMap<Held<'a>, (u32, u64)>,
    bytes: u64,
}

impl<'a> Counted<'a> {
    fn of(round: &Round<'a>, scope: &[usize]) -> Self {
        let mut counted = Self { builds: HashMap::new(), bytes: 0 };
        for place in scope {
            counted.add(&round.facts[*place].blobs, round.all[*place]);
        }
        counted
    }

    fn add(&mut self, blobs: &'a [BlobFact], keep: Keep) {
        for (held, bytes) in held(blobs, keep) {
            let (builds, counted) = self.builds.entry(held).or_insert((0, bytes));
            *builds += 1;
            self.bytes += if *builds == 1 { *counted } else { 0 };
        }
    }

    fn remove(&mut self, blobs: &'a [BlobFact], keep: Keep) {
        for (held, _) in held(blobs, keep) {
            let Some((builds, counted)) = self.builds.get_mut(&held) else { continue };
            *builds -= 1;
            if *builds == 0 {
                self.bytes -= *counted;
                self.builds.remove(&held);
            }
        }
    }

    fn change(&mut self, facts: &'a [BuildFact], scope: &[usize], before: &[Keep], after: &[Keep]) {
        for place in scope.iter().filter(|place| before[**place] != after[**place]) {
            self.add(&facts[*place].blobs, after[*place]);
            self.remove(&facts[*place].blobs, before[*place]);
        }
    }
}
