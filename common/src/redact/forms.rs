//! The ways in which a value may be written.
//!
//! **Invariant:** no form is shorter than [`MIN_SECRET_BYTES`]: the automaton's filter counts on it.

use base64::Engine as _;
use base64::alphabet::{Alphabet, STANDARD, URL_SAFE};
use base64::engine::{GeneralPurpose, general_purpose::NO_PAD};
use std::fmt::Write as _;

/// Shorter values are not masked: what is so short is found in text that has nothing to do with it.
pub const MIN_SECRET_BYTES: usize = 8;
/// A line end within a form that may be wrapped is passed over once so many characters before it fit. With fewer, the end of
/// every other ordinary line would wait for the next; so that nothing is lost, the form is known without its first ones as well.
pub(super) const WRAPPED_MIN: usize = 3;

/// Whether a value is long enough to be masked, blanks and line ends around it not counted.
pub fn is_maskable(value: &[u8]) -> bool {
    value.trim_ascii().len() >= MIN_SECRET_BYTES
}

/// Hands on the forms that stand as they are. The same may come twice.
pub(super) fn plain(value: &[u8], add: &mut impl FnMut(&[u8])) {
    let value = value.trim_ascii();
    written(value, add);
    let with_returns = value.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    written(&with_returns.collect::<Vec<_>>().join(&b"\r\n"[..]), add);
    for line in lines(value) {
        written(line, add);
    }
}

/// The lines of a value that are secret by themselves. Those of a key within a JSON file end in an escape.
fn lines(value: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut from = 0;
    for at in 0..value.len() {
        let end_len = match &value[at..] {
            [b'\n' | b'\r', ..] => 1,
            [b'\\', b'n', ..] => 2,
            _ => continue,
        };
        if from < at {
            lines.push(&value[from..at]);
        }
        from = at + end_len;
    }
    lines.push(value.get(from..).unwrap_or_default());
    lines.iter_mut().for_each(|line| *line = line.trim_ascii());
    // The first and last line of every key are the same.
    lines.retain(|line| line.len() >= MIN_SECRET_BYTES && !line.starts_with(b"-----"));
    lines
}

fn written(value: &[u8], add: &mut impl FnMut(&[u8])) {
    add(value);
    shell(value, add);
    if let Ok(text) = std::str::from_utf8(value) {
        for ascii in [false, true] {
            for upper in [false, true] {
                for slash in [false, true] {
                    for careful in CAREFUL {
                        add(json(text, &Json { ascii, upper, slash, careful }).as_bytes());
                    }
                }
            }
        }
    }
    let (ways, cases) =
        if value.len() > URL_MAX_BYTES { (COMMON, &[true][..]) } else { (KEPT.len(), &[true, false][..]) };
    for (kept, plus) in &KEPT[..ways] {
        for &upper in cases {
            add(percent(value, kept, *plus, upper).as_bytes());
        }
    }
}

/// What is longer is no password and no key. Of the rarer forms it has none: they would take a kilobyte of memory for each byte.
const ONE_BY_ONE_MAX_BYTES: usize = 16 * 1024;

/// As shells write it, and Python, which quotes alike. Most values look the same in all of these.
fn shell(value: &[u8], add: &mut impl FnMut(&[u8])) {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"%+-./:=@_".contains(byte);
    if value.iter().all(is_plain) {
        return;
    }
    let is_long = value.len() > ONE_BY_ONE_MAX_BYTES;
    // No variable of a shell has a zero in it, so this is only for short ones that a program writes like that.
    if !is_long || !value.contains(&0) {
        add(&single_quoted(value));
        [false, true].into_iter().for_each(|high| add(&escaped(value, b"\\'", high, ansi_c)));
        if !is_long {
            add(&double_quoted(value));
            add(&backslashed(value));
        }
    }
    for high in [false, true].into_iter().filter(|_| !is_long) {
        // Python takes the other quotes if there are single ones.
        for special in [&b"\\"[..], b"\\'"] {
            add(&escaped(value, special, high, python));
        }
    }
}

