//! `audit show` and `audit verify`.

use crate::args::{AuditShowArgs, AuditVerifyArgs};
use crate::failure::{Exit, Failure};
use crate::farm::{Farm, chain};
use crate::render::{Console, audit as render};
use crate::view::{AuditCheck, AuditLine};
use jiff::Timestamp;
use railyard_controller::audit::{self, Head, Wanted};
use railyard_proto::v1::{ShowAuditRequest, VerifyAuditRequest};
use std::path::Path;

/// Shows who did what.
///
/// # Errors
/// [`Failure::Farm`].
pub async fn show(args: &AuditShowArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let now = console.now();
    let time = |at: Timestamp| prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() };
    let request = ShowAuditRequest {
        since: args.since.map(|since| time(since.at(now))),
        until: args.until.map(|until| time(until.at(now))),
        by: args.by.clone(),
        what: args.what.clone(),
        target: args.target.clone(),
        limit: args.limit,
        follow: args.follow,
    };
    let records = farm.admin().show_audit(farm.stream_request(request)).await;
    let mut records = records.map_err(|status| farm.refused(&status))?.into_inner();
    let mut lines = Vec::new();
    while let Some(record) = records.message().await.map_err(|status| farm.refused(&status))? {
        let line = AuditLine::from(record);
        match (console.is_json(), args.follow) {
            (true, _) => console.json_line(&line)?,
            (false, true) => console.print(&render::line(&line, console))?,
            (false, false) => lines.push(line),
        }
    }
    if console.is_json() || args.follow {
        return Ok(());
    }
    if lines.is_empty() {
        console.note("nothing of that is recorded");
        return Ok(());
    }
    if u32::try_from(lines.len()).is_ok_and(|shown| shown == args.limit) {
        console.note(&format!("railyard: these are the last {} records; there may be more, see --limit", args.limit));
    }
    console.print(&render::table(&lines, console).render(console.out))
}

/// Checks the audit.
///
/// # Errors
/// [`Failure::Told`] if something is wrong with it; [`Failure::Farm`]; [`Failure::Failed`] if the files cannot be read.
pub async fn verify(args: &AuditVerifyArgs, console: &Console) -> Result<(), Failure> {
    let check = match &args.dir {
        Some(dir) => here(dir, args)?,
        None => there(args).await?,
    };
    if console.is_json() {
        console.json(&check)?;
    } else {
        console.print(&render::check(&check))?;
    }
    if check.good {
        return Ok(());
    }
    console.note("railyard: the audit is not what was written");
    Err(Failure::Told(Exit::Failed))
}

fn here(dir: &Path, args: &AuditVerifyArgs) -> Result<AuditCheck, Failure> {
    let wanted = Wanted { expect: args.expect, from: args.from };
    let verified = audit::verify(dir, &wanted).map_err(|error| Failure::Failed(chain(&error)))?;
    Ok(verified.into())
}

async fn there(args: &AuditVerifyArgs) -> Result<AuditCheck, Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let text = |head: Option<Head>| head.map(|head| head.to_string()).unwrap_or_default();
    let request = VerifyAuditRequest { expect: text(args.expect), from: text(args.from) };
    // As long as it takes: it reads every file.
    let answer = farm.admin().verify_audit(farm.stream_request(request)).await;
    Ok(answer.map_err(|status| farm.refused(&status))?.into_inner().into())
}
