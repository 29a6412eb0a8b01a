//! A container from its start to its end: its output, its limits, and why it ended.

use super::fault::{Fault, disk_full};
use super::tap::{Heard, Tap};
use super::{Stop, stopped, unless_stopped};
use crate::cleanup::remove_until_gone;
use crate::disk::{FULL_BELOW_BYTES, free_bytes, says_full};
use crate::log::JobLog;
use crate::runtime::{ContainerSpec, Exit, Running, RuntimeError};
use crate::workshop::Workshop;
use bytesize::ByteSize;
use nix::sys::signal::Signal;
use railyard_common::order::Order;
use railyard_common::outcome::{LOG_TAIL_LINES, Outcome, OutcomeKind, Reason};
use railyard_service::task;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// An engine that is being stopped ends its containers first. A container that a signal ended is judged after this
/// time, when such an engine does not answer any more.
const ENGINE_SETTLE: Duration = Duration::from_secs(1);

/// What the log says where something of it may be missing.
const GAP: &str = "the connection to the container's output was broken; what it wrote meanwhile is missing here";

/// What an exit code is for a process that a signal ended: this and the signal's number.
const SIGNAL_CODES_FROM: i64 = 128;

/// What ended it.
enum End {
    Exited(Exit),
    Stopped(Stop),
    TimedOut(Reason, String),
}

/// Creates the container, runs it to its end, and judges that. The container is there afterwards, and does not run.
///
/// # Errors
/// [`Fault`] for everything but an exit code of 0.
pub async fn run(
    shop: &Workshop,
    order: &Order,
    spec: &ContainerSpec,
    work: &Path,
    log: &JobLog,
    stop: &mut watch::Receiver<Option<Stop>>,
) -> Result<(), Fault> {
    create(shop, order, spec, stop.clone()).await?;
    let started = shop.clock.monotonic();
    // An engine that hangs may start it later. It is removed in any case.
    let starting = async { shop.runtime.start(&spec.name).await.map_err(|error| not_started(order, error)) };
    let Running { output, exit } = unless_stopped(stop.clone(), starting).await?;
    let mut tap = Tap::new(shop.runtime.clone(), &spec.name, output);
    let end = watch_it(shop, order, &mut tap, exit, log, stop).await?;
    let took = shop.clock.monotonic() - started;
    match end {
        End::Exited(exit) => {
            tap.finish(log).await?;
            judge(shop, order, exit, work, took, log).await
        }
        End::Stopped(why) => {
            halt(shop, &spec.name, tap, log, stop).await?;
            Err(Fault::Stopped(why))
        }
        End::TimedOut(reason, message) => {
            halt(shop, &spec.name, tap, log, stop).await?;
            Err(Fault::ended(OutcomeKind::TimedOut, reason, message))
        }
    }
}

/// Makes the container. An attempt that must stop does not wait for an engine that hangs; what that makes of it later
/// is removed then.
async fn create(
    shop: &Workshop,
    order: &Order,
    spec: &ContainerSpec,
    mut stop: watch::Receiver<Option<Stop>>,
) -> Result<(), Fault> {
    let (runtime, spec) = (shop.runtime.clone(), spec.clone());
    let name = spec.name.clone();
    let mut creating = task::spawn("create", async move { runtime.create(&spec).await });
    tokio::select! {
        biased;
        why = stopped(&mut stop) => {
            let runtime = shop.runtime.clone();
            task::spawn("remove-late", async move {
                // Whether that went well makes no difference.
                let _ = creating.await;
                remove_until_gone(&*runtime, &name).await;
            });
            Err(Fault::Stopped(why))
        }
        created = &mut creating => match created {
            Ok(created) => created.map_err(|error| not_started(order, error)),
            Err(error) => Err(Fault::bug(&error)),
        },
    }
}

/// Keeps the output, and watches the limits.
async fn watch_it(
    shop: &Workshop,
    order: &Order,
    tap: &mut Tap,
    mut exit: impl Future<Output = Result<Exit, RuntimeError>> + Unpin,
    log: &JobLog,
    stop: &mut watch::Receiver<Option<Stop>>,
) -> Result<End, Fault> {
    let started = shop.clock.monotonic();
    let wall = Duration::from_secs(order.run.timeout_secs);
    let silence = (order.run.silence_timeout_secs > 0).then(|| Duration::from_secs(order.run.silence_timeout_secs));
    let mut heard_at = started;
    loop {
        // Asked here and not only by the timer below, which a container that never stops writing would starve.
        let now = shop.clock.monotonic();
        let wall_left = (started + wall).saturating_sub(now);
        // Nobody can tell whether it is silent while nobody listens.
        let silence = silence.filter(|_| tap.is_attached());
        let silence_left = silence.map(|silence| (heard_at + silence).saturating_sub(now));
        if wall_left.is_zero() {
            let limit = humantime::format_duration(wall);
            let message = format!("it ran longer than its timeout of {limit}; raise `timeout` if it needs longer");
            return Ok(End::TimedOut(Reason::WallClock, message));
        }
        if let Some((silence, Duration::ZERO)) = silence.zip(silence_left) {
            let limit = humantime::format_duration(silence);
            let message = format!("it wrote nothing for its silence timeout of {limit}; it seems to hang");
            return Ok(End::TimedOut(Reason::Silence, message));
        }
        tokio::select! {
            biased;
            why = stopped(stop) => return Ok(End::Stopped(why)),
            heard = tap.next() => {
                heard_at = shop.clock.monotonic();
                match heard {
                    Heard::Bytes(bytes) => log.write(&bytes).await?,
                    Heard::Gap => log.note(GAP).await?,
                }
            }
            exit = &mut exit => return Ok(End::Exited(exit?)),
            () = tokio::time::sleep(silence_left.unwrap_or(wall_left).min(wall_left)) => {}
        }
    }
}

