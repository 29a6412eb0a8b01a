//! Calls that are recorded, and those that look at the records.

use super::bad_request;
use crate::audit::{Act, Audit, AuditError, By, Entry, Filter, Follower, Head, Recorded, Shown, Wanted};
use futures_util::Stream;
use railyard_proto::v1;
use railyard_service::convert::{self, TEXT_MAX_BYTES};
use railyard_service::listener::Peer;
use railyard_service::{error_chain, rpc_error, task};
use std::collections::VecDeque;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Status};

/// Records that a look gives if it is not told how many.
const LOOK_DEFAULT: usize = 100;
/// Most records of one look.
const LOOK_MAX: usize = 10_000;
/// Records on their way to one reader.
const OUTBOUND_LEN: usize = 64;

pub(super) type Outbound<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A call that is to be recorded, whoever made it and however it ends.
pub(super) struct Asked {
    audit: Audit,
    entry: Entry,
    recorded: Recorded,
    is_urgent: bool,
}

impl Asked {
    pub(super) fn new<T>(audit: &Audit, request: &Request<T>, act: Act) -> Self {
        let entry = Entry::new(act);
        let entry = match request.extensions().get::<Peer>() {
            Some(peer) => entry.peer(peer),
            None => entry.by(By::Nobody),
        };
        let recorded = request.extensions().get::<Recorded>().cloned().unwrap_or_default();
        Self { audit: audit.clone(), entry, recorded, is_urgent: false }
    }

    pub(super) fn target(self, target: &str) -> Self {
        Self { entry: self.entry.target(target), ..self }
    }

    /// Said only if there is something to say.
    pub(super) fn detail(self, name: &'static str, value: &str) -> Self {
        if value.is_empty() { self } else { Self { entry: self.entry.detail(name, value), ..self } }
    }

    /// It takes somebody's access away, or only looks: that must not wait for a disk. The record is kept meanwhile, and follows.
    pub(super) fn urgent(self) -> Self {
        Self { is_urgent: true, ..self }
    }

    /// Does it, if it can be recorded or is urgent, and records what came of it; `tell` adds what only the answer says. It goes on to its
    /// record even if the caller does not wait for that: nobody acts unseen by hanging up.
    ///
    /// # Errors
    /// Those of `act`; UNAVAILABLE if the record cannot be written and it is not urgent. It may be done then, and its record
    /// follows.
    pub(super) async fn carry_out<T: Send + 'static>(
        self,
        act: impl Future<Output = Result<T, Status>> + Send + 'static,
        tell: impl FnOnce(Entry, &T) -> Entry + Send + 'static,
    ) -> Result<T, Status> {
        let Self { audit, entry, recorded, is_urgent } = self;
        if !is_urgent {
            audit.ready().map_err(|error| audit_status(&error))?;
        }
        let calls = audit.clone();
        let whole = async move {
            match act.await {
                Ok(done) => {
                    let entry = tell(entry, &done);
                    match audit.record(entry).await {
                        Err(AuditError::Unwritable { .. }) if is_urgent => {}
                        written => written.map_err(|error| audit_status(&error))?,
                    }
                    Ok(done)
                }
                Err(status) => {
                    if !recorded.is_marked() {
                        audit.note(not_done(entry, &status));
                        recorded.mark();
                    }
                    Err(status)
                }
            }
        };
        match task::spawn("recorded call", calls.under_way(whole)).await {
            Ok(ended) => ended,
            Err(error) => Err(rpc_error::refusal(Code::Internal, rpc_error::INTERNAL, error_chain(&error))),
        }
    }
}

/// What was refused or failed.
fn not_done(entry: Entry, status: &Status) -> Entry {
    use Code::{Cancelled, DataLoss, DeadlineExceeded, Internal, Unavailable, Unknown};
    match status.code() {
        _ if rpc_error::reason_of(status).as_deref() == Some(rpc_error::STANDSTILL) => entry.refused(status.message()),
        // Of these nobody can say what became of the call.
        Cancelled | DataLoss | DeadlineExceeded | Internal | Unavailable | Unknown => entry.failed(status.message()),
        _ => entry.refused(status.message()),
    }
}

/// The audit does not work, for the one who asked.
fn audit_status(error: &AuditError) -> Status {
    let reason = match error {
        AuditError::Stopping => rpc_error::STOPPING,
        AuditError::Io { .. } | AuditError::Unwritable { .. } => rpc_error::BUSY,
    };
    rpc_error::refusal(Code::Unavailable, reason, error_chain(error))
}

