//! Waiting for a condition, never for a time.

use std::time::Duration;

/// Between two looks: short enough not to lengthen a test, long enough to leave the processors to what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Looks again and again until `look` gives something.
///
/// # Panics
/// With `what` and the last thing that stood in the way, when `limit` has passed.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let mut looks = limit.as_millis() / LOOK_EVERY.as_millis();
    loop {
        match look() {
            Ok(found) => return found,
            Err(why) if looks == 0 => panic!("{what} did not happen within {limit:?}: {why}"),
            Err(_) => {
                looks -= 1;
                std::thread::sleep(LOOK_EVERY);
            }
        }
    }
}
