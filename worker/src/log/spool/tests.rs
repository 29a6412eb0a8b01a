//! The log's file through crashes and long outputs.

use super::*;
use crate::log::Catchup;
use bytes::Bytes;
use proptest::prelude::*;

async fn log(max_bytes: u64) -> (tempfile::TempDir, JobLog) {
    let dir = tempfile::tempdir().unwrap();
    let log = JobLog::open(&dir.path().join("log"), max_bytes).await.unwrap();
    (dir, log)
}

#[tokio::test]
async fn notes_stand_on_lines_of_their_own() {
    let (_dir, log) = log(1000).await;
    log.note("fetching").await.unwrap();
    log.write(Source::Stdout, b"no line end").await.unwrap();
    log.note("done").await.unwrap();
    assert_eq!(log.close("end").await.unwrap(), log.written().borrow().bytes);
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert_eq!(text, "==> railyard: fetching\nno line end\n==> railyard: done\n==> railyard: end\n");
    assert_eq!(log.last_lines(2).await, ["==> railyard: done", "==> railyard: end"]);
}

#[tokio::test]
async fn of_a_long_log_head_and_tail_are_kept_and_the_gap_is_told() {
    let (_dir, log) = log(1000).await;
    log.write(Source::Stdout, &[b'h'; 600]).await.unwrap();
    log.write(Source::Stderr, &[b'x'; 5000]).await.unwrap();
    log.write(Source::Stdout, b"\nlast").await.unwrap();
    assert_eq!(log.last_lines(1).await, ["last"]);
    let length = log.close("end").await.unwrap();
    assert!(length <= 1000, "{length} bytes: the controller takes no more than the limit");
    let text = std::fs::read_to_string(log.path()).unwrap();
    assert_eq!(text.len() as u64, length);
    let end = "\n==> railyard: end\n".len();
    let left_out = 600 + 5000 + 5 + end - (1000 - 128);
    let gap = format!("x\n==> railyard: the log is too long; {left_out} bytes are left out here\nx");
    assert!(
        text.starts_with("hhh") && text.contains(&gap) && text.ends_with("xxx\nlast\n==> railyard: end\n"),
        "{text}"
    );
    assert!(log.written().borrow().closed);
}

#[tokio::test]
async fn a_log_that_just_fits_is_whole() {
    let (_dir, log) = log(1000).await;
    let lines: String = (0..109).map(|n| format!("line {n:02}\n")).collect();
    let end = "\n==> railyard: end\n";
    let fits = &lines[..1000 - 128 - end.len()];
    for line in fits.split_inclusive('\n') {
        log.write(Source::Stdout, line.as_bytes()).await.unwrap();
    }
    let whole: Vec<&str> = fits.lines().collect();
    assert_eq!(log.last_lines(1000).await, whole);
    log.close("end").await.unwrap();
    assert_eq!(std::fs::read_to_string(log.path()).unwrap(), format!("{fits}{end}"));
}

#[tokio::test]
async fn what_a_failed_write_left_is_written_over() {
    let (_dir, log) = log(1000).await;
    log.write(Source::Stdout, b"first\n").await.unwrap();
    // As a disk that was full half-way leaves it.
    log.change(|spool| spool.file.write_all_at(b"half a li", 6)).await.unwrap();
    log.write(Source::Stdout, b"next\n").await.unwrap();
    let length = log.close("end").await.unwrap();
    let bytes = std::fs::read(log.path()).unwrap();
    assert_eq!(&bytes[..usize::try_from(length).unwrap()], b"first\nnext\n==> railyard: end\n");
}

#[tokio::test]
async fn a_log_that_was_ended_stays_as_it_is() {
    let (_dir, log) = log(1000).await;
    log.write(Source::Stdout, b"all\n").await.unwrap();
    let length = log.close("end").await.unwrap();
    let again = JobLog::open(log.path(), 1000).await.unwrap();
    assert_eq!(*again.written().borrow(), Written { bytes: length, closed: true });
    again.write(Source::Stdout, b"more\n").await.unwrap();
    assert_eq!(again.close("end").await.unwrap(), length);
}

#[tokio::test]
async fn a_log_without_its_place_is_not_guessed_at() {
    let (_dir, log) = log(1000).await;
    log.write(Source::Stdout, b"all\n").await.unwrap();
    std::fs::write(log.path().with_extension(PLACE_SUFFIX), "").unwrap();
    assert!(JobLog::open(log.path(), 1000).await.is_err());
}

