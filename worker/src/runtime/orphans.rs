//! Processes of a container that the engine does not know of: one that is killed while it starts a container forgets that it did.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;

/// Ends what runs in the control group of the container with that id, as far as this process can see and may.
pub(super) fn end(id: &str) {
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let groups = fs::read_to_string(process.path().join("cgroup")).unwrap_or_default();
        if groups.contains(id) {
            let killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
            tracing::warn!(pid, container = id, ?killed, "the engine had forgotten a process of a container");
        }
    }
}
