//! Reads the head of a pipeline file: everything but the steps themselves.

use super::diagnostic::{Position, Problems, quote, quote_choice, quote_list};
use super::limits::{STEP_LIST_MAX, STEPS_MAX, VALUE_MAX_BYTES};
use super::model::{Param, Pipeline};
use super::read_step::read_step;
use super::reader::{Fields, Reader};
use super::template::{BUILT_IN, CHANNEL, is_name};
use super::yaml::{Node, Value};
use crate::id::{BadId, PipelineName};
use crate::platform::Platform;
use std::collections::{BTreeMap, BTreeSet};

/// What a pipeline is for that does not say: the platform of most build hosts.
const PLATFORMS_DEFAULT: [Platform; 1] = [Platform::LinuxAmd64];

pub(super) const FIELDS: [&str; 9] =
    ["name", "description", "platforms", "default_platforms", "params", "pool", "channel", "supersede", "steps"];
pub(super) const PARAM_FIELDS: [&str; 2] = ["default", "description"];

/// The pipeline behind `root`, and the problems found on the way. With problems it may have gaps.
pub(super) fn read(
    root: &Node,
    text: &str,
    file_name: &str,
    files: &BTreeMap<String, String>,
    problems: Problems,
) -> (Option<Pipeline>, Problems) {
    let mut reader = Reader {
        text,
        files,
        problems,
        params: BTreeSet::new(),
        used: BTreeSet::new(),
        steps: BTreeMap::new(),
        matrix: Vec::new(),
    };
    let pipeline = reader.fields(root, "the pipeline", &FIELDS).map(|fields| reader.pipeline(&fields, file_name));
    (pipeline, reader.problems)
}

