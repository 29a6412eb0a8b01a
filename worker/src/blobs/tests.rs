//! Tests of the blobs' directory.

use super::*;
use railyard_common::disk::Kind;
use railyard_service::clock::SystemClock;

fn uses() -> Arc<Uses> {
    Arc::new(Uses::new(Arc::new(SystemClock)))
}

fn blob(text: &str) -> Blob {
    Blob::plain(Digest::of(text.as_bytes()), text.len() as u64)
}

/// As if the disk were full. Returns how many bytes went.
fn evict_all(blobs: &Blobs) -> u64 {
    let things = blobs.stock().things;
    let chosen = policy::choose(&things, Reach::Unused, u64::MAX);
    chosen.iter().map(|choice| blobs.evict(choice.thing.key).unwrap()).sum()
}

async fn get(blobs: &Blobs, text: &str) -> Held {
    match blobs.claim(&blob(text), Form::Plain).await {
        Claim::Here(held) => held,
        Claim::Fetch(fetch) => {
            fs::write(fetch.path(), text).unwrap();
            fetch.done().unwrap()
        }
    }
}

#[tokio::test]
async fn keeps_what_is_used_and_drops_what_was_used_longest_ago() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 10, uses()).unwrap();
    let has = |text: &str| dir.path().join(Digest::of(text.as_bytes()).hex()).exists();
    drop(get(&blobs, "aaaa").await);
    drop(get(&blobs, "bbbb").await);
    drop(get(&blobs, "aaaa").await);
    let held = get(&blobs, "cccc").await;
    drop(get(&blobs, "dddd").await);
    assert_eq!([has("aaaa"), has("bbbb"), has("cccc"), has("dddd")], [false, false, true, true]);
    let more = get(&blobs, "eeeeeeee").await;
    assert!(has("cccc") && has("eeeeeeee"), "held blobs stay, over the limit or not");
    held.discard();
    drop(more);
    assert!(!has("cccc") && has("eeeeeeee"));
}

#[tokio::test]
async fn a_blob_is_fetched_once_and_found_again_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 100, uses()).unwrap();
    drop(get(&blobs, "aaaa").await);
    let blobs = Blobs::open(dir.path(), 100, uses()).unwrap();
    let Claim::Here(held) = blobs.claim(&blob("aaaa"), Form::Plain).await else { panic!("it is not here") };
    assert_eq!(fs::read(held.path()).unwrap(), b"aaaa");
    fs::write(dir.path().join(BOOT_FILE), "another boot").unwrap();
    assert!(Blobs::open(dir.path(), 100, uses()).unwrap().hold(Digest::of(b"aaaa")).is_none());
}

#[tokio::test]
async fn what_is_not_the_worker_s_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 100, uses()).unwrap();
    drop(get(&blobs, "aaaa").await);
    let named = |name: &str| dir.path().join(name);
    let odd = Digest::of(b"bbbb").hex();
    for name in ["lost+found", "xx", &odd] {
        fs::create_dir(named(name)).unwrap();
    }
    fs::write(named("notes.txt"), "by hand").unwrap();
    let blobs = Blobs::open(dir.path(), 100, uses()).unwrap();
    assert!(blobs.hold(Digest::of(b"aaaa")).is_some() && blobs.hold(Digest::of(b"bbbb")).is_none());
    let is_all_there = || ["lost+found", "xx", "notes.txt", &odd].iter().all(|name| named(name).exists());
    assert!(is_all_there());
    // Nor does it go with the blobs of another boot.
    fs::write(named(BOOT_FILE), "another boot").unwrap();
    let blobs = Blobs::open(dir.path(), 100, uses()).unwrap();
    assert!(is_all_there() && blobs.hold(Digest::of(b"aaaa")).is_none() && !named(&Digest::of(b"aaaa").hex()).exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
}

#[tokio::test]
async fn an_output_is_taken_in_without_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&dir.path().join("blobs"), 100, uses()).unwrap();
    let file = dir.path().join("out");
    fs::write(&file, "out").unwrap();
    blobs.adopt(&file, &blob("out")).await;
    fs::remove_file(&file).unwrap();
    assert_eq!(fs::read(blobs.hold(Digest::of(b"out")).unwrap().path()).unwrap(), b"out");
}

