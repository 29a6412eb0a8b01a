//! The audit as its callers see it.

use super::*;
use railyard_service::clock::SystemClock;
use railyard_service::tls::{Identity, Role};
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use tokio::task::JoinSet;

fn open(dir: &Path) -> Audit {
    Audit::open(dir, Arc::new(SystemClock)).unwrap()
}

/// Every record in the files, in order.
fn records(dir: &Path) -> Vec<Record> {
    let segments =
        files::segments(dir).unwrap().into_iter().map(|first| fs::read_to_string(files::segment(dir, first)));
    let lines = segments.flat_map(|text| text.unwrap().lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| record::read(line.as_bytes()).unwrap()).collect()
}

fn whats(dir: &Path) -> Vec<String> {
    records(dir).into_iter().map(|record| record.what).collect()
}

#[track_caller]
fn assert_good(dir: &Path) -> Verified {
    let verified = verify(dir, &Wanted::default()).unwrap();
    assert!(verified.is_good(), "{:?}", verified.faults);
    verified
}

#[tokio::test]
async fn a_record_is_in_the_file_when_its_writer_hears_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for n in 1..=3 {
        audit.record(Entry::new(Act::Submit).target(format!("mini/{n}"))).await.unwrap();
        let found = records(dir.path());
        assert_eq!((found.len(), found[n - 1].target.as_str()), (n, format!("mini/{n}").as_str()));
        assert_eq!(audit.head().to_string(), format!("{n}:{}", found[n - 1].hash));
    }
    audit.close(Entry::new(Act::Stop)).await.unwrap();
    assert!(matches!(audit.record(Entry::new(Act::Submit)).await, Err(AuditError::Stopping)));
    assert!(matches!(audit.ready(), Err(AuditError::Stopping)));
    let again = open(dir.path());
    again.record(Entry::new(Act::Start)).await.unwrap();
    assert_eq!(whats(dir.path()), ["submit", "submit", "submit", "stop", "start"]);
    assert_eq!(assert_good(dir.path()).head, again.head());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_writers_make_one_chain() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open_with(dir.path(), Arc::new(SystemClock), 16 * 1024).unwrap();
    let mut writers = JoinSet::new();
    for writer in 0..50 {
        let audit = audit.clone();
        let by = By::Somebody(Identity::new(Role::Submitter, format!("ci{writer}")).unwrap());
        writers.spawn(async move {
            for n in 0..20 {
                let entry = Entry::new(Act::Submit).by(by.clone()).target(format!("mini/{writer}.{n}"));
                audit.record(entry).await.unwrap();
            }
        });
    }
    let mut looks = 0;
    while let Some(ended) = writers.join_next().await {
        ended.unwrap();
        // While others write.
        let verified = audit.verify(Wanted::default()).await.unwrap();
        assert!(verified.is_good(), "{:?}", verified.faults);
        looks += 1;
    }
    assert_eq!(looks, 50);
    let verified = assert_good(dir.path());
    assert_eq!((verified.records, verified.head), (1_000, audit.head()));
    assert!(verified.segments > 5, "{}", verified.segments);
    let found = records(dir.path());
    for writer in 0..50 {
        let by = format!("submitter/ci{writer}");
        let own: Vec<_> = found.iter().filter(|record| record.by == by).map(|record| record.target.clone()).collect();
        assert_eq!(own, (0..20).map(|n| format!("mini/{writer}.{n}")).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn while_the_disk_refuses_nothing_is_taken_on_and_nothing_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    // Each record in a file of its own.
    let audit = Audit::open_with(dir.path(), Arc::new(SystemClock), 1).unwrap();
    audit.record(Entry::new(Act::Start)).await.unwrap();
    audit.ready().unwrap();
    let in_the_way = files::segment(dir.path(), 2);
    fs::create_dir(&in_the_way).unwrap();
    let refused = audit.record(Entry::new(Act::Cancel).target("mini/1")).await.unwrap_err();
    assert!(refused.to_string().contains("changes nothing: cannot open"), "{refused}");
    assert!(matches!(audit.ready(), Err(AuditError::Unwritable { .. })));
    // What was begun before, and what is only refused.
    audit.record(Entry::new(Act::Approve).target("mini/2")).await.unwrap_err();
    let refusal = Entry::new(Act::Submit).refused("no");
    audit.record(refusal).await.unwrap_err();
    assert_eq!(audit.head().seq, 1);
    fs::remove_dir(&in_the_way).unwrap();
    let mut heads = audit.heads();
    heads.wait_for(|head| head.seq == 3).await.unwrap();
    audit.record(Entry::new(Act::Retry)).await.unwrap();
    audit.ready().unwrap();
    // Once more, and the end comes before the next try.
    let in_the_way = files::segment(dir.path(), 5);
    fs::create_dir(&in_the_way).unwrap();
    audit.record(Entry::new(Act::Pin)).await.unwrap_err();
    fs::remove_dir(&in_the_way).unwrap();
    audit.close(Entry::new(Act::Stop)).await.unwrap();
    assert_eq!(whats(dir.path()), ["start", "cancel", "approve", "retry", "pin", "submit", "stop"]);
    let counted = &records(dir.path())[5];
    assert_eq!((counted.outcome.as_str(), counted.details["more"].as_str()), ("refused", "1"));
    assert_good(dir.path());
}

#[tokio::test]
async fn a_flood_of_refusals_does_not_fill_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    for n in 0..20_000_u32 {
        let from = IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + n % 100));
        let guess = Entry { from: Some(from), ..Entry::new(Act::LoginFailure).by(By::Nobody) };
        audit.record(guess.target(format!("token:{n}")).refused("no such token")).await.unwrap();
    }
    audit.close(Entry::new(Act::Stop)).await.unwrap();
    let found = records(dir.path());
    assert!(found.len() < 200, "{}", found.len());
    let more: u64 =
        found.iter().filter_map(|record| record.details.get("more")).map(|n| n.parse::<u64>().unwrap()).sum();
    let single = found.iter().filter(|record| record.target.starts_with("token:")).count() as u64;
    assert_eq!(more + single, 20_000, "each of them is counted");
    assert_good(dir.path());
}

