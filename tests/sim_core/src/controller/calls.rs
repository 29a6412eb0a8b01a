//! What the services do with calls: look, check, ask the farm, answer.

use super::{Ctl, Waiter};
use crate::net::{CallId, Refused, Reply, ReportCall, Rpc};
use crate::pipelines::{self, AUTO};
use crate::world::World;
use railyard_common::id::{BuildId, LeaseId};
use railyard_common::outcome::OutcomeKind;
use railyard_common::planted::{self, Bug};
use railyard_common::priority::Priority;
use railyard_core::{Act, Command, Event, Hold, Input, Refusal, Report, Submission, Ticket, Trace};

impl World {
    /// A call has arrived.
    pub fn controller_takes(&mut self, call: CallId, rpc: Rpc) {
        let now = self.now;
        self.trace.say(now, || format!("controller < call {call}: {}", brief(&rpc)));
        match rpc {
            Rpc::Report { host, report } => {
                self.ask(Waiter::LookReport { call, host, report }, |ticket| Input::Read { ticket });
            }
            Rpc::PrepareUpload { host, lease, blobs } => {
                self.ask(Waiter::LookUpload { call, host, lease, blobs }, |ticket| Input::Read { ticket });
            }
            Rpc::PrepareDownload { host, lease } => {
                self.ask(Waiter::LookDownload { call, host, lease }, |ticket| Input::Read { ticket });
            }
            Rpc::Submit { number, name: Some(name), key } => self.submit(call, number, name, true, key),
            Rpc::Submit { number, name: None, key } => {
                self.ask(Waiter::FreeName { call, number, key }, |ticket| Input::Read { ticket });
            }
            Rpc::Cancel { build } => {
                let command = Command::Cancel { build, by: "olga".to_owned(), reason: "not wanted".to_owned() };
                self.ask(Waiter::Done(call), |ticket| Input::Command { ticket, command });
            }
            Rpc::CancelJobs { build, jobs } => {
                let command =
                    Command::CancelJobs { build, jobs, by: "olga".to_owned(), reason: "not wanted".to_owned() };
                self.ask(Waiter::Done(call), |ticket| Input::Command { ticket, command });
            }
            Rpc::Approve { build } => {
                let command = Command::Approve { build, jobs: None, by: "olga".to_owned() };
                self.ask(Waiter::Done(call), |ticket| Input::Command { ticket, command });
            }
            Rpc::Hold { host, kind, stop_in, ends_in } => {
                let (worker, wall) = (self.hosts[host].name.clone(), self.controller.wall(now));
                let (until, stop_at) = (ends_in.map(|wait| wall.plus(wait)), stop_in.map(|wait| wall.plus(wait)));
                let hold = Hold { kind, by: "olga".to_owned(), why: String::new(), until, stop_at };
                self.ask(Waiter::Done(call), |ticket| Input::Command {
                    ticket,
                    command: Command::Hold { worker, hold },
                });
            }
            Rpc::Release { host } => {
                let (worker, by) = (self.hosts[host].name.clone(), "olga".to_owned());
                let command = Command::Release { worker, by };
                self.ask(Waiter::Done(call), |ticket| Input::Command { ticket, command });
            }
            Rpc::Retry { build, step } => {
                let command = Command::Retry { build, step };
                self.ask(Waiter::Done(call), |ticket| Input::Command { ticket, command });
            }
        }
        self.pump();
    }

    fn submit(&mut self, call: CallId, number: usize, name: BuildId, named: bool, key: Option<String>) {
        let plan = pipelines::plan(&self.config, number, name.clone());
        let priority = Priority::ALL[number % Priority::ALL.len()];
        let (by, request) = ("olga".to_owned(), format!("request {number}"));
        let submission = Submission { plan, key: key.clone(), request, priority, by, trace: Trace::default() };
        let waiter = Waiter::Submit { call, number, key, name, named };
        let command = Command::Submit(Box::new(submission));
        self.ask(waiter, |ticket| Input::Command { ticket, command });
    }

    /// A command is decided, and that is durable.
    pub(super) fn decided(&mut self, ticket: Ticket, result: Result<Vec<Event>, Refusal>) {
        let Some(waiter) = self.process_mut().and_then(|process| process.waiting.remove(&ticket)) else { return };
        if let Ok(events) = &result {
            self.check_told(events);
        }
        match (waiter, result) {
            (Waiter::Done(call), result) => {
                let answer = result.map(|_| Reply::Done).map_err(|refusal| Waiter::refused(&refusal));
                self.answer(call, answer);
            }
            (Waiter::Reported { call }, result) => {
                let answer = result.map(|_| Reply::Done).map_err(|refusal| Waiter::refused(&refusal));
                self.answer(call, answer);
            }
            (Waiter::Submit { call, number, key, named: false, .. }, Err(Refusal::BuildExists(_))) => {
                // Another submit was given the same free version a moment ago.
                self.ask(Waiter::FreeName { call, number, key }, |ticket| Input::Read { ticket });
            }
            (Waiter::Submit { call, .. }, Err(refusal)) => self.answer(call, Err(Waiter::refused(&refusal))),
            (Waiter::Submit { call, key, name, .. }, Ok(events)) => match key {
                Some(key) if events.is_empty() => {
                    self.ask(Waiter::FindBuild { call, key }, |ticket| Input::Read { ticket });
                }
                _ => self.answer(call, Ok(Reply::Build(name))),
            },
            (Waiter::Finalized(build), Ok(_)) => self.finalized(build),
            (Waiter::Finalized(build), Err(_)) => self.finalized(build),
            _ => {}
        }
    }

