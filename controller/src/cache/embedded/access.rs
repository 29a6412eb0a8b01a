//! Who may do what with which path.

use super::Embedded;
use super::signing::{Right, Unsigned};
use crate::access::{CHALLENGE, table};
use crate::cache::CacheError;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use railyard_common::id::LeaseId;
use railyard_common::layout;
use railyard_common::path::RelPath;
use railyard_service::listener::Peer;

/// What a request is about.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// `None` is the root.
    pub path: Option<RelPath>,
    /// Whether the URL ended with a slash.
    pub as_directory: bool,
    /// The values of the query that the cache knows.
    pub query: Query,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Query {
    pub expires: Option<u64>,
    pub signature: Option<String>,
    pub part: Option<u32>,
    pub length: Option<u64>,
    pub crc32: Option<u32>,
    pub lease: Option<LeaseId>,
    pub json: bool,
}

/// An answer that is not what was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    /// The name of the fault and a sentence.
    pub text: String,
    /// The sender had the right, and has it no more: it is heard out, so that it reads this instead of a broken connection.
    pub expired: bool,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), expired: false }
    }

    pub(super) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound: the cache has nothing there")
    }

    /// A browser asks its user for a password then: a bearer token.
    fn private() -> Self {
        let why =
            "this cache is private: use a signed URL, a certificate of the farm, or a bearer token as the password";
        Self::new(StatusCode::UNAUTHORIZED, format!("AccessDenied: {why}"))
    }

    fn denied(why: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, format!("AccessDenied: {why}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, format!("{}\n", self.text)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        response
    }
}

impl From<CacheError> for Refusal {
    fn from(error: CacheError) -> Self {
        let status = match &error {
            CacheError::UnknownUpload { .. } | CacheError::NoBlob { .. } => StatusCode::NOT_FOUND,
            CacheError::Conflict { .. } | CacheError::Incomplete { .. } => StatusCode::CONFLICT,
            CacheError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            CacheError::DiskFull { .. } => StatusCode::INSUFFICIENT_STORAGE,
            CacheError::BadPath { .. } | CacheError::Invalid { .. } | CacheError::Corrupt { .. } => {
                StatusCode::BAD_REQUEST
            }
            CacheError::Io { .. } | CacheError::Store { .. } | CacheError::Config { .. } => {
                // Paths of this machine are for its operator, not for everybody.
                tracing::error!(error = &error as &dyn std::error::Error, "a cache request failed");
                return Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError: see the controller's log");
            }
        };
        Self::new(status, format!("{}: {error}", error.kind()))
    }
}

impl Target {
    /// Reads the URL. The path is taken as it came: nothing is normalised, so that `..` in any spelling is refused.
    pub(super) fn parse(prefix: &str, uri: &Uri) -> Result<Self, Refusal> {
        let bad = |why: &str| Refusal::new(StatusCode::BAD_REQUEST, format!("BadPath: {why}"));
        let raw = uri.path().strip_prefix(prefix).ok_or_else(Refusal::not_found)?;
        let (is_root, raw) = (raw == "/", raw.strip_prefix('/').unwrap_or(raw));
        let decoded = percent_decode(raw).ok_or_else(|| bad("the URL is not percent-encoded UTF-8"))?;
        let as_directory = is_root || decoded.ends_with('/');
        let path = match decoded.strip_suffix('/').unwrap_or(&decoded) {
            "" if decoded.is_empty() => None,
            text => Some(text.parse::<RelPath>().map_err(|error| bad(error.why))?),
        };
        Ok(Self { path, as_directory, query: Query::parse(uri.query().unwrap_or_default())? })
    }
}