/// Checks the chain.
pub(super) async fn verify(audit: &Audit, request: v1::VerifyAuditRequest) -> Result<v1::VerifyAuditResponse, Status> {
    let expect: Option<Head> = convert::parsed_if_given("expect", &request.expect)?;
    let from: Option<Head> = convert::parsed_if_given("from", &request.from)?;
    let verified = audit.verify(Wanted { expect, from }).await;
    let verified = verified.map_err(|error| audit_status(&error))?;
    let faults = verified.faults.into_iter();
    Ok(v1::VerifyAuditResponse {
        records: verified.records,
        segments: verified.segments,
        head: verified.head.to_string(),
        faults: faults.map(|fault| v1::AuditFault { file: fault.file, line: fault.line, what: fault.what }).collect(),
        more_faults: verified.more_faults,
    })
}

/// The records that match, and those that come.
pub(super) async fn show(
    audit: &Audit,
    request: v1::ShowAuditRequest,
    shutdown: &CancellationToken,
) -> Result<Outbound<v1::AuditRecord>, Status> {
    for (name, text) in [("by", &request.by), ("what", &request.what), ("target", &request.target)] {
        convert::at_most(name, text.len(), TEXT_MAX_BYTES, "bytes")?;
    }
    if !request.what.is_empty() && Act::ALL.iter().all(|act| act.as_str() != request.what) {
        let words: Vec<&str> = Act::ALL.iter().map(|act| act.as_str()).collect();
        return Err(bad_request(format!("what: `{}` is none of {}", request.what, words.join(", "))));
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let filter = Filter {
        since: request.since.as_ref().map(convert::millis),
        until: request.until.as_ref().map(convert::millis),
        by: given(request.by),
        what: given(request.what),
        target: given(request.target),
    };
    let limit = if request.limit == 0 { LOOK_DEFAULT } else { (request.limit as usize).min(LOOK_MAX) };
    let (dir, mut heads) = (audit.dir().to_owned(), audit.heads());
    let head = *heads.borrow_and_update();
    let begun = task::blocking(move || Follower::begin(&dir, filter, limit, head)).await;
    let (first, follower) = begun.map_err(|error| audit_status(&error))?;
    let (tx, rx) = mpsc::channel(OUTBOUND_LEN);
    let follow = request.follow;
    let send = async move {
        if send_all(first, &tx).await && follow {
            go_on(follower, heads, &tx).await;
        }
    };
    let shutdown = shutdown.clone();
    task::spawn("audit reader", async move { shutdown.run_until_cancelled(send).await });
    Ok(Box::pin(ReceiverStream::new(rx)))
}

type Out = mpsc::Sender<Result<v1::AuditRecord, Status>>;

/// Sends what comes, until nobody reads.
async fn go_on(mut follower: Follower, mut heads: tokio::sync::watch::Receiver<Head>, tx: &Out) {
    loop {
        tokio::select! {
            biased;
            () = tx.closed() => return,
            changed = heads.changed() => if changed.is_err() { return },
        }
        let head = *heads.borrow_and_update();
        loop {
            let (more, back) = task::blocking(move || (follower.more(head), follower)).await;
            follower = back;
            match more {
                Ok(more) if more.is_empty() => break,
                Ok(more) => {
                    if !send_all(more, tx).await {
                        return;
                    }
                }
                Err(error) => {
                    // Who reads hears it, or is gone.
                    let _ = tx.send(Err(audit_status(&error))).await;
                    return;
                }
            }
        }
    }
}

/// `false` when nobody reads any more.
async fn send_all(shown: VecDeque<Shown>, tx: &Out) -> bool {
    for shown in shown {
        if tx.send(Ok(told(shown))).await.is_err() {
            return false;
        }
    }
    true
}

fn told(shown: Shown) -> v1::AuditRecord {
    match shown {
        Shown::Damaged { file, offset } => {
            v1::AuditRecord { damaged: format!("{file}, byte {offset}"), ..v1::AuditRecord::default() }
        }
        Shown::Record(record) => v1::AuditRecord {
            seq: record.seq,
            at: record.at,
            by: record.by,
            from: record.from,
            via: record.via,
            what: record.what,
            target: record.target,
            outcome: record.outcome,
            reason: record.reason,
            details: record.details.into_iter().collect(),
            prev: record.prev,
            hash: record.hash,
            damaged: String::new(),
        },
    }
}
