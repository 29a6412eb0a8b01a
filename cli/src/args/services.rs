//! Flags of the services: `dev`, `controller`, `worker`.

#![allow(missing_docs, reason = "a doc comment on a group of flags would take the place of the verb's own help")]

use super::{Format, OutputArgs};
use bytesize::ByteSize;
use clap::{Args, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `railyard dev`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard dev
  railyard dev --data /var/tmp/farm --slots 4

The first start makes the farm's own CA, certificates and DATA/client.toml; client verbs that are run in the same
directory find the farm by that file.")]
pub struct DevArgs {
    /// Where the farm keeps everything
    #[arg(long, value_name = "DIR", default_value = "railyard-data")]
    pub data: PathBuf,
    /// Where the controller listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7411")]
    pub listen: SocketAddr,
    /// Jobs that the worker runs at a time [default: twice the processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub slots: Option<u32>,
    /// Processors for jobs, for instance 2 or 1.5 [default: all]
    #[arg(long, value_name = "N", value_parser = parse_cpus)]
    pub cpu: Option<u32>,
    /// Memory for jobs, for instance 8GiB [default: 80 % of the machine's]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Scratch space for jobs, for instance 50GiB [default: what is free, but for a reserve]
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<ByteSize>,
    /// Let steps be privileged, in every pipeline: they can do anything to this machine. Without it they may have /dev/kvm
    #[arg(long)]
    pub allow_privileged: bool,
}

/// `railyard controller`
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = false,
    after_help = "\
Examples:
  railyard controller --config /etc/railyard/controller.toml
  railyard controller --config /etc/railyard/controller.toml cert worker w2 --out ./w2
  railyard controller --config /etc/railyard/controller.toml backup --to /backup/railyard"
)]
pub struct ControllerArgs {
    /// The controller's configuration file, TOML
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Something else than running it.
    #[command(subcommand)]
    pub task: Option<ControllerTask>,
}

/// What can be done with a controller's data without running it.
#[derive(Debug, Subcommand)]
pub enum ControllerTask {
    /// Issue a certificate for a worker, submitter, operator or viewer
    Cert(CertArgs),
    /// Write the farm's state and keys into one file, also while the controller runs
    Backup(BackupArgs),
    /// Bring a farm back from a backup
    Restore(RestoreArgs),
}

/// `railyard controller cert`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard controller --config /etc/railyard/controller.toml cert worker w2 --out ./w2
  railyard controller cert viewer dashboard --data railyard-data --out ./dashboard

Needs no running controller, only its data directory. The key is written once, here: copy the directory to the machine
that it is for, and remove it.")]
pub struct CertArgs {
    /// What the certificate allows
    #[arg(value_enum)]
    pub role: CertRole,
    /// Whose it is; a worker goes by this name
    pub name: String,
    /// The controller's data directory, instead of --config
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    pub data: Option<PathBuf>,
    /// Directory for ca.pem, NAME.pem and NAME.key
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `railyard controller backup`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard controller --config /etc/railyard/controller.toml backup --to /backup/railyard-$(date +%F)
  railyard controller backup --data-dir railyard-data --to farm.backup

Run it on the controller's machine, as its user. A running controller is asked for its state, with the operator's
certificate in its data directory; of one that does not run the journal is read. The file has the farm's CA key in it: who
can read it can be anybody. Not in it: the cache (artifacts, images, logs of ended jobs), logs of jobs that run, and the
configuration file. `head -2 FILE` tells what a backup is of.")]
pub struct BackupArgs {
    /// The controller's data directory, instead of --config
    #[arg(long, visible_alias = "data", value_name = "DIR", conflicts_with = "config")]
    pub data_dir: Option<PathBuf>,
    /// The file to write; it appears whole or not at all
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `railyard controller restore`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard controller restore --from farm.backup --data-dir /var/lib/railyard
  railyard controller restore --from farm.backup --data-dir /var/lib/railyard --force

Stop the controller first. The backup is verified before anything is touched. With --force the journal and the keys that
are there are moved into before-restore-TIME in the data directory; nothing is deleted, cache and logs stay. Builds that
were submitted after the backup are gone; their workers are told to stop. Jobs that ran in the backup run again, unless
their worker still holds them.")]
pub struct RestoreArgs {
    /// The backup
    #[arg(long, value_name = "FILE")]
    pub from: PathBuf,
    /// The controller's data directory, instead of --config
    #[arg(long, visible_alias = "data", value_name = "DIR", conflicts_with = "config")]
    pub data_dir: Option<PathBuf>,
    /// Move aside what is there
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// The roles of the farm.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CertRole {
    /// Runs jobs
    Worker,
    /// Submits, cancels and retries builds
    Submitter,
    /// May do everything
    Operator,
    /// May look
    Viewer,
}

/// `railyard worker`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  railyard worker --join railyard-join-… https://farm.example:7411
  railyard worker --join @token.txt https://farm.example:7411 --config /etc/railyard/worker.toml
  railyard worker --config /etc/railyard/worker.toml

`railyard token create --worker NAME` makes the token. The farm is known by the fingerprint in it; the key is made here and
stays here. Without --config the settings are written to worker.toml in the data directory, and read from there ever after.
The certificate is good for a day and is renewed by itself. `labels` and `pool` in the settings say which jobs come here. A worker that is retired (`railyard retire`) ends, and says so.")]
pub struct WorkerArgs {
    /// The worker's configuration file, TOML [default: worker.toml in the data directory]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Join the farm at URL with this token first; @FILE reads it from a file, - from standard input
    #[arg(long, value_name = "TOKEN", requires = "controller")]
    pub join: Option<String>,
    /// The controller to join, for instance https://farm.example:7411
    #[arg(value_name = "URL", requires = "join")]
    pub controller: Option<String>,
    /// Where the worker keeps everything, unless its configuration says so
    #[arg(long, value_name = "DIR", default_value = railyard_worker::join::DATA_DIR, conflicts_with = "config")]
    pub data_dir: PathBuf,
}

impl ControllerTask {
    /// How the result is printed.
    pub fn format(&self) -> Format {
        match self {
            Self::Cert(args) => args.output.output,
            Self::Backup(args) => args.output.output,
            Self::Restore(args) => args.output.output,
        }
    }
}

/// Thousandths of a processor.
pub(super) fn parse_cpus(text: &str) -> Result<u32, String> {
    let cpus: f64 = text.parse().map_err(|_| "a number is expected, for instance 2 or 1.5".to_owned())?;
    let millis = (cpus * 1000.0).round();
    if millis >= 1.0 && millis <= f64::from(u32::MAX) {
        Ok(millis as u32)
    } else {
        Err("more than 0 is expected".to_owned())
    }
}
