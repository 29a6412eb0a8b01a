//! The gRPC services: messages are parsed here, refusals become statuses here, and nothing else happens here.

mod access;
mod admin;
mod audit;
mod auth;
mod change;
mod client;
pub mod fuzz;
mod holds;
mod keep;
mod read;
mod refusals;
mod report;
mod secrets;
mod submit;
mod sweep;
mod view;
mod worker;

pub use access::{AccessControl, Validity};
pub use admin::Admin;
pub use client::Client;
pub use refusals::note_refusals;
pub use secrets::Giver;
pub use worker::Workers;

use crate::cache::CacheError;
use crate::driver::CommandError;
use crate::logs::LogError;
use railyard_core::{Refusal, RefusalKind};
use railyard_service::{error_chain, rpc_error};
use tonic::{Code, Status};

/// A refusal of the farm, for the one who asked.
fn command_status(error: CommandError) -> Status {
    match &error {
        CommandError::Refused(refusal) => {
            let code = match refusal.kind() {
                RefusalKind::NotFound => Code::NotFound,
                RefusalKind::Exists => Code::AlreadyExists,
                RefusalKind::State | RefusalKind::Stale => Code::FailedPrecondition,
                RefusalKind::Invalid => Code::InvalidArgument,
                RefusalKind::Limit => Code::ResourceExhausted,
                RefusalKind::Unproven => Code::Unauthenticated,
                RefusalKind::Forbidden => Code::PermissionDenied,
            };
            if matches!(refusal, Refusal::ForeignLease(_)) {
                return rpc_error::suspicious(code, refusal.reason(), error.to_string());
            }
            rpc_error::refusal(code, refusal.reason(), error.to_string())
        }
        CommandError::Journal(_) => rpc_error::refusal(Code::Unavailable, rpc_error::BUSY, error.to_string()),
        CommandError::Standstill(_) => rpc_error::refusal(Code::Unavailable, rpc_error::STANDSTILL, error.to_string()),
        CommandError::Stopping => rpc_error::refusal(Code::Unavailable, rpc_error::STOPPING, error.to_string()),
    }
}

/// A failure of the cache, for the one who asked.
fn cache_status(error: &CacheError) -> Status {
    let (code, reason) = match error {
        CacheError::Corrupt { .. } | CacheError::Incomplete { .. } => (Code::DataLoss, rpc_error::BAD_UPLOAD),
        CacheError::UnknownUpload { .. } | CacheError::NoBlob { .. } => (Code::NotFound, rpc_error::NOT_FOUND),
        CacheError::Invalid { .. } | CacheError::TooLarge { .. } | CacheError::BadPath { .. } => {
            (Code::InvalidArgument, rpc_error::BAD_REQUEST)
        }
        CacheError::Conflict { .. } => (Code::AlreadyExists, rpc_error::CACHE),
        CacheError::DiskFull { .. } => (Code::ResourceExhausted, rpc_error::CACHE),
        CacheError::Io { .. } | CacheError::Store { .. } | CacheError::Config { .. } => {
            (Code::Unavailable, rpc_error::CACHE)
        }
    };
    rpc_error::refusal(code, reason, error_chain(error))
}

/// A failure of a log, for the one who asked.
fn log_status(error: &LogError) -> Status {
    let (code, reason) = match error {
        LogError::Gap { .. } => (Code::OutOfRange, rpc_error::LOG_GAP),
        // It passes: the worker keeps the bytes and sends them again.
        LogError::Io { source, .. } if is_full(source) => (Code::ResourceExhausted, rpc_error::BUSY),
        LogError::Io { .. } | LogError::Cache { .. } => (Code::Unavailable, rpc_error::INTERNAL),
    };
    rpc_error::refusal(code, reason, error_chain(error))
}

fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

/// A text of the request that cannot be parsed.
fn bad_request(error: impl std::fmt::Display) -> Status {
    rpc_error::refusal(Code::InvalidArgument, rpc_error::BAD_REQUEST, error.to_string())
}

/// Both sides must speak a protocol that the other knows.
fn check_protocol(who: &str, version: &str, protocol: u32, oldest: u32) -> Result<(), Status> {
    if (oldest..=railyard_common::PROTOCOL).contains(&protocol) {
        return Ok(());
    }
    let (mine, software) = (railyard_common::PROTOCOL, railyard_common::VERSION);
    let message = format!(
        "{who} {version} speaks protocol {protocol}, the controller ({software}) speaks {oldest} to {mine}; upgrade the older one"
    );
    Err(rpc_error::refusal(Code::FailedPrecondition, rpc_error::PROTOCOL, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::id::{BuildId, JobId, LeaseId, WorkerName};

    #[test]
    fn the_farm_s_words_are_those_that_clients_know() {
        let (build, worker): (BuildId, WorkerName) = ("mini/1".parse().unwrap(), "w1".parse().unwrap());
        for (refusal, word) in [
            (Refusal::UnknownBuild(build.clone()), rpc_error::UNKNOWN_BUILD),
            (Refusal::BuildExists(build.clone()), rpc_error::BUILD_EXISTS),
            (Refusal::KeyReused { key: "k".to_owned(), build: build.clone() }, rpc_error::KEY_REUSED),
            (Refusal::NoSuchJob { build: build.clone(), job: "j".to_owned(), what: "runs" }, rpc_error::NO_SUCH_JOB),
            (Refusal::NothingToApprove(build), rpc_error::NOTHING_TO_APPROVE),
            (Refusal::UnknownWorker(worker.clone()), rpc_error::UNKNOWN_WORKER),
            (Refusal::NotHeld(worker.clone()), rpc_error::NOT_HELD),
            (Refusal::Retired { worker, hold: "retired".to_owned() }, rpc_error::WORKER_RETIRED),
            (Refusal::StaleLease(LeaseId { job: JobId(1), attempt: 1 }), rpc_error::STALE_LEASE),
            (Refusal::ForeignLease(LeaseId { job: JobId(1), attempt: 1 }), rpc_error::STALE_LEASE),
        ] {
            assert_eq!(refusal.reason(), word);
            assert_eq!(rpc_error::reason_of(&command_status(refusal.into())).as_deref(), Some(word));
        }
    }
}
