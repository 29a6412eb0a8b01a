//! Secrets that stand for somebody: one-time tokens to join with, and bearer tokens for scripts.
//!
//! ```text
//! railyard-join-BASE64URL(id 8 · secret 32 · SHA-256 of the CA's certificate 32 · check 4)
//! railyard-bearer-BASE64URL(id 8 · secret 32 · check 4)
//! ```
//!
//! The check is the beginning of a SHA-256 over everything before it: a token that was not copied whole is told from one that
//! is not known. The farm keeps [`Token::hash`], never the secret.

use crate::digest::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

const ID_LEN: usize = 8;
const SECRET_LEN: usize = 32;
const CHECK_LEN: usize = 4;
const JOIN: &str = "railyard-join-";
const BEARER: &str = "railyard-bearer-";
/// Longer than any token.
const TEXT_MAX_LEN: usize = 256;

/// What a token is called where its secret must not be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub [u8; ID_LEN]);

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.0))
    }
}

/// The text is no token's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a token's id: expected 16 hexadecimal digits, as `railyard token list` shows them")]
pub struct BadTokenId(String);

impl FromStr for TokenId {
    type Err = BadTokenId;

    fn from_str(text: &str) -> Result<Self, BadTokenId> {
        let mut id = [0; ID_LEN];
        hex::decode_to_slice(text, &mut id).map_err(|_| BadTokenId(text.chars().take(64).collect()))?;
        Ok(Self(id))
    }
}

impl Serialize for TokenId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TokenId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenKind {
    /// It is exchanged once for a certificate.
    Join,
    /// It is shown with every call.
    Bearer,
}

impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Join => "join",
            Self::Bearer => "bearer",
        })
    }
}

/// A token with its secret. Only [`Token::reveal`] shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Its public name.
    pub id: TokenId,
    secret: [u8; SECRET_LEN],
    /// The SHA-256 of the farm's CA certificate (DER), in a token to join with.
    ca: Option<[u8; 32]>,
}

/// The text is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadToken {
    /// It does not begin as one.
    #[error("this is not a token of Railyard: it begins with neither `{JOIN}` nor `{BEARER}`")]
    Foreign,
    /// It begins as one.
    #[error("the token is damaged: copy it whole, without spaces or line breaks")]
    Damaged,
    /// It is one of the other kind.
    #[error("this is a {got} token, and a {wanted} token is needed here")]
    Kind {
        /// What it is.
        got: TokenKind,
        /// What it should be.
        wanted: TokenKind,
    },
}

impl Token {
    /// A token to join with, from random bytes.
    pub fn join(id: [u8; ID_LEN], secret: [u8; SECRET_LEN], ca: [u8; 32]) -> Self {
        Self { id: TokenId(id), secret, ca: Some(ca) }
    }

    /// A bearer token, from random bytes.
    pub fn bearer(id: [u8; ID_LEN], secret: [u8; SECRET_LEN]) -> Self {
        Self { id: TokenId(id), secret, ca: None }
    }

    /// What it is for.
    pub fn kind(&self) -> TokenKind {
        if self.ca.is_some() { TokenKind::Join } else { TokenKind::Bearer }
    }

    /// The SHA-256 of the farm's CA certificate, if this is a token to join with.
    pub fn ca(&self) -> Option<&[u8; 32]> {
        self.ca.as_ref()
    }

    /// What the farm keeps instead of the secret. The secret has 256 random bits, so that a plain hash is as good as a slow one.
    pub fn hash(&self) -> Digest {
        Digest::of(&[&b"railyard token"[..], &self.id.0, &self.secret].concat())
    }

    /// The whole text, secret included.
    pub fn reveal(&self) -> String {
        let (prefix, ca) = match &self.ca {
            Some(ca) => (JOIN, &ca[..]),
            None => (BEARER, &[][..]),
        };
        let mut bytes = [&self.id.0[..], &self.secret, ca].concat();
        bytes.extend_from_slice(&check(prefix, &bytes));
        format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Parses a token of one kind.
    ///
    /// # Errors
    /// [`BadToken`], which never repeats the text.
    pub fn parse(text: &str, wanted: TokenKind) -> Result<Self, BadToken> {
        let token: Self = text.parse()?;
        match token.kind() {
            kind if kind == wanted => Ok(token),
            got => Err(BadToken::Kind { got, wanted }),
        }
    }
}

fn check(prefix: &str, bytes: &[u8]) -> [u8; CHECK_LEN] {
    let digest = Digest::of(&[prefix.as_bytes(), bytes].concat());
    std::array::from_fn(|i| digest.bytes()[i])
}

impl FromStr for Token {
    type Err = BadToken;

    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        if text.len() > TEXT_MAX_LEN {
            return Err(BadToken::Damaged);
        }
        let (prefix, body) = [JOIN, BEARER]
            .into_iter()
            .find_map(|prefix| text.strip_prefix(prefix).map(|body| (prefix, body)))
            .ok_or(BadToken::Foreign)?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| BadToken::Damaged)?;
        let (bytes, sum) = bytes.split_last_chunk::<CHECK_LEN>().ok_or(BadToken::Damaged)?;
        if check(prefix, bytes) != *sum {
            return Err(BadToken::Damaged);
        }
        let (id, rest) = bytes.split_first_chunk::<ID_LEN>().ok_or(BadToken::Damaged)?;
        let (secret, ca) = rest.split_first_chunk::<SECRET_LEN>().ok_or(BadToken::Damaged)?;
        let ca = match prefix {
            JOIN => Some(ca.try_into().map_err(|_| BadToken::Damaged)?),
            _ if ca.is_empty() => None,
            _ => return Err(BadToken::Damaged),
        };
        Ok(Self { id: TokenId(*id), secret: *secret, ca })
    }
}

