//! The attempts of a worker: begun, taken up again, told to stop.

use super::{Daemon, FORGET_PAUSE, FORGET_TRIES, LAST_REPORTS, Standing};
use crate::attempt::record::{Left, Stage};
use crate::attempt::{self, Reins, Stop};
use crate::session::{Action, Verdict};
use railyard_common::id::{BuildId, LeaseId};
use railyard_common::order::Order;
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_proto::v1;
use railyard_proto::v1::Phase;
use railyard_service::convert::{FromProto as _, ToProto as _};
use railyard_service::task;
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

impl Daemon {
    /// Goes on with what an earlier process of this worker was at.
    pub(super) fn adopt(&mut self, left: Vec<Left>) {
        for Left { order, stage, confirmed_at } in left {
            let phase = match &stage {
                Stage::Fetch => Phase::Fetch,
                Stage::Run(_) => Phase::Run,
                Stage::Pack { .. } | Stage::Upload { .. } | Stage::Report => Phase::Upload,
            };
            tracing::info!(lease = %order.lease, job = %order.job, ?phase, "going on with a job of an earlier life");
            self.session.adopt(order.lease, Duration::from_millis(order.ttl_millis.into()), confirmed_at, phase);
            self.spawn(order, Some(stage), None);
        }
    }

    /// Lets the attempts write down when their leases were confirmed.
    pub(super) fn pass_on_confirmations(&self) {
        for (lease, reins) in &self.held {
            let Some(at) = self.session.confirmed_at(*lease) else { continue };
            reins.confirmed.send_if_modified(|known| {
                let news = at > *known;
                *known = at.max(*known);
                news
            });
        }
    }

    pub(super) fn handle_order(&mut self, proto: v1::LeaseOrder) {
        let lease = proto.lease;
        let order = match Order::from_proto(proto) {
            Ok(order) => order,
            Err(error) => {
                let why = format!("the order cannot be used: {error}");
                return self.give_back(lease, Outcome::new(OutcomeKind::Refused, Reason::Unsupported, why));
            }
        };
        let ttl = Duration::from_millis(order.ttl_millis.into());
        match self.session.handle_order(self.now(), order.lease, ttl) {
            Verdict::Start => self.start(order),
            Verdict::Known => {}
            Verdict::Late => {
                let why = "the order took so long to arrive that its lease may be over";
                self.give_back(lease, Outcome::new(OutcomeKind::Lost, Reason::WorkerGone, why));
            }
        }
    }

    /// An order that is not begun is reported at once, or its lease would have to expire.
    fn give_back(&self, lease: Option<v1::LeaseId>, outcome: Outcome) {
        tracing::error!(?lease, why = outcome.message, "an order was not begun");
        let report = v1::ReportRequest { lease, outcome: Some(outcome.to_proto()), ..Default::default() };
        let uplink = self.shop.uplink.clone();
        task::spawn("give-back", async move {
            if let Err(error) = uplink.report(&report).await {
                tracing::warn!(%error, "an order that was not begun could not be reported");
            }
        });
    }

    pub(super) fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Cancel { lease, reason } => self.stop(lease, Stop::Cancelled(reason)),
                Action::Fence { lease, silent_for } => self.stop(lease, Stop::Fenced { silent_for }),
                Action::Abandon(lease) => self.stop(lease, Stop::Abandoned),
            }
        }
    }

    fn start(&mut self, order: Order) {
        let lease = order.lease;
        if self.held.contains_key(&lease) {
            // Given up as lost, and its attempt still cleans up: it is not begun twice, and so not held either.
            return self.session.handle_done(lease);
        }
        // A build that is resumed wants its images again.
        self.forgetting.remove(&order.build);
        // One that comes while we are leaving is given back at once.
        let at_once = (!matches!(self.standing, Standing::Working)).then_some(Stop::Drained);
        self.spawn(order, None, at_once);
    }

    fn spawn(&mut self, order: Order, left: Option<Stage>, at_once: Option<Stop>) {
        let lease = order.lease;
        let confirmed_at = self.session.confirmed_at(lease).unwrap_or_default();
        // Before anything of it is on the disk: whoever looks for what nobody goes on with finds it here.
        self.shop.disks.promises.begin(lease, order.run.resources.disk_bytes);
        let (reins, bridle) = Reins::new(at_once, confirmed_at, self.events.clone());
        self.held.insert(lease, reins);
        #[allow(clippy::disallowed_methods, reason = "a JoinSet owns its tasks")]
        self.attempts.spawn(attempt::run(self.shop.clone(), order, left, bridle));
    }

    fn stop(&self, lease: LeaseId, why: Stop) {
        if let Some(reins) = self.held.get(&lease) {
            tracing::info!(%lease, ?why, "stopping an attempt");
            reins.stop.send_replace(Some(why));
        }
    }

    pub(super) fn stop_all(&mut self) {
        if matches!(self.standing, Standing::Stopping(_)) {
            return;
        }
        self.standing = Standing::Stopping(self.now() + self.shop.config.stop_grace() + LAST_REPORTS);
        for reins in self.held.values() {
            reins.stop.send_if_modified(|why| why.is_none().then(|| *why = Some(Stop::Drained)).is_some());
        }
    }

    /// The build is over: its images go, when nothing uses them any more and there is no room for them.
    pub(super) fn forget(&mut self, build: &str) {
        let build: BuildId = match build.parse() {
            Ok(build) => build,
            Err(error) => return tracing::warn!(%error, "the controller named a build that is none"),
        };
        self.forgetting.retain(|_, task| !task.is_finished());
        let (shop, over) = (self.shop.clone(), build.clone());
        let task = task::spawn("forget", async move {
            for _ in 0..FORGET_TRIES {
                match shop.shelf.forget(&build).await {
                    Ok(true) => return shop.disks.stir(),
                    Ok(false) => {}
                    Err(error) => tracing::warn!(%build, %error, "a build's images could not be removed"),
                }
                tokio::time::sleep(FORGET_PAUSE).await;
            }
        });
        self.forgetting.insert(over, AbortOnDropHandle::new(task));
    }
}
