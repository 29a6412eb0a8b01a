//! Refusals that a program can tell apart: a stable word beside the gRPC code, carried as `google.rpc.ErrorInfo`.

use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The lease is over or was never this worker's: stop, clean up, report nothing more.
pub const STALE_LEASE: &str = "stale-lease";
/// No such build.
pub const UNKNOWN_BUILD: &str = "unknown-build";
/// No such job in that build.
pub const UNKNOWN_JOB: &str = "unknown-job";
/// No such blob, artifact or log.
pub const NOT_FOUND: &str = "not-found";
/// A build of that pipeline and version exists, and it is another one.
pub const BUILD_EXISTS: &str = "build-exists";
/// The pipeline file is wrong; the message has the diagnostics.
pub const BAD_PIPELINE: &str = "bad-pipeline";
/// The idempotency key was used for another request.
pub const KEY_REUSED: &str = "key-reused";
/// No job of that name, or none of which that could be done.
pub const NO_SUCH_JOB: &str = "no-such-job";
/// No job of the build waits for approval.
pub const NOTHING_TO_APPROVE: &str = "nothing-to-approve";
/// No such worker.
pub const UNKNOWN_WORKER: &str = "unknown-worker";
/// Nothing holds the worker back.
pub const NOT_HELD: &str = "not-held";
/// The worker was sent away for good: its process is to end.
pub const WORKER_RETIRED: &str = "worker-retired";
/// The message itself is wrong: a field is missing or malformed.
pub const BAD_REQUEST: &str = "bad-request";
/// Client or worker and controller do not speak the same protocol.
pub const PROTOCOL: &str = "protocol";
/// The caller showed no certificate.
pub const UNAUTHENTICATED: &str = "unauthenticated";
/// The caller's certificate was taken back.
pub const REVOKED: &str = "revoked";
/// A token is damaged, not known, expired or used.
pub const BAD_TOKEN: &str = "bad-token";
/// The caller's role may not do that.
pub const FORBIDDEN: &str = "forbidden";
/// A step wants what the operator's policy does not allow its pipeline.
pub const POLICY: &str = "policy";
/// A secret is missing, or cannot be opened.
pub const SECRET: &str = "secret";
/// An upload is not complete, or its bytes are not what was promised.
pub const BAD_UPLOAD: &str = "bad-upload";
/// Log bytes do not continue where the log ends.
pub const LOG_GAP: &str = "log-gap";
/// The attempt's log has reached its limit.
pub const LOG_FULL: &str = "log-full";
/// Another worker of that name is connected. It may be the caller's own earlier life, which is about to be noticed.
pub const NAME_TAKEN: &str = "name-taken";
/// A limit of the farm is reached; later may work.
pub const BUSY: &str = "busy";
/// The controller cannot write its journal for now; nothing was begun.
pub const STANDSTILL: &str = "standstill";
/// What was announced did not come in time.
pub const TOO_SLOW: &str = "too-slow";
/// The controller is stopping; try again soon.
pub const STOPPING: &str = "stopping";
/// The cache cannot be reached or refuses.
pub const CACHE: &str = "cache";
/// The controller's own fault; its log says more.
pub const INTERNAL: &str = "internal";
/// A sweep must not begin, or its plan is out of date.
pub const SWEEP_STOPPED: &str = "sweep-stopped";
/// What a build publishes cannot lie in that channel.
pub const NOT_PROMOTABLE: &str = "not-promotable";

/// The `domain` of every `ErrorInfo` of the farm.
const DOMAIN: &str = "railyard";
/// In its metadata, of what is to be recorded.
const SUSPICIOUS: &str = "suspicious";

/// Longest message, in bytes. It travels in a header, twice: once more within the details. Some clients take no more than 8 KiB of
/// headers, and an answer with more breaks their whole connection, with all other calls on it.
const MESSAGE_MAX_BYTES: usize = 2 * 1024;
/// The same of what it becomes in its header, where most characters that are no letters take three bytes or more.
const ENCODED_MAX_BYTES: usize = 3 * 1024;
/// Stands where a message was cut.
const CUT: &str = "…";