/// Stops the container, and keeps what it writes meanwhile. It has its grace only while the lease has time for it.
async fn halt(
    shop: &Workshop,
    name: &str,
    mut tap: Tap,
    log: &JobLog,
    stop: &mut watch::Receiver<Option<Stop>>,
) -> Result<(), Fault> {
    let stopping = async {
        tokio::select! {
            biased;
            () = urgent(stop) => shop.runtime.stop(name, Duration::ZERO).await,
            done = shop.runtime.stop(name, shop.config.stop_grace()) => done,
        }
    };
    match tap.read_until(stopping, log).await? {
        Ok(()) => tap.finish(log).await,
        Err(error) => {
            // It will be removed by force, for as long as that takes.
            tracing::warn!(container = name, %error, "a container could not be stopped");
            Ok(())
        }
    }
}

/// Waits until the container must be gone at once: nobody waits for the result of a lost lease, and one that is about to
/// be lost must be free before somebody else begins.
async fn urgent(stop: &mut watch::Receiver<Option<Stop>>) {
    let at_once = |stop: &Option<Stop>| matches!(stop, Some(Stop::Fenced { .. } | Stop::Abandoned));
    if stop.wait_for(at_once).await.is_err() {
        std::future::pending().await
    }
}

async fn judge(
    shop: &Workshop,
    order: &Order,
    exit: Exit,
    work: &Path,
    took: Duration,
    log: &JobLog,
) -> Result<(), Fault> {
    let code = exit.code;
    if code == 0 {
        return Ok(());
    }
    let signal = signal_of(code);
    if signal.is_some() && !exit.oom_killed {
        tokio::time::sleep(ENGINE_SETTLE).await;
        shop.runtime.ping().await?;
    }
    // It writes to two places: its work directory, and the container's own root.
    let mut disks = [Some(work), shop.runtime.disk()].into_iter().flatten();
    if let Some(full) = disks.find(|disk| free_bytes(disk).is_ok_and(|free| free < FULL_BELOW_BYTES)) {
        let what = format!("the script ended with exit code {code}");
        return Err(Fault::ended(OutcomeKind::Lost, Reason::DiskFull, disk_full(full, &what)));
    }
    let limit = ByteSize::b(order.run.resources.memory_bytes).display().iec();
    let secs = took.as_secs();
    let (reason, mut message) = match signal {
        _ if exit.oom_killed => {
            let message = format!(
                "it ended with exit code {code} after {secs} s, and was killed for using more memory than its limit of {limit}; raise `memory`"
            );
            (Reason::Oom, message)
        }
        Some(Signal::SIGKILL) => {
            let message = format!(
                "it was ended by SIGKILL (exit code {code}) after {secs} s; not for its memory (limit {limit}), as far as the engine knows"
            );
            (Reason::Signal, message)
        }
        Some(signal) => (Reason::Signal, format!("it was ended by {signal} (exit code {code}) after {secs} s")),
        None => (Reason::ExitCode, format!("the script ended with exit code {code} after {secs} s")),
    };
    let unseen = shop.runtime.disk().is_none_or(|disk| free_bytes(disk).is_err());
    if unseen && log.last_lines(LOG_TAIL_LINES).await.iter().any(|line| says_full(line)) {
        // No more than a hint: it may be a file system that the step made itself, and made too small.
        message.push_str("; its last lines tell of a full disk, and the worker cannot see that of the engine");
    }
    let message = format!("{message}; the whole log: railyard logs {} {}", order.build, order.job);
    let mut outcome = Outcome::new(OutcomeKind::Failed, reason, message);
    outcome.exit_code = i32::try_from(code).ok();
    Err(Fault::Ended(outcome))
}

fn signal_of(code: i64) -> Option<Signal> {
    let number = i32::try_from(code - SIGNAL_CODES_FROM).ok()?;
    Signal::try_from(number).ok()
}

/// A start fails for the step's own reasons as well: no such interpreter, a mount over something that cannot be one.
fn not_started(order: &Order, error: RuntimeError) -> Fault {
    match error {
        RuntimeError::Refused { status: Some(400), message, .. } => {
            let message = format!("the container of {} cannot start: {message}", order.job);
            Fault::ended(OutcomeKind::Failed, Reason::ExitCode, message)
        }
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_of_signals_are_known() {
        assert_eq!([0, 1, 127, 128].map(signal_of), [None; 4]);
        assert_eq!([137, 143].map(signal_of), [Some(Signal::SIGKILL), Some(Signal::SIGTERM)]);
        assert_eq!([255, 300, -1].map(signal_of), [None; 3]);
    }
}
