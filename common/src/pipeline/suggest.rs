//! "Did you mean …?"

use super::diagnostic::{quote, quote_list};

/// Longer texts are not typing errors of a name.
const NAME_MAX_CHARS: usize = 80;

/// The help for a name that is none of `known`: the nearest one if it is near, and what there is. `kind` names them, in the plural.
pub(super) fn did_you_mean(text: &str, kind: &str, known: &[&str]) -> String {
    let list = if known.is_empty() { format!("there are no {kind}") } else { format!("{kind}: {}", quote_list(known)) };
    match nearest(text, known) {
        Some(name) => format!("did you mean {}? ({list})", quote(name)),
        None => list,
    }
}

/// The one of `known` that was likely meant.
fn nearest<'a>(text: &str, known: &[&'a str]) -> Option<&'a str> {
    if text.chars().count() > NAME_MAX_CHARS {
        return None;
    }
    let lower = text.to_lowercase();
    let allowed = (lower.chars().count() / 3).max(1);
    known
        .iter()
        .filter(|name| name.chars().count() <= NAME_MAX_CHARS)
        .map(|name| (distance(&lower, &name.to_lowercase()), *name))
        .filter(|(distance, name)| *distance <= allowed && *distance < name.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Edits (insert, delete, replace, swap of neighbours) between two texts.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut next = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = row[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            next[j] = replaced.min(row[j] + 1).min(next[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                next[j] = next[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut row, next);
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_edits() {
        for (a, b, want) in [("", "abc", 3), ("same", "same", 0), ("nedes", "needs", 1), ("image", "imag", 1)] {
            assert_eq!(distance(a, b), want, "{a} {b}");
        }
    }

    #[test]
    fn suggests_only_what_is_near() {
        let known = ["sdk-bootstrap", "sdk-container", "image"];
        assert_eq!(nearest("sdk-bootstrp", &known), Some("sdk-bootstrap"));
        assert_eq!(nearest("Image", &known), Some("image"));
        assert_eq!(nearest("vms", &known), None);
    }
}
