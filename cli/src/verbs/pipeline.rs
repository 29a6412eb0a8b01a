//! `check` and `plan`: looking at a pipeline file before anything runs.

use crate::args::{CheckArgs, PlanArgs};
use crate::failure::Failure;
use crate::farm::Farm;
use crate::pipeline_file::PipelineFile;
use crate::render::{Console, human, lists};
use crate::view::Plan;
use railyard_common::pipeline::Summary;
use serde::Serialize;

/// Checks a file, without a farm.
///
/// # Errors
/// [`Failure::Told`] with exit code 2 after the faults have been shown.
pub fn check(args: &CheckArgs, console: &Console) -> Result<(), Failure> {
    let file = PipelineFile::read(&args.file, console)?;
    let pipeline = file.parse().map_err(|faults| file.show(&faults, console))?;
    let summary = pipeline.summary();
    if console.is_json() {
        return console.json(&Checked { valid: true, summary });
    }
    console.print(&format!("{}: {}\n", file.name, sentence(&summary)))
}

/// Shows the jobs and who could run them.
///
/// # Errors
/// As [`check`], and [`Failure::Farm`].
pub async fn plan(args: &PlanArgs, console: &Console) -> Result<(), Failure> {
    let request = PipelineFile::read(&args.request.file, console)?.request(&args.request, console)?;
    let farm = Farm::open(&args.ask.farm).await?;
    let answer = farm.client().plan(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let plan = Plan::from(answer.into_inner());
    if console.is_json() {
        return console.json(&plan);
    }
    for warning in &plan.warnings {
        console.warn(warning);
    }
    console.print(&lists::plan(&plan).render(console.out))
}

/// A file without faults.
#[derive(Debug, Serialize)]
struct Checked {
    valid: bool,
    #[serde(flatten)]
    summary: Summary,
}

fn sentence(summary: &Summary) -> String {
    let platforms: Vec<&str> = summary.platforms.iter().map(|platform| platform.as_str()).collect();
    let mut text = format!(
        "pipeline `{}` is good: {}, {} for {}",
        summary.name,
        human::count(summary.steps.len(), "step"),
        human::count(summary.jobs, "job"),
        platforms.join(" and "),
    );
    let required: Vec<&str> =
        summary.params.iter().filter(|param| param.default.is_none()).map(|param| param.name.as_str()).collect();
    if !required.is_empty() {
        text.push_str(&format!("; every build must give {}", required.join(", ")));
    }
    text
}
