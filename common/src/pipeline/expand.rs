//! Fills in the places of every job and checks what comes out.
//!
//! The same code serves a build and the check of the file alone. For the check, parameters without a default have no
//! value, and what depends on them is skipped.

use super::diagnostic::{Position, Problems, quote, quote_choice};
use super::expand_builds::Uses;
use super::expand_placing::Placing;
use super::jobs::Key;
use super::limits::{PLAN_MAX_FILLED_BYTES, PLAN_MAX_TEXT_BYTES, SCRIPT_MAX_BYTES, VALUE_MAX_BYTES};
use super::model::{Image, Input, Origin, Pipeline, Script, Step};
use super::template::{Name, Scope, Template, Unrendered};
use super::values::is_image_reference;
use crate::build_ref::UsedBuilds;
use crate::compress::Compress;
use crate::id::{ChannelName, JobName};
use crate::job::{ImageSource, InputSpec, JobSpec, OutputSpec, RunSpec};
use crate::path::{BadGlob, Glob, RelPath};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Directories of the container that inputs must leave alone: the farm's and the kernel's.
pub(super) const RESERVED_MOUNTS: [&str; 6] = ["/work", "/railyard", "/run/secrets", "/proc", "/sys", "/dev"];

pub(super) struct Expander<'a> {
    pub pipeline: &'a Pipeline,
    pub version: &'a str,
    /// The build's.
    pub channel: ChannelName,
    /// `None`: not known while checking.
    pub params: &'a BTreeMap<String, Option<Template>>,
    pub problems: &'a mut Problems,
    /// Which other builds are meant; `None`: not known while checking.
    pub builds: Option<&'a UsedBuilds>,
    pub(super) uses: Uses,
    /// Places that have been reported: every job of a step would report them again.
    blamed: BTreeSet<Position>,
    /// Outputs by job; `None` where one is not known.
    pub(super) outputs: BTreeMap<Key, Vec<Option<OutputSpec>>>,
    /// Which pairs of globs could meet: the jobs of a step ask for the same ones, and a matcher costs far more to make.
    pub(super) met: BTreeMap<(Glob, Glob, Compress), bool>,
    pub(super) text_bytes: usize,
    /// Towards [`PLAN_MAX_FILLED_BYTES`].
    filled_bytes: usize,
}

impl<'a> Expander<'a> {
    pub fn new(
        pipeline: &'a Pipeline,
        version: &'a str,
        params: &'a BTreeMap<String, Option<Template>>,
        problems: &'a mut Problems,
    ) -> Self {
        let (blamed, outputs, met) = (BTreeSet::new(), BTreeMap::new(), BTreeMap::new());
        let channel = ChannelName::usual().clone();
        let (builds, uses) = (None, Uses::default());
        let (text_bytes, filled_bytes) = (0, 0);
        Self {
            pipeline,
            version,
            channel,
            params,
            problems,
            builds,
            uses,
            blamed,
            outputs,
            met,
            text_bytes,
            filled_bytes,
        }
    }

    /// The jobs of `keys`, in their order. A job is left out where it has a problem or an unknown value.
    pub fn jobs(&mut self, keys: &BTreeSet<Key>) -> Vec<JobSpec> {
        for &key in keys {
            let step = &self.pipeline.steps[key.step];
            let outputs = step.outputs.iter().map(|output| self.output(output, key)).collect();
            self.outputs.insert(key, outputs);
        }
        self.check_artifacts();
        self.check_published();
        let mut jobs = Vec::new();
        for &key in keys {
            jobs.extend(self.job(key));
            if self.text_bytes > PLAN_MAX_TEXT_BYTES {
                let message =
                    format!("scripts and environments of all jobs have more than {PLAN_MAX_TEXT_BYTES} bytes together");
                self.problems.add(self.pipeline.steps[key.step].at, message);
                break;
            }
        }
        jobs
    }

    fn job(&mut self, key: Key) -> Option<JobSpec> {
        let pipeline = self.pipeline;
        let step = &pipeline.steps[key.step];
        let image = self.image(step, key);
        let inputs = self.inputs(step, key);
        let script = self.script(&step.script, key);
        let env = self.env(step, key);
        let placing = self.placing(step, key);
        let outputs: Option<Vec<OutputSpec>> = self.outputs.get(&key)?.iter().cloned().collect();
        let needs: BTreeSet<JobName> = step
            .dependencies()
            .flat_map(|dependency| pipeline.targets(dependency, key))
            .map(|needed| pipeline.job_name(needed))
            .collect();
        let Placing { approval, concurrency, pool, labels } = placing?;
        Some(JobSpec {
            name: pipeline.job_name(key),
            needs: needs.into_iter().collect(),
            image: image?,
            inputs: inputs?,
            lease_ttl_secs: step.lease_ttl_secs,
            retries: step.retries,
            approval,
            concurrency,
            pool,
            labels,
            run: Arc::new(RunSpec {
                script: script?,
                env: env?,
                outputs: outputs?,
                commit: step.commit,
                resources: step.resources,
                timeout_secs: step.timeout_secs,
                silence_timeout_secs: step.silence_timeout_secs,
                privileged: step.privileged,
                devices: step.devices.clone(),
                capabilities: step.capabilities.clone(),
                network_none: step.network_none,
                host_paths: step.host_paths.clone(),
                secrets: step.secrets.clone(),
            }),
        })
    }

