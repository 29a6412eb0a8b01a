//! Tests of the lists: what follows from what.

use super::*;
use railyard_common::time::Millis;

fn grave(version: &str, channel: &str, at: u64) -> Tombstone {
    let (version, channel) = (version.parse().unwrap(), channel.parse().unwrap());
    Tombstone { version, channel, number: None, at: rfc3339(Millis(at)), why: "too old".to_owned() }
}

fn entry(version: &str, channel: &str, verdict: Verdict, at: u64) -> Entry {
    Entry {
        version: version.parse().unwrap(),
        channel: channel.parse().unwrap(),
        verdict,
        submitted_at: rfc3339(Millis(at)),
        platforms: Vec::new(),
        tags: BTreeSet::new(),
        keep: Keep::All,
    }
}

/// Ended builds, whose numbers follow the clock.
fn facts(entries: impl IntoIterator<Item = Entry>) -> Facts {
    let mut entries: Vec<Entry> = entries.into_iter().collect();
    entries.sort_by(|a, b| a.submitted_at.cmp(&b.submitted_at));
    numbered((1..).zip(entries))
}

fn numbered(entries: impl IntoIterator<Item = (u64, Entry)>) -> Facts {
    Facts(entries.into_iter().map(|(number, entry)| known(number, entry.version.clone(), Fact::Ended(entry))).collect())
}

fn known(number: u64, version: Version, fact: Fact) -> (Version, Known) {
    (version, Known { number, fact })
}

fn versions(index: &Index) -> Vec<&str> {
    index.builds.iter().map(|entry| entry.version.as_str()).collect()
}

#[test]
fn what_the_farm_does_not_know_stays_and_what_it_knows_better_is_put_right() {
    let old = facts([
        entry("1", "beta", Verdict::Succeeded, 1),
        entry("2", "beta", Verdict::Failed, 2),
        entry("3", "beta", Verdict::Failed, 3),
    ]);
    let old = old.over(None);
    assert_eq!(versions(&old), ["3", "2", "1"]);
    let two = entry("2", "stable", Verdict::Succeeded, 2);
    let mut new = numbered([(2, two), (4, entry("4", "beta", Verdict::Cancelled, 4))]);
    // It runs again, and another one has never ended.
    let mut again = entry("3", "beta", Verdict::Cancelled, 3);
    again.tags.insert("kept".parse().unwrap());
    let first = entry("5", "beta", Verdict::Cancelled, 5);
    new.0.extend([(3, again), (5, first)].map(|(n, entry)| known(n, entry.version.clone(), Fact::Open(entry))));
    let new = new.over(Some(old));
    assert_eq!(versions(&new), ["4", "3", "2", "1"]);
    assert_eq!((new.builds[1].verdict, new.builds[1].tags.len()), (Verdict::Failed, 1));
    assert_eq!(new.builds[2].channel.as_str(), "stable");
    assert_eq!(new.latest().unwrap().version.as_str(), "2");
    let beta = new.of_channel(&"beta".parse().unwrap());
    assert_eq!((versions(&beta), beta.latest().unwrap().version.as_str()), (vec!["4", "3", "1"], "1"));
    assert!(new.of_channel(&"nightly".parse().unwrap()).latest().is_none());
}

#[test]
fn a_deleted_build_leaves_a_tombstone_also_when_the_farm_has_forgotten_it() {
    let two = || [entry("1", "beta", Verdict::Succeeded, 1), entry("2", "beta", Verdict::Succeeded, 2)];
    let mut gone = facts([entry("1", "beta", Verdict::Succeeded, 1)]);
    gone.0.extend([known(2, "2".parse().unwrap(), Fact::Deleted(grave("2", "beta", 10)))]);
    let index = gone.over(Some(facts(two()).over(None)));
    assert_eq!((versions(&index), index.latest().unwrap().version.as_str()), (vec!["1"], "1"));
    let beta = index.of_channel(&"beta".parse().unwrap());
    assert_eq!(beta.tombstones, [grave("2", "beta", 10)]);
    // Forgotten; restored from a backup of before; there once more, under the same version.
    for (known, want) in [
        (facts([]), (vec!["1"], 1)),
        (facts(two()), (vec!["1"], 1)),
        (facts([entry("2", "beta", Verdict::Failed, 11)]), (vec!["2", "1"], 0)),
    ] {
        let later = known.over(Some(index.clone()));
        assert_eq!((versions(&later), later.tombstones.len()), want);
    }
    let many = (0..TOMBSTONES_MAX as u64 + 5).map(|n| {
        let grave = grave(&format!("g{n}"), "beta", n);
        known(n, grave.version.clone(), Fact::Deleted(grave))
    });
    let index = Facts(many.collect()).over(Some(index));
    assert_eq!((index.tombstones.len(), index.tombstones[0].version.as_str()), (TOMBSTONES_MAX, "g504"));
}

#[test]
fn a_build_that_the_farm_does_not_know_leaves_a_tombstone_where_it_was_listed() {
    let stood =
        facts([entry("1", "beta", Verdict::Succeeded, 1), entry("2", "stable", Verdict::Succeeded, 20)]).over(None);
    // Its manifest is of before it was promoted, and the clock was put back.
    let denied = Tombstone { number: Some(9), ..grave("2", "beta", 10) };
    let gone = || Facts([known(9, denied.version.clone(), Fact::Denied(denied.clone()))].into());
    let mut index = stood;
    // The second time it is there no more.
    for _ in 0..2 {
        index = gone().over(Some(index));
        assert_eq!((versions(&index), index.tombstones.len()), (vec!["1"], 1));
        assert_eq!(index.tombstones[0].channel.as_str(), "stable");
    }
    let again = numbered([(10, entry("2", "beta", Verdict::Succeeded, 5))]).over(Some(index.clone()));
    assert_eq!((again.builds.len(), again.tombstones.len()), (2, 0), "the next one of that name came later");
    let before = numbered([(9, entry("2", "stable", Verdict::Succeeded, 20))]).over(Some(index));
    assert_eq!((versions(&before), before.tombstones.len()), (vec!["1"], 1), "it is the same one");
}

