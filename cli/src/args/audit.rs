//! Flags of the verb about the audit.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::{AskArgs, Format};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use railyard_controller::audit::{Act, Head};
use std::path::PathBuf;
use std::time::Duration;

/// `railyard audit`
#[derive(Debug, Args)]
#[command(after_help = "\
Every act that changes something, and every call that is refused, is a line in the controller's DATA/audit. Each line names
the hash of the line before, so that one that is changed, removed, moved or put in is found.")]
pub struct AuditArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub task: AuditTask,
}

/// What can be done with the audit.
#[derive(Debug, Subcommand)]
pub enum AuditTask {
    /// Show who did what, oldest first; operators only
    Show(AuditShowArgs),
    /// Check that nothing was changed or cut off; exits 1 if something was
    Verify(AuditVerifyArgs),
}

impl AuditTask {
    /// What `-o` says.
    pub fn format(&self) -> Format {
        match self {
            Self::Show(args) => args.ask.output.output,
            Self::Verify(args) => args.ask.output.output,
        }
    }
}

/// `railyard audit show`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard audit show --since 2h
  railyard audit show --by olga --what approve --limit 1000
  railyard audit show --target flatcar/4799.0.0 --since 2026-11-21
  railyard audit show -f -o json

A TIME is a date (2026-11-21), a local time (2026-11-21T09:30:00), one with its zone (2026-11-21T09:30:00Z), or how long
ago it was (90s, 2h, '1day 6h'). With -o json every record is a line of its own, with the fields of the file; what is empty
is left out.")]
pub struct AuditShowArgs {
    /// Nothing before this time
    #[arg(long, value_name = "TIME", value_parser = parse_when)]
    pub since: Option<When>,
    /// Nothing at this time or later
    #[arg(long, value_name = "TIME", value_parser = parse_when)]
    pub until: Option<When>,
    /// Who did it: ROLE/NAME, NAME, nobody or controller
    #[arg(long, value_name = "WHO", default_value = "")]
    pub by: String,
    /// What was done: submit, cancel, approve, backup, start, refused, …
    #[arg(long, value_name = "ACT", default_value = "", value_parser = parse_act)]
    pub what: String,
    /// How the name begins of what it was done to: a build, a worker
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub target: String,
    /// At most so many records, the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Go on with what is recorded from now on
    #[arg(short, long)]
    pub follow: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard audit verify`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard audit verify
  railyard audit verify --expect 1742:9f86d081…
  railyard audit verify --dir /var/lib/railyard/audit

Prints the head, SEQ:HASH of the last record. Whoever can write the controller's disk can write the whole audit anew, and
cut off its end: note the head somewhere else from time to time (the controller also writes it to its log), and give it with
--expect. Without --dir the controller checks its own files; with --dir they are read here, and the controller should not
run: a line that it is writing looks like one that was cut.")]
pub struct AuditVerifyArgs {
    /// Read the files in this directory instead of asking the controller
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// A head that was noted before: that record must be there, and be the same
    #[arg(long, value_name = "SEQ:HASH")]
    pub expect: Option<Head>,
    /// Check only what comes after this record; for what is known to be damaged or was moved away
    #[arg(long, value_name = "SEQ:HASH")]
    pub from: Option<Head>,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// A point in time as people write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It.
    At(Timestamp),
    /// So long ago.
    Ago(Duration),
}

impl When {
    /// The point in time, seen from `now`.
    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(at) => at,
            // Longer ago than there is time is the beginning of time.
            Self::Ago(ago) => now.checked_sub(ago).unwrap_or(Timestamp::MIN),
        }
    }
}

fn parse_when(text: &str) -> Result<When, String> {
    parse_when_in(text, &TimeZone::system())
}

fn parse_when_in(text: &str, zone: &TimeZone) -> Result<When, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(When::At(at));
    }
    // A date is its first moment.
    if let Ok(local) = text.parse::<DateTime>() {
        let at = local.to_zoned(zone.clone()).map_err(|error| error.to_string())?;
        return Ok(When::At(at.timestamp()));
    }
    let ago = humantime::parse_duration(text).map_err(|_| {
        "a time is expected, for instance 2026-11-21, 2026-11-21T09:30:00Z, or how long ago: 2h, '1day 6h'".to_owned()
    })?;
    Ok(When::Ago(ago))
}

fn parse_act(text: &str) -> Result<String, String> {
    if text.is_empty() || Act::ALL.iter().any(|act| act.as_str() == text) {
        return Ok(text.to_owned());
    }
    let words: Vec<&str> = Act::ALL.iter().map(|act| act.as_str()).collect();
    Err(format!("it is none of {}", words.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_dates_local_times_instants_or_ages() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        for (text, want) in [
            ("2026-11-21", "2026-11-20T23:00:00Z"),
            ("2026-11-21T09:30:00", "2026-11-21T08:30:00Z"),
            ("2026-11-21 09:30", "2026-11-21T08:30:00Z"),
            ("2026-11-21T09:30:00Z", "2026-11-21T09:30:00Z"),
            ("2026-11-21T09:30:00+02:00", "2026-11-21T07:30:00Z"),
            ("90m", "2026-11-22T10:30:00Z"),
            ("1day 6h", "2026-11-21T06:00:00Z"),
        ] {
            assert_eq!(parse_when_in(text, &zone).unwrap().at(now), want.parse().unwrap(), "{text}");
        }
        for bad in ["", "yesterday", "12", "2026-13-01"] {
            assert!(parse_when_in(bad, &zone).is_err(), "{bad}");
        }
        assert_eq!(parse_when("9000000years").map(|when| when.at(now)).unwrap_or(Timestamp::MIN), Timestamp::MIN);
    }

    #[test]
    fn an_act_is_a_word_that_the_audit_knows() {
        assert_eq!(parse_act("cancel"), Ok("cancel".to_owned()));
        assert!(parse_act("Cancel").unwrap_err().contains("submit, cancel"));
    }
}