    /// What job `key` knows, in a build for `channel`.
    pub(super) fn scope<'s>(&'s self, key: Key, channel: &'s str) -> Scope<'s> {
        let step = &self.pipeline.steps[key.step];
        Scope {
            pipeline: self.pipeline.name.as_str(),
            version: self.version,
            channel,
            step: step.name.as_str(),
            platform: key.platform,
            matrix: step.variants.get(key.variant).map_or(&[], |variant| &variant.values),
            params: self.params,
        }
    }

    /// The text of `template` for job `key`; `None` if it is not known or too long, the latter reported.
    pub(super) fn render(&mut self, template: &Template, key: Key, max_bytes: usize) -> Option<String> {
        let channel = self.channel.clone();
        match self.render_for(template, key, channel.as_str(), max_bytes) {
            Ok(text) => Some(text),
            Err(Unrendered::Unknown) => None,
            Err(Unrendered::TooLong) => {
                self.blame(template, format!("the text has more than {max_bytes} bytes"), None);
                None
            }
        }
    }

    /// The text of `template` for job `key` in a build for `channel`, as long as not too much was written already.
    pub(super) fn render_for(
        &mut self,
        template: &Template,
        key: Key,
        channel: &str,
        max_bytes: usize,
    ) -> Result<String, Unrendered> {
        if self.filled_bytes > PLAN_MAX_FILLED_BYTES {
            return Err(Unrendered::Unknown);
        }
        let (text, cost) = template.render(&self.scope(key, channel), max_bytes);
        self.filled_bytes += cost;
        if self.filled_bytes > PLAN_MAX_FILLED_BYTES {
            let message = "the jobs have too many places to fill in, or too much text around them".to_owned();
            let help = "use fewer places, or fewer jobs; a script can compute what it needs";
            self.blame_at(self.pipeline.steps_at, message, help.to_owned());
        }
        text
    }

    /// Reports what is wrong at a place, once.
    pub(super) fn blame_at(&mut self, at: Position, message: String, help: String) {
        if self.blamed.insert(at) {
            self.problems.add_help(at, message, help);
        }
    }

    /// Reports what is wrong with the filled-in `template`, once.
    pub(super) fn blame(&mut self, template: &Template, message: String, help: Option<String>) {
        let at = template.blame();
        if !self.blamed.insert(at) {
            return;
        }
        let params: BTreeSet<&str> = template
            .uses()
            .filter_map(|(name, _)| match name {
                Name::Param(param) => Some(param.as_str()),
                _ => None,
            })
            .collect();
        let values = (!params.is_empty()).then(|| format!("look at the value of parameter {}", quote_choice(params)));
        match help.into_iter().chain(values).collect::<Vec<_>>().join("; ") {
            help if help.is_empty() => self.problems.add(at, message),
            help => self.problems.add_help(at, message, help),
        }
    }

    pub(super) fn glob(&mut self, template: &Template, key: Key) -> Option<Glob> {
        let text = self.render(template, key, VALUE_MAX_BYTES)?;
        match text.parse::<Glob>() {
            Ok(glob) => Some(glob),
            Err(BadGlob::Path(error)) => {
                let message = format!("{} is not a usable path: {}", quote(&error.text), error.why);
                self.blame(template, message, None);
                None
            }
            Err(BadGlob::Syntax { text, why }) => {
                self.blame(template, format!("{} is not a glob: {why}", quote(&text)), None);
                None
            }
        }
    }

    fn image(&mut self, step: &Step, key: Key) -> Option<ImageSource> {
        let pipeline = self.pipeline;
        match &step.image {
            Image::Unread => None,
            Image::Registry(template) => {
                let text = self.render(template, key, VALUE_MAX_BYTES)?;
                if !is_image_reference(&text) {
                    let message =
                        format!("{} is not an image reference: expected a form like `debian:bookworm`", quote(&text));
                    self.blame(template, message, None);
                    return None;
                }
                Some(ImageSource::Registry(text))
            }
            Image::Step(Origin::Step(from)) => {
                let target = pipeline.targets(from, key).next()?;
                Some(ImageSource::Job(pipeline.job_name(target)))
            }
            Image::Step(Origin::Build(of)) => {
                let (build, job) = self.image_of_build(of, key)?;
                Some(ImageSource::Build { build, job })
            }
            Image::Import(Origin::Step(from), artifact) => {
                let glob = self.glob(artifact, key)?;
                let target = pipeline.targets(from, key).next()?;
                self.check_leaves(&[target], &glob, artifact);
                Some(ImageSource::Import { build: None, job: pipeline.job_name(target), artifact: glob })
            }
            Image::Import(Origin::Build(of), artifact) => {
                let glob = self.glob(artifact, key)?;
                let (build, job) = self.import_of_build(of, &glob, artifact, key)?;
                Some(ImageSource::Import { build: Some(build), job, artifact: glob })
            }
        }
    }

