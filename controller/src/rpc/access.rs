//! Tokens and certificates, given out and taken back.

use super::audit::Asked;
use super::auth::{caller, peer};
use super::{bad_request, command_status};
use crate::access::{Guesses, Repeats, forbidden, note_failure, revoked, too_often};
use crate::audit::{Act, Audit, Recorded};
use crate::driver::{CommandError, Handle};
use railyard_common::id::WorkerName;
use railyard_common::identity::{Identity, PoolLimit, Role};
use railyard_common::time::Millis;
use railyard_common::token::{Token, TokenId, TokenKind};
use railyard_core::{Command, Event, Farm, TokenRecord};
use railyard_proto::v1;
use railyard_proto::v1::access_service_server::AccessService;
use railyard_service::clock::Clock;
use railyard_service::convert::{self, TEXT_MAX_BYTES, timestamp};
use railyard_service::listener::{Peer, Proof};
use railyard_service::rpc_error;
use railyard_service::tls::{Authority, Certified, TlsError};
use std::sync::Arc;
use tonic::{Code, Request, Response, Status};

const MINUTE_SECS: u64 = 60;
const HOUR_SECS: u64 = 60 * MINUTE_SECS;
const DAY_SECS: u64 = 24 * HOUR_SECS;
/// Largest certificate request: one of P-256 has 250 bytes, of RSA 4096 about 1,600.
const CSR_MAX_BYTES: usize = 16 * 1024;

/// How long certificates are good.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// A worker's, which renews it by itself.
    pub worker_secs: u64,
    /// A person's, who logs in again.
    pub person_secs: u64,
}

impl Validity {
    fn of(self, role: Role) -> u64 {
        if role == Role::Worker { self.worker_secs } else { self.person_secs }
    }
}

/// How long a token is good if nobody says, and at most.
fn ttl_secs(kind: TokenKind, role: Role) -> (u64, u64) {
    match (kind, role) {
        // It is typed into a host that stands ready.
        (TokenKind::Join, Role::Worker) => (15 * MINUTE_SECS, 15 * MINUTE_SECS),
        // It is sent to a colleague.
        (TokenKind::Join, _) => (HOUR_SECS, DAY_SECS),
        // It lies in a script's settings.
        (TokenKind::Bearer, _) => (90 * DAY_SECS, 366 * DAY_SECS),
    }
}

/// The access service.
#[derive(Clone)]
pub struct AccessControl {
    farm: Handle,
    authority: Arc<Authority>,
    /// The SHA-256 of the CA's certificate.
    ca: [u8; 32],
    clock: Arc<dyn Clock>,
    guesses: Arc<Guesses>,
    audit: Audit,
    validity: Validity,
    /// Certificates that were renewed, and answers that were asked for again.
    repeats: Repeats,
}

impl AccessControl {
    /// Gives out certificates of `authority`.
    ///
    /// # Errors
    /// [`TlsError`] if its own certificate does not parse.
    pub fn new(
        farm: Handle,
        authority: Arc<Authority>,
        clock: Arc<dyn Clock>,
        guesses: Arc<Guesses>,
        audit: Audit,
        validity: Validity,
    ) -> Result<Self, TlsError> {
        let ca = authority.fingerprint()?;
        let repeats = Repeats::new(clock.clone());
        Ok(Self { farm, authority, ca, clock, guesses, audit, validity, repeats })
    }

    /// Exchanges a token; says why not, with the token's id if it has one.
    async fn exchange(&self, request: &v1::EnrolRequest) -> Result<(TokenId, Identity, Certified), Refused> {
        let token =
            Token::parse(&request.token, TokenKind::Join).map_err(|error| Refused::wrong(None, error.to_string()))?;
        let access = self.farm.access();
        let known = access.borrow().check(self.clock.now(), token.id, token.hash()).cloned();
        let known = known.map_err(|refusal| Refused::wrong(Some(token.id), refusal.to_string()))?;
        // Before the token is used up: a request that is wrong costs nothing.
        check_purpose(request.join_as(), &known.identity).map_err(Refused::Other)?;
        let certified = self.certify(&request.csr, &known.identity).map_err(Refused::Other)?;
        if known.used.is_some_and(|used| used.key == certified.key) {
            self.once_more(&format!("token:{}", token.id)).map_err(Refused::Other)?;
        }
        let command = Command::UseToken { id: token.id, hash: token.hash(), key: certified.key };
        match self.farm.decide(command).await {
            Ok(_) => Ok((token.id, known.identity, certified)),
            Err(CommandError::Refused(refusal)) => Err(Refused::wrong(Some(token.id), refusal.to_string())),
            Err(error) => Err(Refused::Other(command_status(error))),
        }
    }

