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
//!
//! Untrusted builds have only what rules with `untrusted = true` allow, and such a rule allows nothing by which a step could write
//! what a release reads: it is refused when the settings are read.
//!
//! What a rule `reserve`s is for the pipelines of such rules alone: `reserve = ["pool:signing", "publish:images"]`.

use crate::reserve::Reserve;
use railyard_common::id::{PipelineName, is_match, is_pattern};
use railyard_common::job::JobSpec;
use railyard_common::path::RelPath;
use railyard_common::plan::Plan;
use railyard_common::rights::{self, Right, Wanted};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenRule")]
pub struct PolicyRule {
    /// For messages.
    pub name: String,
    /// Names of pipelines; with a `*` at the end, all that begin so.
    pub pipelines: Vec<String>,
    /// What their steps may have: `privileged` (which is everything), `capabilities:NAME`, `devices:/dev/NAME`, `host-paths:/PATH` and
    /// `host-paths:/PATH:rw`. A `*` may stand at the end of a capability or device.
    pub allow: Vec<Right>,
    /// Pools (`pool:NAME`) and directories of published files (`publish:DIRECTORY`, with what lies below) that no other pipeline may
    /// name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reserve: Vec<Reserve>,
    /// It holds for untrusted builds as well. Then it can allow devices, but no disks, and host paths to read.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub untrusted: bool,
}

/// A rule as it stands in the settings, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRule {
    name: String,
    pipelines: Vec<String>,
    #[serde(default)]
    allow: Vec<Right>,
    #[serde(default)]
    reserve: Vec<Reserve>,
    #[serde(default)]
    untrusted: bool,
}

/// A rule that cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// It gives untrusted builds what they cannot have.
    #[error(
        "rule `{name}` has `untrusted = true` and allows `{right}`, which an untrusted build cannot have: {why}. Take it out, and \
         put it into a rule of its own without `untrusted` for the builds that you trust"
    )]
    TooMuch {
        /// Which rule.
        name: String,
        /// What it gives.
        right: Right,
        /// Why not.
        why: &'static str,
    },
    /// It is for no pipeline.
    #[error(
        "rule `{name}` is for the pipeline `{pattern}`, which cannot be the name of one; a name is in lower case, and a `*` may stand \
         at its end"
    )]
    Pattern {
        /// Which rule.
        name: String,
        /// What is wrong.
        pattern: String,
    },
    /// The same.
    #[error("rule `{0}` names no pipelines, so it is for none; `pipelines = [\"*\"]` is for all")]
    NoPipelines(String),
}

impl TryFrom<WrittenRule> for PolicyRule {
    type Error = BadRule;

    fn try_from(written: WrittenRule) -> Result<Self, BadRule> {
        let WrittenRule { name, pipelines, allow, reserve, untrusted } = written;
        if pipelines.is_empty() {
            return Err(BadRule::NoPipelines(name));
        }
        if let Some(pattern) = pipelines.iter().find(|pattern| !is_pattern::<PipelineName>(pattern)) {
            return Err(BadRule::Pattern { pattern: pattern.clone(), name });
        }
        let forbidden = allow.iter().filter(|_| untrusted).find_map(|right| Some((right, harm(right)?)));
        match forbidden {
            Some((right, why)) => Err(BadRule::TooMuch { right: right.clone(), name, why }),
            None => Ok(Self { name, pipelines, allow, reserve, untrusted }),
        }
    }
}

/// The devices that an untrusted step may have: by none of them can it change its host. Others may be disks, memory or buses.
const HARMLESS: [&str; 3] = ["/dev/kvm", "/dev/fuse", "/dev/net/tun"];
/// And what lies here: graphics processors.
const HARMLESS_BELOW: &str = "/dev/dri/";

/// What a step could do by a right to that which releases read; `None` if nothing.
fn harm(right: &Right) -> Option<&'static str> {
    match right {
        Right::Privileged => Some("a privileged step has its host, and could write what a release reads there"),
        Right::Capability(_) => {
            Some("with more capabilities a step could leave its container, and write what a release reads")
        }
        Right::HostPath { writable: true, .. } => Some("a step could write there what a release reads"),
        Right::Device(path) => {
            let is_harmless = HARMLESS.contains(&path.as_str()) || path.starts_with(HARMLESS_BELOW);
            let why = "of devices, untrusted steps may have /dev/kvm, /dev/fuse, /dev/net/tun and /dev/dri/*; by others they could \
                       write what a release reads";
            (!is_harmless).then_some(why)
        }
        Right::HostPath { writable: false, .. } => None,
    }
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<PolicyRule>,
}

