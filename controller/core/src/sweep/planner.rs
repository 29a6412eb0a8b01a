//! What a sweep wants to know of the cache, and what it makes of it.

use super::look::{Decided, Look};
use super::plan::{Gone, GoneKind, SweepPlan, Unpublished, digest};
use crate::kept::Reduction;
use railyard_common::blob::Blob;
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, ChannelName};
use railyard_common::layout::SWEPT;
use railyard_common::manifest::References;
use railyard_common::object::Object;
use railyard_common::path::RelPath;
use railyard_common::planted::{self, Bug};
use railyard_common::retention::{Keep, Why};
use railyard_common::time::Millis;
use std::collections::{BTreeMap, BTreeSet};

/// An object of the cache as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it lies.
    pub path: RelPath,
    /// Its length as stored.
    pub bytes: u64,
    /// When it was written.
    pub modified: Millis,
}

/// What the planner needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// [`Planner::page`]: objects below `prefix`, those after `after`, in order, as many as [`Planner::new`] was told.
    Page {
        /// The directory.
        prefix: &'static str,
        /// The last one of the page before.
        after: Option<RelPath>,
    },
    /// [`Planner::manifest`] for each of them.
    Manifests(Vec<BuildId>),
    /// Nothing: [`Planner::end`].
    Nothing,
}

/// Why nothing may be deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stop {
    /// What was built since the backup is not known.
    #[error(
        "the journal was restored from a backup, so what was built since then is unknown: look at `railyard gc plan`, wait for builds \
         that still run elsewhere, then say `railyard gc resume`"
    )]
    Restored {
        /// When.
        at: Millis,
    },
    /// A manifest that must be there was not listed.
    #[error(
        "the cache's listing lacks {path}, and {more} more manifests of builds that are kept: it is not the whole cache, or the cache has \
         lost them. Nothing is deleted. If it is lost, `railyard delete {build} --force` says that the build need not be kept",
        path = railyard_common::layout::build_manifest(build)
    )]
    NoManifest {
        /// Whose.
        build: BuildId,
        /// How many others.
        more: usize,
    },
    /// A blob that must be there was not listed.
    #[error(
        "the cache's listing lacks blob {digest}, which {build} needs, and {more} more: it is not the whole cache, or the cache has lost \
         them. Nothing is deleted. If it is lost, `railyard delete {build} --force` says that the build need not be kept"
    )]
    NoBlob {
        /// Which.
        digest: Digest,
        /// Whose.
        build: BuildId,
        /// How many others.
        more: usize,
    },
    /// A manifest says nothing that can be understood.
    #[error(
        "the manifest of {build} cannot be read ({why}), so it is not known what it needs. Nothing is deleted. Put {path} right",
        path = railyard_common::layout::build_manifest(build)
    )]
    BadManifest {
        /// Whose.
        build: BuildId,
        /// What is wrong with it.
        why: String,
    },
    /// A listing ends too early.
    #[error("the cache's listing of {0}/ ends before its last object: it is not the whole cache. Nothing is deleted")]
    CutShort(&'static str),
    /// A listing goes backwards.
    #[error("the cache's listing is out of order at {0}: it cannot be trusted. Nothing is deleted")]
    OutOfOrder(RelPath),
}

/// Makes a plan out of a look and of what the cache has.
pub struct Planner {
    look: Look,
    stage: Stage,
    after: Option<RelPath>,
    /// What lies below `builds` and is one build's.
    records: Vec<(BuildId, Listed)>,
    /// Manifests that were listed, of whatever build.
    found: BTreeSet<BuildId>,
    /// Builds that only the cache knows, with what they refer to.
    unknown: BTreeMap<BuildId, Unknown>,
    /// Builds that have the name of one that is known; what is under that name in the cache is theirs.
    others: BTreeSet<BuildId>,
    /// What manifests need, besides the marks.
    more_marks: BTreeSet<Digest>,
    /// Where they published something, with how many of them did.
    more_paths: BTreeMap<RelPath, u32>,
    /// For each of the needed blobs, whether it was listed.
    seen: Vec<bool>,
    gone: Vec<Gone>,
    /// After a restore: builds of which the cache lacks something, and what of them is there.
    lost: BTreeMap<BuildId, Keep>,
    foreign: u64,
    listed: (u64, u64),
    page_len: usize,
    /// The last object of the directory was listed.
    at_end: bool,
}

/// What the manifest of a build says that only the cache knows.
struct Unknown {
    channel: ChannelName,
    bytes: u64,
    published: Vec<(RelPath, Blob)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Listing(usize),
    Manifests,
    Done,
}

impl Planner {
    /// Begins with a look; a page that is shorter than `page_len` is the last of its directory. What manifests say must be known
    /// before a blob is judged, so `builds` comes first.
    pub fn new(look: Look, page_len: usize) -> Self {
        let seen = vec![false; look.needed.len()];
        Self {
            look,
            stage: Stage::Listing(0),
            after: None,
            records: Vec::new(),
            found: BTreeSet::new(),
            unknown: BTreeMap::new(),
            others: BTreeSet::new(),
            more_marks: BTreeSet::new(),
            more_paths: BTreeMap::new(),
            seen,
            gone: Vec::new(),
            lost: BTreeMap::new(),
            foreign: 0,
            listed: (0, 0),
            page_len,
            at_end: false,
        }
    }

