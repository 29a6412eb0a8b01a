//! Plans in one line: jobs separated by `;`.
//!
//! `NAME[.VARIANT][@PLATFORM] [needs A, B] [OPTION…]`: linux/amd64 unless said otherwise; a need without a platform is one of the
//! job's own platform, and a need without a variant is every variant. Options: `cpu=2 mem=2GiB disk=2GiB retries=1 ttl=30s
//! approval approval=WHAT group=NAME:LIMIT pool=NAME label=NAME=VALUE
//! commit privileged from=STEP import=STEP:GLOB inputs=STEP:GLOB`; `from`, `import` and `inputs` are needs too. Of another build:
//! `image-of=BUILD:STEP inputs-of=BUILD:STEP:GLOB`.

use crate::common::job_spec;
use crate::script::line::{millis, parsed, set_resource};
use railyard_common::id::{BuildId, GroupName, JobName, JobSelector};
use railyard_common::job::{Concurrency, ImageSource, InputSpec, JobSpec};
use railyard_common::plan::Plan;
use railyard_common::tier;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Reads the jobs of a plan.
pub fn read(build: BuildId, supersede: Option<GroupName>, text: &str) -> Result<Plan, String> {
    let mut jobs: Vec<JobSpec> = Vec::new();
    for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
        let spec = read_job(item, &jobs).map_err(|why| format!("`{item}`: {why}"))?;
        jobs.push(spec);
    }
    let platforms: BTreeSet<_> = jobs.iter().map(|job| job.name.platform).collect();
    let uses: BTreeSet<BuildId> = jobs.iter().flat_map(JobSpec::uses).map(|(build, _)| build.clone()).collect();
    let uses = uses.into_iter().collect();
    let (untrusted, platforms) = (tier::is_untrusted(&build.version), platforms.into_iter().collect());
    Ok(Plan { build, params: BTreeMap::new(), platforms, untrusted, channel: None, supersede, uses, jobs })
}

fn read_job(item: &str, earlier: &[JobSpec]) -> Result<JobSpec, String> {
    let words: Vec<&str> = item.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty()).collect();
    let (name, rest) = words.split_first().ok_or("a job has a name")?;
    let name: JobName = if name.contains('@') { parsed(name)? } else { parsed(&format!("{name}@linux/amd64"))? };
    // What is written after `needs` is kept as it is; what options imply is added.
    let (mut needs, mut implied) = (Vec::new(), BTreeSet::new());
    let mut spec = job_spec(name);
    let mut reads_needs = false;
    for word in rest {
        let is_option = set_option(&mut spec, word, earlier, &mut implied)?;
        reads_needs = *word == "needs" || (reads_needs && !is_option);
        match () {
            () if is_option || *word == "needs" => {}
            () if reads_needs => needs.extend(jobs_of(word, &spec, earlier)?),
            () => return Err(format!("`{word}` is not an option; needs come after `needs`")),
        }
    }
    implied.retain(|need| !needs.contains(need));
    needs.extend(implied);
    needs.sort();
    spec.needs = needs;
    Ok(spec)
}

/// Whether `word` is an option; then it is set.
fn set_option(
    spec: &mut JobSpec,
    word: &str,
    earlier: &[JobSpec],
    needs: &mut BTreeSet<JobName>,
) -> Result<bool, String> {
    match word.split_once('=') {
        None if word == "commit" => Arc::make_mut(&mut spec.run).commit = true,
        None if word == "privileged" => Arc::make_mut(&mut spec.run).privileged = true,
        None if word == "approval" => spec.approval = Some(String::new()),
        Some(("approval", what)) => spec.approval = Some(what.to_owned()),
        Some(("group", group)) => {
            let (group, limit) = group.split_once(':').ok_or("group=NAME:LIMIT")?;
            spec.concurrency = Some(Concurrency { group: parsed(group)?, limit: parsed(limit)? });
        }
        Some(("pool", pool)) => spec.pool = Some(parsed(pool)?),
        Some(("label", label)) => {
            let (label, value) = label.split_once('=').ok_or("label=NAME=VALUE")?;
            spec.labels.insert(label.to_owned(), value.to_owned());
        }
        None => return Ok(false),
        Some(("retries", count)) => spec.retries = parsed(count)?,
        Some(("ttl", span)) => spec.lease_ttl_secs = millis(span)? / 1000,
        Some(("from", step)) => {
            let job = jobs_of(step, spec, earlier)?.swap_remove(0);
            needs.insert(job.clone());
            spec.image = ImageSource::Job(job);
        }
        Some(("import", input)) => {
            let (step, glob) = input.split_once(':').ok_or("import=STEP:GLOB")?;
            let job = jobs_of(step, spec, earlier)?.swap_remove(0);
            needs.insert(job.clone());
            spec.image = ImageSource::Import { build: None, job, artifact: parsed(glob)? };
        }
        Some(("inputs", input)) => {
            let (step, glob) = input.split_once(':').ok_or("inputs=STEP:GLOB")?;
            for job in jobs_of(step, spec, earlier)? {
                needs.insert(job.clone());
                let mount_path = format!("/inputs/{}", job.step);
                spec.inputs.push(InputSpec { build: None, job, artifacts: vec![parsed(glob)?], mount_path });
            }
        }
        Some(("image-of", job)) => {
            let (build, job) = job_of_build(job, spec)?;
            spec.image = ImageSource::Build { build, job };
        }
        Some(("inputs-of", input)) => {
            let (job, glob) = input.rsplit_once(':').ok_or("inputs-of=BUILD:STEP:GLOB")?;
            let (build, job) = job_of_build(job, spec)?;
            let mount_path = format!("/inputs/{}", job.step);
            spec.inputs.push(InputSpec { build: Some(build), job, artifacts: vec![parsed(glob)?], mount_path });
        }
        Some(resource) => set_resource(&mut Arc::make_mut(&mut spec.run).resources, resource)?,
    }
    Ok(true)
}

/// A job of another build, on the job's own platform if none is said.
fn job_of_build(text: &str, spec: &JobSpec) -> Result<(BuildId, JobName), String> {
    let (build, job) = text.split_once(':').ok_or("BUILD:STEP")?;
    let full = if job.contains('@') { job.to_owned() } else { format!("{job}@{}", spec.name.platform) };
    Ok((parsed(build)?, parsed(&full)?))
}

/// The earlier jobs that `text` points at; what points at none is kept as it is, for the farm to refuse.
fn jobs_of(text: &str, spec: &JobSpec, earlier: &[JobSpec]) -> Result<Vec<JobName>, String> {
    let full = if text.contains('@') { text.to_owned() } else { format!("{text}@{}", spec.name.platform) };
    let selector: JobSelector = parsed(&full)?;
    let found: Vec<JobName> =
        earlier.iter().map(|job| &job.name).filter(|name| selector.matches(name)).cloned().collect();
    if found.is_empty() { Ok(vec![parsed(&full)?]) } else { Ok(found) }
}
