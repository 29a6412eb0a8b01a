//! The command line as data. Nothing here does anything; `main` matches on it.

use clap::{Args, Parser, Subcommand, ValueEnum};
use railyard_common::id::{StepName, Version};
use railyard_common::platform::Platform;
use std::path::PathBuf;

mod services;

pub use services::{BackupArgs, CertArgs, CertRole, ControllerArgs, ControllerTask, DevArgs, RestoreArgs, WorkerArgs};

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

Client verbs find the farm by their flags, else by RAILYARD_URL, RAILYARD_CA, RAILYARD_CERT, RAILYARD_KEY and
RAILYARD_CONFIG, else by ./railyard-data/client.toml, else by ~/.config/railyard/config.toml.";

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
    /// Show the jobs that a submit would make, and who could run them
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
    /// Cancel a build
    Cancel(CancelArgs),
    /// Run again what did not succeed; what succeeded is kept
    Retry(RetryArgs),
    /// List the workers of the farm
    Workers(WorkersArgs),
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
    #[allow(missing_docs)]
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
}

/// `railyard plan`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard plan railyard.yaml
  railyard plan railyard.yaml --platform linux/arm64 --param suite=trixie")]
pub struct PlanArgs {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub request: RequestArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard submit`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard submit railyard.yaml
  railyard submit railyard.yaml --version 4799.0.0 --param suite=bookworm --wait
  build=$(railyard submit railyard.yaml)

Prints the build on stdout, everything else on stderr. With --wait it exits 0 when the build succeeded and 1 when not;
Ctrl-C stops the waiting, not the build.")]
pub struct SubmitArgs {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub request: RequestArgs,
    /// Show progress until the build ends, and exit with its result
    #[arg(short, long)]
    pub wait: bool,
    /// Submitting again with the same key gives the same build [default: a new one each time]
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard builds`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard builds
  railyard builds mini --limit 5 -o json")]
pub struct BuildsArgs {
    /// Only builds of this pipeline
    pub pipeline: Option<String>,
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// A verb that needs to know a build and nothing else.
#[derive(Debug, Args)]
#[command(after_help = "\
A build is PIPELINE/VERSION, or PIPELINE for its newest:
  railyard artifacts mini
  railyard watch mini/1.2.0")]
pub struct BuildArgs {
    /// PIPELINE/VERSION, or PIPELINE for its newest
    pub build: String,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard show`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard show mini
  railyard show mini/1.2.0 --graph")]
pub struct ShowArgs {
    /// PIPELINE/VERSION, or PIPELINE for its newest
    pub build: String,
    /// Draw the jobs as the tree of what they wait for
    #[arg(short, long)]
    pub graph: bool,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard logs`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard logs mini packages                  the last attempt of a job
  railyard logs mini packages@linux/arm64 -f   as it is written
  railyard logs mini                           all jobs, each line behind its job's name
  railyard logs mini packages --attempt 1

In a pipe, the log of one job comes byte for byte as the job wrote it. On a terminal only its colours are kept;
other control sequences are left out.")]
pub struct LogsArgs {
    /// PIPELINE/VERSION, or PIPELINE for its newest
    pub build: String,
    /// STEP[.VARIANT][@PLATFORM] [default: all jobs]
    pub job: Option<String>,
    /// Go on until the job has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Which attempt, from 1 [default: the last; with --follow all that begin from now on]
    #[arg(long, value_name = "N", requires = "job", value_parser = clap::value_parser!(u32).range(1..))]
    pub attempt: Option<u32>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// What `-o` of `fetch` can be: the directory, and as everywhere the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchOutput {
    /// `-o json`, `-o table`
    Format(Format),
    /// `-o DIR`
    Dir(PathBuf),
}

/// `railyard fetch`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard fetch mini                                        everything, into this directory
  railyard fetch mini 'out/*.qcow2' -o images
  railyard fetch mini/1.2.0 'vms.vhd@linux/amd64/out/*'      of one job
  railyard fetch mini 'images/amd64/**'                      by published path

A file lands at DIR/ITS-PATH. When two of the chosen files have the same path, each lands at DIR/JOB/ITS-PATH.
Files that are already there and have the right digest are not fetched again; broken downloads are resumed.
`-o json` and `-o table` choose the format, as everywhere; for directories of those names write ./json and ./table.")]
pub struct FetchArgs {
    /// PIPELINE/VERSION, or PIPELINE for its newest
    pub build: String,
    /// Globs over artifact paths, published paths and JOB/PATH [default: everything]
    #[arg(value_name = "GLOB")]
    pub paths: Vec<String>,
    /// Directory for the files [default: .]
    #[arg(short, value_name = "DIR", value_parser = parse_fetch_output)]
    pub o: Vec<FetchOutput>,
    /// How to print the result
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard cancel`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard cancel mini/1.2.0 --reason 'wrong branch'")]
pub struct CancelArgs {
    /// PIPELINE/VERSION, or PIPELINE for its newest
    pub build: String,
    /// For those who look at the build later
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub reason: String,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard retry`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard retry mini/1.2.0                  everything that did not succeed
  railyard retry mini/1.2.0 packages         that step, and what follows it")]
pub struct RetryArgs {
    /// PIPELINE/VERSION, or PIPELINE for its newest
    pub build: String,
    /// Run this step and what follows it again [default: everything that did not succeed]
    pub step: Option<StepName>,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard workers`
#[derive(Debug, Args)]
pub struct WorkersArgs {
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
    #[allow(missing_docs)]
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
    #[allow(missing_docs)]
    #[command(flatten)]
    pub output: OutputArgs,
}

impl FetchArgs {
    /// Where the files go.
    pub fn dir(&self) -> PathBuf {
        let dir = self.o.iter().rev().find_map(|value| match value {
            FetchOutput::Dir(dir) => Some(dir.clone()),
            FetchOutput::Format(_) => None,
        });
        dir.unwrap_or_else(|| PathBuf::from("."))
    }

    /// How the result is printed.
    pub fn format(&self) -> Format {
        let short = self.o.iter().rev().find_map(|value| match value {
            FetchOutput::Format(format) => Some(*format),
            FetchOutput::Dir(_) => None,
        });
        self.output.or(short).unwrap_or_default()
    }
}

fn parse_fetch_output(text: &str) -> Result<FetchOutput, String> {
    match text {
        "" => Err("a directory is expected".to_owned()),
        "json" => Ok(FetchOutput::Format(Format::Json)),
        "table" => Ok(FetchOutput::Format(Format::Table)),
        dir => Ok(FetchOutput::Dir(PathBuf::from(dir))),
    }
}

fn parse_param(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("KEY=VALUE is expected, for instance suite=bookworm".to_owned()),
    }
}

#[cfg(test)]
mod tests;
