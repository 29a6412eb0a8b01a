//! A container from its start to its end: its output, its limits, and why it ended.

use super::disk_watch;
use super::fault::Fault;
use super::mask;
use super::patience::Patience;
use super::record::{Record, RunStage, Stage};
use super::tap::{Tap, keep};
use super::verdict::{Seen, Witness, judge, not_started};
use super::vigil::Vigil;
use super::{Stop, stopped, unless_stopped};
use crate::cleanup::remove_until_gone;
use crate::log::JobLog;
use crate::runtime::{ContainerSpec, ContainerState, Hearing, RuntimeError};
use crate::workshop::Workshop;
use railyard_common::order::Order;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_common::redact::Masks;
use railyard_service::task;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Before an engine that went away is asked again.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);

/// What ended it.
enum End {
    Exited(Seen),
    Stopped(Stop),
    /// It went too far, and may have so much time to end.
    Exceeded(Outcome, Duration),
}

/// What a container runs in: everything about its attempt that its end needs.
pub struct Room<'a> {
    /// What all attempts share.
    pub shop: &'a Workshop,
    /// What it is to do.
    pub order: &'a Order,
    /// Its name on the engine.
    pub name: &'a str,
    /// Mounted at `/work`.
    pub work: &'a Path,
    /// The attempt's log.
    pub log: &'a JobLog,
    /// What the worker's next process will find.
    pub record: &'a Record,
    /// What must not be seen in its output.
    pub masks: &'a Masks,
}

/// What became of a container that was to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It has ended well. It is there, and does not run.
    Well,
    /// The engine went away over its start, and knows of none. It may all the same have started something, and must not be
    /// asked to start that once more: everything has to begin again, in other directories.
    Never,
}

/// Creates the container, runs it to its end, and judges that.
///
/// # Errors
/// [`Fault`] for everything but an exit code of 0.
pub async fn run(
    room: &Room<'_>,
    spec: &ContainerSpec,
    image: &str,
    patience: &mut Patience<'_>,
    stop: &mut watch::Receiver<Option<Stop>>,
) -> Result<Ran, Fault> {
    let Room { shop, order, .. } = room;
    while let Err(fault) = create(shop, order, spec, stop.clone()).await {
        unless_stopped(stop.clone(), patience.after(fault)).await?;
    }
    let started_millis = u64::try_from(shop.clock.boottime().as_millis()).unwrap_or(u64::MAX);
    let stage = RunStage { image: image.to_owned(), started_millis, ending: None };
    // Before it can have begun: what was begun is not begun again.
    room.record.enter(&Stage::Run(stage.clone())).await;
    // An engine that hangs may start it later. It is removed in any case.
    let starting = async { shop.runtime.start(&spec.name).await.map_err(|error| not_started(order, error)) };
    let output = match unless_stopped(stop.clone(), starting).await {
        Ok(output) => output,
        // It may have started it, or not. What it knows of is what it has written down.
        Err(Fault::Runtime(error)) if error.is_unreachable() => {
            unless_stopped(stop.clone(), patience.after(error.into())).await?;
            return resume(room, stage, stop).await;
        }
        Err(fault) => return Err(fault),
    };
    let vigil =
        unless_stopped(stop.clone(), async { Ok(Vigil::begin(shop.runtime.clone(), &spec.name, room.record).await) });
    let tap = Tap::live(room.hearing(), &spec.name, mask::live(output, room.masks), vigil.await?);
    room.watch_to_end(stage, tap, Witness::Process, stop).await.map(|()| Ran::Well)
}

/// Goes on with a container that was started, or was about to be, by the worker's last process or an engine that went away over
/// it; as [`run`].
///
/// # Errors
/// [`Fault`].
pub async fn resume(room: &Room<'_>, stage: RunStage, stop: &mut watch::Receiver<Option<Stop>>) -> Result<Ran, Fault> {
    let Room { shop, name, log, .. } = room;
    let mut patience = Patience::new(shop, log);
    let found = loop {
        match shop.runtime.state(name).await {
            Ok(found) => break found,
            Err(error) => unless_stopped(stop.clone(), patience.after(error.into())).await?,
        }
    };
    tracing::info!(container = name, ?found, "going on with a container");
    let witness = match found {
        Some(ContainerState::Running) => Witness::Process,
        Some(ContainerState::Ended) => Witness::Nobody,
        Some(ContainerState::Created) => return Ok(Ran::Never),
        None => {
            let message = "its container was removed from the engine while the engine or the worker was restarted";
            return Err(Fault::ended(OutcomeKind::Lost, Reason::Engine, message));
        }
    };
    let vigil = Vigil::resumed(shop.runtime.clone(), name, room.record).await;
    let tap = Tap::resumed(room.hearing(), name, log, vigil).await?;
    if let Some(ending) = stage.ending {
        halt(shop, name, shop.config.stop_grace(), tap, log, stop).await?;
        return Err(Fault::Ended(ending));
    }
    room.watch_to_end(stage, tap, witness, stop).await.map(|()| Ran::Well)
}