    /// Refuses who gets the same thing again and again: each time is a record.
    fn once_more(&self, name: &str) -> Result<(), Status> {
        let Err(secs) = self.repeats.once_more(name) else { return Ok(()) };
        let message = format!("{name} was given a certificate too often of late; wait {secs} s");
        Err(rpc_error::refusal(Code::ResourceExhausted, rpc_error::BUSY, message))
    }

    /// A token that is worth nothing: it is counted and recorded.
    fn wrong(&self, from: &Peer, id: Option<TokenId>, why: String, recorded: &Recorded) -> Status {
        self.guesses.wrong(from.addr, self.clock.now());
        note_failure(&self.audit, from.addr, id, &why, recorded);
        rpc_error::refusal(Code::Unauthenticated, rpc_error::BAD_TOKEN, why)
    }

    fn certify(&self, csr: &[u8], identity: &Identity) -> Result<Certified, Status> {
        convert::at_most("csr", csr.len(), CSR_MAX_BYTES, "bytes")?;
        let secs = self.validity.of(identity.role);
        self.authority.certify_client(csr, identity, secs).map_err(|error| match error {
            TlsError::BadPem { .. } => bad_request(error),
            error => rpc_error::refusal(Code::Internal, rpc_error::INTERNAL, railyard_service::error_chain(&error)),
        })
    }

    /// A certificate in place of the one of `issued`. A revocation that came meanwhile is either seen, because a look waits for
    /// the round that it is in, or later than the new certificate, which it ends like the old one.
    async fn extend(&self, csr: &[u8], identity: Identity, issued: Millis) -> Result<Certified, Status> {
        self.once_more(&identity.to_string())?;
        let certified = self.certify(csr, &identity)?;
        let is_revoked = self.farm.read(move |farm, _| farm.access().is_revoked(&identity, issued)).await;
        if is_revoked.map_err(command_status)? { Err(revoked()) } else { Ok(certified) }
    }

    fn certificate(&self, identity: &Identity, certified: Certified) -> v1::Certificate {
        let expires_at = self.clock.now().plus(self.validity.of(identity.role) * 1000);
        v1::Certificate {
            cert_pem: certified.cert_pem,
            ca_pem: self.authority.ca_pem().to_owned(),
            identity: identity.uri(),
            expires_at: Some(timestamp(expires_at)),
        }
    }

    /// Makes a token for an identity.
    async fn make(&self, by: &Identity, request: v1::CreateTokenRequest) -> Result<(Token, TokenRecord), Status> {
        let kind = match request.kind() {
            v1::TokenKind::Join => TokenKind::Join,
            v1::TokenKind::Bearer => TokenKind::Bearer,
            v1::TokenKind::Unspecified => return Err(bad_request("kind: it is neither join nor bearer")),
        };
        let identity = identity_of(&request.identity)?;
        if identity.role == Role::Worker && kind == TokenKind::Bearer {
            return Err(bad_request("a worker needs a certificate, not a bearer token: give it a token to join with"));
        }
        let (usual, most) = ttl_secs(kind, identity.role);
        let secs = if request.ttl_secs == 0 { usual } else { request.ttl_secs };
        if secs > most {
            let message = format!("a {kind} token of a {} is good for {most} s at most, not {secs} s", identity.role);
            return Err(bad_request(message));
        }
        let token = fresh(kind, self.ca)?;
        let (now, by) = (self.clock.now(), by.to_string());
        let (id, hash, expires_at) = (token.id, token.hash(), now.plus(secs * 1000));
        let record = TokenRecord { id, kind, hash, identity, made_at: now, by, expires_at, used: None };
        self.farm.decide(Command::MakeToken(Box::new(record.clone()))).await.map_err(command_status)?;
        Ok((token, record))
    }
}

/// Why a token was not exchanged.
enum Refused {
    /// It is worth nothing.
    Wrong { id: Option<TokenId>, why: String },
    /// Something else is.
    Other(Status),
}

impl Refused {
    fn wrong(id: Option<TokenId>, why: String) -> Self {
        Self::Wrong { id, why }
    }
}

