//! What a step does not have by itself: rights that a worker and an operator's policy have to allow, both.
//!
//! ```text
//! privileged   capabilities:SYS_ADMIN   devices:/dev/kvm   host-paths:/srv/ccache   host-paths:/srv/ccache:rw
//! ```
//! In what is allowed, a `*` at the end of a capability or a device stands for the rest: `devices:/dev/loop*`. A host path is
//! allowed as it is written and not what lies below: whoever may write there could lead a path below it out by a link.

use crate::job::{HostPath, RunSpec};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Linux' capabilities, without their `CAP_`.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// What `default` stands for in a step's capabilities: the set that Docker gives to containers, but `NET_RAW`, with which a step
/// could pretend to its neighbours on the worker's bridge to be somebody else. Everybody has it who asks.
pub const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// A right. In what is allowed, names may end in a `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Right {
    /// Everything: whoever has it can do anything to the host.
    Privileged,
    /// A capability beyond the default ones, without `CAP_`.
    Capability(String),
    /// A device of the host.
    Device(String),
    /// A directory or file of the host.
    HostPath {
        /// Where it is there.
        source: String,
        /// The step writes there.
        writable: bool,
    },
}

/// A text that is no right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a right: expected `privileged`, `capabilities:NAME` (such as `SYS_ADMIN`), `devices:/dev/NAME`, `host-paths:/PATH` or `host-paths:/PATH:rw`"
)]
pub struct BadRight(String);

/// What a step wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// What it cannot run without.
    pub required: Vec<Right>,
    /// What it can do without.
    pub optional: Vec<Right>,
}

impl Wanted {
    /// Everything that `run` wants beyond what all steps have.
    pub fn of(run: &RunSpec) -> Self {
        let mut wanted = Self::default();
        if run.privileged {
            wanted.required.push(Right::Privileged);
        }
        for name in &run.capabilities {
            let name = name.to_ascii_uppercase();
            let name = name.strip_prefix("CAP_").unwrap_or(&name);
            if name != "DEFAULT" && !DEFAULT_CAPABILITIES.contains(&name) {
                wanted.required.push(Right::Capability(name.to_owned()));
            }
        }
        for device in &run.devices {
            let list = if device.optional { &mut wanted.optional } else { &mut wanted.required };
            list.push(Right::Device(device.path.clone()));
        }
        wanted.required.extend(run.host_paths.iter().map(Right::of_host_path));
        wanted
    }
}

impl Right {
    fn of_host_path(path: &HostPath) -> Self {
        Self::HostPath { source: path.source.clone(), writable: path.writable }
    }

    /// Whether this, where it is allowed, covers `wanted`.
    pub fn covers(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            // It could take all of that by itself.
            (Self::Privileged, _) => true,
            (Self::Capability(allowed), Self::Capability(name)) | (Self::Device(allowed), Self::Device(name)) => {
                crate::id::is_match(allowed, name)
            }
            (
                Self::HostPath { source: allowed, writable: may_write },
                Self::HostPath { source, writable: wants_to_write },
            ) => allowed == source && (*may_write || !wants_to_write),
            _ => false,
        }
    }
}

/// Whether any of `allowed` covers `wanted`.
pub fn allows(allowed: &[Right], wanted: &Right) -> bool {
    allowed.iter().any(|right| right.covers(wanted))
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Privileged => f.write_str("privileged"),
            Self::Capability(name) => write!(f, "capabilities:{name}"),
            Self::Device(path) => write!(f, "devices:{path}"),
            Self::HostPath { source, writable: false } => write!(f, "host-paths:{source}"),
            Self::HostPath { source, writable: true } => write!(f, "host-paths:{source}:rw"),
        }
    }
}

impl FromStr for Right {
    type Err = BadRight;

    fn from_str(text: &str) -> Result<Self, BadRight> {
        let bad = || BadRight(text.to_owned());
        let (kind, name) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "privileged" if text == kind => Ok(Self::Privileged),
            "capabilities" => capability(name).map(Self::Capability).ok_or_else(bad),
            "devices" if name.starts_with("/dev/") && is_path(name) => Ok(Self::Device(name.to_owned())),
            "host-paths" => {
                let (source, writable) = name.strip_suffix(":rw").map_or((name, false), |source| (source, true));
                let right = Self::HostPath { source: source.to_owned(), writable };
                is_path(source).then_some(right).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
    }
}

/// One of Linux' capabilities without its `CAP_`, in upper case, or the beginning of one with a `*` behind it. What means none would
/// allow nothing, and nobody would see why.
fn capability(text: &str) -> Option<String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    CAPABILITIES.iter().any(|known| crate::id::is_match(name, known)).then(|| name.to_owned())
}

/// Absolute, without anything that climbs, and without what the engine's own forms use.
fn is_path(path: &str) -> bool {
    let rest = path.strip_prefix('/');
    rest.is_some_and(|rest| rest.parse::<crate::path::RelPath>().is_ok()) && !path.contains([':', ','])
}

impl TryFrom<String> for Right {
    type Error = BadRight;

    fn try_from(text: String) -> Result<Self, BadRight> {
        text.parse()
    }
}

impl From<Right> for String {
    fn from(right: Right) -> Self {
        right.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(text: &str) -> Right {
        text.parse().unwrap()
    }

    #[test]
    fn rights_are_read_as_they_are_written() {
        for text in [
            "privileged",
            "capabilities:SYS_ADMIN",
            "capabilities:*",
            "devices:/dev/kvm",
            "devices:/dev/loop*",
            "host-paths:/srv/ccache",
            "host-paths:/srv/ccache:rw",
        ] {
            assert_eq!(right(text).to_string(), text);
        }
        // In every form that a pipeline may give it.
        for text in ["capabilities:CAP_SYS_ADMIN", "capabilities:sys_admin", "capabilities:Cap_Sys_Admin"] {
            assert_eq!(right(text).to_string(), "capabilities:SYS_ADMIN");
        }
        assert_eq!(right("capabilities:CAP_SYS_*").to_string(), "capabilities:SYS_*");
        for bad in [
            "",
            "privileged:yes",
            "capabilities:",
            "capabilities:FOO",
            "capabilities:FOO*",
            "capabilities:**",
            "devices:/etc/shadow",
            "devices:/dev/../etc",
            "host-paths:/",
            "host-paths:srv",
            "host-paths:/srv/../etc",
            "host-paths:/srv:ro",
            "root",
        ] {
            assert!(bad.parse::<Right>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_allowed_covers_itself_and_no_more() {
        for (allowed, wanted, want) in [
            ("privileged", "devices:/dev/sda", true),
            ("devices:/dev/sda", "privileged", false),
            ("devices:/dev/loop*", "devices:/dev/loop-control", true),
            ("devices:/dev/loop", "devices:/dev/loop0", false),
            ("capabilities:*", "capabilities:SYS_ADMIN", true),
            ("capabilities:*", "privileged", false),
            ("capabilities:SYS_ADMIN", "capabilities:SYS_MODULE", false),
            ("host-paths:/srv", "host-paths:/srv", true),
            ("host-paths:/srv", "host-paths:/srv:rw", false),
            ("host-paths:/srv:rw", "host-paths:/srv", true),
            ("host-paths:/srv:rw", "host-paths:/srv/deep", false),
        ] {
            assert_eq!(allows(&[right(allowed)], &right(wanted)), want, "{allowed} and {wanted}");
        }
        assert!(!allows(&[], &Right::Privileged));
    }
}
