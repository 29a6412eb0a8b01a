//! What can go wrong with the engine.

use bollard::errors::Error;
use railyard_service::error_chain;
use std::path::PathBuf;

/// The engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It does not answer, or the part of it that runs containers does not answer it.
    #[error("no container engine answers at {}: {why}; is it running?", socket.display())]
    Unreachable {
        /// Where it should be.
        socket: PathBuf,
        /// What was seen instead.
        why: String,
    },
    /// It refused, or failed.
    #[error("the container engine could not {doing}: {message}")]
    Refused {
        /// What was asked.
        doing: String,
        /// HTTP status, if it answered with one.
        status: Option<u16>,
        /// In its own words.
        message: String,
    },
}

impl RuntimeError {
    pub(super) fn from_engine(socket: &std::path::Path, doing: &str, error: Error) -> Self {
        match error {
            Error::DockerResponseServerError { status_code, message } if says_unavailable(status_code, &message) => {
                Self::Unreachable { socket: socket.to_owned(), why: one_line(&message) }
            }
            Error::DockerResponseServerError { status_code, message } => {
                Self::Refused { doing: doing.to_owned(), status: Some(status_code), message: one_line(&message) }
            }
            Error::DockerStreamError { error } => {
                Self::Refused { doing: doing.to_owned(), status: None, message: one_line(&error) }
            }
            Error::JsonDataError { message, .. } => {
                let message = format!("its answer makes no sense here: {message}");
                Self::Refused { doing: doing.to_owned(), status: None, message }
            }
            other => Self::Unreachable { socket: socket.to_owned(), why: one_line(&error_chain(&other)) },
        }
    }

    /// The engine is gone or does not answer.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// The engine says that what was named is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: Some(404), .. })
    }

    /// The engine says that it is being done already, or that what was named is in use.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { status: Some(409), .. })
    }

    /// A disk is full: the engine's, or one that it writes to.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Refused { message, .. } | Self::Unreachable { why: message, .. } => crate::disk::says_full(message),
        }
    }

    /// The engine was given an archive, and could not unpack what is in it.
    pub fn is_about_archive(&self) -> bool {
        // Its host may be at fault, which says nothing of the archive.
        const HOST: [&str; 8] = [
            "input/output error",
            "read-only file system",
            "too many open files",
            "cannot allocate memory",
            "quota exceeded",
            "signal: killed",
            "operation not permitted",
            "insufficient UIDs",
        ];
        let Self::Refused { status: None | Some(400 | 500), message, .. } = self else { return false };
        let unpacks = ["Error processing tar file", "failed to extract", "ApplyLayer", "invalid tar header"];
        !self.is_disk_full()
            && unpacks.iter().any(|word| message.contains(word))
            && !HOST.iter().any(|word| message.contains(word))
    }

    /// A pull failed because the registry answered and has no such image for us, not because it could not be asked.
    pub fn is_image_unknown(&self) -> bool {
        let Self::Refused { status, message, .. } = self else { return false };
        const ANSWERS: [&str; 7] = [
            "manifest unknown",
            "not found",
            "pull access denied",
            "repository does not exist",
            "no matching manifest",
            "invalid reference format",
            "does not match the specified platform",
        ];
        *status == Some(404) || *status == Some(400) || ANSWERS.iter().any(|answer| message.contains(answer))
    }
}

/// The engine's daemon answers, but its containerd does not: the daemon starts that again by itself, and takes some seconds. No
/// status says so, but containerd's own word for it is always the last one.
fn says_unavailable(status: u16, message: &str) -> bool {
    status >= 500 && message.trim_end().ends_with(": unavailable")
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_unpacked_is_told_from_a_disk_that_fails() {
        let refused = |message: &str| {
            let message = message.to_owned();
            RuntimeError::Refused { doing: "load an image".to_owned(), status: None, message }.is_about_archive()
        };
        assert!(refused("Error processing tar file(exit status 1): unexpected EOF"));
        assert!(refused("Error processing tar file(exit status 1): duplicates of file paths not supported"));
        assert!(!refused("Error processing tar file(exit status 1): write /x: input/output error"));
        assert!(!refused("Error processing tar file(exit status 1): write /x: no space left on device"));
        assert!(!refused("Error processing tar file(signal: killed): "));
        assert!(!refused("max depth exceeded"));
    }

    #[test]
    fn an_engine_without_its_containerd_is_away() {
        let from = |status_code, message: &str| {
            let error = Error::DockerResponseServerError { status_code, message: message.to_owned() };
            RuntimeError::from_engine(std::path::Path::new("/s"), "start container c", error).is_unreachable()
        };
        let refused = "connection error: desc = \"transport: Error while dialing dial unix /run/containerd.sock: connect: \
                       connection refused\": unavailable";
        assert!(from(500, refused) && from(503, "error reading from server: EOF: unavailable\n"));
        assert!(!from(400, refused), "a request that is wrong stays wrong");
        assert!(!from(500, "OCI runtime create failed: this is unavailable: no such file"));
    }
}
