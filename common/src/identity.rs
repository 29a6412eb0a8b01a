//! Who somebody is to the farm: a role, a name, and the limits within which the role holds.
//!
//! ```text
//! railyard://worker/rack-3?platform=linux/amd64,linux/arm64&pool=signing
//! railyard://submitter/ana?pipeline=flatcar,sdk
//! railyard://submitter/ci-changes?pipeline=flatcar&tier=untrusted
//! ```

use crate::id::{PipelineName, PoolName};
use crate::platform::Platform;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// What somebody may do. Which call needs which role is the controller's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Runs jobs.
    Worker,
    /// Submits and cancels builds, and reads.
    Submitter,
    /// Everything that people may do.
    Operator,
    /// Reads.
    Viewer,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 4] = [Role::Worker, Role::Submitter, Role::Operator, Role::Viewer];

    /// The word in certificates and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Worker => "worker",
            Self::Submitter => "submitter",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The text is no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a role: expected worker, submitter, operator or viewer")]
pub struct BadRole(pub String);

impl FromStr for Role {
    type Err = BadRole;

    fn from_str(text: &str) -> Result<Self, BadRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| BadRole(text.to_owned()))
    }
}

/// Within which limits a role holds. The default has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Limits {
    /// The pipelines whose builds a person may see and change; empty: all.
    pub pipelines: BTreeSet<PipelineName>,
    /// The platforms that a worker may offer; empty: any.
    pub platforms: BTreeSet<Platform>,
    /// The pool that a worker may work for.
    pub pool: PoolLimit,
    /// Whatever a submitter submits is untrusted, and it may change no other builds ([`crate::tier`]).
    pub untrusted: bool,
}

/// Which pool a worker may work for.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PoolLimit {
    /// Whichever it says.
    #[default]
    Any,
    /// None: the jobs of steps that name no pool.
    Outside,
    /// This one.
    Only(PoolName),
}

impl PoolLimit {
    /// Whether a worker that says it works for `pool` keeps within this.
    pub fn allows(&self, pool: Option<&PoolName>) -> bool {
        match self {
            Self::Any => true,
            Self::Outside => pool.is_none(),
            Self::Only(only) => pool == Some(only),
        }
    }
}

impl Limits {
    /// Whether a person within these limits may see builds of `pipeline`.
    pub fn allow_pipeline(&self, pipeline: &PipelineName) -> bool {
        self.pipelines.is_empty() || self.pipelines.contains(pipeline)
    }
}

/// The limits as the query of an identity's URI; empty without any.
impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.pipelines.is_empty() {
            parts.push(format!("pipeline={}", joined(&self.pipelines)));
        }
        if !self.platforms.is_empty() {
            parts.push(format!("platform={}", joined(&self.platforms)));
        }
        match &self.pool {
            PoolLimit::Any => {}
            PoolLimit::Outside => parts.push("pool=".to_owned()),
            PoolLimit::Only(pool) => parts.push(format!("pool={pool}")),
        }
        if self.untrusted {
            parts.push(format!("tier={UNTRUSTED}"));
        }
        f.write_str(&parts.join("&"))
    }
}

fn joined<T: ToString>(items: &BTreeSet<T>) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(",")
}

/// A role, a name and limits, written `railyard://ROLE/NAME?LIMITS` in a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// What the holder may do.
    pub role: Role,
    /// Who it is. A worker's is its worker name.
    pub name: String,
    /// Within which limits.
    pub limits: Limits,
}

/// The text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identity: {why}")]
pub struct BadIdentity {
    text: String,
    why: String,
}

/// The value of the limit `tier`.
const UNTRUSTED: &str = "untrusted";
/// The scheme of an identity's URI.
pub const SCHEME: &str = "railyard://";
/// Longest name: worker names have 63, people's names and mail addresses fit easily.
const NAME_MAX_LEN: usize = 128;
/// Longest URI: a certificate has to stay small.
const URI_MAX_LEN: usize = 4096;

impl Identity {
    /// An identity with a checked name, without limits.
    ///
    /// # Errors
    /// [`BadIdentity`] if the name is empty, longer than 128 or has other characters than letters, digits and `.-_@`.
    pub fn new(role: Role, name: impl Into<String>) -> Result<Self, BadIdentity> {
        let name = name.into();
        let usable = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'@');
        if name.is_empty() || name.len() > NAME_MAX_LEN || !name.bytes().all(usable) {
            let why = "a name is 1 to 128 letters, digits, `.`, `-`, `_` or `@`".to_owned();
            return Err(BadIdentity { text: name, why });
        }
        Ok(Self { role, name, limits: Limits::default() })
    }

    /// The same within limits.
    ///
    /// # Errors
    /// [`BadIdentity`] if they do not fit the role: pipelines limit people, platforms and pools limit workers, the tier submitters.
    pub fn within(mut self, limits: Limits) -> Result<Self, BadIdentity> {
        let bad = |why: &str| BadIdentity { text: self.to_string(), why: why.to_owned() };
        let of_worker = !limits.platforms.is_empty() || limits.pool != PoolLimit::Any;
        match self.role {
            Role::Worker if !limits.pipelines.is_empty() => return Err(bad("pipelines do not limit a worker")),
            Role::Submitter | Role::Viewer | Role::Operator if of_worker => {
                return Err(bad("platforms and pools limit workers only"));
            }
            Role::Operator if !limits.pipelines.is_empty() => {
                return Err(bad("an operator has the whole farm; a submitter or viewer can be limited to pipelines"));
            }
            Role::Worker | Role::Operator | Role::Viewer if limits.untrusted => {
                return Err(bad("the tier limits submitters only"));
            }
            _ => {}
        }
        self.limits = limits;
        match self.uri().len() {
            0..=URI_MAX_LEN => Ok(self),
            _ => Err(BadIdentity { text: self.to_string(), why: format!("its limits are longer than {URI_MAX_LEN}") }),
        }
    }

    /// As certificates carry it.
    pub fn uri(&self) -> String {
        let Self { role, name, limits } = self;
        match *limits == Limits::default() {
            true => format!("{SCHEME}{role}/{name}"),
            false => format!("{SCHEME}{role}/{name}?{limits}"),
        }
    }
}

