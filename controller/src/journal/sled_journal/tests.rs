use super::*;
use railyard_common::time::Millis;
use railyard_core::Farm;

fn encode(events: &[Event]) -> Vec<u8> {
    record::encode(&events).0
}

fn started(at: u64) -> Event {
    Event::ControllerStarted { at: Millis(at) }
}

fn times(events: &[Event]) -> Vec<u64> {
    let time = |event: &Event| match event {
        Event::ControllerStarted { at } => at.0,
        other => panic!("{other:?} was never written"),
    };
    events.iter().map(time).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn gives_back_what_it_was_given_also_after_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = SledJournal::open(dir.path()).unwrap();
    assert!(journal.load().unwrap().events.is_empty());
    journal.append(&[started(1), started(2)]).unwrap();
    journal.append(&[started(3)]).unwrap();
    drop(journal);
    for generation in 1..=3 {
        let mut journal = SledJournal::open(dir.path()).unwrap();
        journal.install(&Farm::default().snapshot()).unwrap();
        journal.append(&[started(generation)]).unwrap();
        drop(journal);
        let mut journal = SledJournal::open(dir.path()).unwrap();
        let loaded = journal.load().unwrap();
        assert!(loaded.snapshot.is_some());
        assert_eq!(times(&loaded.events), [generation]);
    }
    // The newest generation and the one before it.
    let parts =
        ["mark-00000002", "mark-00000003", "snapshot-00000002", "snapshot-00000003", "tail-00000002", "tail-00000003"];
    assert_eq!(names(dir.path()), parts);
}

#[test]
fn a_missing_or_altered_record_stops_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = SledJournal::open(dir.path()).unwrap();
    for at in 0..4 {
        journal.append(&[started(at)]).unwrap();
    }
    drop(journal);
    let tamper = |change: &dyn Fn(&sled::Db)| {
        let tail = dir.path().join("tail-00000000");
        // A thread of the last one's may hold it for a moment.
        assert!(sled_tail::is_free(&tail.join("db")));
        let db = sled::open(tail).unwrap();
        change(&db);
        db.flush().unwrap();
        drop(db);
        SledJournal::open(dir.path()).err().expect("this must not start").to_string()
    };
    let second = sled::IVec::from(encode(&[started(1)]));
    let message = tamper(&|db| drop(db.remove(1u64.to_be_bytes()).unwrap()));
    assert!(message.contains("record 1") && message.contains("railyard controller restore"), "{message}");
    let mut altered = second.to_vec();
    *altered.last_mut().unwrap() ^= 1;
    let message = tamper(&|db| drop(db.insert(1u64.to_be_bytes(), altered.clone()).unwrap()));
    assert!(message.contains("record 1") && message.contains("checksum"), "{message}");
    // Whole in itself, and not what was acknowledged.
    let message = tamper(&|db| drop(db.insert(1u64.to_be_bytes(), encode(&[started(9)])).unwrap()));
    assert!(message.contains("acknowledged"), "{message}");
    // The last one is gone: sled itself sees nothing wrong.
    let message = tamper(&|db| {
        db.insert(1u64.to_be_bytes(), second.clone()).unwrap();
        db.remove(3u64.to_be_bytes()).unwrap();
    });
    assert!(message.contains("record 3") && message.contains("4 records were acknowledged"), "{message}");
}

#[test]
fn a_journal_without_its_snapshot_or_its_mark_does_not_start_as_an_older_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = SledJournal::open(dir.path()).unwrap();
    journal.append(&[started(1)]).unwrap();
    journal.install(&Farm::default().snapshot()).unwrap();
    journal.append(&[started(2)]).unwrap();
    drop(journal);
    let (mark, snapshot) = (dir.path().join("mark-00000001"), dir.path().join("snapshot-00000001"));
    let kept = fs::read(&mark).unwrap();
    fs::remove_file(&mark).unwrap();
    let message = SledJournal::open(dir.path()).err().unwrap().to_string();
    assert!(message.contains("mark"), "{message}");
    fs::write(&mark, kept).unwrap();
    fs::remove_file(&snapshot).unwrap();
    let message = SledJournal::open(dir.path()).err().unwrap().to_string();
    assert!(message.contains("snapshot-00000001") && message.contains("tail-00000000"), "{message}");
}

#[test]
fn after_a_failed_append_the_state_is_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = SledJournal::open(dir.path()).unwrap();
    journal.append(&[started(1)]).unwrap();
    // The record reaches the disk, and the mark does not: executed, and then failed.
    let (tail, _) = journal.tail.as_mut().unwrap();
    tail.put(1, &encode(&[started(2)])).unwrap();
    journal.tail = None;
    assert_eq!(times(&journal.load().unwrap().events), [1]);
    journal.ready().unwrap();
    assert_eq!(times(&journal.load().unwrap().events), [1]);
    journal.append(&[started(3)]).unwrap();
    drop(journal);
    assert_eq!(times(&SledJournal::open(dir.path()).unwrap().load().unwrap().events), [1, 3]);
}

#[test]
fn a_large_record_comes_back_whole() {
    let dir = tempfile::tempdir().unwrap();
    let mut journal = SledJournal::open(dir.path()).unwrap();
    let many: Vec<Event> = (0..60_000).map(started).collect();
    journal.append(&many).unwrap();
    journal.append(&[started(7)]).unwrap();
    drop(journal);
    let mut journal = SledJournal::open(dir.path()).unwrap();
    assert_eq!(journal.load().unwrap().events.len(), 60_001);
}

#[test]
fn a_second_controller_is_kept_out() {
    let dir = tempfile::tempdir().unwrap();
    let _first = SledJournal::open(dir.path()).unwrap();
    assert!(matches!(SledJournal::open(dir.path()), Err(JournalError::Locked { .. })));
}