/// One step of a container and its worker.
#[derive(Clone, Debug)]
enum Step {
    /// The container writes a message so long.
    Write(Source, usize),
    /// The worker writes a note.
    Note,
    /// The process dies, after so many bytes of a write of its own or of the container's.
    Die(Option<Source>, usize),
    /// The engine dies with the beginning of a line so long, which it has told and not written down.
    EngineDies(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let source = || prop_oneof![Just(Source::Stdout), Just(Source::Stderr)];
    let step = prop_oneof![
        5 => (source(), 0..60_usize).prop_map(|(source, length)| Step::Write(source, length)),
        1 => Just(Step::Note),
        2 => (proptest::option::of(source()), 0..60_usize).prop_map(|(of, bytes)| Step::Die(of, bytes)),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What an engine keeps of a container's output.
#[derive(Default)]
struct Engine {
    messages: Vec<(Source, Bytes)>,
    written: [u8; 2],
    /// Bytes that it told and lost.
    lost: usize,
}

impl Engine {
    /// The next message of a stream: standard output is of the digits 0 to 4, standard error of 5 to 9, in turn.
    fn write(&mut self, source: Source, length: usize) -> Bytes {
        let (at, first) = match source {
            Source::Stdout => (&mut self.written[0], b'0'),
            Source::Stderr => (&mut self.written[1], b'5'),
        };
        let mut digit = || {
            *at = (*at + 1) % 5;
            first + *at
        };
        let bytes: Bytes = (0..length).map(|_| digit()).collect();
        self.messages.push((source, bytes.clone()));
        bytes
    }

    fn all(&self, source: Source) -> Vec<u8> {
        self.messages.iter().filter(|(of, _)| *of == source).flat_map(|(_, bytes)| bytes.to_vec()).collect()
    }
}

/// A container's engine, and the log of its attempt.
struct Stage {
    engine: Engine,
    path: PathBuf,
    max_bytes: u64,
    spool: Spool,
    /// From the first break on, the engine's log is read.
    catchup: Option<Catchup>,
}

impl Stage {
    fn open(path: &Path, max_bytes: u64) -> Spool {
        Spool::open(path, max_bytes, Arc::default()).unwrap()
    }

    fn hear(&mut self, source: Source, message: Bytes) {
        match &mut self.catchup {
            None => self.spool.write(Author::Container(source), &message).unwrap(),
            Some(catchup) => {
                if let Some(news) = catchup.take(source, message).unwrap() {
                    self.spool.write_news(source, &news).unwrap();
                }
            }
        }
    }

    fn read_again(&mut self) {
        self.catchup = Some(Catchup::new(self.spool.taken().unwrap()));
        for (source, message) in self.engine.messages.clone() {
            self.hear(source, message);
        }
    }

    /// The process dies over this, which is in the file up to the byte `part`.
    fn die(&mut self, author: Author, message: Bytes, part: usize) {
        let mut message = message;
        if let (Author::Container(source), Some(catchup)) = (author, &mut self.catchup) {
            let news = catchup.take(source, message).unwrap().unwrap();
            message = news.bytes.clone();
            self.spool.write_news(source, &News { bytes: Bytes::new(), ..news }).unwrap();
        }
        self.spool.settle(author, &message).unwrap();
        let end = self.spool.written.borrow().bytes;
        let room = usize::try_from(self.spool.head_bytes.saturating_sub(end)).unwrap();
        let part = if self.spool.cut.is_some() { 0 } else { room.min(part).min(message.len()) };
        self.spool.file.write_all_at(&message[..part], end).unwrap();
        self.spool = Self::open(&self.path, self.max_bytes);
        self.read_again();
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Write(source, length) => {
                let message = self.engine.write(*source, *length);
                self.hear(*source, message);
            }
            Step::EngineDies(length) => {
                // Whoever reads its log does not hear half a line.
                if self.catchup.is_none() {
                    self.spool.write(Author::Container(Source::Stdout), &vec![b'H'; *length]).unwrap();
                    self.engine.lost += length;
                }
                self.read_again();
            }
            Step::Note => self.spool.note(Author::Worker, "note").unwrap(),
            Step::Die(Some(source), part) => {
                let message = self.engine.write(*source, 50);
                self.die(Author::Container(*source), message, *part);
            }
            Step::Die(None, part) => {
                let note = Bytes::from_static(b"==> railyard: a note that was being written\n");
                self.die(Author::Worker, note, *part);
            }
        }
    }
}

fn play(steps: &[Step], max_bytes: u64) -> (Vec<u8>, Engine) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let spool = Stage::open(&path, max_bytes);
    let mut stage = Stage { engine: Engine::default(), path, max_bytes, spool, catchup: None };
    steps.iter().for_each(|step| stage.step(step));
    stage.spool.note(Author::End, "end").unwrap();
    stage.spool.write_tail().unwrap();
    (std::fs::read(&stage.path).unwrap(), stage.engine)
}

/// One stream, and no notes in it.
fn steps_of_an_engine_that_dies() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1..60_usize).prop_map(|length| Step::Write(Source::Stdout, length)),
        2 => (1..60_usize).prop_map(Step::EngineDies),
        2 => (0..60_usize).prop_map(|bytes| Step::Die(Some(Source::Stdout), bytes)),
    ];
    proptest::collection::vec(step, 1..40)
}

proptest! {
    #[test]
    fn what_an_engine_loses_shifts_nothing(steps in steps_of_an_engine_that_dies()) {
        let (log, engine) = play(&steps, 1 << 20);
        let log = log.strip_suffix(b"==> railyard: end\n").unwrap();
        let kept: Vec<u8> = log.iter().copied().filter(u8::is_ascii_digit).collect();
        prop_assert_eq!(kept, engine.all(Source::Stdout));
        prop_assert_eq!(log.iter().filter(|byte| **byte == b'H').count(), engine.lost);
    }

    #[test]
    fn whenever_the_process_dies_each_stream_is_in_the_log_once_and_whole(steps in steps()) {
        let (log, engine) = play(&steps, 1 << 20);
        for (source, digits) in [(Source::Stdout, b'0'..=b'4'), (Source::Stderr, b'5'..=b'9')] {
            let kept: Vec<u8> = log.iter().copied().filter(|byte| digits.contains(byte)).collect();
            prop_assert_eq!(kept, engine.all(source));
        }
    }

    #[test]
    fn a_long_log_keeps_its_limit_through_every_death(steps in steps()) {
        let (log, engine) = play(&steps, 600);
        prop_assert!(log.len() <= 600, "{} bytes", log.len());
        if engine.all(Source::Stderr).is_empty() && !steps.iter().any(|step| !matches!(step, Step::Write(..))) {
            let all = engine.all(Source::Stdout);
            prop_assert!(log.starts_with(&all[..all.len().min(600 - 128 - 150)]));
        }
    }
}
