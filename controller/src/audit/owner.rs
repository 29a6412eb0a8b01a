//! The one owner of the files: takes what waits, writes it at once, and only then tells those who wait.

use super::flood::Flood;
use super::log::{Found, Log};
use super::record::{self, Head};
use super::{Act, AuditError, Entry, Outcome};
use railyard_common::backoff::Backoff;
use railyard_common::time::Millis;
use railyard_service::clock::Clock;
use railyard_service::{error_chain, task};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Entries that share one sync.
const BATCH_MAX: usize = 1_024;
/// Records of things done that are kept while they cannot be written. Nothing new is begun meanwhile, so these are those of what
/// was under way: far fewer.
const KEPT_MAX: usize = 65_536;
/// Waits between tries after a failed write: room may be made at any moment, and a try costs little.
const RETRY: Backoff = Backoff { base_millis: 250, max_millis: 4_000 };
/// The head is told this often if it has changed: in the process's log, and so wherever that is sent.
const TELL_HEAD_EVERY: Duration = Duration::from_secs(600);

/// What the owner is asked.
pub(super) enum Request {
    Record { entry: Entry, reply: Option<Reply> },
    Close { last: Entry, reply: Reply },
}

type Reply = oneshot::Sender<Result<(), AuditError>>;

/// The files, and those who wait.
pub(super) struct Owner {
    /// `None` only while the disk has it.
    log: Option<Log>,
    clock: Arc<dyn Clock>,
    requests: mpsc::Receiver<Request>,
    stuck: watch::Sender<Option<String>>,
    head: watch::Sender<Head>,
    /// To be written, oldest first, each with the time at which it was told.
    kept: Vec<(Millis, Entry)>,
    /// Who waits for that.
    replies: Vec<Reply>,
    /// Who waits for the files to be closed.
    closing: Option<Reply>,
    flood: Flood,
    trouble: Option<Trouble>,
    told: Told,
}

/// The disk refuses.
struct Trouble {
    why: String,
    tries: u32,
    /// Monotonic.
    retry_at: Duration,
    /// Everything is written; only there is no room to come.
    only_room: bool,
}

/// The head that was told last, and when; monotonic.
struct Told {
    head: Head,
    at: Duration,
}

impl Owner {
    pub(super) fn new(
        log: Log,
        found: Found,
        clock: Arc<dyn Clock>,
        requests: mpsc::Receiver<Request>,
        stuck: watch::Sender<Option<String>>,
        head: watch::Sender<Head>,
    ) -> Self {
        let told = Told { head: log.head(), at: clock.monotonic() };
        tracing::info!(head = %log.head(), "the audit goes on from here");
        let kept = first_entry(found).map(|entry| (clock.now(), entry)).into_iter().collect();
        let (replies, flood) = (Vec::new(), Flood::default());
        Self { log: Some(log), clock, requests, stuck, head, kept, replies, closing: None, flood, trouble: None, told }
    }

    /// Runs until it is closed, or nobody has a handle any more.
    pub(super) async fn run(mut self) {
        let mut written = self.settle().await;
        let (mut waiting, mut is_closing) = (Vec::new(), false);
        while !is_closing {
            let wake = self.next_wake();
            tokio::select! {
                biased;
                taken = self.requests.recv_many(&mut waiting, BATCH_MAX) => is_closing = taken == 0,
                () = tokio::time::sleep(wake) => {}
            }
            for request in waiting.drain(..) {
                is_closing |= self.take(request);
            }
            if self.flood.ends_at().is_some_and(|at| at <= self.clock.monotonic()) {
                self.end_flood();
            }
            if is_closing && let Some(trouble) = &mut self.trouble {
                // The last chance.
                trouble.retry_at = Duration::ZERO;
            }
            written = self.settle().await;
            self.tell_head(TELL_HEAD_EVERY);
        }
        self.tell_head(Duration::ZERO);
        let closed = self.log.take().map(|log| task::blocking(move || log.close()));
        if let Some(closed) = closed
            && let Err(error) = closed.await
        {
            tracing::error!(error = error_chain(&error), "the audit's files could not be closed");
        }
        // Only now: closing gives back what was held of the file, and whoever opens it next may have written there.
        if let Some(reply) = self.closing.take() {
            // Who asked may be gone.
            let _ = reply.send(written);
        }
    }

    /// `true` if it is the last request.
    fn take(&mut self, request: Request) -> bool {
        match request {
            Request::Record { entry, reply } => {
                if self.is_wanted(&entry) {
                    self.kept.push((self.clock.now(), entry));
                }
                self.replies.extend(reply);
                false
            }
            Request::Close { last, reply } => {
                self.requests.close();
                self.end_flood();
                self.kept.push((self.clock.now(), last));
                self.closing = Some(reply);
                true
            }
        }
    }

