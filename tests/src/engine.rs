//! Docker engines: the machine's own, and private ones that a test may stop.

use crate::process::Process;
use crate::{processes, wait};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// How long a private engine may take to answer.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Where a private engine keeps the id of its containerd's process.
const CONTAINERD_PID: &str = "exec/containerd/containerd.pid";

/// An engine that answers.
pub struct Engine {
    socket: PathBuf,
    private: Option<Private>,
}

struct Private {
    daemon: Process,
    dir: TempDir,
    /// Keeps the network namespace of an engine whose containers outlive it.
    network: Option<Process>,
}

impl Engine {
    /// The machine's own engine.
    ///
    /// # Panics
    /// With a sentence that says what to do, if none answers.
    pub fn shared() -> Self {
        let engine = Self { socket: PathBuf::from("/var/run/docker.sock"), private: None };
        let answer = engine.docker(&["version", "--format", "{{.Server.Version}}"]);
        assert!(
            answer.status.success(),
            "no Docker engine answers at {}, and this test runs real containers; start one (tests/run.sh does): {}",
            engine.socket.display(),
            String::from_utf8_lossy(&answer.stderr)
        );
        engine
    }

    /// An engine of the test's own, with no image and no container. It runs in a network namespace of its own: two engines
    /// in one would fight over the bridge.
    pub fn private() -> Self {
        Self::private_on(&std::env::temp_dir())
    }

    /// The same with all that it keeps on the file system of that directory.
    pub fn private_on(disk: &Path) -> Self {
        let dir = tempfile::tempdir_in(disk).expect("a directory can be made");
        let socket = dir.path().join("docker.sock");
        let daemon = Process::start(Self::daemon(dir.path(), None), &dir.path().join("dockerd.log"));
        let engine = Self { socket, private: Some(Private { daemon, dir, network: None }) };
        engine.wait();
        engine
    }

