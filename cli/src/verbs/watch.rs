//! `watch`, and the waiting of `submit --wait`.

use crate::args::BuildArgs;
use crate::failure::{Exit, Failure};
use crate::farm::Farm;
use crate::patience::Watch;
use crate::render::progress::Progress;
use crate::render::{Console, build};
use crate::view::{Build, BuildState};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Watches a build until it ends.
///
/// # Errors
/// [`Failure::Told`] with exit code 1 if it does not succeed, [`Failure::Farm`].
pub async fn watch(args: &BuildArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    if !console.is_json() {
        let ended = until_over(&farm, &args.build, console).await?;
        return verdict(&ended, console);
    }
    // For programs: the whole build, one line for each change.
    let mut watch = Watch::new(&farm, &args.build);
    loop {
        let now = watch.next(&|line| console.note(line)).await?;
        console.json_line(&now)?;
        if now.state.is_over() {
            return exit_of(now.state);
        }
    }
}

/// Shows progress until the build is over.
///
/// # Errors
/// [`Failure::Farm`]; [`Failure::Told`] after Ctrl-C, which ends the waiting and not the build.
pub async fn until_over(farm: &Farm, name: &str, console: &Console) -> Result<Build, Failure> {
    let mut progress = Progress::new(console);
    let mut watch = Watch::new(farm, name);
    let mut interrupt = interrupts()?;
    let ended = loop {
        let say = |line: &str| progress.say(line);
        let next = tokio::select! {
            biased;
            _ = interrupt.recv() => None,
            next = watch.next(&say) => Some(next),
        };
        match next {
            None => break Err(interrupted(&mut progress, name)),
            Some(Err(failure)) => break Err(failure),
            Some(Ok(build)) => {
                progress.update(&build);
                if build.state.is_over() {
                    break Ok(build);
                }
            }
        }
    };
    progress.finish();
    ended
}

/// Ctrl-C from now on. One for a whole wait: one made anew each time would not see what comes while a change is shown.
///
/// # Errors
/// [`Failure::Failed`] if the system does not let us listen.
pub fn interrupts() -> Result<Signal, Failure> {
    signal(SignalKind::interrupt()).map_err(|error| Failure::local("listen for Ctrl-C", error))
}

fn interrupted(progress: &mut Progress, name: &str) -> Failure {
    progress.finish();
    progress.say(&format!(
        "the build goes on; `railyard watch {name}` looks at it again, `railyard cancel {name}` stops it"
    ));
    Failure::Told(Exit::Interrupted)
}

/// Says what failed, on stderr, and gives the exit code.
///
/// # Errors
/// [`Failure::Told`] unless it succeeded.
pub fn verdict(build: &Build, console: &Console) -> Result<(), Failure> {
    let failures = build::failures(build, console.err);
    if !failures.is_empty() {
        console.note(&format!("\n{}", failures.trim_end()));
    }
    exit_of(build.state)
}

fn exit_of(state: BuildState) -> Result<(), Failure> {
    match state {
        BuildState::Succeeded => Ok(()),
        _ => Err(Failure::Told(Exit::Failed)),
    }
}
