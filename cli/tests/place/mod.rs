//! A directory of its own for the program under test, and nothing of the machine's user.

use std::path::PathBuf;
use std::process::{Command, Output};

/// A pipeline of two steps; `mirror` must be given, and `steps/packages.sh` must lie beside it.
pub const GOOD: &str = "\
name: mini
platforms: [linux/amd64, linux/arm64]
params:
  suite: { default: bookworm }
  mirror: { description: where packages come from }
steps:
  - name: packages
    image: \"debian:{{ suite }}\"
    script: { file: steps/packages.sh }
    env: { MIRROR: \"{{ mirror }}\" }
    outputs: [{ path: \"pkgs/*\" }]
  - name: image
    image: debian:bookworm
    script: echo hello
    inputs: [{ step: packages }]
";

/// Where one test runs.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// An empty one.
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// With [`GOOD`] as `r.yaml`, and its script.
    pub fn with_pipeline() -> Self {
        let place = Self::new();
        place.write("r.yaml", GOOD);
        place.write("steps/packages.sh", "echo packages\n");
        place
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(path, text).expect("a file");
    }

    /// Runs `railyard` to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("railyard starts")
    }

    /// `railyard`, to be started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_railyard"));
        command.args(args).current_dir(self.dir.path()).env_clear().env("HOME", self.dir.path());
        command
    }
}

/// What it wrote to stdout.
pub fn out(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

/// What it wrote to stderr.
pub fn err(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}

/// Checks the exit code.
#[track_caller]
pub fn exits(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "stdout: {}\nstderr: {}", out(output), err(output));
}

/// What it wrote to stdout, as JSON.
#[track_caller]
pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_str(out(output)).expect("JSON on stdout")
}
