//! A step's matrix: the product of its keys' values.

use super::diagnostic::quote;
use super::limits::{STEP_LIST_MAX, VARIANTS_MAX};
use super::model::VariantSpec;
use super::reader::Reader;
use super::template::is_name;
use super::yaml::{Node, Value};
use crate::id::{BadId, Variant};
use std::collections::BTreeSet;

/// Longest value: a variant's name is all of its values, and has no more.
const VALUE_MAX_BYTES: usize = 63;

/// The one variant of a step without a matrix.
pub(super) fn none() -> VariantSpec {
    VariantSpec { name: None, values: Vec::new() }
}

/// The variants, in the order in which the file writes keys and values; the first key varies slowest.
/// With problems: the one variant of a step without a matrix.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node) -> Vec<VariantSpec> {
    let found = reader.problems.len();
    let mut keys: Vec<(String, Vec<String>)> = Vec::new();
    let entries = reader.map(node, "`matrix`", STEP_LIST_MAX);
    for entry in entries {
        // Known even if something about it is wrong, so that its uses are not reported as well.
        reader.matrix.push(entry.key.clone());
        if !is_name(&entry.key) {
            let message = format!("{} is not a matrix key", quote(&entry.key));
            let help = "expected 1 to 63 of a-z, 0-9 and _, starting with a letter";
            reader.problems.add_help(entry.at, message, help);
        }
        keys.push((entry.key.clone(), values(reader, &entry.key, &entry.value)));
    }
    let count = keys.iter().fold(1usize, |count, (_, values)| count.saturating_mul(values.len()));
    if keys.is_empty() && reader.problems.len() == found {
        reader.problems.add_help(node.at, "`matrix` is empty", "leave it out or give it a key with a list of values");
    } else if count > VARIANTS_MAX {
        reader.problems.add(node.at, format!("the matrix has {count} variants; at most {VARIANTS_MAX} are allowed"));
    }
    if count > VARIANTS_MAX || reader.problems.len() > found { vec![none()] } else { product(reader, node, &keys) }
}

fn values(reader: &mut Reader<'_>, key: &str, node: &Node) -> Vec<String> {
    let what = format!("matrix key {}", quote(key));
    let items = reader.list(node, &what, VARIANTS_MAX);
    if matches!(&node.value, Value::List(items) if items.is_empty()) {
        reader.problems.add(node.at, format!("{what} has no values"));
    }
    let mut seen = BTreeSet::new();
    let mut values = Vec::new();
    for item in items {
        let Some(text) = reader.text(item, &format!("a value of {what}")) else { continue };
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            let message = format!("{} is not a matrix value: expected letters, digits, `.`, `-` and `_`", quote(text));
            reader.problems.add(item.at, message);
        } else if text.len() > VALUE_MAX_BYTES {
            // Before it is copied into every variant.
            let message = format!("{} is too long for a matrix value: at most {VALUE_MAX_BYTES} bytes", quote(text));
            reader.problems.add(item.at, message);
        } else if !seen.insert(text) {
            reader.problems.add(item.at, format!("{what} has the value {} twice", quote(text)));
        }
        values.push(text.to_owned());
    }
    values
}

fn product(reader: &mut Reader<'_>, node: &Node, keys: &[(String, Vec<String>)]) -> Vec<VariantSpec> {
    let mut points: Vec<Vec<(String, String)>> = vec![Vec::new()];
    for (key, values) in keys {
        let longer = |point: &Vec<(String, String)>, value: &String| {
            let mut point = point.clone();
            point.push((key.clone(), value.clone()));
            point
        };
        points = points.iter().flat_map(|point| values.iter().map(move |value| longer(point, value))).collect();
    }
    let mut seen = BTreeSet::new();
    let mut variants = Vec::new();
    for values in points {
        let joined = values.iter().map(|(_, value)| value.as_str()).collect::<Vec<_>>().join("-");
        match joined.parse::<Variant>() {
            Err(BadId { expected, .. }) => {
                let message = format!("the matrix makes the variant {}; a variant is {expected}", quote(&joined));
                reader.problems.add(node.at, message);
            }
            Ok(name) if !seen.insert(name.clone()) => {
                reader.problems.add_help(
                    node.at,
                    format!("the matrix makes the variant {} twice", quote(&joined)),
                    "a variant's name is its values joined by `-`; choose values that stay apart",
                );
            }
            Ok(name) => variants.push(VariantSpec { name: Some(name), values }),
        }
    }
    if variants.is_empty() { vec![none()] } else { variants }
}
