//! One figure, and all of them.

use super::files::Input;
use crate::machine;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::process::{Command, Stdio};

/// What it cost to move a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    pub secs: f64,
    /// Of the whole machine.
    pub cpu_secs: f64,
    /// Of the client's largest process.
    pub peak_bytes: u64,
}

/// Argument that only this bench gives to itself: runs a command and tells the most memory that it had.
const AS_WRAPPER: &str = "--as-wrapper";
/// In front of that.
const PEAK: &str = "peak-kib ";

/// Runs a command as a child of this process, if the command line asks for that.
pub fn is_child() -> anyhow::Result<bool> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [wrapper, program, rest @ ..] = &args[..] else { return Ok(false) };
    if wrapper != AS_WRAPPER {
        return Ok(false);
    }
    let status = Command::new(program).args(rest).status().with_context(|| format!("cannot run {program}"))?;
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_CHILDREN)?;
    println!("{PEAK}{}", used.max_rss());
    anyhow::ensure!(status.success(), "{program} failed: {status}");
    Ok(true)
}

/// Runs a command and says what it cost.
pub fn run(command: &Command) -> anyhow::Result<Sample> {
    let mut wrapped = Command::new(std::env::current_exe()?);
    wrapped.arg(AS_WRAPPER).arg(command.get_program()).args(command.get_args());
    wrapped.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    // Some tools refuse to work with a CA of somebody else's for a service without TLS.
    wrapped.env_remove("AWS_CA_BUNDLE").stdin(Stdio::null()).stderr(Stdio::piped());
    let busy = busy_secs()?;
    let (secs, output) = machine::timed(|| wrapped.output());
    let output = output?;
    let cpu_secs = busy_secs()? - busy;
    let stdout = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(output.status.success(), "{command:?}: {stdout}{}", String::from_utf8_lossy(&output.stderr));
    let peak = stdout.lines().find_map(|line| line.strip_prefix(PEAK)).context("no peak")?;
    Ok(Sample { secs, cpu_secs, peak_bytes: peak.parse::<u64>()? * 1024 })
}

/// Processor time that the machine has spent, idling and waiting aside.
fn busy_secs() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let fields: Vec<f64> =
        stat.lines().next().context("no line")?.split_whitespace().skip(1).flat_map(str::parse).collect();
    // user, nice, system, idle, iowait, irq, softirq
    Ok([0, 1, 2, 5, 6].iter().map(|at| fields[*at]).sum::<f64>() / 100.0)
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    store: &'static str,
    input: &'static str,
    way: &'static str,
    tool: &'static str,
}

impl Row {
    pub fn new(store: &'static str, input: Input, way: &'static str, tool: &'static str) -> Self {
        Self { store, input: input.name(), way, tool }
    }
}

/// All figures.
pub struct Rows {
    rounds: usize,
    rows: Vec<(Row, Vec<Sample>)>,
    bytes: f64,
}

impl Rows {
    pub fn new(rounds: usize) -> Self {
        println!(
            "{} processors, kernel {}, load average {}",
            machine::processors(),
            machine::kernel(),
            machine::load()
        );
        Self { rounds, rows: Vec::new(), bytes: 0.0 }
    }

    /// Measures one row as often as wanted.
    pub fn measure(
        &mut self,
        store: &'static str,
        input: Input,
        way: &'static str,
        tool: &'static str,
        mut once: impl FnMut(usize) -> anyhow::Result<(u64, Sample)>,
    ) -> anyhow::Result<()> {
        let row = Row::new(store, input, way, tool);
        let mut samples = Vec::new();
        for round in 0..self.rounds {
            // What the last one left to be written is not this one's business.
            Command::new("sync").status()?;
            let (bytes, sample) = once(round).with_context(|| format!("{row:?}"))?;
            self.bytes = bytes as f64;
            samples.push(sample);
        }
        println!("  {store:<13} {:<16} {way:<5} {tool:<18} {:>7.2} s", row.input, median(&samples, |s| s.secs));
        self.rows.push((row, samples));
        Ok(())
    }

