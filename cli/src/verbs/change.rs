//! `cancel` and `retry`: changing the course of a build.

use crate::args::{CancelArgs, RetryArgs};
use crate::failure::Failure;
use crate::farm::Farm;
use crate::render::{Console, human};
use railyard_proto::v1::{CancelRequest, RetryRequest};
use serde::Serialize;

/// Cancels a build.
///
/// # Errors
/// [`Failure::Farm`], also if the build is over.
pub async fn cancel(args: &CancelArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.farm).await?;
    let request = farm.request(CancelRequest { build: args.build.clone(), reason: args.reason.clone() });
    farm.client().cancel(request).await.map_err(|status| farm.refused(&status))?;
    if console.is_json() {
        #[derive(Serialize)]
        struct Cancelled<'a> {
            build: &'a str,
        }
        return console.json(&Cancelled { build: &args.build });
    }
    console.print(&format!("{} is cancelled; its containers are being stopped\n", args.build))
}

/// Runs jobs again.
///
/// # Errors
/// [`Failure::Farm`], also if there is nothing to run again.
pub async fn retry(args: &RetryArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.farm).await?;
    let step = args.step.as_ref().map(ToString::to_string).unwrap_or_default();
    let request = farm.request(RetryRequest { build: args.build.clone(), step });
    let answer = farm.client().retry(request).await.map_err(|status| farm.refused(&status))?.into_inner();
    if console.is_json() {
        #[derive(Serialize)]
        struct Retried<'a> {
            build: &'a str,
            jobs: &'a [String],
        }
        return console.json(&Retried { build: &args.build, jobs: &answer.jobs });
    }
    console.note(&format!(
        "{} will run again; `railyard watch {}` follows them",
        human::count(answer.jobs.len(), "job"),
        args.build
    ));
    console.print(&answer.jobs.iter().map(|job| format!("{job}\n")).collect::<String>())
}
