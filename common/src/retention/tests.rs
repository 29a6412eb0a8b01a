//! Rules by example, and what must hold whatever they are.

use super::*;
use crate::digest::Digest;
use crate::id::ChannelName;
use bytesize::ByteSize;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const DAY: u64 = 24 * 3600 * 1000;
const NOW: Millis = Millis(1000 * DAY);

fn fact(name: &str, number: u64) -> BuildFact {
    BuildFact {
        build: name.parse().unwrap(),
        channel: ChannelName::usual().clone(),
        untrusted: false,
        number,
        stage: BuildStage::Ended { succeeded: true, at: Millis(NOW.0 - (100 - number) * DAY) },
        keep: Keep::All,
        platforms: vec!["linux/amd64".parse().unwrap()],
        pins: BTreeMap::new(),
        tags: BTreeSet::new(),
        promoted: false,
        release: false,
        uses: Vec::new(),
        blobs: vec![blob(Digest::of(name.as_bytes()), 10, number.is_multiple_of(2).then_some((name, 0)))],
    }
}

/// `published`: where, and how many bytes more that takes.
fn blob(digest: Digest, bytes: u64, published: Option<(&str, u64)>) -> BlobFact {
    let published = published.map(|(path, bytes)| FileFact { path: path.parse().unwrap(), bytes });
    BlobFact { digest, bytes, published }
}

fn many(count: u64) -> Vec<BuildFact> {
    (1..=count).map(|number| fact(&format!("os/{number}"), number)).collect()
}

fn policy(rule: Rule) -> Policy {
    Policy { rules: vec![rule], ..Policy::default() }
}

/// `os/1 all: why, why`
fn lines(policy: &Policy, facts: &[BuildFact]) -> Vec<String> {
    let told = |(fact, decision): (&BuildFact, Decision)| {
        let why: Vec<String> = decision.why.iter().map(ToString::to_string).collect();
        format!("{} {}: {}", fact.build, decision.keep, why.join(", "))
    };
    facts.iter().zip(decide(policy, facts, NOW)).map(told).collect()
}

#[test]
fn the_newest_stay_and_what_somebody_wants() {
    let mut facts = many(7);
    facts[0]
        .pins
        .insert("eva@example.org".parse().unwrap(), Pin { at: NOW, by: "eva".into(), why: "CVE".into(), until: None });
    facts[1].tags.insert("golden".parse().unwrap());
    facts[2].stage = BuildStage::Ended { succeeded: false, at: Millis(NOW.0 - 15 * DAY) };
    facts[3].promoted = true;
    let over = Pin { at: Millis(0), by: "eva".into(), why: String::new(), until: Some(NOW) };
    facts[4].pins.insert("eva".parse().unwrap(), over);
    let rule = Rule { keep_last: 2, ..Rule::default() };
    assert_eq!(
        lines(&policy(rule), &facts),
        [
            "os/1 all: pinned by eva@example.org: CVE",
            "os/2 all: tagged golden",
            "os/3 nothing: older than 14days",
            "os/4 all: promoted to default",
            "os/5 nothing: not one of the last 2 successes of its channel",
            "os/6 all: one of the last 2 successes of its channel",
            "os/7 all: last success of default for linux/amd64, one of the last 2 successes of its channel",
        ]
    );
}

#[test]
fn what_a_kept_build_was_made_from_stays_and_goes_with_it() {
    let mut facts = vec![fact("sdk/1", 1), fact("sdk/2", 2), fact("sdk/3", 3)];
    for (number, sdk) in [(4, 0), (5, 1), (6, 1)] {
        let mut os = fact(&format!("os/{number}"), number);
        os.uses = vec![facts[sdk].build.clone()];
        facts.push(os);
    }
    let lines = |keep_last| lines(&policy(Rule { keep_last, ..Rule::default() }), &facts);
    let two = lines(2);
    assert!(two[0].starts_with("sdk/1 nothing"), "{two:?}");
    assert_eq!(
        two[1],
        "sdk/2 all: one of the last 2 successes of its channel, os/6 was built from it, os/5 was built from it"
    );
    let one = lines(1);
    assert_eq!(one[1], "sdk/2 all: os/6 was built from it");
    assert!(one[4].starts_with("os/5 nothing"), "{one:?}");
}

