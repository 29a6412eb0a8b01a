//! Secrets: stored by operators, given to the steps that they are for.

use super::audit::Asked;
use super::{bad_request, command_status};
use crate::audit::{Act, Audit};
use crate::driver::Handle;
use crate::secrets::{Listed, SecretError, Secrets};
use railyard_common::id::{JobName, LeaseId, PipelineName, SecretName, StepName};
use railyard_common::job::SecretRef;
use railyard_common::order::Order;
use railyard_common::plan::Plan;
use railyard_common::secret::{SecretScope, SecretValue};
use railyard_proto::v1;
use railyard_service::convert::{self, LIST_MAX_LEN, timestamp};
use railyard_service::{error_chain, rpc_error, task};
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;
use tonic::{Code, Request, Status};

/// For whoever asked.
pub(super) fn secret_status(error: &SecretError) -> Status {
    let (code, reason) = match error {
        SecretError::Short(_) | SecretError::Long(_) | SecretError::NoPipeline => {
            (Code::InvalidArgument, rpc_error::BAD_REQUEST)
        }
        SecretError::OtherScope { .. } => (Code::AlreadyExists, rpc_error::SECRET),
        SecretError::TooMany => (Code::ResourceExhausted, rpc_error::BAD_REQUEST),
        SecretError::Unknown(_) => (Code::NotFound, rpc_error::NOT_FOUND),
        SecretError::BadKey { .. } | SecretError::OtherKey(_) | SecretError::Damaged { .. } => {
            (Code::FailedPrecondition, rpc_error::SECRET)
        }
        SecretError::Io { .. } | SecretError::Write(_) | SecretError::NoRandomness => {
            (Code::Internal, rpc_error::INTERNAL)
        }
    };
    rpc_error::refusal(code, reason, error_chain(error))
}

/// Works with the secrets' files.
async fn with<T: Send + 'static>(
    secrets: &Secrets,
    work: impl FnOnce(Secrets) -> Result<T, SecretError> + Send + 'static,
) -> Result<T, Status> {
    let secrets = secrets.clone();
    task::blocking(move || work(secrets)).await.map_err(|error| secret_status(&error))
}

/// A request to store a secret, checked.
pub(super) struct Set {
    pub(super) name: SecretName,
    scope: SecretScope,
    value: SecretValue,
    replace: bool,
}

impl Set {
    pub(super) fn of(request: v1::SetSecretRequest) -> Result<Self, Status> {
        // First of all, so that it is wiped whatever else is wrong.
        let value = SecretValue::new(request.value);
        let name = request.name.parse().map_err(bad_request)?;
        let scope = SecretScope {
            pipelines: names::<PipelineName>("pipelines", &request.pipelines)?,
            steps: names::<StepName>("steps", &request.steps)?,
        };
        Ok(Self { name, scope, value, replace: request.replace })
    }

    pub(super) fn scope(&self) -> String {
        self.scope.to_string()
    }

    /// Stores it; `true` if that replaced one.
    pub(super) async fn store(
        self,
        secrets: &Secrets,
        at: railyard_common::time::Millis,
        by: String,
    ) -> Result<bool, Status> {
        let Self { name, scope, value, replace } = self;
        with(secrets, move |secrets| secrets.set(name, scope, (at, by), &value, replace)).await
    }
}

fn names<T: FromStr<Err: std::fmt::Display> + Ord>(field: &str, texts: &[String]) -> Result<BTreeSet<T>, Status> {
    convert::at_most(field, texts.len(), LIST_MAX_LEN, "entries")?;
    texts.iter().map(|text| Ok(convert::parsed(field, text)?)).collect()
}

pub(super) async fn list(secrets: &Secrets) -> Result<Vec<v1::SecretView>, Status> {
    let listed = with(secrets, |secrets| secrets.list()).await?;
    Ok(listed.into_iter().map(view).collect())
}

fn view(listed: Listed) -> v1::SecretView {
    let Listed { name, scope, set_at, set_by, fault } = listed;
    v1::SecretView {
        name: name.to_string(),
        pipelines: scope.pipelines.iter().map(ToString::to_string).collect(),
        steps: scope.steps.iter().map(ToString::to_string).collect(),
        set_at: Some(timestamp(set_at)).filter(|_| set_at.0 > 0),
        set_by,
        fault: fault.map(|fault| error_chain(&fault)).unwrap_or_default(),
    }
}

pub(super) async fn remove(secrets: &Secrets, name: SecretName) -> Result<(), Status> {
    with(secrets, move |secrets| secrets.remove(&name)).await
}

/// Refuses a plan whose steps want secrets that they cannot have; takes out of it those that they can do without. Gives a line for
/// each of these.
pub(super) async fn check(secrets: &Secrets, plan: Plan) -> Result<(Plan, Vec<String>), Status> {
    if plan.jobs.iter().all(|job| job.run.secrets.is_empty()) {
        return Ok((plan, Vec::new()));
    }
    let secrets = secrets.clone();
    task::blocking(move || check_now(&secrets, plan)).await
}

