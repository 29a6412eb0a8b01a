//! A container from its start to its end: its output, its limits, and why it ended.

use super::fault::{Fault, disk_full};
use super::{Stop, stopped};
use crate::disk::{FULL_BELOW_BYTES, free_bytes};
use crate::log::JobLog;
use crate::runtime::{ContainerSpec, Exit, Running, RuntimeError};
use crate::workshop::Workshop;
use bytes::Bytes;
use bytesize::ByteSize;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use nix::sys::signal::Signal;
use railyard_common::order::Order;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// After the end of a container, how long the rest of its output may take to arrive.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(10);

/// An engine that is being stopped ends its containers first. A container that a signal ended is judged after this
/// time, when such an engine does not answer any more.
const ENGINE_SETTLE: Duration = Duration::from_secs(1);

/// What an exit code is for a process that a signal ended: this and the signal's number.
const SIGNAL_CODES_FROM: i64 = 128;

type Output = BoxStream<'static, Result<Bytes, RuntimeError>>;

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
    shop.runtime.create(spec).await.map_err(|error| not_started(order, error))?;
    let started = shop.clock.monotonic();
    let running = shop.runtime.start(&spec.name).await.map_err(|error| not_started(order, error))?;
    let Running { mut output, exit } = running;
    let end = watch_it(shop, order, &mut output, exit, log, stop).await?;
    let took = shop.clock.monotonic() - started;
    match end {
        End::Exited(exit) => {
            finish_output(output, log).await?;
            judge(shop, order, exit, work, took).await
        }
        End::Stopped(why) => {
            // Nobody waits for the result of a lost lease, and it must be gone before somebody else begins.
            let grace = match why {
                Stop::Fenced { .. } | Stop::Abandoned => Duration::ZERO,
                Stop::Cancelled(_) | Stop::Drained => shop.config.stop_grace(),
            };
            halt(shop, &spec.name, grace, output, log).await?;
            Err(Fault::Stopped(why))
        }
        End::TimedOut(reason, message) => {
            halt(shop, &spec.name, shop.config.stop_grace(), output, log).await?;
            Err(Fault::ended(OutcomeKind::TimedOut, reason, message))
        }
    }
}

/// Keeps the output, and watches the limits.
async fn watch_it(
    shop: &Workshop,
    order: &Order,
    output: &mut Output,
    mut exit: impl Future<Output = Result<Exit, RuntimeError>> + Unpin,
    log: &JobLog,
    stop: &mut watch::Receiver<Option<Stop>>,
) -> Result<End, Fault> {
    let started = shop.clock.monotonic();
    let wall = Duration::from_secs(order.run.timeout_secs);
    let silence = (order.run.silence_timeout_secs > 0).then(|| Duration::from_secs(order.run.silence_timeout_secs));
    let mut heard_at = started;
    let mut more_output = true;
    loop {
        // Asked here and not only by the timer below, which a container that never stops writing would starve.
        let now = shop.clock.monotonic();
        let wall_left = (started + wall).saturating_sub(now);
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
            chunk = output.next(), if more_output => match chunk {
                Some(Ok(bytes)) => {
                    heard_at = shop.clock.monotonic();
                    log.write(&bytes).await?;
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a container's output broke off");
                    more_output = false;
                }
                None => more_output = false,
            },
            exit = &mut exit => return Ok(End::Exited(exit?)),
            () = tokio::time::sleep(silence_left.unwrap_or(wall_left).min(wall_left)) => {}
        }
    }
}

/// Stops the container, and keeps what it writes meanwhile.
async fn halt(shop: &Workshop, name: &str, grace: Duration, output: Output, log: &JobLog) -> Result<(), Fault> {
    let (stopped, written) = tokio::join!(shop.runtime.stop(name, grace), finish_output(output, log));
    if let Err(error) = stopped {
        // It will be removed by force, for as long as that takes.
        tracing::warn!(container = name, %error, "a container could not be stopped");
    }
    written
}

/// The rest of the output of a container that has ended or is ending.
async fn finish_output(mut output: Output, log: &JobLog) -> Result<(), Fault> {
    loop {
        match tokio::time::timeout(LAST_OUTPUT_TIMEOUT, output.next()).await {
            Ok(Some(Ok(bytes))) => log.write(&bytes).await?,
            Ok(None) => return Ok(()),
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "a container's output broke off");
                return Ok(());
            }
            Err(_) => {
                tracing::warn!("a container has ended, but its output has not; giving it up");
                return Ok(());
            }
        }
    }
}

async fn judge(shop: &Workshop, order: &Order, exit: Exit, work: &Path, took: Duration) -> Result<(), Fault> {
    let code = exit.code;
    if code == 0 {
        return Ok(());
    }
    let signal = signal_of(code);
    if signal.is_some() && !exit.oom_killed {
        tokio::time::sleep(ENGINE_SETTLE).await;
        shop.runtime.ping().await?;
    }
    if free_bytes(work).is_ok_and(|free| free < FULL_BELOW_BYTES) {
        let what = format!("the script ended with exit code {code}");
        return Err(Fault::ended(OutcomeKind::Lost, Reason::DiskFull, disk_full(work, &what)));
    }
    let limit = ByteSize::b(order.run.resources.memory_bytes).display().iec();
    let secs = took.as_secs();
    let (reason, message) = match signal {
        _ if exit.oom_killed => {
            (Reason::Oom, format!("it was killed for using more memory than its limit of {limit}; raise `memory`"))
        }
        Some(Signal::SIGKILL) => {
            // Some engines learn too late, or never, why the kernel killed something.
            let message = format!(
                "it was killed (exit code {code}), most likely for using more memory than its limit of {limit}"
            );
            (Reason::Oom, message)
        }
        Some(signal) => (Reason::Signal, format!("it was ended by {signal} (exit code {code}) after {secs} s")),
        None => (Reason::ExitCode, format!("the script ended with exit code {code} after {secs} s")),
    };
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
