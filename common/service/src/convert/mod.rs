//! Protocol to domain and back.
//!
//! **Invariant:** a domain value that came out of [`FromProto`] is valid: its texts parsed, its lists and texts are
//! within the limits below, and every part that must be there is there.

mod cache;
mod disk;
mod order;
mod outcome;
#[cfg(test)]
mod tests;

use crate::rpc_error;
use prost_types::Timestamp;
use railyard_common::id::{JobId, LeaseId};
use railyard_common::job::Capacity;
use railyard_common::platform::PlatformOffer;
use railyard_common::time::Millis;
use railyard_proto::v1;
use std::fmt;
use std::str::FromStr;

/// Longest script: scripts are written by people; what is bigger belongs into an input artifact.
pub const SCRIPT_MAX_BYTES: usize = 1024 * 1024;
/// Longest list in a message: more artifacts than any image build leaves, few enough to hold in memory many times.
pub const LIST_MAX_LEN: usize = 10_000;
/// Longest short text: names, media types, paths, references.
pub const TEXT_MAX_BYTES: usize = 4096;
/// Longest value of an environment variable: what Linux takes for one string at exec.
pub const ENV_VALUE_MAX_BYTES: usize = 128 * 1024;

/// Has a form in the protocol.
pub trait ToProto {
    /// That form.
    type Proto;

    /// Converts to it.
    fn to_proto(&self) -> Self::Proto;
}

/// Can be read from `P`, a form in the protocol.
pub trait FromProto<P>: Sized {
    /// Checks and converts.
    ///
    /// # Errors
    /// [`BadMessage`], which names the field.
    fn from_proto(proto: P) -> Result<Self, BadMessage>;
}

/// A message that is not what the protocol promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadMessage {
    /// Where: `run.outputs[2].glob`. Empty for the message as a whole.
    pub field: String,
    /// What is wrong with it.
    pub why: String,
}

impl fmt::Display for BadMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field.as_str() {
            "" => write!(f, "bad message: {}", self.why),
            field => write!(f, "bad message: {field}: {}", self.why),
        }
    }
}

impl std::error::Error for BadMessage {}

impl BadMessage {
    /// The field is wrong.
    pub fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }

    /// The same, seen from the message that holds this one in `outer`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Self {
        self.field = match self.field.as_str() {
            "" => outer.to_owned(),
            inner if inner.starts_with('[') => format!("{outer}{inner}"),
            inner => format!("{outer}.{inner}"),
        };
        self
    }
}

impl From<BadMessage> for tonic::Status {
    fn from(bad: BadMessage) -> Self {
        rpc_error::refusal(tonic::Code::InvalidArgument, rpc_error::BAD_REQUEST, bad.to_string())
    }
}

/// A part that must be there.
///
/// # Errors
/// [`BadMessage`] that names `field`.
pub fn required<P, T: FromProto<P>>(field: &str, proto: Option<P>) -> Result<T, BadMessage> {
    let proto = proto.ok_or_else(|| BadMessage::new(field, "it is missing"))?;
    T::from_proto(proto).map_err(|bad| bad.within(field))
}

/// A part that may be missing.
///
/// # Errors
/// [`BadMessage`] within `field`.
pub fn optional<P, T: FromProto<P>>(field: &str, proto: Option<P>) -> Result<Option<T>, BadMessage> {
    proto.map(T::from_proto).transpose().map_err(|bad| bad.within(field))
}

/// A list of at most [`LIST_MAX_LEN`].
///
/// # Errors
/// [`BadMessage`] that names `field` and the place in the list.
pub fn list<P, T: FromProto<P>>(field: &str, protos: Vec<P>) -> Result<Vec<T>, BadMessage> {
    at_most(field, protos.len(), LIST_MAX_LEN, "entries")?;
    let parsed = protos.into_iter().enumerate();
    parsed.map(|(n, proto)| T::from_proto(proto).map_err(|bad| bad.within(&format!("{field}[{n}]")))).collect()
}

