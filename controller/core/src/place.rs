//! Which job goes to which worker.
//!
//! Each pass recomputes from the state alone, so no notification can be lost. The order of jobs: class (with age it rises), then
//! the pipeline that uses least, then the longest remaining path, then who became ready first. A pass looks at the heads of the
//! lines only (see [`crate::queue`]): what one job of a shape cannot get, none of its shape can.

use crate::event::Event;
use crate::farm::Farm;
use crate::is_due;
use crate::job::Job;
use crate::queue::{Line, Queue, Shape};
use crate::worker::Worker;
use railyard_common::id::{GroupName, JobId, LeaseId, PipelineName, WorkerName};
use railyard_common::job::{Capacity, JobSpec};
use railyard_common::outcome::OutcomeKind;
use railyard_common::planted::{self, Bug};
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, btree_set};
use std::iter::Peekable;

/// A job that has waited so long is treated as of the next class; twice as long, the one after.
pub const AGEING_MILLIS: u64 = 3_600_000;

/// A job that fits nowhere for so long has a worker kept free for it: small jobs would fill every gap for ever.
pub const KEEP_FREE_MILLIS: u64 = 600_000;

/// Bytes that are already on a worker count in steps of this size …
const LOCAL_STEP_BYTES: u64 = 64 << 20;
/// … and not beyond this: fetching that much takes a minute, which is no reason to wait for hours.
const LOCAL_STEPS_MAX: u64 = 256;

/// Who goes first; the smallest.
type Rank = (Reverse<Priority>, u64, Reverse<u32>, u64, JobId);

/// How well a worker suits a job; the greatest wins. Fields in order of weight.
type Score<'a> = (Reverse<usize>, bool, u64, Capacity, Reverse<&'a WorkerName>);

impl Farm {
    pub(crate) fn decide_place(&self, now: Millis) -> Vec<Event> {
        if self.queues.len() == 0 {
            return Vec::new();
        }
        Pass::over(self, now).run()
    }

    /// The lease of a job's next attempt.
    fn next_lease(&self, id: JobId) -> Option<LeaseId> {
        let job = self.jobs.get(&id)?;
        let step = u32::from(!planted::is(Bug::AttemptReused));
        let next = job.attempts.last().map_or(1, |last| last.number + step);
        Some(LeaseId { job: id, attempt: next.max(self.first_attempt) })
    }
}

/// Where candidates come from.
enum Source<'a> {
    /// A line; its heads by path and by age.
    Line {
        line: &'a Line,
        by_path: Peekable<btree_set::Iter<'a, (Reverse<u32>, u64, JobId)>>,
        by_age: Peekable<btree_set::Iter<'a, (Millis, u64, JobId)>>,
    },
    /// The first of a group, if it may run.
    Group(&'a GroupName),
    /// One job whose backoff has just ended.
    Alone(JobId),
}

/// A worker with room.
struct Room<'a> {
    worker: &'a Worker,
    free: Capacity,
    slots_to_give: u32,
}

/// One pass.
struct Pass<'a> {
    farm: &'a Farm,
    now: Millis,
    rooms: Vec<Room<'a>>,
    sources: Vec<Source<'a>>,
    /// The next job of each source, best first.
    heads: BTreeSet<(Rank, usize)>,
    by_pipeline: BTreeMap<&'a PipelineName, BTreeMap<usize, Rank>>,
    usage: BTreeMap<&'a PipelineName, u64>,
    taken: BTreeSet<JobId>,
    /// Leases of this pass in each group, with their limits.
    grouped: BTreeMap<&'a GroupName, Vec<u32>>,
    full: BTreeSet<&'a Shape>,
    kept_free: BTreeSet<&'a Shape>,
}

impl<'a> Pass<'a> {
    fn over(farm: &'a Farm, now: Millis) -> Self {
        let rooms = farm.workers.values().filter(|worker| worker.takes_leases(now)).map(|worker| Room {
            worker,
            free: farm.available(worker),
            slots_to_give: worker.slots_to_give(),
        });
        let lines = farm.queues.lines.iter().map(|(line, Queue { by_path, by_age })| Source::Line {
            line,
            by_path: by_path.iter().peekable(),
            by_age: by_age.iter().peekable(),
        });
        let groups = farm.queues.groups.keys().map(Source::Group);
        let due = farm.queues.due(now).map(|(_, job)| Source::Alone(job.id));
        let mut pass = Self {
            farm,
            now,
            rooms: rooms.filter(|room| room.free.slots > 0).collect(),
            sources: lines.chain(groups).chain(due).collect(),
            heads: BTreeSet::new(),
            by_pipeline: BTreeMap::new(),
            usage: farm.usage.iter().map(|(pipeline, usage)| (pipeline, *usage)).collect(),
            taken: BTreeSet::new(),
            grouped: BTreeMap::new(),
            full: BTreeSet::new(),
            kept_free: BTreeSet::new(),
        };
        for source in 0..pass.sources.len() {
            pass.offer(source);
        }
        pass
    }