/// As most shells quote it, and as `set -x` shows it.
fn single_quoted(value: &[u8]) -> Vec<u8> {
    value.split(|byte| *byte == b'\'').collect::<Vec<_>>().join(&br"'\''"[..])
}

/// As bash's `declare -p` and `export -p` show it.
fn double_quoted(value: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(value.len() + 8);
    for &byte in value {
        if b"\\\"$`".contains(&byte) {
            text.push(b'\\');
        }
        text.push(byte);
    }
    text
}

/// As bash's `printf %q` shows it.
fn backslashed(value: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(value.len() + 8);
    let mut before = 0;
    for &byte in value {
        let is_home = byte == b'~' && matches!(before, b':' | b'=');
        if is_home || b" '\"\\|&;()<>!{}*[]?^$`,".contains(&byte) {
            text.push(b'\\');
        }
        text.push(byte);
        before = byte;
    }
    text
}

/// With a backslash before each of `special`, and what is no text in its own escapes; `high`: all beyond ASCII as well.
fn escaped(value: &[u8], special: &[u8], high: bool, escape: fn(u8) -> String) -> Vec<u8> {
    let mut text = Vec::with_capacity(value.len() + 8);
    for &byte in value {
        match byte {
            byte if special.contains(&byte) => text.extend([b'\\', byte]),
            0..b' ' | 0x7f => text.extend(escape(byte).into_bytes()),
            0x80.. if high => text.extend(escape(byte).into_bytes()),
            byte => text.push(byte),
        }
    }
    text
}

/// Within `$'…'`: bash shows so what has a line end, and what is no character where it runs.
fn ansi_c(byte: u8) -> String {
    match byte {
        7 => "\\a".to_owned(),
        8 => "\\b".to_owned(),
        b'\t' => "\\t".to_owned(),
        b'\n' => "\\n".to_owned(),
        0xb => "\\v".to_owned(),
        0xc => "\\f".to_owned(),
        b'\r' => "\\r".to_owned(),
        0x1b => "\\E".to_owned(),
        byte => format!("\\{byte:03o}"),
    }
}

/// As Python's `repr` shows it.
fn python(byte: u8) -> String {
    match byte {
        b'\t' => "\\t".to_owned(),
        b'\n' => "\\n".to_owned(),
        b'\r' => "\\r".to_owned(),
        byte => format!("\\x{byte:02x}"),
    }
}

/// How a string is written in JSON.
struct Json<'c> {
    /// Nothing but ASCII, as Python and PHP write it.
    ascii: bool,
    /// `\u00AB`, not `\u00ab`.
    upper: bool,
    /// `\/`, as PHP writes it.
    slash: bool,
    /// Characters that are escaped because of what HTML makes of them.
    careful: &'c [char],
}

/// Nobody's, those of Go, those of Gson.
const CAREFUL: [&[char]; 3] =
    [&[], &['<', '>', '&', '\u{2028}', '\u{2029}'], &['<', '>', '&', '=', '\'', '\u{2028}', '\u{2029}']];

fn json(text: &str, style: &Json<'_>) -> String {
    let mut json = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            '\u{8}' => json.push_str("\\b"),
            '\u{c}' => json.push_str("\\f"),
            '/' if style.slash => json.push_str("\\/"),
            c if c < ' ' || style.careful.contains(&c) || (style.ascii && c >= '\u{7f}') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = if style.upper { write!(json, "\\u{unit:04X}") } else { write!(json, "\\u{unit:04x}") };
                }
            }
            c => json.push(c),
        }
    }
    json
}

/// Servers take no longer URLs. What is longer is in the body of a form, if anywhere, as the common programs write it.
const URL_MAX_BYTES: usize = 8 * 1024;
/// The first of [`KEPT`], and those with capital letters.
const COMMON: usize = 4;

