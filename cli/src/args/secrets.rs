//! Flags of the verb about secrets.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::{AskArgs, Format};
use clap::{Args, Subcommand};
use railyard_common::id::{PipelineName, SecretName, StepName};
use std::path::PathBuf;

/// `railyard secret`
#[derive(Debug, Args)]
#[command(after_help = "\
A step asks for a secret by its name (`secrets: [signing-key]`) and finds it as the file /run/secrets/signing-key, in memory,
while its container runs. The farm keeps it sealed under a key of its own; nobody can read it back, and what looks like it is
hidden in logs. Builds of untrusted changes never get one.")]
pub struct SecretArgs {
    #[command(subcommand)]
    pub task: SecretTask,
}

/// What can be done with secrets.
#[derive(Debug, Subcommand)]
pub enum SecretTask {
    /// Store a secret, or replace one; steps that start from now on get it
    Set(SecretSetArgs),
    /// List which secrets there are, and for which steps; never what they are
    List(SecretListArgs),
    /// Remove a secret: steps that start from now on do not get it
    Remove(SecretRemoveArgs),
}

/// `railyard secret set`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard secret set signing-key --file key.pem --pipeline flatcar --step sign
  pass show ci/token | railyard secret set upload-token --file - --pipeline flatcar --pipeline sdk

The file is taken as it is, line ends included: 8 bytes at least, 64 KiB at most. A secret of that name for the same pipelines
and steps is replaced; one that is for others only with --replace.")]
pub struct SecretSetArgs {
    /// Its name: the file's name in the step
    pub name: SecretName,
    /// The file with the secret; - for standard input
    #[arg(long, value_name = "FILE")]
    pub file: PathBuf,
    /// The pipeline whose steps get it; can be repeated
    #[arg(long, value_name = "PIPELINE", required = true)]
    pub pipeline: Vec<PipelineName>,
    /// The step that gets it; can be repeated [default: every step that asks for it]
    #[arg(long, value_name = "STEP")]
    pub step: Vec<StepName>,
    /// Also in the place of a secret of that name that is for other pipelines or steps
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard secret list`
#[derive(Debug, Args)]
pub struct SecretListArgs {
    #[command(flatten)]
    pub ask: AskArgs,
}

/// `railyard secret remove`
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  railyard secret remove upload-token

Steps that run have it until they end. A build that was submitted before and has yet to run a step with it fails there.")]
pub struct SecretRemoveArgs {
    /// The secret, as `railyard secret list` names it
    pub name: SecretName,
    #[command(flatten)]
    pub ask: AskArgs,
}

impl SecretTask {
    /// How the result is printed.
    pub fn format(&self) -> Format {
        match self {
            Self::Set(args) => args.ask.output.output,
            Self::List(args) => args.ask.output.output,
            Self::Remove(args) => args.ask.output.output,
        }
    }
}
