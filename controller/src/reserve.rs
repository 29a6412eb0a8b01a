//! What a rule of the operator's keeps for its pipelines: pools of workers, and directories of published files.
//!
//! ```text
//! pool:signing   publish:images
//! ```
//! What no rule reserves every pipeline may name. `publish:images` is `images` and everything below it.

use railyard_common::id::PoolName;
use railyard_common::path::RelPath;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Something that is one of its kind in a farm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Reserve {
    /// A pool of workers.
    Pool(PoolName),
    /// A directory of published files, with those below.
    Publish(RelPath),
}

/// A text that names nothing that can be reserved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` cannot be reserved: expected `pool:NAME` or `publish:DIRECTORY`")]
pub struct BadReserve(String);

impl Reserve {
    /// Whether whoever has this one has `wanted`.
    pub fn covers(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Pool(own), Self::Pool(wanted)) => own == wanted,
            (Self::Publish(own), Self::Publish(wanted)) => {
                wanted.as_str().strip_prefix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            _ => false,
        }
    }
}

impl fmt::Display for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pool(name) => write!(f, "pool:{name}"),
            Self::Publish(dir) => write!(f, "publish:{dir}"),
        }
    }
}

impl FromStr for Reserve {
    type Err = BadReserve;

    fn from_str(text: &str) -> Result<Self, BadReserve> {
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        let read = match kind {
            "pool" => name.parse().map(Self::Pool).ok(),
            "publish" => name.parse().map(Self::Publish).ok(),
            _ => None,
        };
        read.ok_or_else(|| BadReserve(text.to_owned()))
    }
}

impl TryFrom<String> for Reserve {
    type Error = BadReserve;

    fn try_from(text: String) -> Result<Self, BadReserve> {
        text.parse()
    }
}

impl From<Reserve> for String {
    fn from(reserve: Reserve) -> Self {
        reserve.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_covers_what_lies_below_it_and_nothing_beside() {
        let read = |text: &str| text.parse::<Reserve>().unwrap();
        for (own, wanted, want) in [
            ("pool:signing", "pool:signing", true),
            ("pool:signing", "pool:sign", false),
            ("publish:images", "publish:images", true),
            ("publish:images", "publish:images/amd64/1.0", true),
            ("publish:images", "publish:images-2", false),
            ("publish:images/amd64", "publish:images", false),
            ("pool:images", "publish:images", false),
        ] {
            assert_eq!(read(own).covers(&read(wanted)), want, "{own} {wanted}");
            assert_eq!(read(own).to_string(), own);
        }
        for bad in ["", "pool", "pool:", "pool:No", "publish:", "publish:/x", "publish:../x", "devices:/dev/kvm"] {
            assert!(bad.parse::<Reserve>().is_err(), "{bad}");
        }
    }
}