/// What is kept beside letters and digits, and whether a blank becomes `+`.
const KEPT: [(&[u8], bool); 9] = [
    // RFC 3986: whatever is not unreserved is encoded. With `+`: Go's QueryEscape, Python's quote_plus.
    (b"-._~", false),
    (b"-._~", true),
    // JavaScript: encodeURIComponent.
    (b"-._~!'()*", false),
    // Forms, as browsers and Java send them.
    (b"*-._", true),
    // JavaScript: encodeURI.
    (b"-._~!'()*;,/?:@&=+$#", false),
    // Python: quote.
    (b"-._~/", false),
    // A password in a URL: WHATWG, Go.
    (b"!$%&'()*+,-._~", false),
    (b"-._~$&+,;=", false),
    // A segment of a path: Go.
    (b"-._~$&+:=@", false),
];

fn percent(value: &[u8], kept: &[u8], plus: bool, upper: bool) -> String {
    let mut encoded = String::with_capacity(value.len());
    for &byte in value {
        match byte {
            b' ' if plus => encoded.push('+'),
            byte if byte.is_ascii_alphanumeric() || kept.contains(&byte) => encoded.push(char::from(byte)),
            byte => {
                // Writing to a string cannot fail.
                let _ = if upper { write!(encoded, "%{byte:02X}") } else { write!(encoded, "%{byte:02x}") };
            }
        }
    }
    encoded
}

/// Hands on the forms that may be wrapped into lines. The same may come twice.
pub(super) fn wrapped(value: &[u8], add: &mut impl FnMut(&[u8])) {
    let value = value.trim_ascii();
    encoded(value, add);
    if value.len() <= ONE_BY_ONE_MAX_BYTES {
        lines(value).into_iter().filter(|line| *line != value).for_each(|line| encoded(line, add));
    }
}

fn encoded(value: &[u8], add: &mut impl FnMut(&[u8])) {
    let mut shifted = |form: &[u8]| (0..WRAPPED_MIN).for_each(|from| add(&form[from..]));
    for alphabet in [STANDARD, URL_SAFE] {
        for before in 0..3 {
            shifted(inner_base64(value, before, &alphabet).as_bytes());
        }
        let mut whole = GeneralPurpose::new(&alphabet, NO_PAD).encode(value);
        shifted(whole.as_bytes());
        while whole.len() % 4 != 0 {
            whole.push('=');
        }
        shifted(whole.as_bytes());
    }
    shifted(hex::encode(value).as_bytes());
    shifted(hex::encode_upper(value).as_bytes());
}