/// `ROLE/NAME`, for people.
impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

/// From a URI.
impl FromStr for Identity {
    type Err = BadIdentity;

    fn from_str(text: &str) -> Result<Self, BadIdentity> {
        let bad = |why: String| BadIdentity { text: text.chars().take(URI_MAX_LEN).collect(), why };
        if text.len() > URI_MAX_LEN {
            return Err(bad(format!("it is longer than {URI_MAX_LEN}")));
        }
        let form = || bad("expected railyard://ROLE/NAME".to_owned());
        let rest = text.strip_prefix(SCHEME).ok_or_else(form)?;
        let (role, rest) = rest.split_once('/').ok_or_else(form)?;
        let role = role.parse().map_err(|error: BadRole| bad(error.to_string()))?;
        let (name, query) = rest.split_once('?').unwrap_or((rest, ""));
        let limits = parse_limits(query).map_err(bad)?;
        Self::new(role, name)?.within(limits)
    }
}

/// What is not known is refused: a limit that an older controller does not understand must not count as none.
fn parse_limits(query: &str) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or_else(|| format!("`{pair}` is no limit"))?;
        match name {
            "pipeline" => limits.pipelines = parse_set(value)?,
            "platform" => limits.platforms = parse_set(value)?,
            "pool" if value.is_empty() => limits.pool = PoolLimit::Outside,
            "pool" => limits.pool = PoolLimit::Only(value.parse::<PoolName>().map_err(|error| error.to_string())?),
            "tier" if value == UNTRUSTED => limits.untrusted = true,
            "tier" => return Err(format!("`{value}` is no tier to be limited to: expected {UNTRUSTED}")),
            _ => return Err(format!("`{name}` is no limit that is known here")),
        }
    }
    Ok(limits)
}

/// A limit that is there names something: an empty one would be none.
fn parse_set<T: FromStr<Err: fmt::Display> + Ord>(text: &str) -> Result<BTreeSet<T>, String> {
    text.split(',').map(|item| item.parse().map_err(|error: T::Err| error.to_string())).collect()
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri())
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn identity(uri: &str) -> Identity {
        uri.parse().unwrap()
    }

    #[test]
    fn limits_are_part_of_the_text() {
        for uri in [
            "railyard://worker/rack-3",
            "railyard://worker/rack-3?platform=linux/amd64,linux/arm64&pool=signing",
            "railyard://worker/rack-3?pool=",
            "railyard://submitter/ana@example.org?pipeline=flatcar,sdk",
            "railyard://submitter/ci?tier=untrusted",
            "railyard://submitter/ci?pipeline=flatcar&tier=untrusted",
        ] {
            assert_eq!(identity(uri).uri(), uri);
        }
        assert!(identity("railyard://submitter/ci?tier=untrusted").limits.untrusted);
        assert!(!identity("railyard://submitter/ci").limits.untrusted);
        let worker = identity("railyard://worker/w?platform=linux/arm64&pool=signing");
        assert_eq!(worker.to_string(), "worker/w");
        let signing = "signing".parse().unwrap();
        assert!(worker.limits.pool.allows(Some(&signing)) && !worker.limits.pool.allows(None));
        assert!(!identity("railyard://worker/w?pool=").limits.pool.allows(Some(&signing)));
        assert!(identity("railyard://viewer/v").limits.allow_pipeline(&"sdk".parse().unwrap()));
        assert!(!identity("railyard://viewer/v?pipeline=a").limits.allow_pipeline(&"sdk".parse().unwrap()));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for (uri, why) in [
            ("https://worker/w", "expected railyard://ROLE/NAME"),
            ("railyard://worker", "expected railyard://ROLE/NAME"),
            ("railyard://root/w", "`root` is not a role"),
            ("railyard://worker/", "a name is"),
            ("railyard://worker/a b", "a name is"),
            ("railyard://worker/w?pipeline=a", "pipelines do not limit a worker"),
            ("railyard://operator/o?pipeline=a", "an operator has the whole farm"),
            ("railyard://viewer/v?pool=a", "platforms and pools limit workers"),
            ("railyard://viewer/v?pipeline=", "is not a pipeline name"),
            ("railyard://worker/w?platform=linux/riscv64", "is not a platform"),
            ("railyard://viewer/v?tier=untrusted", "the tier limits submitters only"),
            ("railyard://operator/o?tier=untrusted", "the tier limits submitters only"),
            ("railyard://worker/w?tier=untrusted", "the tier limits submitters only"),
            ("railyard://submitter/s?tier=trusted", "`trusted` is no tier"),
            ("railyard://submitter/s?tier=", "`` is no tier"),
            ("railyard://viewer/v?until=2030", "no limit that is known here"),
            ("railyard://viewer/v?pipeline", "is no limit"),
        ] {
            let error = uri.parse::<Identity>().unwrap_err().to_string();
            assert!(error.contains(why), "{uri}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in "(railyard://)?(worker|viewer|submitter|x)?/?[ -~]{0,40}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.uri().parse::<Identity>().unwrap(), identity);
            }
        }
    }
}