#[test]
fn the_order_of_submission_decides_and_not_the_clock() {
    let succeeded = |version, at| entry(version, "beta", Verdict::Succeeded, at);
    // The clock was put back before 3.
    let own = || numbered([(1, succeeded("1", 100)), (2, succeeded("2", 300)), (3, succeeded("3", 120))]);
    let first = own().over(None);
    assert_eq!((versions(&first), first.latest().unwrap().version.as_str()), (vec!["3", "2", "1"], "3"));
    // A farm that knows none of them leaves them as they stand.
    let later = facts([succeeded("4", 310)]).over(Some(first.clone()));
    assert_eq!(versions(&later), ["4", "3", "2", "1"]);
    let between = facts([succeeded("4", 200)]).over(Some(first.clone()));
    assert_eq!(versions(&between), ["3", "2", "4", "1"]);
    // Whoever writes next says the same, and so does a farm whose numbers begin anew.
    assert_eq!(own().over(Some(between.clone())), between);
    assert_eq!(facts([succeeded("4", 200)]).over(Some(between.clone())), between);
}

#[test]
fn a_tombstone_is_of_one_build_and_not_of_the_next_one_of_that_version() {
    let deleted = |number| Tombstone { number, ..grave("9", "beta", 500) };
    let built = |number, at| numbered([(number, entry("9", "beta", Verdict::Succeeded, at))]);
    for (what, grave, number, at, is_listed) in [
        ("the clock was put back", Some(7), 8, 400, true),
        ("the state is of before it was deleted", Some(7), 7, 100, false),
        ("and the clock was ahead when it was submitted", Some(7), 7, 600, false),
        ("the state is of before the one that was deleted", Some(7), 3, 100, false),
        ("the farm was made anew", Some(7), 1, 600, true),
        ("the list is of before there were numbers", None, 8, 600, true),
        ("and the state of before it was deleted", None, 8, 100, false),
    ] {
        let stood = Index { schema_version: 1, revision: 1, builds: Vec::new(), tombstones: vec![deleted(grave)] };
        let index = built(number, at).over(Some(stood));
        let wanted = if is_listed { (1, 0) } else { (0, 1) };
        assert_eq!((index.builds.len(), index.tombstones.len()), wanted, "{what}");
    }
}

#[test]
fn only_what_is_whole_is_the_latest() {
    let reduced = |version, keep, at| Entry { keep, ..entry(version, "rel", Verdict::Succeeded, at) };
    let older = [entry("1", "beta", Verdict::Succeeded, 1), entry("2", "beta", Verdict::Failed, 2)];
    let newer = [reduced("3", Keep::Manifest, 3), reduced("4", Keep::Published, 4)];
    let index = facts(older.into_iter().chain(newer)).over(None);
    assert_eq!(versions(&index), ["4", "3", "2", "1"], "it is in the list as long as anything is kept");
    assert_eq!(index.latest().unwrap().version.as_str(), "1");
    assert_eq!(index.of_channel(&"rel".parse().unwrap()).latest(), None);
}

#[test]
fn a_list_of_before_there_were_channels_is_read() {
    let text = r#"{"schema_version":1,"builds":[{"version":"1","verdict":"succeeded","submitted_at":"1970-01-01T00:00:01.000Z","platforms":["linux/amd64"]}]}"#;
    let old = Index::read(text.as_bytes()).unwrap();
    assert_eq!(old.channels().collect::<Vec<_>>(), [ChannelName::usual()]);
    // It is written anew once, with what it lacks.
    let first = Facts::default().over(Some(old)).file(Some(text.as_bytes()));
    let again = Facts::default().over(Index::read(&first)).file(Some(&first));
    assert_eq!(first, again);
    let read = Index::read(&first).unwrap();
    assert_eq!((read.revision, versions(&read)), (1, vec!["1"]));
}

#[test]
fn no_two_states_of_a_file_have_the_same_bytes() {
    let one = || facts([entry("1", "beta", Verdict::Succeeded, 1)]).over(None);
    let two = || facts([entry("1", "beta", Verdict::Failed, 1)]).over(None);
    let first = one().file(None);
    let second = two().file(Some(&first));
    let third = one().file(Some(&second));
    assert_ne!(first, third);
    assert_eq!(one().file(Some(&third)), third);
}

#[test]
fn a_list_has_a_bound_and_keeps_the_newest_success_of_each_channel() {
    let failures = (0..CHANNEL_MAX + 10).map(|n| entry(&format!("f{n}"), "noisy", Verdict::Failed, 100 + n as u64));
    let rare = [("1", "noisy", 1), ("2", "rare", 2), ("3", "rare", 3)];
    let rare = rare.map(|(version, channel, at)| entry(version, channel, Verdict::Succeeded, at));
    let index = facts(failures.chain(rare)).over(None);
    assert_eq!(index.builds.len(), CHANNEL_MAX + 3);
    assert_eq!(versions(&index)[CHANNEL_MAX..], ["3", "2", "1"]);
    assert_eq!(versions(&index)[0], format!("f{}", CHANNEL_MAX + 9));
}
