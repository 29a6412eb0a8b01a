//! The pipeline file: parsing, checking, expanding.
//!
//! ```text
//! text ─ yaml ─► tree ─ read ─► Pipeline ─ check ─► checked ─ plan ─► Plan
//!        all problems of a stage are collected; each has its file:line:column
//! ```
//!
//! **Invariant:** nothing here panics, whatever the text; every dimension of a file has a limit in [`limits`].

mod check;
mod diagnostic;
mod expand;
mod expand_builds;
mod expand_outputs;
mod expand_placing;
mod globs;
mod jobs;
pub mod limits;
mod matrix;
mod model;
mod read;
mod read_container;
mod read_outputs;
mod read_placing;
mod read_secrets;
mod read_step;
mod reader;
mod suggest;
mod summary;
mod template;
mod values;
mod yaml;

pub use diagnostic::Diagnostic;
pub use model::Pipeline;
pub use summary::{ParamSummary, StepSummary, Summary};

use crate::build_ref::{UsedBuilds, WantedBuilds};
use crate::id::{BuildId, ChannelName, PipelineName, Version};
use crate::plan::Plan;
use crate::platform::Platform;
use diagnostic::{Position, Problems, quote, quote_list};
use expand::Expander;
use limits::{JOBS_MAX, PLAN_MAX_PARTS, VALUE_MAX_BYTES};
use std::collections::{BTreeMap, BTreeSet};
use template::{BUILT_IN, Template};
use yaml::{Node, Value};

/// A pipeline file and the script files that it names.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// For messages.
    pub file_name: &'a str,
    /// Its text.
    pub text: &'a str,
    /// The scripts of `script: { file: … }`, by the path written there. See [`script_files`].
    pub files: &'a BTreeMap<String, String>,
}

/// What a build is asked to be.
#[derive(Clone, Debug)]
pub struct Request {
    /// The build's version.
    pub version: Version,
    /// Values of parameters.
    pub params: BTreeMap<String, String>,
    /// Empty: the pipeline's default platforms.
    pub platforms: Vec<Platform>,
    /// The channel that it is for; `None`: what the pipeline says.
    pub channel: Option<ChannelName>,
    /// What became of the builds that [`Pipeline::wanted_builds`] names for this request.
    pub builds: UsedBuilds,
}

impl Request {
    /// As the pipeline says, under that version.
    pub fn of(version: Version) -> Self {
        Self { version, params: BTreeMap::new(), platforms: Vec::new(), channel: None, builds: UsedBuilds::new() }
    }
}

/// The paths of `script: { file: … }` in a pipeline file: relative, as written, each once.
/// Paths that no script file may have are left out; [`Pipeline::parse`] reports them.
///
/// # Errors
/// The file is not YAML or too large.
pub fn script_files(source_text: &str, file_name: &str) -> Result<Vec<String>, Vec<Diagnostic>> {
    let mut problems = Problems::new(file_name);
    let Some(root) = yaml::parse(source_text, &mut problems) else { return Err(problems.into_list()) };
    let steps = match field(&root, "steps").map(|node| &node.value) {
        Some(Value::List(steps)) => steps.as_slice(),
        _ => &[],
    };
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    for file in steps.iter().filter_map(|step| field(field(step, "script")?, "file")) {
        if let Value::Text(path) = &file.value
            && path.parse::<crate::path::RelPath>().is_ok()
            && seen.insert(path)
        {
            files.push(path.clone());
        }
    }
    Ok(files)
}

fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Value::Map(entries) = &node.value else { return None };
    entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
}

impl Pipeline {
    /// Reads and checks a pipeline file.
    ///
    /// # Errors
    /// All problems of the file, by line.
    pub fn parse(source: &Source<'_>) -> Result<Self, Vec<Diagnostic>> {
        let mut problems = Problems::new(source.file_name);
        let Some(root) = yaml::parse(source.text, &mut problems) else { return Err(problems.into_list()) };
        let (pipeline, mut problems) = read::read(&root, source.text, source.file_name, source.files, problems);
        let Some(pipeline) = pipeline else { return Err(problems.into_list()) };
        check::check(&pipeline, &mut problems);
        pipeline.check_values(&mut problems);
        if problems.is_empty() { Ok(pipeline) } else { Err(problems.into_list()) }
    }

