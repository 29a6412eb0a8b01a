//! What is measured of plans and sweeps.

use super::plan::Planned;
use super::{Report, SweepError};
use crate::audit::By;
use crate::driver::CommandError;
use railyard_common::retention::Keep;
use railyard_common::time::Millis;
use railyard_service::telemetry::{Attribute, Counter, Gauge, Histogram, KeyValue, Kind, Meter, Metric};
use std::time::Duration;

const BY: Attribute = Attribute {
    name: "railyard.sweep.by",
    values: &["schedule", "operator"],
    about: "who asked: the schedule, or an operator (`railyard gc`)",
};

const RESULT: Attribute = Attribute {
    name: "railyard.sweep.result",
    values: &["success", "refused", "error"],
    about: "`success`: done to its end; `refused`: nothing may be deleted, or the plan is out of date; \
            `error`: the cache or the controller failed, or one of the deletes did",
};

const KEEP: Attribute = Attribute {
    name: "railyard.retention.keep",
    values: &["all", "published", "manifest", "nothing"],
    about: "what is left of a build; see [retention.md](retention.md#what-is-left-of-a-build)",
};

const PLAN_DURATION: Metric = Metric {
    name: "railyard.sweep.plan.duration",
    kind: Kind::Histogram,
    unit: "s",
    attributes: &[BY, RESULT],
    about: "how long it took to make a plan, for `railyard gc plan` and first of all in each sweep",
};

const DURATION: Metric = Metric {
    name: "railyard.sweep.duration",
    kind: Kind::Histogram,
    unit: "s",
    attributes: &[BY, RESULT],
    about: "how long a sweep took, with its plan",
};

const LAST_SUCCESS: Metric = Metric {
    name: "railyard.sweep.last_success",
    kind: Kind::Gauge,
    unit: "s",
    attributes: &[],
    about: "when the last sweep that succeeded ended, in seconds since 1970; not there before the first since the controller's start",
};

const DELETED_OBJECTS: Metric = counter(
    "railyard.sweep.deleted.objects",
    "{object}",
    "objects that sweeps deleted: blobs, logs, manifests and other records of builds",
);
const DELETED_BYTES: Metric = counter("railyard.sweep.deleted.bytes", "By", "their bytes, as stored");
const UNPUBLISHED: Metric =
    counter("railyard.sweep.unpublished.files", "{file}", "published files that sweeps took away");
const FAILURES: Metric = counter(
    "railyard.sweep.failures",
    "{failure}",
    "deletes that failed after all tries, and lists of builds that could not be written; the next sweep tries again",
);
const REDUCED: Metric =
    counter("railyard.sweep.builds.reduced", "{build}", "builds of which sweeps decided to keep less");
const FORGOTTEN: Metric = counter(
    "railyard.sweep.builds.forgotten",
    "{build}",
    "builds of which sweeps left nothing, so that they are forgotten",
);

const CACHE_OBJECTS: Metric = gauge(
    "railyard.cache.objects",
    "{object}",
    &[],
    "objects in the cache at the last plan: blobs, logs, manifests and other records of builds",
);
const CACHE_BYTES: Metric = gauge("railyard.cache.bytes", "By", &[], "their bytes, as stored");
const BUILDS: Metric =
    gauge("railyard.retention.builds", "{build}", &[KEEP], "builds by what is to be left of them, by the last plan");

/// Everything that is measured here.
pub const METRICS: [Metric; 12] = [
    PLAN_DURATION,
    DURATION,
    LAST_SUCCESS,
    DELETED_OBJECTS,
    DELETED_BYTES,
    UNPUBLISHED,
    FAILURES,
    REDUCED,
    FORGOTTEN,
    CACHE_OBJECTS,
    CACHE_BYTES,
    BUILDS,
];

const fn counter(name: &'static str, unit: &'static str, about: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, unit, attributes: &[], about }
}

const fn gauge(
    name: &'static str,
    unit: &'static str,
    attributes: &'static [Attribute],
    about: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, unit, attributes, about }
}

/// Who asked for a plan or a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Schedule,
    Operator,
}

impl Asked {
    pub(super) fn of(by: &By) -> Self {
        match by {
            By::Controller => Self::Schedule,
            By::Nobody | By::Somebody(_) => Self::Operator,
        }
    }

    fn attribute(self) -> KeyValue {
        let text = match self {
            Self::Schedule => "schedule",
            Self::Operator => "operator",
        };
        KeyValue::new(BY.name, text)
    }
}

