//! Where a script is played: the farm, the plans and offers that the script has named, and the transcript.

use crate::common::{Ledger, image};
use crate::script::line::{Line, ReportLine, SubmitOptions};
use crate::script::tell::{self, Changes};
use railyard_common::digest::Digest;
use railyard_common::id::{BuildId, LeaseId, WorkerName};
use railyard_common::plan::Plan;
use railyard_common::retention::Pin;
use railyard_core::{Command, Event, Farm, Hold, Report, Submission, Trace, WorkerOffer};
use std::collections::BTreeMap;

/// A farm and what the script has said about it.
#[derive(Default)]
pub struct Stage {
    ledger: Ledger,
    plans: BTreeMap<BuildId, Plan>,
    offers: BTreeMap<WorkerName, WorkerOffer>,
    changes: Changes,
    /// What blobs are called.
    blobs: BTreeMap<Digest, String>,
    transcript: String,
}

impl Stage {
    /// Adds a line to the transcript.
    pub fn say(&mut self, line: &str) {
        self.transcript.push_str(line);
        self.transcript.push('\n');
    }

    /// Plays one line.
    pub fn run(&mut self, line: Line) -> Result<(), String> {
        match line {
            Line::Plan(plan) => {
                self.plans.insert(plan.build.clone(), plan);
            }
            Line::Worker(offer) => {
                self.offers.insert(offer.name.clone(), offer);
            }
            Line::Heartbeat(worker) => self.heartbeat(&worker),
            Line::Advance(span) => self.advance(span),
            Line::Restart(from) => {
                let (ledger, mut tale) = (&mut self.ledger, Tale::new(&mut self.changes));
                ledger.restart(from, |event, farm| tale.hear(event, farm));
                let told = tale.told;
                self.transcript.push_str(&told);
            }
            Line::Report(report) => self.report(*report)?,
            Line::Why(build) => self.transcript.push_str(&tell::why(self.ledger.farm(), &build, self.ledger.now())),
            Line::Order(lease) => self.transcript.push_str(&tell::order(self.ledger.farm(), lease)),
            Line::Show => self.transcript.push_str(&tell::show(self.ledger.farm(), self.ledger.now())),
            Line::Submit { build, options } => {
                let submission = self.submission(&build, options)?;
                self.command(&Command::Submit(Box::new(submission)));
            }
            Line::Hello { worker, boot, held } => {
                let offer = self.offers.get_mut(&worker).ok_or(format!("say first what worker {worker} offers"))?;
                offer.boot = boot.unwrap_or_else(|| offer.boot.clone());
                let offer = Box::new(offer.clone());
                self.command(&Command::Hello { offer, held });
            }
            Line::Goodbye(worker) => self.command(&Command::Goodbye { worker }),
            Line::Drain(worker) => self.command(&Command::Drain { worker }),
            Line::Pin { build, name, pin, whose, span } => {
                let now = self.ledger.now();
                let pin = Pin { at: now, until: span.map(|span| now.plus(span)), ..pin };
                self.command(&Command::Pin { build, name, pin, whose });
            }
            Line::MustStay(grace) => {
                let (farm, now) = (self.ledger.farm(), self.ledger.now());
                self.transcript.push_str(&tell::must_stay(farm, now, grace, &self.blobs));
            }
            Line::Claim { worker, lease, blobs } => {
                let digests = blobs.iter().map(|bytes| Digest::of(bytes.as_bytes()));
                self.blobs.extend(digests.clone().zip(blobs.iter().cloned()));
                self.command(&Command::Claim { lease, worker, blobs: digests.collect() });
            }
            Line::Command(command) => self.command(&command),
            Line::Place => self.command(&Command::Place),
            Line::Expire(lease) => self.command(&Command::Expire { lease }),
            Line::Cancel { build, reason } => self.command(&Command::Cancel { build, by: "ada".to_owned(), reason }),
            Line::CancelJobs { build, jobs, reason } => {
                self.command(&Command::CancelJobs { build, jobs, by: "ada".to_owned(), reason });
            }
            Line::Approve { build, jobs } => self.command(&Command::Approve { build, jobs, by: "ada".to_owned() }),
            Line::Hold { worker, kind, until, stop, why } => {
                let at = |span: Option<u64>| span.map(|span| self.ledger.now().plus(span));
                let hold = Hold { kind, by: "olga".to_owned(), why, until: at(until), stop_at: at(stop) };
                self.command(&Command::Hold { worker, hold });
            }
            Line::Release(worker) => self.command(&Command::Release { worker, by: "olga".to_owned() }),
            Line::Uploading(lease) => self.command(&Command::Uploading { lease }),
            Line::Measured { worker, disk_bytes } => self.ledger.note_free_disk(&worker, disk_bytes),
            Line::Pressure { worker, pressure } => self.ledger.note_pressure(&worker, pressure),
            Line::Tick => self.command(&Command::Tick),
            Line::Retry { build, step } => self.command(&Command::Retry { build, step }),
            Line::Finalized { build, error } => self.command(&Command::Finalized { build, error }),
        }
        self.ledger.verify();
        Ok(())
    }

