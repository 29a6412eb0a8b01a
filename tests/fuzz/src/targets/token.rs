//! Tokens, to join with and to show.

use super::Target;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use railyard_common::digest::Digest;
use railyard_common::token::{Token, TokenId, TokenKind};
use railyard_controller::fuzz;

pub const TOKEN: Target = Target {
    name: "token",
    parse,
    examples: || {
        let tokens = [Token::join([1; 8], [2; 32], [3; 32]), Token::bearer([0; 8], [255; 32])];
        let mut texts: Vec<_> = tokens.iter().map(|token| token.reveal().into_bytes()).collect();
        texts.push(b"0123456789abcdef".to_vec());
        texts.extend([40, 72, 41, 73].map(|length| [&[MADE][..], &vec![7; length]].concat()));
        texts
    },
    words: &[
        "railyard-join-",
        "railyard-bearer-",
        "!",
        "Basic ",
        "bearer ",
        "=",
        "+",
        "/",
        "-",
        "_",
        " ",
        "\n",
        "\0",
        "é",
    ],
    max_len: 1_024,
    memory_factor: 64,
    memory_base: 0,
};

/// The header that it comes in, in both ways; and the text as such a header.
fn authorization(text: &str) -> &'static str {
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("somebody:{text}"));
    assert_eq!(fuzz::access::authorization(&format!("Basic {basic}")), "a token");
    assert_eq!(fuzz::access::authorization(&format!("bearer {text}")), "a token");
    fuzz::access::authorization(text)
}

/// What follows this is what a token is made of, and is written as one: nobody guesses the check at its end.
const MADE: u8 = b'!';

fn made(bytes: &[u8]) -> String {
    let prefix = if bytes.len().is_multiple_of(2) { "railyard-join-" } else { "railyard-bearer-" };
    let sum = Digest::of(&[prefix.as_bytes(), bytes].concat());
    format!("{prefix}{}", URL_SAFE_NO_PAD.encode([bytes, &sum.bytes()[..4]].concat()))
}

fn parse(bytes: &[u8]) -> String {
    let text = &*match bytes {
        [MADE, rest @ ..] => made(rest),
        bytes => String::from_utf8_lossy(bytes).into_owned(),
    };
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
    format!("{id}, {token}, {}", authorization(text))
}
