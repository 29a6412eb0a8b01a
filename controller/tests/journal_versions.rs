//! Journals that earlier versions wrote are read by this one.

use railyard_common::time::Millis;
use railyard_controller::journal::{Journal as _, SledJournal};
use railyard_core::{Event, Farm};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every kind of event that each format had.
const KINDS: [(&str, &[&str]); 4] = [
    ("journal-v1", &KINDS_OF_1),
    ("journal-v2", &KINDS_OF_2),
    ("journal-v3", &KINDS_OF_2),
    ("journal-v3-keeping", &KINDS_WITH_KEEPING),
];

const KINDS_OF_1: [&str; 10] = [
    "attempt-ended",
    "build-accepted",
    "build-cancelled",
    "build-ended",
    "build-resumed",
    "controller-started",
    "job-leased",
    "worker-draining",
    "worker-offline",
    "worker-online",
];

const KINDS_OF_2: [&str; 17] = [
    "attempt-ended",
    "build-accepted",
    "build-cancelled",
    "build-ended",
    "build-resumed",
    "controller-restored",
    "controller-started",
    "job-leased",
    "job-uploading",
    "jobs-approved",
    "jobs-cancelled",
    "worker-draining",
    "worker-forgotten",
    "worker-held",
    "worker-offline",
    "worker-online",
    "worker-released",
];

const KINDS_WITH_KEEPING: [&str; 31] = [
    "attempt-ended",
    "blobs-claimed",
    "build-accepted",
    "build-cancelled",
    "build-ended",
    "build-pinned",
    "build-promoted",
    "build-resumed",
    "build-tagged",
    "build-unpinned",
    "build-untagged",
    "builds-forgotten",
    "builds-reduced",
    "builds-swept",
    "controller-restored",
    "controller-started",
    "identity-revoked",
    "job-leased",
    "job-uploading",
    "jobs-approved",
    "jobs-cancelled",
    "sweep-resumed",
    "token-dropped",
    "token-made",
    "token-used",
    "worker-draining",
    "worker-forgotten",
    "worker-held",
    "worker-offline",
    "worker-online",
    "worker-released",
];

fn fixtures() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let found: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
    assert!(!found.is_empty());
    found
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

fn events(fixture: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(fixture.join("events.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn replayed(events: &[Event]) -> Farm {
    let mut farm = Farm::default();
    events.iter().for_each(|event| farm.apply(event));
    farm
}

/// Every field of `golden` with its value; others may have come since.
fn assert_holds(golden: &Value, found: &Value, at: &str) {
    match (golden, found) {
        (Value::Object(golden), Value::Object(found)) => {
            for (name, value) in golden {
                let there = found.get(name).unwrap_or_else(|| panic!("{at}.{name} is gone"));
                assert_holds(value, there, &format!("{at}.{name}"));
            }
        }
        (Value::Array(golden), Value::Array(found)) => {
            assert_eq!(golden.len(), found.len(), "{at}");
            for (n, (golden, found)) in golden.iter().zip(found).enumerate() {
                assert_holds(golden, found, &format!("{at}[{n}]"));
            }
        }
        _ => assert_eq!(golden, found, "{at}"),
    }
}

#[test]
fn every_earlier_format_comes_to_the_state_that_it_was() {
    for fixture in fixtures() {
        let name = fixture.file_name().unwrap().to_str().unwrap();
        let golden: Value = serde_json::from_slice(&std::fs::read(fixture.join("farm.json")).unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        copy(&fixture.join("journal"), dir.path());
        let mut journal = SledJournal::open(dir.path()).unwrap();
        let loaded = journal.load().unwrap();
        assert!(loaded.snapshot.is_some() && !loaded.events.is_empty(), "{name} has a snapshot and a tail");
        let farm = loaded.farm();
        assert_eq!(farm.check(), Vec::<String>::new(), "{name}");
        assert_holds(&golden, &serde_json::to_value(farm.snapshot()).unwrap(), name);

        // It goes on from there, as a journal of today.
        journal.append(&[Event::ControllerStarted { at: Millis(9_000_000) }]).unwrap();
        journal.install(&farm.snapshot()).unwrap();
        journal.append(&[Event::ControllerStarted { at: Millis(9_000_001) }]).unwrap();
        drop(journal);
        let again = SledJournal::open(dir.path()).unwrap().load().unwrap();
        assert_eq!(again.events.len(), 1, "{name}");
        assert_holds(&golden["builds"], &serde_json::to_value(again.farm().snapshot()).unwrap()["builds"], name);
    }
}

#[test]
fn every_earlier_event_is_understood_by_itself() {
    for fixture in fixtures() {
        let name = fixture.file_name().unwrap().to_str().unwrap();
        let events = events(&fixture);
        let golden: Value = serde_json::from_slice(&std::fs::read(fixture.join("farm.json")).unwrap()).unwrap();
        let farm = replayed(&events);
        assert_eq!(farm.check(), Vec::<String>::new(), "{name}");
        assert_holds(&golden, &serde_json::to_value(farm.snapshot()).unwrap(), name);
        let text = std::fs::read_to_string(fixture.join("events.jsonl")).unwrap();
        let kind = |line: &str| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned();
        let kinds: BTreeSet<String> = text.lines().map(kind).collect();
        let (_, known) = KINDS.iter().find(|(fixture, _)| *fixture == name).unwrap_or_else(|| panic!("{name} is new"));
        assert!(kinds.iter().map(String::as_str).eq(known.iter().copied()), "{name} has {kinds:?}");
    }
}

/// The fixture of a format is made while it is the present one: later there is no software that writes it.
#[test]
fn the_present_format_has_its_fixture() {
    let format = |journal: &Path| std::fs::read(journal.join("snapshot-00000001")).unwrap()[0];
    let dir = tempfile::tempdir().unwrap();
    let mut journal = SledJournal::open(dir.path()).unwrap();
    journal.append(&[Event::ControllerStarted { at: Millis(1) }]).unwrap();
    journal.install(&Farm::default().snapshot()).unwrap();
    let formats: BTreeSet<u8> = fixtures().iter().map(|fixture| format(&fixture.join("journal"))).collect();
    let present = format(dir.path());
    assert!(formats.contains(&present), "format {present} has no fixture; fixtures/README.md tells how it is made");
    assert_eq!(formats.len(), usize::from(present), "a fixture of each format is kept: {formats:?}");
}
