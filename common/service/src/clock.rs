//! The one place where a process reads the time.

use nix::time::{ClockId, clock_gettime};
use railyard_common::time::Millis;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where time comes from: the system in production, whatever a test likes in a test.
pub trait Clock: Send + Sync {
    /// Wall-clock time. May jump; good for records, not for timeouts.
    fn now(&self) -> Millis;

    /// Time since the process started. Never goes back; good for timeouts, meaningless elsewhere.
    fn monotonic(&self) -> Duration;

    /// Time since the kernel booted, time asleep included. Never goes back, and goes on when the process ends: good for
    /// deadlines that a process leaves to its successor. Meaningless after the next boot, and on another machine.
    fn boottime(&self) -> Duration {
        self.monotonic()
    }
}

/// The system's clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

#[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
    fn now(&self) -> Millis {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }

    fn monotonic(&self) -> Duration {
        STARTED.elapsed()
    }

    fn boottime(&self) -> Duration {
        // Every kernel that runs containers has this clock.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
    }
}

/// The time of the runtime's timers. Never goes back; a simulation moves it as it likes.
#[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
pub(crate) fn runtime_now() -> tokio::time::Instant {
    tokio::time::Instant::now()
}

/// A point in time as the standard library writes it, for certificates and spans.
pub(crate) fn system_time(at: Millis) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(at.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_past_the_year_this_was_written_and_moves_forward() {
        let clock = SystemClock;
        assert!(clock.now() > Millis(1_760_000_000_000));
        let earlier = clock.monotonic();
        assert!(clock.monotonic() >= earlier);
        let booted = clock.boottime();
        assert!(booted > Duration::ZERO && clock.boottime() >= booted);
    }
}