    /// The same, with containers that run on while the engine is restarted.
    pub fn private_with_live_restore() -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let socket = dir.path().join("docker.sock");
        let mut command = Command::new("unshare");
        command.args(["--net", "--", "sleep", "infinity"]);
        let network = Process::start(command, &dir.path().join("network.log"));
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net"));
        // Until then the daemon would share the machine's own network.
        wait::until("a network namespace", START_LIMIT, || {
            match (namespace("self"), namespace(&network.id().to_string())) {
                (Ok(ours), Ok(other)) if ours != other => Ok(()),
                pair => Err(format!("{pair:?}")),
            }
        });
        let daemon = Process::start(Self::daemon(dir.path(), Some(&network)), &dir.path().join("dockerd.log"));
        let engine = Self { socket, private: Some(Private { daemon, dir, network: Some(network) }) };
        engine.wait();
        engine
    }

    /// A client of the engine at that socket, whoever started it.
    pub fn at(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), private: None }
    }

    fn daemon(dir: &Path, network: Option<&Process>) -> Command {
        let at = |name: &str| dir.join(name).display().to_string();
        let mut command = match network {
            None => {
                let mut command = Command::new("unshare");
                command.args(["--net", "--", "dockerd"]);
                command
            }
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{}/ns/net", network.id())).args(["--", "dockerd", "--live-restore"]);
                command
            }
        };
        command
            .arg(format!("--host=unix://{}", at("docker.sock")))
            .arg(format!("--data-root={}", at("data")))
            .arg(format!("--exec-root={}", at("exec")))
            .arg(format!("--pidfile={}", at("dockerd.pid")))
            .args(["--iptables=false", "--ip6tables=false"]);
        command
    }

    fn wait(&self) {
        wait::until("the answer of a private engine", START_LIMIT, || {
            let answer = self.docker(&["version"]);
            if answer.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&answer.stderr).into_owned()) }
        });
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends a private engine as a crash would.
    ///
    /// # Panics
    /// For the machine's own engine, which is not the test's to kill.
    pub fn kill(&mut self) {
        self.private.as_mut().expect("only a private engine is killed").daemon.kill();
    }

    /// Ends the containerd of a private engine as a crash would; the daemon starts another.
    ///
    /// # Panics
    /// For the machine's own engine.
    pub fn kill_containerd(&self) {
        let private = self.private.as_ref().expect("only a private engine is killed");
        kill_pid_in(&private.dir.path().join(CONTAINERD_PID));
    }

    /// Ends a private engine as a service manager does.
    ///
    /// # Panics
    /// For the machine's own engine.
    pub fn stop(&mut self) {
        self.private.as_mut().expect("only a private engine is stopped").daemon.stop(START_LIMIT);
    }

    /// Starts a private engine that has ended, and waits until it answers.
    ///
    /// # Panics
    /// For the machine's own engine.
    pub fn start_again(&mut self) {
        self.spawn();
        self.wait();
    }

    /// The same, but waits for nothing.
    ///
    /// # Panics
    /// For the machine's own engine.
    pub fn spawn(&mut self) {
        let private = self.private.as_mut().expect("only a private engine is started");
        forget_old_processes(private.dir.path());
        let command = Self::daemon(private.dir.path(), private.network.as_ref());
        private.daemon = Process::start(command, &private.dir.path().join("dockerd.log"));
    }

    /// Whether a private engine has ended, by itself or not.
    pub fn has_ended(&mut self) -> bool {
        self.private.as_mut().is_some_and(|private| private.daemon.has_ended())
    }

    /// Where a private engine keeps everything.
    pub fn dir(&self) -> Option<&Path> {
        self.private.as_ref().map(|private| private.dir.path())
    }

    /// Runs the `docker` client against it.
    pub fn docker(&self, args: &[&str]) -> Output {
        let mut command = Command::new("docker");
        command.arg("--host").arg(format!("unix://{}", self.socket.display())).args(args);
        command.output().expect("the docker client can be run; tests/run.sh installs it")
    }

    /// The client's output, trimmed.
    ///
    /// # Panics
    /// If the client fails.
    pub fn query(&self, args: &[&str]) -> String {
        let output = self.docker(args);
        assert!(output.status.success(), "docker {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Ids of containers, running or not, of a worker.
    pub fn containers_of(&self, worker: &str) -> Vec<String> {
        let listed = self.query(&["ps", "--all", "--quiet", "--filter", &format!("label=railyard.worker={worker}")]);
        listed.lines().map(str::to_owned).collect()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let Some(private) = &mut self.private else { return };
        if private.daemon.has_ended() {
            // Containers outlive a killed daemon. Its next start clears them away.
            self.start_again();
        }
        let containers = self.query(&["ps", "--all", "--quiet"]);
        for container in containers.lines() {
            self.docker(&["rm", "--force", "--volumes", container]);
        }
        if let Some(private) = &mut self.private {
            private.daemon.stop(START_LIMIT);
            // An engine that was killed while it started a container has forgotten about the shim.
            for shim in processes::shims_of(private.dir.path()) {
                let _ = Command::new("kill").args(["-KILL", &shim.to_string()]).status();
            }
            unmount_below(private.dir.path());
        }
    }
}

/// What is left of a killed daemon: its containerd, dying with it or just dead, and the files with their pids. A new daemon that
/// finds them waits for the old processes instead of starting its own.
fn forget_old_processes(dir: &Path) {
    let containerd = dir.join(CONTAINERD_PID);
    kill_pid_in(&containerd);
    for stale in [containerd, dir.join("exec/containerd/containerd.sock"), dir.join("dockerd.pid")] {
        let _ = std::fs::remove_file(stale);
    }
}

/// kill -9 of the process whose id is in that file, if there is one.
fn kill_pid_in(file: &Path) {
    if let Ok(pid) = std::fs::read_to_string(file) {
        // It may have ended already.
        let _ = Command::new("kill").args(["-KILL", pid.trim()]).stderr(Stdio::null()).status();
    }
}

/// overlay2 and network namespaces may still be mounted below the directory of an engine that crashed.
fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let below = dir.display().to_string();
    for target in mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|path| path.starts_with(&below)) {
        let _ = Command::new("umount").args(["--lazy", target]).status();
    }
}
