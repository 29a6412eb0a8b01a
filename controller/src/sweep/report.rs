//! What a sweep has done, for people, for the audit and for the metrics.

use super::Metrics;
use crate::audit::Entry;
use railyard_common::digest::Digest;
use railyard_core::sweep::{Gone, SweepPlan};

/// How far a sweep is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Objects that are deleted.
    pub done: u64,
    /// Objects of the plan.
    pub of: u64,
    /// Bytes that were deleted.
    pub bytes: u64,
}

/// What a sweep has done.
#[derive(Clone, Debug)]
pub struct Report {
    /// The plan.
    pub plan: Digest,
    /// Builds of which less is kept from now on.
    pub reduced: u64,
    /// Builds that are gone for good.
    pub forgotten: u64,
    /// Published files that are gone.
    pub unpublished: u64,
    /// Objects that were deleted, besides those.
    pub deleted: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Objects that somebody wanted after all.
    pub left: u64,
    /// Deletes that failed; the next sweep tries again.
    pub failures: u64,
    /// The first of those.
    pub first_failure: Option<String>,
}

impl Report {
    /// The sweep's record with all of it.
    pub(super) fn told(&self, entry: Entry) -> Entry {
        let entry = entry.detail("plan", self.plan.to_string());
        let entry = match &self.first_failure {
            Some(why) => entry.detail("first_failure", why.clone()),
            None => entry,
        };
        [
            ("reduced", self.reduced),
            ("forgotten", self.forgotten),
            ("unpublished", self.unpublished),
            ("deleted", self.deleted),
            ("bytes", self.bytes),
            ("left", self.left),
            ("failures", self.failures),
        ]
        .into_iter()
        .fold(entry, |entry, (name, count)| entry.detail(name, count.to_string()))
    }
}

/// The record of a sweep that begins, with what it is going to do.
pub(super) fn begun(plan: &SweepPlan, entry: Entry) -> Entry {
    let bytes: u64 = plan.gone.iter().map(|gone| gone.bytes).sum();
    entry
        .detail("plan", plan.digest.to_string())
        .detail("reduced", plan.reductions().len().to_string())
        .detail("objects", plan.gone.len().to_string())
        .detail("bytes", bytes.to_string())
}

/// Counts what a sweep does while it does it, in its report and in the metrics alike: one that is cut off has no report, and
/// what it has deleted is gone all the same.
pub(super) struct Tally<'a> {
    report: Report,
    metrics: &'a Metrics,
}

impl<'a> Tally<'a> {
    pub(super) fn of(plan: Digest, metrics: &'a Metrics) -> Self {
        let report = Report {
            plan,
            reduced: 0,
            forgotten: 0,
            unpublished: 0,
            deleted: 0,
            bytes: 0,
            left: 0,
            failures: 0,
            first_failure: None,
        };
        Self { report, metrics }
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    pub(super) fn end(self) -> Report {
        self.report
    }

    pub(super) fn reduced(&mut self, builds: u64) {
        self.report.reduced += builds;
        self.metrics.reduced(builds);
    }

    pub(super) fn forgotten(&mut self, builds: u64) {
        self.report.forgotten += builds;
        self.metrics.forgotten(builds);
    }

    pub(super) fn unpublished(&mut self, files: u64) {
        self.report.unpublished += files;
        self.metrics.unpublished(files);
    }

    pub(super) fn deleted(&mut self, gone: &Gone) {
        self.report.deleted += 1;
        self.report.bytes += gone.bytes;
        self.metrics.deleted(gone.bytes);
    }

    pub(super) fn left(&mut self) {
        self.report.left += 1;
    }

    pub(super) fn failed(&mut self, why: String) {
        self.report.failures += 1;
        self.report.first_failure.get_or_insert(why);
        self.metrics.failed();
    }
}
