//! The processes of this machine, as the kernel lists them.

use std::path::Path;

/// A running process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Running {
    /// Its id.
    pub id: u32,
    /// The id of its parent.
    pub parent: u32,
    /// Its command line.
    pub command: String,
}

/// All of them. One that ends meanwhile is left out.
pub fn all() -> Vec<Running> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| read(&entry.path())).collect()
}

fn read(dir: &Path) -> Option<Running> {
    let id = dir.file_name()?.to_str()?.parse().ok()?;
    // `ID (NAME) STATE PARENT …`, where the name can be anything.
    let stat = std::fs::read_to_string(dir.join("stat")).ok()?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
    let command = String::from_utf8_lossy(&std::fs::read(dir.join("cmdline")).ok()?).replace('\0', " ");
    Some(Running { id, parent, command })
}

/// The shims of the engine whose files lie in `dir`: each is the parent of a container's processes.
pub fn shims_of(dir: &Path) -> Vec<u32> {
    let dir = dir.display().to_string();
    let is_shim = |process: &Running| process.command.contains("containerd-shim") && process.command.contains(&dir);
    all().into_iter().filter(is_shim).map(|process| process.id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_itself() {
        let me = all().into_iter().find(|process| process.id == std::process::id()).unwrap();
        assert_eq!(me.parent, std::os::unix::process::parent_id());
        assert!(me.command.contains("processes::tests"), "{me:?}");
    }
}