    /// What it needs next.
    pub fn ask(&self) -> Ask {
        match self.stage {
            Stage::Listing(place) => Ask::Page { prefix: SWEPT[place], after: self.after.clone() },
            Stage::Manifests => {
                let others =
                    self.found.iter().filter(|build| self.is_part(build) || !self.look.levels.contains_key(*build));
                Ask::Manifests(self.look.whole.iter().chain(others).cloned().collect())
            }
            Stage::Done => Ask::Nothing,
        }
    }

    /// A page has come. One that is not full is the last of its directory.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn page(&mut self, page: Vec<Listed>) -> Result<(), Stop> {
        let Stage::Listing(place) = self.stage else { return Ok(()) };
        let is_last = page.len() < self.page_len || planted::is(Bug::SweepFirstPage);
        for one in page {
            if self.after.as_ref().is_some_and(|after| *after >= one.path) {
                return Err(Stop::OutOfOrder(one.path));
            }
            self.after = Some(one.path.clone());
            self.judge(one);
        }
        if is_last {
            if !std::mem::take(&mut self.at_end) && !planted::is(Bug::SweepPartial) {
                return Err(Stop::CutShort(SWEPT[place]));
            }
            self.after = None;
            self.stage = match place {
                0 => {
                    self.check_manifests()?;
                    Stage::Manifests
                }
                place if place + 1 < SWEPT.len() => Stage::Listing(place + 1),
                _ => Stage::Done,
            };
            if place == 1 {
                self.check_blobs()?;
            }
        }
        Ok(())
    }

    /// The manifest of a build that [`Ask::Manifests`] named; `None` if there is none.
    ///
    /// # Errors
    /// [`Stop::BadManifest`], also for one that is not there: it was listed a moment ago.
    pub fn manifest(&mut self, build: &BuildId, bytes: Option<&[u8]>) -> Result<(), Stop> {
        let said = match read(build, bytes) {
            Ok(said) => said,
            // Nothing but itself hangs on it.
            Err(_) if self.is_part(build) => return Ok(()),
            Err(why) => return Err(Stop::BadManifest { build: build.clone(), why }),
        };
        let own = self.look.submitted.get(build);
        if own.zip(said.submitted_at).is_some_and(|(own, said)| *own != said) {
            self.others.insert(build.clone());
        } else if self.is_part(build) {
            return Ok(());
        }
        self.more_marks.extend(said.blobs.iter().map(|blob| blob.digest));
        // One build may have the same bytes there twice.
        for path in said.published.iter().map(|(path, _)| path).collect::<BTreeSet<_>>() {
            *self.more_paths.entry(path.clone()).or_default() += 1;
        }
        if !self.look.levels.contains_key(build) {
            let bytes = said.blobs.iter().map(|blob| blob.stored_bytes).sum();
            self.unknown.insert(build.clone(), Unknown { channel: said.channel, bytes, published: said.published });
        }
        Ok(())
    }

    /// Whether it is known, and not everything is kept of it.
    fn is_part(&self, build: &BuildId) -> bool {
        self.look.submitted.contains_key(build) && !self.look.whole.contains(build)
    }

    /// Every manifest that was asked for has come.
    pub fn manifests_read(&mut self) {
        if self.stage == Stage::Manifests {
            self.stage = Stage::Listing(1);
            let records = std::mem::take(&mut self.records);
            for (build, one) in records {
                if self.is_gone(&build, &one) {
                    self.gone.push(Gone {
                        path: one.path,
                        bytes: one.bytes,
                        kind: GoneKind::Record,
                        build: Some(build),
                    });
                }
            }
        }
    }

    /// The plan; `known` are the builds that the farm knows by now: one that has ended since the look is not unknown.
    ///
    /// # Errors
    /// [`Stop::Restored`], with the plan that may not be carried out.
    pub fn end(self, known: &BTreeSet<BuildId>) -> Result<SweepPlan, (Stop, Box<SweepPlan>)> {
        let Self { look, mut unknown, others, more_paths, mut gone, lost, foreign, listed, .. } = self;
        unknown.retain(|build, _| !known.contains(build));
        gone.sort_by(|a, b| (rank(a), &a.path).cmp(&(rank(b), &b.path)));
        let reduced: Vec<Unpublished> = look
            .reduced
            .into_iter()
            .map(|mut one| {
                one.paths.retain(|(path, _)| !more_paths.contains_key(path));
                one
            })
            .collect();
        let mut builds = look.builds;
        for one in &mut builds {
            if others.contains(&one.build) {
                (one.keep, one.why) = (one.now, vec![Why::Unknown]);
            } else if let Some(keep) = lost.get(&one.build) {
                (one.keep, one.why) = (*keep, vec![Why::Lost]);
            }
        }
        builds.extend(unknown.iter().map(|(build, Unknown { channel, bytes, .. })| Decided {
            build: build.clone(),
            channel: channel.clone(),
            now: Keep::All,
            keep: Keep::All,
            why: vec![Why::Unknown],
            bytes: *bytes,
            frees: 0,
        }));
        let own = |Unknown { channel, mut published, .. }: Unknown| {
            published.retain(|(path, _)| more_paths.get(path) == Some(&1));
            (channel, published)
        };
        let unknown = unknown.into_iter().map(|(build, said)| (build, own(said))).collect();
        let published = more_paths.into_keys().collect();
        let digest = digest(&builds, &reduced, &gone);
        let why = Why::Lost.to_string();
        let lost = lost.into_iter().map(|(build, keep)| Reduction { build, keep, why: why.clone() }).collect();
        let plan = SweepPlan { at: look.at, builds, reduced, gone, lost, unknown, published, foreign, listed, digest };
        match look.restored_at {
            Some(at) => Err((Stop::Restored { at }, Box::new(plan))),
            None => Ok(plan),
        }
    }

    fn judge(&mut self, one: Listed) {
        let object = Object::at(&one.path);
        if !matches!(object, Object::Foreign | Object::End) {
            self.listed = (self.listed.0 + 1, self.listed.1.saturating_add(one.bytes));
        }
        match object {
            Object::Manifest(build) => {
                self.found.insert(build.clone());
                self.records.push((build, one));
            }
            Object::Record(build) => self.records.push((build, one)),
            Object::Log(build) if self.is_gone(&build, &one) => {
                self.gone.push(Gone { path: one.path, bytes: one.bytes, kind: GoneKind::Log, build: Some(build) });
            }
            Object::Blob { digest, beside, .. } => {
                if !beside && let Ok(place) = self.look.needed.binary_search_by(|(needed, _)| needed.cmp(&digest)) {
                    self.seen[place] = true;
                }
                let is_marked = self.look.marks.binary_search(&digest).is_ok() || self.more_marks.contains(&digest);
                if !is_marked && self.is_old(&one) {
                    self.gone.push(Gone {
                        path: one.path,
                        bytes: one.bytes,
                        kind: GoneKind::Blob(digest),
                        build: None,
                    });
                }
            }
            Object::End => self.at_end = true,
            Object::Foreign => self.foreign += 1,
            Object::Log(_) | Object::Shared => {}
        }
    }

    /// Whether an object that is one build's goes: the build is deleted, or nobody knows it.
    fn is_gone(&self, build: &BuildId, one: &Listed) -> bool {
        match self.look.levels.get(build) {
            Some(_) if self.others.contains(build) => false,
            Some(level) => *level == Keep::Nothing,
            None => !self.found.contains(build) && self.is_old(one),
        }
    }

    fn is_old(&self, one: &Listed) -> bool {
        self.look.at.since(one.modified) >= self.look.grace_millis
    }

    /// After a restore the state may know builds that were deleted since the backup.
    fn check_manifests(&mut self) -> Result<(), Stop> {
        if self.look.restored_at.is_some() {
            let gone = self.look.manifests.iter().filter(|build| !self.found.contains(*build));
            self.lost.extend(gone.map(|build| (build.clone(), Keep::Nothing)));
            self.look.whole.retain(|build| self.found.contains(build));
            return Ok(());
        }
        let mut missing = self.look.manifests.iter().filter(|build| !self.found.contains(*build));
        match missing.next() {
            Some(build) if !planted::is(Bug::SweepPartial) => {
                Err(Stop::NoManifest { build: build.clone(), more: missing.count() })
            }
            _ => Ok(()),
        }
    }

    fn check_blobs(&mut self) -> Result<(), Stop> {
        if self.look.restored_at.is_some() {
            let missing = self.look.needed.iter().zip(&self.seen).filter(|(_, seen)| !**seen);
            let missing: BTreeSet<Digest> = missing.map(|((digest, _), _)| *digest).collect();
            let users = self.look.users.iter().filter(|(_, blobs)| blobs.iter().any(|blob| missing.contains(blob)));
            for (build, _) in users {
                self.lost.entry(build.clone()).or_insert(Keep::Manifest);
            }
            return Ok(());
        }
        let mut missing = self.look.needed.iter().zip(&self.seen).filter(|(_, seen)| !**seen);
        match missing.next() {
            Some(((digest, build), _)) if !planted::is(Bug::SweepPartial) => {
                Err(Stop::NoBlob { digest: *digest, build: build.clone(), more: missing.count() })
            }
            _ => Ok(()),
        }
    }
}

/// The manifest of that build, or why there is none.
fn read(build: &BuildId, bytes: Option<&[u8]>) -> Result<References, String> {
    let bytes = bytes.ok_or("it is not there")?;
    let said = References::read(bytes).map_err(|error| error.to_string())?;
    if said.build == *build { Ok(said) } else { Err(format!("it is that of {}", said.build)) }
}

/// Records last: a build whose manifest is there can still be looked up.
fn rank(gone: &Gone) -> u8 {
    match gone.kind {
        GoneKind::Blob(_) => 0,
        GoneKind::Log => 1,
        GoneKind::Record => 2,
    }
}