/// Refuses a token that was taken to the wrong verb.
fn check_purpose(join_as: v1::JoinAs, identity: &Identity) -> Result<(), Status> {
    let (what, verb) = match (join_as, identity.role) {
        (v1::JoinAs::Worker, role) if role != Role::Worker => ("not for a worker", "railyard login"),
        (v1::JoinAs::Person, Role::Worker) => ("not for a person", "railyard worker --join"),
        _ => return Ok(()),
    };
    Err(bad_request(format!("this token is for {identity}, {what}; `{verb}` takes it, and it is still good")))
}

/// Random bytes become a token.
fn fresh(kind: TokenKind, ca: [u8; 32]) -> Result<Token, Status> {
    let (mut id, mut secret) = ([0; 8], [0; 32]);
    let filled = getrandom::fill(&mut id).and_then(|()| getrandom::fill(&mut secret));
    let none = |_| rpc_error::refusal(Code::Internal, rpc_error::INTERNAL, "the controller's host gives no randomness");
    filled.map_err(none)?;
    Ok(match kind {
        TokenKind::Join => Token::join(id, secret, ca),
        TokenKind::Bearer => Token::bearer(id, secret),
    })
}

fn identity_of(text: &str) -> Result<Identity, Status> {
    let identity: Identity = text.parse().map_err(bad_request)?;
    if identity.role == Role::Worker {
        identity.name.parse::<WorkerName>().map_err(bad_request)?;
    }
    Ok(identity)
}

fn view(token: &TokenRecord) -> v1::TokenView {
    let kind = match token.kind {
        TokenKind::Join => v1::TokenKind::Join,
        TokenKind::Bearer => v1::TokenKind::Bearer,
    };
    v1::TokenView {
        id: token.id.to_string(),
        kind: kind.into(),
        identity: token.identity.uri(),
        made_by: token.by.clone(),
        made_at: Some(timestamp(token.made_at)),
        expires_at: Some(timestamp(token.expires_at)),
        used_at: token.used.as_ref().map(|used| timestamp(used.at)),
    }
}

#[tonic::async_trait]
impl AccessService for AccessControl {
    async fn enrol(&self, request: Request<v1::EnrolRequest>) -> Result<Response<v1::Certificate>, Status> {
        let from = Peer::nobody(peer(&request)?.addr);
        let recorded = request.extensions().get::<Recorded>().cloned().unwrap_or_default();
        too_often(&self.guesses, from.addr, self.clock.now()).inspect_err(|status| {
            note_failure(&self.audit, from.addr, None, status.message(), &recorded);
        })?;
        let (asked, access) = (Asked::new(&self.audit, &request, Act::Enrol), self.clone());
        let (request, addr) = (request.into_inner(), from.addr);
        let exchange = async move {
            match access.exchange(&request).await {
                Err(Refused::Wrong { id, why }) => Err(access.wrong(&from, id, why, &recorded)),
                Err(Refused::Other(status)) => Err(status),
                Ok(joined) => Ok(joined),
            }
        };
        let done = asked.carry_out(exchange, |entry, (id, identity, _)| {
            let entry = entry.via(format!("token:{id}")).target(identity.to_string());
            entry.detail("limits", identity.limits.to_string())
        });
        let (_, identity, certified) = done.await?;
        tracing::info!(%identity, from = %addr, "somebody joined with a token");
        Ok(Response::new(self.certificate(&identity, certified)))
    }