#[test]
fn channels_pipelines_and_tiers_are_counted_on_their_own() {
    let mut facts = many(6);
    for (place, channel) in ["alpha", "beta", "alpha", "beta", "alpha", "beta"].into_iter().enumerate() {
        facts[place].channel = channel.parse().unwrap();
    }
    facts[4].untrusted = true;
    facts[5].untrusted = true;
    let rules = vec![
        Rule { channels: vec!["al*".into()], keep_last: 2, ..Rule::default() },
        Rule { untrusted: Some(true), keep_last: 1, ..Rule::default() },
        Rule { keep_last: 1, ..Rule::default() },
    ];
    let kept: Vec<Keep> =
        decide(&Policy { rules, ..Policy::default() }, &facts, NOW).iter().map(|one| one.keep).collect();
    use Keep::{All, Nothing};
    assert_eq!(kept, [All, Nothing, All, All, Nothing, All], "strangers' channels count as one");
}

#[test]
fn an_old_build_keeps_what_the_rule_says_for_as_long_as_it_says() {
    let mut facts = many(6);
    facts[1].keep = Keep::Manifest;
    let rule = Rule {
        keep_last: 2,
        old: Keep::Published,
        old_last: Some(3),
        old_max_age: Some(Age::days(97)),
        ..Rule::default()
    };
    let kept: Vec<Keep> = decide(&policy(rule), &facts, NOW).iter().map(|one| one.keep).collect();
    use Keep::{All, Manifest, Nothing, Published};
    assert_eq!(
        kept,
        [Nothing, Nothing, Published, Published, All, All],
        "98 days are too many, and what went does not come back"
    );
    let rule = Rule { keep_last: 2, old: Keep::Published, ..Rule::default() };
    let kept: Vec<Keep> = decide(&policy(rule), &facts, NOW).iter().map(|one| one.keep).collect();
    assert_eq!(kept, [Published, Manifest, Published, Published, All, All]);
}

/// A blob was lost, and the next build has stored the same bytes in another form.
#[test]
fn builds_that_disagree_over_a_blob_s_bytes_are_counted_all_the_same() {
    let mut facts = many(4);
    for (fact, bytes) in facts.iter_mut().zip([10, 900, 1, 40]) {
        fact.blobs.push(blob(Digest::of(b"shared"), bytes, None));
    }
    for most in 1..1000 {
        let rule = Rule { max_bytes: Some(ByteSize(most)), ..Rule::default() };
        let kept = decide(&policy(rule), &facts, NOW).iter().filter(|one| one.keep == Keep::All).count();
        assert!((1..=4).contains(&kept), "{most}: {kept}");
    }
}

#[test]
fn over_the_high_mark_the_oldest_go_down_to_the_low_one() {
    let facts = many(9);
    let rule = Rule { max_bytes: Some(ByteSize(85)), low_bytes: Some(ByteSize(60)), ..Rule::default() };
    let keeps = |rule: &Rule| -> String {
        let letter = |one: &Decision| one.keep.to_string().remove(0);
        decide(&policy(rule.clone()), &facts, NOW).iter().map(letter).collect()
    };
    assert_eq!(keeps(&rule), "nnnaaaaaa");
    assert_eq!(keeps(&Rule { max_bytes: Some(ByteSize(90)), ..rule.clone() }), "aaaaaaaaa", "not over it");
    // The even ones published what they have: of the others nothing is left, so they go first.
    assert_eq!(keeps(&Rule { old: Keep::Published, ..rule.clone() }), "pppppaaaa");
    assert_eq!(keeps(&Rule { min_age: Age::days(99), ..rule }), "naaaaaaaa", "what is young is not touched");
}

#[test]
fn a_name_that_was_given_again_protects_what_the_newer_build_was_made_from() {
    // mid/1 was deleted by force and built again, of base/2, after top/1 had been made of the first one.
    let mut facts = vec![fact("top/1", 1), fact("base/2", 2), fact("mid/1", 3), fact("base/3", 4), fact("mid/2", 5)];
    for (place, used) in [(0, "mid/1"), (2, "base/2"), (4, "base/3")] {
        facts[place].uses = vec![used.parse().unwrap()];
    }
    let rule = Rule { pipelines: vec!["base".into(), "mid".into()], keep_last: 1, ..Rule::default() };
    let kept: Vec<Keep> = decide(&policy(rule), &facts, NOW).iter().map(|one| one.keep).collect();
    assert_eq!(kept, [Keep::All; 5]);
}

