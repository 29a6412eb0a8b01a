//! Damage of every kind is found.

use super::log::{Found, Log};
use super::record::{self, Head};
use super::*;
use proptest::prelude::*;
use railyard_common::time::Millis;
use std::fs;
use std::os::unix::fs::FileExt as _;

/// Small enough that a log of some records has several segments.
const SEGMENT_BYTES: u64 = 1_500;

fn append(log: &mut Log, n: u64, count: u64) {
    let (mut lines, mut head) = (Vec::new(), log.head());
    for n in n..n + count {
        let entry = Entry::new(Act::ALL[n as usize % (Act::ALL.len() - 1)]).target(format!("mini/{n}"));
        let entry = if n % 3 == 0 { entry.refused("\"no\"\n") } else { entry.detail("n", n.to_string()) };
        head = record::seal(&entry, Millis(1_763_776_259_000 + n), head, &mut lines);
    }
    log.append(&lines, head).unwrap();
}

/// A log of so many records; gives its head.
fn make(dir: &Path, records: u64) -> Head {
    let (mut log, found) = Log::open(dir, SEGMENT_BYTES).unwrap();
    assert_eq!(found, Found::default());
    for n in (0..records).step_by(4) {
        append(&mut log, n, 4.min(records - n));
    }
    let head = log.head();
    log.close().unwrap();
    head
}

fn faults(dir: &Path, wanted: &Wanted) -> Vec<String> {
    verify(dir, wanted).unwrap().faults.iter().map(ToString::to_string).collect()
}

/// The segments' names and texts.
fn texts(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = files::segments(dir).unwrap().into_iter().map(|first| files::segment(dir, first));
    paths.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

fn lines(text: &[u8]) -> Vec<Vec<u8>> {
    text.split_inclusive(|&byte| byte == b'\n').map(<[u8]>::to_vec).collect()
}

/// A way to damage a log.
#[derive(Clone, Debug)]
enum Damage {
    /// One byte is another.
    Byte { at: prop::sample::Index, xor: u8 },
    /// A line is gone.
    Remove { line: prop::sample::Index },
    /// Two lines have changed places.
    Swap { one: prop::sample::Index, other: prop::sample::Index },
    /// A line is there twice.
    Twice { line: prop::sample::Index, at: prop::sample::Index },
    /// A new record, with a right hash of its own, stands in place of another.
    Forge { line: prop::sample::Index },
    /// Bytes are put in.
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
    /// The file ends earlier, and all later ones are gone.
    Truncate { at: prop::sample::Index },
    /// A file is gone.
    RemoveFile { file: prop::sample::Index },
    /// Two files have changed places.
    SwapFiles { one: prop::sample::Index, other: prop::sample::Index },
}

fn damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (index(), 1..=255_u8).prop_map(|(at, xor)| Damage::Byte { at, xor }),
        2 => index().prop_map(|line| Damage::Remove { line }),
        2 => (index(), index()).prop_map(|(one, other)| Damage::Swap { one, other }),
        2 => (index(), index()).prop_map(|(line, at)| Damage::Twice { line, at }),
        2 => index().prop_map(|line| Damage::Forge { line }),
        2 => (index(), prop::collection::vec(any::<u8>(), 1..5)).prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
        3 => index().prop_map(|at| Damage::Truncate { at }),
        1 => index().prop_map(|file| Damage::RemoveFile { file }),
        1 => (index(), index()).prop_map(|(one, other)| Damage::SwapFiles { one, other }),
    ]
}

/// All segments as one text.
fn whole(texts: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    texts.iter().flat_map(|(_, text)| text.clone()).collect()
}

/// Every line, with the index of its file.
fn pieces(texts: &[(PathBuf, Vec<u8>)]) -> Vec<(usize, Vec<u8>)> {
    let of = |(file, (_, text)): (usize, &(PathBuf, Vec<u8>))| lines(text).into_iter().map(move |line| (file, line));
    texts.iter().enumerate().flat_map(of).collect()
}

/// Puts them back into their files; a file without a line is gone.
fn put_back(texts: &[(PathBuf, Vec<u8>)], pieces: &[(usize, Vec<u8>)]) {
    for (file, (path, _)) in texts.iter().enumerate() {
        let own: Vec<_> = pieces.iter().filter(|(of, _)| *of == file).map(|(_, line)| line.clone()).collect();
        if own.is_empty() { fs::remove_file(path).unwrap() } else { fs::write(path, own.concat()).unwrap() }
    }
}

/// A record with a right hash that follows on the one before the line, and is another.
fn forge(line: &[u8]) -> Vec<u8> {
    let old = record::check(line.trim_ascii_end()).unwrap();
    let (mut forged, before) = (Vec::new(), Head { seq: old.head.seq - 1, hash: old.prev });
    record::seal(&Entry::new(Act::Approve).target("forged"), Millis(1), before, &mut forged);
    forged
}

