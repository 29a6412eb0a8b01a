//! What an engine says when something happens, and when that was.

use anyhow::Context as _;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_tests::engine::Engine;
use std::io::{BufRead as _, BufReader, Lines};
use std::process::{Child, ChildStdout, Command, Stdio};

/// When, what.
const FORMAT: &str = "{{.TimeNano}} {{.Action}}";

/// An engine's words of one kind.
pub struct Events {
    client: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Events {
    /// Listens from now on, though the client may need a moment to connect.
    pub fn listen(engine: &Engine, filters: &[&str]) -> anyhow::Result<Self> {
        let mut client = Command::new("docker");
        client.arg("--host").arg(format!("unix://{}", engine.socket().display()));
        client.args(["events", "--format", FORMAT, "--since", &(SystemClock.now().0 / 1000).to_string()]);
        for filter in filters {
            client.args(["--filter", filter]);
        }
        let mut client = client.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(client.stdout.take().context("the client's output")?).lines();
        Ok(Self { client, lines })
    }

    /// When the next one was, at or after `since`: seconds since the epoch.
    pub fn next(&mut self, since: f64) -> anyhow::Result<f64> {
        loop {
            let line = self.lines.next().context("the engine says nothing more")??;
            let nanos = line.split(' ').next().unwrap_or_default();
            let at = nanos.parse::<u64>().with_context(|| format!("an event without a time: {line}"))? as f64 / 1e9;
            if at >= since {
                return Ok(at);
            }
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// Seconds since the epoch.
pub fn now() -> f64 {
    SystemClock.now().0 as f64 / 1e3
}