impl Query {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let mut query = Self::default();
        for (name, value) in text.split('&').filter_map(|pair| pair.split_once('=')) {
            // A value that does not parse makes the URL an altered one.
            let altered = |_| Refusal::denied("the query of this URL was altered");
            match name {
                "expires" => query.expires = Some(value.parse().map_err(altered)?),
                "signature" => query.signature = Some(value.to_owned()),
                "part" => query.part = Some(value.parse().map_err(altered)?),
                // Written in one way only, as it was signed.
                "lease" => {
                    query.lease = Some(value.parse().map_err(|_| Refusal::denied("the query of this URL was altered"))?)
                }
                "length" => query.length = Some(value.parse().map_err(altered)?),
                "crc32" => query.crc32 = Some(u32::from_str_radix(value, 16).map_err(altered)?),
                "format" => query.json = value == "json",
                _ => {}
            }
        }
        Ok(query)
    }
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let [high, low, tail @ ..] = rest else { return None };
            let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
            bytes.push(digit(high)? << 4 | digit(low)?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

impl Embedded {
    /// Whether `target` may be read. A signature that is there must be good, even where none is needed.
    pub(super) async fn allow_read(&self, target: &Target, method: &str, peer: Option<&Peer>) -> Result<(), Refusal> {
        if target.query.signature.is_some() || target.query.expires.is_some() {
            let path = target.path.as_ref().map_or("", |path| path.as_str());
            let lease = target.query.lease;
            self.allow_signed(target, Right::Read { method, path, lease })?;
            return match lease {
                Some(lease) => self.allow_lease(lease).await,
                None => Ok(()),
            };
        }
        if self.public_read {
            return Ok(());
        }
        let Some(identity) = peer.and_then(|peer| peer.identity.as_ref()) else { return Err(Refusal::private()) };
        if !table::may_read(table::READ_CACHE, identity) {
            return Err(Refusal::denied("workers read by signed URLs only"));
        }
        let pipeline = target.path.as_ref().and_then(layout::pipeline_of);
        match identity.limits.pipelines.is_empty() || pipeline.is_some_and(|it| identity.limits.allow_pipeline(&it)) {
            true => Ok(()),
            false => Err(Refusal::denied(
                "you are limited to some pipelines, whose builds/PIPELINE and logs/PIPELINE you may read here; `railyard fetch` \
                 gets you their artifacts",
            )),
        }
    }

    /// Whether the lease that something was signed for lives.
    pub(super) async fn allow_lease(&self, lease: LeaseId) -> Result<(), Refusal> {
        match self.leases.get() {
            Some(leases) if !leases.is_live(lease).await => {
                Err(Refusal::denied("this URL was signed for a lease that is over"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the signature of `target` gives `right`.
    pub(super) fn allow_signed(&self, target: &Target, right: Right<'_>) -> Result<(), Refusal> {
        let (Some(expires), Some(signature)) = (target.query.expires, &target.query.signature) else {
            return Err(Refusal::denied("this needs a signed URL"));
        };
        match self.key.check(right, expires, signature, self.clock.now()) {
            Ok(()) => Ok(()),
            Err(Unsigned::Expired) => Err(Refusal { expired: true, ..Refusal::denied("the signed URL has expired") }),
            Err(Unsigned::Wrong) => Err(Refusal::denied("the signature does not fit this URL")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, Refusal> {
        Target::parse("/cache", &text.parse().unwrap())
    }

    #[test]
    fn paths_are_decoded_once_and_checked() {
        let path = |text| parse(text).unwrap().path.unwrap().as_str().to_owned();
        assert_eq!(path("/cache/images/a%2Bb+c"), "images/a+b+c");
        assert_eq!(path("/cache/images/"), "images");
        assert_eq!(path("/cache/a%252e"), "a%2e");
        assert!(parse("/cache").unwrap().path.is_none());
        assert!(!parse("/cache").unwrap().as_directory && parse("/cache/").unwrap().as_directory);
        for bad in [
            "/cache/../etc",
            "/cache/%2e%2e/etc",
            "/cache/a/%2E./b",
            "/cache/a%00b",
            "/cache//etc",
            "/cache/%2fetc",
            "/cache/a%2f%2e%2e%2fb",
            "/cache/a%5cb",
            "/cache/%ff",
            "/cache/%4",
        ] {
            assert_eq!(parse(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad}");
        }
    }

    #[test]
    fn a_query_with_nonsense_is_an_altered_one() {
        assert_eq!(parse("/cache/a?expires=never").unwrap_err().status, StatusCode::FORBIDDEN);
        assert!(parse("/cache/a/?format=json").unwrap().query.json);
    }
}
