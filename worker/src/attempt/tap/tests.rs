//! The tap, the vigil and the log through every order in which an engine and a worker can die and come back, on a model of an
//! engine with live-restore.

use super::*;
use crate::attempt::dirs::{DataDir, JobDir};
use crate::attempt::record::Record;
use crate::attempt::vigil::RESTARTED;
use crate::runtime::RuntimeError as Error;
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{FutureExt as _, stream};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};
use std::task::Poll;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// The step writes a line, into the pipe.
    Say,
    /// The engine takes out of the pipe what is in it,
    Hear,
    /// tells it to whoever listens,
    Tell,
    /// and writes it down.
    WriteDown,
    EndStep,
    /// It closes its connections, or breaks them.
    KillEngine {
        closes: bool,
    },
    StartEngine,
    KillWorker,
    StartWorker,
    /// The worker reads what has come.
    Read,
    /// It connects again, if that broke.
    Reconnect,
}

/// What the engine's daemon has in its memory, and what is on its disk.
#[derive(Default)]
struct Model {
    /// Of the daemon: another one after each start. `None` while none runs.
    life: Option<u32>,
    lives: u32,
    said: u64,
    ended: bool,
    pipe: Vec<u64>,
    /// By this daemon.
    heard: Vec<u64>,
    told: usize,
    written: usize,
    closes: bool,
    marks: BTreeSet<String>,
    /// On the disk.
    log: Vec<u64>,
}

impl Model {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Say if !self.ended => {
                self.said += 1;
                self.pipe.push(self.said);
            }
            Op::Hear if self.life.is_some() => self.heard.append(&mut self.pipe),
            Op::Tell if self.life.is_some() => self.told = self.heard.len(),
            Op::WriteDown if self.life.is_some() => {
                self.log.extend(&self.heard[self.written..]);
                self.written = self.heard.len();
            }
            Op::EndStep => {
                self.ended = true;
                [Op::Hear, Op::Tell, Op::WriteDown].into_iter().for_each(|op| self.apply(op));
            }
            Op::KillEngine { closes } => (self.life, self.closes) = (None, closes),
            Op::StartEngine if self.life.is_none() => {
                self.lives += 1;
                self.life = Some(self.lives);
                (self.told, self.written) = (0, 0);
                self.heard.clear();
                self.marks.clear();
                if self.ended {
                    self.pipe.clear();
                }
            }
            _ => {}
        }
    }
}

#[derive(Clone, Default)]
struct Engine(Arc<Mutex<Model>>);

fn away() -> Error {
    Error::Unreachable { socket: "engine.sock".into(), why: "it is dead".into() }
}

fn line(number: u64) -> Chunk {
    Chunk { source: Source::Stdout, bytes: Bytes::from(format!("line {number}\n")) }
}

impl Engine {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.0.lock().unwrap()
    }

    fn up(&self) -> Result<MutexGuard<'_, Model>, Error> {
        let model = self.model();
        if model.life.is_some() { Ok(model) } else { Err(away()) }
    }

    /// `lines` of this daemon's life, from `next` on. What it had told before it died still arrives.
    fn stream(&self, mut next: usize, lines: fn(&Model) -> &[u64]) -> Result<Output, Error> {
        let (engine, life) = (self.clone(), self.up()?.life);
        let mut known = Vec::new();
        let mut over = false;
        Ok(stream::poll_fn(move |_| {
            let model = engine.model();
            let alive = model.life == life;
            if alive {
                known = lines(&model).to_vec();
            }
            if let Some(number) = known.get(next) {
                next += 1;
                return Poll::Ready(Some(Ok(line(*number))));
            }
            match (alive, model.ended, over) {
                (true, false, _) => Poll::Pending,
                (true, true, _) | (_, _, true) => Poll::Ready(None),
                (false, _, false) => {
                    over = true;
                    Poll::Ready((!model.closes).then(|| Err(away())))
                }
            }
        })
        .boxed())
    }

    fn listen(&self, from: usize) -> Result<Output, Error> {
        self.stream(from, |model| &model.heard[..model.told])
    }
}

#[async_trait]
impl Hearing for Engine {
    async fn attach(&self, _: &str) -> Result<Output, Error> {
        let from = self.up()?.told;
        self.listen(from)
    }

    async fn log(&self, _: &str) -> Result<Output, Error> {
        self.stream(0, |model| &model.log)
    }

    async fn leave_mark(&self, _: &str) -> Result<String, Error> {
        let mut model = self.up()?;
        if model.ended {
            return Err(Error::Refused { doing: "mark".into(), status: Some(409), message: "it does not run".into() });
        }
        let mark = format!("{}.{}", model.lives, model.marks.len());
        model.marks.insert(mark.clone());
        Ok(mark)
    }

    async fn remembers(&self, _: &str, mark: Option<&str>) -> Result<bool, Error> {
        let model = self.up()?;
        Ok(mark.map_or(model.life == Some(1), |mark| model.marks.contains(mark)))
    }
}

/// A worker's process.
struct Worker {
    tap: Tap,
    log: JobLog,
    broken: bool,
    /// Its wait for the end of the container broke.
    doubts: bool,
}

struct Scene {
    engine: Engine,
    worker: Option<Worker>,
    record: Record,
    dir: JobDir,
    _temp: tempfile::TempDir,
}

