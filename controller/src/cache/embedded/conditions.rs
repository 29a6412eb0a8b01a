//! Conditional requests, as RFC 9110 has them: which of the validators count, and in what order.

use axum::http::{HeaderMap, HeaderName, header};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Validators {
    /// Strong, with its quotes.
    pub etag: String,
    pub modified: Timestamp,
}

/// What the conditions of a `GET` or `HEAD` come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answer as if there were none.
    Go,
    /// 304: the client has it.
    NotModified,
    /// 412: this is not the file that the client means.
    Failed,
}

impl Validators {
    /// As it stands in a header: whole seconds.
    pub(super) fn last_modified(&self) -> String {
        self.modified.strftime(FORMS[0]).to_string()
    }

    /// RFC 9110, section 13.2.2.
    pub(super) fn check(&self, asked: &HeaderMap) -> Verdict {
        let after = |name: HeaderName| date(asked, name).map(|at| self.modified.as_second() > at.as_second());
        if asked.contains_key(header::IF_MATCH) {
            if !self.is_named(asked, header::IF_MATCH, Comparison::Strong) {
                return Verdict::Failed;
            }
        } else if after(header::IF_UNMODIFIED_SINCE) == Some(true) {
            return Verdict::Failed;
        }
        if asked.contains_key(header::IF_NONE_MATCH) {
            if self.is_named(asked, header::IF_NONE_MATCH, Comparison::Weak) {
                return Verdict::NotModified;
            }
        } else if after(header::IF_MODIFIED_SINCE) == Some(false) {
            return Verdict::NotModified;
        }
        Verdict::Go
    }

    /// Whether a range of this file is what the client can use: it has no `If-Range`, or one that names this state.
    pub(super) fn range_fits(&self, asked: &HeaderMap) -> bool {
        let Some(value) = asked.get(header::IF_RANGE) else { return true };
        // A date must be the very one that was told. It counts whole seconds, so a file that was replaced within one could
        // pass for the other; a client that was told an ETag as well uses that.
        value == self.etag.as_str() || value == self.last_modified().as_str()
    }

    fn is_named(&self, asked: &HeaderMap, name: HeaderName, comparison: Comparison) -> bool {
        let values = asked.get_all(name).iter().filter_map(|value| value.to_str().ok());
        // Our tags have no commas; what others have in theirs makes them no more alike.
        values.flat_map(|value| value.split(',')).map(str::trim).any(|tag| match tag.strip_prefix("W/") {
            Some(weak) => comparison == Comparison::Weak && weak == self.etag,
            None => tag == "*" || tag == self.etag,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// The three forms of a date that a server has to read; the first is the one that is written.
const FORMS: [&str; 3] = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"];

/// The date in a header. What cannot be read is as good as not there, as the specification wants it.
fn date(asked: &HeaderMap, name: HeaderName) -> Option<Timestamp> {
    let text = asked.get(name)?.to_str().ok()?;
    let civil: DateTime = FORMS.iter().find_map(|form| strtime::parse(form, text).ok()?.to_datetime().ok())?;
    civil.to_zoned(TimeZone::UTC).ok().map(|zoned| zoned.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const BEFORE: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const AFTER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn file() -> Validators {
        // Half a second later than a header can say.
        Validators { etag: "\"a\"".to_owned(), modified: "1994-11-06T08:49:37.5Z".parse().unwrap() }
    }

    fn asked(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn every_condition_alone() {
        for (name, value, want) in [
            ("if-match", "\"a\"", Verdict::Go),
            ("if-match", "\"b\", \"a\"", Verdict::Go),
            ("if-match", "*", Verdict::Go),
            ("if-match", "W/\"a\"", Verdict::Failed),
            ("if-match", "\"b\"", Verdict::Failed),
            ("if-none-match", "\"a\"", Verdict::NotModified),
            ("if-none-match", "W/\"a\"", Verdict::NotModified),
            ("if-none-match", "*", Verdict::NotModified),
            ("if-none-match", "\"b\"", Verdict::Go),
            ("if-modified-since", NOW, Verdict::NotModified),
            ("if-modified-since", AFTER, Verdict::NotModified),
            ("if-modified-since", BEFORE, Verdict::Go),
            ("if-modified-since", "yesterday", Verdict::Go),
            ("if-unmodified-since", NOW, Verdict::Go),
            ("if-unmodified-since", AFTER, Verdict::Go),
            ("if-unmodified-since", BEFORE, Verdict::Failed),
            ("if-unmodified-since", "yesterday", Verdict::Go),
        ] {
            assert_eq!(file().check(&asked(&[(name, value)])), want, "{name}: {value}");
        }
    }

    #[test]
    fn tags_come_before_dates_and_refusals_before_the_rest() {
        for (headers, want) in [
            (vec![("if-match", "\"a\""), ("if-unmodified-since", BEFORE)], Verdict::Go),
            (vec![("if-match", "\"b\""), ("if-none-match", "\"a\"")], Verdict::Failed),
            (vec![("if-match", "\"a\""), ("if-none-match", "\"a\"")], Verdict::NotModified),
            (vec![("if-none-match", "\"b\""), ("if-modified-since", NOW)], Verdict::Go),
            (vec![("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], Verdict::NotModified),
            (vec![("if-unmodified-since", NOW), ("if-modified-since", NOW)], Verdict::NotModified),
        ] {
            assert_eq!(file().check(&asked(&headers)), want, "{headers:?}");
        }
    }

    #[test]
    fn dates_have_three_forms() {
        for form in [NOW, "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(file().check(&asked(&[("if-modified-since", form)])), Verdict::NotModified, "{form}");
        }
        assert_eq!(file().last_modified(), NOW);
    }

    #[test]
    fn ranges_are_of_the_very_same_file() {
        for (value, want) in [("\"a\"", true), ("W/\"a\"", false), ("\"b\"", false), (NOW, true), (BEFORE, false)] {
            assert_eq!(file().range_fits(&asked(&[("if-range", value)])), want, "{value}");
        }
        assert!(file().range_fits(&asked(&[])));
    }
}
