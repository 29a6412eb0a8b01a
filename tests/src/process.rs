//! Real processes of the one binary.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

/// The binary, built from the same sources as this test.
pub fn railyard() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let built =
            Command::new(cargo).args(["build", "--quiet", "--package", "railyard-cli", "--bin", "railyard"]).status();
        assert!(built.is_ok_and(|status| status.success()), "the binary `railyard` does not build");
        // target/debug/deps/TEST, target/debug/PROGRAM → target/debug/railyard
        let this = std::env::current_exe().expect("a test knows its own path");
        let dir = this.parent().expect("a program lies in a directory");
        let dir = if dir.ends_with("deps") { dir.parent().expect("tests lie in target/PROFILE/deps") } else { dir };
        dir.join("railyard")
    })
}

/// A running process that ends with this value.
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with everything it prints in `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log file can be made");
        let errors = file.try_clone().expect("a handle can be cloned");
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        Self { child: child.expect("the process starts"), log: log.to_owned() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Holds it up, until [`Process::go_on`]: it keeps its connections, and answers nothing.
    pub fn hold(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "SIG{name} can be sent");
    }

    /// Ends it as a power cut would: no handler runs.
    pub fn kill(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to end, as a service manager does, and waits until it has. Returns whether it exited with 0.
    pub fn stop(&mut self, limit: Duration) -> bool {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let status = crate::wait::until("the end of a process", limit, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}; its log: {}", self.log())),
        });
        status.success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.log.display(), self.log());
        }
    }
}
