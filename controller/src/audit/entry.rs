//! What a caller tells the audit.

use super::Act;
use railyard_common::token::without_tokens;
use railyard_service::listener::{Peer, Proof};
use railyard_service::tls::Identity;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Longest target, reason and detail, in bytes: a build's name and a sentence fit, a flood of text does not.
const TEXT_MAX_BYTES: usize = 512;
/// Most details of one entry.
const DETAILS_MAX: usize = 16;
/// Stands where a text was cut.
const CUT: &str = "…";

/// Who did it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// The controller itself.
    Controller,
    /// Somebody who showed no valid certificate or token.
    Nobody,
    /// Whom a certificate or token speaks for.
    Somebody(Identity),
}

impl By {
    /// `controller`, `nobody`, or `ROLE/NAME`.
    pub fn text(&self) -> String {
        match self {
            Self::Controller => "controller".to_owned(),
            Self::Nobody => "nobody".to_owned(),
            Self::Somebody(identity) => identity.to_string(),
        }
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It was not done, because it must not or cannot be.
    Refused(String),
    /// It was begun, and whether it is done is not known.
    Failed(String),
}

impl Outcome {
    /// The word in the file.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        }
    }

    /// Why it is not done.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Refused(why) | Self::Failed(why) => Some(why),
        }
    }
}

/// Who did what, to what, and how that ended. It becomes one record.
///
/// Texts from outside may be put in as they are: they are cut to a length, cannot break a line, and of a token in them only the id
/// is kept. **Never put a secret in**: no token, no key, no value of a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(super) act: Act,
    pub(super) by: By,
    pub(super) from: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) via: Option<String>,
    pub(super) target: String,
    pub(super) outcome: Outcome,
    pub(super) details: BTreeMap<&'static str, String>,
}

impl Entry {
    /// An act of the controller itself that is done. The other calls say what is different.
    pub fn new(act: Act) -> Self {
        Self {
            act,
            by: By::Controller,
            from: None,
            port: None,
            via: None,
            target: String::new(),
            outcome: Outcome::Done,
            details: BTreeMap::new(),
        }
    }

    /// It was asked over this connection, by whom the certificate or token that was shown speaks for.
    pub fn peer(self, peer: &Peer) -> Self {
        let by = peer.identity.clone().map_or(By::Nobody, By::Somebody);
        let via = peer.proof.as_ref().map(|proof| match proof {
            Proof::Certificate { fingerprint, .. } => format!("cert:{fingerprint}"),
            Proof::Token(id) => format!("token:{id}"),
        });
        Self { by, via: via.or(self.via), from: Some(peer.addr.ip()), port: Some(peer.addr.port()), ..self }
    }

    /// Who did it, if the connection does not say, for instance whom a token speaks for.
    pub fn by(self, by: By) -> Self {
        Self { by, ..self }
    }

    /// By what they were known: `cert:FINGERPRINT`, `token:ID`. Never the token itself.
    pub fn via(self, via: impl AsRef<str>) -> Self {
        Self { via: Some(cut(via.as_ref())), ..self }
    }

    /// What it was done to: a build, a worker, a token's id, the path of a call.
    pub fn target(self, target: impl AsRef<str>) -> Self {
        Self { target: cut(target.as_ref()), ..self }
    }

    /// Something more. What goes beyond the limit of an entry is left out.
    pub fn detail(mut self, name: &'static str, value: impl AsRef<str>) -> Self {
        if self.details.len() < DETAILS_MAX || self.details.contains_key(name) {
            self.details.insert(name, cut(value.as_ref()));
        }
        self
    }

    /// It was refused.
    pub fn refused(self, why: impl AsRef<str>) -> Self {
        Self { outcome: Outcome::Refused(cut(why.as_ref())), ..self }
    }

    /// It was begun, and whether it is done is not known.
    pub fn failed(self, why: impl AsRef<str>) -> Self {
        Self { outcome: Outcome::Failed(cut(why.as_ref())), ..self }
    }
}

/// At most [`TEXT_MAX_BYTES`] of `text`, on the border of a character, and no token that somebody has put in the wrong place.
fn cut(text: &str) -> String {
    let text = without_tokens(text);
    if text.len() <= TEXT_MAX_BYTES {
        return text.into_owned();
    }
    format!("{}{CUT}", &text[..text.floor_char_boundary(TEXT_MAX_BYTES - CUT.len())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_common::token::Token;

    #[test]
    fn of_a_token_only_its_id_is_kept() {
        let token = Token::bearer([7; 8], [9; 32]).reveal();
        let text = format!("{} is no build: {token}", "x".repeat(400));
        let entry = Entry::new(Act::Cancel).target(&token).via(&token).detail("version", &token);
        for entry in [entry.clone().refused(&text), entry.failed(&text)] {
            let all = format!("{entry:?}");
            assert!(!all.contains("railyard-bearer") && all.contains("is no build: token:0707070707070707"), "{all}");
            assert_eq!((entry.target.as_str(), &*entry.details["version"]), ("token:0707070707070707", &*entry.target));
        }
    }

    #[test]
    fn texts_from_outside_have_a_limit() {
        let long = "ä\n\"".repeat(10_000);
        let mut entry = Entry::new(Act::Submit).target(&long).via(&long).refused(&long);
        let names: Vec<&'static str> = (0..100).map(|n| &*format!("d{n}").leak()).collect();
        for name in names {
            entry = entry.detail(name, &long);
        }
        assert_eq!(entry.details.len(), DETAILS_MAX);
        let texts = [entry.target.as_str(), entry.outcome.reason().unwrap(), entry.via.as_deref().unwrap()];
        for text in texts.into_iter().chain(entry.details.values().map(String::as_str)) {
            assert!(text.len() <= TEXT_MAX_BYTES && text.ends_with(CUT), "{}", text.len());
        }
    }
}