impl Reader<'_> {
    fn pipeline(&mut self, fields: &Fields<'_>, file_name: &str) -> Pipeline {
        let name = self.pipeline_name(fields);
        let description = self.description(fields);
        let (platforms, default_platforms) = self.pipeline_platforms(fields);
        let params = fields.get("params").map(|node| self.params(node)).unwrap_or_default();
        let pool = fields.get("pool").and_then(|node| self.template(node, "the pipeline's `pool`"));
        let channel = fields.get("channel").and_then(|node| self.template(node, "`channel`"));
        let supersede = fields.get("supersede").and_then(|node| self.template(node, "`supersede`"));
        let steps_node = fields.get("steps");
        let items = steps_node.map_or(&[] as &[Node], |node| self.list(node, "`steps`", STEPS_MAX));
        if items.is_empty() && steps_node.is_none_or(|node| matches!(node.value, Value::List(_))) {
            let at = steps_node.or(fields.written("steps")).map_or(fields.at, |node| node.at);
            self.problems.add_help(at, "the pipeline has no steps", "expected `steps:` and a list of steps");
        }
        self.step_names(items);
        let steps = items.iter().enumerate().map(|(index, item)| read_step(self, item, index, &platforms)).collect();
        for param in params.iter().filter(|param| !self.used.contains(&param.name)) {
            let message = format!("parameter {} is never used", quote(&param.name));
            let help =
                format!("use `{{{{ {} }}}}` in a step, or remove it; script files are not filled in", param.name);
            self.problems.add_help(param.at, message, help);
        }
        let position = |key: &str| fields.written(key).map_or(fields.at, |node| node.at);
        Pipeline {
            file: file_name.to_owned(),
            name,
            description,
            platforms,
            platforms_at: position("platforms"),
            default_platforms,
            pool,
            channel,
            supersede,
            params,
            params_at: position("params"),
            steps,
            steps_at: position("steps"),
        }
    }

    fn pipeline_name(&mut self, fields: &Fields<'_>) -> PipelineName {
        let given = match fields.get("name") {
            Some(node) => self.parsed(node, "the pipeline's name", |text| {
                text.parse::<PipelineName>().map_err(|error: BadId| error.expected.to_owned())
            }),
            None => {
                self.problems.add_help(fields.at, "the pipeline has no `name`", "write `name: my-pipeline`");
                None
            }
        };
        // Stands in only until the problem just reported ends the reading.
        given.unwrap_or_else(|| "unnamed".parse().expect("a valid name"))
    }

    pub(super) fn description(&mut self, fields: &Fields<'_>) -> String {
        let text = fields.get("description").and_then(|node| self.text(node, "`description`"));
        text.unwrap_or_default().to_owned()
    }

    fn pipeline_platforms(&mut self, fields: &Fields<'_>) -> (Vec<Platform>, Vec<Platform>) {
        let platforms = match fields.get("platforms") {
            Some(node) => self.platform_list(node, "`platforms`", &[]),
            None => PLATFORMS_DEFAULT.to_vec(),
        };
        let default = match fields.get("default_platforms") {
            Some(node) => self.platform_list(node, "`default_platforms`", &platforms),
            None => platforms.clone(),
        };
        (platforms, default)
    }

    /// A list of platforms, all of them among `allowed` unless that is empty.
    pub(super) fn platform_list(&mut self, node: &Node, what: &str, allowed: &[Platform]) -> Vec<Platform> {
        let mut platforms: Vec<Platform> = Vec::new();
        let texts = self.texts(node, what);
        if texts.is_empty() && matches!(&node.value, Value::List(items) if items.is_empty()) {
            self.problems.add(node.at, format!("{what} is empty; expected at least one platform"));
        }
        for (text, item) in texts {
            let Ok(platform) = text.parse::<Platform>() else {
                let message = format!("{} is not a platform: expected {}", quote(text), quote_choice(platform_names()));
                self.problems.add(item.at, message);
                continue;
            };
            if platforms.contains(&platform) {
                self.problems.add(item.at, format!("`{platform}` stands in {what} twice"));
            } else if !allowed.is_empty() && !allowed.contains(&platform) {
                let help = format!("the pipeline's `platforms` are {}", quote_list(allowed.iter().map(|p| p.as_str())));
                self.problems.add_help(item.at, format!("`{platform}` is not a platform of the pipeline"), help);
            } else {
                platforms.push(platform);
            }
        }
        platforms
    }

    fn params(&mut self, node: &Node) -> Vec<Param> {
        let mut params = Vec::new();
        for entry in self.map(node, "`params`", STEP_LIST_MAX) {
            // Declared even if something about it is wrong, so that its uses are not reported as well.
            self.params.insert(entry.key.clone());
            if is_taken(&entry.key) {
                let message =
                    format!("a parameter cannot be named {}: every job has that name already", quote(&entry.key));
                self.problems.add(entry.at, message);
            } else if !is_name(&entry.key) {
                let message = format!("{} is not a parameter name", quote(&entry.key));
                self.problems.add_help(entry.at, message, "expected 1 to 63 of a-z, 0-9 and _, starting with a letter");
            }
            if !is_name(&entry.key) || is_taken(&entry.key) {
                // It cannot be used, so that is no problem of its own.
                self.used.insert(entry.key.clone());
            }
            let mut param = Param { at: entry.at, name: entry.key.clone(), description: String::new(), default: None };
            if !matches!(entry.value.value, Value::Null) {
                let what = format!("parameter {}", quote(&entry.key));
                if let Some(fields) = self.fields(&entry.value, &what, &PARAM_FIELDS) {
                    param.description = self.description(&fields);
                    param.default = fields.written("default").and_then(|node| self.default(node));
                }
            }
            params.push(param);
        }
        params
    }

    fn default(&mut self, node: &Node) -> Option<(String, super::template::Template)> {
        let text = self.text(node, "`default`")?;
        if text.len() > VALUE_MAX_BYTES {
            self.problems.add(node.at, format!("a parameter's value has at most {VALUE_MAX_BYTES} bytes"));
            return None;
        }
        Some((text.to_owned(), self.param_value(text, node)?))
    }

    /// Notes every step's name before any step is read, because steps name each other.
    fn step_names(&mut self, items: &[Node]) {
        let mut first: BTreeMap<&str, Position> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            let Value::Map(entries) = &item.value else { continue };
            let Some(node) = entries.iter().find(|entry| entry.key == "name").map(|entry| &entry.value) else {
                continue;
            };
            let Value::Text(name) = &node.value else { continue };
            if let Some(at) = first.get(name.as_str()) {
                let message = format!("duplicate step name {}: the step on line {} has it", quote(name), at.line);
                self.problems.add(node.at, message);
            } else {
                first.insert(name, node.at);
                self.steps.insert(name.clone(), index);
            }
        }
    }
}

/// Whether every job has something of that name. A parameter may take the place of the channel: pipelines had such before there
/// were channels.
fn is_taken(name: &str) -> bool {
    (BUILT_IN.contains(&name) && name != CHANNEL) || name == "matrix"
}

fn platform_names() -> [&'static str; 2] {
    Platform::ALL.map(Platform::as_str)
}
