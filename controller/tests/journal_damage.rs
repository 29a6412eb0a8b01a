//! A damaged journal: what was never acknowledged may go, what was acknowledged is there or the start says what is wrong.

use railyard_common::time::Millis;
use railyard_controller::journal::{Journal as _, JournalError, SledJournal};
use railyard_core::{Event, Farm};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Appends before the one that is torn.
const WHOLE: u64 = 12;
/// A batch for the journal of [`with_all_kinds_of_files`]; it is so large that sled puts it into a file of its own.
const LARGE: u64 = WHOLE + 1;

/// A record of some hundred bytes, or of some hundred thousand that cannot be compressed much.
fn event(batch: u64) -> Event {
    let at = Millis(batch);
    if batch != LARGE {
        return Event::ControllerStarted { at };
    }
    let mut dice = fastrand::Rng::with_seed(1);
    let reason = std::iter::repeat_with(|| dice.alphanumeric()).take(900_000).collect();
    Event::BuildCancelled { at, build: "p/1".parse().unwrap(), by: "op".to_owned(), reason }
}

/// Events of a batch.
const EVENTS: usize = 3;

/// The numbers of the batches that the journal holds; panics if one is there in part.
fn batches(journal: &mut SledJournal) -> Result<Vec<u64>, JournalError> {
    let events = journal.load()?.events;
    let numbers: Vec<u64> = events.iter().map(|found| found.at().0).collect();
    for found in &events {
        assert_eq!(*found, event(found.at().0), "it was never written");
    }
    let batches: Vec<&[u64]> = numbers.chunk_by(|one, next| one == next).collect();
    for batch in &batches {
        assert_eq!(batch.len(), EVENTS, "batch {}", batch[0]);
    }
    Ok(batches.into_iter().map(|batch| batch[0]).collect())
}

fn open(dir: &Path) -> Result<(SledJournal, Vec<u64>), JournalError> {
    let mut journal = SledJournal::open(dir)?;
    let found = batches(&mut journal)?;
    Ok((journal, found))
}

fn append(journal: &mut SledJournal, batch: u64) {
    journal.append(&vec![event(batch); EVENTS]).unwrap();
}

/// The files of a journal, as a power failure would leave them: everything that was synced.
#[derive(Clone)]
struct Image(BTreeMap<PathBuf, Vec<u8>>);

impl Image {
    fn of(dir: &Path) -> Self {
        let mut files = BTreeMap::new();
        let mut waiting = vec![dir.to_owned()];
        while let Some(next) = waiting.pop() {
            for entry in std::fs::read_dir(next).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    waiting.push(path);
                } else if path.file_name().unwrap() != "reserve" {
                    files.insert(path.strip_prefix(dir).unwrap().to_owned(), std::fs::read(&path).unwrap());
                }
            }
        }
        Self(files)
    }

    fn with(&self, file: &Path, bytes: Vec<u8>) -> Self {
        let mut image = self.clone();
        image.0.insert(file.to_owned(), bytes);
        image
    }

    fn laid_out(&self) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in &self.0 {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        dir
    }
}

const LOG: &str = "tail-00000001/db";
const MARK: &str = "mark-00000001";

/// A journal with a snapshot and [`WHOLE`] batches, and the same after one batch more. It is never closed: an orderly end
/// would leave other files than a crash.
fn before_and_after() -> (Image, Image) {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path()).unwrap();
    append(&mut journal, 100);
    journal.install(&Farm::default().snapshot()).unwrap();
    for batch in 0..WHOLE {
        append(&mut journal, batch);
    }
    journal.ready().unwrap();
    let before = Image::of(dir.path());
    append(&mut journal, WHOLE);
    // The mark follows a moment later.
    journal.ready().unwrap();
    (before, Image::of(dir.path()))
}

/// A journal with every kind of file that sled makes: also its page table, and a large value.
fn with_all_kinds_of_files() -> Image {
    let (_, after) = before_and_after();
    let dir = after.laid_out();
    let (mut journal, _) = open(dir.path()).unwrap();
    append(&mut journal, LARGE);
    journal.ready().unwrap();
    Image::of(dir.path())
}