    /// The transcript.
    pub fn finish(self) -> String {
        self.transcript
    }

    fn command(&mut self, command: &Command) {
        let mut tale = Tale::new(&mut self.changes);
        let decided = self.ledger.run(command, |event, farm| tale.hear(event, farm));
        let told = match decided {
            Ok(events) if events.is_empty() => "  nothing to do\n".to_owned(),
            Ok(_) => tale.told,
            Err(refusal) => format!("  refused ({}): {refusal}\n", refusal.reason()),
        };
        self.transcript.push_str(&told);
    }

    fn advance(&mut self, span: u64) {
        let mut tale = Tale::new(&mut self.changes);
        self.ledger.advance(span, |event, farm| tale.hear(event, farm));
        let told = tale.told;
        self.transcript.push_str(&told);
        let clock = tell::clock(self.ledger.now());
        self.say(&format!("  it is {clock}"));
    }

    fn heartbeat(&mut self, worker: &WorkerName) {
        let held: Vec<LeaseId> =
            self.ledger.farm().worker(worker).map(|worker| worker.leases.iter().copied().collect()).unwrap_or_default();
        for lease in held {
            let word = if self.ledger.renew(lease) { "lives on" } else { "is gone" };
            self.say(&format!("  {lease} {word}"));
        }
    }

    fn submission(&self, build: &BuildId, options: SubmitOptions) -> Result<Submission, String> {
        let plan = self.plans.get(build).ok_or(format!("say first what the plan of {build} is"))?;
        let SubmitOptions { key, priority, request } = options;
        Ok(Submission { plan: plan.clone(), key, request, priority, by: "ada".to_owned(), trace: Trace::default() })
    }

    fn report(&mut self, line: ReportLine) -> Result<(), String> {
        for lease in line.leases {
            let worker = match &line.by {
                Some(worker) => worker.clone(),
                None => given_to(self.ledger.farm(), lease).ok_or(format!("{lease} was given to nobody; say by=W"))?,
            };
            let image = line.image.then(|| image(&lease.to_string()));
            let (outcome, artifacts) = (line.outcome.clone(), line.artifacts.clone());
            self.blobs.extend(artifacts.iter().map(|one| (one.blob.digest, one.path.to_string())));
            if let Some(image) = &image {
                self.blobs.insert(image.config.digest, format!("image-of-{lease}"));
                self.blobs.extend(image.layers.iter().map(|layer| (layer.digest, "layer".to_owned())));
            }
            let report = Report { lease, worker, outcome, artifacts, image, log_bytes: 0 };
            self.command(&Command::Report(Box::new(report)));
        }
        Ok(())
    }
}

/// Collects the lines of one command.
struct Tale<'a> {
    changes: &'a mut Changes,
    told: String,
}

impl<'a> Tale<'a> {
    fn new(changes: &'a mut Changes) -> Self {
        Self { changes, told: String::new() }
    }

    fn hear(&mut self, event: &Event, farm: &Farm) {
        self.told.push_str(&tell::event(event, farm));
        self.told.push_str(&self.changes.since_last(farm));
    }
}

fn given_to(farm: &Farm, lease: LeaseId) -> Option<WorkerName> {
    let attempts = &farm.job(lease.job)?.attempts;
    attempts.iter().find(|attempt| attempt.number == lease.attempt).map(|attempt| attempt.worker.clone())
}
