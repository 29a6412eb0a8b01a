//! Secrets and the stream in which they are masked: both are written by others.

use super::Target;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use railyard_common::redact::{Masks, is_maskable};

pub const REDACT: Target = Target {
    name: "redact",
    parse,
    examples: || {
        let texts = [
            "hunter22hunter\0login hunter22hunter ok\n",
            "a token/with+all=\0url=a%20token%2Fwith%2Ball%3D&x {\"t\":\"a token\\/with+all=\"}",
            "-----BEGIN KEY-----\nMIIEvQIBADANBgk\nqhkiG9w0BAQEF\n-----END KEY-----\n\0  MIIEvQIBADANBgk\r\n  qhkiG9w0BAQEF\r\n",
            "hunter22hunter\0YTpodW50ZXIyMmh1\nbnRlcg==\n68756e746572\r\n323268756e746572\n",
            "aaaaaaaa\0aaaaaaaaaaaaaaaaaaa",
            "it's \\ \"quoted\" é😀<&>\0it'\\''s \\\\ \\\"quoted\\\" \\u00e9\\ud83d\\ude00\\u003c\\u0026\\u003e",
        ];
        super::texts(&texts)
    },
    words: &[
        "\0", "\n", "\r\n", "%", "%2F", "+", "\\u00", "\\n", "\\", "'\\''", "=", "aaaaaaaa", "YTpodW50", "hunter22",
    ],
    max_len: 4_096,
    // Two dozen ways to write a value, each of its lines as well, and each way up to six times as long.
    memory_factor: 4_000,
    memory_base: 0,
};

/// The secret, and what is said, with a zero between them.
fn parse(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (value, said) = (&bytes[..end], bytes.get(end + 1..).unwrap_or_default());
    let masks = Masks::new([value]);
    assert_eq!(masks.is_empty(), !is_maskable(value));
    let told = masks.mask(said);
    assert_eq!(told.len(), said.len());
    assert!(told.iter().zip(said).all(|(told, said)| told == said || (*told == b'*' && !b"\r\n".contains(said))));

    // In pieces it is the same. Where it is cut depends on what is said.
    let (mut masker, mut pieces, mut rest) = (masks.stream(), Vec::new(), said);
    while let [first, ..] = rest {
        let (piece, after) = rest.split_at((usize::from(*first) % 13 + 1).min(rest.len()));
        masker.push_into(piece, &mut pieces);
        rest = after;
        assert_eq!(pieces.len() + masker.held() + rest.len(), said.len());
    }
    let held = masker.held();
    pieces.extend(masker.finish());
    assert_eq!(pieces, told);

    // However it continues, the value is not told.
    if is_maskable(value) {
        let value = value.trim_ascii();
        for form in [value.to_vec(), STANDARD.encode(value).into_bytes()] {
            let told = masks.mask(&[said, &form].concat());
            assert!(told[said.len()..].iter().all(|byte| b"*\r\n".contains(byte)), "{told:?}");
        }
    }
    let masked = told.iter().zip(said).filter(|(told, said)| told != said).count();
    let bits = |number: usize| usize::BITS - number.leading_zeros();
    // Words, as what is said without its numbers is what counts.
    let many = |number: usize| "i".repeat(bits(number) as usize);
    format!("masked {}, held {}, lines {}", many(masked), many(held), many(value.split(|byte| *byte == b'\n').count()))
}