/// A text that must parse, of at most [`TEXT_MAX_BYTES`].
///
/// # Errors
/// [`BadMessage`] that names `field`.
pub fn parsed<T: FromStr<Err: fmt::Display>>(field: &str, text: &str) -> Result<T, BadMessage> {
    at_most(field, text.len(), TEXT_MAX_BYTES, "bytes")?;
    text.parse().map_err(|error: T::Err| BadMessage::new(field, error.to_string()))
}

/// A text that must parse, or nothing if it is empty.
///
/// # Errors
/// [`BadMessage`] that names `field`.
pub fn parsed_if_given<T: FromStr<Err: fmt::Display>>(field: &str, text: &str) -> Result<Option<T>, BadMessage> {
    if text.is_empty() { Ok(None) } else { parsed(field, text).map(Some) }
}

/// Every element in its protocol form.
pub fn all<T: ToProto>(values: &[T]) -> Vec<T::Proto> {
    values.iter().map(ToProto::to_proto).collect()
}

/// Refuses a length over `limit`.
///
/// # Errors
/// [`BadMessage`] that names `field`.
pub fn at_most(field: &str, len: usize, limit: usize, unit: &str) -> Result<(), BadMessage> {
    if len <= limit {
        return Ok(());
    }
    Err(BadMessage::new(field, format!("it has {len} {unit}; the limit is {limit}")))
}

/// A point in time in the protocol's form.
pub fn timestamp(at: Millis) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(at.0 / 1000).unwrap_or(i64::MAX),
        // Below 1e9: a remainder of 1000, times 1e6.
        nanos: i32::try_from(at.0 % 1000 * 1_000_000).unwrap_or_default(),
    }
}

/// A point in time from the protocol's form; before 1970 is 1970.
pub fn millis(at: &Timestamp) -> Millis {
    let seconds = u64::try_from(at.seconds).unwrap_or_default();
    let millis = u64::try_from(at.nanos / 1_000_000).unwrap_or_default();
    Millis(seconds.saturating_mul(1000).saturating_add(millis))
}

impl ToProto for LeaseId {
    type Proto = v1::LeaseId;

    fn to_proto(&self) -> v1::LeaseId {
        v1::LeaseId { job: self.job.0, attempt: self.attempt }
    }
}

impl FromProto<v1::LeaseId> for LeaseId {
    fn from_proto(proto: v1::LeaseId) -> Result<Self, BadMessage> {
        if proto.attempt == 0 {
            return Err(BadMessage::new("attempt", "it is 0; attempts are numbered from 1"));
        }
        Ok(Self { job: JobId(proto.job), attempt: proto.attempt })
    }
}

impl ToProto for Capacity {
    type Proto = v1::Capacity;

    fn to_proto(&self) -> v1::Capacity {
        let Self { cpu_millis, memory_bytes, disk_bytes, slots } = *self;
        v1::Capacity { cpu_millis, memory_bytes, disk_bytes, slots }
    }
}

impl FromProto<v1::Capacity> for Capacity {
    fn from_proto(proto: v1::Capacity) -> Result<Self, BadMessage> {
        let v1::Capacity { cpu_millis, memory_bytes, disk_bytes, slots } = proto;
        Ok(Self { cpu_millis, memory_bytes, disk_bytes, slots })
    }
}

impl ToProto for PlatformOffer {
    type Proto = v1::PlatformOffer;

    fn to_proto(&self) -> v1::PlatformOffer {
        v1::PlatformOffer { platform: self.platform.to_string(), emulated: self.emulated }
    }
}

impl FromProto<v1::PlatformOffer> for PlatformOffer {
    fn from_proto(proto: v1::PlatformOffer) -> Result<Self, BadMessage> {
        Ok(Self { platform: parsed("platform", &proto.platform)?, emulated: proto.emulated })
    }
}