    /// Expands every job with the defaults of the parameters, only to see whether that gives valid values.
    fn check_values(&self, problems: &mut Problems) {
        let (jobs, parts) = (self.job_count(), self.part_count());
        if jobs > JOBS_MAX {
            problems.add(self.steps_at, format!("the steps make {jobs} jobs; at most {JOBS_MAX} are allowed"));
            return;
        }
        if parts > PLAN_MAX_PARTS {
            let what = "dependencies, input globs and outputs together";
            problems.add(self.steps_at, format!("the jobs have {parts} {what}; at most {PLAN_MAX_PARTS} are allowed"));
            return;
        }
        let default = |param: &model::Param| param.default.as_ref().map(|(_, template)| template.clone());
        let params = self.params.iter().map(|param| (param.name.clone(), default(param))).collect();
        let keys = self.keys(&self.platforms);
        // Stands for any version, in messages too: it has the form of one.
        let mut expander = Expander::new(self, "version", &params, problems);
        expander.channel = expander.channel().unwrap_or_else(|| ChannelName::usual().clone());
        expander.supersede();
        expander.jobs(&keys);
    }

    /// The frozen plan of one build. Platforms that the requested ones need jobs of are added to them.
    ///
    /// # Errors
    /// Parameters or platforms that the pipeline does not have, parameters that are missing, values that make a field of a job
    /// invalid, and other builds that cannot be used; each points at the place in the file that it is about.
    pub fn plan(&self, request: &Request) -> Result<Plan, Vec<Diagnostic>> {
        let mut problems = Problems::new(&self.file);
        let plan = self.expanded(request, Some(&request.builds), &mut problems);
        if let Some(plan) = &plan
            && problems.is_empty()
            && plan.jobs.len() < self.keys(&self.requested_platforms(request, &mut problems)).len()
        {
            problems.add(Position::START, "a job has a value that is not known");
        }
        let plan = plan.filter(|_| problems.is_empty());
        let plan = plan.and_then(|plan| Some(Plan { jobs: jobs::in_order(plan.jobs)?, ..plan }));
        plan.ok_or_else(|| problems.into_list())
    }

