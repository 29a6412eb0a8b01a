//! The sweep: deletes what retention does not keep. One task owns it; everyone else asks that.
//!
//! **Invariant:** one sweep at a time; a sweep deletes nothing that was not in a plan, and a plan is made of one look and a whole listing.

mod carry;
mod claims;
mod due;
mod metrics;
mod plan;
mod report;
mod settings;
mod unknown;

pub use claims::Claims;
pub use metrics::{METRICS, Metrics};
pub use report::{Progress, Report};
pub use settings::{Settings, SweepConfig};

use crate::audit::{Act, Audit, AuditError, By, Entry};
use crate::cache::{Cache, CacheError};
use crate::driver::{CommandError, Handle};
use crate::finalize::Finalizer;
use crate::uploads;
use due::Due;
use metrics::Asked;
use plan::Planned;
use railyard_common::digest::Digest;
use railyard_common::id::BuildId;
use railyard_core::sweep::{Stop, SweepPlan};
use railyard_core::{Command, Force};
use railyard_service::clock::Clock;
use railyard_service::{error_chain, task};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Plans that are remembered until somebody carries them out.
const PLANS_MAX: usize = 4;
/// Requests that wait for the one before.
const REQUESTS_LEN: usize = 16;

/// Why a plan was not made, or not carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// Nothing may be deleted now.
    #[error(transparent)]
    Stopped(#[from] Stop),
    /// The cache does not answer.
    #[error("the cache cannot be listed or read, so nothing is deleted")]
    Cache(#[from] CacheError),
    /// The farm does not.
    #[error(transparent)]
    Farm(#[from] CommandError),
    /// Nobody remembers the plan.
    #[error(
        "there is no plan {0}: it is too old, or of before the controller's start; make one with `railyard gc plan`"
    )]
    UnknownPlan(Digest),
    /// An act that cannot be recorded is not begun.
    #[error("the audit cannot be written, so nothing is deleted")]
    Audit(#[from] AuditError),
    /// A build that only the cache knows is still there, in whole or in part.
    #[error("{0}; try again, all of it can be done twice")]
    Left(String),
    /// The world has changed.
    #[error("the plan is out of date: {0}; make a new one with `railyard gc plan`")]
    Outdated(String),
}

/// A plan as people get it: also one that may not be carried out.
#[derive(Clone)]
pub struct Shown {
    /// The plan.
    pub plan: Arc<SweepPlan>,
    /// Why it may not.
    pub stop: Option<Stop>,
}

enum Request {
    Resume {
        by: String,
        reply: oneshot::Sender<Result<bool, SweepError>>,
    },
    Delete {
        build: BuildId,
        by: By,
        why: String,
        reply: oneshot::Sender<Result<(), SweepError>>,
    },
    Plan {
        reply: oneshot::Sender<Result<Shown, SweepError>>,
    },
    Run {
        digest: Option<Digest>,
        by: By,
        progress: watch::Sender<Progress>,
        reply: oneshot::Sender<Result<Report, SweepError>>,
    },
}

/// Asks the sweeper. Cheap to clone.
#[derive(Clone)]
pub struct SweepHandle {
    requests: mpsc::Sender<Request>,
}

impl SweepHandle {
    /// What a sweep would do now.
    ///
    /// # Errors
    /// [`SweepError`].
    pub async fn plan(&self) -> Result<Shown, SweepError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Plan { reply }, answer).await
    }

    /// Carries out the plan of that digest; without one, what there is to do now. Goes on if nobody waits for it.
    ///
    /// # Errors
    /// [`SweepError`].
    pub async fn run(
        &self,
        digest: Option<Digest>,
        by: By,
        progress: watch::Sender<Progress>,
    ) -> Result<Report, SweepError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Run { digest, by, progress, reply }, answer).await
    }

    /// After a restore: says that builds which the cache has lost since the backup are deleted, and lets sweeps go on. Returns whether
    /// they were held back.
    ///
    /// # Errors
    /// [`SweepError`]; sweeps are held back then as before.
    pub async fn resume(&self, by: String) -> Result<bool, SweepError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Resume { by, reply }, answer).await
    }

    /// Deletes a build that only the cache knows: what it has published, and its manifest. What only that needed goes with the next sweep.
    ///
    /// # Errors
    /// [`SweepError`]; with [`railyard_core::Refusal::UnknownBuild`] the cache does not know it either, or the farm does by now.
    pub async fn delete_unknown(&self, build: BuildId, by: By, why: String) -> Result<(), SweepError> {
        let (reply, answer) = oneshot::channel();
        self.ask(Request::Delete { build, by, why, reply }, answer).await
    }

    async fn ask<T>(
        &self,
        request: Request,
        answer: oneshot::Receiver<Result<T, SweepError>>,
    ) -> Result<T, SweepError> {
        self.requests.send(request).await.map_err(|_| CommandError::Stopping)?;
        answer.await.map_err(|_| CommandError::Stopping)?
    }
}

