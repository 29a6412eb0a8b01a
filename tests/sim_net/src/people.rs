//! People: they submit until they are answered, watch until the build has ended, and read its logs.

use crate::net::connect;
use crate::scenario::Submission;
use crate::truth::Truth;
use railyard_proto::v1;
use railyard_proto::v1::client_service_client::ClientServiceClient;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;

/// How long somebody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// And before asking again.
const PAUSE: Duration = Duration::from_millis(300);

/// What somebody saw in the end.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The build.
    pub view: v1::BuildView,
    /// Logs by job name and attempt.
    pub logs: BTreeMap<(String, u32), Vec<u8>>,
}

/// What everybody saw, by person.
#[derive(Clone, Debug, Default)]
pub struct Sights(Arc<Mutex<BTreeMap<String, Seen>>>);

impl Sights {
    /// What this person saw.
    pub fn of(&self, person: &str) -> Option<Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(person).cloned()
    }

    fn add(&self, person: &str, seen: Seen) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(person.to_owned(), seen);
    }
}

/// Somebody with a build.
pub struct Person {
    rpc: ClientServiceClient<Channel>,
    truth: Truth,
    name: String,
}

impl Person {
    /// Somebody at the host of that name.
    ///
    /// # Errors
    /// If the keys are no good.
    pub fn new(name: &str, truth: Truth) -> anyhow::Result<Self> {
        let rpc = ClientServiceClient::new(connect(&crate::farm::person())?);
        Ok(Self { rpc, truth, name: name.to_owned() })
    }

    /// Submits, waits, reads.
    ///
    /// # Errors
    /// None: what is wrong is written into the truth.
    pub async fn live(self, submission: Submission, sights: Sights) -> turmoil::Result {
        tokio::time::sleep(submission.at).await;
        let build = self.submit(&submission).await;
        self.truth.note(&format!("{} has build {build}", self.name));
        self.watch(&build).await;
        let view = self.view(&build).await;
        let mut logs = BTreeMap::new();
        for job in &view.jobs {
            for attempt in &job.attempts {
                let log = self.log(&build, &job.name, attempt.attempt).await;
                logs.insert((job.name.clone(), attempt.attempt), log);
            }
        }
        self.truth.note(&format!("{} has seen build {build}", self.name));
        sights.add(&self.name, Seen { view, logs });
        Ok(())
    }

    /// Asks until there is an answer.
    async fn insist<T, F: Future<Output = Result<T, Status>>>(&self, ask: impl Fn() -> F) -> T {
        loop {
            if let Ok(Ok(answer)) = tokio::time::timeout(PATIENCE, ask()).await {
                return answer;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Submits under one key until it is acked; then once more, as a script does that died before it wrote that down.
    async fn submit(&self, submission: &Submission) -> String {
        let request = v1::SubmitRequest {
            pipeline: submission.pipeline(),
            idempotency_key: format!("key of {}", self.name),
            ..Default::default()
        };
        let submit = || async {
            let mut rpc = self.rpc.clone();
            Ok(rpc.submit(request.clone()).await.inspect_err(|status| self.check_refusal(status))?.into_inner())
        };
        let first = self.insist(submit).await;
        let again = self.insist(submit).await;
        if again.build != first.build || !again.existing {
            self.truth.lock().broken(format!("one key gave {} and {again:?}", first.build));
        }
        first.build
    }

    /// Outages are fine; anything else is not.
    fn check_refusal(&self, status: &Status) {
        use tonic::Code;
        let passing = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled, Code::Unknown, Code::Internal];
        if !passing.contains(&status.code()) {
            self.truth.lock().broken(format!("{}'s submit is refused: {status}", self.name));
        }
    }

    /// Watches until the build has ended, over as many streams as that takes.
    async fn watch(&self, build: &str) {
        let request = || v1::GetBuildRequest { build: build.to_owned() };
        loop {
            let mut rpc = self.rpc.clone();
            if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, rpc.watch_build(request())).await {
                let mut stream = stream.into_inner();
                // The connection's keepalive ends a stream that nobody speaks on any more.
                while let Ok(Some(view)) = stream.message().await {
                    if is_over(&view) {
                        return;
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn view(&self, build: &str) -> v1::BuildView {
        self.insist(|| async {
            let request = v1::GetBuildRequest { build: build.to_owned() };
            Ok(self.rpc.clone().get_build(request).await?.into_inner())
        })
        .await
    }

    /// A whole log, in one piece.
    async fn log(&self, build: &str, job: &str, attempt: u32) -> Vec<u8> {
        self.insist(|| async {
            let request =
                v1::ReadLogRequest { build: build.to_owned(), job: job.to_owned(), attempt, ..Default::default() };
            let mut chunks = self.rpc.clone().read_log(request).await?.into_inner();
            let mut log = Vec::new();
            while let Some(chunk) = chunks.message().await? {
                if chunk.offset != log.len() as u64 {
                    let what = format!("the log of {job} goes on at {} after {} bytes", chunk.offset, log.len());
                    self.truth.lock().broken(what);
                }
                log.extend(chunk.data);
            }
            Ok(log)
        })
        .await
    }
}

/// Whether the build has ended.
pub fn is_over(view: &v1::BuildView) -> bool {
    !matches!(view.state(), v1::BuildState::Running | v1::BuildState::Finalizing)
}
