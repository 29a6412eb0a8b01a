//! `cancel`, `approve` and `retry`: changing the course of a build.

use crate::args::{ApproveArgs, CancelArgs, RetryArgs};
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::{Console, human};
use railyard_common::id::JobSelector;
use railyard_proto::v1::{ApproveRequest, CancelRequest, RetryRequest};
use serde::Serialize;

/// Cancels a build, or some of its jobs.
///
/// # Errors
/// [`Failure::Farm`], also if the build is over, or those jobs are.
pub async fn cancel(args: &CancelArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let job = selector(args.job.as_ref());
    let request = CancelRequest { build: args.build.clone(), reason: args.why.clone(), job };
    let answer = farm.client().cancel(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let jobs = answer.into_inner().jobs;
    if console.is_json() {
        return console.json(&Changed { build: &args.build, jobs: &jobs });
    }
    match &args.job {
        None => console.print(&format!("{} is cancelled; its containers are being stopped\n", args.build)),
        Some(job) if jobs.is_empty() => {
            console.note(&format!("{job} of {} was cancelled before", args.build));
            Ok(())
        }
        Some(_) => {
            console.note(&format!(
                "{} cancelled; what needs them is skipped, and the rest of {} goes on",
                human::count(jobs.len(), "job"),
                args.build
            ));
            console.print(&lines(&jobs))
        }
    }
}

/// Lets jobs go on that wait for approval, or will.
///
/// # Errors
/// [`Failure::Farm`], also if there is nothing to approve, or it is not ours to approve.
pub async fn approve(args: &ApproveArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let request = ApproveRequest { build: args.build.clone(), job: selector(args.job.as_ref()) };
    let answer = farm.client().approve(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let jobs = answer.into_inner().jobs;
    if console.is_json() {
        return console.json(&Changed { build: &args.build, jobs: &jobs });
    }
    let news = match jobs.len() {
        0 => format!("nothing is left to approve there: `railyard show {}` tells who did", args.build),
        number => format!("{} approved", human::count(number, "job")),
    };
    console.note(&news);
    console.print(&lines(&jobs))
}

/// A build, and which of its jobs this is about; none if it is the whole build.
#[derive(Serialize)]
struct Changed<'a> {
    build: &'a str,
    jobs: &'a [String],
}

fn selector(job: Option<&JobSelector>) -> String {
    job.map(ToString::to_string).unwrap_or_default()
}

fn lines(jobs: &[String]) -> String {
    jobs.iter().map(|job| format!("{job}\n")).collect()
}

/// Runs jobs again.
///
/// # Errors
/// [`Failure::Farm`], also if there is nothing to run again.
pub async fn retry(args: &RetryArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let step = args.step.as_ref().map(ToString::to_string).unwrap_or_default();
    let request = farm.request(RetryRequest { build: args.build.clone(), step });
    let answer = farm.client().retry(request).await.map_err(|status| farm.refused(&status))?.into_inner();
    if console.is_json() {
        return console.json(&Changed { build: &args.build, jobs: &answer.jobs });
    }
    console.note(&format!(
        "{} will run again; `railyard watch {}` follows them",
        human::count(answer.jobs.len(), "job"),
        args.build
    ));
    console.print(&lines(&answer.jobs))
}