fn check_now(secrets: &Secrets, mut plan: Plan) -> Result<(Plan, Vec<String>), Status> {
    let (pipeline, untrusted) = (plan.build.pipeline.clone(), plan.untrusted);
    let mut left_out = Vec::new();
    // A step has many jobs, and each of them asks for the same.
    let mut known = BTreeMap::new();
    for job in &mut plan.jobs {
        let (name, mut missing) = (job.name.to_string(), Vec::new());
        for secret in &job.run.secrets {
            let asked = (job.name.step.clone(), secret.name.clone());
            let is_there = match known.get(&asked) {
                _ if untrusted => false,
                Some(is_there) => *is_there,
                None => {
                    let found = value_of(secrets, &pipeline, &job.name, secret)?.is_some();
                    known.insert(asked, found);
                    found
                }
            };
            if is_there {
                continue;
            }
            let SecretRef { name: wanted, optional, .. } = secret;
            match (optional, untrusted) {
                (true, true) => left_out.push(format!("{name} does without secret `{wanted}`: the build is untrusted")),
                (true, false) => left_out.push(format!("{name} does without secret `{wanted}`: there is none for it")),
                // Whether there is one is no business of a stranger's.
                (false, true) => return Err(not_for_untrusted(&name, wanted)),
                (false, false) => return Err(none_for(&pipeline, &job.name, wanted)),
            }
            missing.push(wanted.clone());
        }
        if !missing.is_empty() {
            Arc::make_mut(&mut job.run).secrets.retain(|secret| !missing.contains(&secret.name));
        }
    }
    Ok((plan, left_out))
}

fn not_for_untrusted(job: &str, name: &SecretName) -> Status {
    let message = format!(
        "job {job} wants secret `{name}`, and untrusted builds get none; write `{name}?` if the step can do without"
    );
    rpc_error::refusal(Code::PermissionDenied, rpc_error::SECRET, message)
}

/// The value of a secret for a step, if there is one for it.
fn value_of(
    secrets: &Secrets,
    pipeline: &PipelineName,
    job: &JobName,
    secret: &SecretRef,
) -> Result<Option<SecretValue>, Status> {
    let SecretRef { name, env, .. } = secret;
    let value = secrets.get(name, pipeline, &job.step).map_err(|error| secret_status(&error))?;
    match (env, &value) {
        // No variable can have one, and what a shell makes of it would not be hidden in the log.
        (Some(env), Some(value)) if value.reveal().contains(&0) => {
            let message = format!(
                "job {job} wants secret `{name}` as the variable {env}, and it has bytes of zero (a text in UTF-16 has, for instance); \
                 store it without them, or leave out `env`"
            );
            Err(rpc_error::refusal(Code::FailedPrecondition, rpc_error::SECRET, message))
        }
        _ => Ok(value),
    }
}

fn none_for(pipeline: &PipelineName, job: &JobName, name: &SecretName) -> Status {
    let step = &job.step;
    let message = format!(
        "job {job} wants secret `{name}`, and there is none of that name for it. An operator can store one: `railyard secret set {name} \
         --file FILE --pipeline {pipeline} --step {step}`; write `{name}?` if the step can do without"
    );
    rpc_error::refusal(Code::FailedPrecondition, rpc_error::SECRET, message)
}

/// Gives workers the secrets of the steps that they run.
#[derive(Clone)]
pub struct Giver {
    secrets: Secrets,
    audit: Audit,
}

impl Giver {
    /// Gives out what is in `secrets`, and records that.
    pub fn new(secrets: Secrets, audit: Audit) -> Self {
        Self { secrets, audit }
    }

    /// Those of the lease's step. Who holds the lease has been checked.
    pub(super) async fn give<T>(
        &self,
        request: &Request<T>,
        farm: &Handle,
        lease: LeaseId,
    ) -> Result<v1::FetchSecretsResponse, Status> {
        let found = farm.read(move |farm, _| (farm.order(lease), farm.is_untrusted(lease))).await;
        let (order, untrusted) = found.map_err(command_status)?;
        let order = order.map_err(bad_request)?;
        if order.run.secrets.is_empty() {
            return Ok(v1::FetchSecretsResponse { secrets: Vec::new() });
        }
        let target = format!("{} {}", order.build, order.job);
        let asked =
            Asked::new(&self.audit, request, Act::SecretGive).target(&target).detail("lease", &lease.to_string());
        let secrets = self.secrets.clone();
        let find = async move { task::blocking(move || find(&secrets, &order, untrusted != Some(false))).await };
        let found = asked.carry_out(find, |entry, found: &Vec<(SecretName, SecretValue)>| {
            let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
            entry.detail("count", names.len().to_string()).detail("secrets", names.join(" "))
        });
        let found = found.await?;
        let file = |(name, value): &(SecretName, SecretValue)| v1::SecretFile {
            name: name.to_string(),
            value: value.reveal().to_vec(),
        };
        Ok(v1::FetchSecretsResponse { secrets: found.iter().map(file).collect() })
    }
}

/// The secrets of an order, as they are now.
fn find(secrets: &Secrets, order: &Order, untrusted: bool) -> Result<Vec<(SecretName, SecretValue)>, Status> {
    let (pipeline, job) = (&order.build.pipeline, &order.job);
    let mut found = Vec::with_capacity(order.run.secrets.len());
    for secret in &order.run.secrets {
        // The plan of an untrusted build wants none. If one did, it would not get them either.
        if untrusted {
            return Err(not_for_untrusted(&job.to_string(), &secret.name));
        }
        match value_of(secrets, pipeline, job, secret)? {
            Some(value) => found.push((secret.name.clone(), value)),
            None if secret.optional => {}
            None => return Err(none_for(pipeline, job, &secret.name)),
        }
    }
    Ok(found)
}