/// A status with a code, a stable reason (a constant of this module) and a message for people, which is cut if it is too long.
pub fn refusal(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    with(code, reason, message.into(), HashMap::new())
}

/// The same of what nobody asks who keeps to the protocol. It is to be recorded, whatever its code.
pub fn suspicious(code: Code, reason: &'static str, message: impl Into<String>) -> Status {
    with(code, reason, message.into(), HashMap::from([(SUSPICIOUS.to_owned(), "true".to_owned())]))
}

fn with(code: Code, reason: &'static str, message: String, more: HashMap<String, String>) -> Status {
    Status::with_error_details(code, cut(message), ErrorDetails::with_error_info(reason, DOMAIN, more))
}

fn cut(mut message: String) -> String {
    let mut encoded = 0;
    let too_long = message.char_indices().find(|(at, c)| {
        let len = c.len_utf8();
        // More are encoded than must be: it depends on who does it.
        encoded += if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | '/') { len } else { 3 * len };
        at + len > MESSAGE_MAX_BYTES || encoded > ENCODED_MAX_BYTES
    });
    if let Some((at, _)) = too_long {
        message.truncate(message.floor_char_boundary(at.saturating_sub(CUT.len())));
        message.push_str(CUT);
    }
    message
}

/// The reason that [`refusal`] put in; `None` for a status that did not come from the farm's own code.
pub fn reason_of(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    let info = details.error_info()?;
    (info.domain == DOMAIN).then(|| info.reason.clone())
}

/// Whether [`suspicious`] made it.
pub fn is_suspicious(status: &Status) -> bool {
    let details = status.get_error_details();
    details.error_info().is_some_and(|info| info.domain == DOMAIN && info.metadata.contains_key(SUSPICIOUS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_survives_the_headers() {
        let status = refusal(Code::FailedPrecondition, STALE_LEASE, "lease j1.1 is over");
        let headers = status.into_http::<()>().into_parts().0.headers;
        let back = Status::from_header_map(&headers).unwrap();
        assert_eq!(
            (back.code(), back.message(), reason_of(&back).as_deref()),
            (Code::FailedPrecondition, "lease j1.1 is over", Some(STALE_LEASE))
        );
        assert_eq!(reason_of(&Status::internal("from elsewhere")), None);
        let suspect = suspicious(Code::FailedPrecondition, STALE_LEASE, "lease j1.1 is another worker's");
        let suspect = Status::from_header_map(&suspect.into_http::<()>().into_parts().0.headers).unwrap();
        assert_eq!(reason_of(&suspect).as_deref(), Some(STALE_LEASE));
        assert_eq!((is_suspicious(&suspect), is_suspicious(&back)), (true, false));
    }

    #[test]
    fn a_message_is_cut_before_its_headers_are_too_large() {
        for text in ["a", "no such build `a/1`\n", "é😀", "\u{202e}", "%", "ä\""] {
            let long = text.repeat(100_000);
            let status = refusal(Code::NotFound, NOT_FOUND, &long);
            let told = status.message().strip_suffix(CUT).expect("it says that it was cut").to_owned();
            assert!(told.len() >= 900 && told.len() <= MESSAGE_MAX_BYTES && long.starts_with(&told), "{}", told.len());
            let headers = status.into_http::<()>().into_parts().0.headers;
            let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
            assert!(bytes < 8 * 1024, "{text}: {bytes}");
            let back = Status::from_header_map(&headers).unwrap();
            assert_eq!(reason_of(&back).as_deref(), Some(NOT_FOUND));
        }
        let fits = "a".repeat(MESSAGE_MAX_BYTES);
        assert_eq!(refusal(Code::NotFound, NOT_FOUND, &fits).message(), fits);
    }
}