    fn inputs(&mut self, step: &Step, key: Key) -> Option<Vec<InputSpec>> {
        let mut specs: Option<Vec<InputSpec>> = Some(Vec::new());
        let mut mounts: Vec<(String, &Template)> = Vec::new();
        for input in &step.inputs {
            match self.input(input, key) {
                Some(more) => {
                    mounts.extend(more.iter().map(|spec| (format!("{}/", spec.mount_path), &input.path)));
                    if let Some(specs) = specs.as_mut() {
                        specs.extend(more);
                    }
                }
                None => specs = None,
            }
        }
        // With a `/` behind each, a path sorts right before what lies below it.
        mounts.sort_by(|a, b| a.0.cmp(&b.0));
        for pair in mounts.windows(2) {
            let ((upper, _), (lower, template)) = (&pair[0], &pair[1]);
            if lower.starts_with(upper.as_str()) {
                let (upper, lower) = (quote(upper.trim_end_matches('/')), quote(lower.trim_end_matches('/')));
                let message = match upper == lower {
                    true => format!("two inputs are mounted at {lower}"),
                    false => format!("the input at {lower} lies inside of the input at {upper}"),
                };
                self.blame(template, message, Some("give one of them a `path` of its own".to_owned()));
            }
        }
        specs
    }

    /// One mount for each job that the input means. Of a matrix, a glob is asked only of the variants that could
    /// leave what it matches, and a variant that is asked for nothing is not mounted.
    fn input(&mut self, input: &Input, key: Key) -> Option<Vec<InputSpec>> {
        let pipeline = self.pipeline;
        let path = self.mount_path(&input.path, key);
        let globs: Vec<Option<Glob>> = input.artifacts.iter().map(|artifact| self.glob(artifact, key)).collect();
        let from = match &input.from {
            Origin::Step(from) => from,
            Origin::Build(of) => {
                let globs = globs.into_iter().zip(&input.artifacts).map(|(glob, template)| Some((glob?, template)));
                return self.inputs_of_build(of, &globs.collect::<Option<Vec<_>>>()?, &path?, key);
            }
        };
        let targets: Vec<Key> = pipeline.targets(from, key).collect();
        for (glob, template) in globs.iter().zip(&input.artifacts) {
            if let Some(glob) = glob {
                self.check_leaves(&targets, glob, template);
            }
        }
        let (path, globs) = (path?, globs.into_iter().collect::<Option<Vec<Glob>>>()?);
        let mut specs = Vec::new();
        for target in targets {
            let artifacts: Vec<Glob> = globs.iter().filter(|glob| self.could_leave(target, glob)).cloned().collect();
            if artifacts.is_empty() {
                continue;
            }
            let job = pipeline.job_name(target);
            let mount_path = match &job.variant {
                Some(variant) => format!("{path}/{variant}"),
                None => path.clone(),
            };
            specs.push(InputSpec { build: None, job, artifacts, mount_path });
        }
        Some(specs)
    }

    fn mount_path(&mut self, template: &Template, key: Key) -> Option<String> {
        let text = self.render(template, key, VALUE_MAX_BYTES)?;
        let fault = match text.strip_prefix('/') {
            None => Some("it is not absolute".to_owned()),
            Some("") => Some("it is the root".to_owned()),
            Some(rest) => rest.parse::<RelPath>().err().map(|error| error.why.to_owned()),
        };
        let inside = |outer: &str, inner: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let reserved = RESERVED_MOUNTS.iter().find(|reserved| inside(reserved, &text) || inside(&text, reserved));
        let fault = fault.or_else(|| reserved.map(|reserved| format!("`{reserved}` is not for inputs")));
        if let Some(fault) = fault {
            let message = format!("an input cannot be mounted at {}: {fault}", quote(&text));
            self.blame(template, message, Some("expected a path such as `/inputs/image`".to_owned()));
            return None;
        }
        Some(text)
    }

    fn script(&mut self, script: &Script, key: Key) -> Option<String> {
        let text = match script {
            Script::Unread => return None,
            Script::File(text) => text.clone(),
            Script::Inline(template) => {
                let text = self.render(template, key, SCRIPT_MAX_BYTES)?;
                if text.trim().is_empty() {
                    self.blame(template, "the script is empty once it is filled in".to_owned(), None);
                    return None;
                }
                text
            }
        };
        self.text_bytes += text.len();
        Some(text)
    }

    fn env(&mut self, step: &Step, key: Key) -> Option<BTreeMap<String, String>> {
        let mut env = BTreeMap::new();
        let mut complete = true;
        for (name, template) in &step.env {
            match self.render(template, key, VALUE_MAX_BYTES) {
                Some(value) => {
                    self.text_bytes += value.len();
                    env.insert(name.clone(), value);
                }
                None => complete = false,
            }
        }
        for (name, value) in step.variants.get(key.variant).map_or(&[][..], |variant| &variant.values) {
            env.insert(format!("RAILYARD_MATRIX_{}", name.to_ascii_uppercase()), value.clone());
        }
        complete.then_some(env)
    }
}
