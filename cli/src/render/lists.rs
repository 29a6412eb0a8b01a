//! Lists for people: builds, artifacts, planned jobs.

use super::style::Tone;
use super::table::{Cell, Table};
use super::{human, keep};
use crate::view::{Artifact, Build, Concurrency, JobState, Plan, PlannedJob};
use jiff::Timestamp;

/// `builds`
pub fn builds(builds: &[Build], now: Timestamp) -> Table {
    let mut table = Table::new(&[
        "BUILD",
        "STATE",
        "JOBS",
        "CHANNEL",
        "TAGS",
        "KEPT",
        "TIER",
        "PRIORITY",
        "SUBMITTED",
        ">TOOK",
        "BY",
    ]);
    for build in builds {
        let end = build.ended_at.or(Some(now));
        table.row(vec![
            Cell::from(&build.build),
            Cell::toned(build.state.as_str(), Tone::from(build.state)),
            Cell::from(progress(build)),
            Cell::from(build.unusual_channel().unwrap_or_default()),
            Cell::from(build.tags.join(", ")),
            Cell::from(keep::word(build)),
            Cell::from(build.tier().unwrap_or_default()),
            Cell::from(build.unusual_priority().unwrap_or_default()),
            Cell::from(build.submitted_at.map(|at| human::age(at, now)).unwrap_or_default()),
            Cell::from(human::between(build.submitted_at, end).unwrap_or_default()),
            Cell::from(build.submitted_by.as_deref().unwrap_or_default()),
        ]);
    }
    table
}

/// `builds --deleted`
pub fn deleted(builds: &[Build], now: Timestamp) -> Table {
    let mut table = Table::new(&["BUILD", "STATE", "CHANNEL", "SUBMITTED", "DELETED", "BY", "WHY"]);
    for build in builds {
        let reduced = build.reduced.as_ref();
        let at = reduced.and_then(|reduced| reduced.at);
        table.row(vec![
            Cell::from(&build.build),
            Cell::toned(build.state.as_str(), Tone::from(build.state)),
            Cell::from(build.unusual_channel().unwrap_or_default()),
            Cell::from(build.submitted_at.map(|at| human::age(at, now)).unwrap_or_default()),
            Cell::from(at.map(|at| human::age(at, now)).unwrap_or_default()),
            Cell::from(reduced.map(|reduced| reduced.by.as_str()).unwrap_or_default()),
            Cell::from(reduced.map(|reduced| reduced.why.as_str()).unwrap_or_default()),
        ]);
    }
    table
}

/// `3/8, 1 failed, 1 to approve`
fn progress(build: &Build) -> String {
    let failed = build.jobs.iter().filter(|job| job.state.is_failure()).count();
    let mut text = format!("{}/{}", build.count(JobState::Succeeded), build.jobs.len());
    for (number, what) in [(failed, "failed"), (build.count(JobState::AwaitsApproval), "to approve")] {
        if number > 0 {
            text.push_str(&format!(", {number} {what}"));
        }
    }
    text
}

/// `artifacts`
pub fn artifacts<'a>(artifacts: impl IntoIterator<Item = &'a Artifact>) -> Table {
    let mut table = Table::new(&["JOB", "PATH", ">SIZE", "DIGEST", "URL"]);
    for artifact in artifacts {
        table.row(vec![
            Cell::from(&artifact.job),
            Cell::from(&artifact.path),
            Cell::from(human::size(artifact.size_bytes)),
            Cell::from(human::short_digest(&artifact.digest)),
            Cell::from(artifact.url.as_deref().or(artifact.published.as_deref()).unwrap_or_default()),
        ]);
    }
    table
}

/// `plan`
pub fn plan(plan: &Plan) -> Table {
    let headings =
        ["JOB", "AFTER", "IMAGE", ">CPU", ">MEMORY", ">DISK", "GROUP", "POOL", "LABELS", "APPROVAL", "WORKERS", "WHY"];
    let mut table = Table::new(&headings);
    for job in &plan.jobs {
        let workers = if job.workers.is_empty() {
            Cell::toned("none", Tone::Bad)
        } else {
            Cell::toned(job.workers.join(", "), Tone::Good)
        };
        table.row(vec![
            Cell::from(&job.name),
            Cell::from(needs(job)),
            Cell::from(&job.image),
            Cell::from(human::cpus(job.resources.cpu_millis)),
            Cell::from(human::size(job.resources.memory_bytes)),
            Cell::from(human::size(job.resources.disk_bytes)),
            Cell::from(job.concurrency.as_ref().map(group).unwrap_or_default()),
            Cell::from(job.pool.as_deref().unwrap_or_default()),
            Cell::from(human::pairs(&job.labels)),
            Cell::from(job.approval.as_ref().map_or("", |approval| approval.what.as_deref().unwrap_or("needed"))),
            workers,
            Cell::from(job.why.as_deref().unwrap_or_default()),
        ]);
    }
    table
}

/// `signing (1)`: its name, and how many of its jobs run at a time.
fn group(concurrency: &Concurrency) -> String {
    format!("{} ({})", concurrency.group, concurrency.limit)
}