    fn run(mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while !self.rooms.is_empty()
            && let Some((rank, source)) = self.heads.pop_first()
        {
            let id = rank.4;
            let Some((job, spec, line)) = self.look(id) else { continue };
            self.by_pipeline.entry(&line.pipeline).or_default().remove(&source);
            let room = if self.full.contains(&line.shape) { None } else { self.best_room(id, job, spec) };
            let (Some(room), Some(lease)) = (room, self.farm.next_lease(id)) else {
                self.cannot_place(job, spec, line);
                continue;
            };
            let worker = self.rooms[room].worker.offer.name.clone();
            self.take(room, spec);
            self.taken.insert(id);
            if let Some((group, concurrency)) = line.group.as_ref().zip(spec.concurrency.as_ref()) {
                self.grouped.entry(group).or_default().push(concurrency.limit);
            }
            *self.usage.entry(&line.pipeline).or_default() += u64::from(spec.run.resources.cpu_millis);
            self.offer(source);
            self.rank_again(&line.pipeline);
            events.push(Event::JobLeased { at: self.now, lease, worker });
        }
        events
    }

    fn look(&self, id: JobId) -> Option<(&'a Job, &'a JobSpec, &'a Line)> {
        let farm: &'a Farm = self.farm;
        let job = farm.jobs.get(&id)?;
        let build = farm.builds.get(&job.build)?;
        Some((job, build.plan.jobs.get(job.index)?, build.index.lines.get(job.index)?))
    }

    /// Puts the next job of a source among the heads.
    fn offer(&mut self, source: usize) {
        let (now, taken) = (self.now, &self.taken);
        if let Source::Group(name) = self.sources[source] {
            let first = self.first_of(name);
            return self.rank(source, first);
        }
        let next = match &mut self.sources[source] {
            Source::Line { line, by_path, by_age } => {
                while by_path.next_if(|(_, _, id)| taken.contains(id)).is_some() {}
                while by_age.next_if(|(_, _, id)| taken.contains(id)).is_some() {}
                let raised = by_age.peek().map(|(ready_at, _, id)| (class(line.priority, *ready_at, now), *id));
                let aged = raised.filter(|(class, _)| *class > line.priority);
                aged.map(|(_, id)| id).or_else(|| by_path.peek().map(|(_, _, id)| *id))
            }
            Source::Alone(id) => Some(*id).filter(|id| !taken.contains(id)),
            Source::Group(_) => None,
        };
        self.rank(source, next);
    }

    /// Puts a job among the heads.
    fn rank(&mut self, source: usize, next: Option<JobId>) {
        let now = self.now;
        let Some((id, (job, _, line))) = next.and_then(|id| Some((id, self.look(id)?))) else { return };
        let usage = self.usage.get(&line.pipeline).copied().unwrap_or_default();
        let class = class(line.priority, job.ready_at.unwrap_or(now), now);
        let rank = (Reverse(class), usage, Reverse(job.path_len), job.ticket, id);
        self.heads.insert((rank, source));
        self.by_pipeline.entry(&line.pipeline).or_default().insert(source, rank);
    }

    /// The job of a group that may run next, if one may. First come, first served: one whose backoff is not over, or that has to
    /// wait for room, keeps its place; only what no connected worker could ever run is passed over.
    fn first_of(&self, name: &GroupName) -> Option<JobId> {
        let group = self.farm.queues.groups.get(name)?;
        let granted = self.grouped.get(name).map_or(&[][..], Vec::as_slice);
        for ((_, id), not_before) in group.waiting.iter().filter(|((_, id), _)| !self.taken.contains(id)) {
            let spec = self.farm.spec(*id)?;
            if !self.farm.workers.values().any(|worker| worker.is_willing() && worker.offer.suits(spec)) {
                continue;
            }
            let limit = spec.concurrency.as_ref().map_or(1, |concurrency| concurrency.limit);
            let smallest = granted.iter().chain(group.running.values()).copied().fold(limit, u32::min);
            let over = usize::from(planted::is(Bug::GroupLimitOff));
            let admits = group.running.len() + granted.len() < smallest as usize + over;
            return (admits && is_due(*not_before, self.now)).then_some(*id);
        }
        None
    }