/// What the sweeper needs.
pub struct Sweeper {
    /// The farm.
    pub farm: Handle,
    /// What it sweeps.
    pub cache: Arc<dyn Cache>,
    /// Who claims blobs meanwhile.
    pub claims: Claims,
    /// Takes published paths away.
    pub finalizer: Finalizer,
    /// Where each sweep is recorded.
    pub audit: Audit,
    /// Where plans and sweeps are measured.
    pub metrics: Metrics,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The rules as they are now.
    pub settings: watch::Receiver<Arc<Settings>>,
}

impl Sweeper {
    /// Sweeps when it is time, and when somebody asks, until `shutdown`.
    pub fn start(self, shutdown: CancellationToken) -> (SweepHandle, JoinHandle<()>) {
        let (requests, inbox) = mpsc::channel(REQUESTS_LEN);
        let task = task::spawn("sweeper", async move {
            // Whatever is cut off is done by the next sweep.
            let _ = shutdown.run_until_cancelled(self.work(inbox)).await;
        });
        (SweepHandle { requests }, task)
    }

    async fn work(mut self, mut inbox: mpsc::Receiver<Request>) {
        let mut plans: VecDeque<Arc<SweepPlan>> = VecDeque::new();
        let every = |settings: &Settings| Duration::from_secs(settings.sweep.every.secs);
        let mut due = Due::start(self.clock.monotonic(), every(&self.settings.borrow_and_update()));
        loop {
            let wait = due.wait(self.clock.monotonic());
            let next = async {
                match wait {
                    Some(wait) => tokio::time::sleep(wait).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                request = inbox.recv() => match request {
                    Some(request) => self.answer(request, &mut plans).await,
                    // Whoever could ask is gone, and with them the controller.
                    None => return std::future::pending().await,
                },
                Ok(()) = self.settings.changed() => {
                    due.change(self.clock.monotonic(), every(&self.settings.borrow_and_update()));
                }
                () = next => {
                    let (progress, _) = watch::channel(Progress::default());
                    // What went wrong is in the log and in the audit.
                    let _ = self.sweep(None, By::Controller, &progress, &plans).await;
                    due.swept(self.clock.monotonic());
                }
            }
        }
    }

    async fn answer(&self, request: Request, plans: &mut VecDeque<Arc<SweepPlan>>) {
        match request {
            Request::Resume { by, reply } => {
                // Whoever asked may have hung up.
                let _ = reply.send(self.resume(by).await);
            }
            Request::Delete { build, by, why, reply } => {
                // Whoever asked may have hung up.
                let _ = reply.send(self.delete_unknown(&build, by, why).await);
            }
            Request::Plan { reply } => {
                let planned = self.plan(Asked::Operator).await;
                let shown = planned.map(|Planned { plan, stop }| Shown { plan: Arc::new(plan), stop });
                if let Ok(shown) = &shown {
                    plans.retain(|plan| plan.digest != shown.plan.digest);
                    plans.push_back(shown.plan.clone());
                    if plans.len() > PLANS_MAX {
                        plans.pop_front();
                    }
                }
                // Whoever asked may have hung up.
                let _ = reply.send(shown);
            }
            Request::Run { digest, by, progress, reply } => {
                let _ = reply.send(self.sweep(digest, by, &progress, plans).await);
            }
        }
    }

    async fn resume(&self, by: String) -> Result<bool, SweepError> {
        let planned = self.plan(Asked::Operator).await?;
        let Planned { plan, stop: Some(Stop::Restored { .. }) } = planned else { return Ok(false) };
        let lost = Command::Reduce { builds: plan.lost, by: by.clone(), force: Force::Forced };
        self.farm.decide(lost).await?;
        Ok(!self.farm.decide(Command::ResumeSweep { by }).await?.is_empty())
    }

    async fn plan(&self, asked: Asked) -> Result<Planned, SweepError> {
        let started = self.clock.monotonic();
        let settings = self.settings.borrow().clone();
        let grace = settings.sweep.grace.millis();
        let now = self.clock.now();
        let planned = plan::plan(&self.farm, &*self.cache, &self.claims, &settings.policy, grace, now).await;
        self.metrics.planned(asked, self.clock.monotonic().saturating_sub(started), &planned);
        planned
    }

    /// One sweep, measured and with its record.
    async fn sweep(
        &self,
        digest: Option<Digest>,
        by: By,
        progress: &watch::Sender<Progress>,
        plans: &VecDeque<Arc<SweepPlan>>,
    ) -> Result<Report, SweepError> {
        let started = self.clock.monotonic();
        uploads::end_left_over(&self.farm, &*self.cache).await;
        let asked = digest.and_then(|digest| plans.iter().find(|plan| plan.digest == digest).cloned());
        let swept = self.sweep_now(digest, asked, &by, progress).await;
        let took = self.clock.monotonic().saturating_sub(started);
        self.metrics.swept(Asked::of(&by), took, &swept, self.clock.now());
        let entry = Entry::new(Act::Sweep).by(by).target("cache");
        let entry = match &swept {
            Ok(report) => {
                tracing::info!(
                    plan = %report.plan, reduced = report.reduced, forgotten = report.forgotten, deleted = report.deleted,
                    bytes = report.bytes, failures = report.failures, "swept"
                );
                if let Some(why) = &report.first_failure {
                    tracing::warn!(failures = report.failures, first = %why, "not all could be deleted; the next sweep tries again");
                }
                report.told(entry)
            }
            Err(error) => {
                tracing::error!(error = error_chain(error), "the sweep stopped");
                entry.refused(error_chain(error))
            }
        };
        if let Err(error) = self.audit.record(entry).await {
            tracing::error!(error = error_chain(&error), "a sweep is not recorded yet");
        }
        swept
    }

    async fn sweep_now(
        &self,
        digest: Option<Digest>,
        asked: Option<Arc<SweepPlan>>,
        by: &By,
        progress: &watch::Sender<Progress>,
    ) -> Result<Report, SweepError> {
        let Planned { plan: newest, stop } = self.plan(Asked::of(by)).await?;
        if let Some(stop) = stop {
            return Err(stop.into());
        }
        let plan = match (digest, asked) {
            (None, _) => Arc::new(newest),
            (Some(digest), _) if newest.digest == digest => Arc::new(newest),
            (Some(digest), None) => return Err(SweepError::UnknownPlan(digest)),
            (Some(_), Some(plan)) => match plan.outdated_by(&newest) {
                Some(why) => return Err(SweepError::Outdated(why)),
                None => plan,
            },
        };
        match plan.is_empty() {
            true => self.audit.ready()?,
            // A sweep that is cut off has no end to record.
            false => {
                self.audit
                    .record(report::begun(&plan, Entry::new(Act::SweepBegin).by(by.clone()).target("cache")))
                    .await?
            }
        }
        let settings = self.settings.borrow().clone();
        // Nobody may be watching.
        self.carry_out(&plan, &by.text(), &settings, &|now| _ = progress.send_replace(now)).await
    }
}