/// Does the damage; `false` if it changes nothing.
fn inflict(dir: &Path, damage: &Damage) -> bool {
    let before = texts(dir);
    let mut pieces = pieces(&before);
    let count = pieces.len();
    match damage {
        Damage::Byte { at, xor } => {
            let (line, at) = (at.index(count), at.index(usize::MAX));
            let text = &mut pieces[line].1;
            let at = at % text.len();
            text[at] ^= xor;
        }
        Damage::Insert { at, bytes } => {
            let (line, at) = (at.index(count), at.index(usize::MAX));
            let text = &mut pieces[line].1;
            let at = at % (text.len() + 1);
            text.splice(at..at, bytes.iter().copied());
        }
        Damage::Truncate { at } => {
            let (line, at) = (at.index(count), at.index(usize::MAX));
            pieces.truncate(line + 1);
            let text = &mut pieces[line].1;
            text.truncate(at % text.len());
        }
        Damage::Remove { line } => drop(pieces.remove(line.index(count))),
        Damage::Swap { one, other } => {
            let (one, other) = (one.index(count), other.index(count));
            let text = pieces[one].1.clone();
            pieces[one].1 = std::mem::replace(&mut pieces[other].1, text);
        }
        Damage::Twice { line, at } => {
            let text = pieces[line.index(count)].1.clone();
            let at = at.index(count);
            pieces.insert(at, (pieces[at].0, text));
        }
        Damage::Forge { line } => {
            let text = &mut pieces[line.index(count)].1;
            *text = forge(text);
        }
        Damage::RemoveFile { file } => {
            let file = file.index(before.len());
            pieces.retain(|(of, _)| *of != file);
        }
        Damage::SwapFiles { one, other } => {
            let (one, other) = (one.index(before.len()), other.index(before.len()));
            for (of, _) in &mut pieces {
                *of = if *of == one {
                    other
                } else if *of == other {
                    one
                } else {
                    *of
                };
            }
        }
    }
    put_back(&before, &pieces);
    texts(dir) != before
}

proptest! {
    #![proptest_config(ProptestConfig::default())]

    #[test]
    fn any_damage_is_found(records in 1_u64..25, damage in damage()) {
        let dir = tempfile::tempdir().unwrap();
        let head = make(dir.path(), records);
        let verified = verify(dir.path(), &Wanted::default()).unwrap();
        prop_assert!(verified.is_good(), "{:?}", verified.faults);
        prop_assert_eq!((verified.records, verified.head), (records, head));
        prop_assume!(inflict(dir.path(), &damage));
        let verified = verify(dir.path(), &Wanted::default()).unwrap();
        prop_assert!(!verified.is_good());
        // With the head gone too, one that was noted elsewhere finds it.
        fs::remove_file(files::head_path(dir.path())).unwrap();
        let noted = Wanted { expect: Some(head), ..Wanted::default() };
        let told = faults(dir.path(), &noted);
        prop_assert!(told.iter().any(|fault| !fault.starts_with("head: ")), "{:?}", told);
    }

    #[test]
    fn a_controller_starts_on_any_damage_and_says_so(records in 1_u64..25, damage in damage()) {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), records);
        let original = texts(dir.path());
        prop_assume!(inflict(dir.path(), &damage));
        let before = texts(dir.path());
        let (mut log, found) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
        let first = owner::first_entry(found.clone());
        let (mut lines, mut head) = (Vec::new(), log.head());
        for entry in first.into_iter().chain([Entry::new(Act::Start)]) {
            head = record::seal(&entry, Millis(1), head, &mut lines);
        }
        log.append(&lines, head).unwrap();
        log.close().unwrap();
        // The last file is looked at.
        let was_seen = found != Found::default();
        prop_assert!(was_seen || before.last() == original.last(), "{:?}", found);
        if found.broken.is_some() {
            for (path, text) in &before {
                prop_assert_eq!(&fs::read(path).unwrap(), text, "what is damaged stays as it is");
            }
        }
        // Only torn bytes behind the last record are taken away; after all else the chain is not good any more.
        let is_good = verify(dir.path(), &Wanted::default()).unwrap().is_good();
        prop_assert!(!is_good || whole(&texts(dir.path())).starts_with(&whole(&original)));
    }
}

