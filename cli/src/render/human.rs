//! Durations, sizes and ages as people read them.

use jiff::Timestamp;
use std::collections::BTreeMap;

/// `0.4s`, `12s`, `1m 3s`, `2h 5m`, `3d 4h`.
pub fn duration(millis: u64) -> String {
    let secs = millis / 1000;
    match secs {
        0..=9 => format!("{}.{}s", secs, millis % 1000 / 100),
        10..=59 => format!("{secs}s"),
        60..=3599 => format!("{}m {}s", secs / 60, secs % 60),
        3600..=86_399 => format!("{}h {}m", secs / 3600, secs % 3600 / 60),
        _ => format!("{}d {}h", secs / 86_400, secs % 86_400 / 3600),
    }
}

/// Time between two points, where both are known; never negative.
pub fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<String> {
    Some(duration(millis_between(from?, to?)))
}

/// Milliseconds between two points; 0 if they are the other way round (two machines, two clocks).
pub fn millis_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond() - from.as_millisecond()).unwrap_or(0)
}

/// `4m ago`, with the largest unit only.
pub fn age(at: Timestamp, now: Timestamp) -> String {
    let secs = millis_between(at, now) / 1000;
    match secs {
        0..=1 => "now".to_owned(),
        2..=59 => format!("{secs}s ago"),
        60..=3599 => format!("{}m ago", secs / 60),
        3600..=86_399 => format!("{}h ago", secs / 3600),
        _ => format!("{}d ago", secs / 86_400),
    }
}

/// `0 B`, `17 KiB`, `1.5 GiB`: one decimal below ten of a unit.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    // 1023.95 would be written as 1024: the next unit reads better.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 9.95 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Thousandths of a processor: `2`, `0.5`, `1.25`.
pub fn cpus(millis: u32) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `kvm=yes rack=a`
pub fn pairs(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// Time that is left until then: `in 4m 10s`, or `now`.
pub fn until(at: Timestamp, now: Timestamp) -> String {
    match millis_between(now, at) {
        0..=999 => "now".to_owned(),
        millis => format!("in {}", duration(millis / 1000 * 1000)),
    }
}

/// How long it is until then: `15m`.
pub fn left(at: Timestamp, now: Timestamp) -> String {
    duration(millis_between(now, at).div_ceil(1000) * 1000)
}

/// `1 job`, `2 jobs`.
pub fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// The first digits of a digest, without its prefix: enough to compare by eye.
pub fn short_digest(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (millis, want) in [
            (0, "0.0s"),
            (450, "0.4s"),
            (9_999, "9.9s"),
            (12_345, "12s"),
            (63_000, "1m 3s"),
            (7_500_000, "2h 5m"),
            (273_600_000, "3d 4h"),
        ] {
            assert_eq!(duration(millis), want);
        }
    }

    #[test]
    fn sizes() {
        for (bytes, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (10 * 1024, "10 KiB"),
            (1_048_575, "1.0 MiB"),
            (1_610_612_736, "1.5 GiB"),
            (u64::MAX, "16384 PiB"),
        ] {
            assert_eq!(size(bytes), want);
        }
    }

    #[test]
    fn ages_never_lie_in_the_future() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let earlier: Timestamp = "2026-11-21T11:55:30Z".parse().unwrap();
        assert_eq!(age(earlier, now), "4m ago");
        assert_eq!(age(now, earlier), "now");
        assert_eq!(between(Some(now), Some(earlier)).as_deref(), Some("0.0s"));
        assert_eq!(between(None, Some(now)), None);
    }

    #[test]
    fn processors() {
        assert_eq!([2000, 500, 1250, 0].map(cpus), ["2", "0.5", "1.25", "0"]);
    }
}