    /// Somebody may look at the state.
    pub(super) fn may_read(&mut self, ticket: Ticket) {
        let Some(waiter) = self.process_mut().and_then(|process| process.waiting.remove(&ticket)) else { return };
        match waiter {
            Waiter::LookReport { call, host, report } => self.look_report(call, host, report),
            Waiter::LookUpload { call, host, lease, blobs } => {
                if let Err(refused) = self.allow(Act::Upload, lease, host) {
                    return self.answer(call, Err(refused));
                }
                if self.store_refuses() {
                    return self.answer(call, Err(Refused::Passing));
                }
                self.check_grant(lease, host);
                let tickets = blobs.iter().map(|blob| self.store.begin(blob)).collect();
                self.answer(call, Ok(Reply::Tickets(tickets)));
            }
            Waiter::LookDownload { call, host, lease } => {
                let answer = self.allow(Act::Download, lease, host).map(|()| Reply::Done);
                self.answer(call, answer);
            }
            Waiter::FindBuild { call, key } => {
                let found = self.process_mut().and_then(|process| process.core.farm().by_key(&key).cloned());
                let answer = found.map(Reply::Build).ok_or(Refused::Final("no build under the key".to_owned()));
                self.answer(call, answer);
            }
            Waiter::FreeName { call, number, key } => {
                let Some(process) = self.process_mut() else { return };
                let mut names = (0..1_000).filter_map(|n| format!("{AUTO}/n{n}").parse::<BuildId>().ok());
                let Some(name) = names.find(|name| process.core.farm().build(name).is_none()) else { return };
                self.submit(call, number, name, false, key);
            }
            Waiter::LookLog { conn, second } => self.look_log(conn, second),
            Waiter::LookFinalizing => self.look_finalizing(),
            _ => {}
        }
    }

    pub(super) fn allow(&mut self, act: Act, lease: LeaseId, host: usize) -> Result<(), Refused> {
        let name = self.hosts[host].name.clone();
        let Some(process) = self.process_mut() else { return Err(Refused::Passing) };
        process.core.farm().allow(act, lease, &name).map_err(|refusal| Waiter::refused(&refusal))
    }

    /// Whether the store refuses just now.
    pub fn store_refuses(&mut self) -> bool {
        self.store.down_until > self.now || (self.chaos() && self.disks.chance(self.rates.store))
    }

    /// How long the store takes.
    pub fn store_takes(&mut self) -> u64 {
        if self.store.slow_until > self.now { self.disks.within(500, 15_000) } else { self.disks.within(2, 60) }
    }

    fn look_report(&mut self, call: CallId, host: usize, report: Box<ReportCall>) {
        let name = self.hosts[host].name.clone();
        let Some(process) = self.process_mut() else { return };
        let holds = process.core.farm().holder(report.lease) == Some(&name);
        if holds && report.outcome.kind == OutcomeKind::Succeeded && !planted::is(Bug::UploadUnchecked) {
            let wait = self.store_takes();
            return self.after(wait, Ctl::Settle(call, host, report));
        }
        self.decide_report(call, host, *report);
    }

    /// What the report says is there must be there.
    pub(super) fn settle_report(&mut self, call: CallId, host: usize, report: Box<ReportCall>) {
        if self.store_refuses() {
            return self.answer(call, Err(Refused::Passing));
        }
        for (upload, blob) in &report.uploads {
            if !self.store.complete(*upload, blob) {
                return self.answer(call, Err(Refused::Final(format!("upload {upload} is not complete"))));
            }
        }
        let images = report.image.iter().flat_map(|image| std::iter::once(&image.config).chain(&image.layers));
        for blob in report.artifacts.iter().map(|artifact| &artifact.blob).chain(images) {
            if !self.store.has(&blob.digest) {
                return self.answer(call, Err(Refused::Final(format!("{} is not in the cache", blob.digest))));
            }
        }
        self.decide_report(call, host, *report);
    }

    fn decide_report(&mut self, call: CallId, host: usize, report: ReportCall) {
        let ReportCall { lease, outcome, artifacts, image, log_bytes, .. } = report;
        let worker = self.hosts[host].name.clone();
        let report = Report { lease, worker, outcome, artifacts, image, log_bytes };
        let command = Command::Report(Box::new(report));
        self.ask(Waiter::Reported { call }, |ticket| Input::Command { ticket, command });
    }
}

fn brief(rpc: &Rpc) -> String {
    match rpc {
        Rpc::Report { host, report } => format!("w{host} reports {} {}", report.lease, report.outcome.kind),
        Rpc::PrepareUpload { host, lease, blobs } => format!("w{host} {lease} would send {} blobs", blobs.len()),
        Rpc::PrepareDownload { host, lease } => format!("w{host} {lease} would fetch"),
        other => format!("{other:?}"),
    }
}