#[test]
fn a_failure_of_which_a_rest_is_kept_needs_nothing() {
    let mut facts = vec![fact("sdk/1", 1), fact("sdk/2", 2), fact("os/3", 3)];
    facts[2].uses = vec![facts[0].build.clone()];
    facts[2].stage = BuildStage::Ended { succeeded: false, at: NOW };
    let rule = Rule { keep_last: 1, keep_failed: 0, old: Keep::Published, ..Rule::default() };
    let kept: Vec<Keep> = decide(&policy(rule), &facts, NOW).iter().map(|one| one.keep).collect();
    assert_eq!(kept, [Keep::Published, Keep::All, Keep::Manifest]);
}

#[test]
fn what_is_young_is_not_reduced_further_either() {
    let mut facts = many(2);
    facts[0].keep = Keep::Published;
    let rule = |days| Rule { min_age: Age::days(days), ..Rule::default() };
    assert_eq!(lines(&policy(rule(98)), &facts)[0], "os/1 nothing: old, and already reduced");
    assert_eq!(lines(&policy(rule(100)), &facts)[0], "os/1 published: younger than 3months 8days 16h 19m 12s");
}

#[test]
fn a_copy_counts_once_for_its_place() {
    let mut facts = many(4);
    for fact in &mut facts {
        let name = fact.build.version.as_str().to_owned();
        fact.blobs = vec![blob(Digest::of(b"same"), 1, Some((&name, 10)))];
    }
    let rule = |most| Rule { max_bytes: Some(ByteSize(most)), low_bytes: Some(ByteSize(25)), ..Rule::default() };
    let kept = |most| -> Vec<Keep> { decide(&policy(rule(most)), &facts, NOW).iter().map(|one| one.keep).collect() };
    assert_eq!(kept(41), [Keep::All; 4]);
    assert_eq!(kept(40), [Keep::Nothing, Keep::Nothing, Keep::All, Keep::All]);
    for fact in &mut facts {
        fact.blobs = vec![blob(Digest::of(b"same"), 1, Some(("one/place", 10)))];
    }
    let all = decide(&policy(rule(26)), &facts, NOW).iter().map(|one| one.keep).collect::<Vec<_>>();
    assert_eq!(all, [Keep::All; 4]);
}

