//! Reads what a step says about when and where it may run: approval, concurrency group, pool, labels.

use super::diagnostic::quote;
use super::limits::{GROUP_LIMIT_MAX, STEP_LIST_MAX};
use super::model::{Concurrency, Placing};
use super::reader::{Fields, Reader};
use super::template::Template;
use super::values;
use super::yaml::{Node, Value};

pub(super) const CONCURRENCY_FIELDS: [&str; 2] = ["group", "limit"];

impl Reader<'_> {
    /// When and where the step's jobs may run.
    pub(super) fn placing(&mut self, fields: &Fields<'_>) -> Placing {
        Placing {
            approval: fields.get("approval").and_then(|node| self.approval(node)),
            concurrency: fields.get("concurrency").and_then(|node| self.concurrency(node)),
            pool: fields.get("pool").and_then(|node| self.template(node, "`pool`")),
            labels: fields.get("labels").map(|node| self.labels(node)).unwrap_or_default(),
        }
    }

    /// `true`, or a text that says what there is to approve.
    fn approval(&mut self, node: &Node) -> Option<Template> {
        const FORMS: &str = "write `true`, or a text that says what there is to approve";
        match &node.value {
            Value::Text(text) if text == "true" => Some(Template::literal(node.at, "")),
            Value::Text(text) if text == "false" => None,
            Value::Text(text) if text.trim().is_empty() => {
                self.problems.add_help(node.at, "`approval` is empty", FORMS);
                None
            }
            Value::Text(_) => self.template(node, "`approval`"),
            other => {
                let message = format!("expected `approval` to be a text, found {}", other.kind());
                self.problems.add_help(node.at, message, FORMS);
                None
            }
        }
    }

    fn concurrency(&mut self, node: &Node) -> Option<Concurrency> {
        const FORMS: &str = "write `concurrency: NAME` for one job at a time, or `{ group: NAME, limit: 2 }`";
        if let Value::Text(_) = node.value {
            return Some(Concurrency { group: self.template(node, "`concurrency`")?, limit: 1 });
        }
        if let Value::List(_) = node.value {
            self.problems.add_help(node.at, "expected `concurrency` to be a text or a map, found a list", FORMS);
            return None;
        }
        let fields = self.fields(node, "`concurrency`", &CONCURRENCY_FIELDS)?;
        let parse = |text: &str| match values::count(text, GROUP_LIMIT_MAX) {
            Ok(limit) if limit > 0 => Ok(limit),
            _ => Err(format!("a whole number from 1 to {GROUP_LIMIT_MAX}")),
        };
        let limit = fields.get("limit").map_or(Some(1), |node| self.parsed(node, "`limit`", parse));
        let Some(group) = fields.get("group") else {
            self.problems.add_help(fields.at, "`concurrency` names no `group`", FORMS);
            return None;
        };
        let group = self.template(group, "`group`");
        Some(Concurrency { group: group?, limit: limit? })
    }

    fn labels(&mut self, node: &Node) -> Vec<(String, Template)> {
        let mut labels = Vec::new();
        for entry in self.map(node, "`labels`", STEP_LIST_MAX) {
            if !values::is_label_name(&entry.key) {
                let message = format!("{} is not the name of a label", quote(&entry.key));
                let help = "expected 1 to 63 of a-z, 0-9, `.`, `-`, `_` and `/`, starting with a letter or digit";
                self.problems.add_help(entry.at, message, help);
            }
            if let Some(value) = self.template(&entry.value, &format!("the value of {}", quote(&entry.key))) {
                labels.push((entry.key.clone(), value));
            }
        }
        labels
    }
}