    /// Checks all that can be known of a build without the farm: anything but what it takes from other builds.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub fn check_request(&self, request: &Request) -> Result<(), Vec<Diagnostic>> {
        let mut problems = Problems::new(&self.file);
        self.expanded(request, None, &mut problems);
        if problems.is_empty() { Ok(()) } else { Err(problems.into_list()) }
    }

    /// The other builds that a build takes images and artifacts from, as the file names them.
    pub fn wanted_builds(&self, request: &Request) -> WantedBuilds {
        if self.steps.iter().all(|step| step.foreign().next().is_none()) {
            return WantedBuilds::new();
        }
        // What is wrong is told when the plan is made.
        let mut problems = Problems::new(&self.file);
        let (_, params) = self.param_values(request, &mut problems);
        let keys = self.keys(&self.requested_platforms(request, &mut problems));
        let mut expander = Expander::new(self, request.version.as_str(), &params, &mut problems);
        let channel = request.channel.clone().or_else(|| expander.channel());
        expander.channel = channel.unwrap_or_else(|| ChannelName::usual().clone());
        expander.wanted_builds(&keys)
    }

    /// The plan, with its jobs in the order of the file; without those that have a problem or something that is not known.
    fn expanded(&self, request: &Request, builds: Option<&UsedBuilds>, problems: &mut Problems) -> Option<Plan> {
        let (values, params) = self.param_values(request, problems);
        let requested = self.requested_platforms(request, problems);
        let keys = self.keys(&requested);
        if keys.is_empty() && problems.is_empty() {
            let names = quote_list(requested.iter().map(|platform| platform.as_str()));
            problems.add(self.platforms_at, format!("no step of the pipeline runs on {names}"));
        }
        if !problems.is_empty() {
            return None;
        }
        let mut expander = Expander::new(self, request.version.as_str(), &params, problems);
        expander.builds = builds;
        let channel = request.channel.clone().or_else(|| expander.channel());
        let channel = channel.filter(|channel| channel != ChannelName::usual());
        expander.channel = channel.clone().unwrap_or_else(|| ChannelName::usual().clone());
        let (supersede, jobs) = (expander.supersede(), expander.jobs(&keys));
        let uses = expander.uses.builds.into_iter().collect();
        let needed: BTreeSet<Platform> = keys.iter().map(|key| key.platform).chain(requested).collect();
        Some(Plan {
            build: BuildId { pipeline: self.name.clone(), version: request.version.clone() },
            params: values,
            platforms: self.platforms.iter().copied().filter(|platform| needed.contains(platform)).collect(),
            untrusted: false,
            channel,
            supersede,
            uses,
            jobs,
        })
    }

    fn requested_platforms(&self, request: &Request, problems: &mut Problems) -> Vec<Platform> {
        if request.platforms.is_empty() {
            return self.default_platforms.clone();
        }
        let known = quote_list(self.platforms.iter().map(|platform| platform.as_str()));
        for platform in request.platforms.iter().filter(|platform| !self.platforms.contains(platform)) {
            let message = format!("`{platform}` was requested, but is not a platform of the pipeline");
            problems.add_help(self.platforms_at, message, format!("platforms: {known}"));
        }
        self.platforms.iter().copied().filter(|platform| request.platforms.contains(platform)).collect()
    }

    /// Every parameter's value as text and as a template.
    fn param_values(
        &self,
        request: &Request,
        problems: &mut Problems,
    ) -> (BTreeMap<String, String>, BTreeMap<String, Option<Template>>) {
        let known: Vec<&str> = self.params.iter().map(|param| param.name.as_str()).collect();
        for name in request.params.keys().filter(|name| !known.contains(&name.as_str())) {
            let message = format!("parameter {} was given, but the pipeline does not declare it", quote(name));
            problems.add_unknown(self.params_at, message, name, "parameters", &known);
        }
        let (mut values, mut templates) = (BTreeMap::new(), BTreeMap::new());
        for param in &self.params {
            let (text, template) = match (request.params.get(&param.name), &param.default) {
                (Some(given), _) => (given.clone(), given_value(param, given, problems)),
                (None, Some((text, template))) => (text.clone(), Some(template.clone())),
                (None, None) => {
                    let message = format!("parameter {} has no default and was not given", quote(&param.name));
                    problems.add_help(param.at, message, format!("give it with `--param {}=VALUE`", param.name));
                    continue;
                }
            };
            values.insert(param.name.clone(), text);
            templates.insert(param.name.clone(), template);
        }
        (values, templates)
    }
}

/// A value from outside of the file, if it is one; problems point at the parameter's declaration.
fn given_value(param: &model::Param, text: &str, problems: &mut Problems) -> Option<Template> {
    let (template, bad) = Template::parse(text, param.at, |_| param.at);
    let mut refuse = |why: String| {
        problems.add(param.at, format!("the value given for parameter {} is no good: {why}", quote(&param.name)));
    };
    if text.len() > VALUE_MAX_BYTES {
        refuse(format!("it has more than {VALUE_MAX_BYTES} bytes"));
    }
    if text.contains('\0') {
        refuse("it has a NUL character".to_owned());
    }
    bad.into_iter().for_each(|bad| refuse(bad.message));
    for (name, _) in template.uses_beyond_built_in() {
        refuse(format!("it uses `{name}`; it may use {}", quote_list(BUILT_IN)));
    }
    let is_value = text.len() <= VALUE_MAX_BYTES && template.uses_beyond_built_in().next().is_none();
    is_value.then_some(template)
}

impl Pipeline {
    /// Its name.
    pub fn name(&self) -> &PipelineName {
        &self.name
    }

    /// What it can build for.
    pub fn platforms(&self) -> &[Platform] {
        &self.platforms
    }

    /// What it builds for when nobody says otherwise.
    pub fn default_platforms(&self) -> &[Platform] {
        &self.default_platforms
    }
}
