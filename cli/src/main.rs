//! `railyard`: the farm's command line, and its services.

mod args;
mod confirm;
mod failure;
mod farm;
mod patience;
mod pipeline_file;
mod render;
mod secret;
mod settings;
mod verbs;
mod view;

use args::{AuditTask, Cli, ControllerTask, Format, Verb};
use clap::Parser as _;
use failure::Failure;
use render::Console;
use std::future::Future;
use std::process::ExitCode;
use verbs::{
    access, artifacts, audit, backup, builds, change, dev, gc, help, holds, keep, login, logs, pipeline, secrets,
    serve, submit, watch, workers,
};

fn main() -> ExitCode {
    // Fails only if a provider is installed already, and then it is this one: no other is linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(verb: Verb) -> Result<(), Failure> {
    let console = Console::new(verb.format());
    match verb {
        Verb::Dev(args) => service("railyard-dev", dev::dev(&args, &console)),
        Verb::Controller(args) => match &args.task {
            None => service("railyard-controller", serve::controller(&args)),
            Some(ControllerTask::Cert(cert)) => serve::issue(&args, cert, &console),
            Some(ControllerTask::Backup(wanted)) => client(backup::backup(&args, wanted, &console)),
            Some(ControllerTask::Restore(wanted)) => backup::restore(&args, wanted, &console),
        },
        Verb::Worker(args) => service("railyard-worker", serve::worker(&args)),
        Verb::Check(args) => pipeline::check(&args, &console),
        Verb::Plan(args) => client(pipeline::plan(&args, &console)),
        Verb::Submit(args) => client(submit::submit(&args, &console)),
        Verb::Builds(args) => client(builds::builds(&args, &console)),
        Verb::Show(args) => client(builds::show(&args, &console)),
        Verb::Watch(args) => client(watch::watch(&args, &console)),
        Verb::Logs(args) => client(logs::logs(&args, &console)),
        Verb::Artifacts(args) => client(artifacts::artifacts(&args, &console)),
        Verb::Fetch(args) => client(artifacts::fetch(&args, &console)),
        Verb::Cancel(args) => client(change::cancel(&args, &console)),
        Verb::Retry(args) => client(change::retry(&args, &console)),
        Verb::Approve(args) => client(change::approve(&args, &console)),
        Verb::Pin(args) => client(keep::pin(&args, &console)),
        Verb::Unpin(args) => client(keep::unpin(&args, &console)),
        Verb::Tag(args) => client(keep::tag(&args, &console)),
        Verb::Promote(args) => client(keep::promote(&args, &console)),
        Verb::Untag(args) => client(keep::untag(&args, &console)),
        Verb::Delete(args) => client(keep::delete(&args, &console)),
        Verb::Gc(args) => client(gc::gc(&args.task, &console)),
        Verb::Workers(args) => client(workers::workers(&args, &console)),
        Verb::Cordon(args) => client(holds::cordon(&args, &console)),
        Verb::Drain(args) => client(holds::drain(&args, &console)),
        Verb::Retire(args) => client(holds::retire(&args, &console)),
        Verb::Uncordon(args) => client(holds::uncordon(&args, &console)),
        Verb::Login(args) => client(login::login(&args, &console)),
        Verb::Token(args) => client(access::token(&args.task, &console)),
        Verb::Revoke(args) => client(access::revoke(&args, &console)),
        Verb::Secret(args) => client(secrets::secret(&args.task, &console)),
        Verb::Audit(args) => match &args.task {
            AuditTask::Show(wanted) => client(audit::show(wanted, &console)),
            AuditTask::Verify(wanted) => client(audit::verify(wanted, &console)),
        },
        Verb::Completions(args) => help::completions(&args, &console),
        Verb::Man(args) => help::man(&args, &console),
    }
}

impl Verb {
    /// What `-o` says; verbs without it print for people.
    fn format(&self) -> Format {
        match self {
            Self::Dev(_) | Self::Worker(_) | Self::Completions(_) => Format::Table,
            Self::Controller(args) => args.task.as_ref().map_or(Format::Table, |task| task.format()),
            Self::Check(args) => args.output.output,
            Self::Plan(args) => args.ask.output.output,
            Self::Submit(args) => args.ask.output.output,
            Self::Builds(args) => args.ask.output.output,
            Self::Show(args) => args.ask.output.output,
            Self::Watch(args) | Self::Artifacts(args) => args.ask.output.output,
            Self::Logs(args) => args.ask.output.output,
            Self::Fetch(args) => args.format(),
            Self::Cancel(args) => args.ask.output.output,
            Self::Retry(args) => args.ask.output.output,
            Self::Approve(args) => args.ask.output.output,
            Self::Pin(args) => args.ask.output.output,
            Self::Unpin(args) => args.ask.output.output,
            Self::Tag(args) => args.ask.output.output,
            Self::Promote(args) => args.ask.output.output,
            Self::Untag(args) => args.ask.output.output,
            Self::Delete(args) => args.ask.output.output,
            Self::Gc(args) => args.task.format(),
            Self::Workers(args) => args.ask.output.output,
            Self::Cordon(args) => args.hold.ask.output.output,
            Self::Drain(args) => args.hold.ask.output.output,
            Self::Retire(args) => args.hold.ask.output.output,
            Self::Uncordon(args) => args.ask.output.output,
            Self::Login(args) => args.output.output,
            Self::Token(args) => args.task.format(),
            Self::Revoke(args) => args.ask.output.output,
            Self::Secret(args) => args.task.format(),
            Self::Audit(args) => args.task.format(),
            Self::Man(args) => args.output.output,
        }
    }
}

/// Runs a client verb: quiet, and over when its answer is there.
fn client(verb: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    run_async("railyard", "warn", verb)
}

/// Runs a service: it logs what it does.
fn service(component: &'static str, verb: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    railyard_service::process::no_core_dumps();
    run_async(component, "info", verb)
}

fn run_async(
    component: &'static str,
    default_filter: &str,
    verb: impl Future<Output = Result<(), Failure>>,
) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("start the runtime", error))?;
    let ended = runtime.block_on(async {
        let telemetry = railyard_service::telemetry::init(component, default_filter);
        let telemetry = telemetry.map_err(|error| Failure::Usage(farm::chain(&error)))?;
        let ended = verb.await;
        telemetry.shutdown().await;
        ended
    });
    // Whatever still runs on blocking threads has no one to report to.
    runtime.shutdown_background();
    ended
}
