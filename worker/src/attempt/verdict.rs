//! What the end of a container means.

use super::fault::{Fault, disk_full};
use crate::disk::{FULL_BELOW_BYTES, says_full};
use crate::log::JobLog;
use crate::runtime::{Exit, RuntimeError};
use crate::workshop::Workshop;
use bytesize::ByteSize;
use nix::sys::signal::Signal;
use railyard_common::order::Order;
use railyard_common::outcome::{LOG_TAIL_LINES, Outcome, OutcomeKind, Reason};
use std::path::Path;
use std::time::Duration;

/// An engine that is being stopped ends its containers first. A container that a signal ended is judged after this
/// time, when such an engine does not answer any more.
const ENGINE_SETTLE: Duration = Duration::from_secs(1);

/// What an exit code is for a process that a signal ended: this and the signal's number.
const SIGNAL_CODES_FROM: i64 = 128;

/// What an engine says of a container when it does not know how that ended: it was away just then, and what it asked
/// afterwards did not know either.
const UNKNOWN_CODE: i64 = 255;

/// How a container ended, and what of that was seen.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) exit: Exit,
    pub(super) witness: Witness,
}

/// Who saw it end.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Witness {
    /// This process, through an engine that was there all the time.
    Process,
    /// Nobody here: the worker was not running.
    Nobody,
    /// The engine was away meanwhile.
    EngineAway,
}

/// Well only with an exit code of 0.
///
/// # Errors
/// [`Fault`]: whose it was, and why.
pub(super) async fn judge(
    shop: &Workshop,
    order: &Order,
    seen: Seen,
    work: &Path,
    took: Duration,
    log: &JobLog,
) -> Result<(), Fault> {
    let Seen { exit, witness, .. } = seen;
    let code = exit.code;
    if code == 0 {
        return Ok(());
    }
    if code == UNKNOWN_CODE && witness != Witness::Process {
        let message = format!(
            "the container ended while the engine or the worker was restarted, with exit code {code}: \
             what an engine says that does not know how a container ended"
        );
        return Err(Fault::ended(OutcomeKind::Lost, Reason::Engine, message));
    }
    let signal = signal_of(code);
    let by_engine = match witness {
        Witness::Process => false,
        // A script ends with what it likes when it is told to end.
        Witness::EngineAway => true,
        Witness::Nobody => signal.is_some() && !exit.oom_killed,
    };
    if by_engine && !shop.runtime.is_live_restore().await? {
        let message = format!(
            "the container ended with exit code {code} while the engine or the worker was restarted, and most likely for that; \
             an engine with `live-restore` lets containers run on"
        );
        return Err(Fault::ended(OutcomeKind::Lost, Reason::Engine, message));
    }
    if signal.is_some() && !exit.oom_killed {
        tokio::time::sleep(ENGINE_SETTLE).await;
        shop.runtime.ping().await?;
    }
    // It writes to two places: its work directory, and the container's own root.
    let mut disks = [Some(work), shop.runtime.disk()].into_iter().flatten();
    let full = disks.find(|disk| shop.free_bytes(disk).is_ok_and(|free| free < FULL_BELOW_BYTES));
    // Somebody may have made room since.
    if let Some(full) = full.or_else(|| shop.disks.full(shop.clock.boottime())) {
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
    let unseen = shop.runtime.disk().is_none_or(|disk| shop.free_bytes(disk).is_err());
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
pub(super) fn not_started(order: &Order, error: RuntimeError) -> Fault {
    match error {
        RuntimeError::Refused { message, .. } if message.contains("does not match the specified platform") => {
            let message = format!("the image of {} is not for {}: {message}", order.job, order.job.platform);
            Fault::ended(OutcomeKind::Failed, Reason::ImageMissing, message)
        }
        RuntimeError::Refused { message, .. } if message.contains("unable to apply caps") => {
            let message =
                format!("this worker's host cannot give the capabilities that {} asks for: {message}", order.job);
            Fault::ended(OutcomeKind::Refused, Reason::Unsupported, message)
        }
        RuntimeError::Refused { status, message, .. } if status == Some(400) || message.contains("Cannot mkdir: ") => {
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
