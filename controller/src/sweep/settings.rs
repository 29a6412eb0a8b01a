//! The settings of retention, which can change while the controller runs.

use crate::cache::CacheConfig;
use bytesize::ByteSize;
use railyard_common::retention::{Age, BadRule, Copies, Policy, Rule};
use serde::{Deserialize, Serialize};

/// `[sweep]`: when and how what is not kept is deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SweepConfig {
    /// How long after the last sweep the next one begins; `0s`: only when somebody says `railyard gc run`. Default: 1h.
    pub every: Age,
    /// How long something that is not kept stays before it is deleted: a build that was reduced, a blob that no build refers to. URLs that
    /// were given out are good for an hour, so less than that breaks downloads. Default: 1day.
    pub grace: Age,
    /// Most deletes in a second; 0: as many as the cache takes. Default: 5000.
    pub deletes_per_sec: u32,
    /// When the builds have more bytes than that in the cache, the oldest that nothing protects go. Default: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<ByteSize>,
    /// Until they have no more than so many. Default: nine tenths of `max_bytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_bytes: Option<ByteSize>,
}

impl Default for SweepConfig {
    fn default() -> Self {
        Self {
            every: Age { secs: 3600 },
            grace: Age::days(1),
            deletes_per_sec: 5_000,
            max_bytes: None,
            low_bytes: None,
        }
    }
}

impl SweepConfig {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Everything that the sweeper is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// When and how.
    pub sweep: SweepConfig,
    /// What.
    pub policy: Policy,
}

impl Settings {
    /// As the configuration says.
    ///
    /// # Errors
    /// [`BadRule`].
    pub fn new(sweep: &SweepConfig, rules: &[Rule], cache: Option<&CacheConfig>) -> Result<Self, BadRule> {
        let copies = match cache {
            Some(CacheConfig::S3(_)) => Copies::Always,
            // Without a word about it, too.
            Some(CacheConfig::Embedded(_)) | None => Copies::OfEncoded,
        };
        let policy = Policy { rules: rules.to_vec(), max_bytes: sweep.max_bytes, low_bytes: sweep.low_bytes, copies };
        policy.check()?;
        Ok(Self { sweep: sweep.clone(), policy })
    }
}
