//! Flags of the verb about what retention deletes.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::{AskArgs, Format};
use clap::{Args, Subcommand};
use railyard_common::digest::Digest;

/// `railyard gc`
#[derive(Debug, Args)]
#[command(after_help = "\
What is kept is in the controller's settings: [[retention]] and [sweep]. The controller sweeps by itself every hour; nobody has to
run this. A build that is not kept disappears from all lists first, and its files a day later. Builds that are pinned, tagged,
promoted, released or running, those that a kept build was made from, and the last success of each channel and platform stay.")]
pub struct GcArgs {
    #[command(subcommand)]
    pub task: GcTask,
}

/// What can be done about it.
#[derive(Debug, Subcommand)]
pub enum GcTask {
    /// Show what a sweep would delete now, and why each build is kept; changes nothing
    Plan(GcPlanArgs),
    /// Carry out a plan, or what there is to do now
    Run(GcRunArgs),
    /// After a restore from a backup: let sweeps delete again
    Resume(GcResumeArgs),
}

impl GcTask {
    /// What `-o` says.
    pub fn format(&self) -> Format {
        match self {
            Self::Plan(args) => args.ask.output.output,
            Self::Run(args) => args.ask.output.output,
            Self::Resume(args) => args.ask.output.output,
        }
    }
}

/// `railyard gc plan`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard gc plan
  railyard gc plan -o json | jq '.builds[] | select(.keep == \"nothing\") | .build'

The last line names the plan: `railyard gc run DIGEST` does exactly that, or refuses if the world has changed meanwhile.")]
pub struct GcPlanArgs {
    /// List every object that would go, too (at most 10,000)
    #[arg(long)]
    pub objects: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard gc run`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard gc run                  shows the plan of this moment, asks, and carries it out
  railyard gc run --yes            does not ask
  railyard gc run sha256:4f0c…     exactly the plan that `railyard gc plan` has shown

A sweep that has begun goes on if this is interrupted. Exits 1 if something could not be deleted; the next sweep tries again.")]
pub struct GcRunArgs {
    /// The plan, as `railyard gc plan` names it; without it, the one of this moment
    #[arg(value_name = "DIGEST")]
    pub plan: Option<Digest>,
    /// Do not ask; needed where there is no terminal to ask on, unless a plan is named
    #[arg(short, long)]
    pub yes: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard gc resume`
#[derive(Debug, Args)]
#[command(after_help = "\
After `railyard controller restore` the farm does not know what was built since the backup, so nothing is deleted until an
operator has looked: `railyard gc plan` shows what would go. Builds whose manifest is in the cache are kept in any case.")]
pub struct GcResumeArgs {
    #[command(flatten)]
    pub ask: AskArgs,
}
