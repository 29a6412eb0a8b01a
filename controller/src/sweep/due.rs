//! When the next sweep begins, also when the settings change meanwhile.
//!
//! Times are those of a clock that never goes back.

use std::time::Duration;

/// The first sweep after a start comes no later: a controller that is restarted often would never sweep.
const FIRST_WITHIN: Duration = Duration::from_secs(300);

/// The farm's next sweep.
pub(super) struct Due {
    /// How long after a sweep the next one begins; nothing: only when somebody says so.
    every: Duration,
    at: Duration,
    /// When the last one ended.
    swept: Option<Duration>,
}

impl Due {
    pub(super) fn start(now: Duration, every: Duration) -> Self {
        Self { every, at: now + every.min(FIRST_WITHIN), swept: None }
    }

    /// How long until then; `None`: nobody knows.
    pub(super) fn wait(&self, now: Duration) -> Option<Duration> {
        (!self.every.is_zero()).then(|| self.at.saturating_sub(now))
    }

    pub(super) fn swept(&mut self, now: Duration) {
        self.swept = Some(now);
        self.at = now + self.every;
    }

    /// Nothing begins at once because settings are read again, and what is put off is put off for the sweep that is due as well.
    pub(super) fn change(&mut self, now: Duration, every: Duration) {
        let was = std::mem::replace(&mut self.every, every);
        self.at = match self.swept {
            _ if was.is_zero() => now + every,
            Some(swept) if every > was => swept + every,
            // The first one after a start is not put off: settings may change as often as controllers start.
            Some(_) | None => self.at.min(now + every),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const HOUR: Duration = Duration::from_secs(3600);

    /// Ten minutes after a sweep.
    fn due(every: Duration) -> (Due, Duration) {
        let mut due = Due::start(Duration::ZERO, every);
        due.swept(HOUR);
        (due, HOUR + 10 * MINUTE)
    }

    #[test]
    fn a_sweep_is_due_that_long_after_the_last_one_and_the_first_one_soon() {
        assert_eq!(Due::start(SECOND, HOUR).wait(SECOND), Some(5 * MINUTE));
        assert_eq!(Due::start(SECOND, MINUTE).wait(2 * SECOND), Some(MINUTE - SECOND));
        assert_eq!(Due::start(SECOND, Duration::ZERO).wait(HOUR), None);
        let (due, now) = due(HOUR);
        assert_eq!((due.wait(now), due.wait(3 * HOUR)), (Some(50 * MINUTE), Some(Duration::ZERO)));
    }

    #[test]
    fn no_change_of_the_settings_begins_one_at_once() {
        for (was, every, wait) in [
            (HOUR, HOUR, Some(50 * MINUTE)),
            (HOUR, MINUTE, Some(MINUTE)),
            (HOUR, 55 * MINUTE, Some(50 * MINUTE)),
            (HOUR, Duration::ZERO, None),
            (Duration::ZERO, HOUR, Some(HOUR)),
            (Duration::ZERO, MINUTE, Some(MINUTE)),
            (11 * MINUTE, HOUR, Some(50 * MINUTE)),
        ] {
            let (mut due, now) = due(was);
            due.change(now, every);
            assert_eq!(due.wait(now), wait, "{was:?} to {every:?}");
        }
    }

    #[test]
    fn whoever_changes_them_often_does_not_put_it_off_for_ever() {
        let mut due = Due::start(Duration::ZERO, HOUR);
        for minute in 1..5 {
            due.change(minute * MINUTE, HOUR + minute * SECOND);
        }
        assert_eq!(due.wait(4 * MINUTE), Some(MINUTE));
    }
}
