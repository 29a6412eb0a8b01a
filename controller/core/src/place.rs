//! Which job goes to which worker.
//!
//! Each pass recomputes from the state alone, so no notification can be lost. The order of jobs: class (with age it rises), then
//! the pipeline that uses least, then the longest remaining path, then who became ready first. A pass looks at the heads of the
//! lines only (see [`crate::queue`]): what one job of a shape cannot get, none of its shape can.

use crate::event::Event;
use crate::farm::Farm;
use crate::is_due;
use crate::job::Job;
use crate::queue::{ByAge, ByPath, Group, Line, Queue, Shape, Waiting};
use crate::worker::Worker;
use railyard_common::id::{GroupName, JobId, LeaseId, PipelineName, WorkerName};
use railyard_common::job::{Capacity, JobSpec};
use railyard_common::outcome::OutcomeKind;
use railyard_common::planted::{self, Bug};
use railyard_common::priority::Priority;
use railyard_common::time::Millis;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, btree_map};
use std::iter::Peekable;

/// A job that has waited so long is treated as of the next class; twice as long, the one after.
pub const AGEING_MILLIS: u64 = 3_600_000;

/// A job that fits nowhere for so long has a worker kept free for it: small jobs would fill every gap for ever.
pub const KEEP_FREE_MILLIS: u64 = 600_000;

/// Bytes that are already on a worker count in steps of this size …
const LOCAL_STEP_BYTES: u64 = 64 << 20;
/// … and not beyond this: fetching that much takes a minute, which is no reason to wait for hours.
const LOCAL_STEPS_MAX: u64 = 256;

/// Who goes first, the smallest: class, what the pipeline uses, the remaining path, who became ready first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(Reverse<Priority>, u64, Reverse<u32>, u64, JobId);

/// How well a worker suits a job; the greatest wins. Fields in order of weight.
type Score<'a> = (Reverse<usize>, bool, u64, Capacity, Reverse<&'a WorkerName>);

impl Farm {
    pub(crate) fn decide_place(&self, now: Millis) -> Vec<Event> {
        self.pass(now).map_or_else(Vec::new, |pass| pass.run().0)
    }

    /// How many jobs a pass of placement looks at: what it costs, on any machine.
    pub fn looked_at_in_a_pass(&self, now: Millis) -> usize {
        self.pass(now).map_or(0, |pass| pass.run().1)
    }

    /// A pass, if there is anything to place and room for it.
    fn pass(&self, now: Millis) -> Option<Pass<'_>> {
        if self.queues.len() == 0 {
            return None;
        }
        let rooms = self.workers.values().filter(|worker| self.takes_leases(worker, now)).map(|worker| Room {
            worker,
            free: self.available(worker),
            slots_to_give: worker.slots_to_give(),
        });
        let rooms: Vec<Room> = rooms.filter(|room| room.free.slots > 0).collect();
        (!rooms.is_empty()).then(|| Pass::over(self, now, rooms))
    }

    /// The lease of a job's next attempt.
    fn next_lease(&self, id: JobId, job: &Job) -> LeaseId {
        let step = u32::from(!planted::is(Bug::AttemptReused));
        let next = job.attempts.last().map_or(1, |last| last.number + step);
        LeaseId { job: id, attempt: next.max(self.first_attempt) }
    }
}

/// Where candidates come from.
enum Source<'a> {
    /// A line; its heads by path and by age.
    Line {
        line: &'a Line,
        by_path: Peekable<btree_map::Iter<'a, ByPath, Millis>>,
        by_age: Peekable<btree_map::Iter<'a, ByAge, u32>>,
    },
    /// The first of a group, if it may run.
    Group(&'a GroupName, &'a Group),
    /// Jobs of a line whose backoff has just ended, the last one first.
    Due(&'a Line, Vec<&'a Waiting>),
}