/// A step wants what it may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No rule allows it.
    #[error("step {job} wants `{right}`, which the operator's policy does not allow: {why}. {help}")]
    Right {
        /// Whose.
        job: String,
        /// What.
        right: Right,
        /// What the rules say.
        why: String,
        /// What can be done.
        help: String,
    },
    /// A rule keeps it for others.
    #[error(
        "{who} wants `{wanted}`, which rule `{rule}` of the operator's policy reserves for other pipelines. An operator can add \
         {pipeline} to those of that rule"
    )]
    Reserved {
        /// Whose wish it is.
        who: String,
        /// What.
        wanted: Reserve,
        /// Which rule.
        rule: String,
        /// Whose step it is.
        pipeline: PipelineName,
    },
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
        let asker = Asker { pipeline: plan.build.pipeline.clone(), untrusted: plan.untrusted };
        let mut left_out = Vec::new();
        for job in &mut plan.jobs {
            let wanted = Wanted::of(&job.run);
            if let Some(right) = wanted.required.into_iter().find(|right| !self.allows(&asker, right)) {
                let (why, help) = (self.why_not(&asker), asker.help(&right));
                return Err(Denied::Right { job: job.name.to_string(), right, why, help });
            }
            // An untrusted build publishes nothing, and its pool is the operator's choice.
            if !asker.untrusted {
                self.check_reserved(&asker.pipeline, job)?;
            }
            for right in wanted.optional.into_iter().filter(|right| !self.allows(&asker, right)) {
                let run = Arc::make_mut(&mut job.run);
                run.devices.retain(|device| Right::Device(device.path.clone()) != right);
                let why = self.why_not(&asker);
                left_out.push(format!("{} does without `{right}`: {why}", job.name));
            }
        }
        Ok(left_out)
    }

    /// Refuses a job that goes or publishes where other pipelines alone do.
    fn check_reserved(&self, pipeline: &PipelineName, job: &JobSpec) -> Result<(), Denied> {
        let pool = job.pool.iter().cloned().map(Reserve::Pool);
        let published = job.run.outputs.iter().filter_map(|output| output.publish.clone()).map(Reserve::Publish);
        for wanted in pool.chain(published) {
            self.check_one(pipeline, wanted, || format!("step {}", job.name))?;
        }
        Ok(())
    }

    /// Refuses files where other pipelines alone publish.
    ///
    /// # Errors
    /// [`Denied::Reserved`] for the first of them.
    pub fn check_published<'p>(
        &self,
        pipeline: &PipelineName,
        paths: impl IntoIterator<Item = &'p RelPath>,
    ) -> Result<(), Denied> {
        let mut wanted = paths.into_iter().cloned().map(Reserve::Publish);
        wanted.try_for_each(|wanted| self.check_one(pipeline, wanted, || "the promotion".to_owned()))
    }

    fn check_one(&self, pipeline: &PipelineName, wanted: Reserve, who: impl Fn() -> String) -> Result<(), Denied> {
        let reserves = |rule: &&PolicyRule| rule.reserve.iter().any(|reserve| reserve.covers(&wanted));
        let mut rules = self.rules.iter().filter(reserves).peekable();
        let first = rules.peek().map(|rule| rule.name.clone());
        let is_own = |rule: &PolicyRule| rule.pipelines.iter().any(|pattern| is_match(pattern, pipeline.as_str()));
        match (first, rules.any(is_own)) {
            (Some(rule), false) => Err(Denied::Reserved { who: who(), wanted, rule, pipeline: pipeline.clone() }),
            _ => Ok(()),
        }
    }

    fn of<'a>(&'a self, asker: &'a Asker) -> impl Iterator<Item = &'a PolicyRule> {
        let of_tier = self.rules.iter().filter(|rule| rule.untrusted || !asker.untrusted);
        of_tier.filter(|rule| rule.pipelines.iter().any(|pattern| is_match(pattern, asker.pipeline.as_str())))
    }

    fn allows(&self, asker: &Asker, right: &Right) -> bool {
        // Of the rules that were not read from settings as well.
        let never = asker.untrusted && harm(right).is_some();
        !never && self.of(asker).any(|rule| rights::allows(&rule.allow, right))
    }

    fn why_not(&self, asker: &Asker) -> String {
        let told: Vec<String> = self
            .of(asker)
            .map(|rule| {
                let allowed: Vec<String> = rule.allow.iter().map(ToString::to_string).collect();
                let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
                format!("rule `{}` allows only {allowed}", rule.name)
            })
            .collect();
        match (told.is_empty(), asker.untrusted) {
            (true, false) => format!("no rule is for pipeline {}", asker.pipeline),
            (true, true) => format!("no rule is for untrusted builds of pipeline {}", asker.pipeline),
            (false, _) => told.join("; "),
        }
    }
}

