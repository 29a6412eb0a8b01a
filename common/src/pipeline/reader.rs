//! From YAML nodes to plain values, with every mismatch reported.

use super::diagnostic::{Position, Problems, quote, quote_list};
use super::limits::STEP_LIST_MAX;
use super::template::{BUILT_IN, CHANNEL, Name, Template};
use super::yaml::{Entry, Node, Value};
use std::collections::{BTreeMap, BTreeSet};

/// What reading needs to know and leaves behind.
pub(super) struct Reader<'a> {
    /// The pipeline file.
    pub text: &'a str,
    /// Script files by the path written in the pipeline file.
    pub files: &'a BTreeMap<String, String>,
    pub problems: Problems,
    /// Declared parameters.
    pub params: BTreeSet<String>,
    /// Parameters that something uses.
    pub used: BTreeSet<String>,
    /// Steps by name: the index in the list.
    pub steps: BTreeMap<String, usize>,
    /// Matrix keys of the step that is being read.
    pub matrix: Vec<String>,
}

/// A map whose keys have been checked.
pub(super) struct Fields<'n> {
    pub at: Position,
    entries: &'n [Entry],
}

impl<'n> Fields<'n> {
    /// The value of `name`; a key with nothing behind it counts as left out.
    pub fn get(&self, name: &str) -> Option<&'n Node> {
        self.written(name).filter(|node| !matches!(node.value, Value::Null))
    }

    /// The same, `null` included.
    pub fn written(&self, name: &str) -> Option<&'n Node> {
        self.entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
    }
}

