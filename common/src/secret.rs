//! Secrets: where they may go, and bytes that show themselves to nobody.

use crate::id::{PipelineName, StepName};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use zeroize::Zeroize;

/// Longest secret: a bundle of keys and certificates. It travels in one message and is looked for in every line of a log.
pub const SECRET_MAX_BYTES: usize = 64 * 1024;

/// Which steps get a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretScope {
    /// Those of these pipelines; at least one.
    pub pipelines: BTreeSet<PipelineName>,
    /// And only those of these names; empty: all of these pipelines.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub steps: BTreeSet<StepName>,
}

impl SecretScope {
    /// Whether a step of a pipeline gets it.
    pub fn covers(&self, pipeline: &PipelineName, step: &StepName) -> bool {
        self.pipelines.contains(pipeline) && (self.steps.is_empty() || self.steps.contains(step))
    }
}

/// `PIPELINE, PIPELINE: STEP, STEP`, for people.
impl fmt::Display for SecretScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pipelines: Vec<&str> = self.pipelines.iter().map(PipelineName::as_str).collect();
        let steps: Vec<&str> = self.steps.iter().map(StepName::as_str).collect();
        f.write_str(&pipelines.join(", "))?;
        if steps.is_empty() { Ok(()) } else { write!(f, ": {}", steps.join(", ")) }
    }
}

/// The bytes of a secret. They are in no debug output, and are wiped when this is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretValue(Vec<u8>);

impl SecretValue {
    /// Takes the bytes, and with them the duty to wipe them.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, for whoever must have them.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(…)")
    }
}

impl Drop for SecretValue {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_covers_its_pipelines_steps_and_no_others() {
        let scope = |pipelines: &[&str], steps: &[&str]| SecretScope {
            pipelines: pipelines.iter().map(|name| name.parse().unwrap()).collect(),
            steps: steps.iter().map(|name| name.parse().unwrap()).collect(),
        };
        for (scope, pipeline, step, want) in [
            (scope(&["os"], &["sign"]), "os", "sign", true),
            (scope(&["os"], &["sign"]), "os", "build", false),
            (scope(&["os"], &["sign"]), "other", "sign", false),
            (scope(&["os"], &[]), "os", "build", true),
            (scope(&["os"], &[]), "os2", "build", false),
            (scope(&[], &[]), "os", "build", false),
        ] {
            assert_eq!(
                scope.covers(&pipeline.parse().unwrap(), &step.parse().unwrap()),
                want,
                "{scope} {pipeline} {step}"
            );
        }
    }

    #[test]
    fn debug_output_tells_nothing() {
        let value = SecretValue::new(b"canary-7f3a".to_vec());
        let told = format!("{value:?} {:#?}", Some(&value));
        assert!(!told.contains("canary") && !told.contains("99, 97, 110"), "{told}");
        assert_eq!(value.reveal(), b"canary-7f3a");
    }
}