    /// What is done is always written. Of the rest only so much, and nothing while the disk refuses: it is counted.
    fn is_wanted(&mut self, entry: &Entry) -> bool {
        if entry.outcome == Outcome::Done {
            if self.kept.len() >= KEPT_MAX {
                tracing::error!(?entry, "a record is lost: the audit cannot be written, and too many wait already");
            }
            return self.kept.len() < KEPT_MAX;
        }
        self.flood.admits(entry, self.clock.monotonic(), self.trouble.is_none())
    }

    fn end_flood(&mut self) {
        let now = self.clock.now();
        self.kept.extend(self.flood.end().into_iter().map(|entry| (now, entry)));
    }

    fn next_wake(&self) -> Duration {
        let told = (self.told.head != *self.head.borrow()).then_some(self.told.at + TELL_HEAD_EVERY);
        let retry = self.trouble.as_ref().map(|trouble| trouble.retry_at);
        let soonest = [told, retry, self.flood.ends_at()].into_iter().flatten().min();
        // Without any of them only a request wakes it.
        soonest.map_or(TELL_HEAD_EVERY, |at| at.saturating_sub(self.clock.monotonic()))
    }

    /// Writes what is kept, and answers. Gives what came of it.
    async fn settle(&mut self) -> Result<(), AuditError> {
        let now = self.clock.monotonic();
        let may_write = match &self.trouble {
            None => !self.kept.is_empty(),
            Some(trouble) => now >= trouble.retry_at || (trouble.only_room && !self.kept.is_empty()),
        };
        let mut written = Ok(());
        if may_write {
            written = self.write().await;
        } else if let Some(trouble) = self.trouble.as_ref().filter(|trouble| !trouble.only_room) {
            written = Err(AuditError::Unwritable { why: trouble.why.clone() });
        }
        for reply in self.replies.drain(..) {
            // Who asked may be gone.
            let _ = reply.send(written.clone());
        }
        written
    }

    async fn write(&mut self) -> Result<(), AuditError> {
        let (Some(mut log), kept) = (self.log.take(), std::mem::take(&mut self.kept)) else {
            return Err(AuditError::Stopping);
        };
        let write = move || {
            let written = append(&mut log, &kept).map(|()| log.reserve().err());
            (log, kept, written)
        };
        let (log, kept, written) = task::blocking(write).await;
        self.head.send_replace(log.head());
        self.log = Some(log);
        match written {
            Ok(None) => {
                if self.trouble.take().is_some() {
                    tracing::info!("the audit can be written again");
                    self.stuck.send_replace(None);
                }
                Ok(())
            }
            Ok(Some(no_room)) => {
                self.note_trouble(&no_room, true);
                Ok(())
            }
            Err(error) => {
                self.kept = kept;
                let why = self.note_trouble(&error, false);
                Err(AuditError::Unwritable { why })
            }
        }
    }

    fn note_trouble(&mut self, error: &AuditError, only_room: bool) -> String {
        let why = error_chain(error);
        let tries = self.trouble.as_ref().map_or(0, |trouble| trouble.tries) + 1;
        if tries == 1 {
            tracing::error!(%why, "the audit cannot be written: nothing that is to be recorded is taken on");
        }
        let retry_at = self.clock.monotonic() + Duration::from_millis(RETRY.delay_millis(tries));
        self.trouble = Some(Trouble { why: why.clone(), tries, retry_at, only_room });
        self.stuck.send_replace(Some(why.clone()));
        why
    }

    /// Says what the last record is, so that it is known elsewhere too, if that was not said for so long.
    fn tell_head(&mut self, every: Duration) {
        let (head, now) = (*self.head.borrow(), self.clock.monotonic());
        if head != self.told.head && now.saturating_sub(self.told.at) >= every {
            tracing::info!(%head, "the audit has come this far");
            self.told = Told { head, at: now };
        }
    }
}

fn append(log: &mut Log, kept: &[(Millis, Entry)]) -> Result<(), AuditError> {
    if kept.is_empty() {
        return Ok(());
    }
    let (mut lines, mut head) = (Vec::new(), log.head());
    for (at, entry) in kept {
        head = record::seal(entry, *at, head, &mut lines);
    }
    log.append(&lines, head)
}

/// What the log's own first record says, if there is something to say.
pub(super) fn first_entry(found: Found) -> Option<Entry> {
    let torn = Some(found.torn_bytes).filter(|&bytes| bytes > 0);
    if let Some(why) = &found.broken {
        tracing::error!(
            %why,
            "THE AUDIT IS DAMAGED: somebody changed its files, or the disk did; it goes on in a new file. \
             `railyard audit verify` tells more"
        );
    }
    let entry = match (&found.broken, torn) {
        (Some(why), _) => Entry::new(Act::Break).failed(why),
        (None, Some(_)) => Entry::new(Act::Repair).detail("what", "a line that a crash had torn was cut off"),
        (None, None) => return None,
    };
    Some(match torn {
        Some(bytes) => entry.detail("cut_bytes", bytes.to_string()),
        None => entry,
    })
}