impl Reader<'_> {
    /// The map behind `node`, which may have the keys `allowed` only. `what` names it: "step `vms`".
    pub fn fields<'n>(&mut self, node: &'n Node, what: &str, allowed: &[&str]) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            let message = format!("expected {what} to be a map, found {}", node.value.kind());
            self.problems.add_help(node.at, message, format!("fields: {}", quote_list(allowed)));
            return None;
        };
        for entry in entries.iter().filter(|entry| !allowed.contains(&entry.key.as_str())) {
            let message = format!("unknown field {} in {what}", quote(&entry.key));
            self.problems.add_unknown(entry.at, message, &entry.key, "fields", allowed);
        }
        Some(Fields { at: node.at, entries })
    }

    /// The entries of a map with keys of the user's own.
    pub fn map<'n>(&mut self, node: &'n Node, what: &str, max: usize) -> &'n [Entry] {
        let Value::Map(entries) = &node.value else {
            self.problems.add(node.at, format!("expected {what} to be a map, found {}", node.value.kind()));
            return &[];
        };
        self.at_most(node.at, what, entries, max)
    }

    /// The items of a list.
    pub fn list<'n>(&mut self, node: &'n Node, what: &str, max: usize) -> &'n [Node] {
        let Value::List(items) = &node.value else {
            let message = format!("expected {what} to be a list, found {}", node.value.kind());
            self.problems.add_help(node.at, message, "write `[…]`, or one line with `- ` for each item");
            return &[];
        };
        self.at_most(node.at, what, items, max)
    }

    fn at_most<'n, T>(&mut self, at: Position, what: &str, items: &'n [T], max: usize) -> &'n [T] {
        if items.len() > max {
            self.problems.add(at, format!("{what} has {} entries; at most {max} are allowed", items.len()));
        }
        &items[..items.len().min(max)]
    }

    /// The items of a list in a step, each a text.
    pub fn texts<'n>(&mut self, node: &'n Node, what: &str) -> Vec<(&'n str, &'n Node)> {
        let items = self.list(node, what, STEP_LIST_MAX);
        items.iter().filter_map(|item| Some((self.text(item, &format!("an entry of {what}"))?, item))).collect()
    }

    /// A scalar as it is written.
    pub fn text<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n str> {
        match &node.value {
            Value::Text(text) if text.contains('\0') => {
                self.problems.add(node.at, format!("{what} has a NUL character"));
                None
            }
            Value::Text(text) => Some(text),
            Value::Null => {
                let help = "write `\"\"` for an empty text";
                self.problems.add_help(node.at, format!("expected {what} to be a text, found nothing"), help);
                None
            }
            other => {
                self.problems.add(node.at, format!("expected {what} to be a text, found {}", other.kind()));
                None
            }
        }
    }

    /// A scalar of a type that has a form of its own.
    pub fn parsed<T>(&mut self, node: &Node, what: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let text = self.text(node, what)?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.problems.add(node.at, format!("{what}: expected {expected}, found {}", quote(text)));
                None
            }
        }
    }

    /// `true` or `false`; `false` where nothing is written.
    pub fn flag(&mut self, node: Option<&Node>, what: &str) -> bool {
        let Some(node) = node else { return false };
        let parse = |text: &str| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("true or false".to_owned()),
        };
        self.parsed(node, what, parse).unwrap_or(false)
    }

    /// A text with places to fill in: parameters, built-ins and the step's matrix.
    pub fn template(&mut self, node: &Node, what: &str) -> Option<Template> {
        let text = self.text(node, what)?;
        let template = self.scan(text, node);
        let is_param = self.params.contains(CHANNEL);
        let template = if is_param { template.with_param_for_channel() } else { template };
        for (name, at) in template.uses() {
            self.check_use(name, at);
        }
        Some(template)
    }

    /// The same for a parameter's value, which may use built-ins only; `None` if it uses anything else, which is reported.
    pub fn param_value(&mut self, text: &str, node: &Node) -> Option<Template> {
        let template = self.scan(text, node);
        for (name, at) in template.uses_beyond_built_in() {
            let message = format!("a parameter's value cannot use `{name}`");
            self.problems.add_help(at, message, format!("it may use {}", quote_list(BUILT_IN)));
        }
        let is_value = template.uses_beyond_built_in().next().is_none();
        is_value.then_some(template)
    }

    fn scan(&mut self, text: &str, node: &Node) -> Template {
        let places = if text.contains("{{") { places(self.text, node) } else { Vec::new() };
        let place = |n: usize| places.get(n).copied().unwrap_or(node.at);
        let (template, bad) = Template::parse(text, node.at, place);
        for bad in bad {
            self.problems.add_help(bad.at, bad.message, "write `\\{{` for a literal `{{`");
        }
        template
    }

    fn check_use(&mut self, name: &Name, at: Position) {
        match name {
            Name::BuiltIn(_) => {}
            Name::Param(param) if self.params.contains(param) => {
                self.used.insert(param.clone());
            }
            Name::Param(param) => {
                let known: Vec<&str> = self.params.iter().map(String::as_str).chain(BUILT_IN).collect();
                let message = format!("{} is neither a declared parameter nor a built-in name", quote(param));
                self.problems.add_unknown(at, message, param, "names", &known);
            }
            Name::Matrix(key) if self.matrix.contains(key) => {}
            Name::Matrix(key) => {
                let known: Vec<&str> = self.matrix.iter().map(String::as_str).collect();
                let message = format!("the step's matrix has no key {}", quote(key));
                self.problems.add_unknown(at, message, key, "keys", &known);
            }
        }
    }
}

/// Where each `{{` of a scalar stands in the file. The scalar's n-th is the file's n-th from the scalar's start,
/// whatever the notation did to lines and indentation between them.
fn places(file: &str, node: &Node) -> Vec<Position> {
    let raw = file.get(node.raw.clone()).unwrap_or_default();
    let (mut at, mut done) = (node.at, 0);
    let mut places = Vec::new();
    for (offset, _) in raw.match_indices("{{") {
        for c in raw[done..offset].chars() {
            if c == '\n' {
                at = Position { line: at.line.saturating_add(1), column: 1 };
            } else {
                at.column = at.column.saturating_add(1);
            }
        }
        done = offset;
        places.push(at);
    }
    places
}
