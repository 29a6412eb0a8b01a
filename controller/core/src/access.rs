//! Who may come in: tokens that were given out, and identities that were shut out.
//!
//! A certificate proves itself; only what must be taken back or may be used once is on record here.

use crate::event::Event;
use crate::farm::Farm;
use crate::refusal::Refusal;
use railyard_common::digest::Digest;
use railyard_common::id::WorkerName;
use railyard_common::identity::{Identity, Role};
use railyard_common::outcome::Reason;
use railyard_common::time::Millis;
use railyard_common::token::{TokenId, TokenKind};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Tokens on record at a time: a farm has hundreds of workers and people, and a script gone wild must not fill the journal.
pub const TOKENS_MAX: usize = 10_000;
/// A token whose time is over stays listed for so long: people want to see what became of it.
pub const FORGET_TOKEN_MILLIS: u64 = 7 * 24 * 3_600_000;
/// A revocation is remembered for longer than any certificate of a client is good (a year): then it has no more effect.
pub const FORGET_REVOKED_MILLIS: u64 = 400 * 24 * 3_600_000;

/// A token that was given out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Its public name.
    pub id: TokenId,
    /// What it is for.
    pub kind: TokenKind,
    /// The hash of its secret, which is nowhere.
    pub hash: Digest,
    /// Whom it stands for.
    pub identity: Identity,
    /// When it was made.
    pub made_at: Millis,
    /// By whom.
    pub by: String,
    /// From when on it is worth nothing.
    pub expires_at: Millis,
    /// A token to join with: what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<TokenUse>,
}

/// A token to join with was used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// When.
    pub at: Millis,
    /// For which key: the hash of the public key that was certified. The same key may come again: an answer may have been lost.
    pub key: Digest,
}

/// Tokens given out, identities shut out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Access {
    tokens: BTreeMap<TokenId, TokenRecord>,
    /// `ROLE/NAME`, and when: certificates that were issued until then are worth nothing.
    revoked: BTreeMap<String, Millis>,
}

impl Access {
    /// Every token on record.
    pub fn tokens(&self) -> impl Iterator<Item = &TokenRecord> {
        self.tokens.values()
    }

    /// When an identity was revoked last.
    pub fn revoked_at(&self, identity: &Identity) -> Option<Millis> {
        self.revoked.get(&identity.to_string()).copied()
    }

    /// Whether a certificate of `identity` that was issued at `issued` is worth nothing.
    pub fn is_revoked(&self, identity: &Identity, issued: Millis) -> bool {
        self.revoked_at(identity).is_some_and(|at| issued <= at)
    }

    /// The token, if the secret behind `hash` is its, and it is not over. Of one to join with, nothing is said about its use.
    ///
    /// # Errors
    /// [`Refusal::UnknownToken`], which does not tell a wrong id from a wrong secret; [`Refusal::TokenExpired`].
    pub fn check(&self, now: Millis, id: TokenId, hash: Digest) -> Result<&TokenRecord, Refusal> {
        let known = self.tokens.get(&id).filter(|token| token.hash == hash).ok_or(Refusal::UnknownToken)?;
        match known.expires_at <= now {
            true => Err(Refusal::TokenExpired(id)),
            false => Ok(known),
        }
    }
}

impl Farm {
    /// Tokens given out, identities shut out.
    pub fn access(&self) -> &Access {
        &self.access
    }

    pub(crate) fn decide_make_token(&self, token: &TokenRecord) -> Result<Vec<Event>, Refusal> {
        match self.access.tokens.len() {
            TOKENS_MAX.. => Err(Refusal::TooManyTokens(TOKENS_MAX)),
            _ if self.access.tokens.contains_key(&token.id) => Err(Refusal::TokenExists(token.id)),
            _ => Ok(vec![Event::TokenMade { at: token.made_at, token: Box::new(token.clone()) }]),
        }
    }

    pub(crate) fn decide_use_token(
        &self,
        now: Millis,
        id: TokenId,
        hash: Digest,
        key: Digest,
    ) -> Result<Vec<Event>, Refusal> {
        let token = self.access.check(now, id, hash)?;
        match &token.used {
            _ if token.kind != TokenKind::Join => Err(Refusal::UnknownToken),
            // The answer may not have reached whoever asks again.
            Some(used) if used.key == key => Ok(Vec::new()),
            Some(_) => Err(Refusal::TokenUsed(id)),
            None => Ok(vec![Event::TokenUsed { at: now, id, key }]),
        }
    }

    pub(crate) fn decide_drop_token(&self, now: Millis, id: TokenId, by: &str) -> Result<Vec<Event>, Refusal> {
        match self.access.tokens.contains_key(&id) {
            true => Ok(vec![Event::TokenDropped { at: now, id, by: by.to_owned() }]),
            false => Err(Refusal::NoSuchToken(id)),
        }
    }

