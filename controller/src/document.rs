//! What is written for scripts to read: JSON, times in RFC 3339, sizes in bytes.

use bytes::Bytes;
use railyard_common::time::Millis;

/// The form that is written; readers refuse what they do not know.
pub(crate) use railyard_common::manifest::SCHEMA_VERSION;

/// A document as it is written.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Bytes {
    let mut bytes = serde_json::to_vec_pretty(value).expect("documents are plain JSON");
    bytes.push(b'\n');
    bytes.into()
}

/// A point in time as `2026-11-21T09:30:00.120Z`: always with three digits, so that text is ordered as time is.
pub(crate) fn rfc3339(at: Millis) -> String {
    let millis = i64::try_from(at.0).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(millis).map_or_else(|_| at.to_string(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_ordered_as_text() {
        let times = [0, 1_000, 1_100, 1_110, 1_111, 2_000].map(|millis| rfc3339(Millis(millis)));
        assert_eq!(times[2], "1970-01-01T00:00:01.100Z");
        assert!(times.is_sorted(), "{times:?}");
    }
}
