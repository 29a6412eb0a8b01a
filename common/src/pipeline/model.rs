//! A pipeline that has been read: values are parsed, names are resolved, places are still to fill in.

use super::diagnostic::Position;
use super::template::Template;
use crate::compress::Compress;
use crate::id::{PipelineName, StepName, Variant};
use crate::job::{Capacity, Device, HostPath, SecretRef};
use crate::platform::Platform;

/// A checked pipeline.
///
/// **Invariant:** whatever does not depend on a parameter's value has been checked.
#[derive(Clone, Debug)]
pub struct Pipeline {
    pub(super) file: String,
    pub(super) name: PipelineName,
    pub(super) description: String,
    pub(super) platforms: Vec<Platform>,
    pub(super) platforms_at: Position,
    pub(super) default_platforms: Vec<Platform>,
    /// The pool of the steps that name none.
    pub(super) pool: Option<Template>,
    /// The channel that its builds are for, unless whoever submits one says otherwise.
    pub(super) channel: Option<Template>,
    /// A newer build of the same group cancels those that still wait.
    pub(super) supersede: Option<Template>,
    pub(super) params: Vec<Param>,
    pub(super) params_at: Position,
    pub(super) steps: Vec<Step>,
    pub(super) steps_at: Position,
}

/// A declared parameter.
#[derive(Clone, Debug)]
pub(super) struct Param {
    pub at: Position,
    pub name: String,
    pub description: String,
    /// As written, and read. Without one, every build must give a value.
    pub default: Option<(String, Template)>,
}

#[derive(Clone, Debug)]
pub(super) struct Step {
    pub at: Position,
    pub name: StepName,
    pub description: String,
    pub platforms: Vec<Platform>,
    /// One job each; one without a name where there is no matrix.
    pub variants: Vec<VariantSpec>,
    pub image: Image,
    pub script: Script,
    pub env: Vec<(String, Template)>,
    pub needs: Vec<Dependency>,
    pub inputs: Vec<Input>,
    pub outputs: Vec<Output>,
    /// Some output could not be read: nothing can be said about what the step leaves.
    pub outputs_unsure: bool,
    pub commit: bool,
    pub resources: Capacity,
    pub timeout_secs: u64,
    pub silence_timeout_secs: u64,
    pub lease_ttl_secs: u64,
    pub retries: u32,
    pub privileged: bool,
    pub devices: Vec<Device>,
    pub capabilities: Vec<String>,
    pub host_paths: Vec<HostPath>,
    pub secrets: Vec<SecretRef>,
    pub network_none: bool,
    pub placing: Placing,
}

/// When and where a step's jobs may run.
#[derive(Clone, Debug, Default)]
pub(super) struct Placing {
    /// Somebody has to approve it; what there is to approve, or an empty text.
    pub approval: Option<Template>,
    pub concurrency: Option<Concurrency>,
    pub pool: Option<Template>,
    /// Names and values.
    pub labels: Vec<(String, Template)>,
}

/// Jobs of one group run at most `limit` at a time.
#[derive(Clone, Debug)]
pub(super) struct Concurrency {
    pub group: Template,
    pub limit: u32,
}

/// One point of a step's matrix.
#[derive(Clone, Debug)]
pub(super) struct VariantSpec {
    pub name: Option<Variant>,
    /// Keys and values, as written.
    pub values: Vec<(String, String)>,
}

#[derive(Clone, Debug)]
pub(super) enum Image {
    Registry(Template),
    Step(Origin),
    Import(Origin, Template),
    /// Could not be read; the reason is among the problems.
    Unread,
}

#[derive(Clone, Debug)]
pub(super) enum Script {
    Inline(Template),
    /// The text of a file, taken as it is.
    File(String),
    /// Could not be read; the reason is among the problems.
    Unread,
}

/// Where an image or an input comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    Step(Dependency),
    Build(OfBuild),
}

/// `STEP[.VARIANT][@PLATFORM]` of another build. Which steps that has is known to the farm only.
#[derive(Clone, Debug)]
pub(super) struct OfBuild {
    pub build: Template,
    /// Of the step's name.
    pub at: Position,
    pub step: StepName,
    pub variant: Option<Variant>,
    pub platform: Option<Platform>,
}

/// `STEP[.VARIANT][@PLATFORM]`: jobs of another step.
#[derive(Clone, Debug)]
pub(super) struct Dependency {
    pub at: Position,
    /// Index in the pipeline's steps.
    pub step: usize,
    /// All of them, if none is named.
    pub variant: Option<Variant>,
    /// The job's own, if none is named.
    pub platform: Option<Platform>,
}

#[derive(Clone, Debug)]
pub(super) struct Input {
    pub from: Origin,
    pub artifacts: Vec<Template>,
    pub path: Template,
}

#[derive(Clone, Debug)]
pub(super) struct Output {
    pub path: Template,
    pub publish: Option<Template>,
    pub optional: bool,
    pub compress: Compress,
}

impl Step {
    /// Everything that it waits for: its needs, its image's step, its inputs.
    pub fn dependencies(&self) -> impl Iterator<Item = &Dependency> {
        let image = match &self.image {
            Image::Step(from) | Image::Import(from, _) => Some(from),
            Image::Registry(_) | Image::Unread => None,
        };
        let origins = image.into_iter().chain(self.inputs.iter().map(|input| &input.from));
        self.needs.iter().chain(origins.filter_map(|origin| match origin {
            Origin::Step(from) => Some(from),
            Origin::Build(_) => None,
        }))
    }

    pub fn has_matrix(&self) -> bool {
        self.variants.iter().any(|variant| variant.name.is_some())
    }
}
