//! A farm of real processes: one controller, some workers, and the client's verbs.

use crate::engine::Engine;
use crate::process::{Process, railyard};
use crate::{unique, wait};
use serde_json::Value;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// How long a process of the farm may take to be there.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a small build may take on a busy machine.
pub const BUILD_LIMIT: Duration = Duration::from_secs(240);

/// A variable with which the controller's log tells of each part.
pub const TELL_PARTS: (&str, &str) = ("RAILYARD_LOG", "info,railyard_controller::cache=debug");

/// What else this machine does has no say in a test, and no image of a build stays on its engine.
const ALONE: &str = "pressure = { memory_percent = 0, io_percent = 0 }\nimage_cache = '0B'\n\
                     disk = { high = '100%', low = '100%' }";

/// A controller and its workers.
pub struct Farm {
    /// The farm's name, in the names of its workers.
    pub name: String,
    /// Everything that the farm writes lies below.
    pub dir: TempDir,
    port: u16,
    controller: Option<Process>,
    env: Vec<(String, String)>,
}

/// A worker process.
pub struct Worker {
    /// Its name.
    pub name: String,
    /// Its process.
    pub process: Process,
    /// Its data directory.
    pub data: PathBuf,
}

impl Worker {
    /// The work directory of the job that runs.
    ///
    /// # Panics
    /// If none does.
    pub fn work(&self) -> PathBuf {
        let jobs = files_below(&self.data.join("jobs"));
        jobs.into_iter().find(|path| path.is_dir() && path.ends_with("work")).expect("a job runs")
    }
}

/// What a verb printed, and its exit code.
#[derive(Debug)]
pub struct Answer {
    /// The exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said besides.
    pub stderr: String,
}

impl Farm {
    /// Starts a controller with an embedded cache, and waits until it answers.
    pub fn start() -> Self {
        Self::start_with("", &[])
    }

    /// The same with more lines of configuration, and with variables for every process of the farm.
    pub fn start_with(config: &str, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let name = format!("t-{}", unique());
        let mut text = format!("farm = \"{name}\"\ndata_dir = \"{}\"\n", dir.path().join("controller").display());
        let port = free_port();
        writeln!(text, "listen = \"127.0.0.1:{port}\"\n{config}").expect("a string takes text");
        std::fs::write(dir.path().join("controller.toml"), text).expect("the configuration can be written");
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut farm = Self { name, dir, port, controller: None, env };
        farm.start_controller();
        farm
    }

    /// Starts the controller (again), and waits until it answers.
    pub fn start_controller(&mut self) {
        self.controller = Some(self.spawn_controller());
        wait::until("the controller's answer", START_LIMIT, || {
            let answer = self.cli(&["workers"]);
            if answer.code == 0 { Ok(()) } else { Err(answer.stderr) }
        });
    }

    /// Starts a controller process and waits for nothing.
    pub fn spawn_controller(&self) -> Process {
        let mut command = self.command();
        command.arg("controller").arg("--config").arg(self.dir.path().join("controller.toml"));
        Process::start(command, &self.dir.path().join("controller.log"))
    }

    /// Hands the controller's process over: whoever takes it starts the next one with [`Farm::spawn_controller`].
    pub fn take_controller(&mut self) -> Option<Process> {
        self.controller.take()
    }

    /// Ends the controller as a power cut would.
    pub fn kill_controller(&mut self) {
        if let Some(mut controller) = self.controller.take() {
            controller.kill();
        }
    }

    /// The controller's process.
    ///
    /// # Panics
    /// If it was killed.
    pub fn controller(&mut self) -> &mut Process {
        self.controller.as_mut().expect("the controller runs")
    }

