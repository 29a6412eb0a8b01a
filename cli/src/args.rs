//! The command line as data. Nothing here does anything; `main` matches on it.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

mod access;
mod audit;
mod builds;
mod gc;
mod keep;
mod pipeline;
mod secrets;
mod services;
mod workers;

pub use access::{
    LoginArgs, RevokeArgs, TokenArgs, TokenCreateArgs, TokenListArgs, TokenRevokeArgs, TokenTask, identity,
};
pub use audit::{AuditArgs, AuditShowArgs, AuditTask, AuditVerifyArgs};
pub use builds::{ApproveArgs, BuildArgs, BuildsArgs, CancelArgs, FetchArgs, LogsArgs, RetryArgs, ShowArgs};
pub use gc::{GcArgs, GcPlanArgs, GcResumeArgs, GcRunArgs, GcTask};
pub use keep::{DeleteArgs, PinArgs, PromoteArgs, TagArgs, UnpinArgs, UntagArgs};
pub use pipeline::{CheckArgs, PlanArgs, RequestArgs, SubmitArgs};
pub use secrets::{SecretArgs, SecretListArgs, SecretRemoveArgs, SecretSetArgs, SecretTask};
pub use services::{BackupArgs, CertArgs, CertRole, ControllerArgs, ControllerTask, DevArgs, RestoreArgs, WorkerArgs};
pub use workers::{CordonArgs, DrainArgs, HoldArgs, PatienceArgs, RetireArgs, UncordonArgs, WorkersArgs};

/// A build farm for image-based Linux distributions.
#[derive(Debug, Parser)]
#[command(name = "railyard", version, max_term_width = 120, after_help = TOP_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

const TOP_HELP: &str = "\
First steps:
  railyard dev                                   a whole farm on this machine
  railyard submit railyard.yaml --wait           build something on it
  railyard artifacts mini                        what came out

Exit codes: 0 success; 1 the build failed; 2 wrong usage or a bad pipeline file; 3 the farm cannot be reached or refuses.

Client verbs find the farm by their flags, else by RAILYARD_URL, RAILYARD_CA, RAILYARD_CERT, RAILYARD_KEY (or
RAILYARD_TOKEN instead of the two) and RAILYARD_CONFIG, else by ./railyard-data/client.toml, else by ~/.config/railyard/config.toml.";

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a whole farm on this machine: controller, worker and cache in one process
    Dev(DevArgs),
    /// Run the controller, issue certificates from its authority, back it up, restore it
    Controller(ControllerArgs),
    /// Run a worker on this host
    Worker(WorkerArgs),
    /// Check a pipeline file; needs no farm
    Check(CheckArgs),
    /// Show the jobs that a submit would make, where they could run, and why they would wait
    Plan(PlanArgs),
    /// Submit a pipeline as a new build
    Submit(SubmitArgs),
    /// List builds, newest first
    Builds(BuildsArgs),
    /// Show a build and its jobs
    Show(ShowArgs),
    /// Watch a build until it ends; exits 1 if it does not succeed
    Watch(BuildArgs),
    /// Print the log of a job, or of all jobs of a build
    Logs(LogsArgs),
    /// List the artifacts of a build
    Artifacts(BuildArgs),
    /// Download artifacts, verified against their digests
    Fetch(FetchArgs),
    /// Cancel a build, or some of its jobs
    Cancel(CancelArgs),
    /// Let jobs go on that wait for approval
    Approve(ApproveArgs),
    /// Run again what did not succeed; what succeeded is kept
    Retry(RetryArgs),
    /// Keep a build, whatever retention says
    Pin(PinArgs),
    /// Take a pin of a build back
    Unpin(UnpinArgs),
    /// Give a build a name; one that has a tag is kept
    Tag(TagArgs),
    /// Put a build into a channel, with what it publishes there
    Promote(PromoteArgs),
    /// Take a tag back
    Untag(UntagArgs),
    /// Delete a build
    Delete(DeleteArgs),
    /// Show and carry out what retention deletes
    Gc(GcArgs),
    /// List the workers of the farm, and what holds them back
    Workers(WorkersArgs),
    /// Give a worker no new jobs; what runs there goes on
    Cordon(CordonArgs),
    /// Empty a worker: no new jobs, and a deadline for those that run
    Drain(DrainArgs),
    /// Empty a worker, send it away, and do not take it back
    Retire(RetireArgs),
    /// Give a worker jobs again, whatever held it back
    Uncordon(UncordonArgs),
    /// Join a farm as a person, with a token that an operator made
    Login(LoginArgs),
    /// Make, list and take back tokens: for workers and people to join with, for scripts to show
    Token(TokenArgs),
    /// Shut a worker or a person out, at once
    Revoke(RevokeArgs),
    /// Store secrets for steps, list and remove them
    Secret(SecretArgs),
    /// Show who did what, and check that nobody changed the record of it
    Audit(AuditArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write the manual pages into a directory
    Man(ManArgs),
}

/// How a verb prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    #[default]
    Table,
    /// For programs: stable fields, RFC 3339 times, units in the names
    Json,
}

/// Output of every verb.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Which farm, and as whom.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which farm")]
pub struct FarmArgs {
    /// The controller, for instance https://farm.example:7411 [env: RAILYARD_URL]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// File with the farm's CA certificate, PEM [env: RAILYARD_CA]
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// File with your certificate, PEM [env: RAILYARD_CERT]
    #[arg(long, value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// File with the key of your certificate, PEM [env: RAILYARD_KEY]
    #[arg(long, value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// File with url, ca, cert and key [env: RAILYARD_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What every verb takes that asks the farm.
#[derive(Clone, Debug, Args)]
pub struct AskArgs {
    #[command(flatten)]
    pub output: OutputArgs,
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard completions bash > /etc/bash_completion.d/railyard")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}

/// `railyard man`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// The directory; made if it is not there
    pub dir: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[cfg(test)]
mod tests;
