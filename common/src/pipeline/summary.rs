//! A pipeline in short, for people and for JSON.

use super::model::{Image, Origin, Pipeline, Step};
use crate::id::{PipelineName, StepName, Variant};
use crate::platform::Platform;
use serde::Serialize;
use std::collections::BTreeSet;

/// What `check` tells about a valid file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// The pipeline's name.
    pub name: PipelineName,
    /// The pipeline's description, or empty.
    pub description: String,
    /// What it can build for.
    pub platforms: Vec<Platform>,
    /// What it builds for when nobody says otherwise.
    pub default_platforms: Vec<Platform>,
    /// Parameters, in the order of the file.
    pub params: Vec<ParamSummary>,
    /// Steps, in the order of the file.
    pub steps: Vec<StepSummary>,
    /// Jobs on all platforms together.
    pub jobs: usize,
}

/// A parameter in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParamSummary {
    /// Its name.
    pub name: String,
    /// Its description, or empty.
    pub description: String,
    /// As written; `None`: every build must give a value.
    pub default: Option<String>,
}

/// A step in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepSummary {
    /// Its name.
    pub name: StepName,
    /// Its description, or empty.
    pub description: String,
    /// Steps that it waits for, those of its image and inputs included; in the order of the file.
    pub needs: Vec<StepName>,
    /// Where it runs.
    pub platforms: Vec<Platform>,
    /// Its matrix; empty without one.
    pub variants: Vec<Variant>,
    /// `registry`, `step`, `import`, or `build` for what another build left.
    pub image: &'static str,
    /// Whether it leaves an image.
    pub commit: bool,
    /// Whether it wants every capability and device.
    pub privileged: bool,
}

impl Pipeline {
    /// The pipeline in short.
    pub fn summary(&self) -> Summary {
        Summary {
            name: self.name.clone(),
            description: self.description.clone(),
            platforms: self.platforms.clone(),
            default_platforms: self.default_platforms.clone(),
            params: self.params(),
            steps: self.steps(),
            jobs: self.job_count(),
        }
    }

    /// Its parameters, in the order of the file.
    pub fn params(&self) -> Vec<ParamSummary> {
        let short = |param: &super::model::Param| ParamSummary {
            name: param.name.clone(),
            description: param.description.clone(),
            default: param.default.as_ref().map(|(text, _)| text.clone()),
        };
        self.params.iter().map(short).collect()
    }

    /// Its steps, in the order of the file.
    pub fn steps(&self) -> Vec<StepSummary> {
        self.steps.iter().map(|step| self.step_summary(step)).collect()
    }

    fn step_summary(&self, step: &Step) -> StepSummary {
        let needs: BTreeSet<usize> = step.dependencies().map(|dependency| dependency.step).collect();
        StepSummary {
            name: step.name.clone(),
            description: step.description.clone(),
            needs: needs.into_iter().filter_map(|step| self.steps.get(step)).map(|step| step.name.clone()).collect(),
            platforms: step.platforms.clone(),
            variants: step.variants.iter().filter_map(|variant| variant.name.clone()).collect(),
            image: match step.image {
                Image::Registry(_) | Image::Unread => "registry",
                Image::Step(Origin::Build(_)) | Image::Import(Origin::Build(_), _) => "build",
                Image::Step(_) => "step",
                Image::Import(..) => "import",
            },
            commit: step.commit,
            privileged: step.privileged,
        }
    }
}
