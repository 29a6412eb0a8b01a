//! Flags of the verbs about who comes in: `login`, `token`, `revoke`.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::workers::parse_term;
use super::{AskArgs, Format, OutputArgs};
use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use railyard_common::id::{PipelineName, PoolName, WorkerName};
use railyard_common::identity::{Identity, Role};
use railyard_common::platform::Platform;
use railyard_common::token::TokenId;
use std::path::PathBuf;
use std::time::Duration;

/// `railyard login`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard login https://farm.example:7411 railyard-join-…
  railyard login https://farm.example:7411 @token.txt
  railyard login --renew

An operator makes the token: `railyard token create --role submitter --user ana`. The farm is known by the fingerprint in
it, so nothing else has to be trusted; the key is made here and stays here. Afterwards every verb finds the farm by the
settings that were written. --renew gets another certificate while the old one is still good.")]
pub struct LoginArgs {
    /// The controller, for instance https://farm.example:7411
    #[arg(value_name = "URL", required_unless_present = "renew")]
    pub url: Option<String>,
    /// The token; @FILE reads it from a file, - from standard input
    #[arg(value_name = "TOKEN", required_unless_present = "renew")]
    pub token: Option<String>,
    /// Get a fresh certificate with the one that is there
    #[arg(long, conflicts_with_all = ["url", "token"])]
    pub renew: bool,
    /// The settings to write, or to renew by [default: ~/.config/railyard/config.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Replace settings that are for another farm
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `railyard token`
#[derive(Debug, Args)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub task: TokenTask,
}

/// What can be done with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenTask {
    /// Make a token: for a worker or a person to join with, or for a script to show with each call
    Create(TokenCreateArgs),
    /// List the tokens that were given out; their secrets are nowhere
    List(TokenListArgs),
    /// Take a token back: it is worth nothing from now on
    Revoke(TokenRevokeArgs),
}

/// What a person's or a script's token may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PersonRole {
    /// Submits, cancels and retries builds, and reads
    Submitter,
    /// May do everything
    Operator,
    /// May look
    Viewer,
}

impl From<PersonRole> for Role {
    fn from(role: PersonRole) -> Self {
        match role {
            PersonRole::Submitter => Self::Submitter,
            PersonRole::Operator => Self::Operator,
            PersonRole::Viewer => Self::Viewer,
        }
    }
}

/// `railyard token create`
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("whom").required(true).args(["worker", "role"])),
    after_help = "\
Examples:
  railyard token create --worker rack-3 --platform linux/amd64 --platform linux/arm64
  railyard token create --worker signer --pool signing
  railyard token create --role submitter --user ana --pipeline flatcar
  railyard token create --bearer --role viewer --user dashboard --ttl 365days
  railyard token create --bearer --role submitter --user ci-changes --pipeline flatcar --untrusted

The token is printed once, on standard output, and is nowhere else. One to join with is good once: 15 min for a worker, an
hour for a person (a day at most). A bearer token is good until it expires (90 days by default, 366 at most) or is taken back:
set RAILYARD_TOKEN, or send the header `Authorization: Bearer TOKEN`; as a password it opens the cache and the registry."
)]
pub struct TokenCreateArgs {
    /// For a worker of this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["role", "user", "bearer", "pipeline"])]
    pub worker: Option<WorkerName>,
    /// What the worker may offer; can be repeated [default: whatever its host runs]
    #[arg(long, value_name = "PLATFORM", conflicts_with = "role")]
    pub platform: Vec<Platform>,
    /// The pool that the worker may work for [default: none]
    #[arg(long, value_name = "NAME", conflicts_with = "role")]
    pub pool: Option<PoolName>,
    /// For a person or a script that may do this
    #[arg(long, value_enum, requires = "user")]
    pub role: Option<PersonRole>,
    /// Who it is, in listings and in the audit
    #[arg(long, value_name = "NAME", requires = "role")]
    pub user: Option<String>,
    /// The pipelines that it is limited to; can be repeated [default: all]
    #[arg(long, value_name = "PIPELINE")]
    pub pipeline: Vec<PipelineName>,
    /// Whatever it submits is untrusted, and it cancels and retries no other builds; for whoever builds strangers' changes
    #[arg(long, requires = "role", conflicts_with = "worker")]
    pub untrusted: bool,
    /// A token that is shown with each call, for scripts and browsers, instead of one to join with
    #[arg(long)]
    pub bearer: bool,
    /// How long it is good, for instance 10m, 1day or 90days; at least a second
    #[arg(long, value_name = "DURATION", value_parser = parse_ttl)]
    pub ttl: Option<Duration>,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard token list`
#[derive(Debug, Args)]
pub struct TokenListArgs {
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard token revoke`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard token revoke 51c3a0f2b77e9d04

What somebody joined with it stays: `railyard revoke` ends that.")]
pub struct TokenRevokeArgs {
    /// The token, as `railyard token list` names it
    pub id: TokenId,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard revoke`
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("whom").required(true).args(["worker", "role"])),
    after_help = "\
Examples:
  railyard revoke rack-3 --why 'the host was stolen'
  railyard revoke --role submitter --user ana --why 'left the team'

Certificates and tokens that were given out until now are worth nothing, connections end at once, and a worker's jobs run
elsewhere. Whoever is to come back needs a new token."
)]
pub struct RevokeArgs {
    /// The worker
    pub worker: Option<WorkerName>,
    /// A person or a script instead, in this role
    #[arg(long, value_enum, requires = "user")]
    pub role: Option<PersonRole>,
    /// Who
    #[arg(long, value_name = "NAME", requires = "role")]
    pub user: Option<String>,
    /// For the audit
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub why: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

impl TokenTask {
    /// How the result is printed.
    pub fn format(&self) -> Format {
        match self {
            Self::Create(args) => args.ask.output.output,
            Self::List(args) => args.ask.output.output,
            Self::Revoke(args) => args.ask.output.output,
        }
    }
}

/// A worker or a person, as flags name them.
///
/// # Errors
/// A sentence, if a name is none.
pub fn identity(worker: Option<&WorkerName>, role: Option<PersonRole>, user: Option<&str>) -> Result<Identity, String> {
    let (role, name) = match (worker, role) {
        (Some(worker), _) => (Role::Worker, worker.as_str()),
        (None, Some(role)) => (role.into(), user.unwrap_or_default()),
        (None, None) => return Err("a worker or a role is expected".to_owned()),
    };
    Identity::new(role, name).map_err(|error| error.to_string())
}

/// How long a token is good. The farm takes nothing for "as usual", and that is not what somebody means who writes `0s`.
pub(super) fn parse_ttl(text: &str) -> Result<Duration, String> {
    parse_term(text).map_err(|why| {
        format!("{why}; at most 15m for a worker, 1day for a person who joins, 366days for a --bearer token")
    })
}
