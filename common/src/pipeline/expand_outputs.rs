//! What jobs leave: the outputs of each, and whether what others ask for can be among them.

use super::diagnostic::{quote, quote_list};
use super::expand::Expander;
use super::globs::{could_match, is_literal};
use super::jobs::Key;
use super::limits::VALUE_MAX_BYTES;
use super::model::Output;
use super::template::Template;
use crate::by_channel::ByChannel;
use crate::job::OutputSpec;
use crate::layout::{SUMS, is_publishable};
use crate::path::{Glob, RelPath};
use std::collections::{BTreeMap, BTreeSet};

impl Expander<'_> {
    pub(super) fn output(&mut self, output: &Output, key: Key) -> Option<OutputSpec> {
        let glob = self.glob(&output.path, key);
        let (publish, publish_by_channel) = match &output.publish {
            None => (None, None),
            Some(template) => {
                let text = self.render(template, key, VALUE_MAX_BYTES)?;
                (Some(self.publish(template, &text)?), self.by_channel(template, key))
            }
        };
        Some(OutputSpec {
            glob: glob?,
            publish,
            publish_by_channel,
            optional: output.optional,
            compress: output.compress,
        })
    }

    /// The directory with the channel left open, if it is a part of it: wherever, also in a parameter.
    fn by_channel(&mut self, template: &Template, key: Key) -> Option<ByChannel> {
        // No path has this character, as was seen when it was rendered for the build's own channel.
        const OPEN: char = '\0';
        let text = self.render_for(template, key, OPEN.encode_utf8(&mut [0]), VALUE_MAX_BYTES).ok()?;
        ByChannel::new(text.split(OPEN).map(str::to_owned).collect()).ok()
    }

    fn publish(&mut self, template: &Template, text: &str) -> Option<RelPath> {
        let path = match text.parse::<RelPath>() {
            Ok(path) => path,
            Err(error) => {
                let message = format!("cannot publish into {}: {}", quote(text), error.why);
                self.blame(template, message, None);
                return None;
            }
        };
        if !is_publishable(&path) || path.file_name() == SUMS {
            let reserved = quote_list(crate::layout::RESERVED);
            let help = format!("the farm keeps {reserved}, names that start with `.`, and `{SUMS}` for itself");
            self.blame(template, format!("cannot publish into {}", quote(text)), Some(help));
            return None;
        }
        Some(path)
    }

    /// No two outputs of a job may leave different files under one name, as far as the names are known before the build.
    pub(super) fn check_artifacts(&mut self) {
        let mut clashes = Vec::new();
        for (key, outputs) in &self.outputs {
            let mut left: BTreeMap<String, &OutputSpec> = BTreeMap::new();
            for (output, template) in outputs.iter().zip(&self.pipeline.steps[key.step].outputs) {
                let Some(output) = output.as_ref().filter(|output| is_literal(&output.glob)) else { continue };
                let name = format!("{}{}", output.glob, output.compress.suffix());
                let other = *left.entry(name.clone()).or_insert(output);
                let same = other.compress == output.compress || output.compress.suffix().is_empty();
                if other.glob != output.glob || !same {
                    clashes.push((&template.path, name));
                }
            }
        }
        for (template, name) in clashes {
            let help = "write the file under another name, or leave one of the outputs out";
            self.blame(template, format!("two outputs would both be {}", quote(&name)), Some(help.to_owned()));
        }
    }

    /// No two outputs may publish the same path, as far as the paths are known before the build.
    pub(super) fn check_published(&mut self) {
        let mut published: BTreeMap<String, Key> = BTreeMap::new();
        let mut clashes = Vec::new();
        for (&key, outputs) in &self.outputs {
            let templates = &self.pipeline.steps[key.step].outputs;
            for (output, template) in outputs.iter().zip(templates) {
                let Some(OutputSpec { glob, publish: Some(directory), compress, .. }) = output else { continue };
                let Some(template) = template.publish.as_ref().filter(|_| is_literal(glob)) else { continue };
                let name = glob.as_str().rsplit('/').next().unwrap_or_default();
                let path = format!("{directory}/{name}{}", compress.suffix());
                match published.get(&path) {
                    Some(&other) => clashes.push((template, path, other, key)),
                    None => drop(published.insert(path, key)),
                }
            }
        }
        for (template, path, other, key) in clashes {
            let (one, two) = (self.pipeline.job_name(other), self.pipeline.job_name(key));
            let message = match one == two {
                true => format!("job `{one}` publishes {} twice", quote(&path)),
                false => format!("jobs `{one}` and `{two}` both publish {}", quote(&path)),
            };
            let help = "put what tells them apart into `publish`, for instance `{{ arch }}` or `{{ matrix.KEY }}`";
            self.blame(template, message, Some(help.to_owned()));
        }
    }

    /// Whether job `target` could leave an artifact that `glob` matches; `true` where nobody can know.
    pub(super) fn could_leave(&mut self, target: Key, glob: &Glob) -> bool {
        let unsure = self.pipeline.steps[target.step].outputs_unsure;
        let Some(outputs) = self.outputs.get(&target).filter(|_| !unsure) else { return true };
        let met = &mut self.met;
        let mut meets = |output: &OutputSpec| {
            let key = (glob.clone(), output.glob.clone(), output.compress);
            *met.entry(key).or_insert_with(|| could_match(glob, output))
        };
        outputs.iter().any(|output| output.as_ref().is_none_or(&mut meets))
    }

    /// Reports it if none of `targets`, jobs of one step, could leave what `glob` asks for.
    pub(super) fn check_leaves(&mut self, targets: &[Key], glob: &Glob, template: &Template) {
        if targets.is_empty() || targets.iter().any(|&target| self.could_leave(target, glob)) {
            return;
        }
        let globs: BTreeSet<String> = targets
            .iter()
            .filter_map(|target| self.outputs.get(target))
            .flatten()
            .filter_map(|output| output.as_ref().map(|output| format!("{}{}", output.glob, output.compress.suffix())))
            .collect();
        let name = &self.pipeline.steps[targets[0].step].name;
        let (message, help) = if globs.is_empty() {
            (format!("step `{name}` leaves no artifacts"), format!("add `outputs` to step `{name}`"))
        } else {
            let message = format!("no output of step `{name}` can match {}", quote(glob.as_str()));
            (message, format!("the outputs of step `{name}`: {}", quote_list(globs)))
        };
        self.blame(template, message, Some(help));
    }
}
