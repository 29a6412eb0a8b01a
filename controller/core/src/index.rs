//! What can be derived from a plan, once: who needs whom by number, how far it is to the end, and in which line a job waits.

use crate::queue::Line;
use railyard_common::id::JobName;
use railyard_common::plan::Plan;
use railyard_common::priority::Priority;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The derived part of a build. Jobs are numbered as in the plan, from 0.
#[derive(Clone, Debug, Default)]
pub struct PlanIndex {
    /// The plan itself; `None` only until a job that was read from a snapshot is joined with its build.
    pub(crate) plan: Option<Arc<Plan>>,
    /// What each job needs.
    pub(crate) needs: Vec<Vec<usize>>,
    /// What needs each job.
    pub(crate) dependents: Vec<Vec<usize>>,
    /// The number of jobs on the longest way from each job to the end, itself included.
    pub(crate) path_lens: Vec<u32>,
    /// The line in which each job waits.
    pub(crate) lines: Vec<Arc<Line>>,
    by_name: BTreeMap<JobName, usize>,
}

/// Two indexes of equal plans are equal, and the plans are compared beside them.
impl PartialEq for PlanIndex {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for PlanIndex {}

impl PlanIndex {
    /// Derives it. Needs that the plan does not have are left out; the plan was checked when it was accepted.
    pub(crate) fn of(plan: &Arc<Plan>, priority: Priority) -> Self {
        let by_name: BTreeMap<JobName, usize> =
            plan.jobs.iter().enumerate().map(|(index, spec)| (spec.name.clone(), index)).collect();
        let needs: Vec<Vec<usize>> = plan
            .jobs
            .iter()
            .map(|spec| spec.needs.iter().filter_map(|need| by_name.get(need).copied()).collect())
            .collect();
        let mut dependents = vec![Vec::new(); needs.len()];
        let mut path_lens = vec![1; needs.len()];
        for (job, needs) in needs.iter().enumerate() {
            needs.iter().for_each(|need| dependents[*need].push(job));
        }
        // The plan is in topological order, so what follows a job has been looked at before it.
        for (job, needs) in needs.iter().enumerate().rev() {
            for need in needs {
                path_lens[*need] = path_lens[*need].max(path_lens[job] + 1);
            }
        }
        let mut known: BTreeMap<Line, Arc<Line>> = BTreeMap::new();
        let lines = plan.jobs.iter().map(|spec| {
            let line = Line::of(plan, priority, spec);
            known.entry(line.clone()).or_insert_with(|| Arc::new(line)).clone()
        });
        Self { plan: Some(plan.clone()), lines: lines.collect(), needs, dependents, path_lens, by_name }
    }

    /// The number of the job of that name.
    pub(crate) fn position(&self, name: &JobName) -> Option<usize> {
        self.by_name.get(name).copied()
    }
}
