//! Tokens.

use super::time;
use super::words::words;
use jiff::Timestamp;
use railyard_common::identity::{Identity, PoolLimit};
use railyard_proto::v1;
use serde::Serialize;

words!(
    /// What a token is for.
    TokenKind {
        Join = "join",
        Bearer = "bearer",
        Unknown = "unknown",
    }
);

words!(
    /// What a token is worth.
    TokenState {
        Good = "good",
        Used = "used",
        Expired = "expired",
    }
);

/// A token that was given out, without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Token {
    pub id: String,
    pub kind: TokenKind,
    pub role: String,
    pub name: String,
    /// Empty: all.
    pub pipelines: Vec<String>,
    /// Empty: any.
    pub platforms: Vec<String>,
    pub pool: Option<String>,
    /// It submits untrusted builds only.
    pub untrusted: bool,
    pub state: TokenState,
    pub made_by: String,
    pub made_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub used_at: Option<Timestamp>,
}

impl Token {
    /// As the farm says it, at a time.
    pub fn new(view: &v1::TokenView, now: Timestamp) -> Self {
        let identity: Option<Identity> = view.identity.parse().ok();
        let (role, name) = identity.as_ref().map_or_else(
            || ("unknown".to_owned(), view.identity.clone()),
            |identity| (identity.role.to_string(), identity.name.clone()),
        );
        let limits = identity.map(|identity| identity.limits).unwrap_or_default();
        let (expires_at, used_at) = (time(view.expires_at), time(view.used_at));
        let state = match (used_at, expires_at) {
            (Some(_), _) => TokenState::Used,
            (None, Some(end)) if end <= now => TokenState::Expired,
            _ => TokenState::Good,
        };
        Self {
            id: view.id.clone(),
            kind: match view.kind() {
                v1::TokenKind::Join => TokenKind::Join,
                v1::TokenKind::Bearer => TokenKind::Bearer,
                v1::TokenKind::Unspecified => TokenKind::Unknown,
            },
            role,
            name,
            pipelines: limits.pipelines.iter().map(ToString::to_string).collect(),
            platforms: limits.platforms.iter().map(ToString::to_string).collect(),
            pool: match limits.pool {
                PoolLimit::Only(pool) => Some(pool.to_string()),
                PoolLimit::Any | PoolLimit::Outside => None,
            },
            untrusted: limits.untrusted,
            state,
            made_by: view.made_by.clone(),
            made_at: time(view.made_at),
            expires_at,
            used_at,
        }
    }

    /// What it is limited to, for people.
    pub fn limits(&self) -> String {
        let pool = self.pool.as_ref().map(|pool| format!("pool {pool}"));
        [self.pipelines.join(", "), self.platforms.join(", ")]
            .into_iter()
            .chain(pool)
            .chain(self.untrusted.then(|| "untrusted builds".to_owned()))
            .filter(|text| !text.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }
}
