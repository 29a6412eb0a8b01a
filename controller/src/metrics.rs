//! Every metric of the controller, whichever part measures it. The manual lists them all, and a test keeps it so.

use railyard_service::telemetry::Metric;

/// All of them, in the manual's order.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    crate::sweep::METRICS.iter()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The rows of the manual's table under `header`.
    fn rows(header: &str) -> Vec<&'static str> {
        let manual = include_str!("../../docs/operations.md");
        let (_, table) =
            manual.split_once(header).unwrap_or_else(|| panic!("docs/operations.md has no table {header}"));
        table.lines().skip(2).take_while(|line| line.starts_with('|')).collect()
    }

    fn code(words: impl IntoIterator<Item = &'static str>) -> String {
        words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn the_manual_lists_every_metric_and_no_other() {
        let want = all().map(|one| {
            let attributes = code(one.attributes.iter().map(|attribute| attribute.name));
            let cells =
                [&format!("`{}`", one.name), one.kind.as_str(), &format!("`{}`", one.unit), &attributes, one.about];
            format!("| {} |", cells.join(" | ")).replace("|  |", "| |")
        });
        assert_eq!(rows("| metric | kind | unit | attributes | |"), want.collect::<Vec<_>>());
    }

    #[test]
    fn the_manual_lists_every_attribute_with_all_its_values() {
        let mut told = BTreeSet::new();
        let attributes = all().flat_map(|one| one.attributes).filter(|attribute| told.insert(attribute.name));
        let want =
            attributes.map(|one| format!("| `{}` | {} | {} |", one.name, code(one.values.iter().copied()), one.about));
        assert_eq!(rows("| attribute | values | |"), want.collect::<Vec<_>>());
    }

    #[test]
    fn no_two_metrics_have_one_name_and_none_is_the_beginning_of_another() {
        let names: Vec<&str> = all().map(|one| one.name).collect();
        for name in &names {
            assert!(name.starts_with("railyard."), "{name}");
            assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name}");
            let inside: Vec<_> = names.iter().filter(|other| other.starts_with(&format!("{name}."))).collect();
            assert!(inside.is_empty(), "{name} is a name and the beginning of {inside:?}");
        }
    }
}