impl Scene {
    async fn start() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path(), None).unwrap();
        let dir = JobDir::create(&data, "j1.1".parse().unwrap()).unwrap();
        let (engine, record) = (Engine::default(), Record::of_test(&dir));
        engine.model().apply(Op::StartEngine);
        let runtime: Arc<dyn Hearing> = Arc::new(engine.clone());
        let output = engine.listen(0).unwrap();
        let vigil = Vigil::begin(runtime.clone(), "c", &record).await;
        let tap = Tap::live(runtime, "c", output, vigil);
        let log = JobLog::open(&dir.log(), 1 << 20).await.unwrap();
        let worker = Some(Worker { tap, log, broken: false, doubts: false });
        Self { engine, worker, record, dir, _temp: temp }
    }

    async fn apply(&mut self, op: Op) {
        self.engine.model().apply(op);
        let up = self.engine.up().is_ok();
        match (op, &mut self.worker) {
            (Op::KillEngine { .. }, Some(worker)) => worker.doubts = true,
            (Op::KillWorker, worker) => *worker = None,
            // It does not start without an engine.
            (Op::StartWorker, None) if up => {
                let log = JobLog::open(&self.dir.log(), 1 << 20).await.unwrap();
                let runtime: Arc<dyn Hearing> = Arc::new(self.engine.clone());
                let vigil = Vigil::resumed(runtime.clone(), "c", &self.record).await;
                let tap = Tap::resumed(runtime, "c", &log, vigil).await.unwrap();
                self.worker = Some(Worker { tap, log, broken: false, doubts: false });
            }
            (Op::Read, Some(worker)) => worker.read().await,
            // As `Tap::next` does after a pause.
            (Op::Reconnect, Some(worker)) if worker.broken && up => {
                worker.tap.suspect = true;
                worker.tap.open(&worker.log).await.unwrap().unwrap();
                worker.broken = false;
            }
            _ => {}
        }
    }

    async fn end(mut self) -> String {
        for op in [Op::StartEngine, Op::StartWorker, Op::EndStep] {
            self.apply(op).await;
        }
        let mut worker = self.worker.take().unwrap();
        if worker.doubts {
            worker.tap.doubt();
        }
        worker.tap.finish(&worker.log).await.unwrap();
        std::fs::read_to_string(self.dir.log()).unwrap()
    }
}

impl Worker {
    async fn read(&mut self) {
        while let Some(heard) = self.tap.read().now_or_never() {
            let Some(heard) = heard else {
                self.broken = true;
                return;
            };
            keep(heard, &self.log).await.unwrap();
        }
    }
}

/// Every line once and in order. Where some are missing a note stands before; an engine that was restarted once cannot have lost
/// some at two places.
fn whole_or_says_where_not(log: &str, said: u64, restarts: usize) -> Result<usize, String> {
    let (mut next, mut notes, mut jumps) = (1, 0, 0);
    let end = format!("line {}", said + 1);
    for text in log.lines().chain([end.as_str()]) {
        notes += usize::from(text.contains(RESTARTED));
        let Some(number) = text.strip_prefix("line ").and_then(|number| number.parse::<u64>().ok()) else { continue };
        jumps += usize::from(number > next);
        if number < next || jumps > if notes == 0 { 0 } else { restarts } {
            return Err(format!("line {number} where {next} should be, after {notes} notes:\n{log}"));
        }
        next = number + 1;
    }
    Ok(notes)
}

fn run(ops: &[Op]) -> (String, u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut scene = Scene::start().await;
        for op in ops {
            scene.apply(*op).await;
        }
        let engine = scene.engine.clone();
        (scene.end().await, engine.model().said)
    })
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => Just(Op::Say),
        4 => Just(Op::Hear),
        3 => Just(Op::Tell),
        3 => Just(Op::WriteDown),
        1 => Just(Op::EndStep),
        2 => any::<bool>().prop_map(|closes| Op::KillEngine { closes }),
        3 => Just(Op::StartEngine),
        1 => Just(Op::KillWorker),
        3 => Just(Op::StartWorker),
        4 => Just(Op::Read),
        3 => Just(Op::Reconnect),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn whoever_dies_when_the_log_is_whole_or_says_where_not(ops in prop::collection::vec(any_op(), 1..60)) {
        let (log, said) = run(&ops);
        let kills = ops.iter().filter(|op| matches!(op, Op::KillEngine { .. })).count();
        let notes = whole_or_says_where_not(&log, said, kills).map_err(TestCaseError::fail)?;
        prop_assert!(kills > 0 || notes == 0, "the engine was there all the time:\n{log}");
    }
}

#[test]
fn what_a_dead_worker_could_not_know_is_said_by_the_next() {
    use Op::*;
    let kill = KillEngine { closes: false };
    // What the engine had heard is lost, and the step ends while nobody is there.
    let (log, said) = run(&[Say, Hear, Tell, WriteDown, Read, Say, Hear, kill, KillWorker, Say, EndStep]);
    assert_eq!((log.as_str(), said), (format!("line 1\n==> railyard: {RESTARTED}\n").as_str(), 3));
    // The same, and the step goes on.
    let (log, _) = run(&[Say, Hear, Tell, Read, Say, Hear, KillWorker, kill, Say, StartEngine, StartWorker, Hear, Say]);
    assert_eq!(log, format!("line 1\n==> railyard: {RESTARTED}\nline 3\nline 4\n"));
}
