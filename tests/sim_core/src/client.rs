//! People and their scripts: they submit, change their minds, and repeat what they did not hear the end of.

use crate::config::{Config, Trouble};
use crate::dice::{Dice, Purpose};
use crate::net::{Caller, Refused, Reply, Rpc};
use crate::queue::Ms;
use crate::world::{Happening, World};
use railyard_common::id::{BuildId, JobSelector};
use railyard_core::{BuildState, HoldKind, JobState, Verdict};
use std::collections::VecDeque;
use std::fmt;

/// One who asks for builds, one thing after another.
pub struct Client {
    dice: Dice,
    wishes: VecDeque<Wish>,
    asking: bool,
    asked_retry: bool,
    tries: u32,
}

/// What it wants next.
#[derive(Clone, Debug)]
enum Wish {
    Wait(Ms),
    Submit {
        number: usize,
        name: Option<BuildId>,
        key: Option<String>,
    },
    /// The same once more, though it was answered: a script that ran twice.
    SubmitAgain {
        number: usize,
        name: Option<BuildId>,
        key: Option<String>,
    },
    Cancel(BuildId),
    /// Some of its jobs.
    CancelJobs(BuildId, u64),
    Hold {
        host: usize,
        kind: HoldKind,
        stop_in: Option<Ms>,
        ends_in: Option<Ms>,
    },
    Release {
        host: usize,
    },
    /// Looks after a build until it has ended: approves what waits for that, and if it ended badly, perhaps runs it again: all,
    /// or one step.
    See {
        build: BuildId,
        retries: u32,
        one_step: bool,
    },
}

/// The clients of a world, with everything they will ever want.
pub fn clients(config: &Config) -> Vec<Client> {
    let mut dice = Dice::new(config.seed, Purpose::Clients);
    let new = |n: usize| Client {
        dice: Dice::new(config.seed ^ (n as u64 + 1), Purpose::Clients),
        wishes: VecDeque::new(),
        asking: false,
        asked_retry: false,
        tries: 0,
    };
    let mut clients: Vec<Client> = (0..config.clients).map(new).collect();
    let people = !config.off.contains(&Trouble::People);
    hold(config, &mut dice, &mut clients, people);
    for number in 0..config.builds {
        let client = &mut clients[number % config.clients];
        let name = format!("p{}/v{number}", number % 3).parse().ok();
        let named = dice.chance(600);
        let key = (!named || dice.chance(700)).then(|| format!("key-{number}"));
        client.wishes.push_back(Wish::Wait(dice.within(0, 20_000)));
        let submitted = name.clone().filter(|_| named);
        client.wishes.push_back(Wish::Submit { number, name: submitted.clone(), key: key.clone() });
        let (wants_again, wants_cancel, wants_retry) = (dice.chance(400), dice.chance(400), dice.chance(300));
        let (wait, longer) = (dice.within(10, 30_000), dice.within(100, 40_000));
        if people && wants_again && key.is_some() {
            client.wishes.push_back(Wish::Wait(wait));
            client.wishes.push_back(Wish::SubmitAgain { number, name: submitted, key });
        }
        let Some(name) = name.filter(|_| named) else { continue };
        if people && wants_cancel {
            client.wishes.push_back(Wish::Wait(longer));
            let some = wait.is_multiple_of(2);
            let wish = if some { Wish::CancelJobs(name.clone(), longer) } else { Wish::Cancel(name.clone()) };
            client.wishes.push_back(wish);
        }
        let retries = u32::from(people && wants_retry);
        client.wishes.push_back(Wish::See { build: name, retries, one_step: longer.is_multiple_of(3) });
    }
    clients
}

/// Somebody holds a worker back for a while, in some worlds.
fn hold(config: &Config, dice: &mut Dice, clients: &mut [Client], people: bool) {
    let wants = dice.chance(250);
    let kind = dice.pick(&[HoldKind::Cordon, HoldKind::Drain, HoldKind::Drain, HoldKind::Retire]);
    let (host, before, after) = (dice.any(), dice.within(0, 40_000), dice.within(1_000, 60_000));
    let (stop_in, ends_in) = (dice.within(0, 20_000), dice.within(1_000, 60_000));
    let (stops, ends) = (dice.chance(600), dice.chance(300));
    if wants && people {
        let host = (host % config.workers as u64) as usize;
        let stop_in = Some(stop_in).filter(|_| stops && kind != HoldKind::Cordon);
        let ends_in = Some(ends_in).filter(|_| ends);
        let first = &mut clients[0].wishes;
        first.extend([Wish::Wait(before), Wish::Hold { host, kind, stop_in, ends_in }]);
        first.extend([Wish::Wait(after), Wish::Release { host }]);
    }
}

impl Client {
    /// Whether it wants nothing more.
    pub fn is_done(&self) -> bool {
        self.wishes.is_empty() && !self.asking
    }
}

