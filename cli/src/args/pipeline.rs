//! Flags of the verbs about pipeline files: `check`, `plan`, `submit`.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::{AskArgs, OutputArgs};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use railyard_common::id::{ChannelName, Version};
use railyard_common::platform::Platform;
use railyard_common::priority::Priority;
use std::path::PathBuf;

/// `railyard check`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard check deploy/pipelines/mini/railyard.yaml

Exits 2 and points at file:line:column if something is wrong.")]
pub struct CheckArgs {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// What decides about the jobs of a build.
#[derive(Clone, Debug, Args)]
pub struct RequestArgs {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub file: PathBuf,
    /// The build's version, for instance 4799.0.0 [default: the controller makes one]
    #[arg(long, value_name = "V")]
    pub version: Option<Version>,
    /// A parameter of the pipeline; can be given several times
    #[arg(short, long = "param", value_name = "KEY=VALUE", value_parser = parse_param)]
    pub params: Vec<(String, String)>,
    /// Build for this platform; can be given several times [default: what the pipeline says]
    #[arg(long = "platform", value_name = "PLATFORM")]
    pub platforms: Vec<Platform>,
    /// The channel that the build is for, whatever the pipeline says [default: what the pipeline says, or else `default`]
    #[arg(long, value_name = "CHANNEL")]
    pub channel: Option<ChannelName>,
    /// Nobody has looked at this change: the build writes nothing that a release reads, and its version ends in .untrusted
    #[arg(long)]
    pub untrusted: bool,
}

/// `railyard plan`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard plan railyard.yaml
  railyard plan railyard.yaml --platform linux/arm64 --param suite=trixie
  railyard plan railyard.yaml --untrusted")]
pub struct PlanArgs {
    #[command(flatten)]
    pub request: RequestArgs,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard submit`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard submit railyard.yaml
  railyard submit railyard.yaml --version 4799.0.0 --param suite=bookworm --wait
  railyard submit railyard.yaml --channel nightly
  railyard submit railyard.yaml --priority change --param branch=fix-7
  railyard submit railyard.yaml --untrusted --version pr-512
  build=$(railyard submit railyard.yaml)

Prints the build on stdout, everything else on stderr. With --wait it exits 0 when the build succeeded and 1 when not;
Ctrl-C stops the waiting, not the build. While a job waits for approval it goes on waiting, and says so.

Jobs of a more urgent build go first: release, manual, schedule, change. An hour of waiting counts as one class more.

An untrusted build publishes nothing, is in no list of builds that scripts read, gets no secrets, and has only the rights that the
operator's policy gives to untrusted builds. `railyard plan --untrusted` shows what is left out.")]
pub struct SubmitArgs {
    #[command(flatten)]
    pub request: RequestArgs,
    /// Show progress until the build ends, and exit with its result
    #[arg(short, long)]
    pub wait: bool,
    /// How urgent it is; release is the operator's, and is never superseded
    /// [default: manual, and change for an untrusted build]
    #[arg(long, value_name = "PRIORITY", value_parser = priority())]
    pub priority: Option<Priority>,
    /// Submitting again with the same key gives the same build [default: a new one each time]
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    #[command(flatten)]
    pub ask: AskArgs,
}

pub(super) fn parse_param(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is expected, for instance suite=bookworm".to_owned()),
    }
}

/// The classes, the most urgent first: for the parser, the help and completions.
fn priority() -> impl TypedValueParser<Value = Priority> {
    let words = Priority::ALL.iter().rev().map(|priority| priority.as_str());
    PossibleValuesParser::new(words).try_map(|word| word.parse::<Priority>())
}