/// Characters of a token that make it one: with fewer, what is secret cannot be guessed from them, and a name may begin like that.
const BODY_MIN_LEN: usize = 24;
/// Characters in which the whole id is.
const ID_CHARS: usize = ID_LEN * 4 / 3 + 2;

/// `text` with `token:ID` in place of everything in it that looks like a token, whole or cut off. For what people paste into the
/// wrong place.
pub fn without_tokens(text: &str) -> Cow<'_, str> {
    let (mut clean, mut rest) = (String::new(), text);
    let next = |text: &str| [JOIN, BEARER].iter().filter_map(|it| Some((text.find(it)?, it.len()))).min();
    while let Some((start, prefix_len)) = next(rest) {
        let from = start + prefix_len;
        let is_body = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let body = &rest[from..];
        let body = &body[..body.find(|c| !is_body(c)).unwrap_or(body.len())];
        let body = &body[..next(body).map_or(body.len(), |(start, _)| start)];
        if body.len() < BODY_MIN_LEN {
            clean.push_str(&rest[..from]);
            rest = &rest[from..];
            continue;
        }
        clean.push_str(&rest[..start]);
        clean.push_str("token:");
        // Nine bytes: the id, and one that is left out.
        let bytes = URL_SAFE_NO_PAD.decode(&body[..ID_CHARS]).unwrap_or_default();
        clean.push_str(&bytes.get(..ID_LEN).map(hex::encode).unwrap_or_default());
        rest = &rest[from + body.len()..];
    }
    if rest.len() == text.len() {
        return Cow::Borrowed(text);
    }
    clean.push_str(rest);
    Cow::Owned(clean)
}

/// The secret stays out of logs.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens() -> [Token; 2] {
        [Token::join([1; 8], [2; 32], [3; 32]), Token::bearer([1; 8], [2; 32])]
    }

    #[test]
    fn a_token_survives_being_written_and_its_kind_is_told() {
        for token in tokens() {
            let text = token.reveal();
            assert_eq!(text.parse::<Token>().unwrap(), token);
            assert_eq!(format!("\n{text} ").parse::<Token>().unwrap(), token);
            assert!(!format!("{token:?}").contains("2, 2"), "the secret is not shown");
        }
        let [join, bearer] = tokens();
        assert_eq!(join.reveal().len(), 14 + 102);
        let error = Token::parse(&bearer.reveal(), TokenKind::Join).unwrap_err();
        assert_eq!(error.to_string(), "this is a bearer token, and a join token is needed here");
        assert_ne!(join.hash(), Token::join([1; 8], [4; 32], [3; 32]).hash());
        assert_eq!(join.id.to_string().parse::<TokenId>().unwrap(), join.id);
    }

    #[test]
    fn where_a_token_was_pasted_only_its_id_is_left() {
        for token in tokens() {
            let (text, id) = (token.reveal(), format!("token:{}", token.id));
            for (before, after) in [("", ""), ("/cache/", "?x"), ("no such build `a/", "`"), ("railyard-join-", ".")] {
                assert_eq!(without_tokens(&format!("{before}{text}{after}")), format!("{before}{id}{after}"));
            }
            assert_eq!(without_tokens(&format!("{text} {text}")), format!("{id} {id}"));
            // Cut off on the way, and with something behind it.
            assert_eq!(without_tokens(&text[..60]), id);
            assert_eq!(without_tokens(&format!("{text}-abc")), id);
        }
        for text in
            ["", "railyard-join", "railyard-join-tests/1", "é railyard-bearer-x railyard", "token:0101010101010101"]
        {
            assert_eq!(without_tokens(text), text);
        }
    }

    proptest! {
        #[test]
        fn nothing_of_a_token_is_left_wherever_it_stands(
            which in 0usize..2,
            before in "[ -~é]{0,40}",
            after in "[ -~é]{0,40}",
        ) {
            let secret = tokens()[which].reveal();
            let secret = &secret[secret.len() - 50..];
            let clean = without_tokens(&format!("{before}{}{after}", tokens()[which].reveal())).into_owned();
            prop_assert!(!clean.contains(secret) && clean.contains("token:"), "{}", clean);
        }

        #[test]
        fn a_changed_token_is_a_damaged_one(which in 0usize..2, at in 0usize..116, with in "[A-Za-z0-9_-]") {
            let text = tokens()[which].reveal();
            let at = at % text.len();
            let mut changed = text.clone();
            changed.replace_range(at..at + 1, &with);
            prop_assert!(changed == text || changed.parse::<Token>().is_err());
            prop_assert!(text[..at].parse::<Token>().is_err());
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in "(railyard-(join|bearer)-)?[ -~]{0,300}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.reveal(), text.trim());
            }
        }
    }
}
