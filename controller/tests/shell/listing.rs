//! The lists of builds: right whoever writes them, and whatever was lost; never half of one.

use crate::common::memory::{Driven, Memory, offer};
use crate::common::{Backend, Ground, on_both, until};
use futures_util::future::join_all;
use railyard_common::id::{BuildId, ChannelName, JobId, LeaseId, PipelineName};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::pipeline::{Pipeline, Request, Source};
use railyard_common::priority::Priority;
use railyard_common::retention::Keep;
use railyard_common::time::Millis;
use railyard_controller::cache::{Cache, PutMode};
use railyard_controller::driver::Handle;
use railyard_controller::index::{self, Indexer, News};
use railyard_core::{Command, Event, Force, Next, Reduction, Trace, Verdict};
use railyard_service::clock::SystemClock;
use railyard_service::task;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

on_both!(
    writers_of_two_controllers_lose_nothing_and_no_reader_sees_half_a_list,
    tags_channels_and_tombstones_are_listed,
    a_clock_that_is_put_back_hides_no_build,
    what_was_lost_is_written_at_the_start,
);

/// Where the lists of two channels and of their pipeline lie.
const LISTS: [&str; 3] = ["builds.json", "channels/beta/builds.json", "channels/stable/builds.json"];

/// A cache that controllers share.
struct Stage {
    backend: Backend,
    ground: Ground,
    cache: Arc<dyn Cache>,
}

impl Stage {
    async fn on(backend: Backend) -> Self {
        let ground = Ground::of(backend).await;
        Self { backend, cache: ground.cache().await, ground }
    }

    /// The cache as another controller has it. An embedded one is a directory of one process.
    async fn another(&self) -> Arc<dyn Cache> {
        match self.backend {
            Backend::Embedded => self.cache.clone(),
            Backend::S3 => self.ground.cache().await,
        }
    }

    /// A list of the pipeline `os`, as it is now.
    async fn list(&self, name: &str) -> Option<Value> {
        let bytes = self.cache.get(&format!("builds/os/{name}").parse().unwrap()).await.unwrap()?.0;
        Some(serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{name} is {bytes:?}: {error}")))
    }

    async fn versions(&self, name: &str) -> Vec<String> {
        self.list(name).await.map(|list| versions(&list)).unwrap_or_default()
    }

    async fn latest(&self, name: &str) -> Option<String> {
        Some(self.list(name).await?["version"].as_str().unwrap().to_owned())
    }

    async fn put(&self, name: &str, text: &'static str) {
        self.cache.put(&format!("builds/os/{name}").parse().unwrap(), text.into(), PutMode::Overwrite).await.unwrap();
    }
}

fn versions(list: &Value) -> Vec<String> {
    list["builds"].as_array().unwrap().iter().map(|one| one["version"].as_str().unwrap().to_owned()).collect()
}

fn os() -> PipelineName {
    "os".parse().unwrap()
}

fn id(version: &str) -> BuildId {
    BuildId { pipeline: os(), version: version.parse().unwrap() }
}

/// A build of `os` whose one job has ended; the farm's clock counts its builds.
fn build(number: u64, version: &str, channel: &str, verdict: Verdict) -> Vec<Event> {
    build_at(Millis(number), number, version, channel, verdict)
}

fn build_at(at: Millis, number: u64, version: &str, channel: &str, verdict: Verdict) -> Vec<Event> {
    const TEXT: &str = "name: os\nplatforms: [linux/amd64]\nsteps:\n  - { name: make, image: debian, script: make }\n";
    let files = BTreeMap::new();
    let pipeline = Pipeline::parse(&Source { file_name: "railyard.yaml", text: TEXT, files: &files }).unwrap();
    let request = Request { channel: Some(channel.parse().unwrap()), ..Request::of(version.parse().unwrap()) };
    let plan = Arc::new(pipeline.plan(&request).unwrap());
    let lease = LeaseId { job: JobId(number), attempt: 1 };
    let outcome = match verdict {
        Verdict::Succeeded => Outcome::succeeded(),
        _ => Outcome::new(OutcomeKind::Failed, Reason::ExitCode, "exit code 1"),
    };
    let accepted = Event::BuildAccepted {
        at,
        plan,
        first_job: lease.job,
        by: "olga".to_owned(),
        key: None,
        trace: Trace::default(),
        priority: Priority::default(),
        request: String::new(),
    };
    let (artifacts, image, log_bytes, next) = (Vec::new(), None, 0, Next::End);
    let ended = Event::AttemptEnded { at, lease, outcome, artifacts, image, log_bytes, next };
    vec![
        accepted,
        Event::WorkerOnline { at, offer: offer("anvil") },
        Event::JobLeased { at, lease, worker: offer("anvil").name },
        ended,
    ]
}

fn ended(version: &str) -> Event {
    Event::BuildEnded { at: Millis(1_000_000), build: id(version), error: None }
}

/// A farm with what writes its lists.
struct Farm {
    farm: Handle,
    indexer: Arc<Indexer>,
    changed: Option<mpsc::UnboundedReceiver<PipelineName>>,
    stop: CancellationToken,
    _stop: DropGuard,
}

impl Farm {
    fn new(events: Vec<Event>, cache: Arc<dyn Cache>) -> Self {
        let Driven { farm, listed, stop, .. } = Driven::start(Memory(events), Arc::new(SystemClock));
        let indexer = Arc::new(Indexer::new(farm.clone(), cache));
        Self { farm, indexer, changed: Some(listed), _stop: stop.clone().drop_guard(), stop }
    }

