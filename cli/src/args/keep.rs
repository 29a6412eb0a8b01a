//! Flags of the verbs about keeping builds.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::AskArgs;
use super::workers::parse_term;
use clap::Args;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use railyard_common::id::{ChannelName, PinName, PipelineName, TagName};
use std::time::Duration;

/// `railyard pin`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard pin flatcar/4799.0.0 --why 'runs in the lab'
  railyard pin flatcar/4799.0.0 --why 'bisecting' --for 14d
  railyard pin flatcar/4799.0.0 --why 'customer case' --name case-4711 --until 2026-12-24

Retention keeps a pinned build whole, with every build that it was made from. A build can have several pins; each has a name, by
default that of whoever sets it. A pin of that name that is there already is replaced, by a submitter only if it is its own.")]
pub struct PinArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    /// For those who wonder later why it is still there
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub why: String,
    /// It ends by itself then: a date or a time [default: when somebody takes it back]
    #[arg(long, value_name = "TIME", value_parser = parse_time, conflicts_with = "term")]
    pub until: Option<Timestamp>,
    /// It ends by itself after so long, for instance 30d
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_term)]
    pub term: Option<Duration>,
    /// Tells it from other pins of the build [default: your name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<PinName>,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard unpin`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard unpin flatcar/4799.0.0                    your pin
  railyard unpin flatcar/4799.0.0 --name case-4711
  railyard unpin flatcar/4799.0.0 --all

`railyard show` lists a build's pins. Submitters take back those that they set; operators all.")]
pub struct UnpinArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    /// Which pin [default: the one with your name]
    #[arg(long, value_name = "NAME", conflicts_with = "all")]
    pub name: Option<PinName>,
    /// Every pin that you may take back
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard tag`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard tag flatcar/4799.0.0 golden
  railyard show flatcar/golden

A tag is one build's of its pipeline: whichever had it before loses it. It can stand wherever a build is named, in `build:` of
pipelines and in the registry too. A build with a tag is kept. Tags are the operator's.")]
pub struct TagArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    /// The tag
    pub tag: TagName,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard promote`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard promote flatcar/4799.0.0 beta
  railyard promote flatcar/golden stable

The build moves to the lists (builds.json, latest.json) and the retention of that channel; nothing is built again. Outputs with
`{{ channel }}` in `publish` are published there as well, all of them or none, and nothing that is published is changed or taken away.
A promoted build is kept as a release is. It is the operator's.")]
pub struct PromoteArgs {
    /// PIPELINE/VERSION or PIPELINE/TAG, but not PIPELINE/latest
    pub build: String,
    /// Where it belongs from now on
    pub channel: ChannelName,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard untag`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard untag flatcar golden")]
pub struct UntagArgs {
    /// The pipeline
    pub pipeline: PipelineName,
    /// The tag
    pub tag: TagName,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard delete`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard delete flatcar/4799.0.0 --why 'wrong key'
  railyard delete flatcar/4799.0.0 --force --yes

Nobody finds the build any more from then on; what only it needed goes with a sweep, after the grace (`railyard gc plan`). It cannot
be taken back. Without --force a build stays that is pinned, tagged, promoted, or that others were made from; one that runs, or
that a running build is made from, stays in any case. After a restore, --force also deletes a build that only the cache knows
(`railyard gc plan` lists them): what it published goes at once, and with it its manifest and its logs. `railyard builds --deleted` lists what was deleted. It is the operator's.")]
pub struct DeleteArgs {
    /// PIPELINE/VERSION or PIPELINE/TAG, but not PIPELINE/latest
    pub build: String,
    /// For those who look for it later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
    /// Also if it is pinned, tagged, promoted, other builds were made from it, or only the cache knows it
    #[arg(long)]
    pub force: bool,
    /// Do not ask; needed where there is no terminal to ask on
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

fn parse_time(text: &str) -> Result<Timestamp, String> {
    parse_time_in(text, &TimeZone::system())
}

/// A date is its first moment.
fn parse_time_in(text: &str, zone: &TimeZone) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let local: DateTime = text.parse().map_err(|_| {
        "a date or a time is expected, for instance 2026-12-24, 2026-12-24T18:00 or 2026-12-24T18:00:00Z".to_owned()
    })?;
    let too_far = |_| "it is too far away: times from the year -9999 to 9999-12-30 are understood".to_owned();
    local.to_zoned(zone.clone()).map(|at| at.timestamp()).map_err(too_far)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_ends_at_a_date_or_a_time() {
        for (text, want) in [
            ("2026-12-24", "2026-12-24T00:00:00Z"),
            ("2026-12-24T18:00", "2026-12-24T18:00:00Z"),
            ("2026-12-24T18:00:00+01:00", "2026-12-24T17:00:00Z"),
        ] {
            assert_eq!(parse_time_in(text, &TimeZone::UTC), Ok(want.parse().unwrap()), "{text}");
        }
        for bad in ["", "30d", "tomorrow", "2026-13-01"] {
            assert!(parse_time_in(bad, &TimeZone::UTC).is_err(), "{bad}");
        }
    }
}
