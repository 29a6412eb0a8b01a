//! Whether two globs can meet, as far as their texts tell.

use crate::job::OutputSpec;
use crate::path::Glob;

/// Whether it matches its own text and nothing else.
pub(super) fn is_literal(glob: &Glob) -> bool {
    !glob.as_str().contains(['*', '?', '[', '{'])
}

/// Whether `wanted` could match an artifact of `output`; `true` where that is hard to tell.
pub(super) fn could_match(wanted: &Glob, output: &OutputSpec) -> bool {
    let suffix = output.compress.suffix();
    match (is_literal(wanted), is_literal(&output.glob)) {
        (true, true) => wanted.as_str().strip_suffix(suffix) == Some(output.glob.as_str()),
        (true, false) => output.matcher().is_match(wanted.as_str()),
        (false, true) => wanted.matcher().is_match(format!("{}{suffix}", output.glob)),
        (false, false) => {
            let ((start, end), (other_start, other_end)) = (ends(wanted), ends(&output.glob));
            let other_end = format!("{other_end}{suffix}");
            (start.starts_with(other_start) || other_start.starts_with(start))
                && (end.ends_with(&other_end) || other_end.ends_with(end))
        }
    }
}

/// What every path that `glob` matches begins and ends with.
fn ends(glob: &Glob) -> (&str, &str) {
    let text = glob.as_str();
    let start = text.find(['*', '?', '[', '{']).map_or(text, |first| &text[..first]);
    let (before, end) = text.rfind(['*', '?', ']', '}']).map_or(("", text), |last| text.split_at(last + 1));
    // `**/x` matches `x`, too.
    (start, if before.ends_with("**") { end.trim_start_matches('/') } else { end })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_that_cannot_meet_are_told_apart() {
        for (one, two, want) in [
            ("out/a", "out/a", true),
            ("out/a", "out/b", false),
            ("out/*", "out/b", true),
            ("out/*", "out/deep/b", false),
            ("out/*.raw", "out/*.txt", false),
            ("out/*.raw", "out/disk.*", true),
            ("a/*", "b/*", false),
            ("**", "b/*", true),
            ("**/x", "*x", true),
            ("a/**/x", "a/[x]", true),
            ("a/{b,c}", "a/d*", true),
        ] {
            let globs: (Glob, Glob) = (one.parse().unwrap(), two.parse().unwrap());
            assert_eq!(could_match(&globs.0, &output(two, "none")), want, "{one} {two}");
            assert_eq!(could_match(&globs.1, &output(one, "auto")), want, "{two} {one}");
        }
    }

    fn output(glob: &str, compress: &str) -> OutputSpec {
        let (glob, compress) = (glob.parse().unwrap(), compress.parse().unwrap());
        OutputSpec { glob, publish: None, publish_by_channel: None, optional: false, compress }
    }

    #[test]
    fn a_compressed_output_is_known_by_its_suffix() {
        for (wanted, made, want) in [
            ("out/a", "out/a", false),
            ("out/a.xz", "out/a", true),
            ("out/*.xz", "out/a", true),
            ("out/*.raw", "out/*.raw", false),
            ("out/*.raw.xz", "out/*.raw", true),
            ("**", "**", true),
            ("x/y.xz", "**", true),
            ("x/y", "**", false),
        ] {
            assert_eq!(could_match(&wanted.parse().unwrap(), &output(made, "xz:6")), want, "{wanted} {made}");
        }
    }
}