    /// The port where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(railyard());
        command.env("RAILYARD_LOG", "info").env_remove("RAILYARD_URL");
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command.env("RAILYARD_CONFIG", self.dir.path().join("controller/client.toml"));
        command
    }

    /// Issues a certificate for a worker, starts it, and waits until the controller knows it. `config` are more lines of its TOML.
    pub fn worker(&self, suffix: &str, engine: &Engine, config: &str) -> Worker {
        self.worker_by(&self.url(), suffix, engine, config)
    }

    /// The same with a worker that finds the controller at `url`.
    pub fn worker_by(&self, url: &str, suffix: &str, engine: &Engine, config: &str) -> Worker {
        let name = format!("{suffix}-{}", &self.name[2..]);
        let (pki, data) = (self.dir.path().join("pki"), self.dir.path().join(&name));
        let config_path = self.dir.path().join("controller.toml");
        let answer = self.cli(&[
            "controller",
            "cert",
            "worker",
            &name,
            "--config",
            &config_path.display().to_string(),
            "--out",
            &pki.display().to_string(),
        ]);
        assert_eq!(answer.code, 0, "{answer:?}");
        let text = format!(
            "controller = \"{}\"\nname = \"{name}\"\nca = \"{pki}/ca.pem\"\ncert = \"{pki}/{name}.pem\"\nkey = \"{pki}/{name}.key\"\n\
             data_dir = \"{}\"\ndocker_socket = \"{}\"\n{ALONE}\n{config}\n",
            url,
            data.display(),
            engine.socket().display(),
            pki = pki.display(),
        );
        let path = self.dir.path().join(format!("{name}.toml"));
        std::fs::write(&path, text).expect("the configuration can be written");
        let process = self.start_worker(&name);
        Worker { name, process, data }
    }

    /// Starts a worker that has been configured (again), and waits until it is connected.
    pub fn start_worker(&self, name: &str) -> Process {
        let mut process = self.spawn_worker(name);
        wait::until("the worker's hello", START_LIMIT, || {
            assert!(!process.has_ended(), "the worker ended: {}", process.log());
            let workers = self.json(&["workers", "-o", "json"]);
            let connected = list(&workers).iter().any(|worker| worker["name"] == name && worker["connected"] == true);
            if connected { Ok(()) } else { Err(workers.to_string()) }
        });
        process
    }

    /// Starts the process of a worker that has been configured, and waits for nothing.
    pub fn spawn_worker(&self, name: &str) -> Process {
        let mut command = self.command();
        command.arg("worker").arg("--config").arg(self.dir.path().join(format!("{name}.toml")));
        Process::start(command, &self.dir.path().join(format!("{name}.log")))
    }

    /// Runs a verb to its end.
    pub fn cli(&self, args: &[&str]) -> Answer {
        let output = self.command().args(args).env("RAILYARD_LOG", "warn").output().expect("the binary can be run");
        Answer {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Starts a verb and waits for nothing.
    pub fn spawn_cli(&self, args: &[&str]) -> Process {
        let mut command = self.command();
        command.args(args);
        Process::start(command, &self.dir.path().join("cli.log"))
    }

    /// A verb's JSON.
    ///
    /// # Panics
    /// If the verb fails or prints something else.
    pub fn json(&self, args: &[&str]) -> Value {
        let answer = self.cli(args);
        assert_eq!(answer.code, 0, "railyard {args:?}: {}", answer.stderr);
        serde_json::from_str(&answer.stdout)
            .unwrap_or_else(|error| panic!("railyard {args:?}: {error}: {}", answer.stdout))
    }

    /// Writes a pipeline file and returns its path.
    pub fn pipeline(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&path, text).expect("the pipeline can be written");
        path.display().to_string()
    }

    /// Submits a pipeline file; returns the build's name.
    ///
    /// # Panics
    /// If it is not accepted.
    pub fn submit(&self, path: &str, more: &[&str]) -> String {
        let submitted = self.json(&[&["submit", path, "-o", "json"], more].concat());
        submitted["build"].as_str().expect("a build's name").to_owned()
    }

    /// The build as `show -o json` gives it.
    pub fn show(&self, build: &str) -> Value {
        self.json(&["show", build, "-o", "json"])
    }

    /// Waits until the build has ended, and gives it.
    pub fn ended(&self, build: &str) -> Value {
        wait::until(&format!("the end of {build}"), BUILD_LIMIT, || {
            let shown = self.show(build);
            match shown["state"].as_str() {
                Some("succeeded" | "failed" | "cancelled") => Ok(shown),
                _ => Err(shown.to_string()),
            }
        })
    }

    /// The parts that have arrived in the embedded cache, each with its upload, in their order. Its log tells if it is told to:
    /// [`TELL_PARTS`].
    ///
    /// # Panics
    /// If the log tells it in another way.
    pub fn parts(&self) -> Vec<(String, u32)> {
        let log = std::fs::read_to_string(self.dir.path().join("controller.log")).unwrap_or_default();
        let told = log.lines().filter(|line| line.contains("a part has arrived"));
        let field = |line: &str, name: &str| {
            let (_, rest) = line.split_once(&format!("{name}="))?;
            Some(rest.split(' ').next()?.trim_matches('"').to_owned())
        };
        let part = |line: &str| Some((field(line, "upload")?, field(line, "part")?.parse().ok()?));
        told.map(|line| part(line).unwrap_or_else(|| panic!("{line}"))).collect()
    }

    /// What the script of the job `only` has put out: its log without the worker's own lines before and after.
    ///
    /// # Panics
    /// If the script has not ended.
    pub fn output(&self, build: &str) -> String {
        let log = self.cli(&["logs", build, "only"]).stdout;
        let (_, from) = log.split_once("==> railyard: running the script\n").expect("the script began");
        // A note about the engine stands in the middle.
        let mut notes = from.match_indices("\n==> railyard: ").map(|(at, _)| from.split_at(at));
        let end = notes.find(|(_, note)| !note.starts_with("\n==> railyard: the engine was restarted"));
        end.expect("the script ended").0.to_owned()
    }

    /// An artifact of a build, fetched, as text.
    ///
    /// # Panics
    /// If it cannot be fetched.
    pub fn artifact(&self, build: &str, path: &str) -> String {
        let out = self.dir.path().join("fetched");
        let fetched = self.cli(&["fetch", build, path, "-o", &out.display().to_string()]);
        assert_eq!(fetched.code, 0, "{fetched:?}");
        std::fs::read_to_string(out.join(path)).expect("a fetched artifact is there")
    }

    /// Waits until the build has succeeded, each job with its first attempt.
    ///
    /// # Panics
    /// If it ends in another way.
    #[track_caller]
    pub fn succeeded_at_once(&self, build: &str) {
        let ended = self.ended(build);
        assert_eq!(ended["state"], "succeeded", "{ended}");
        for job in list(&ended["jobs"]) {
            assert_eq!(list(&job["attempts"]).len(), 1, "{job}");
        }
    }

    /// Waits until a job's log has a line that contains `text`.
    pub fn logged(&self, build: &str, job: &str, text: &str) {
        wait::until(&format!("{text:?} in the log of {job}"), BUILD_LIMIT, || {
            let answer = self.cli(&["logs", build, job]);
            if answer.stdout.contains(text) { Ok(()) } else { Err(format!("{answer:?}; {}", self.show(build))) }
        });
    }
}

/// A job of a build that `show` gave.
///
/// # Panics
/// If the build has no such job.
pub fn job<'a>(build: &'a Value, name: &str) -> &'a Value {
    let found = list(&build["jobs"]).iter().find(|job| job["name"].as_str().is_some_and(|full| full.starts_with(name)));
    found.unwrap_or_else(|| panic!("no job {name} in {build}"))
}

/// The elements of a JSON list.
pub fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Files and directories below `path`, without `path` itself.
pub fn files_below(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        found.extend(files_below(&entry.path()));
        found.push(entry.path());
    }
    found
}

/// A port of this machine that nobody listens at.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("a bound socket has an address").port()
}
