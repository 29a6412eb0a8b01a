//! The audit, as programs read it.

use super::some;
use railyard_controller::audit::{Fault, Verified};
use railyard_proto::v1;
use serde::Serialize;
use std::collections::BTreeMap;

/// One record: the fields of the file, in its order. What is empty is left out, as it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditRecord {
    pub seq: u64,
    pub at: String,
    pub by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    pub what: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    pub outcome: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    pub prev: String,
    pub hash: String,
}

/// What stands in a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum AuditLine {
    Record(Box<AuditRecord>),
    /// It is no record.
    Damaged {
        damaged: String,
    },
}

impl From<v1::AuditRecord> for AuditLine {
    fn from(proto: v1::AuditRecord) -> Self {
        if !proto.damaged.is_empty() {
            return Self::Damaged { damaged: proto.damaged };
        }
        Self::Record(Box::new(AuditRecord {
            seq: proto.seq,
            at: proto.at,
            by: proto.by,
            from: some(proto.from),
            via: some(proto.via),
            what: proto.what,
            target: some(proto.target),
            outcome: proto.outcome,
            reason: some(proto.reason),
            details: proto.details.into_iter().collect(),
            prev: proto.prev,
            hash: proto.hash,
        }))
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditCheck {
    pub good: bool,
    pub records: u64,
    pub files: u64,
    /// `SEQ:HASH` of the last record.
    pub head: String,
    pub faults: Vec<AuditFault>,
    pub more_faults: u64,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditFault {
    pub file: String,
    /// `None`: the file as a whole.
    pub line: Option<u64>,
    pub what: String,
}

impl AuditFault {
    fn new(file: String, line: u64, what: String) -> Self {
        Self { file, line: Some(line).filter(|&line| line > 0), what }
    }

    /// `FILE:LINE: WHAT`
    pub fn sentence(&self) -> String {
        match self.line {
            Some(line) => format!("{}:{line}: {}", self.file, self.what),
            None => format!("{}: {}", self.file, self.what),
        }
    }
}

impl From<v1::VerifyAuditResponse> for AuditCheck {
    fn from(proto: v1::VerifyAuditResponse) -> Self {
        let fault = |fault: v1::AuditFault| AuditFault::new(fault.file, fault.line, fault.what);
        Self {
            good: proto.faults.is_empty(),
            records: proto.records,
            files: proto.segments,
            head: proto.head,
            faults: proto.faults.into_iter().map(fault).collect(),
            more_faults: proto.more_faults,
        }
    }
}

impl From<Verified> for AuditCheck {
    fn from(verified: Verified) -> Self {
        let fault = |fault: Fault| AuditFault::new(fault.file, fault.line, fault.what);
        Self {
            good: verified.is_good(),
            records: verified.records,
            files: verified.segments,
            head: verified.head.to_string(),
            faults: verified.faults.into_iter().map(fault).collect(),
            more_faults: verified.more_faults,
        }
    }
}