#[tokio::test]
async fn a_packed_blob_serves_those_who_unpack_it_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&dir.path().join("blobs"), 100, uses()).unwrap();
    let packed = Blob { encoding: Encoding::Zstd, stored_bytes: 4, ..blob("plain bytes") };
    let file = dir.path().join("out");
    fs::write(&file, "zstd").unwrap();
    blobs.adopt(&file, &packed).await;
    let Claim::Here(held) = blobs.claim(&packed, Form::Stored).await else { panic!("it is not here") };
    assert_eq!((held.encoding(), fs::read(held.path()).unwrap()), (Encoding::Zstd, b"zstd".to_vec()));
    let Claim::Fetch(fetch) = blobs.claim(&packed, Form::Plain).await else { panic!("it is packed") };
    assert_eq!(fetch.form(), Form::Plain);
    fs::write(fetch.path(), "plain bytes").unwrap();
    drop(fetch.done().unwrap());
    let Claim::Here(held) = blobs.claim(&packed, Form::Stored).await else { panic!("it is not here") };
    assert_eq!(held.encoding(), Encoding::Identity, "plain bytes need no unpacking");
}

#[tokio::test]
async fn a_fetch_that_was_broken_off_is_kept_while_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 100_000, uses()).unwrap();
    let files = || fs::read_dir(dir.path()).unwrap().count() - 1;
    let held = get(&blobs, "held").await;
    let begin = |blobs: Blobs| async move {
        let Claim::Fetch(fetch) = blobs.claim(&blob("new"), Form::Plain).await else { panic!("it is here already") };
        for path in unfinished(fetch.path()) {
            fs::write(path, "ne").unwrap();
        }
        fetch
    };
    drop(begin(blobs.clone()).await);
    assert_eq!(files(), 4);
    let blobs = Blobs::open(dir.path(), 100_000, uses()).unwrap();
    assert_eq!(files(), 4, "also over a restart");
    let fetch = begin(blobs.clone()).await;
    evict_all(&blobs);
    assert_eq!(files(), 3, "nobody removes what is being fetched");
    drop(fetch);
    drop(held);
    assert!(evict_all(&blobs) > 0);
    assert_eq!(files(), 0);
    assert_eq!(evict_all(&blobs), 0, "there is nothing left");
}

#[tokio::test]
async fn what_is_held_stays_on_a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 100, uses()).unwrap();
    drop(get(&blobs, "unheld").await);
    let held = get(&blobs, "held").await;
    assert_eq!(evict_all(&blobs), 6);
    assert!(held.path().exists());
    assert_eq!(evict_all(&blobs), 0, "what is held stays");
    // A job has it among its inputs, under a name of its own.
    let input = dir.path().join("input");
    fs::hard_link(held.path(), &input).unwrap();
    drop(held);
    assert_eq!(evict_all(&blobs), 0, "nothing would be free");
    fs::remove_file(&input).unwrap();
    assert_eq!(evict_all(&blobs), 4);
}

#[tokio::test]
async fn the_next_process_knows_what_was_used_last() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(dir.path(), 100, uses()).unwrap();
    for text in ["aaaa", "bbbb", "cccc"] {
        drop(get(&blobs, text).await);
    }
    let made = fs::metadata(dir.path().join(Digest::of(b"aaaa").hex())).unwrap().modified().unwrap();
    drop(get(&blobs, "aaaa").await);
    get(&blobs, "cccc").await.discard();
    let blobs = Blobs::open(dir.path(), 100, uses()).unwrap();
    let things = blobs.stock().things;
    let order: Vec<String> =
        policy::order(&things, Reach::Spare).iter().map(|thing| thing.key.name()[..4].to_owned()).collect();
    assert_eq!(order, ["cccc", "bbbb", "aaaa"].map(|text| Digest::of(text.as_bytes()).hex()[..4].to_owned()));
    let now = fs::metadata(dir.path().join(Digest::of(b"aaaa").hex())).unwrap().modified().unwrap();
    assert_eq!(made, now, "jobs see when their inputs were made");
    blobs.limit(4);
    assert!(blobs.hold(Digest::of(b"aaaa")).is_some() && blobs.hold(Digest::of(b"bbbb")).is_none());
}

#[tokio::test]
async fn what_is_kept_is_counted_by_kind() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(&dir.path().join("blobs"), 100, uses()).unwrap();
    drop(get(&blobs, "aaaa").await);
    let packed = Blob { encoding: Encoding::Zstd, stored_bytes: 3, ..blob("a layer") };
    let file = dir.path().join("layer");
    fs::write(&file, "zst").unwrap();
    blobs.adopt(&file, &packed).await;
    let Claim::Fetch(fetch) = blobs.claim(&blob("new"), Form::Plain).await else { panic!("it is here already") };
    fs::write(Scratch::beside(fetch.path()).part, "ne").unwrap();
    let stock = blobs.stock();
    assert_eq!(stock.by_kind[&Kind::Layers], (1, 3));
    let (count, bytes) = stock.by_kind[&Kind::Blobs];
    assert!(count == 2 && bytes >= 4, "{count} {bytes}");
    let needed: Vec<Need> = stock.things.iter().map(|thing| thing.need).collect();
    assert!(stock.things.len() == 2 && needed.contains(&Need::Job), "the attempt still has the layer: {needed:?}");
    assert!(stock.inodes.len() >= 3);
}
