//! Changes an input a little.

use fastrand::Rng;

/// Numbers at which things break.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_ffff,
    1 << 20,
    1_000_000_007,
];

/// A changed copy of `input`, of at most `max_len` bytes. `other` is another input, `words` are what the format knows.
pub fn mutate(rng: &mut Rng, input: &[u8], other: &[u8], words: &[&str], max_len: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=rng.usize(..4) {
        change(rng, &mut bytes, other, words);
        bytes.truncate(max_len);
    }
    bytes
}

fn change(rng: &mut Rng, bytes: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let at = rng.usize(..=bytes.len());
    match rng.u8(..13) {
        0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
        1 if at < bytes.len() => bytes[at] = rng.u8(..),
        2 => bytes.insert(at, rng.u8(..)),
        3 => drop(bytes.drain(range(rng, bytes.len()))),
        4 => insert(bytes, at, rng.choice(words).unwrap_or(&"").as_bytes()),
        5 => {
            let some = bytes[range(rng, bytes.len())].to_vec();
            insert(bytes, at, &some);
        }
        6 => {
            let some = &other[range(rng, other.len())];
            insert(bytes, at, some);
        }
        7 => {
            // The beginning of one, the end of the other.
            bytes.truncate(at);
            bytes.extend_from_slice(&other[rng.usize(..=other.len())..]);
        }
        8 => insert(bytes, at, &number(rng)),
        9 => {
            let number = number(rng);
            let end = (at + number.len()).min(bytes.len());
            bytes.splice(at..end, number);
        }
        10 => {
            // Lists are long, and things are nested, where nobody wants them to be.
            let some = bytes[at..bytes.len().min(at + rng.usize(1..16))].to_vec();
            insert(bytes, at, &some.repeat(rng.usize(1..2_000)));
        }
        11 => {
            let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) else { return };
            let text = rng.choice(NUMBERS).unwrap_or_default().wrapping_sub(rng.u64(..2)).to_string();
            bytes.splice(at + digit..=at + digit, text.into_bytes());
        }
        _ => bytes.truncate(at),
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, some: &[u8]) {
    bytes.splice(at..at, some.iter().copied());
}

fn range(rng: &mut Rng, len: usize) -> std::ops::Range<usize> {
    let (a, b) = (rng.usize(..=len), rng.usize(..=len));
    // Mostly something short.
    let (from, to) = (a.min(b), a.max(b));
    if rng.bool() { from..to } else { from..to.min(from + rng.usize(..16)) }
}

/// As text and binary formats write it.
fn number(rng: &mut Rng) -> Vec<u8> {
    let number = rng.choice(NUMBERS).unwrap_or_default();
    match rng.u8(..6) {
        0 => number.to_string().into_bytes(),
        1 => number.to_le_bytes().to_vec(),
        2 => number.to_be_bytes().to_vec(),
        3 => (number as u32).to_le_bytes().to_vec(),
        4 => format!("{number:o}").into_bytes(),
        _ => {
            let mut varint = Vec::new();
            prost::encoding::encode_varint(number, &mut varint);
            varint
        }
    }
}
