//! Secrets, without what they are.

use super::{some, time};
use jiff::Timestamp;
use railyard_proto::v1;
use serde::Serialize;

/// A secret that is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Secret {
    pub name: String,
    pub pipelines: Vec<String>,
    /// Empty: every step that asks for it.
    pub steps: Vec<String>,
    pub set_at: Option<Timestamp>,
    pub set_by: String,
    /// Why no step gets it.
    pub fault: Option<String>,
}

impl From<v1::SecretView> for Secret {
    fn from(view: v1::SecretView) -> Self {
        let v1::SecretView { name, pipelines, steps, set_at, set_by, fault } = view;
        Self { name, pipelines, steps, set_at: time(set_at), set_by, fault: some(fault) }
    }
}