impl Room<'_> {
    /// The engine, without what must not be seen.
    fn hearing(&self) -> Arc<dyn Hearing> {
        mask::hearing(self.shop.runtime.clone(), self.masks)
    }

    async fn watch_to_end(
        &self,
        stage: RunStage,
        mut tap: Tap,
        witness: Witness,
        stop: &mut watch::Receiver<Option<Stop>>,
    ) -> Result<(), Fault> {
        let Room { shop, name, log, .. } = self;
        let started = Duration::from_millis(stage.started_millis);
        let exit = std::pin::pin!(exit_of(shop, name, witness));
        match self.watch_it(started, &mut tap, exit, stop).await? {
            End::Exited(seen) => {
                if seen.witness == Witness::EngineAway {
                    tap.doubt();
                }
                tap.finish(log).await?;
                let took = shop.clock.boottime().saturating_sub(started);
                let mut patience = Patience::new(shop, log);
                loop {
                    match judge(shop, self.order, seen, self.work, took, log).await {
                        Err(fault @ Fault::Runtime(_)) => unless_stopped(stop.clone(), patience.after(fault)).await?,
                        judged => return judged,
                    }
                }
            }
            End::Stopped(why) => {
                if let Stop::Cancelled(why) = &why {
                    let ending = Outcome::new(OutcomeKind::Cancelled, Reason::Cancelled, why.clone());
                    self.note_ending(stage, ending).await;
                }
                halt(shop, name, shop.config.stop_grace(), tap, log, stop).await?;
                Err(Fault::Stopped(why))
            }
            End::Exceeded(ending, grace) => {
                self.note_ending(stage, ending.clone()).await;
                halt(shop, name, grace, tap, log, stop).await?;
                Err(Fault::Ended(ending))
            }
        }
    }

    /// Keeps the output, and watches the limits.
    async fn watch_it(
        &self,
        started: Duration,
        tap: &mut Tap,
        mut exit: impl Future<Output = Result<Seen, RuntimeError>> + Unpin,
        stop: &mut watch::Receiver<Option<Stop>>,
    ) -> Result<End, Fault> {
        let Room { shop, order, name, work, log, .. } = self;
        let timed_out = |reason, message: String| {
            let outcome = Outcome::new(OutcomeKind::TimedOut, reason, message);
            Ok(End::Exceeded(outcome, shop.config.stop_grace()))
        };
        let mut over = std::pin::pin!(disk_watch::over(shop, order, name, work));
        let wall = Duration::from_secs(order.run.timeout_secs);
        let silence = (order.run.silence_timeout_secs > 0).then(|| Duration::from_secs(order.run.silence_timeout_secs));
        let mut heard_at = shop.clock.boottime();
        loop {
            // Asked here and not only by the timer below, which a container that never stops writing would starve.
            let now = shop.clock.boottime();
            let wall_left = (started + wall).saturating_sub(now);
            // Nobody can tell whether it is silent while nobody listens.
            let silence = silence.filter(|_| tap.is_attached());
            if silence.is_none() {
                heard_at = now;
            }
            let silence_left = silence.map(|silence| (heard_at + silence).saturating_sub(now));
            if wall_left.is_zero() {
                let limit = humantime::format_duration(wall);
                let message = format!("it ran longer than its timeout of {limit}; raise `timeout` if it needs longer");
                return timed_out(Reason::WallClock, message);
            }
            if let Some((silence, Duration::ZERO)) = silence.zip(silence_left) {
                let limit = humantime::format_duration(silence);
                let message = format!("it wrote nothing for its silence timeout of {limit}; it seems to hang");
                return timed_out(Reason::Silence, message);
            }
            tokio::select! {
                biased;
                why = stopped(stop) => return Ok(End::Stopped(why)),
                message = &mut over => {
                    // At once: whatever it is given it fills.
                    let outcome = Outcome::new(OutcomeKind::Failed, Reason::DiskLimit, message);
                    return Ok(End::Exceeded(outcome, Duration::ZERO));
                }
                heard = tap.next(log) => {
                    heard_at = shop.clock.boottime();
                    keep(heard?, log).await?;
                }
                exit = &mut exit => return Ok(End::Exited(exit?)),
                () = tokio::time::sleep(silence_left.unwrap_or(wall_left).min(wall_left)) => {}
            }
        }
    }

    /// Why the container is being stopped is the reason also if the worker dies over it.
    async fn note_ending(&self, stage: RunStage, ending: Outcome) {
        self.record.enter(&Stage::Run(RunStage { ending: Some(ending), ..stage })).await;
    }
}