#[test]
fn a_write_that_was_torn_anywhere_is_cut_off_and_the_journal_goes_on() {
    let (before, after) = before_and_after();
    let (old, new) = (&before.0[Path::new(LOG)], &after.0[Path::new(LOG)]);
    let first = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    assert!(new.len() > first + 64, "the last append wrote {} bytes", new.len() - first);
    let (mut cut_off, mut whole) = (0, 0);
    for cut in first..=new.len() {
        // What was not written is the file's old bytes, or its end, or zeros: the mark is still the old one.
        let ends = new[..cut].to_vec();
        let zeros = [&new[..cut], &vec![0; new.len() - cut]].concat();
        let kinds = if cut % 8 == 0 { vec![ends, zeros] } else { vec![ends] };
        for torn in kinds {
            let dir = before.with(Path::new(LOG), torn).laid_out();
            let (mut journal, found) = open(dir.path()).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
            let is_whole = found.len() as u64 == WHOLE + 1;
            assert_eq!(found, (0..WHOLE + u64::from(is_whole)).collect::<Vec<_>>(), "cut at {cut}");
            (whole, cut_off) = (whole + u64::from(is_whole), cut_off + u64::from(!is_whole));
            append(&mut journal, 77);
            drop(journal);
            let (_, again) = open(dir.path()).unwrap();
            assert_eq!(again, [found, vec![77]].concat(), "cut at {cut}");
        }
    }
    assert!(cut_off > 64 && whole > 0, "{cut_off} cut off, {whole} whole");
}

/// The outcome of a start on damaged files: all that was acknowledged, or an error that says what to do.
fn all_or_an_error(image: &Image, last: u64, what: &str) -> bool {
    let dir = image.laid_out();
    match open(dir.path()) {
        Ok((_, found)) => {
            assert_eq!(found, (0..=last).collect::<Vec<_>>(), "{what}: a smaller state, and nobody was told");
            true
        }
        Err(error) => {
            let message = error.to_string();
            let helps = message.contains("railyard controller restore") || message.contains("upgrade the controller");
            assert!(helps && message.contains("-0000000"), "{what}: {message}");
            // It says the same the next time: the first start has not made it worse, or better.
            assert!(open(dir.path()).is_err(), "{what}: `{message}` the first time, and then it starts");
            false
        }
    }
}

/// Flips bytes of every file of the newest generation, at most `most` in each.
fn flip(image: &Image, last: u64, most: usize) {
    for (file, bytes) in &image.0 {
        if file.starts_with("tail-00000000") || file.starts_with("mark-00000000") {
            continue;
        }
        // sled fills its log up with bytes that mean nothing.
        let end = bytes.windows(2).rposition(|pair| pair[0] != pair[1]).map_or(bytes.len(), |at| at + 2);
        let (mut starts, mut errors) = (0, 0);
        for at in (0..end).step_by(end.div_ceil(most)) {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (at % 8);
            let what = format!("{} byte {at} of {end}", file.display());
            match all_or_an_error(&image.with(file, bad), last, &what) {
                true => starts += 1,
                false => errors += 1,
            }
        }
        println!("{}: {end} bytes, {starts} flips harmless, {errors} stop the start", file.display());
        let is_mark = file.to_str().is_some_and(|name| name.starts_with("mark-"));
        // One half of the mark does for the other.
        assert_eq!(errors == 0, is_mark, "{}: {starts} flips harmless, {errors} noticed", file.display());
    }
}

#[test]
fn a_flipped_byte_is_harmless_or_stops_the_start() {
    let (_, after) = before_and_after();
    flip(&after, WHOLE, 250);
}

#[test]
fn a_flipped_byte_in_sled_s_other_files_is_harmless_or_stops_the_start() {
    flip(&with_all_kinds_of_files(), LARGE, 25);
}

#[test]
fn an_acknowledged_end_that_is_gone_stops_the_start() {
    let (before, after) = before_and_after();
    let log = &after.0[Path::new(LOG)];
    let step = log.len() / 150;
    let mut errors = 0;
    for cut in (0..log.len()).step_by(step) {
        let image = after.with(Path::new(LOG), log[..cut].to_vec());
        errors += u64::from(!all_or_an_error(&image, WHOLE, &format!("cut at {cut} of {}", log.len())));
    }
    assert!(errors > 100, "only {errors} cuts were noticed");
    // The control: with the mark of before, the last record would go without a word.
    let short = before.0[Path::new(LOG)].clone();
    let mark = before.0[Path::new(MARK)].clone();
    let dir = after.with(Path::new(LOG), short).with(Path::new(MARK), mark).laid_out();
    assert_eq!(open(dir.path()).unwrap().1.len() as u64, WHOLE);
}

#[test]
fn a_corrupt_snapshot_names_the_generation_before_it() {
    let (_, after) = before_and_after();
    let snapshot = Path::new("snapshot-00000001");
    let mut bad = after.0[snapshot].clone();
    bad[20] ^= 1;
    let dir = after.with(snapshot, bad).laid_out();
    let message = open(dir.path()).err().unwrap().to_string();
    for words in ["snapshot-00000001", "checksum", "tail-00000000", "railyard controller restore --from"] {
        assert!(message.contains(words), "{message}");
    }
    // Nothing is taken away while it is needed.
    assert!(dir.path().join("tail-00000000/db").exists());
}
