//! `gc`: what retention deletes.

use crate::args::{GcPlanArgs, GcResumeArgs, GcRunArgs, GcTask};
use crate::confirm;
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::{Console, gc as render, human};
use crate::view::{SweepPlan, SweepReport};
use indicatif::{ProgressBar, ProgressStyle};
use railyard_proto::v1;
use serde::Serialize;

/// `railyard gc …`
///
/// # Errors
/// [`Failure::Usage`], [`Failure::Farm`], [`Failure::Failed`] if something could not be deleted.
pub async fn gc(task: &GcTask, console: &Console) -> Result<(), Failure> {
    match task {
        GcTask::Plan(args) => plan(args, console).await,
        GcTask::Run(args) => run(args, console).await,
        GcTask::Resume(args) => resume(args, console).await,
    }
}

async fn ask(farm: &Farm, objects: bool) -> Result<SweepPlan, Failure> {
    // A listing of a big bucket takes its time.
    let request = farm.stream_request(v1::PlanSweepRequest { objects });
    let answer = farm.admin().plan_sweep(request).await.map_err(|status| farm.refused(&status))?;
    Ok(answer.into_inner().into())
}

async fn plan(args: &GcPlanArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let plan = ask(&farm, args.objects).await?;
    if console.is_json() {
        return console.json(&plan);
    }
    console.print(&render::plan(&plan, console.out))?;
    match &plan.stopped {
        Some(why) => console.note(&format!("this plan cannot be carried out: {why}")),
        None => console.note(&format!("railyard gc run {}", plan.digest)),
    }
    Ok(())
}

async fn run(args: &GcRunArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let digest = match (&args.plan, args.yes) {
        (Some(digest), _) => digest.to_string(),
        (None, true) => String::new(),
        (None, false) => {
            confirm::possible("--yes, or the DIGEST of a plan")?;
            let plan = ask(&farm, false).await?;
            console.note(&render::plan(&plan, console.err));
            if let Some(why) = plan.stopped {
                return Err(Failure::Farm(why));
            }
            if !confirm::ask("Carry out this plan?")? {
                return Err(Failure::Usage("nothing was done".to_owned()));
            }
            plan.digest
        }
    };
    let request = farm.stream_request(v1::RunSweepRequest { digest });
    let mut steps = farm.admin().run_sweep(request).await.map_err(|status| farm.refused(&status))?.into_inner();
    let bar = console.err.terminal.then(bar);
    let mut last = None;
    while let Some(step) = steps.message().await.map_err(|status| farm.refused(&status))? {
        if let Some(bar) = &bar {
            bar.set_length(step.all_objects);
            bar.set_position(step.done_objects);
            bar.set_message(human::size(step.done_bytes));
        }
        last = step.report.or(last);
    }
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let Some(report) = last.map(SweepReport::from) else {
        return Err(Failure::Farm(
            "the controller did not say what came of the sweep; `railyard audit show --what sweep` does".to_owned(),
        ));
    };
    if console.is_json() {
        console.json(&report)?;
    } else {
        console.print(&render::report(&report))?;
    }
    match report.first_failure {
        None => Ok(()),
        Some(first) => {
            let count = report.failures;
            Err(Failure::Failed(format!(
                "{count} could not be deleted, the first: {first}; the next sweep tries again"
            )))
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} objects, {msg}, {eta} left");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What `gc resume` says.
#[derive(Serialize)]
struct Resumed {
    resumed: bool,
}

async fn resume(args: &GcResumeArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let request = farm.request(v1::ResumeSweepRequest {});
    let answer = farm.admin().resume_sweep(request).await.map_err(|status| farm.refused(&status))?;
    let resumed = answer.into_inner().resumed;
    if console.is_json() {
        return console.json(&Resumed { resumed });
    }
    console.print(if resumed { "sweeps delete again\n" } else { "nothing held the sweeps back\n" })
}