    /// A figure that was measured elsewhere.
    pub fn note(
        &mut self,
        store: &'static str,
        input: Input,
        way: &'static str,
        tool: &'static str,
        bytes: u64,
        sample: Sample,
    ) {
        // The table's figures are for one file's bytes.
        let share = self.bytes.max(1.0) / bytes as f64;
        let sample = Sample { secs: sample.secs * share, cpu_secs: sample.cpu_secs * share, ..sample };
        self.rows.push((Row::new(store, input, way, tool), vec![sample]));
    }

    /// A tool that is not here.
    pub fn skip(&mut self, row: Row, missing: &str) {
        println!("  {:<13} {:<16}       {:<18} missing: {missing} is not on the PATH", row.store, row.input, row.tool);
    }

    fn figures(&self) -> impl Iterator<Item = (&Row, Sample)> {
        self.rows.iter().map(|(row, samples)| {
            let sample = Sample {
                secs: median(samples, |sample| sample.secs),
                cpu_secs: median(samples, |sample| sample.cpu_secs),
                peak_bytes: median(samples, |sample| sample.peak_bytes as f64) as u64,
            };
            (row, sample)
        })
    }

    /// The one table.
    pub fn print(&self) {
        println!(
            "\n{:<13} {:<16} {:<5} {:<18} {:>8} {:>7} {:>9} {:>9}  medians of {}",
            "store", "input", "way", "tool", "s", "MB/s", "CPU s/GB", "peak MiB", self.rounds
        );
        for (row, sample) in self.figures() {
            println!(
                "{:<13} {:<16} {:<5} {:<18} {:>8.2} {:>7.0} {:>9.2} {:>9.0}  {}",
                row.store,
                row.input,
                row.way,
                row.tool,
                sample.secs,
                self.bytes / 1e6 / sample.secs,
                sample.cpu_secs / (self.bytes / 1e9),
                sample.peak_bytes as f64 / 1048576.0,
                self.verdict(row, sample)
            );
        }
    }

    /// How ours stands against the peers on the same store.
    fn verdict(&self, ours: &Row, sample: Sample) -> String {
        if !ours.tool.starts_with("railyard") {
            return String::new();
        }
        let same = |row: &Row| row.input == ours.input && row.way == ours.way && !row.tool.starts_with("railyard");
        let on = |row: &Row| {
            row.store == ours.store || (ours.store.starts_with("embedded") && row.store.starts_with("embedded"))
        };
        let peers: Vec<(&Row, Sample)> = self.figures().filter(|(row, _)| same(row) && on(row)).collect();
        let mut said = Vec::new();
        if let Some((row, best)) = peers.iter().min_by(|a, b| a.1.secs.total_cmp(&b.1.secs)) {
            said.push(format!("{:.2}x the time of {}", sample.secs / best.secs, row.tool));
        }
        if let Some((row, best)) = peers.iter().min_by(|a, b| a.1.cpu_secs.total_cmp(&b.1.cpu_secs)) {
            said.push(format!("{:.2}x the CPU of {}", sample.cpu_secs / best.cpu_secs, row.tool));
        }
        // A pull of ours is verified.
        let verified = peers.iter().filter(|(row, _)| row.tool.ends_with("openssl") || row.tool.starts_with("rsync"));
        if let Some((row, best)) = verified.min_by(|a, b| a.1.secs.total_cmp(&b.1.secs)).filter(|_| ours.way == "pull")
        {
            said.push(format!("{:.2}x the time of {}", sample.secs / best.secs, row.tool));
        }
        let copy = self.figures().find(|(row, _)| row.store == "disk" && same(row));
        if let Some((_, copy)) = copy.filter(|_| ours.store.starts_with("embedded")) {
            said.push(format!("{:.2} of cp + sync's speed", copy.secs / sample.secs));
        }
        said.join(", ")
    }

    pub fn json(&self) -> Value {
        let rows = self.figures().map(|(row, sample)| {
            json!({
                "store": row.store, "input": row.input, "way": row.way, "tool": row.tool, "secs": sample.secs,
                "cpu_secs_per_gb": sample.cpu_secs / (self.bytes / 1e9), "peak_bytes": sample.peak_bytes,
            })
        });
        json!({ "processors": machine::processors(), "kernel": machine::kernel(), "rows": rows.collect::<Vec<_>>() })
    }
}

fn median(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> f64 {
    machine::median(&mut samples.iter().map(of).collect::<Vec<_>>())
}
