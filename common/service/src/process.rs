//! What every service of the farm does with its own process.

use nix::sys::resource::{Resource, setrlimit};

/// If this process crashes, its memory does not go into a file: there may be keys, tokens and secrets in it.
pub fn no_core_dumps() {
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0) {
        tracing::warn!(%error, "a crash of this process may leave a core file with secrets in it");
    }
}