#[test]
fn rules_that_cannot_be_meant_are_told() {
    let named =
        |pipelines: &[&str]| Rule { pipelines: pipelines.iter().map(|&name| name.into()).collect(), ..Rule::default() };
    for (rule, told) in [
        (named(&[]), "`pipelines = []` names none"),
        (named(&["sdk", ""]), "`` in `pipelines` can match none"),
        (named(&["s*k"]), "`s*k` in `pipelines` can match none"),
        (named(&["Sdk*"]), "`Sdk*` in `pipelines` can match none"),
        (Rule { channels: vec!["Nightly Builds".into()], ..Rule::default() }, "in `channels` can match none"),
        (Rule { old_last: Some(3), ..Rule::default() }, "`old_last` is about what is left of old builds"),
        (Rule { old_max_age: Some(Age::days(3)), ..Rule::default() }, "`old_max_age` is about"),
    ] {
        let error = rule.check().unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
        let all = Policy { rules: vec![Rule::default(), rule], ..Policy::default() };
        assert_eq!(all.check().unwrap_err().to_string(), "the 2. [[retention]]");
    }
    named(&["*", "sdk", "sd*", "sdk-*"]).check().unwrap();
    for (rule, told) in [
        (Rule { max_bytes: Some(ByteSize(0)), ..Rule::default() }, "leave it out for no limit"),
        (Rule { untrusted: Some(true), channels: vec!["nightly".into()], ..Rule::default() }, "channel `untrusted`"),
    ] {
        let error = rule.check().unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    Rule { untrusted: Some(true), channels: vec!["un*".into()], ..Rule::default() }.check().unwrap();
    let some = || named(&["sdk"]);
    Policy {
        rules: vec![some(), Rule { untrusted: Some(false), ..Rule::default() }, Rule::default()],
        ..Policy::default()
    }
    .check()
    .unwrap();
    let never = Policy { rules: vec![some(), Rule::default(), some()], ..Policy::default() }.check().unwrap_err();
    let why = std::error::Error::source(&never).unwrap().to_string();
    assert_eq!(never.to_string(), "the 3. [[retention]]");
    assert!(why.starts_with("it is never asked: the 2. [[retention]]"), "{why}");
}

prop_compose! {
    fn a_build(number: u64)(
        pipeline in 0..2u8, channel in 0..2u8, untrusted in prop::bool::weighted(0.2), stage in 0..5u8, age in 0..60u64,
        keep in prop::sample::select(vec![Keep::All, Keep::All, Keep::All, Keep::Published, Keep::Manifest, Keep::Nothing]),
        platforms in 1..3usize, pinned in 0..8u8, tagged in prop::bool::weighted(0.1), promoted in prop::bool::weighted(0.1),
        release in prop::bool::weighted(0.1), uses in prop::collection::vec(0..40u64, 0..2),
        blobs in prop::collection::vec((0..30u8, 1..9u64, any::<bool>()), 0..4),
    ) -> BuildFact {
        let at = Millis(NOW.0 - age * DAY);
        let stage = match stage { 0 => BuildStage::Running, 1 => BuildStage::Ended { succeeded: false, at }, _ => BuildStage::Ended { succeeded: true, at } };
        let pin = |until| Pin { at, by: "x".into(), why: String::new(), until };
        let pins = match pinned { 0 => vec![pin(None)], 1 => vec![pin(Some(NOW))], _ => vec![] };
        BuildFact {
            build: format!("p{pipeline}/{number}").parse().unwrap(),
            channel: format!("c{channel}").parse().unwrap(),
            untrusted, number, stage,
            keep: if stage == BuildStage::Running { Keep::All } else { keep },
            platforms: ["linux/amd64", "linux/arm64"][..platforms].iter().map(|text| text.parse().unwrap()).collect(),
            pins: pins.into_iter().map(|pin| ("x".parse().unwrap(), pin)).collect(),
            tags: tagged.then(|| "t".parse().unwrap()).into_iter().collect(),
            promoted: promoted && !untrusted, release: release && !untrusted,
            // Mostly older ones; but names can be given again.
            uses: uses.iter().filter(|used| **used != number).map(|used| format!("p{}/{used}", used % 2).parse().unwrap()).collect(),
            blobs: blobs.iter().map(|(seed, _, published)| {
                // Builds with the same blob publish it at the same place.
                let path = format!("out/{seed}");
                blob(Digest::of(&[*seed]), u64::from(*seed) + 1, published.then_some((path.as_str(), u64::from(*seed % 3) * 7)))
            }).collect(),
        }
    }
}

fn histories() -> impl Strategy<Value = Vec<BuildFact>> {
    (1..40u64).prop_flat_map(|count| (0..count).map(a_build).collect::<Vec<_>>())
}

prop_compose! {
    fn rules()(
        keep_last in 0..6u32, keep_failed in 0..3u32, max_age in prop::option::of(1..60u64), min_age in 0..10u64,
        old in prop::sample::select(vec![Keep::Nothing, Keep::Manifest, Keep::Published]), old_last in prop::option::of(0..4u32),
        releases in prop::option::of(0..3u32), max_bytes in prop::option::of(1..400u64), whole in prop::option::of(1..400u64),
    ) -> Policy {
        let rule = Rule {
            keep_last, keep_failed, max_age: max_age.map(Age::days), min_age: Age::days(min_age), old, old_last,
            keep_releases: releases.map_or(Releases::All, Releases::Last), max_bytes: max_bytes.map(ByteSize), ..Rule::default()
        };
        Policy { rules: vec![rule], max_bytes: whole.map(ByteSize), low_bytes: None, copies: Copies::OfEncoded }
    }
}

fn is_success(fact: &BuildFact) -> bool {
    matches!(fact.stage, BuildStage::Ended { succeeded: true, .. })
}

fn age(fact: &BuildFact) -> u64 {
    match fact.stage {
        BuildStage::Running => 0,
        BuildStage::Ended { at, .. } => NOW.since(at),
    }
}

fn bytes(facts: &[BuildFact], decided: &[Decision]) -> u64 {
    let mut held = BTreeMap::new();
    for (fact, one) in facts.iter().zip(decided) {
        for blob in &fact.blobs {
            let stays = match one.keep {
                Keep::All => true,
                Keep::Published => blob.published.is_some(),
                Keep::Manifest | Keep::Nothing => false,
            };
            if stays {
                held.insert(blob.digest.to_string(), blob.bytes);
                held.extend(blob.published.iter().map(|file| (file.path.to_string(), file.bytes)));
            }
        }
    }
    held.values().sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn nothing_that_is_needed_goes(facts in histories(), policy in rules()) {
        let decided = decide(&policy, &facts, NOW);
        for (fact, one) in facts.iter().zip(&decided) {
            prop_assert!(one.keep <= fact.keep, "{} comes back", fact.build);
            prop_assert!(!one.why.is_empty() || fact.keep == Keep::Nothing, "{} has no reason", fact.build);
            let wanted = fact.stage == BuildStage::Running
                || fact.pins.values().any(|pin| pin.holds(NOW))
                || !fact.tags.is_empty()
                || (fact.promoted && is_success(fact) && policy.rules[0].keep_releases == Releases::All);
            prop_assert!(!wanted || one.keep == fact.keep, "{} is wanted: {:?}", fact.build, one);
            let young = age(fact) < policy.rules[0].min_age.millis();
            prop_assert!(!young || one.keep == fact.keep, "{} is young: {:?}", fact.build, one);
            let is_failure = matches!(fact.stage, BuildStage::Ended { succeeded: false, .. });
            let is_remnant = is_failure && one.keep == Keep::Published && one.keep < fact.keep;
            prop_assert!(!is_remnant, "{} has published nothing: {:?}", fact.build, one);
            if one.keep >= Keep::Published {
                for used in facts.iter().zip(&decided).filter(|(used, _)| fact.uses.contains(&used.build)) {
                    prop_assert!(used.1.keep == used.0.keep, "{} was made from {}", fact.build, used.0.build);
                }
            }
        }
        // The last success of every channel and platform.
        for channel in ["c0", "c1"] {
            for pipeline in ["p0", "p1"] {
                for platform in ["linux/amd64", "linux/arm64"] {
                    let candidates = facts.iter().zip(&decided).filter(|(fact, _)| {
                        fact.build.pipeline.as_str() == pipeline && fact.channel.as_str() == channel && !fact.untrusted
                            && is_success(fact) && fact.keep == Keep::All
                            && fact.platforms.iter().any(|one| one.to_string() == platform)
                    });
                    let last = candidates.max_by_key(|(fact, _)| fact.number);
                    prop_assert!(last.is_none_or(|(_, one)| one.keep == Keep::All));
                }
            }
        }
    }

    #[test]
    fn counts_and_bytes_are_bounded(facts in histories(), policy in rules()) {
        let decided = decide(&policy, &facts, NOW);
        let rule = &policy.rules[0];
        let spared = |fact: &BuildFact, one: &Decision| {
            one.why.iter().any(Why::is_binding) || fact.stage == BuildStage::Running || age(fact) < rule.min_age.millis()
        };
        let mut counts: BTreeMap<_, u32> = BTreeMap::new();
        for (fact, one) in facts.iter().zip(&decided) {
            if one.keep == Keep::All && is_success(fact) && !spared(fact, one) {
                let channel = if fact.untrusted { "untrusted" } else { fact.channel.as_str() };
                *counts.entry((fact.build.pipeline.clone(), channel, fact.untrusted)).or_default() += 1;
            }
        }
        prop_assert!(counts.values().all(|count| *count <= rule.keep_last), "{counts:?}");
        let left = |of: &dyn Fn(&BuildFact) -> bool| {
            facts.iter().zip(&decided).filter(|(fact, one)| of(fact) && one.keep > Keep::Nothing && !spared(fact, one)).count()
        };
        if let Some((max, low)) = policy.marks() {
            let all = bytes(&facts, &decided);
            prop_assert!(all <= max.as_u64() || left(&|_| true) == 0, "{all} of {max}, down to {low}");
        }
    }
}