/// The next job of a source; the smallest goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    rank: Rank,
    source: usize,
    pipeline: usize,
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
    /// The next job of each source. What a pipeline uses only grows during a pass, so a rank that is out of date is too good:
    /// it comes up too early, and is put right then.
    heads: BinaryHeap<Reverse<Head>>,
    /// The place of each pipeline in `usage`.
    pipelines: BTreeMap<&'a PipelineName, usize>,
    usage: Vec<u64>,
    taken: BTreeSet<JobId>,
    /// Leases of this pass in each group, with their limits.
    grouped: BTreeMap<&'a GroupName, Vec<u32>>,
    /// Whether a worker had room for one of the shape when the pass began.
    hopeful: BTreeMap<&'a Shape, bool>,
    /// Whether a connected worker could ever run one of the shape.
    able: BTreeMap<&'a Shape, bool>,
    full: BTreeSet<&'a Shape>,
    kept_free: BTreeSet<&'a Shape>,
}

impl<'a> Pass<'a> {
    fn over(farm: &'a Farm, now: Millis, rooms: Vec<Room<'a>>) -> Self {
        let mut pass = Self {
            farm,
            now,
            rooms,
            sources: Vec::new(),
            heads: BinaryHeap::new(),
            pipelines: BTreeMap::new(),
            usage: Vec::new(),
            taken: BTreeSet::new(),
            grouped: BTreeMap::new(),
            hopeful: BTreeMap::new(),
            able: BTreeMap::new(),
            full: BTreeSet::new(),
            kept_free: BTreeSet::new(),
        };
        for (line, Queue { by_path, by_age }) in &farm.queues.lines {
            let oldest = by_age.first_key_value().map_or(now, |((ready_at, _, _), _)| *ready_at);
            if pass.is_worth_a_look(&line.shape, oldest) {
                let (by_path, by_age) = (by_path.iter().peekable(), by_age.iter().peekable());
                pass.add(Source::Line { line, by_path, by_age });
            }
        }
        for (name, group) in &farm.queues.groups {
            pass.add(Source::Group(name, group));
        }
        let mut due: BTreeMap<&Line, Vec<&Waiting>> = BTreeMap::new();
        for (line, job) in farm.queues.due(now) {
            due.entry(line).or_default().push(job);
        }
        for (line, mut jobs) in due {
            let oldest = jobs.iter().map(|job| job.ready_at).min().unwrap_or(now);
            if pass.is_worth_a_look(&line.shape, oldest) {
                // As a rank goes; the line itself settles the rest.
                jobs.sort_unstable_by_key(|job| {
                    Reverse((Reverse(class(line, job.ready_at, now)), Reverse(job.path_len), job.ticket, job.id))
                });
                pass.add(Source::Due(line, jobs));
            }
        }
        pass
    }

    /// Where nobody has room, nothing can be placed; only who has waited for long may have a worker kept free.
    fn is_worth_a_look(&mut self, shape: &'a Shape, oldest: Millis) -> bool {
        let rooms = &self.rooms;
        let hopeful = || rooms.iter().any(|room| room.has_room_for(shape));
        *self.hopeful.entry(shape).or_insert_with(hopeful) || self.now.since(oldest) >= KEEP_FREE_MILLIS
    }

    fn add(&mut self, source: Source<'a>) {
        self.sources.push(source);
        self.offer(self.sources.len() - 1);
    }

    /// The leases that it gives, and how many jobs it has looked at for that.
    fn run(mut self) -> (Vec<Event>, usize) {
        let (mut events, mut looked_at) = (Vec::new(), 0);
        while !self.rooms.is_empty()
            && let Some(Reverse(Head { rank, source, pipeline })) = self.heads.pop()
        {
            looked_at += 1;
            let usage = self.usage[pipeline];
            if rank.1 != usage {
                let rank = Rank(rank.0, usage, rank.2, rank.3, rank.4);
                self.heads.push(Reverse(Head { rank, source, pipeline }));
                continue;
            }
            let Some((job, line, limit)) = self.look(rank.4) else { continue };
            let room = if self.full.contains(&line.shape) { None } else { self.best_room(rank.4, job, &line.shape) };
            let Some(room) = room else {
                self.cannot_place(job, line);
                continue;
            };
            let worker = self.rooms[room].worker.offer.name.clone();
            self.take(room, &line.shape);
            self.taken.insert(rank.4);
            if let Some(group) = &line.group {
                self.grouped.entry(group).or_default().push(limit);
            }
            self.usage[pipeline] += u64::from(line.shape.resources.cpu_millis);
            self.offer(source);
            let lease = self.farm.next_lease(rank.4, job);
            events.push(Event::JobLeased { at: self.now, lease, worker });
        }
        (events, looked_at)
    }

