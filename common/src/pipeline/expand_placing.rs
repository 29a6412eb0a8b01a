//! Fills in when and where a job may run, and what its build supersedes.

use super::diagnostic::{quote, quote_list};
use super::expand::Expander;
use super::jobs::Key;
use super::limits::{APPROVAL_MAX_BYTES, LABEL_MAX_BYTES, VALUE_MAX_BYTES};
use super::model::Step;
use super::template::{BUILT_IN, CHANNEL, Name, Scope, Template, Unrendered};
use crate::id::{BadId, ChannelName, GroupName, PoolName};
use crate::job::Concurrency;
use std::collections::BTreeMap;
use std::str::FromStr;

/// Names that are not the same for all jobs of a build.
const OF_A_JOB: [&str; 3] = ["step", "platform", "arch"];

/// A field of the whole build.
struct OfBuild {
    name: &'static str,
    /// Names that it cannot use, and why not.
    without: &'static [&'static str],
}

/// A job's own.
pub(super) struct Placing {
    pub approval: Option<String>,
    pub concurrency: Option<Concurrency>,
    pub pool: Option<PoolName>,
    pub labels: BTreeMap<String, String>,
}

impl Expander<'_> {
    /// `None` where something of it has a problem or is not known.
    pub(super) fn placing(&mut self, step: &Step, key: Key) -> Option<Placing> {
        let said = &step.placing;
        let approval = said.approval.as_ref().map(|what| self.render(what, key, APPROVAL_MAX_BYTES));
        let concurrency = said.concurrency.as_ref().map(|said| {
            let group = self.name::<GroupName>(&said.group, key)?;
            Some(Concurrency { group, limit: said.limit })
        });
        let pool = said.pool.as_ref().or(self.pipeline.pool.as_ref());
        let pool = pool.map(|pool| self.name::<PoolName>(pool, key));
        let labels = self.labels(step, key);
        let (approval, concurrency) = (given(approval)?, given(concurrency)?);
        self.text_bytes += approval.as_ref().map_or(0, String::len);
        Some(Placing { approval, concurrency, pool: given(pool)?, labels: labels? })
    }

    fn labels(&mut self, step: &Step, key: Key) -> Option<BTreeMap<String, String>> {
        let mut labels = BTreeMap::new();
        let mut complete = true;
        for (name, template) in &step.placing.labels {
            match self.render(template, key, LABEL_MAX_BYTES) {
                Some(value) => {
                    self.text_bytes += name.len() + value.len();
                    labels.insert(name.clone(), value);
                }
                None => complete = false,
            }
        }
        complete.then_some(labels)
    }

    /// A filled-in name of a kind.
    fn name<T: FromStr<Err = BadId>>(&mut self, template: &Template, key: Key) -> Option<T> {
        let text = self.render(template, key, VALUE_MAX_BYTES)?;
        self.named(template, &text)
    }

    pub(super) fn named<T: FromStr<Err = BadId>>(&mut self, template: &Template, text: &str) -> Option<T> {
        match text.parse::<T>() {
            Ok(name) => Some(name),
            Err(BadId { text, kind, expected }) => {
                let message = format!("{} is not a {kind}: expected {expected}", quote(&text));
                self.blame(template, message, None);
                None
            }
        }
    }

    /// The group of builds of which a newer one takes the place of those that still wait. An empty text means none.
    pub(super) fn supersede(&mut self) -> Option<GroupName> {
        let template = self.pipeline.supersede.as_ref()?;
        self.of_build(template, &OfBuild { name: "supersede", without: &OF_A_JOB })
    }

    /// The channel of the build, if the file names one. An empty text means the usual one.
    pub(super) fn channel(&mut self) -> Option<ChannelName> {
        let template = self.pipeline.channel.as_ref()?;
        let without = const { &[OF_A_JOB[0], OF_A_JOB[1], OF_A_JOB[2], CHANNEL] };
        self.of_build(template, &OfBuild { name: "channel", without })
    }

    /// A filled-in name that all jobs of the build share; `None` if nothing is left of it, or it has a problem.
    fn of_build<T: FromStr<Err = BadId>>(&mut self, template: &Template, field: &OfBuild) -> Option<T> {
        let OfBuild { name: field, without } = field;
        if let Some(name) = self.uses_one_of(template, without) {
            let known = BUILT_IN.into_iter().filter(|name| !without.contains(name));
            let help = format!("it may use parameters and {}", quote_list(known));
            let message = match name {
                CHANNEL => "`channel` cannot be named by itself".to_owned(),
                _ => format!("`{field}` is of the whole build, and `{name}` is not the same for all its jobs"),
            };
            self.blame(template, message, Some(help));
            return None;
        }
        let channel = self.channel.clone();
        let scope = Scope {
            pipeline: self.pipeline.name.as_str(),
            version: self.version,
            channel: channel.as_str(),
            // Not used, as has just been made sure.
            step: "",
            platform: crate::platform::Platform::LinuxAmd64,
            matrix: &[],
            params: self.params,
        };
        match template.render(&scope, VALUE_MAX_BYTES).0 {
            Ok(text) if text.is_empty() => None,
            Ok(text) => self.named(template, &text),
            Err(Unrendered::Unknown) => None,
            Err(Unrendered::TooLong) => {
                self.blame(template, format!("the text has more than {VALUE_MAX_BYTES} bytes"), None);
                None
            }
        }
    }

    /// One of `names` that is in the text or in the parameters that it uses.
    fn uses_one_of(&self, template: &Template, names: &[&str]) -> Option<&'static str> {
        let params = template.uses().filter_map(|(name, _)| match name {
            Name::Param(param) => self.params.get(param).and_then(Option::as_ref),
            _ => None,
        });
        let texts = std::iter::once(template).chain(params);
        texts.flat_map(Template::uses).find_map(|(name, _)| match name {
            Name::BuiltIn(name) if names.contains(name) => Some(*name),
            _ => None,
        })
    }
}

/// What is not said is known to be nothing; what is said and could not be made out is not known.
fn given<T>(value: Option<Option<T>>) -> Option<Option<T>> {
    match value {
        None => Some(None),
        Some(value) => value.map(Some),
    }
}
