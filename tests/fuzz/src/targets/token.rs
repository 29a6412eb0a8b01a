//! Tokens, to join with and to show.

use super::Target;
use railyard_common::token::{Token, TokenId, TokenKind};

pub const TOKEN: Target = Target {
    name: "token",
    parse,
    examples: || {
        let tokens = [Token::join([1; 8], [2; 32], [3; 32]), Token::bearer([0; 8], [255; 32])];
        let mut texts: Vec<_> = tokens.iter().map(|token| token.reveal().into_bytes()).collect();
        texts.push(b"0123456789abcdef".to_vec());
        texts
    },
    words: &["railyard-join-", "railyard-bearer-", "=", "+", "/", "-", "_", " ", "\n", "\0", "é"],
    max_len: 1_024,
    memory_factor: 64,
};

fn parse(bytes: &[u8]) -> String {
    let text = &*String::from_utf8_lossy(bytes);
    let id = match text.parse::<TokenId>() {
        Ok(id) => {
            assert_eq!(id.to_string().parse::<TokenId>(), Ok(id));
            "an id"
        }
        Err(_) => "no id",
    };
    let token = match text.parse::<Token>() {
        Ok(token) => {
            let told = token.reveal();
            // There is one way to write it: what was read is what is written.
            assert_eq!((told.as_str(), told.parse::<Token>().as_ref()), (text.trim(), Ok(&token)));
            let other = if token.kind() == TokenKind::Join { TokenKind::Bearer } else { TokenKind::Join };
            assert!(Token::parse(text, other).is_err() && !format!("{token:?}").contains(text.trim()));
            token.kind().to_string()
        }
        Err(error) => {
            assert!(text.trim().len() < 24 || !error.to_string().contains(text.trim()), "a refusal repeats the token");
            error.to_string()
        }
    };
    format!("{id}, {token}")
}