/// For people: what it still wants.
impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a client wants {:?}", self.wishes.front())
    }
}

impl World {
    /// A client does the next thing.
    pub fn client_goes_on(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.asking {
            return;
        }
        let Some(wish) = client.wishes.front().cloned() else { return };
        let rpc = match wish {
            Wish::Wait(wait) => {
                client.wishes.pop_front();
                let at = self.now + wait;
                return self.queue.put(at, Happening::Client(index));
            }
            Wish::Submit { number, name, key } | Wish::SubmitAgain { number, name, key } => {
                Rpc::Submit { number, name, key }
            }
            Wish::Cancel(build) => Rpc::Cancel { build },
            Wish::CancelJobs(build, which) => match self.some_step(&build, which) {
                Some(jobs) => Rpc::CancelJobs { build, jobs },
                None => return self.next_wish(index),
            },
            Wish::Hold { host, kind, stop_in, ends_in } => Rpc::Hold { host, kind, stop_in, ends_in },
            Wish::Release { host } => Rpc::Release { host },
            Wish::See { build, retries, one_step } => {
                let Some(rpc) = self.see(index, build, retries, one_step) else { return };
                rpc
            }
        };
        self.clients[index].asking = true;
        self.clients[index].asked_retry = matches!(rpc, Rpc::Retry { .. });
        self.call(Caller::Client(index), rpc);
    }

    fn some_step(&self, build: &BuildId, which: u64) -> Option<JobSelector> {
        let jobs = &self.ledger.durable.build(build)?.plan.jobs;
        jobs.get(which as usize % jobs.len())?.name.to_string().parse().ok()
    }

    /// What a build needs next of whoever looks after it; if nothing, later again.
    fn see(&mut self, index: usize, build: BuildId, retries: u32, one_step: bool) -> Option<Rpc> {
        let farm = &self.ledger.durable;
        let known = farm.build(&build);
        let awaits = |id| farm.job(id).is_some_and(|job| matches!(job.state, JobState::AwaitsApproval { .. }));
        match known.map(|build| &build.state) {
            Some(BuildState::Ended { verdict: Verdict::Failed | Verdict::Cancelled, .. }) if retries > 0 => {
                let step = if one_step { self.some_step(&build, self.now) } else { None };
                return Some(Rpc::Retry { build, step });
            }
            // It was never accepted, or it is over.
            None | Some(BuildState::Ended { .. }) => self.next_wish(index),
            Some(_) if known.is_some_and(|build| build.jobs().any(awaits)) => return Some(Rpc::Approve { build }),
            Some(_) => {
                let at = self.now + 4_000;
                self.queue.put(at, Happening::Client(index));
            }
        }
        None
    }

    fn next_wish(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.wishes.pop_front();
        client.tries = 0;
        self.queue.put(self.now, Happening::Client(index));
    }

    /// A client is answered.
    pub fn client_answered(&mut self, index: usize, answer: Result<Reply, Refused>) {
        let client = &mut self.clients[index];
        client.asking = false;
        let Some(wish) = client.wishes.front().cloned() else { return };
        let now = self.now;
        self.trace.say(now, || format!("client {index}: {wish:?}: {answer:?}"));
        if answer == Err(Refused::Passing) {
            let client = &mut self.clients[index];
            client.tries += 1;
            let wait = 200 * u64::from(client.tries.min(20)) + client.dice.within(0, 300);
            let at = self.now + wait;
            return self.queue.put(at, Happening::Client(index));
        }
        match (wish, answer) {
            (Wish::Submit { key, name, .. }, Ok(Reply::Build(build))) => self.check_submitted(key, name, build),
            (Wish::SubmitAgain { key, name, .. }, Ok(Reply::Build(build))) => self.check_submitted(key, name, build),
            (
                Wish::Submit { key, name: Some(name), .. } | Wish::SubmitAgain { key, name: Some(name), .. },
                Err(refused),
            ) if key.is_some() || self.ledger.durable.build(&name).is_none() => {
                // Without a key, what was lost is only the answer. With one, it is to be given again.
                self.breaks("same-key-same-build", format!("a submit of {name} ({key:?}) was refused: {refused:?}"));
            }
            (Wish::Cancel(build), Ok(_)) => self.check_cancel_acked(&build),
            (Wish::See { .. }, _) => {
                // Approved, or begun again, which is done once: it goes on to look.
                let client = &mut self.clients[index];
                if let Some(Wish::See { retries, .. }) = client.wishes.front_mut()
                    && client.asked_retry
                {
                    *retries = 0;
                }
                self.clients[index].tries = 0;
                return self.queue.put(now + 1_000, Happening::Client(index));
            }
            _ => {}
        }
        self.next_wish(index);
    }
}
