//! The worker's one stream to the controller, opened again for as long as the worker lives.

use crate::uplink::{Uplink, is_passing};
use railyard_proto::v1;
use railyard_proto::v1::worker_service_client::WorkerServiceClient;
use railyard_proto::v1::{controller_message, worker_message};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// Messages on their way out. Heartbeats are all there is; when that many wait, the stream is dead.
const QUEUE_MESSAGES: usize = 64;

/// How long the controller may take to answer `Hello`.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(30);

/// One in so many tries is worth a line in the log while the controller cannot be reached.
const TRIES_PER_WARNING: u32 = 12;

/// What happens on the link.
#[derive(Debug)]
pub enum LinkEvent {
    /// A stream is about to be opened; it begins with this.
    Opening(oneshot::Sender<v1::Hello>),
    /// The controller has answered; messages go there from now on.
    Opened(v1::Welcome, mpsc::Sender<v1::WorkerMessage>),
    /// The controller says something.
    Heard(Box<controller_message::Kind>),
    /// The stream is gone. Another one will be opened.
    Closed,
}

/// The controller does not want this worker.
#[derive(Debug, thiserror::Error)]
#[error("the controller refuses this worker: {}", .0.message())]
pub struct LinkRefused(pub Box<Status>);

/// Keeps a stream open. Ends when the controller refuses the worker for good, or nobody listens to the events.
///
/// # Errors
/// [`LinkRefused`]: protocol, version, name or certificate do not fit.
///
/// `patience` is how long the controller may be silent.
pub async fn keep(
    uplink: Uplink,
    events: mpsc::Sender<LinkEvent>,
    patience: watch::Receiver<Duration>,
) -> Result<(), LinkRefused> {
    let mut tries = 0;
    loop {
        let mut welcomed = false;
        let status = match stream(uplink.client(), &events, &patience, &mut welcomed).await {
            Ok(()) => return Ok(()),
            Err(status) => status,
        };
        if status.code() == Code::DeadlineExceeded {
            // Another stream on the same connection would be as silent.
            uplink.renew();
        }
        if !is_passing(&status) {
            return Err(LinkRefused(Box::new(status)));
        }
        tries = if welcomed { 1 } else { tries + 1 };
        if welcomed && events.send(LinkEvent::Closed).await.is_err() {
            return Ok(());
        }
        tokio::time::sleep(uplink.pause(tries)).await;
        // Not sooner: a worker that says goodbye ends this task in the meantime.
        if tries % TRIES_PER_WARNING == 1 {
            tracing::warn!(%status, "no stream to the controller; jobs run on, trying again");
        }
    }
}

/// One stream. Ends well only if nobody listens any more.
async fn stream(
    mut client: WorkerServiceClient<Channel>,
    events: &mpsc::Sender<LinkEvent>,
    patience: &watch::Receiver<Duration>,
    welcomed: &mut bool,
) -> Result<(), Status> {
    let (ask, answer) = oneshot::channel();
    if events.send(LinkEvent::Opening(ask)).await.is_err() {
        return Ok(());
    }
    let Ok(hello) = answer.await else { return Ok(()) };
    let (outbound, queue) = mpsc::channel(QUEUE_MESSAGES);
    let hello = v1::WorkerMessage { kind: Some(worker_message::Kind::Hello(hello)) };
    // The queue was made a line ago and has room.
    let _ = outbound.try_send(hello);
    let opening = async {
        let mut inbound = client.session(Request::new(ReceiverStream::new(queue))).await?.into_inner();
        let welcome = expect_welcome(&mut inbound).await?;
        Ok::<_, Status>((inbound, welcome))
    };
    let late = |_| Status::deadline_exceeded("the controller did not answer the greeting");
    let (mut inbound, welcome) = tokio::time::timeout(WELCOME_TIMEOUT, opening).await.map_err(late)??;
    *welcomed = true;
    if events.send(LinkEvent::Opened(welcome, outbound)).await.is_err() {
        return Ok(());
    }
    let mut patience = patience.clone();
    loop {
        let limit = *patience.borrow_and_update();
        let heard = tokio::select! {
            biased;
            heard = inbound.message() => heard?,
            // A shorter lease has begun, or the last one of that kind is over. Nobody tells any more in the last moments.
            Ok(()) = patience.changed() => continue,
            () = tokio::time::sleep(limit) => {
                return Err(Status::deadline_exceeded("the controller does not answer heartbeats"));
            }
        };
        let Some(message) = heard else { return Err(Status::unavailable("the controller closed the stream")) };
        if let Some(kind) = message.kind
            && events.send(LinkEvent::Heard(Box::new(kind))).await.is_err()
        {
            return Ok(());
        }
    }
}

async fn expect_welcome(inbound: &mut Streaming<v1::ControllerMessage>) -> Result<v1::Welcome, Status> {
    match inbound.message().await?.and_then(|message| message.kind) {
        Some(controller_message::Kind::Welcome(welcome)) => Ok(welcome),
        Some(_) => Err(Status::internal("the controller's first message is not a welcome")),
        None => Err(Status::unavailable("the controller closed the stream before its welcome")),
    }
}