#[test]
fn a_line_that_a_crash_tore_is_cut_off_wherever_it_was_torn() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), 1 << 20).unwrap();
    append(&mut log, 0, 3);
    let (acked, path) = (log.head(), files::segment(dir.path(), 1));
    let whole_bytes = fs::read(&path).unwrap().len();
    append(&mut log, 3, 2);
    log.close().unwrap();
    let all = fs::read(&path).unwrap();
    let head = fs::read(files::head_path(dir.path())).unwrap();
    for end in whole_bytes..=all.len() {
        fs::write(&path, &all[..end]).unwrap();
        // Nobody had been told of the last two.
        fs::write(files::head_path(dir.path()), format!("{:020}:{}\n", acked.seq, acked.hash)).unwrap();
        let (mut log, found) = Log::open(dir.path(), 1 << 20).unwrap();
        let kept = all[..end].iter().filter(|&&byte| byte == b'\n').count() as u64;
        let last_end = all[..end].iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        assert_eq!(found, Found { torn_bytes: (end - last_end) as u64, broken: None }, "{end}");
        assert_eq!(log.head().seq, kept);
        append(&mut log, 9, 1);
        log.close().unwrap();
        assert_eq!(faults(dir.path(), &Wanted::default()), Vec::<String>::new(), "{end}");
    }
    fs::write(&path, &all).unwrap();
    fs::write(files::head_path(dir.path()), head).unwrap();
    assert_eq!(faults(dir.path(), &Wanted::default()), Vec::<String>::new());
}

#[test]
fn acknowledged_records_that_are_cut_off_are_missed_at_the_next_start() {
    for cut_lines in 1..=5 {
        let dir = tempfile::tempdir().unwrap();
        let head = make(dir.path(), 12);
        let before = texts(dir.path());
        put_back(&before, &pieces(&before)[..12 - cut_lines]);
        let (mut log, found) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
        let why = found.broken.unwrap();
        assert!(why.contains("to 12 were cut off at the end"), "{why}");
        assert_eq!(log.head(), head, "numbers are not used twice");
        append(&mut log, 0, 1);
        log.close().unwrap();
        let told = faults(dir.path(), &Wanted::default());
        assert!(told.iter().any(|fault| fault.contains("missing before record 13")), "{told:?}");
    }
}

#[tokio::test]
async fn a_break_is_told_for_good_and_can_be_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), 3);
    let path = files::segment(dir.path(), 1);
    let text = fs::read_to_string(&path).unwrap().replace("mini/1", "mini/7");
    fs::write(&path, text).unwrap();
    let audit = Audit::open(dir.path(), Arc::new(railyard_service::clock::SystemClock)).unwrap();
    audit.record(Entry::new(Act::Start)).await.unwrap();
    let told = faults(dir.path(), &Wanted::default());
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].starts_with("audit-0000000000000001.jsonl:2: record 2 was changed"), "{told:?}");
    assert!(told[1].starts_with("audit-0000000000000004.jsonl:1: record 4: the controller found"), "{told:?}");
    assert!(told[1].ends_with("audit-0000000000000001.jsonl:2: it is not the record that was written"), "{told:?}");
    // Somebody has looked into it; from there on the chain is to hold.
    let record: Record =
        record::read(fs::read(files::segment(dir.path(), 4)).unwrap().split(|b| *b == b'\n').next().unwrap()).unwrap();
    let from = Wanted { from: Some(format!("{}:{}", record.seq, record.hash).parse().unwrap()), expect: None };
    let verified = audit.verify(from.clone()).await.unwrap();
    assert_eq!((verified.faults, verified.records, verified.head), (vec![], 1, audit.head()));
    // The files before may be elsewhere.
    fs::remove_file(path).unwrap();
    assert_eq!(faults(dir.path(), &from), Vec::<String>::new());
    let wrong = Wanted { from: Some(Head { seq: 4, ..audit.head() }), expect: None };
    assert!(!faults(dir.path(), &wrong).is_empty());
}

#[test]
fn a_cut_end_is_told_wherever_the_check_is_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let last = make(dir.path(), 12);
    let before = texts(dir.path());
    put_back(&before, &pieces(&before)[..7]);
    let beyond = Head { seq: 99_999, ..last };
    let is_not_there = "is not there, and none behind it: the last one is 7";
    let cut_off = "records 8 to 12 were cut off at the end: the last one is 7";
    for (wanted, words) in [
        (Wanted { from: Some(last), expect: None }, vec![is_not_there, cut_off]),
        (Wanted { from: Some(last), expect: Some(last) }, vec![is_not_there, cut_off, "and you expect 12"]),
        (Wanted { from: Some(beyond), expect: None }, vec![is_not_there, "head: it names record 12"]),
        (Wanted { from: Some(beyond), expect: Some(last) }, vec!["and you expect 12"]),
    ] {
        let told = faults(dir.path(), &wanted);
        assert!(words.iter().all(|words| told.iter().any(|fault| fault.contains(words))), "{wanted:?}: {told:?}");
        assert_eq!(verify(dir.path(), &wanted).unwrap().head.seq, 7, "no head is told that is not there");
    }
    // All of it, with the file that tells so.
    texts(dir.path()).iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
    fs::remove_file(files::head_path(dir.path())).unwrap();
    let told = faults(dir.path(), &Wanted { from: Some(last), expect: None });
    assert!(told.iter().any(|fault| fault.contains("none behind it: the last one is 0")), "{told:?}");
}

