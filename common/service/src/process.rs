//! What every service of the farm does with its own process.

use nix::sys::resource::{Resource, setrlimit};

/// No core file is so small. The kernel does not heed a limit of 0 where a program on the host takes the dumps (`|` in
/// `core_pattern`); with exactly 1 it dumps nothing there either.
pub const NO_CORE_BYTES: u8 = 1;

/// If this process crashes, its memory goes into no file and to no other program: there may be keys, tokens and secrets in it.
pub fn no_core_dumps() {
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, NO_CORE_BYTES.into(), NO_CORE_BYTES.into()) {
        tracing::warn!(%error, "a crash of this process may leave a core dump with secrets in it");
    }
}