    /// From now on whatever changes is written.
    fn start(mut self) -> Self {
        let changed = self.changed.take().unwrap();
        index::start(self.indexer.clone(), changed, self.stop.clone());
        self
    }

    async fn decide(&self, command: Command) {
        self.farm.decide(command).await.unwrap();
    }

    async fn end(&self, version: &str, verdict: Verdict) {
        let ending = News::Ending { build: id(version), verdict };
        self.indexer.write(&os(), Some(&ending)).await.unwrap();
        self.decide(Command::Finalized { build: id(version), error: None }).await;
    }

    async fn delete(&self, version: &str) {
        let reduction = Reduction { build: id(version), keep: Keep::Nothing, why: "not wanted".to_owned() };
        self.decide(Command::Reduce { builds: vec![reduction], by: "olga".to_owned(), force: Force::Forced }).await;
    }
}

/// Both have builds that the other does not know, and end them at the same time; one of the channels is of both.
async fn writers_of_two_controllers_lose_nothing_and_no_reader_sees_half_a_list(backend: Backend) {
    const EACH: u64 = 8;
    let stage = Stage::on(backend).await;
    let verdict = |n: u64| if n.is_multiple_of(3) { Verdict::Failed } else { Verdict::Succeeded };
    let channel = |n: u64| if n.is_multiple_of(2) { "beta" } else { "stable" };
    let all = |name: char| (0..EACH).map(move |n| (n, format!("{name}{n}")));
    let mut farms = Vec::new();
    for (name, first) in [('a', 1), ('b', 2)] {
        // Their builds were submitted in turns.
        let events = all(name).flat_map(|(n, version)| build(2 * n + first, &version, channel(n), verdict(n)));
        farms.push((name, Farm::new(events.collect(), stage.another().await)));
    }
    let writing = join_all(farms.iter().map(|(name, farm)| async move {
        let ends = all(*name).map(|(n, version)| async move { farm.end(&version, verdict(n)).await });
        join_all(ends).await;
    }));
    let done = CancellationToken::new();
    let files: Vec<PathBuf> = LISTS.iter().map(|list| stage.ground.embedded().join("builds/os").join(list)).collect();
    let (reading, over) = (stage.another().await, done.clone());
    let reader = task::spawn("reader", async move {
        let (mut looks, mut most) = (0u64, [0; LISTS.len()]);
        while !over.is_cancelled() || looks < 3 {
            for (list, (file, most)) in LISTS.iter().zip(files.iter().zip(&mut most)) {
                let path = format!("builds/os/{list}").parse().unwrap();
                let bytes = reading.get(&path).await.unwrap().map(|(bytes, _)| bytes.to_vec());
                // As somebody does who serves the directory.
                for bytes in [bytes, std::fs::read(file).ok()].into_iter().flatten() {
                    let read: Value = serde_json::from_slice(&bytes).unwrap_or_else(|error| panic!("{list}: {error}"));
                    let count = versions(&read).len();
                    assert!(count >= *most || *list != "builds.json", "{list}: {count} builds after {most}");
                    *most = count;
                }
            }
            looks += 1;
        }
        looks
    });
    writing.await;
    done.cancel();
    assert!(reader.await.unwrap() >= 3);

    let newest_first = |keep: &dyn Fn(u64) -> bool| -> Vec<String> {
        let both = (0..EACH).rev().filter(|n| keep(*n));
        both.flat_map(|n| [format!("b{n}"), format!("a{n}")]).collect()
    };
    assert_eq!(stage.versions("builds.json").await, newest_first(&|_| true));
    assert_eq!(stage.versions("channels/beta/builds.json").await, newest_first(&|n| n.is_multiple_of(2)));
    assert_eq!(stage.versions("channels/stable/builds.json").await, newest_first(&|n| !n.is_multiple_of(2)));
    assert_eq!(stage.latest("latest.json").await.unwrap(), "b7");
    assert_eq!(stage.latest("channels/stable/latest.json").await.unwrap(), "b7");
    assert_eq!(stage.latest("channels/beta/latest.json").await.unwrap(), "b4");
}

async fn tags_channels_and_tombstones_are_listed(backend: Backend) {
    let stage = Stage::on(backend).await;
    let mut events = build(1, "1", "beta", Verdict::Succeeded);
    events.extend(build(2, "2", "beta", Verdict::Succeeded));
    events.extend([ended("1"), ended("2")]);
    let farm = Farm::new(events, stage.another().await).start();
    let by = || "olga".to_owned();
    let wait = async |what, path: &str, wanted: &dyn Fn(Option<&Value>) -> bool| {
        until(what, async || wanted(stage.list(path).await.as_ref()).then_some(())).await;
    };
    let names = |wanted: &[&str]| -> Vec<String> { wanted.iter().map(|one| (*one).to_owned()).collect() };
    wait("the start", "channels/beta/latest.json", &|latest| latest.is_some_and(|latest| latest["version"] == "2"))
        .await;
    assert_eq!(stage.versions("builds.json").await, names(&["2", "1"]));

    let tag = |version: &str| Command::Tag { build: id(version), tag: "golden".parse().unwrap(), by: by() };
    farm.decide(tag("2")).await;
    wait("the tag", "builds.json", &|list| list.unwrap()["builds"][0]["tags"] == json!(["golden"])).await;
    farm.decide(tag("1")).await;
    wait("the tag's move", "channels/beta/builds.json", &|list| {
        let builds = &list.unwrap()["builds"];
        (&builds[0]["tags"], &builds[1]["tags"]) == (&json!([]), &json!(["golden"]))
    })
    .await;

    let (build, channel) = (id("2"), "stable".parse::<ChannelName>().unwrap());
    farm.decide(Command::Promote { build, channel, paths: BTreeMap::new(), fresh: BTreeSet::new(), by: by() }).await;
    wait("the promotion", "channels/stable/latest.json", &|latest| latest.is_some_and(|it| it["version"] == "2")).await;
    assert_eq!(stage.versions("channels/beta/builds.json").await, names(&["1"]));
    assert_eq!(stage.latest("channels/beta/latest.json").await.unwrap(), "1");
    let list = stage.list("builds.json").await.unwrap();
    assert_eq!((&list["builds"][0]["channel"], &list["tombstones"]), (&json!("stable"), &json!([])));

    farm.delete("2").await;
    wait("the channel's end", "channels/stable/latest.json", &|latest| latest.is_none()).await;
    assert_eq!(
        (stage.versions("builds.json").await, stage.latest("latest.json").await.unwrap()),
        (names(&["1"]), "1".to_owned())
    );
    farm.delete("1").await;
    wait("the end of the last one", "channels/beta/latest.json", &|latest| latest.is_none()).await;
    assert_eq!((stage.latest("latest.json").await, stage.versions("builds.json").await), (None, names(&[])));
    let gone = |list: Value| -> Vec<Value> { list["tombstones"].as_array().unwrap().clone() };
    let graves = gone(stage.list("builds.json").await.unwrap());
    assert_eq!((graves.len(), &graves[0]["version"], &graves[0]["why"]), (2, &json!("1"), &json!("not wanted")));
    let stable = gone(stage.list("channels/stable/builds.json").await.unwrap());
    assert_eq!((stable.len(), &stable[0]["version"]), (1, &json!("2")));
    // What the farm forgets, the list does not.
    farm.decide(Command::Swept { builds: vec![(id("1"), Keep::Nothing), (id("2"), Keep::Nothing)] }).await;
    farm.indexer.write(&os(), None).await.unwrap();
    assert_eq!(gone(stage.list("builds.json").await.unwrap()), graves);
}

/// The clock goes back before a build is submitted, and before another one of a version that was deleted and swept.
async fn a_clock_that_is_put_back_hides_no_build(backend: Backend) {
    let stage = Stage::on(backend).await;
    let succeeded = |number, version: &str, at| {
        let mut events = build_at(Millis(at), number, version, "beta", Verdict::Succeeded);
        events.push(ended(version));
        events
    };
    let mut events = succeeded(1, "1", 2_000_000);
    events.extend(succeeded(2, "2", 1_000_000));
    let farm = Farm::new(events.clone(), stage.another().await);
    farm.indexer.write(&os(), None).await.unwrap();
    for at in ["", "channels/beta/"] {
        assert_eq!(stage.versions(&format!("{at}builds.json")).await, ["2", "1"]);
        assert_eq!(stage.latest(&format!("{at}latest.json")).await.unwrap(), "2");
    }
    farm.delete("2").await;
    farm.indexer.write(&os(), None).await.unwrap();
    farm.decide(Command::Swept { builds: vec![(id("2"), Keep::Nothing)] }).await;
    assert_eq!(stage.latest("latest.json").await.unwrap(), "1");

    let mut again = succeeded(1, "1", 2_000_000);
    again.extend(succeeded(3, "2", 500_000));
    let later = Farm::new(again, stage.another().await);
    later.indexer.write(&os(), None).await.unwrap();
    assert_eq!(stage.versions("channels/beta/builds.json").await, ["2", "1"]);
    assert_eq!(stage.latest("channels/beta/latest.json").await.unwrap(), "2");
    assert_eq!(stage.list("builds.json").await.unwrap()["tombstones"], json!([]));
    // A state of before the delete still does not bring that build back.
    farm.delete("1").await;
    farm.indexer.write(&os(), None).await.unwrap();
    let restored = Farm::new(events, stage.another().await);
    restored.indexer.write(&os(), None).await.unwrap();
    assert!(!stage.versions("builds.json").await.contains(&"1".to_owned()));
}

/// A controller was gone before its lists were written, and somebody has put in what nobody wrote.
async fn what_was_lost_is_written_at_the_start(backend: Backend) {
    let stage = Stage::on(backend).await;
    let mut events = build(1, "1", "beta", Verdict::Succeeded);
    events.extend(build(2, "2", "beta", Verdict::Failed));
    events.extend([ended("1"), ended("2")]);
    let before = Farm::new(events.clone(), stage.another().await);
    before.indexer.write(&os(), None).await.unwrap();
    let wanted = stage.list("builds.json").await.unwrap()["builds"].clone();
    stage.put("builds.json", "{ half a li").await;
    stage.put("latest.json", "{}").await;
    stage.put("channels/beta/builds.json", "").await;
    stage.put("channels/gone/builds.json", "{}").await;
    stage.put("channels/gone/latest.json", "{}").await;
    stage.cache.delete(&"builds/os/channels/beta/latest.json".parse().unwrap()).await.unwrap();

    let _after = Farm::new(events.clone(), stage.another().await).start();
    until("the lists", async || {
        let list = stage.list("channels/gone/latest.json").await;
        let is_gone = list.is_none() && stage.list("channels/gone/builds.json").await.is_none();
        (is_gone && stage.latest("channels/beta/latest.json").await.is_some()).then_some(())
    })
    .await;
    for list in ["builds.json", "channels/beta/builds.json"] {
        assert_eq!(stage.list(list).await.unwrap()["builds"], wanted, "{list}");
    }
    for latest in ["latest.json", "channels/beta/latest.json"] {
        assert_eq!(stage.latest(latest).await.unwrap(), "1", "{latest}");
    }
    // A journal that knows less takes nothing away, and what is right is not written again.
    let revision = stage.list("builds.json").await.unwrap()["revision"].clone();
    let restored = Farm::new(events[..4].to_vec(), stage.another().await);
    restored.indexer.write(&os(), None).await.unwrap();
    let list = stage.list("builds.json").await.unwrap();
    assert_eq!((&list["builds"], &list["revision"]), (&wanted, &revision));
}
