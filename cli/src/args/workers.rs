//! Flags of the verbs about workers.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::AskArgs;
use clap::Args;
use railyard_common::id::WorkerName;
use std::time::Duration;

/// `railyard workers`
#[derive(Debug, Args)]
pub struct WorkersArgs {
    /// What their disks hold, by kind, and when they make room there
    #[arg(long)]
    pub disk: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// What every verb that holds a worker back needs to know.
#[derive(Debug, Args)]
pub struct HoldArgs {
    /// The worker
    pub worker: WorkerName,
    /// For those who look at the workers later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Until when it is held back.
#[derive(Clone, Copy, Debug, Args)]
pub struct TermArgs {
    /// It ends by itself after so long, for instance 2h or '1day 6h' [default: when `railyard uncordon` ends it]
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_term)]
    pub term: Option<Duration>,
}

/// How patient `drain` and `retire` are.
#[derive(Clone, Copy, Debug, Args)]
pub struct PatienceArgs {
    /// What still runs after so long is stopped, and runs elsewhere; 0s: at once [default: it may take its time]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub deadline: Option<Duration>,
    /// Wait until nothing runs there any more
    #[arg(short, long)]
    pub wait: bool,
}

/// `railyard cordon`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard cordon w1 --why 'kernel update tonight'
  railyard cordon w1 --for 2h

What runs there goes on. `railyard uncordon w1` takes it back.")]
pub struct CordonArgs {
    #[command(flatten)]
    pub hold: HoldArgs,
    #[command(flatten)]
    pub term: TermArgs,
}

/// `railyard drain`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard drain w1 --why 'new disk' --wait
  railyard drain w1 --deadline 30m --for 4h

What runs there goes on until the deadline; then it is stopped, and runs elsewhere. `railyard uncordon w1` takes it back.
Ctrl-C stops the waiting of --wait, not the drain.")]
pub struct DrainArgs {
    #[command(flatten)]
    pub hold: HoldArgs,
    #[command(flatten)]
    pub term: TermArgs,
    #[command(flatten)]
    pub patience: PatienceArgs,
}

/// `railyard retire`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard retire w1 --why 'the host is given back' --deadline 1h --wait

As drain; and when nothing of it runs any more the worker's process is sent away, and it is not taken back when it is
started again. `railyard uncordon w1` takes that back.")]
pub struct RetireArgs {
    #[command(flatten)]
    pub hold: HoldArgs,
    #[command(flatten)]
    pub patience: PatienceArgs,
}

/// `railyard uncordon`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard uncordon w1

Whatever held it back: cordon, drain, retire, or the quarantine after too many losses. A worker that was retired has to be
started again.")]
pub struct UncordonArgs {
    /// The worker
    pub worker: WorkerName,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// Whole seconds: `2h`, `90s`, `1day 6h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    const EXPECTED: &str = "a duration with units is expected, for instance 90s, 2h or '1day 6h'";
    let duration = humantime::parse_duration(text).map_err(|_| EXPECTED.to_owned())?;
    if duration.subsec_nanos() == 0 { Ok(duration) } else { Err("whole seconds are expected".to_owned()) }
}

/// The same, and more than nothing.
pub(super) fn parse_term(text: &str) -> Result<Duration, String> {
    parse_duration(text).and_then(|term| match term.is_zero() {
        true => Err("more than 0s is expected".to_owned()),
        false => Ok(term),
    })
}
