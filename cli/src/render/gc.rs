//! Plans of sweeps, for people.

use super::style::{Style, Tone};
use super::table::{Cell, Table};
use super::{ansi, human};
use crate::view::{SweepPlan, SweepReport};
use std::fmt::Write as _;

/// Every build with what is kept of it and why, then what goes.
pub fn plan(plan: &SweepPlan, style: Style) -> String {
    let mut text = String::new();
    if !plan.builds.is_empty() {
        let mut table = Table::new(&["BUILD", "CHANNEL", "KEEP", "SIZE", "FREES", "WHY"]);
        for one in &plan.builds {
            let (word, tone) = match (one.now == one.keep, one.keep.as_str()) {
                (true, "nothing") => ("deleted", Tone::Faint),
                (true, keep) => (keep, Tone::Good),
                (false, keep) => (keep, Tone::Bad),
            };
            table.row(vec![
                Cell::from(&one.build),
                Cell::from(&one.channel),
                Cell::toned(word, tone),
                Cell::from(human::size(one.bytes)),
                Cell::from(if one.frees_bytes > 0 { human::size(one.frees_bytes) } else { String::new() }),
                Cell::from(ansi::plain(&one.why.join("; "))),
            ]);
        }
        text.push_str(&table.render(style));
        text.push('\n');
    }
    let going = plan.builds.iter().filter(|one| one.now != one.keep).count();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} of {} would be reduced or deleted", going, human::count(plan.builds.len(), "build"));
    let gone: Vec<String> = plan
        .gone
        .iter()
        .filter(|one| one.objects > 0)
        .map(|one| format!("{} {} ({})", one.objects, one.kind, human::size(one.bytes)))
        .collect();
    let gone = if gone.is_empty() { "nothing".to_owned() } else { gone.join(", ") };
    let _ = writeln!(
        text,
        "to delete now: {gone}; the cache has {} objects ({})",
        plan.listed_objects,
        human::size(plan.listed_bytes)
    );
    if plan.foreign_objects > 0 {
        let _ = writeln!(text, "{} objects there are not the farm's; they stay", plan.foreign_objects);
    }
    for one in &plan.objects {
        let _ = writeln!(text, "  {} ({})", ansi::plain(&one.path), human::size(one.bytes));
    }
    if plan.more_objects > 0 {
        let _ = writeln!(text, "  and {} more", plan.more_objects);
    }
    text
}

/// What a sweep did.
pub fn report(report: &SweepReport) -> String {
    let mut text = format!(
        "deleted {} objects ({}) and {} published files; {} reduced or deleted, {} forgotten\n",
        report.deleted_objects,
        human::size(report.deleted_bytes),
        report.unpublished,
        human::count(usize::try_from(report.reduced).unwrap_or(usize::MAX), "build"),
        report.forgotten,
    );
    if report.left > 0 {
        let _ = writeln!(text, "{} objects were wanted again meanwhile, and stay", report.left);
    }
    text
}
