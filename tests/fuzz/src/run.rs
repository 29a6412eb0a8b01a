//! Runs a target on its examples and on what comes of them.

use crate::alloc;
use crate::mutate::mutate;
use crate::targets::Target;
use fastrand::Rng;
use nix::time::{ClockId, clock_gettime};
use railyard_service::clock::{Clock as _, SystemClock};
use std::any::Any;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest that an input may keep a processor busy. What a debug build needs for the longest is far below.
const TIME_MAX: Duration = Duration::from_secs(5);
/// Most inputs are no longer than this: there is more to find in what is short, and it is found sooner.
const SHORT_BYTES: usize = 2 * 1024;
/// Memory that every target may take, whatever the input.
const MEMORY_BYTES: usize = 4 * 1024 * 1024;
/// Inputs that are kept.
const KEPT_MAX: usize = 20_000;
/// Tries to make a finding shorter.
const SHRINKS_MAX: usize = 2_000;

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Budget {
    /// After so many inputs.
    Inputs(u64),
    /// After so much time.
    Time(Duration),
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Inputs that were parsed.
    pub inputs: u64,
    /// Inputs with which the parser said something new, examples not counted.
    pub kept: usize,
    /// How many different things it said.
    pub said: usize,
    /// How long it took.
    pub time: Duration,
    /// The most memory that one took.
    pub memory_bytes: usize,
    /// The longest that one took.
    pub slowest: Duration,
}

/// An input that must not do what it does.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{target}: {what}; the input, {} bytes: {:?}", input.len(), String::from_utf8_lossy(&input[..input.len().min(2_000)]))]
pub struct Finding {
    /// The target's name.
    pub target: &'static str,
    /// What happened.
    pub what: String,
    /// With what.
    pub input: Vec<u8>,
}

/// What one input came to.
struct Parsed {
    said: String,
    memory_bytes: usize,
    time: Duration,
}

/// Where the examples of a target lie.
pub fn corpus_dir(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The examples of a target: those that it makes, and those that lie in its directory.
fn corpus(target: &Target) -> io::Result<Vec<Vec<u8>>> {
    let mut corpus = (target.examples)();
    let dir = corpus_dir(target);
    if dir.is_dir() {
        let mut files: Vec<_> =
            fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        files.sort();
        for file in files {
            corpus.push(fs::read(file)?);
        }
    }
    corpus.push(Vec::new());
    Ok(corpus)
}

/// Parses one input.
///
/// # Errors
/// The [`Finding`].
pub fn replay(target: &Target, input: &[u8]) -> Result<(), Finding> {
    parse(target, input).map(drop)
}

fn parse(target: &Target, input: &[u8]) -> Result<Parsed, Finding> {
    let finding = |what: String| Finding { target: target.name, what, input: input.to_vec() };
    let begun = busy();
    let (parsed, memory_bytes) = alloc::most(|| catch_unwind(AssertUnwindSafe(|| (target.parse)(input))));
    let time = busy().saturating_sub(begun);
    let said = parsed.map_err(|panic| finding(format!("it panicked: {}", message(&*panic))))?;
    let most = MEMORY_BYTES + target.memory_base + target.memory_factor * input.len();
    if memory_bytes > most {
        return Err(finding(format!("it took {memory_bytes} bytes of memory; at most {most} are right")));
    }
    if time > TIME_MAX {
        return Err(finding(format!("it took {time:?}")));
    }
    Ok(Parsed { said, memory_bytes, time })
}

/// How long this thread has kept a processor busy: others may have kept it from that.
fn busy() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a word")
}

/// Feeds the target until the budget is used up.
///
/// # Errors
/// The first [`Finding`], as short as it could be made.
pub fn run(target: &Target, seed: u64, budget: Budget) -> Result<Report, Finding> {
    let mut rng = Rng::with_seed(seed);
    let begun = SystemClock.monotonic();
    let mut report =
        Report { inputs: 0, kept: 0, said: 0, time: Duration::ZERO, memory_bytes: 0, slowest: Duration::ZERO };
    let mut known = BTreeSet::new();
    let mut kept = Vec::new();
    let mut waiting = corpus(target).expect("the corpus is there");
    loop {
        report.time = SystemClock.monotonic() - begun;
        let over = match budget {
            Budget::Inputs(inputs) => report.inputs >= inputs,
            Budget::Time(time) => report.time >= time,
        };
        if over && waiting.is_empty() {
            return Ok(report);
        }
        let is_example = !waiting.is_empty();
        let input = waiting.pop().unwrap_or_else(|| {
            let (one, other) = (pick(&mut rng, &kept), pick(&mut rng, &kept));
            let max_len = if rng.u8(..16) == 0 { target.max_len } else { SHORT_BYTES.min(target.max_len) };
            mutate(&mut rng, one, other, target.words, max_len)
        });
        let parsed = parse(target, &input).map_err(|finding| shrink(target, finding))?;
        report.inputs += 1;
        report.memory_bytes = report.memory_bytes.max(parsed.memory_bytes);
        report.slowest = report.slowest.max(parsed.time);
        let is_new = known.len() < KEPT_MAX && known.insert(outline(&parsed.said));
        report.said = known.len();
        if is_example || is_new {
            report.kept += usize::from(!is_example);
            kept.push(input);
        }
    }
}

/// One of the inputs, rather a short one.
fn pick<'k>(rng: &mut Rng, kept: &'k [Vec<u8>]) -> &'k [u8] {
    let (one, other) = (&kept[rng.usize(..kept.len())], &kept[rng.usize(..kept.len())]);
    if one.len() <= other.len() { one } else { other }
}

/// What was said, without what is quoted from the input and without numbers: else every input would say something new.
fn outline(said: &str) -> String {
    let mut quoted = false;
    let mut outline = String::new();
    for c in said.chars().take(400) {
        quoted ^= matches!(c, '`' | '"');
        if !quoted && !c.is_ascii_digit() {
            outline.push(c);
        }
    }
    outline
}

/// The same finding with fewer bytes.
fn shrink(target: &Target, mut finding: Finding) -> Finding {
    let kind = |finding: &Finding| finding.what.split(':').next().unwrap_or_default().get(..10).map(str::to_owned);
    let wanted = kind(&finding);
    let (mut piece, mut tries) = (finding.input.len() / 2, 0);
    while piece > 0 && tries < SHRINKS_MAX {
        let (mut at, mut shorter) = (0, false);
        while at < finding.input.len() && tries < SHRINKS_MAX {
            tries += 1;
            let mut input = finding.input.clone();
            input.drain(at..(at + piece).min(input.len()));
            match parse(target, &input) {
                Err(found) if kind(&found) == wanted => (finding, shorter) = (found, true),
                _ => at += piece,
            }
        }
        if !shorter {
            piece /= 2;
        }
    }
    finding
}