    /// A job, its line, and the limit that it sets to its group.
    fn look(&self, id: JobId) -> Option<(&'a Job, &'a Line, u32)> {
        let farm: &'a Farm = self.farm;
        let job = farm.jobs.get(&id)?;
        let limit = job.spec()?.concurrency.as_ref().map_or(1, |concurrency| concurrency.limit);
        Some((job, job.home.lines.get(job.index)?, limit))
    }

    /// Puts the next job of a source among the heads.
    fn offer(&mut self, source: usize) {
        let (now, taken) = (self.now, &self.taken);
        let next = match &mut self.sources[source] {
            Source::Line { line, by_path, by_age } => {
                while by_path.next_if(|((_, _, id), _)| taken.contains(id)).is_some() {}
                while by_age.next_if(|((_, _, id), _)| taken.contains(id)).is_some() {}
                let aged =
                    by_age.peek().map(|((ready_at, ticket, id), path)| (*ready_at, Reverse(**path), *ticket, *id));
                let raised = aged.filter(|(ready_at, ..)| class(line, *ready_at, now) > line.priority);
                let longest = || by_path.peek().map(|((path, ticket, id), ready_at)| (**ready_at, *path, *ticket, *id));
                raised.or_else(longest).map(|next| (*line, next))
            }
            Source::Group(name, group) => {
                let (name, group) = (*name, *group);
                let first = self.first_of(name, group);
                first.map(|(line, job)| (line, (job.ready_at, Reverse(job.path_len), job.ticket, job.id)))
            }
            Source::Due(line, jobs) => {
                let next = jobs.pop();
                next.map(|job| (*line, (job.ready_at, Reverse(job.path_len), job.ticket, job.id)))
            }
        };
        let Some((line, (ready_at, path, ticket, id))) = next else { return };
        let pipeline = self.pipeline(&line.pipeline);
        let class = class(line, ready_at, now);
        let rank = Rank(Reverse(class), self.usage[pipeline], path, ticket, id);
        self.heads.push(Reverse(Head { rank, source, pipeline }));
    }

    fn pipeline(&mut self, name: &'a PipelineName) -> usize {
        let next = self.usage.len();
        let place = *self.pipelines.entry(name).or_insert(next);
        if place == next {
            self.usage.push(self.farm.usage.get(name).copied().unwrap_or_default());
        }
        place
    }

    /// The job of a group that may run next, if one may. First come, first served: one whose backoff is not over, or that has to
    /// wait for room, keeps its place; only what no connected worker could ever run is passed over.
    fn first_of(&mut self, name: &GroupName, group: &'a Group) -> Option<(&'a Line, &'a Waiting)> {
        let (farm, taken, able) = (self.farm, &self.taken, &mut self.able);
        let suits = |shape| farm.workers.values().any(|worker| worker.is_willing() && worker.offer.suits_shape(shape));
        let mut waiting = group.waiting.values().filter(|(_, job)| !taken.contains(&job.id));
        let (line, job) = waiting.find(|(line, _)| *able.entry(&line.shape).or_insert_with(|| suits(&line.shape)))?;
        let granted = self.grouped.get(name).map_or(&[][..], Vec::as_slice);
        let (_, _, limit) = self.look(job.id)?;
        let smallest = granted.iter().chain(group.running.values()).copied().fold(limit, u32::min);
        let over = usize::from(planted::is(Bug::GroupLimitOff));
        let admits = group.running.len() + granted.len() < smallest as usize + over;
        (admits && is_due(job.not_before, self.now)).then_some((line, job))
    }