/// Whose steps want something.
struct Asker {
    pipeline: PipelineName,
    untrusted: bool,
}

impl Asker {
    /// What can be done about it.
    fn help(&self, right: &Right) -> String {
        let rule = match (self.untrusted, harm(right)) {
            (true, Some(why)) => return format!("No rule can allow it, for the build is untrusted: {why}"),
            (true, None) => "rule with `untrusted = true`",
            (false, _) => "rule",
        };
        let pipeline = &self.pipeline;
        format!(
            "An operator can add \"{right}\" to `allow` of a [[policy]] {rule} for pipeline {pipeline} in the controller's settings"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::pipeline::{Pipeline, Request, Source};

    fn plan(name: &str, more: &str) -> Plan {
        let text = format!("name: {name}\nsteps:\n  - name: a\n    image: x\n    script: 'true'\n    {more}\n");
        let source = Source { file_name: "x.yaml", text: &text, files: &Default::default() };
        let pipeline = Pipeline::parse(&source).unwrap();
        let request = Request::of("1".parse().unwrap());
        pipeline.plan(&request).unwrap()
    }

    fn policy() -> Policy {
        let rule = |name: &str, pipelines: &[&str], allow: &[&str]| PolicyRule {
            name: name.to_owned(),
            pipelines: pipelines.iter().map(|text| (*text).to_owned()).collect(),
            allow: allow.iter().map(|text| text.parse().unwrap()).collect(),
            reserve: Vec::new(),
            untrusted: false,
        };
        Policy::new(vec![
            rule("images", &["os", "mini-*"], &["privileged"]),
            rule("kvm", &["vm"], &["devices:/dev/kvm", "host-paths:/srv/ccache"]),
        ])
    }

    #[test]
    fn a_rule_that_cannot_be_meant_is_refused() {
        let rule = |more: serde_json::Value| {
            let mut written = serde_json::json!({ "name": "r", "pipelines": ["os", "mini-*", "*"] });
            written.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<PolicyRule>(written).map_err(|error| error.to_string())
        };
        assert!(rule(serde_json::json!({ "allow": ["capabilities:CAP_SYS_ADMIN"] })).is_ok());
        for (more, why) in [
            (serde_json::json!({ "pipelines": [] }), "names no pipelines"),
            (serde_json::json!({ "pipelines": ["os", "Alpha"] }), "`Alpha`"),
            (serde_json::json!({ "pipelines": ["a*b"] }), "`a*b`"),
            (serde_json::json!({ "allow": ["capabilities:FOO"] }), "`capabilities:FOO` is not a right"),
        ] {
            let told = rule(more).unwrap_err();
            assert!(told.contains(why), "{told}");
        }
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

    fn read(allow: &str, more: &str) -> Result<PolicyRule, String> {
        let text = format!(r#"{{"name": "changes", "pipelines": ["vm"], "allow": ["{allow}"]{more}}}"#);
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_rule_for_untrusted_builds_allows_nothing_by_which_a_step_could_write_what_a_release_reads() {
        for allow in ["devices:/dev/kvm", "devices:/dev/dri/render*", "host-paths:/srv/sources"] {
            assert!(read(allow, r#", "untrusted": true"#).unwrap().untrusted, "{allow}");
        }
        for allow in [
            "privileged",
            "capabilities:SYS_ADMIN",
            "capabilities:*",
            "host-paths:/srv/ccache:rw",
            "devices:/dev/sda",
            "devices:/dev/nvme0n1",
            "devices:/dev/loop*",
            "devices:/dev/l*",
            "devices:/dev/zd0",
            "devices:/dev/vfio/*",
            "devices:/dev/kvm*",
            "devices:/dev/*",
            "devices:/dev/m*",
            "devices:/dev/disk/by-id/x",
        ] {
            let refused = read(allow, r#", "untrusted": true"#).unwrap_err();
            let words =
                [format!("rule `changes` has `untrusted = true` and allows `{allow}`"), "release reads".to_owned()];
            assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
            assert!(!read(allow, "").unwrap().untrusted, "others may have it");
        }
        assert!(read("privileged", r#", "untrused": true"#).unwrap_err().contains("untrused"));
        let plain = read("devices:/dev/kvm", "").unwrap();
        assert!(!serde_json::to_string(&plain).unwrap().contains("untrusted"));
    }

    #[test]
    fn what_a_rule_reserves_is_for_the_pipelines_of_such_rules_alone() {
        let rule = |text: &str| serde_json::from_str::<PolicyRule>(text).unwrap();
        let policy = Policy::new(vec![
            rule(r#"{"name": "signing", "pipelines": ["os"], "reserve": ["pool:signing", "publish:images"]}"#),
            rule(r#"{"name": "sdk", "pipelines": ["sdk-*"], "reserve": ["publish:images/sdk"]}"#),
        ]);
        let ask = |name: &str, more: &str, untrusted: bool| {
            let mut plan = plan(name, more);
            plan.untrusted = untrusted;
            policy.apply(&mut plan).map_err(|denied| denied.to_string())
        };
        let publish = |dir: &str| format!("outputs: [{{ path: x, publish: {dir} }}]");
        for (name, more) in [
            ("os", "pool: signing".to_owned()),
            ("os", publish("images/amd64")),
            ("sdk-a", publish("images/sdk/1")),
            ("any", "pool: other".to_owned()),
            ("any", publish("images-of-mine")),
        ] {
            assert_eq!(ask(name, &more, false), Ok(Vec::new()), "{name} {more}");
        }
        for (name, more, words) in [
            ("any", "pool: signing".to_owned(), ["`pool:signing`, which rule `signing`", "can add any to those"]),
            ("any", publish("images"), ["`publish:images`, which rule `signing`", "a@linux/amd64"]),
            ("sdk-a", publish("images/amd64"), ["`publish:images/amd64`, which rule `signing`", "can add sdk-a"]),
            ("any", publish("images/sdk"), ["`publish:images/sdk`, which rule `signing`", "can add any"]),
        ] {
            let refused = ask(name, &more, false).unwrap_err();
            assert!(words.iter().all(|word| refused.contains(word)), "{refused}");
        }
        assert_eq!(ask("any", "pool: changes", true), Ok(Vec::new()));
        assert!(serde_json::from_str::<PolicyRule>(r#"{"name": "x", "pipelines": [], "reserve": ["pool"]}"#).is_err());
    }

    #[test]
    fn untrusted_builds_have_only_what_rules_for_them_allow() {
        let ask = |policy: &Policy, more: &str, untrusted: bool| {
            let mut plan = plan("vm", more);
            plan.untrusted = untrusted;
            policy.apply(&mut plan).map_err(|denied| denied.to_string())
        };
        let (kvm, path) = ("devices: [/dev/kvm]", "host_paths: ['/srv/ccache:/c']");
        assert_eq!(ask(&policy(), kvm, false), Ok(Vec::new()));
        let refused = ask(&policy(), kvm, true).unwrap_err();
        for words in ["no rule is for untrusted builds of pipeline vm", "rule with `untrusted = true` for pipeline vm"]
        {
            assert!(refused.contains(words), "{refused}");
        }
        let left_out = ask(&policy(), "devices: ['/dev/kvm?']", true).unwrap();
        assert_eq!(
            left_out,
            ["a@linux/amd64 does without `devices:/dev/kvm`: no rule is for untrusted builds of pipeline vm"]
        );

        let mut rules = policy().rules;
        rules.push(read("devices:/dev/kvm", r#", "untrusted": true"#).unwrap());
        let both = Policy::new(rules);
        assert_eq!(ask(&both, kvm, true), Ok(Vec::new()));
        assert_eq!(ask(&both, path, false), Ok(Vec::new()));
        let refused = ask(&both, path, true).unwrap_err();
        assert!(refused.contains("rule `changes` allows only devices:/dev/kvm. An operator can add"), "{refused}");

        // One that no settings gave: it does not help.
        let all =
            PolicyRule { untrusted: true, allow: vec![Right::Privileged], ..read("devices:/dev/kvm", "").unwrap() };
        let all = Policy::new(vec![all]);
        for more in [
            "privileged: true",
            "capabilities: [SYS_ADMIN]",
            "host_paths: ['/srv/ccache:/c:rw']",
            "devices: [/dev/sda]",
        ] {
            let refused = ask(&all, more, true).unwrap_err();
            assert!(refused.contains("No rule can allow it, for the build is untrusted"), "{refused}");
            assert_eq!(ask(&all, more, false), Ok(Vec::new()), "{more}");
        }
    }
}