/// Waits for the end of a container. An engine that goes away for a while may come back, and its containers may have run
/// on meanwhile.
async fn exit_of(shop: &Workshop, name: &str, mut witness: Witness) -> Result<Seen, RuntimeError> {
    let mut away_since = None;
    loop {
        match shop.runtime.exit(name).await {
            Ok(exit) => return Ok(Seen { exit, witness }),
            Err(error) if error.is_unreachable() => {
                witness = Witness::EngineAway;
                let now = shop.clock.boottime();
                let since = *away_since.get_or_insert_with(|| {
                    tracing::warn!(container = name, %error, "the engine went away; waiting for it");
                    now
                });
                if now.saturating_sub(since) >= shop.config.engine_grace() {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(ENGINE_PAUSE).await;
        if away_since.is_some() && shop.runtime.ping().await.is_ok() {
            tracing::info!(container = name, "the engine is back");
            away_since = None;
        }
    }
}

/// Makes the container. An attempt that must stop does not wait for an engine that hangs; what that makes of it later
/// is removed then.
async fn create(
    shop: &Workshop,
    order: &Order,
    spec: &ContainerSpec,
    mut stop: watch::Receiver<Option<Stop>>,
) -> Result<(), Fault> {
    let (runtime, spec) = (shop.runtime.clone(), spec.clone());
    let name = spec.name.clone();
    let mut creating = task::spawn("create", async move {
        match runtime.create(&spec).await {
            // An earlier process had asked for it, and died before the engine had made it.
            Err(error) if error.is_conflict() => {
                runtime.remove(&spec.name).await?;
                runtime.create(&spec).await
            }
            created => created,
        }
    });
    tokio::select! {
        biased;
        why = stopped(&mut stop) => {
            let runtime = shop.runtime.clone();
            task::spawn("remove-late", async move {
                // Whether that went well makes no difference.
                let _ = creating.await;
                remove_until_gone(&*runtime, &name).await;
            });
            Err(Fault::Stopped(why))
        }
        created = &mut creating => match created {
            Ok(created) => created.map_err(|error| not_started(order, error)),
            Err(error) => Err(Fault::bug(&error)),
        },
    }
}

/// Stops the container, and keeps what it writes meanwhile. It has its grace only while the lease has time for it.
async fn halt(
    shop: &Workshop,
    name: &str,
    grace: Duration,
    mut tap: Tap,
    log: &JobLog,
    stop: &mut watch::Receiver<Option<Stop>>,
) -> Result<(), Fault> {
    let stopping = async {
        tokio::select! {
            biased;
            () = urgent(stop) => shop.runtime.stop(name, Duration::ZERO).await,
            done = shop.runtime.stop(name, grace) => done,
        }
    };
    match tap.read_until(stopping, log).await? {
        Ok(()) => tap.finish(log).await,
        Err(error) => {
            // It will be removed by force, for as long as that takes.
            tracing::warn!(container = name, %error, "a container could not be stopped");
            log.note(&format!("the end of the output may be missing here: {error}")).await?;
            Ok(())
        }
    }
}

/// Waits until the container must be gone at once: nobody waits for the result of a lost lease, and one that is about to
/// be lost must be free before somebody else begins.
async fn urgent(stop: &mut watch::Receiver<Option<Stop>>) {
    let at_once = |stop: &Option<Stop>| matches!(stop, Some(Stop::Fenced { .. } | Stop::Abandoned));
    if stop.wait_for(at_once).await.is_err() {
        std::future::pending().await
    }
}
