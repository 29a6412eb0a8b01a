//! `token` and `revoke`: who is let in, and who is shut out.

use crate::args::{self, RevokeArgs, TokenCreateArgs, TokenListArgs, TokenRevokeArgs, TokenTask};
use crate::failure::Failure;
use crate::farm::{Farm, is_connection_trouble};
use crate::render::style::Tone;
use crate::render::table::{Cell, Table};
use crate::render::{Console, human};
use crate::view::{Token, TokenKind, TokenState};
use railyard_common::identity::{Identity, Limits, PoolLimit, Role};
use railyard_proto::v1;
use railyard_service::rpc_error;
use serde::Serialize;

/// `railyard token …`
///
/// # Errors
/// [`Failure::Usage`], [`Failure::Farm`].
pub async fn token(task: &TokenTask, console: &Console) -> Result<(), Failure> {
    match task {
        TokenTask::Create(args) => create(args, console).await,
        TokenTask::List(args) => list(args, console).await,
        TokenTask::Revoke(args) => take_back(args, console).await,
    }
}

/// What `token create` says.
#[derive(Serialize)]
struct Created {
    /// With its secret.
    token: String,
    #[serde(flatten)]
    about: Token,
}

async fn create(args: &TokenCreateArgs, console: &Console) -> Result<(), Failure> {
    let identity = wanted(args).map_err(Failure::Usage)?;
    let farm = Farm::open(&args.ask.farm).await?;
    let kind = if args.bearer { v1::TokenKind::Bearer } else { v1::TokenKind::Join };
    let request = v1::CreateTokenRequest {
        kind: kind.into(),
        identity: identity.uri(),
        ttl_secs: args.ttl.map_or(0, |ttl| ttl.as_secs()),
    };
    let answer = farm.access().create_token(farm.request(request)).await.map_err(|status| farm.refused(&status))?;
    let v1::CreateTokenResponse { token, view } = answer.into_inner();
    let about = Token::new(&view.unwrap_or_default(), console.now());
    if console.is_json() {
        return console.json(&Created { token, about });
    }
    let until = about.expires_at.map(|at| human::left(at, console.now())).unwrap_or_default();
    let url = &farm.endpoint().url;
    console.note(&match (about.kind, identity.role) {
        (TokenKind::Bearer, _) => format!("a bearer token for {identity}, good for {until}; it is shown this once:"),
        (_, Role::Worker) => {
            format!("for {identity}, good once and for {until}; on its host: railyard worker --join TOKEN {url}")
        }
        _ => format!("for {identity}, good once and for {until}; there: railyard login {url} TOKEN"),
    });
    console.print(&format!("{token}\n"))
}

/// Whom the flags name, within which limits.
fn wanted(args: &TokenCreateArgs) -> Result<Identity, String> {
    let identity = args::identity(args.worker.as_ref(), args.role, args.user.as_deref())?;
    let pool = match (&args.pool, identity.role) {
        (Some(pool), _) => PoolLimit::Only(pool.clone()),
        (None, Role::Worker) => PoolLimit::Outside,
        (None, _) => PoolLimit::Any,
    };
    let (pipelines, platforms) = (args.pipeline.iter().cloned().collect(), args.platform.iter().copied().collect());
    let limits = Limits { pipelines, platforms, pool, untrusted: args.untrusted };
    identity.within(limits).map_err(|error| error.to_string())
}

