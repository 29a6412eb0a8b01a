//! Reads a step.

use super::diagnostic::{quote, quote_choice};
use super::limits::{
    CPU_DEFAULT_MILLIS, DISK_DEFAULT_BYTES, LEASE_TTL_DEFAULT_SECS, MEMORY_DEFAULT_BYTES, SCRIPT_MAX_BYTES,
    STEP_LIST_MAX, TIMEOUT_DEFAULT_SECS,
};
use super::matrix;
use super::model::{Dependency, Image, Input, OfBuild, Origin, Placing, Script, Step};
use super::reader::{Fields, Reader};
use super::template::Template;
use super::values;
use super::yaml::{Node, Value};
use crate::id::{BadId, StepName, Variant};
use crate::job::Capacity;
use crate::path::RelPath;
use crate::platform::Platform;

const FIELDS: [&str; 26] = [
    "name",
    "description",
    "needs",
    "platforms",
    "matrix",
    "image",
    "script",
    "env",
    "inputs",
    "outputs",
    "commit",
    "resources",
    "timeout",
    "silence_timeout",
    "lease_ttl",
    "retries",
    "privileged",
    "devices",
    "capabilities",
    "host_paths",
    "secrets",
    "network",
    "approval",
    "concurrency",
    "pool",
    "labels",
];
const IMAGE_FIELDS: [&str; 4] = ["build", "step", "import", "artifact"];
const INPUT_FIELDS: [&str; 4] = ["build", "step", "artifacts", "path"];

/// The step behind `node`, the `index`th of the pipeline. What cannot be read is reported and left at its default.
pub(super) fn read_step(reader: &mut Reader<'_>, node: &Node, index: usize, platforms: &[Platform]) -> Step {
    let what = match step_name(node) {
        Some(name) => format!("step {}", quote(name)),
        None => format!("step {}", index + 1),
    };
    reader.matrix.clear();
    let mut step = blank(node, platforms);
    let Some(fields) = reader.fields(node, &what, &FIELDS) else { return step };
    if let Some(name) = reader.name(&fields, &what) {
        step.name = name;
    }
    if let Some(node) = fields.get("platforms") {
        step.platforms = reader.platform_list(node, "the step's `platforms`", platforms);
    }
    if let Some(node) = fields.get("matrix") {
        step.variants = matrix::read(reader, node);
    }
    step.description = reader.description(&fields);
    step.image = reader.image(&fields, &what);
    step.script = reader.script(&fields, &what);
    step.env = fields.get("env").map(|node| reader.env(node)).unwrap_or_default();
    step.needs = fields.get("needs").map(|node| reader.needs(node)).unwrap_or_default();
    step.inputs = fields.get("inputs").map(|node| reader.inputs(node)).unwrap_or_default();
    if let Some(node) = fields.get("outputs") {
        let found = reader.problems.len();
        step.outputs = reader.outputs(node);
        step.outputs_unsure = reader.problems.len() > found;
    }
    reader.container(&fields, &mut step);
    step.placing = reader.placing(&fields);
    step
}

/// The parts of `STEP[.VARIANT][@PLATFORM]`.
fn split(text: &str) -> (&str, Option<&str>, Option<&str>) {
    let (name, platform) = text.split_once('@').map_or((text, None), |(name, platform)| (name, Some(platform)));
    let (name, variant) = name.split_once('.').map_or((name, None), |(name, variant)| (name, Some(variant)));
    (name, variant, platform)
}

fn step_name(node: &Node) -> Option<&str> {
    let Value::Map(entries) = &node.value else { return None };
    match &entries.iter().find(|entry| entry.key == "name")?.value.value {
        Value::Text(name) => Some(name),
        _ => None,
    }
}