/// The jobs before this one. Its own platform goes without saying.
fn needs(job: &PlannedJob) -> String {
    let platform = job.name.split_once('@').map(|(_, platform)| platform);
    let short = |need: &String| match need.split_once('@') {
        Some((name, on)) if Some(on) == platform => name.to_owned(),
        _ => need.clone(),
    };
    job.needs.iter().map(short).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::changes::tests::{at, build, job};
    use crate::render::style::Style;
    use crate::view::{Approval, Capacity};

    #[test]
    fn builds_show_how_far_they_are() {
        let mut one = build(vec![job("a", &[]), job("b", &[])]);
        one.jobs[0].state = JobState::Succeeded;
        let mut two = one.clone();
        two.jobs[1].state = JobState::TimedOut;
        let text = builds(&[one.clone(), two.clone()], at(600).unwrap()).render(Style::PLAIN);
        assert_eq!(
            text,
            "\
BUILD   STATE    JOBS           SUBMITTED    TOOK
mini/1  running  1/2            10m ago    10m 0s
mini/1  running  1/2, 1 failed  10m ago    10m 0s
"
        );
        let mut change = two.clone();
        (change.build, change.untrusted, change.priority) =
            ("mini/2.untrusted".to_owned(), true, Some("change".to_owned()));
        assert_eq!(
            builds(&[one.clone(), change], at(600).unwrap()).render(Style::PLAIN),
            "\
BUILD             STATE    JOBS           TIER       SUBMITTED    TOOK
mini/1            running  1/2                       10m ago    10m 0s
mini/2.untrusted  running  1/2, 1 failed  untrusted  10m ago    10m 0s
"
        );
        (one.channel, two.channel) = (Some("nightly".to_owned()), Some("default".to_owned()));
        assert_eq!(
            builds(&[one.clone(), two.clone()], at(600).unwrap()).render(Style::PLAIN),
            "\
BUILD   STATE    JOBS           CHANNEL  SUBMITTED    TOOK
mini/1  running  1/2            nightly  10m ago    10m 0s
mini/1  running  1/2, 1 failed           10m ago    10m 0s
"
        );
        one.channel = None;
        one.jobs[1].state = JobState::AwaitsApproval;
        one.priority = Some("manual".to_owned());
        two.priority = Some("change".to_owned());
        assert_eq!(
            builds(&[one, two], at(600).unwrap()).render(Style::PLAIN),
            "\
BUILD   STATE    JOBS               PRIORITY  SUBMITTED    TOOK
mini/1  running  1/2, 1 to approve            10m ago    10m 0s
mini/1  running  1/2, 1 failed      change    10m ago    10m 0s
"
        );
    }

    #[test]
    fn a_plan_says_who_and_why_not() {
        let one = PlannedJob {
            name: "vms.vhd@linux/arm64".to_owned(),
            needs: vec!["image@linux/arm64".to_owned(), "sdk@linux/amd64".to_owned()],
            image: "debian:bookworm".to_owned(),
            resources: Capacity { cpu_millis: 1000, memory_bytes: 1 << 30, disk_bytes: 1 << 30, slots: 1 },
            outputs: vec![],
            workers: vec![],
            why: Some("no worker offers linux/arm64".to_owned()),
            approval: None,
            concurrency: None,
            pool: None,
            labels: [].into(),
        };
        let made = |jobs| Plan { pipeline: "mini".to_owned(), channel: None, uses: vec![], jobs, warnings: vec![] };
        let text = plan(&made(vec![one.clone()])).render(Style::PLAIN);
        assert!(text.contains("vms.vhd@linux/arm64  image, sdk@linux/amd64  debian:bookworm"), "{text}");
        assert!(text.ends_with("none     no worker offers linux/arm64\n"), "{text}");
        assert!(!text.contains("POOL") && !text.contains("GROUP"), "{text}");

        let mut sign = one.clone();
        (sign.name, sign.image, sign.needs) = ("sign@linux/amd64".to_owned(), "x".to_owned(), vec![]);
        sign.concurrency = Some(Concurrency { group: "signing".to_owned(), limit: 1 });
        sign.labels = [("hsm".to_owned(), "yes".to_owned()), ("kvm".to_owned(), "no".to_owned())].into();
        sign.pool = Some("safe".to_owned());
        sign.approval = Some(Approval { what: Some("1.0 goes out".to_owned()), approved_by: None, approved_at: None });
        sign.why = Some("needs 40.0 GiB disk; w1 has 12.0 GiB free".to_owned());
        let mut free = sign.clone();
        (free.name, free.workers, free.why) = ("free@linux/amd64".to_owned(), vec!["w1".to_owned()], None);
        (free.concurrency, free.pool, free.labels) = (None, None, [].into());
        free.approval = Some(Approval { what: None, approved_by: None, approved_at: None });
        assert_eq!(
            plan(&made(vec![sign, free])).render(Style::PLAIN),
            "\
JOB               IMAGE  CPU   MEMORY     DISK  GROUP        POOL  LABELS          APPROVAL      WORKERS  WHY
sign@linux/amd64  x        1  1.0 GiB  1.0 GiB  signing (1)  safe  hsm=yes kvm=no  1.0 goes out  none     needs 40.0 GiB disk; w1 has 12.0 GiB free
free@linux/amd64  x        1  1.0 GiB  1.0 GiB                                     needed        w1
"
        );
    }
}