    /// Everything that stands for the identity ends: certificates, tokens; of a worker also its leases, whose jobs run elsewhere.
    /// So do tokens that it made and that still open something: whoever stole its key may have made them to come back.
    pub(crate) fn decide_revoke(&self, now: Millis, identity: &Identity, by: &str, why: &str) -> Vec<Event> {
        let who = identity.to_string();
        let of_it =
            |token: &&TokenRecord| token.identity.to_string() == who || (token.by == who && token.used.is_none());
        let dropped = self.access.tokens.values().filter(of_it);
        let mut events: Vec<Event> =
            dropped.map(|token| Event::TokenDropped { at: now, id: token.id, by: by.to_owned() }).collect();
        let (by, why) = (by.to_owned(), why.to_owned());
        events.push(Event::IdentityRevoked { at: now, who, by, why });
        let worker = (identity.role == Role::Worker).then(|| identity.name.parse::<WorkerName>().ok()).flatten();
        if let Some(worker) = worker.and_then(|name| self.worker(&name)) {
            let name = &worker.offer.name;
            let lost = |lease| self.lost(now, lease, Reason::WorkerGone, format!("worker {name} was revoked"));
            events.extend(worker.leases.iter().map(|lease| lost(*lease)));
            events.extend(self.decide_goodbye(now, name));
        }
        events
    }

    /// What is over for long is forgotten.
    pub(crate) fn decide_forget_access(&self, now: Millis) -> Vec<Event> {
        let over = |token: &&TokenRecord| now.since(token.expires_at) >= FORGET_TOKEN_MILLIS;
        let drop = |token: &TokenRecord| Event::TokenDropped { at: now, id: token.id, by: String::new() };
        self.access.tokens.values().filter(over).map(drop).collect()
    }

