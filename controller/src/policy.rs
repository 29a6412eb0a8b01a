//! The operator's policy: which pipelines may have what not every step has.
//!
//! ```toml
//! [[policy]]
//! name = "images"
//! pipelines = ["flatcar", "mini-*"]
//! allow = ["privileged", "devices:/dev/kvm", "host-paths:/srv/ccache:rw"]
//! ```
//! What no rule allows is refused at submit, with the rule that comes nearest. A device that a step can do without is left out of
//! the plan instead. A worker has to allow the same in its own settings, and looks once more before it starts a container.

use railyard_common::id::PipelineName;
use railyard_common::plan::Plan;
use railyard_common::rights::{self, Right, Wanted};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRule {
    /// For messages.
    pub name: String,
    /// Names of pipelines; with a `*` at the end, all that begin so.
    pub pipelines: Vec<String>,
    /// What their steps may have: `privileged` (which is everything), `capabilities:NAME`, `devices:/dev/NAME`, `host-paths:/PATH` and
    /// `host-paths:/PATH:rw`. A `*` may stand at the end of a capability or device.
    pub allow: Vec<Right>,
}

/// All rules.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<PolicyRule>,
}

/// A step wants what no rule allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "step {job} wants `{right}`, which the operator's policy does not allow: {why}. An operator can add \"{right}\" to `allow` of a \
     [[policy]] rule for pipeline {pipeline} in the controller's settings"
)]
pub struct Denied {
    job: String,
    right: Right,
    pipeline: PipelineName,
    why: String,
}

impl Policy {
    /// Of these rules.
    pub fn new(rules: Vec<PolicyRule>) -> Self {
        Self { rules }
    }

    /// Refuses a plan that wants too much; takes out of it what it can do without and may not have. Gives a line for each of these.
    ///
    /// # Errors
    /// [`Denied`]: the first thing that is not allowed.
    pub fn apply(&self, plan: &mut Plan) -> Result<Vec<String>, Denied> {
        let pipeline = &plan.build.pipeline;
        let mut left_out = Vec::new();
        for job in &mut plan.jobs {
            let wanted = Wanted::of(&job.run);
            if let Some(right) = wanted.required.into_iter().find(|right| !self.allows(pipeline, right)) {
                let why = self.why_not(pipeline);
                return Err(Denied { job: job.name.to_string(), right, pipeline: pipeline.clone(), why });
            }
            for right in wanted.optional.into_iter().filter(|right| !self.allows(pipeline, right)) {
                let run = Arc::make_mut(&mut job.run);
                run.devices.retain(|device| Right::Device(device.path.clone()) != right);
                let why = self.why_not(pipeline);
                left_out.push(format!("{} does without `{right}`: {why}", job.name));
            }
        }
        Ok(left_out)
    }

    fn of<'a>(&'a self, pipeline: &'a PipelineName) -> impl Iterator<Item = &'a PolicyRule> {
        self.rules.iter().filter(|rule| rule.pipelines.iter().any(|pattern| is_match(pattern, pipeline.as_str())))
    }

    fn allows(&self, pipeline: &PipelineName, right: &Right) -> bool {
        self.of(pipeline).any(|rule| rights::allows(&rule.allow, right))
    }

    fn why_not(&self, pipeline: &PipelineName) -> String {
        let told: Vec<String> = self
            .of(pipeline)
            .map(|rule| {
                let allowed: Vec<String> = rule.allow.iter().map(ToString::to_string).collect();
                let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
                format!("rule `{}` allows only {allowed}", rule.name)
            })
            .collect();
        match told.is_empty() {
            true => format!("no rule is for pipeline {pipeline}"),
            false => told.join("; "),
        }
    }
}

fn is_match(pattern: &str, name: &str) -> bool {
    pattern == name || pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::pipeline::{Pipeline, Request, Source};

    fn plan(name: &str, more: &str) -> Plan {
        let text = format!("name: {name}\nsteps:\n  - name: a\n    image: x\n    script: 'true'\n    {more}\n");
        let source = Source { file_name: "x.yaml", text: &text, files: &Default::default() };
        let pipeline = Pipeline::parse(&source).unwrap();
        let request = Request { version: "1".parse().unwrap(), params: Default::default(), platforms: Vec::new() };
        pipeline.plan(&request).unwrap()
    }

    fn policy() -> Policy {
        let rule = |name: &str, pipelines: &[&str], allow: &[&str]| PolicyRule {
            name: name.to_owned(),
            pipelines: pipelines.iter().map(|text| (*text).to_owned()).collect(),
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
        };
        Policy::new(vec![
            rule("images", &["os", "mini-*"], &["privileged"]),
            rule("kvm", &["vm"], &["devices:/dev/kvm", "host-paths:/srv/ccache"]),
        ])
    }

    #[test]
    fn a_rule_s_pipelines_get_what_it_allows_and_others_hear_its_name() {
        let ask = |name: &str, more: &str| policy().apply(&mut plan(name, more)).map_err(|denied| denied.to_string());
        for (name, more) in [
            ("os", "privileged: true"),
            ("mini-x", "capabilities: [SYS_ADMIN]"),
            ("vm", "devices: [/dev/kvm]"),
            ("vm", "host_paths: ['/srv/ccache:/c']"),
            ("any", "capabilities: [default, CHOWN]"),
        ] {
            assert_eq!(ask(name, more), Ok(Vec::new()), "{name} {more}");
        }
        for (name, more, right, why) in [
            ("any", "privileged: true", "privileged", "no rule is for pipeline any"),
            ("mini", "privileged: true", "privileged", "no rule is for pipeline mini"),
            ("vm", "privileged: true", "privileged", "rule `kvm` allows only devices:/dev/kvm, host-paths:/srv/ccache"),
            ("vm", "capabilities: [default, sys_admin]", "capabilities:SYS_ADMIN", "rule `kvm`"),
            ("vm", "host_paths: ['/srv/ccache:/c:rw']", "host-paths:/srv/ccache:rw", "rule `kvm`"),
            ("vm", "host_paths: [/srv/ccache/deep]", "host-paths:/srv/ccache/deep", "rule `kvm`"),
        ] {
            let message = ask(name, more).unwrap_err();
            assert!(message.contains(&format!("a@linux/amd64 wants `{right}`")) && message.contains(why), "{message}");
        }
    }

    #[test]
    fn a_device_that_a_step_can_do_without_is_left_out_of_the_plan() {
        let mut refused = plan("any", "devices: ['/dev/kvm?', '/dev/fuse?']");
        let left_out = policy().apply(&mut refused).unwrap();
        assert_eq!(left_out[0], "a@linux/amd64 does without `devices:/dev/kvm`: no rule is for pipeline any");
        assert_eq!((left_out.len(), refused.jobs[0].run.devices.len()), (2, 0));
        let mut allowed = plan("vm", "devices: ['/dev/kvm?', '/dev/fuse?']");
        assert_eq!(policy().apply(&mut allowed).unwrap().len(), 1);
        assert_eq!(allowed.jobs[0].run.devices[0].path, "/dev/kvm");
    }
}
