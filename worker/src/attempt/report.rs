//! The attempt's end, told until the controller has it.

use super::{Attempt, Left, unless_abandoned};
use crate::uplink::{UplinkError, finished_upload};
use railyard_common::outcome::{Outcome, OutcomeKind, Reason};
use railyard_proto::v1;
use railyard_service::convert::{ToProto as _, all};
use railyard_service::error_chain;

impl Attempt {
    /// Reports until it is accepted, or the lease turns out to be somebody else's.
    ///
    /// A success that the controller refuses for good becomes a loss: the job must not hang on a report that cannot be
    /// accepted, and the message says why.
    pub(super) async fn report(&self, report: v1::ReportRequest, log_bytes: u64) {
        let report = v1::ReportRequest { log_bytes, ..report };
        let Some(Err(error)) = unless_abandoned(self.stop.clone(), self.shop.uplink.report(&report)).await else {
            return;
        };
        let lease = self.order.lease;
        if matches!(error, UplinkError::Stale) {
            tracing::info!(%lease, "the lease is over; its result is dropped");
            return;
        }
        tracing::warn!(%lease, %error, "a report was refused");
        let message = format!("its result was refused: {}", error_chain(&error));
        let lost = self.message(Outcome::new(OutcomeKind::Lost, Reason::Transfer, message), Left::default());
        let lost = v1::ReportRequest { log_bytes, ..lost };
        if let Some(Err(error)) = unless_abandoned(self.stop.clone(), self.shop.uplink.report(&lost)).await {
            tracing::error!(%lease, %error, "the loss could not be reported either; the lease will expire");
        }
    }

    /// The report, but for the length of the log.
    pub(super) fn message(&self, outcome: Outcome, left: Left) -> v1::ReportRequest {
        let succeeded = outcome.kind == OutcomeKind::Succeeded;
        // Of what did not end well nothing is kept but the log.
        let Left { artifacts, image, uploads } = if succeeded { left } else { Left::default() };
        v1::ReportRequest {
            lease: Some(self.order.lease.to_proto()),
            outcome: Some(outcome.to_proto()),
            artifacts: all(&artifacts),
            image: image.map(|image| image.to_proto()),
            uploads: uploads.into_iter().map(finished_upload).collect(),
            log_bytes: 0,
        }
    }
}
