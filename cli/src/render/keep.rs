//! What was said about keeping a build, for people.

use super::{ansi, human};
use crate::view::{Build, Pin, Promotion};
use jiff::Timestamp;

/// `eva: in the lab (operator/olga, ends in 2h)`
pub fn pin(pin: &Pin, now: Timestamp) -> String {
    let until = pin.until.map(|until| format!(", ends {}", human::until(until, now))).unwrap_or_default();
    let why = if pin.why.is_empty() { String::new() } else { format!(": {}", pin.why) };
    ansi::one_line(&format!("{}{why} ({}{until})", pin.name, pin.by))
}

/// `stable by operator/olga 2d ago`
pub fn promotion(promotion: &Promotion, now: Timestamp) -> String {
    let age = promotion.at.map(|at| format!(" {}", human::age(at, now))).unwrap_or_default();
    ansi::one_line(&format!("to {} by {}{age}", promotion.channel, promotion.by))
}

/// What came of putting a build into a channel, with the files that were published for that.
pub fn promoted(build: &str, from: &str, channel: &str, promotion: Option<&Promotion>) -> String {
    let Some(promotion) = promotion else {
        return ansi::one_line(&format!("{build} is in channel {channel} already")) + "\n";
    };
    let mut lines = vec![ansi::one_line(&format!("{build} is in channel {channel} now, and not in {from} any more"))];
    lines.extend(promotion.paths.iter().map(|path| format!("  published {}", ansi::one_line(path))));
    lines.join("\n") + "\n"
}

/// What is left of it, and who says so. `None` if everything is.
pub fn left(build: &Build, now: Timestamp) -> Option<String> {
    let what = match build.keep.as_deref()? {
        "all" => return None,
        "published" => "the published files, the manifest and the logs",
        "manifest" => "the manifest and the logs",
        "nothing" => "nothing: it is deleted",
        other => other,
    };
    let reduced = build.reduced.as_ref();
    let by = reduced.map(|reduced| {
        let age = reduced.at.map(|at| format!(" {}", human::age(at, now))).unwrap_or_default();
        format!(" ({}, by {}{age})", reduced.why, reduced.by)
    });
    Some(ansi::one_line(&format!("{what}{}", by.unwrap_or_default())))
}

/// What somebody should know who is about to delete it.
pub fn about(build: &Build, now: Timestamp) -> String {
    let mut lines = vec![format!("{} {}", ansi::one_line(&build.build), build.state.as_str())];
    lines.extend(build.submitted_at.map(|at| format!("  submitted {}", human::age(at, now))));
    if !build.tags.is_empty() {
        lines.push(format!("  tagged {}", ansi::one_line(&build.tags.join(", "))));
    }
    lines.extend(build.pins.iter().map(|one| format!("  pinned by {}", pin(one, now))));
    lines.extend(build.promotions.iter().map(|one| format!("  promoted {}", promotion(one, now))));
    lines.join("\n")
}

/// The word on it in a list: `pinned`, `manifest only`.
pub fn word(build: &Build) -> String {
    let left = match build.keep.as_deref() {
        Some("published") => "published only",
        Some("manifest") => "manifest only",
        Some("nothing") => "deleted",
        _ if !build.pins.is_empty() => "pinned",
        _ => "",
    };
    left.to_owned()
}