    /// What a pipeline uses has changed, and with it the ranks of its jobs.
    fn rank_again(&mut self, pipeline: &'a PipelineName) {
        let usage = self.usage.get(pipeline).copied().unwrap_or_default();
        for (source, rank) in self.by_pipeline.entry(pipeline).or_default() {
            if self.heads.remove(&(*rank, *source)) {
                rank.1 = usage;
                self.heads.insert((*rank, *source));
            }
        }
    }

    /// Nobody has room. The whole shape is skipped from now on; one that has waited for long has the roomiest worker that could
    /// ever run it kept free.
    fn cannot_place(&mut self, job: &Job, spec: &JobSpec, line: &'a Line) {
        self.full.insert(&line.shape);
        let waited = job.ready_at.map_or(0, |ready_at| self.now.since(ready_at));
        if waited < KEEP_FREE_MILLIS || !self.kept_free.insert(&line.shape) {
            return;
        }
        let able = self.rooms.iter().enumerate().filter(|(_, room)| room.worker.offer.suits(spec));
        let roomiest = able.max_by_key(|(_, room)| (room.free, Reverse(&room.worker.offer.name))).map(|(at, _)| at);
        if let Some(at) = roomiest {
            self.rooms.remove(at);
        }
    }

    fn take(&mut self, room: usize, spec: &JobSpec) {
        let there = &mut self.rooms[room];
        there.free = there.free.minus(&spec.run.resources);
        there.slots_to_give -= 1;
        if there.free.slots == 0 || there.slots_to_give == 0 {
            self.rooms.remove(room);
        }
    }

    fn best_room(&self, id: JobId, job: &Job, spec: &JobSpec) -> Option<usize> {
        let (lost, local) = (losses(job), self.local_bytes(id));
        let score = |room: &Room<'a>| -> Score<'a> {
            let name = &room.worker.offer.name;
            let native = room.worker.offer.offers(spec.name.platform) == Some(false);
            let lost = lost.get(name).copied().unwrap_or_default();
            let local = local.get(name).copied().unwrap_or_default().div_ceil(LOCAL_STEP_BYTES).min(LOCAL_STEPS_MAX);
            (Reverse(lost), native, local, room.free, Reverse(name))
        };
        let fits = |room: &Room| {
            let fits = room.free.fits(&spec.run.resources) || planted::is(Bug::CapacityIgnored);
            fits && room.worker.offer.suits(spec)
        };
        let able = self.rooms.iter().enumerate().filter(|(_, room)| fits(room));
        able.max_by_key(|(_, room)| score(room)).map(|(at, _)| at)
    }

    /// Bytes that each worker has already of what a job needs: what it made itself for earlier jobs of the build.
    fn local_bytes(&self, id: JobId) -> BTreeMap<&'a WorkerName, u64> {
        let mut local = BTreeMap::new();
        let farm: &'a Farm = self.farm;
        let Some((job, build)) = farm.jobs.get(&id).and_then(|job| Some((job, farm.builds.get(&job.build)?))) else {
            return local;
        };
        let needs = build.index.needs.get(job.index).map_or(&[][..], Vec::as_slice);
        for need in build.ids(needs).filter_map(|need| farm.jobs.get(&need)) {
            let Some((result, last)) = need.result().zip(need.attempts.last()) else { continue };
            let artifacts: u64 = result.artifacts.iter().map(|artifact| artifact.blob.size_bytes).sum();
            let layers = result.image.iter().flat_map(|image| &image.layers).map(|layer| layer.size_bytes).sum::<u64>();
            // At least one byte: where a need ran is worth something even if nobody knows what it left.
            *local.entry(&last.worker).or_default() += (artifacts + layers).max(1);
        }
        local
    }
}

/// The class of a job that became ready then.
fn class(priority: Priority, ready_at: Millis, now: Millis) -> Priority {
    priority.raised(now.since(ready_at) / AGEING_MILLIS)
}

/// How often each worker lost the job or would not start it. Counted, so that a loss elsewhere does not send a job back to
/// where it is lost every time.
fn losses(job: &Job) -> BTreeMap<&WorkerName, usize> {
    let mut losses = BTreeMap::new();
    for attempt in &job.attempts {
        let kind = attempt.end.as_ref().map(|end| end.outcome.kind);
        if matches!(kind, Some(OutcomeKind::Lost | OutcomeKind::Refused)) {
            *losses.entry(&attempt.worker).or_default() += 1;
        }
    }
    losses
}
