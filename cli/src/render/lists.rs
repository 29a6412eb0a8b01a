//! Lists for people: builds, workers, artifacts, planned jobs.

use super::human;
use super::style::Tone;
use super::table::{Cell, Table};
use crate::view::{Artifact, Build, JobState, Plan, PlannedJob, Worker};
use jiff::Timestamp;

/// `builds`
pub fn builds(builds: &[Build], now: Timestamp) -> Table {
    let mut table = Table::new(&["BUILD", "STATE", "JOBS", "SUBMITTED", ">TOOK", "BY"]);
    for build in builds {
        let end = build.ended_at.or(Some(now));
        table.row(vec![
            Cell::from(&build.build),
            Cell::toned(build.state.as_str(), Tone::from(build.state)),
            Cell::from(progress(build)),
            Cell::from(build.submitted_at.map(|at| human::age(at, now)).unwrap_or_default()),
            Cell::from(human::between(build.submitted_at, end).unwrap_or_default()),
            Cell::from(build.submitted_by.as_deref().unwrap_or_default()),
        ]);
    }
    table
}

/// `3/8, 1 failed`
fn progress(build: &Build) -> String {
    let failed = build.jobs.iter().filter(|job| job.state.is_failure()).count();
    let done = format!("{}/{}", build.count(JobState::Succeeded), build.jobs.len());
    if failed == 0 { done } else { format!("{done}, {failed} failed") }
}

/// `workers`
pub fn workers(workers: &[Worker], now: Timestamp) -> Table {
    let headings =
        ["WORKER", "STATE", "PLATFORMS", ">SLOTS", ">CPU", ">MEMORY", ">DISK", "JOBS", "VERSION", "LAST SEEN"];
    let mut table = Table::new(&headings);
    for worker in workers {
        let (state, tone) = if worker.connected { ("connected", Tone::Good) } else { ("away", Tone::Bad) };
        let platform = |offer: &crate::view::Offer| {
            if offer.emulated { format!("{} (emulated)", offer.platform) } else { offer.platform.clone() }
        };
        let platforms: Vec<String> = worker.platforms.iter().map(platform).collect();
        let jobs: Vec<String> = worker.jobs.iter().map(|job| format!("{} {}", job.build, job.job)).collect();
        let (used, all) = (&worker.reserved, &worker.capacity);
        table.row(vec![
            Cell::from(&worker.name),
            Cell::toned(state, tone),
            Cell::from(platforms.join(", ")),
            Cell::from(format!("{}/{}", used.slots, all.slots)),
            Cell::from(format!("{}/{}", human::cpus(used.cpu_millis), human::cpus(all.cpu_millis))),
            Cell::from(share(used.memory_bytes, all.memory_bytes)),
            Cell::from(share(used.disk_bytes, all.disk_bytes)),
            Cell::from(jobs.join(", ")),
            Cell::from(worker.version.as_deref().unwrap_or_default()),
            Cell::from(worker.last_seen_at.map(|at| human::age(at, now)).unwrap_or_default()),
        ]);
    }
    table
}

/// Reserved of all there is: `1.0 GiB/16 GiB`, `0/16 GiB`.
fn share(used: u64, all: u64) -> String {
    let used = if used == 0 { "0".to_owned() } else { human::size(used) };
    format!("{used}/{}", human::size(all))
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
    let mut table = Table::new(&["JOB", "AFTER", "IMAGE", ">CPU", ">MEMORY", ">DISK", "WORKERS", "WHY"]);
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
            workers,
            Cell::from(job.why.as_deref().unwrap_or_default()),
        ]);
    }
    table
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
    use crate::view::{Capacity, Offer, RunningJob};

    #[test]
    fn builds_show_how_far_they_are() {
        let mut one = build(vec![job("a", &[]), job("b", &[])]);
        one.jobs[0].state = JobState::Succeeded;
        let mut two = one.clone();
        two.jobs[1].state = JobState::TimedOut;
        let text = builds(&[one, two], at(600).unwrap()).render(Style::PLAIN);
        assert_eq!(
            text,
            "\
BUILD   STATE    JOBS           SUBMITTED    TOOK
mini/1  running  1/2            10m ago    10m 0s
mini/1  running  1/2, 1 failed  10m ago    10m 0s
"
        );
    }

    #[test]
    fn workers_mark_what_is_emulated() {
        let offer = |platform: &str, emulated| Offer { platform: platform.to_owned(), emulated };
        let worker = Worker {
            name: "w1".to_owned(),
            connected: true,
            platforms: vec![offer("linux/amd64", false), offer("linux/arm64", true)],
            capacity: Capacity { cpu_millis: 2000, memory_bytes: 8 << 30, disk_bytes: 100 << 30, slots: 2 },
            reserved: Capacity { cpu_millis: 500, memory_bytes: 1 << 30, disk_bytes: 0, slots: 1 },
            jobs: vec![RunningJob {
                build: "mini/1".to_owned(),
                job: "image@linux/amd64".to_owned(),
                attempt: 1,
                phase: Some("run"),
            }],
            version: Some("0.1.0".to_owned()),
            last_seen_at: at(98),
            labels: [].into(),
        };
        let text = workers(&[worker], at(100).unwrap()).render(Style::PLAIN);
        let row = "w1      connected  linux/amd64, linux/arm64 (emulated)    1/2  0.5/2  1.0 GiB/8.0 GiB  0/100 GiB  \
                   mini/1 image@linux/amd64  0.1.0    2s ago\n";
        assert!(text.ends_with(row), "{text}");
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
        };
        let text = plan(&Plan { pipeline: "mini".to_owned(), jobs: vec![one], warnings: vec![] }).render(Style::PLAIN);
        assert!(text.contains("vms.vhd@linux/arm64  image, sdk@linux/amd64  debian:bookworm"), "{text}");
        assert!(text.ends_with("none     no worker offers linux/arm64\n"), "{text}");
    }
}
