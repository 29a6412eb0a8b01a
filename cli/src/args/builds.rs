//! Flags of the verbs about builds.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::{AskArgs, FarmArgs, Format};
use clap::Args;
use railyard_common::id::{JobSelector, StepName};
use std::path::PathBuf;

/// `railyard builds`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard builds
  railyard builds mini --limit 5 -o json
  railyard builds mini --deleted             those that were deleted and whose files have not gone yet")]
pub struct BuildsArgs {
    /// Only builds of this pipeline
    pub pipeline: Option<String>,
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// Those that were deleted, as long as the farm still knows them
    #[arg(long)]
    pub deleted: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// A verb that needs to know a build and nothing else.
#[derive(Debug, Args)]
#[command(after_help = "\
A build is PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest:
  railyard artifacts mini
  railyard watch mini/1.2.0")]
pub struct BuildArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard show`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard show mini
  railyard show mini/1.2.0 --graph")]
pub struct ShowArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    /// Draw the jobs as the tree of what they wait for
    #[arg(short, long)]
    pub graph: bool,
    #[command(flatten)]
    pub ask: AskArgs,
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
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    /// STEP[.VARIANT][@PLATFORM] [default: all jobs]
    pub job: Option<String>,
    /// Go on until the job has ended
    #[arg(short, long)]
    pub follow: bool,
    /// Which attempt, from 1 [default: the last; with --follow all that begin from now on]
    #[arg(long, value_name = "N", requires = "job", value_parser = clap::value_parser!(u32).range(1..))]
    pub attempt: Option<u32>,
    #[command(flatten)]
    pub ask: AskArgs,
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

A file lands at DIR/ITS-PATH. When two of the chosen files have the same path, each lands at DIR/JOB/ITS-PATH,
where the job `a@linux/amd64` is the directory `a-linux-amd64`.
Every GLOB must match something. Files that would be in each other's way are refused before anything is fetched.
Files that are already there and have the right digest are not fetched again; broken downloads are resumed. Until a file is
whole it is called .railyard-NAME-HASH.part. One that cannot be had does not keep the others from coming: it is told at the end.
`-o json` and `-o table` choose the format, as everywhere; for directories of those names write ./json and ./table.")]
pub struct FetchArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
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
    #[command(flatten)]
    pub farm: FarmArgs,
}

/// `railyard cancel`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard cancel mini/1.2.0 --why 'wrong branch'
  railyard cancel mini/1.2.0 vms.vhd                    these jobs, and what needs them
  railyard cancel mini/1.2.0 packages@linux/arm64")]
pub struct CancelArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    /// STEP[.VARIANT][@PLATFORM]: only these jobs, and what needs them [default: the whole build]
    pub job: Option<JobSelector>,
    /// For those who look at the build later
    #[arg(long, alias = "reason", value_name = "TEXT", default_value = "")]
    pub why: String,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard approve`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard approve mini/1.2.0                what waits for approval now
  railyard approve mini/1.2.0 sign           that step, also before it waits

`railyard show` tells what waits, and what there is to approve. Approving is the operator's.")]
pub struct ApproveArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    /// STEP[.VARIANT][@PLATFORM] [default: what waits for approval now]
    pub job: Option<JobSelector>,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard retry`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard retry mini/1.2.0                  everything that did not succeed
  railyard retry mini/1.2.0 packages         that step, and what follows it")]
pub struct RetryArgs {
    /// PIPELINE/VERSION, PIPELINE/TAG, or PIPELINE for its newest
    pub build: String,
    /// Run this step and what follows it again [default: everything that did not succeed]
    pub step: Option<StepName>,
    #[command(flatten)]
    pub ask: AskArgs,
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