    async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::Certificate>, Status> {
        let (from, identity) = (peer(&request)?, caller(&request)?);
        let Some(Proof::Certificate { issued, .. }) = from.proof else {
            return Err(forbidden("a bearer token is no certificate: there is nothing to renew"));
        };
        let asked = Asked::new(&self.audit, &request, Act::Renew).target(&identity.to_string());
        let (access, whose) = (self.clone(), identity.clone());
        let certify = async move { access.extend(&request.into_inner().csr, whose, issued).await };
        let certified = asked.carry_out(certify, |entry, _| entry).await?;
        Ok(Response::new(self.certificate(&identity, certified)))
    }

    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let by = caller(&request)?;
        let (asked, access) = (Asked::new(&self.audit, &request, Act::TokenCreate), self.clone());
        let request = request.into_inner();
        // As the record of a token that was made has it.
        let target = identity_of(&request.identity).map_or(request.identity.clone(), |identity| identity.to_string());
        let asked = asked.target(&target);
        let make = async move { access.make(&by, request).await };
        let done = asked.carry_out(make, |entry, (token, record)| {
            let entry = entry.target(record.identity.to_string()).detail("limits", record.identity.limits.to_string());
            entry.detail("token", token.id.to_string()).detail("kind", record.kind.to_string())
        });
        let (token, record) = done.await?;
        Ok(Response::new(v1::CreateTokenResponse { token: token.reveal(), view: Some(view(&record)) }))
    }

    async fn list_tokens(
        &self,
        _request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let access = self.farm.access().borrow().clone();
        let mut tokens: Vec<&TokenRecord> = access.tokens().collect();
        tokens.sort_by_key(|token| (std::cmp::Reverse(token.made_at), token.id));
        Ok(Response::new(v1::ListTokensResponse { tokens: tokens.into_iter().map(view).collect() }))
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let by = caller(&request)?.to_string();
        let (asked, farm) = (Asked::new(&self.audit, &request, Act::TokenRevoke), self.farm.clone());
        let id: TokenId = request.into_inner().id.parse().map_err(bad_request)?;
        let drop_it = async move { farm.decide(Command::DropToken { id, by }).await.map_err(command_status) };
        asked.target(&format!("token:{id}")).urgent().carry_out(drop_it, |entry, _| entry).await?;
        Ok(Response::new(v1::RevokeTokenResponse {}))
    }

    async fn revoke(&self, request: Request<v1::RevokeRequest>) -> Result<Response<v1::RevokeResponse>, Status> {
        let by = caller(&request)?.to_string();
        let (asked, farm) = (Asked::new(&self.audit, &request, Act::Revoke), self.farm.clone());
        let request = request.into_inner();
        convert::at_most("why", request.why.len(), TEXT_MAX_BYTES, "bytes")?;
        let identity = identity_of(&request.identity)?;
        let asked = asked.target(&identity.to_string()).detail("why", &request.why).urgent();
        let worker = (identity.role == Role::Worker).then(|| identity.name.parse::<WorkerName>().ok()).flatten();
        let command = Command::Revoke { identity, by, why: request.why };
        let revoke = async move {
            let is_worker = |farm: &Farm| worker.is_some_and(|name| farm.worker(&name).is_some());
            let is_worker = farm.read(move |farm, _| is_worker(farm)).await.map_err(command_status)?;
            Ok((is_worker, farm.decide(command).await.map_err(command_status)?))
        };
        let (is_worker, events) = asked.carry_out(revoke, |entry, _| entry).await?;
        let count = |of: fn(&Event) -> bool| events.iter().filter(|event| of(event)).count() as u32;
        let tokens = count(|event| matches!(event, Event::TokenDropped { .. }));
        let leases = count(|event| matches!(event, Event::AttemptEnded { .. }));
        Ok(Response::new(v1::RevokeResponse { tokens, leases, unknown: tokens == 0 && !is_worker }))
    }
}

/// Whether a worker says no more than it was let in for.
pub(super) fn check_offer(identity: &Identity, offer: &railyard_core::WorkerOffer) -> Result<(), Status> {
    let limits = &identity.limits;
    let strange = offer
        .platforms
        .iter()
        .map(|one| one.platform)
        .find(|platform| !limits.platforms.is_empty() && !limits.platforms.contains(platform));
    if let Some(platform) = strange {
        let allowed: Vec<&str> = limits.platforms.iter().map(|platform| platform.as_str()).collect();
        return Err(forbidden(format!(
            "worker {} was let in for {}, and offers {platform}; set `platforms` in its settings, or join with another token",
            identity.name,
            allowed.join(", ")
        )));
    }
    if limits.pool.allows(offer.pool.as_ref()) {
        return Ok(());
    }
    let said = offer.pool.as_ref().map_or_else(|| "no pool".to_owned(), |pool| format!("pool {pool}"));
    let allowed = match &limits.pool {
        PoolLimit::Only(pool) => format!("pool {pool}"),
        PoolLimit::Any | PoolLimit::Outside => "no pool".to_owned(),
    };
    Err(forbidden(format!(
        "worker {} was let in for {allowed}, and says that it works for {said}; set `pool` in its settings, or join with another token",
        identity.name
    )))
}

#[cfg(test)]
mod tests;
