//! The header `Authorization`, from any text: see [`crate::fuzz`].

use super::gate::parse_authorization;

/// The value of a header.
pub fn authorization(text: &str) -> &'static str {
    match parse_authorization(text) {
        Some(token) => {
            // As it is shown, or as it is in base64.
            assert!(token.len() <= text.len());
            "a token"
        }
        None => "no token",
    }
}