#[test]
fn what_is_expected_must_be_there_also_before_the_check_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
    append(&mut log, 0, 2);
    let noted = log.head();
    (2..14).step_by(2).for_each(|n| append(&mut log, n, 2));
    log.close().unwrap();
    let (path, first) = texts(dir.path()).remove(0);
    let moved = lines(&first).len() as u64;
    assert!(noted.seq < moved && files::segments(dir.path()).unwrap().len() > 2);
    let last_moved = record::check(lines(&first).last().unwrap().trim_ascii_end()).unwrap().head;
    let from = Wanted { from: Some(last_moved), expect: None };
    let both = Wanted { expect: Some(noted), ..from.clone() };
    assert_eq!((faults(dir.path(), &from), faults(dir.path(), &both)), (vec![], vec![]));
    let other = Wanted { expect: Some(Head { seq: noted.seq, ..last_moved }), ..from.clone() };
    assert!(faults(dir.path(), &other)[0].contains("is not the one that you expect"));
    // The next one tells that it was there; what was before it, nothing does.
    fs::remove_file(path).unwrap();
    assert_eq!(faults(dir.path(), &from), Vec::<String>::new());
    assert!(faults(dir.path(), &both)[0].contains("record 2, which you expect, is not there"));
    let wrong = Wanted { from: Some(Head { hash: noted.hash, ..last_moved }), expect: None };
    assert!(faults(dir.path(), &wrong)[0].contains("does not follow on record"));
}

#[test]
fn a_head_that_was_noted_long_ago_holds_for_what_was_before() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
    append(&mut log, 0, 7);
    let noted = log.head();
    append(&mut log, 7, 7);
    let wanted = Wanted { expect: Some(noted), ..Wanted::default() };
    assert_eq!(faults(dir.path(), &wanted), Vec::<String>::new());
    log.close().unwrap();
    // Somebody writes it all anew, with a head that fits.
    for (path, _) in texts(dir.path()) {
        fs::remove_file(path).unwrap();
    }
    fs::remove_file(files::head_path(dir.path())).unwrap();
    let (mut log, _) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
    append(&mut log, 100, 14);
    log.close().unwrap();
    assert_eq!(faults(dir.path(), &Wanted::default()), Vec::<String>::new(), "the chain alone cannot tell");
    let told = faults(dir.path(), &wanted);
    assert!(told.len() == 1 && told[0].contains("record 7 is not the one that you expect"), "{told:?}");
}

#[test]
fn a_damaged_or_missing_head_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let head = make(dir.path(), 5);
    let path = files::head_path(dir.path());
    for (text, words) in [
        (String::new(), "names no record"),
        ("nonsense\n".to_owned(), "nonsense"),
        (format!("{:020}:{}\n", 9, head.hash), "records 6 to 9 were cut off at the end"),
        (format!("{:020}:{}\n", 4, head.hash), "record 4 is not the one that the file `head` names"),
    ] {
        fs::write(&path, text).unwrap();
        let told = faults(dir.path(), &Wanted::default());
        assert!(told.len() == 1 && told[0].contains(words), "{words}: {told:?}");
        let (_, found) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
        assert!(found.broken.is_some(), "{words}");
        // It has begun another file and another head; back to how it was.
        let last = files::segments(dir.path()).unwrap().pop().unwrap();
        fs::remove_file(files::segment(dir.path(), last)).unwrap();
    }
    fs::remove_file(&path).unwrap();
    assert!(faults(dir.path(), &Wanted::default())[0].starts_with("head: it is gone"));
    let (log, found) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
    assert_eq!((found.broken.as_deref(), log.head()), (Some("the file `head` is gone"), head));
}

#[test]
fn a_segment_that_was_begun_and_has_no_record_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    let head = make(dir.path(), 5);
    fs::File::create(files::segment(dir.path(), 6)).unwrap();
    let (mut log, found) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
    assert_eq!((found, log.head()), (Found::default(), head));
    append(&mut log, 5, 1);
    log.close().unwrap();
    assert_eq!(faults(dir.path(), &Wanted::default()), Vec::<String>::new());
    // Torn in its first line.
    let path = files::segment(dir.path(), 6);
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(10).unwrap();
    let old = format!("{:020}:{}\n", head.seq, head.hash);
    fs::File::options()
        .write(true)
        .open(files::head_path(dir.path()))
        .unwrap()
        .write_all_at(old.as_bytes(), 0)
        .unwrap();
    let (log, found) = Log::open(dir.path(), SEGMENT_BYTES).unwrap();
    assert_eq!((found, log.head()), (Found { torn_bytes: 10, broken: None }, head));
}