/// What a follower reads, and a look with a filter.
#[tokio::test]
async fn readers_find_what_they_look_for() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open_with(dir.path(), Arc::new(SystemClock), 2_000).unwrap();
    let olga = By::Somebody(Identity::new(Role::Operator, "olga").unwrap());
    for n in 0..40 {
        let act = if n % 2 == 0 { Act::Submit } else { Act::Cancel };
        let entry = Entry::new(act).target(format!("mini/{n}"));
        audit.record(if n % 4 == 0 { entry.by(olga.clone()) } else { entry }).await.unwrap();
    }
    let look = |filter: Filter, limit: usize| {
        let (shown, _) = Follower::begin(dir.path(), filter, limit, audit.head()).unwrap();
        let seq = |shown: Shown| match shown {
            Shown::Record(record) => record.seq,
            Shown::Damaged { .. } => panic!("nothing is damaged"),
        };
        shown.into_iter().map(seq).collect::<Vec<_>>()
    };
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(look(Filter::default(), 1_000), (1..=40).collect::<Vec<_>>());
    assert_eq!(look(Filter::default(), 3), [38, 39, 40]);
    assert_eq!(look(Filter { what: text("cancel"), ..Filter::default() }, 2), [38, 40]);
    assert_eq!(look(Filter { by: text("olga"), ..Filter::default() }, 2), [33, 37]);
    assert_eq!(look(Filter { by: text("operator/olga"), ..Filter::default() }, 1), [37]);
    assert_eq!(look(Filter { by: text("viewer/olga"), ..Filter::default() }, 1), [0; 0]);
    assert_eq!(look(Filter { target: text("mini/3"), ..Filter::default() }, 20).len(), 11);
    let now = SystemClock.now();
    assert_eq!(look(Filter { since: Some(now.plus(1_000)), ..Filter::default() }, 20), [0; 0]);
    assert_eq!(look(Filter { until: Some(now.plus(1_000)), ..Filter::default() }, 100).len(), 40);
    assert_eq!(look(Filter { until: Some(railyard_common::time::Millis(1)), ..Filter::default() }, 100), [0; 0]);

    let submits = Filter { what: text("submit"), ..Filter::default() };
    let (last, mut follower) = Follower::begin(dir.path(), submits, 1, audit.head()).unwrap();
    assert_eq!(last.len(), 1);
    assert_eq!(follower.more(audit.head()).unwrap(), []);
    for n in 40..80 {
        let act = if n % 2 == 0 { Act::Submit } else { Act::Cancel };
        audit.record(Entry::new(act).target(format!("mini/{n}"))).await.unwrap();
    }
    assert_eq!(follower.more(audit.head()).unwrap().len(), 20);
    assert_eq!(follower.more(audit.head()).unwrap(), []);
}

#[tokio::test]
async fn the_end_waits_for_calls_that_are_under_way() {
    let dir = tempfile::tempdir().unwrap();
    let audit = open(dir.path());
    let (decided, decision) = oneshot::channel::<()>();
    let recorder = audit.clone();
    let call = async move {
        decision.await.unwrap();
        recorder.record(Entry::new(Act::Submit)).await
    };
    let call = task::spawn("recorded call", audit.under_way(call));
    let mut end = std::pin::pin!(audit.close(Entry::new(Act::Stop)));
    assert!(futures_util::poll!(&mut end).is_pending());
    // Its decision came with the last of the driver's.
    decided.send(()).unwrap();
    end.await.unwrap();
    call.await.unwrap().unwrap();
    assert_eq!(whats(dir.path()), ["submit", "stop"]);
}