/// A step that says nothing.
fn blank(node: &Node, platforms: &[Platform]) -> Step {
    Step {
        at: node.at,
        // Stands in only until the problem that is reported for it ends the reading.
        name: "unnamed".parse().expect("a valid name"),
        description: String::new(),
        platforms: platforms.to_vec(),
        variants: vec![matrix::none()],
        image: Image::Unread,
        script: Script::Unread,
        env: Vec::new(),
        needs: Vec::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        outputs_unsure: false,
        commit: false,
        resources: Capacity {
            cpu_millis: CPU_DEFAULT_MILLIS,
            memory_bytes: MEMORY_DEFAULT_BYTES,
            disk_bytes: DISK_DEFAULT_BYTES,
            slots: 1,
        },
        timeout_secs: TIMEOUT_DEFAULT_SECS,
        silence_timeout_secs: 0,
        lease_ttl_secs: LEASE_TTL_DEFAULT_SECS,
        retries: 0,
        privileged: false,
        devices: Vec::new(),
        capabilities: Vec::new(),
        host_paths: Vec::new(),
        secrets: Vec::new(),
        network_none: false,
        placing: Placing::default(),
    }
}

impl Reader<'_> {
    fn name(&mut self, fields: &Fields<'_>, what: &str) -> Option<StepName> {
        let Some(node) = fields.get("name") else {
            self.problems.add_help(fields.at, format!("{what} has no `name`"), "write `name: my-step`");
            return None;
        };
        let parse = |text: &str| text.parse().map_err(|error: BadId| error.expected.to_owned());
        self.parsed(node, "the step's name", parse)
    }

    fn image(&mut self, fields: &Fields<'_>, what: &str) -> Image {
        const FORMS: &str = "write a registry reference such as `debian:bookworm`, `{ step: NAME }` for the image that \
            a step committed, or `{ import: NAME, artifact: FILE }` for a root tarball; with `build: PIPELINE/VERSION` beside it, of another build";
        let Some(node) = fields.get("image") else {
            self.problems.add_help(fields.at, format!("{what} has no `image`"), FORMS);
            return Image::Unread;
        };
        if matches!(node.value, Value::Text(_)) {
            return self.template(node, "`image`").map_or(Image::Unread, Image::Registry);
        }
        if matches!(node.value, Value::List(_)) {
            self.problems.add_help(node.at, "expected `image` to be a text or a map, found a list", FORMS);
            return Image::Unread;
        }
        let Some(image) = self.fields(node, "`image`", &IMAGE_FIELDS) else { return Image::Unread };
        match (image.get("step"), image.get("import"), image.get("artifact")) {
            (Some(step), None, None) => self.origin(&image, step, "`image: step`").map_or(Image::Unread, Image::Step),
            (None, Some(import), Some(artifact)) => {
                let from = self.origin(&image, import, "`image: import`");
                let artifact = self.template(artifact, "`artifact`");
                from.zip(artifact).map_or(Image::Unread, |(from, artifact)| Image::Import(from, artifact))
            }
            (None, Some(_), None) => {
                self.problems.add_help(node.at, "`image` has `import` but no `artifact`", FORMS);
                Image::Unread
            }
            _ => {
                self.problems.add_help(node.at, "`image` needs either `step`, or `import` and `artifact`", FORMS);
                Image::Unread
            }
        }
    }

    fn script(&mut self, fields: &Fields<'_>, what: &str) -> Script {
        const FORMS: &str = "write `script: |` and the commands below it, or `script: { file: steps/my-step.sh }`";
        let Some(node) = fields.get("script") else {
            self.problems.add_help(fields.at, format!("{what} has no `script`"), FORMS);
            return Script::Unread;
        };
        match &node.value {
            Value::Text(text) if text.trim().is_empty() => {
                self.problems.add_help(node.at, "the script is empty", FORMS);
                Script::Unread
            }
            Value::Text(text) if text.len() > SCRIPT_MAX_BYTES => {
                let message = format!("the script has {} bytes; at most {SCRIPT_MAX_BYTES} are allowed", text.len());
                self.problems.add_help(node.at, message, "bring large data in as an artifact");
                // Read only for what it uses, so that those parameters do not count as unused.
                let _ = self.template(node, "`script`");
                Script::Unread
            }
            Value::Text(_) => self.template(node, "`script`").map_or(Script::Unread, Script::Inline),
            Value::Map(_) => self.script_file(node).map_or(Script::Unread, Script::File),
            other => {
                let message = format!("expected `script` to be a text or a map, found {}", other.kind());
                self.problems.add_help(node.at, message, FORMS);
                Script::Unread
            }
        }
    }

    fn script_file(&mut self, node: &Node) -> Option<String> {
        let fields = self.fields(node, "`script`", &["file"])?;
        let Some(file) = fields.get("file") else {
            self.problems.add(fields.at, "`script` names no `file`");
            return None;
        };
        let path = self.text(file, "`file`")?;
        if let Err(error) = path.parse::<RelPath>() {
            let message = format!("{} is not a usable path: {}", quote(path), error.why);
            self.problems.add_help(file.at, message, "script files lie beside the pipeline file or below");
            return None;
        }
        let Some(text) = self.files.get(path) else {
            let known: Vec<&str> = self.files.keys().map(String::as_str).collect();
            let message = format!("there is no script file {} beside the pipeline file", quote(path));
            self.problems.add_unknown(file.at, message, path, "files", &known);
            return None;
        };
        let fault = if text.trim().is_empty() {
            Some("it is empty".to_owned())
        } else if text.len() > SCRIPT_MAX_BYTES {
            Some(format!("it has {} bytes; at most {SCRIPT_MAX_BYTES} are allowed", text.len()))
        } else if text.contains('\0') {
            Some("it has a NUL character, so it is not a text".to_owned())
        } else {
            None
        };
        if let Some(fault) = fault {
            self.problems.add(file.at, format!("script file {} cannot be used: {fault}", quote(path)));
            return None;
        }
        Some(text.clone())
    }

    fn env(&mut self, node: &Node) -> Vec<(String, Template)> {
        let mut env = Vec::new();
        for entry in self.map(node, "`env`", STEP_LIST_MAX) {
            if !values::is_env_name(&entry.key) {
                let message = format!("{} is not the name of an environment variable", quote(&entry.key));
                self.problems.add_help(entry.at, message, "expected letters, digits and _, not starting with a digit");
            } else if entry.key.starts_with("RAILYARD_") {
                let message = format!("{} is set by the farm", quote(&entry.key));
                self.problems.add_help(entry.at, message, "names that start with RAILYARD_ are reserved");
            }
            if let Some(value) = self.template(&entry.value, &format!("the value of {}", quote(&entry.key))) {
                env.push((entry.key.clone(), value));
            }
        }
        env
    }

    fn needs(&mut self, node: &Node) -> Vec<Dependency> {
        let mut seen = std::collections::BTreeSet::new();
        let mut needs = Vec::new();
        for (text, item) in self.texts(node, "`needs`") {
            if !seen.insert(text) {
                self.problems.add(item.at, format!("{} stands in `needs` twice", quote(text)));
            }
            needs.extend(self.dependency(item, "an entry of `needs`"));
        }
        needs
    }

    /// A step of this pipeline, or of the build that stands beside it.
    fn origin(&mut self, fields: &Fields<'_>, step: &Node, what: &str) -> Option<Origin> {
        let Some(build) = fields.get("build") else { return self.dependency(step, what).map(Origin::Step) };
        let build = self.template(build, "`build`");
        let text = self.text(step, what)?;
        let (name, variant, platform) = split(text);
        let name = match name.parse::<StepName>() {
            Ok(name) => name,
            Err(BadId { text, expected, .. }) => {
                self.problems.add(step.at, format!("{what}: expected {expected}, found {}", quote(&text)));
                return None;
            }
        };
        let (variant, platform) = self.variant_and_platform(step, variant, platform)?;
        Some(Origin::Build(OfBuild { build: build?, at: step.at, step: name, variant, platform }))
    }

    /// `STEP[.VARIANT][@PLATFORM]`. Whether that variant and platform exist is checked when all steps are read.
    fn dependency(&mut self, node: &Node, what: &str) -> Option<Dependency> {
        let text = self.text(node, what)?;
        let (name, variant, platform) = split(text);
        let Some(&step) = self.steps.get(name) else {
            let known: Vec<&str> = self.steps.keys().map(String::as_str).collect();
            let message = format!("{what} names {}, but there is no such step", quote(name));
            self.problems.add_unknown(node.at, message, name, "steps", &known);
            return None;
        };
        let (variant, platform) = self.variant_and_platform(node, variant, platform)?;
        Some(Dependency { at: node.at, step, variant, platform })
    }

    fn variant_and_platform(
        &mut self,
        node: &Node,
        variant: Option<&str>,
        platform: Option<&str>,
    ) -> Option<(Option<Variant>, Option<Platform>)> {
        let platform = match platform.map(str::parse::<Platform>) {
            Some(Err(error)) => {
                let names = quote_choice(Platform::ALL.map(Platform::as_str));
                self.problems.add(node.at, format!("{} is not a platform: expected {names}", quote(&error.0)));
                return None;
            }
            Some(Ok(platform)) => Some(platform),
            None => None,
        };
        let variant = match variant.map(str::parse::<Variant>) {
            Some(Err(error)) => {
                self.problems
                    .add(node.at, format!("{} is not a variant: expected {}", quote(&error.text), error.expected));
                return None;
            }
            Some(Ok(variant)) => Some(variant),
            None => None,
        };
        Some((variant, platform))
    }

    fn inputs(&mut self, node: &Node) -> Vec<Input> {
        let items = self.list(node, "`inputs`", STEP_LIST_MAX);
        items.iter().filter_map(|item| self.input(item)).collect()
    }

    fn input(&mut self, node: &Node) -> Option<Input> {
        let fields = self.fields(node, "an input", &INPUT_FIELDS)?;
        let from = match fields.get("step") {
            Some(step) => self.origin(&fields, step, "the input's `step`"),
            None => {
                self.problems.add_help(fields.at, "the input names no `step`", "write `- step: NAME`");
                None
            }
        };
        let artifacts = match fields.get("artifacts") {
            Some(list) => {
                let items = self.list(list, "`artifacts`", STEP_LIST_MAX);
                if items.is_empty() && matches!(list.value, Value::List(_)) {
                    let help = "leave it out for all artifacts of the step";
                    self.problems.add_help(list.at, "`artifacts` is empty", help);
                }
                items.iter().filter_map(|item| self.template(item, "an entry of `artifacts`")).collect()
            }
            None => vec![Template::literal(node.at, "**")],
        };
        let path = fields.get("path").map(|path| self.template(path, "the input's `path`"));
        let from = from?;
        let path = match path {
            Some(path) => path?,
            None => {
                let (at, step) = match &from {
                    Origin::Step(from) => {
                        let step = self.steps.iter().find(|(_, index)| **index == from.step);
                        (from.at, step.map_or("", |(name, _)| name.as_str()))
                    }
                    Origin::Build(from) => (from.at, from.step.as_str()),
                };
                Template::literal(at, &format!("/inputs/{step}"))
            }
        };
        Some(Input { from, artifacts, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field is either in the reference or not in the format.
    #[test]
    fn every_field_is_documented() {
        let reference = include_str!("../../../docs/pipeline.md");
        let rows: Vec<&str> =
            reference.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        let nested = |parent: &str, fields: &[&str]| fields.iter().map(|f| format!("{parent}.{f}")).collect::<Vec<_>>();
        let fields = [
            FIELDS.map(str::to_owned).to_vec(),
            crate::pipeline::read::FIELDS.map(str::to_owned).to_vec(),
            nested("params.NAME", &crate::pipeline::read::PARAM_FIELDS),
            nested("image", &IMAGE_FIELDS),
            nested("inputs", &INPUT_FIELDS),
            nested("outputs", &crate::pipeline::read_outputs::OUTPUT_FIELDS),
            nested("resources", &crate::pipeline::read_container::RESOURCE_FIELDS),
            nested("concurrency", &crate::pipeline::read_placing::CONCURRENCY_FIELDS),
        ];
        for field in fields.concat() {
            assert!(rows.contains(&field.as_str()), "docs/pipeline.md has no row for `{field}`");
        }
    }
}