    /// Nobody has room. The whole shape is skipped from now on; one that has waited for long has the roomiest worker that could
    /// ever run it kept free.
    fn cannot_place(&mut self, job: &Job, line: &'a Line) {
        self.full.insert(&line.shape);
        let waited = job.ready_at.map_or(0, |ready_at| self.now.since(ready_at));
        if waited < KEEP_FREE_MILLIS || !self.kept_free.insert(&line.shape) {
            return;
        }
        let able = self.rooms.iter().enumerate().filter(|(_, room)| room.worker.offer.suits_shape(&line.shape));
        let roomiest = able.max_by_key(|(_, room)| (room.free, Reverse(&room.worker.offer.name))).map(|(at, _)| at);
        if let Some(at) = roomiest {
            self.rooms.remove(at);
        }
    }

    fn take(&mut self, room: usize, shape: &Shape) {
        let there = &mut self.rooms[room];
        there.free = there.free.minus(&shape.resources);
        there.slots_to_give -= 1;
        if there.free.slots == 0 || there.slots_to_give == 0 {
            self.rooms.remove(room);
        }
    }

    fn best_room(&self, id: JobId, job: &Job, shape: &Shape) -> Option<usize> {
        let (lost, local) = (losses(job), self.local_bytes(id, job));
        let score = |room: &Room<'a>| -> Score<'a> {
            let name = &room.worker.offer.name;
            let native = room.worker.offer.offers(shape.platform) == Some(false);
            let lost = lost.get(name).copied().unwrap_or_default();
            let local = local.get(name).copied().unwrap_or_default().div_ceil(LOCAL_STEP_BYTES).min(LOCAL_STEPS_MAX);
            (Reverse(lost), native, local, room.free, Reverse(name))
        };
        let able = self.rooms.iter().enumerate().filter(|(_, room)| room.has_room_for(shape));
        able.max_by_key(|(_, room)| score(room)).map(|(at, _)| at)
    }

    /// Bytes that each worker has already of what a job needs: what it made itself for earlier jobs of the build, or for another
    /// build that this one takes something from.
    fn local_bytes(&self, id: JobId, job: &Job) -> BTreeMap<&'a WorkerName, u64> {
        let mut local = BTreeMap::new();
        let farm: &'a Farm = self.farm;
        let needs = job.home.needs.get(job.index).map_or(&[][..], Vec::as_slice);
        let used = job.spec().into_iter().flat_map(JobSpec::uses).filter_map(|(build, job)| farm.used_job(build, job));
        // Several inputs may be of one job.
        let used: BTreeSet<JobId> = used.map(|(id, _)| id).collect();
        for need in job.siblings(id, needs).chain(used).filter_map(|need| farm.jobs.get(&need)) {
            let Some((result, last)) = need.result().zip(need.attempts.last()) else { continue };
            let artifacts: u64 = result.artifacts.iter().map(|artifact| artifact.blob.size_bytes).sum();
            let layers = result.image.iter().flat_map(|image| &image.layers).map(|layer| layer.size_bytes).sum::<u64>();
            // At least one byte: where a need ran is worth something even if nobody knows what it left.
            *local.entry(&last.worker).or_default() += (artifacts + layers).max(1);
        }
        local
    }
}

impl Room<'_> {
    fn has_room_for(&self, shape: &Shape) -> bool {
        let fits = self.free.fits(&shape.resources) || planted::is(Bug::CapacityIgnored);
        fits && self.worker.offer.suits_shape(shape)
    }
}

/// The class of a job that became ready then. However long an untrusted one waits, a release goes first.
fn class(line: &Line, ready_at: Millis, now: Millis) -> Priority {
    let raised = line.priority.raised(now.since(ready_at) / AGEING_MILLIS);
    if line.untrusted { raised.min(Priority::Manual) } else { raised }
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
