//! Where queued jobs wait, arranged so that a pass of placement looks only at those that could be next.
//!
//! Jobs that any worker would treat alike wait in one line: when its first one cannot be placed, none of the others can, and the
//! line is skipped. Jobs of a concurrency group wait in their group instead, because there the order is first come, first served.
//! Jobs whose backoff is not over wait apart. All of this is derived from the jobs' states, and is in no journal.

use crate::BACKOFF_MAX_MILLIS;
use railyard_common::id::{GroupName, JobId, PipelineName, PoolName};
use railyard_common::job::{Capacity, JobSpec};
use railyard_common::plan::Plan;
use railyard_common::platform::Platform;
use railyard_common::priority::Priority;
use railyard_common::rights::{Right, Wanted};
use railyard_common::time::Millis;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a worker must have for a job.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shape {
    pub platform: Platform,
    pub resources: Capacity,
    pub rights: Vec<Right>,
    pub pool: Option<PoolName>,
    pub labels: BTreeMap<String, String>,
}

/// A line of jobs that differ only in how far they have to go and in how long they wait.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Line {
    pub shape: Shape,
    pub priority: Priority,
    pub untrusted: bool,
    pub pipeline: PipelineName,
    pub group: Option<GroupName>,
}

impl Line {
    pub fn of(plan: &Plan, priority: Priority, spec: &JobSpec) -> Self {
        Self {
            shape: Shape {
                platform: spec.name.platform,
                resources: spec.run.resources,
                rights: Wanted::of(&spec.run).required,
                pool: spec.pool.clone(),
                labels: spec.labels.clone(),
            },
            priority,
            untrusted: plan.untrusted,
            pipeline: plan.build.pipeline.clone(),
            group: spec.concurrency.as_ref().map(|concurrency| concurrency.group.clone()),
        }
    }
}

/// A queued job, as far as its place goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub id: JobId,
    /// Jobs on the longest way from it to the end of its build.
    pub path_len: u32,
    /// Rises with each job that becomes ready.
    pub ticket: u64,
    /// When it became ready.
    pub ready_at: Millis,
    /// The end of its backoff.
    pub not_before: Millis,
}

/// Where a job stands by path: longest remaining path first, then the order in which they became ready.
pub(crate) type ByPath = (Reverse<u32>, u64, JobId);

/// Where a job stands by age: who waits longest, then the order in which they became ready.
pub(crate) type ByAge = (Millis, u64, JobId);

/// The jobs of one line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue {
    /// With when they became ready.
    pub by_path: BTreeMap<ByPath, Millis>,
    /// With the lengths of their paths.
    pub by_age: BTreeMap<ByAge, u32>,
}

/// A concurrency group.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// First come, first served.
    pub waiting: BTreeMap<(u64, JobId), (Arc<Line>, Waiting)>,
    /// Who runs, with the limit that it asked for.
    pub running: BTreeMap<JobId, u32>,
}

impl Group {
    /// Whether one more job, with this limit of its own, may run.
    pub fn admits(&self, limit: u32) -> bool {
        let smallest = self.running.values().copied().fold(limit, u32::min);
        self.running.len() < smallest as usize
    }
}

/// Every queued job, once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queues {
    pub lines: BTreeMap<Arc<Line>, Queue>,
    pub groups: BTreeMap<GroupName, Group>,
    /// Jobs outside of groups whose backoff is not over, by its end.
    pub backoff: BTreeMap<(Millis, JobId), (Arc<Line>, Waiting)>,
    len: usize,
}

impl Queues {
    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn insert(&mut self, line: &Arc<Line>, job: Waiting, now: Millis) {
        self.len += 1;
        if let Some(group) = &line.group {
            let group = self.groups.entry(group.clone()).or_default();
            group.waiting.insert((job.ticket, job.id), (line.clone(), job));
        } else if job.not_before > now {
            self.backoff.insert((job.not_before, job.id), (line.clone(), job));
        } else {
            self.line_up(line, job);
        }
    }

    pub fn remove(&mut self, line: &Arc<Line>, job: &Waiting) {
        if let Some(name) = &line.group {
            if let Some(group) = self.groups.get_mut(name)
                && group.waiting.remove(&(job.ticket, job.id)).is_some()
            {
                self.len -= 1;
            }
            return self.tidy(name);
        }
        if self.backoff.remove(&(job.not_before, job.id)).is_some() {
            self.len -= 1;
            return;
        }
        let Some(queue) = self.lines.get_mut(line) else { return };
        if queue.by_path.remove(&(Reverse(job.path_len), job.ticket, job.id)).is_some() {
            self.len -= 1;
        }
        queue.by_age.remove(&(job.ready_at, job.ticket, job.id));
        if queue.by_path.is_empty() {
            self.lines.remove(line);
        }
    }

    /// A job of a group has its lease.
    pub fn begin(&mut self, line: &Line, id: JobId, limit: u32) {
        if let Some(group) = &line.group {
            self.groups.entry(group.clone()).or_default().running.insert(id, limit);
        }
    }

    /// A job of a group has lost its lease.
    pub fn end(&mut self, line: &Line, id: JobId) {
        let Some(name) = &line.group else { return };
        if let Some(group) = self.groups.get_mut(name) {
            group.running.remove(&id);
        }
        self.tidy(name);
    }

    /// Jobs outside of groups whose backoff is over, and that do not stand in line yet.
    pub fn due(&self, now: Millis) -> impl Iterator<Item = (&Arc<Line>, &Waiting)> {
        let first_after = (now.plus(1), JobId(0));
        let over = self.backoff.range(..first_after);
        // An end so far off was set before the clock was put back.
        let absurd = self.backoff.range((now.plus(BACKOFF_MAX_MILLIS + 1), JobId(0))..);
        over.chain(absurd).map(|(_, (line, job))| (line, job))
    }

    /// Those stand in line from now on.
    pub fn promote(&mut self, now: Millis) {
        if self.backoff.first_key_value().is_none_or(|((end, _), _)| *end > now)
            && self.backoff.last_key_value().is_none_or(|((end, _), _)| *end <= now.plus(BACKOFF_MAX_MILLIS))
        {
            return;
        }
        let due: Vec<(Arc<Line>, Waiting)> = self.due(now).map(|(line, job)| (line.clone(), *job)).collect();
        for (line, job) in due {
            self.backoff.remove(&(job.not_before, job.id));
            self.line_up(&line, job);
        }
    }

    fn line_up(&mut self, line: &Arc<Line>, job: Waiting) {
        let queue = self.lines.entry(line.clone()).or_default();
        queue.by_path.insert((Reverse(job.path_len), job.ticket, job.id), job.ready_at);
        queue.by_age.insert((job.ready_at, job.ticket, job.id), job.path_len);
    }

    fn tidy(&mut self, name: &GroupName) {
        if self.groups.get(name).is_some_and(|group| group.waiting.is_empty() && group.running.is_empty()) {
            self.groups.remove(name);
        }
    }
}