async fn list(args: &TokenListArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let answer = farm.access().list_tokens(farm.request(v1::ListTokensRequest {})).await;
    let tokens = answer.map_err(|status| farm.refused(&status))?.into_inner().tokens;
    let tokens: Vec<Token> = tokens.iter().map(|view| Token::new(view, console.now())).collect();
    if console.is_json() {
        return console.json(&tokens);
    }
    if tokens.is_empty() {
        console.note("no tokens are on record; `railyard token create` makes one");
        return Ok(());
    }
    let mut table = Table::new(&["TOKEN", "KIND", "FOR", "LIMITED TO", "STATE", "GOOD FOR", "MADE BY"]);
    for token in &tokens {
        let (tone, left) = match token.state {
            TokenState::Good => (Tone::Good, token.expires_at.map(|at| human::left(at, console.now()))),
            TokenState::Used | TokenState::Expired => (Tone::Plain, None),
        };
        table.row(vec![
            Cell::from(&token.id),
            Cell::from(token.kind.as_str()),
            Cell::from(format!("{}/{}", token.role, token.name)),
            Cell::from(token.limits()),
            Cell::toned(token.state.as_str(), tone),
            Cell::from(left.unwrap_or_default()),
            Cell::from(&token.made_by),
        ]);
    }
    console.print(&table.render(console.out))
}

/// What `token revoke` says.
#[derive(Serialize)]
struct TakenBack {
    id: String,
}

async fn take_back(args: &TokenRevokeArgs, console: &Console) -> Result<(), Failure> {
    let farm = Farm::open(&args.ask.farm).await?;
    let id = args.id.to_string();
    let request = farm.request(v1::RevokeTokenRequest { id: id.clone() });
    farm.access().revoke_token(request).await.map_err(|status| farm.refused(&status))?;
    if console.is_json() {
        return console.json(&TakenBack { id });
    }
    console.print(&format!("token {id} is worth nothing any more\n"))
}

/// What `revoke` says.
#[derive(Serialize)]
struct Revoked {
    identity: String,
    /// Tokens that went with it.
    tokens: u32,
    /// Jobs of a worker that run elsewhere.
    jobs: u32,
}

/// Shuts somebody out.
///
/// # Errors
/// [`Failure::Usage`], [`Failure::Farm`].
pub async fn revoke(args: &RevokeArgs, console: &Console) -> Result<(), Failure> {
    let identity = args::identity(args.worker.as_ref(), args.role, args.user.as_deref()).map_err(Failure::Usage)?;
    let farm = Farm::open(&args.ask.farm).await?;
    let request = farm.request(v1::RevokeRequest { identity: identity.uri(), why: args.why.clone() });
    let answer = match farm.access().revoke(request).await {
        Ok(answer) => answer.into_inner(),
        // Whoever shuts himself out does not hear so.
        Err(status) if is_shut_out(&farm).await => {
            tracing::debug!(%status, "the connection ended");
            console.note(&format!("railyard: {identity} is who you are: this machine is shut out with it"));
            v1::RevokeResponse::default()
        }
        Err(status) => return Err(farm.refused(&status)),
    };
    let revoked = Revoked { identity: identity.to_string(), tokens: answer.tokens, jobs: answer.leases };
    if answer.unknown {
        console.note(&format!(
            "railyard: the farm has neither a token nor a worker for {identity}: check the role and the name with `railyard token list` and \
             `railyard workers`"
        ));
    }
    if console.is_json() {
        return console.json(&revoked);
    }
    let tokens = human::count(revoked.tokens as usize, "token");
    let jobs = match (identity.role, revoked.jobs) {
        (Role::Worker, 1) => ", 1 job runs elsewhere".to_owned(),
        (Role::Worker, jobs) => format!(", {jobs} jobs run elsewhere"),
        _ => String::new(),
    };
    console.print(&format!("{identity} is shut out; {tokens} went with it{jobs}\n"))
}

/// How often it is asked whether whoever asks is let in no more.
const ASKED_MAX: u32 = 5;

/// Whether whoever asks is let in no more. The first connections may be those that end for it.
async fn is_shut_out(farm: &Farm) -> bool {
    for _ in 0..ASKED_MAX {
        let request = farm.request(v1::ListBuildsRequest { limit: 1, ..Default::default() });
        match farm.client().list_builds(request).await {
            Err(status) if is_connection_trouble(&status) => {}
            asked => {
                return asked.is_err_and(|status| rpc_error::reason_of(&status).as_deref() == Some(rpc_error::REVOKED));
            }
        }
    }
    false
}
