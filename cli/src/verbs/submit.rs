//! `submit`: a new build, and with `--wait` its end.

use super::watch::{until_over, verdict};
use crate::args::SubmitArgs;
use crate::failure::Failure;
use crate::farm::Farm;
use crate::patience::Patience;
use crate::pipeline_file::PipelineFile;
use crate::render::Console;
use crate::view::Submitted;
use railyard_proto::v1::{SubmitRequest, SubmitResponse};

/// Submits, and waits if asked to. The span is the root of the build's trace: its context travels with the call.
///
/// # Errors
/// Exit code 2 for a bad file, 3 if the farm refuses, 1 if the build fails while we wait.
#[tracing::instrument(name = "submit", skip_all, fields(otel.kind = "client"))]
pub async fn submit(args: &SubmitArgs, console: &Console) -> Result<(), Failure> {
    let mut request = PipelineFile::read(&args.request.file, console)?.request(&args.request, console)?;
    request.priority = args.priority.map(|priority| priority.to_string()).unwrap_or_default();
    request.idempotency_key = match &args.idempotency_key {
        Some(key) => key.clone(),
        None => fresh_key()?,
    };
    let farm = Farm::open(&args.ask.farm).await?;
    let answer = send(&farm, &request, console).await?;
    if !console.is_json() {
        for warning in &answer.warnings {
            console.warn(warning);
        }
        if answer.existing {
            console.note("this key was submitted before: it is the same build");
        }
        for older in &answer.superseded {
            console.note(&format!("{older} is cancelled: this build takes its place"));
        }
        console.print(&format!("{}\n", answer.build))?;
    }
    let result = match args.wait {
        true => Some(until_over(&farm, &answer.build, console).await?),
        false => None,
    };
    if console.is_json() {
        let trace_id = match &result {
            Some(build) => build.trace_id.clone(),
            // The build is accepted; that its trace is not known is no failure.
            None => farm.build(&answer.build).await.ok().and_then(|build| build.trace_id),
        };
        let SubmitResponse { build, existing, warnings, superseded } = answer;
        console.json(&Submitted { build, existing, warnings, superseded, trace_id, result: result.clone() })?;
    }
    result.map_or(Ok(()), |build| verdict(&build, console))
}

/// Sends the request until it is answered. The key makes that safe: a submit that was accepted before the connection broke is
/// the same build when it is repeated.
async fn send(farm: &Farm, request: &SubmitRequest, console: &Console) -> Result<SubmitResponse, Failure> {
    let mut patience = Patience::default();
    let say = |line: &str| console.note(line);
    loop {
        match farm.client().submit(farm.request(request.clone())).await {
            Ok(answer) => {
                patience.restored(&say);
                return Ok(answer.into_inner());
            }
            Err(status) => patience.lost(farm, &status, &say).await?,
        }
    }
}

/// A key that nobody else has.
fn fresh_key() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| Failure::local("get random bytes for the idempotency key", error))?;
    Ok(hex::encode(bytes))
}