    pub(crate) fn apply_access(&mut self, event: &Event) {
        let access = &mut self.access;
        match event {
            Event::TokenMade { token, .. } => drop(access.tokens.insert(token.id, (**token).clone())),
            Event::TokenUsed { at, id, key } => {
                if let Some(token) = access.tokens.get_mut(id) {
                    token.used = Some(TokenUse { at: *at, key: *key });
                }
            }
            Event::TokenDropped { id, .. } => drop(access.tokens.remove(id)),
            Event::IdentityRevoked { at, who, .. } => {
                access.revoked.retain(|_, since| at.since(*since) < FORGET_REVOKED_MILLIS);
                access.revoked.insert(who.clone(), *at);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use railyard_common::token::Token;

    const MINUTE: u64 = 60_000;
    const NOW: Millis = Millis(1_000_000_000);

    fn run(farm: &mut Farm, now: Millis, command: &Command) -> Result<usize, Refusal> {
        let events = farm.decide(now, command)?;
        events.iter().for_each(|event| farm.apply(event));
        assert_eq!(Farm::restore(farm.snapshot()).access(), farm.access(), "a snapshot has it all");
        Ok(events.len())
    }

    fn make(farm: &mut Farm, token: &Token, who: &str, mins: u64) {
        let identity = format!("railyard://{who}").parse().unwrap();
        let (id, kind, hash, by) = (token.id, token.kind(), token.hash(), "olga".to_owned());
        let expires_at = NOW.plus(mins * MINUTE);
        let record = TokenRecord { id, kind, hash, identity, made_at: NOW, by, expires_at, used: None };
        run(farm, NOW, &Command::MakeToken(Box::new(record))).unwrap();
    }

    fn use_it(token: &Token, key: &str) -> Command {
        Command::UseToken { id: token.id, hash: token.hash(), key: Digest::of(key.as_bytes()) }
    }

    #[test]
    fn a_join_token_is_good_once_and_for_its_time() {
        let mut farm = Farm::default();
        let (one, two) = (Token::join([1; 8], [7; 32], [0; 32]), Token::join([2; 8], [7; 32], [0; 32]));
        make(&mut farm, &one, "worker/w1", 15);
        make(&mut farm, &two, "worker/w2", 15);

        let guessed = Token::join([1; 8], [8; 32], [0; 32]);
        assert_eq!(run(&mut farm, NOW, &use_it(&guessed, "k")), Err(Refusal::UnknownToken));
        let foreign = Token::join([3; 8], [7; 32], [0; 32]);
        assert_eq!(run(&mut farm, NOW, &use_it(&foreign, "k")), Err(Refusal::UnknownToken));

        assert_eq!(run(&mut farm, NOW, &use_it(&one, "k")), Ok(1));
        assert_eq!(run(&mut farm, NOW, &use_it(&one, "k")), Ok(0), "the answer may have been lost");
        assert_eq!(run(&mut farm, NOW, &use_it(&one, "other")), Err(Refusal::TokenUsed(one.id)));

        let late = NOW.plus(15 * MINUTE);
        assert_eq!(run(&mut farm, late, &use_it(&two, "k")), Err(Refusal::TokenExpired(two.id)));
        assert_eq!(farm.access().tokens().count(), 2, "what became of it can be seen");
        assert_eq!(run(&mut farm, late.plus(FORGET_TOKEN_MILLIS), &Command::Tick), Ok(2));
        assert_eq!(run(&mut farm, late, &use_it(&one, "k")), Err(Refusal::UnknownToken));
    }

    #[test]
    fn a_bearer_token_is_not_exchanged_and_ends_when_it_is_taken_back() {
        let mut farm = Farm::default();
        let token = Token::bearer([1; 8], [7; 32]);
        make(&mut farm, &token, "viewer/dash?pipeline=flatcar", 60);
        assert_eq!(run(&mut farm, NOW, &use_it(&token, "k")), Err(Refusal::UnknownToken));
        assert!(farm.access().check(NOW, token.id, token.hash()).is_ok());
        let drop_it = Command::DropToken { id: token.id, by: "olga".to_owned() };
        assert_eq!(run(&mut farm, NOW, &drop_it), Ok(1));
        assert_eq!(run(&mut farm, NOW, &drop_it), Err(Refusal::NoSuchToken(token.id)));
        assert_eq!(farm.access().check(NOW, token.id, token.hash()), Err(Refusal::UnknownToken));
    }

    #[test]
    fn a_revocation_ends_what_was_given_out_before_and_nothing_after() {
        let mut farm = Farm::default();
        let (join, bearer) = (Token::join([1; 8], [7; 32], [0; 32]), Token::bearer([2; 8], [7; 32]));
        make(&mut farm, &join, "submitter/ana?pipeline=flatcar", 60);
        make(&mut farm, &bearer, "submitter/ana", 60);
        make(&mut farm, &Token::bearer([3; 8], [7; 32]), "viewer/ana", 60);
        let identity: Identity = "railyard://submitter/ana".parse().unwrap();
        let revoke = Command::Revoke { identity: identity.clone(), by: "olga".to_owned(), why: "left".to_owned() };
        assert_eq!(run(&mut farm, NOW.plus(5), &revoke), Ok(3));
        assert_eq!(farm.access().tokens().count(), 1);
        assert!(farm.access().is_revoked(&identity, NOW.plus(5)) && !farm.access().is_revoked(&identity, NOW.plus(6)));
        assert!(!farm.access().is_revoked(&"railyard://viewer/ana".parse().unwrap(), NOW));
    }

    #[test]
    fn a_revocation_ends_what_the_revoked_made_and_nobody_has_used_yet() {
        let mut farm = Farm::default();
        let made = |farm: &mut Farm, id: u8, kind: TokenKind, who: &str, by: &str| {
            let token = match kind {
                TokenKind::Join => Token::join([id; 8], [7; 32], [0; 32]),
                TokenKind::Bearer => Token::bearer([id; 8], [7; 32]),
            };
            let (identity, by) = (format!("railyard://{who}").parse().unwrap(), by.to_owned());
            let (id, hash, expires_at) = (token.id, token.hash(), NOW.plus(MINUTE));
            let record = TokenRecord { id, kind, hash, identity, made_at: NOW, by, expires_at, used: None };
            run(farm, NOW, &Command::MakeToken(Box::new(record))).unwrap();
            token
        };
        let used = made(&mut farm, 1, TokenKind::Join, "worker/w1", "operator/mallory");
        run(&mut farm, NOW, &use_it(&used, "k")).unwrap();
        made(&mut farm, 2, TokenKind::Join, "operator/backdoor", "operator/mallory");
        made(&mut farm, 3, TokenKind::Bearer, "operator/script", "operator/mallory");
        made(&mut farm, 4, TokenKind::Bearer, "operator/mallory", "operator/mallory");
        let others = made(&mut farm, 5, TokenKind::Bearer, "viewer/dash", "operator/olga");
        let identity: Identity = "railyard://operator/mallory".parse().unwrap();
        let revoke = Command::Revoke { identity, by: "operator/olga".to_owned(), why: "stolen".to_owned() };
        let events = farm.decide(NOW, &revoke).unwrap();
        let dropped =
            events.iter().filter(|event| matches!(event, Event::TokenDropped { by, .. } if by == "operator/olga"));
        assert_eq!((dropped.count(), events.len()), (3, 4));
        run(&mut farm, NOW, &revoke).unwrap();
        let left: Vec<TokenId> = farm.access().tokens().map(|token| token.id).collect();
        assert_eq!(left, [used.id, others.id], "what was used is over, and stays listed");
    }

    #[test]
    fn tokens_do_not_pile_up() {
        let mut farm = Farm::default();
        for n in 0..TOKENS_MAX {
            let id = TokenId(u64::try_from(n).unwrap().to_be_bytes());
            let (kind, hash) = (TokenKind::Join, Digest::of(b"x"));
            let identity = "railyard://worker/w".parse().unwrap();
            let token =
                TokenRecord { id, kind, hash, identity, made_at: NOW, by: String::new(), expires_at: NOW, used: None };
            farm.apply(&Event::TokenMade { at: NOW, token: Box::new(token) });
        }
        let one_more = farm.access().tokens().next().cloned().unwrap();
        let answer = farm.decide(NOW, &Command::MakeToken(Box::new(one_more)));
        assert_eq!(answer, Err(Refusal::TooManyTokens(TOKENS_MAX)));
    }
}
