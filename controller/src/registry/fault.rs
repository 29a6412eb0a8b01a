//! What a client is told when it does not get what it asked for, in the specification's form.

use crate::access::CHALLENGE;
use crate::cache::CacheError;
use crate::driver::CommandError;
use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;

/// The specification's codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    ManifestUnknown,
    NameUnknown,
    NameInvalid,
    DigestInvalid,
    BlobUnknown,
    Unauthorized,
    Denied,
    Unsupported,
    /// There is no such API here: to clients 404 means that they have to do without it.
    NoSuchApi,
    /// The specification has none for a fault of the registry's own; this is what others say.
    Unknown,
    Unavailable,
}

impl Code {
    fn as_str(self) -> &'static str {
        match self {
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported | Self::NoSuchApi => "UNSUPPORTED",
            Self::Unknown => "UNKNOWN",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    fn status(self) -> StatusCode {
        match self {
            Self::ManifestUnknown | Self::NameUnknown | Self::BlobUnknown | Self::NoSuchApi => StatusCode::NOT_FOUND,
            Self::NameInvalid | Self::DigestInvalid => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// An answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub code: Code,
    pub message: String,
}

impl Fault {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub(super) fn unknown_name(name: &str) -> Self {
        let message = format!("no step of a build commits an image {name}; /v2/_catalog lists what there is");
        Self::new(Code::NameUnknown, message)
    }

    pub(super) fn unknown_manifest(name: &str, reference: &str) -> Self {
        let message = format!("{name} has no {reference}; /v2/{name}/tags/list lists what there is");
        Self::new(Code::ManifestUnknown, message)
    }

    pub(super) fn into_response(self) -> Response {
        let body = json!({ "errors": [{ "code": self.code.as_str(), "message": self.message }] });
        let status = self.code.status();
        match self.code {
            Code::Unauthorized => (status, [(header::WWW_AUTHENTICATE, CHALLENGE)], Json(body)).into_response(),
            Code::Unsupported => (status, [(header::ALLOW, "GET, HEAD")], Json(body)).into_response(),
            _ => (status, Json(body)).into_response(),
        }
    }
}

impl From<CacheError> for Fault {
    fn from(error: CacheError) -> Self {
        if let CacheError::NoBlob { digest } = error {
            return Self::new(Code::BlobUnknown, format!("the cache has lost {digest}; run the step again"));
        }
        // Paths of this machine are for its operator, not for everybody.
        tracing::error!(error = &error as &dyn std::error::Error, "the registry cannot read the cache");
        Self::new(Code::Unknown, "the cache cannot be read; see the controller's log")
    }
}

impl From<CommandError> for Fault {
    fn from(error: CommandError) -> Self {
        Self::new(Code::Unavailable, error.to_string())
    }
}