/// The characters that depend on nothing but the value if it stands behind `before` other bytes, counted modulo three.
fn inner_base64(value: &[u8], before: usize, alphabet: &Alphabet) -> String {
    let bytes = [&[0; 2][..before], value].concat();
    let mut text = GeneralPurpose::new(alphabet, NO_PAD).encode(&bytes);
    text.truncate(bytes.len() * 8 / 6);
    text.split_off((before * 8).div_ceil(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_characters_are_the_same_whatever_is_around() {
        let value = b"s3cr3t-v4lue";
        for (before, after) in [("", ""), ("u", "x"), ("us", "xy"), ("use", "xyz"), ("user:", "\n"), ("a", "\u{ff}")] {
            let whole =
                GeneralPurpose::new(&STANDARD, NO_PAD).encode([before.as_bytes(), value, after.as_bytes()].concat());
            let inner = inner_base64(value, before.len() % 3, &STANDARD);
            assert!(whole.contains(&inner) && inner.len() >= value.len() * 4 / 3 - 1, "{whole} {inner}");
        }
    }

    #[test]
    fn no_form_is_shorter_than_what_the_filter_looks_at() {
        for value in [&b"12345678"[..], b"\0\xff\0\xff\0\xff\0\xff", b"a\nb\nc\nd\ne"] {
            let mut shortest = usize::MAX;
            let mut add = |form: &[u8]| shortest = shortest.min(form.len());
            plain(value, &mut add);
            wrapped(value, &mut add);
            assert!((MIN_SECRET_BYTES..=MIN_SECRET_BYTES + 1).contains(&shortest), "{shortest}");
        }
    }

    #[test]
    fn lines_are_known_by_themselves_but_not_those_that_every_key_has() {
        let key = b"-----BEGIN KEY-----\nMIIEvQIBADANBg\r\n  kqhkiG9w0BAQ \nshort\n-----END KEY-----";
        assert_eq!(lines(key), [&b"MIIEvQIBADANBg"[..], b"kqhkiG9w0BAQ"]);
        let json = br#"{"private_key": "-----BEGIN KEY-----\nMIIEvQIBADANBg\nkqhkiG9w0BAQ\n-----END KEY-----\n"}"#;
        assert_eq!(lines(json), [&br#"{"private_key": "-----BEGIN KEY-----"#[..], b"MIIEvQIBADANBg", b"kqhkiG9w0BAQ"]);
    }

    #[test]
    fn forms_are_those_of_the_programs_they_come_from() {
        let style = |ascii, upper, slash, careful| Json { ascii, upper, slash, careful };
        let text = "a\"b\\c/<é😀\u{1f}\n'=";
        assert_eq!(json(text, &style(false, false, false, CAREFUL[0])), "a\\\"b\\\\c/<é😀\\u001f\\n'=");
        assert_eq!(json(text, &style(false, false, false, CAREFUL[0])), {
            let whole = serde_json::to_string(text).unwrap();
            whole[1..whole.len() - 1].to_owned()
        });
        let python = "a\\\"b\\\\c/<\\u00e9\\ud83d\\ude00\\u001f\\n'=";
        assert_eq!(json(text, &style(true, false, false, CAREFUL[0])), python);
        let go = "a\\\"b\\\\c/\\u003cé😀\\u001f\\n'=";
        assert_eq!(json(text, &style(false, false, false, CAREFUL[1])), go);
        let php = "a\\\"b\\\\c\\/<\\u00e9\\ud83d\\ude00\\u001f\\n'=";
        assert_eq!(json(text, &style(true, false, true, CAREFUL[0])), php);
        let sent = b"a b/c~d*e+\xe9";
        assert_eq!(percent(sent, KEPT[0].0, false, true), "a%20b%2Fc~d%2Ae%2B%E9");
        assert_eq!(percent(sent, KEPT[3].0, true, false), "a+b%2fc%7ed*e%2b%e9");
        assert_eq!(single_quoted(b"it's"), br"it'\''s");
    }

    /// As bash 5.2 and Python 3 show them, in UTF-8 and without.
    #[test]
    fn shells_and_python_quote_each_in_its_way() {
        let sent = "a \"q\" \\ $x `y` it's =~ {c},(e)<f>|g&h;i*j?k^l[m]!n #%@+é".as_bytes();
        let backslashed_is =
            r#"a\ \"q\"\ \\\ \$x\ \`y\`\ it\'s\ =\~\ \{c\}\,\(e\)\<f\>\|g\&h\;i\*j\?k\^l\[m\]\!n\ #%@+é"#;
        assert_eq!(String::from_utf8(backslashed(sent)).unwrap(), backslashed_is);
        let double_is = r#"a \"q\" \\ \$x \`y\` it's =~ {c},(e)<f>|g&h;i*j?k^l[m]!n #%@+é"#;
        assert_eq!(String::from_utf8(double_quoted(sent)).unwrap(), double_is);
        let sent = "l1 \"q\" \\ it's $x\n\u{1b}\u{1}\u{7f}\t\u{7}\u{8}\u{b}\u{c}\r é".as_bytes();
        let form = |special: &[u8], high, escape: fn(u8) -> String| {
            String::from_utf8(escaped(sent, special, high, escape)).unwrap()
        };
        assert_eq!(form(b"\\'", false, ansi_c), r#"l1 "q" \\ it\'s $x\n\E\001\177\t\a\b\v\f\r é"#);
        assert_eq!(form(b"\\'", true, ansi_c), r#"l1 "q" \\ it\'s $x\n\E\001\177\t\a\b\v\f\r \303\251"#);
        assert_eq!(form(b"\\'", true, python), r#"l1 "q" \\ it\'s $x\n\x1b\x01\x7f\t\x07\x08\x0b\x0c\r \xc3\xa9"#);
    }
}