/// How a plan or a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Success,
    Refused,
    Error,
}

impl Ended {
    fn attribute(self) -> KeyValue {
        let text = match self {
            Self::Success => "success",
            Self::Refused => "refused",
            Self::Error => "error",
        };
        KeyValue::new(RESULT.name, text)
    }

    fn by_error(error: &SweepError) -> Self {
        match error {
            SweepError::Stopped(_) | SweepError::UnknownPlan(_) | SweepError::Outdated(_) => Self::Refused,
            SweepError::Farm(CommandError::Refused(_)) => Self::Refused,
            SweepError::Farm(CommandError::Journal(_) | CommandError::Standstill(_) | CommandError::Stopping) => {
                Self::Error
            }
            SweepError::Cache(_) | SweepError::Audit(_) | SweepError::Left(_) => Self::Error,
        }
    }
}

/// The instruments.
pub struct Metrics {
    plan_duration: Histogram<f64>,
    duration: Histogram<f64>,
    last_success: Gauge<u64>,
    deleted_objects: Counter<u64>,
    deleted_bytes: Counter<u64>,
    unpublished: Counter<u64>,
    failures: Counter<u64>,
    reduced: Counter<u64>,
    forgotten: Counter<u64>,
    cache_objects: Gauge<u64>,
    cache_bytes: Gauge<u64>,
    builds: Gauge<u64>,
}

impl Metrics {
    /// Made of `meter`.
    pub fn new(meter: &Meter) -> Self {
        Self {
            plan_duration: PLAN_DURATION.durations(meter),
            duration: DURATION.durations(meter),
            last_success: LAST_SUCCESS.gauge(meter),
            deleted_objects: DELETED_OBJECTS.counter(meter),
            deleted_bytes: DELETED_BYTES.counter(meter),
            unpublished: UNPUBLISHED.counter(meter),
            failures: FAILURES.counter(meter),
            reduced: REDUCED.counter(meter),
            forgotten: FORGOTTEN.counter(meter),
            cache_objects: CACHE_OBJECTS.gauge(meter),
            cache_bytes: CACHE_BYTES.gauge(meter),
            builds: BUILDS.gauge(meter),
        }
    }

    /// A plan was made, or not. One that may not be carried out has seen the cache and the builds as well.
    pub(super) fn planned(&self, asked: Asked, took: Duration, planned: &Result<Planned, SweepError>) {
        let ended = match planned {
            Ok(Planned { stop: None, .. }) => Ended::Success,
            Ok(Planned { stop: Some(_), .. }) => Ended::Refused,
            Err(error) => Ended::by_error(error),
        };
        self.plan_duration.record(took.as_secs_f64(), &[asked.attribute(), ended.attribute()]);
        let Ok(Planned { plan, .. }) = planned else { return };
        let (objects, bytes) = plan.listed;
        self.cache_objects.record(objects, &[]);
        self.cache_bytes.record(bytes, &[]);
        // All of them, each time: what no build has any more is zero, and not what it was.
        for keep in [Keep::All, Keep::Published, Keep::Manifest, Keep::Nothing] {
            let count = plan.builds.iter().filter(|one| one.keep == keep).count();
            self.builds.record(count as u64, &[KeyValue::new(KEEP.name, keep.to_string())]);
        }
    }

    /// A sweep has ended. What it did was counted while it did it.
    pub(super) fn swept(&self, asked: Asked, took: Duration, swept: &Result<Report, SweepError>, now: Millis) {
        let ended = match swept {
            Ok(report) if report.failures == 0 => Ended::Success,
            Ok(_) => Ended::Error,
            Err(error) => Ended::by_error(error),
        };
        self.duration.record(took.as_secs_f64(), &[asked.attribute(), ended.attribute()]);
        if ended == Ended::Success {
            self.last_success.record(now.0 / 1_000, &[]);
        }
    }

    pub(super) fn deleted(&self, bytes: u64) {
        self.deleted_objects.add(1, &[]);
        self.deleted_bytes.add(bytes, &[]);
    }

    pub(super) fn unpublished(&self, files: u64) {
        self.unpublished.add(files, &[]);
    }

    pub(super) fn failed(&self) {
        self.failures.add(1, &[]);
    }

    pub(super) fn reduced(&self, builds: u64) {
        self.reduced.add(builds, &[]);
    }

    pub(super) fn forgotten(&self, builds: u64) {
        self.forgotten.add(builds, &[]);
    }
}
