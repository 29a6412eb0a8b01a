//! Commands in, events out, nothing changed.

mod attempt;
mod build;
mod keep;
pub(crate) mod promote;
mod worker;

use crate::command::Command;
use crate::event::Event;
use crate::farm::Farm;
use crate::refusal::Refusal;
use railyard_common::time::Millis;

impl Farm {
    /// What `command` comes to at `now`. An empty list means that it is done already, for instance a repeated submit or report.
    ///
    /// # Errors
    /// A [`Refusal`] if it cannot be carried out.
    pub fn decide(&self, now: Millis, command: &Command) -> Result<Vec<Event>, Refusal> {
        match command {
            Command::Submit(submission) => self.decide_submit(now, submission),
            Command::Cancel { build, by, reason } => self.decide_cancel(now, build, by, reason),
            Command::CancelJobs { build, jobs, by, reason } => self.decide_cancel_jobs(now, build, jobs, by, reason),
            Command::Approve { build, jobs, by } => self.decide_approve(now, build, jobs.as_ref(), by),
            Command::Retry { build, step } => self.decide_retry(now, build, step.as_ref()),
            Command::Hello { offer, held } => self.decide_hello(now, offer, held),
            Command::Goodbye { worker } => Ok(self.decide_goodbye(now, worker)),
            Command::Drain { worker } => Ok(self.decide_drain(now, worker)),
            Command::Hold { worker, hold } => self.decide_hold(now, worker, hold),
            Command::Release { worker, by } => self.decide_release(now, worker, by),
            Command::Uploading { lease } => Ok(self.decide_uploading(now, *lease)),
            Command::Report(report) => self.decide_report(now, report),
            Command::Expire { lease } => Ok(self.decide_expire(now, *lease)),
            Command::Place => Ok(self.decide_place(now)),
            Command::Finalized { build, error } => self.decide_finalized(now, build, error.as_deref()),
            Command::Tick => Ok(self.decide_tick(now)),
            Command::MakeToken(token) => self.decide_make_token(token),
            Command::UseToken { id, hash, key } => self.decide_use_token(now, *id, *hash, *key),
            Command::DropToken { id, by } => self.decide_drop_token(now, *id, by),
            Command::Revoke { identity, by, why } => Ok(self.decide_revoke(now, identity, by, why)),
            Command::Pin { build, name, pin, whose } => self.decide_pin(now, build, name, pin, *whose),
            Command::Unpin { build, name, by, whose } => self.decide_unpin(now, build, name.as_ref(), by, *whose),
            Command::Tag { build, tag, by } => self.decide_tag(now, build, tag, by),
            Command::Untag { pipeline, tag, by } => self.decide_untag(now, pipeline, tag, by),
            Command::Promote { build, channel, paths, fresh, by } => {
                self.decide_promote(now, promote::Wanted { build, channel, paths, fresh, by })
            }
            Command::EndPromotion { build, error } => Ok(self.decide_end_promotion(now, build, error.as_deref())),
            Command::ForgetPromotion { build } => Ok(self.decide_forget_promotion(now, build)),
            Command::Reduce { builds, by, force } => self.decide_reduce(now, builds, by, force),
            Command::Swept { builds } => Ok(self.decide_swept(now, builds)),
            Command::Claim { lease, worker, blobs } => self.decide_claim(now, *lease, worker, blobs),
            Command::ResumeSweep { by } => Ok(self.decide_resume_sweep(now, by)),
            Command::Started => Ok(vec![Event::ControllerStarted { at: now }]),
        }
    }
}
