//! Whatever the secret, the way it is written, what is around it and the pieces in which it comes.

use super::forms::{self, WRAPPED_MIN};
use super::{MIN_SECRET_BYTES, Masks};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;

/// What a masker should do, written down as simply as possible.
struct Simple {
    plain: BTreeSet<Vec<u8>>,
    wrapped: BTreeSet<Vec<u8>>,
    /// What a form may begin with, whole forms left out.
    plain_begins: BTreeSet<Vec<u8>>,
    wrapped_begins: BTreeSet<Vec<u8>>,
}

/// What comes of it.
struct Masked {
    text: Vec<u8>,
    /// After each byte: how many may wait.
    may_wait: Vec<usize>,
}

impl Simple {
    fn new(values: &[Vec<u8>]) -> Self {
        let (mut plain, mut wrapped) = (BTreeSet::new(), BTreeSet::new());
        for value in values.iter().filter(|value| value.trim_ascii().len() >= MIN_SECRET_BYTES) {
            forms::plain(value, &mut |form| {
                plain.insert(form.to_vec());
            });
            forms::wrapped(value, &mut |form| {
                wrapped.insert(form.to_vec());
            });
        }
        let begins = |forms: &BTreeSet<Vec<u8>>| {
            let begins = forms.iter().flat_map(|form| (0..form.len()).map(|len| form[..len].to_vec()));
            begins.chain([Vec::new()]).collect()
        };
        Self { plain_begins: begins(&plain), wrapped_begins: begins(&wrapped), plain, wrapped }
    }

    fn mask(&self, text: &[u8]) -> Masked {
        let mut masked = Masked { text: text.to_vec(), may_wait: Vec::new() };
        let mut hide = |range: Range<usize>| {
            for byte in masked.text[range].iter_mut().filter(|byte| !b"\r\n".contains(*byte)) {
                *byte = b'*';
            }
        };
        let (mut open, mut active, mut in_row) = (0, Vec::<usize>::new(), 0);
        for (at, &byte) in text.iter().enumerate() {
            for form in self.plain.iter().filter(|form| text[..=at].ends_with(form)) {
                hide(at + 1 - form.len()..at + 1);
            }
            while !self.plain_begins.contains(&text[open..=at]) {
                open += 1;
            }
            if b"\r\n".contains(&byte) {
                in_row += 1;
                if active.len() < WRAPPED_MIN || in_row > 2 {
                    active.clear();
                }
            } else {
                in_row = 0;
                active.push(at);
                let chars = |active: &[usize]| active.iter().map(|at| text[*at]).collect::<Vec<_>>();
                // A form that ends here begins no earlier than what could be one before.
                for form in self.wrapped.iter().filter(|form| chars(&active).ends_with(form)) {
                    hide(active[active.len() - form.len()]..at + 1);
                }
                while !self.wrapped_begins.contains(&chars(&active)) {
                    active.remove(0);
                }
            }
            let wrapped = active.first().map_or(0, |first| at + 1 - first);
            masked.may_wait.push(wrapped.max(at + 1 - open));
        }
        // The beginning of a form at the end of the stream.
        if let Some(waits) = masked.may_wait.last().copied().filter(|waits| *waits >= MIN_SECRET_BYTES) {
            for byte in masked.text[text.len() - waits..].iter_mut().filter(|byte| !b"\r\n".contains(*byte)) {
                *byte = b'*';
            }
        }
        masked
    }
}

/// How a secret may be written, by means other than those of the code that looks for it.
#[derive(Clone, Debug)]
enum Writing {
    Raw,
    Json,
    Quoted,
    /// `$'…'`, with or without what is no ASCII.
    AnsiC {
        ascii: bool,
    },
    /// `repr` of a text or of bytes, within either quotes.
    Python {
        ascii: bool,
        single: bool,
    },
    DoubleQuoted,
    Backslashed,
    Percent,
    Hex {
        upper: bool,
    },
    Base64 {
        url: bool,
    },
}

fn writing() -> impl Strategy<Value = Writing> {
    prop_oneof![
        Just(Writing::Raw),
        Just(Writing::Json),
        Just(Writing::Quoted),
        any::<bool>().prop_map(|ascii| Writing::AnsiC { ascii }),
        (any::<bool>(), any::<bool>()).prop_map(|(ascii, single)| Writing::Python { ascii, single }),
        Just(Writing::DoubleQuoted),
        Just(Writing::Backslashed),
        Just(Writing::Percent),
        any::<bool>().prop_map(|upper| Writing::Hex { upper }),
        any::<bool>().prop_map(|url| Writing::Base64 { url }),
    ]
}

/// A text with a secret in it, and where it must be masked.
struct Written {
    text: Vec<u8>,
    secret: Vec<usize>,
}

impl Writing {
    /// Writes the secret between other bytes.
    fn write(&self, before: &[u8], secret: &[u8], after: &[u8], wrap: Option<(usize, &[u8])>) -> Written {
        // What stands around is written as it is: where the secret ends is then known.
        let each = |how: &dyn Fn(u8, u8) -> String| {
            let (mut written, mut previous) = (Vec::new(), 0);
            for &byte in secret {
                match how(previous, byte) {
                    text if text.is_empty() => written.push(byte),
                    text => written.extend(text.into_bytes()),
                }
                previous = byte;
            }
            let at = before.len()..before.len() + written.len();
            Written { text: [before, &written, after].concat(), secret: at.collect() }
        };
        let encode: fn(&[u8]) -> Vec<u8> = match self {
            Self::AnsiC { ascii } => return each(&|_, byte| in_ansi_c(byte, *ascii)),
            Self::Python { ascii, single } => return each(&|_, byte| in_python(byte, *ascii, *single)),
            Self::DoubleQuoted => return each(&|_, byte| before_each(byte, r#"\"$`"#)),
            Self::Backslashed => {
                let special = |previous| match previous {
                    // Where it would be somebody's home.
                    b':' | b'=' => r##" '"\|&;()<>!{}*[]?^$`,~"##,
                    _ => r##" '"\|&;()<>!{}*[]?^$`,"##,
                };
                return each(&|previous, byte| before_each(byte, special(previous)));
            }
            Self::Raw => <[u8]>::to_vec,
            Self::Json => |bytes| {
                let text = serde_json::to_string(&String::from_utf8_lossy(bytes)).expect("a string is written");
                text[1..text.len() - 1].into()
            },
            Self::Quoted => {
                |bytes| bytes.iter().flat_map(|b| if *b == b'\'' { r"'\''".into() } else { vec![*b] }).collect()
            }
            Self::Percent => |bytes| bytes.iter().flat_map(|b| percent(*b)).collect(),
            Self::Hex { upper } => return wrapped(&hexadecimal(before, secret, after, *upper), wrap),
            Self::Base64 { url } => return wrapped(&base64(before, secret, after, *url), wrap),
        };
        let (before, secret) = (encode(before), encode(secret));
        let at = before.len()..before.len() + secret.len();
        Written { text: [before, secret, encode(after)].concat(), secret: at.collect() }
    }
}

/// Empty: as it is.
fn in_ansi_c(byte: u8, ascii: bool) -> String {
    const NAMED: [(u8, &str); 10] = [
        (b'\\', r"\\"),
        (b'\'', r"\'"),
        (0x07, r"\a"),
        (0x08, r"\b"),
        (0x09, r"\t"),
        (0x0a, r"\n"),
        (0x0b, r"\v"),
        (0x0c, r"\f"),
        (0x0d, r"\r"),
        (0x1b, r"\E"),
    ];
    match NAMED.iter().find(|(named, _)| *named == byte) {
        Some((_, text)) => (*text).to_owned(),
        None if byte.is_ascii_control() || (ascii && !byte.is_ascii()) => {
            format!("\\{}{}{}", byte / 64, byte / 8 % 8, byte % 8)
        }
        None => String::new(),
    }
}

fn in_python(byte: u8, ascii: bool, single: bool) -> String {
    match byte {
        b'\\' => r"\\".to_owned(),
        b'\'' if single => r"\'".to_owned(),
        b'\t' => r"\t".to_owned(),
        b'\n' => r"\n".to_owned(),
        b'\r' => r"\r".to_owned(),
        byte if byte.is_ascii_control() || (ascii && !byte.is_ascii()) => format!(r"\x{byte:02x}"),
        _ => String::new(),
    }
}

fn before_each(byte: u8, special: &str) -> String {
    if special.as_bytes().contains(&byte) { format!("\\{}", char::from(byte)) } else { String::new() }
}

fn percent(byte: u8) -> Vec<u8> {
    match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => vec![byte],
        byte => format!("%{byte:02X}").into(),
    }
}

fn hexadecimal(before: &[u8], secret: &[u8], after: &[u8], upper: bool) -> (Vec<u8>, Range<usize>) {
    let bytes = [before, secret, after].concat();
    let text: String =
        bytes.iter().map(|byte| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") }).collect();
    (text.into(), 2 * before.len()..2 * (before.len() + secret.len()))
}

/// In base64 the characters at the edges have bits of what is around.
fn base64(before: &[u8], secret: &[u8], after: &[u8], url: bool) -> (Vec<u8>, Range<usize>) {
    let bytes = [before, secret, after].concat();
    let text = if url { URL_SAFE.encode(bytes) } else { STANDARD.encode(bytes) };
    let (from, to) = (8 * before.len(), 8 * (before.len() + secret.len()));
    (text.into(), from.div_ceil(6)..to / 6)
}

/// Wrapped as `base64`, `openssl` and `xxd -p` do. If a line ends after one or two characters of the secret, those are told.
fn wrapped((text, secret): &(Vec<u8>, Range<usize>), wrap: Option<(usize, &[u8])>) -> Written {
    let (width, end) = wrap.unwrap_or((usize::MAX, b"\n"));
    let mut written = Written { text: Vec::new(), secret: Vec::new() };
    let told = secret.start.next_multiple_of(width.min(text.len().max(1) * 2)) - secret.start;
    let told = if wrap.is_some() && told < WRAPPED_MIN { told } else { 0 };
    for (at, byte) in text.iter().enumerate() {
        if at > 0 && at % width == 0 {
            written.text.extend(end);
        }
        if at >= secret.start + told && at < secret.end {
            written.secret.push(written.text.len());
        }
        written.text.push(*byte);
    }
    written
}

fn secret() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => "[A-Za-z0-9+/=_-]{8,40}".prop_map(String::into_bytes),
        2 => "[ -~]{8,40}".prop_map(String::into_bytes),
        2 => "[ab%+n\\\\\"'/é😀<&\u{1}]{8,24}".prop_map(String::into_bytes),
        2 => prop::collection::vec("[ -~]{0,20}", 1..6).prop_map(|lines| lines.join("\n").into_bytes()),
        1 => prop::collection::vec("[ -~]{0,20}", 1..6).prop_map(|lines| lines.join("\\n").into_bytes()),
        1 => prop::collection::vec("[ -~]{0,20}", 1..6).prop_map(|lines| (lines.join("\r\n") + "\r\n").into_bytes()),
        2 => prop::collection::vec(any::<u8>(), 8..32),
        1 => "a{8,20}|[ab]{8,16}".prop_map(String::into_bytes),
    ]
}

fn around() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12),
        "[ -~\r\n]{0,30}".prop_map(String::into_bytes),
        "[ab\\\\%+n\r\n]{0,12}".prop_map(String::into_bytes),
    ]
}

fn wrap() -> impl Strategy<Value = Option<(usize, &'static [u8])>> {
    let end = prop::sample::select(vec![&b"\n"[..], b"\r\n"]);
    prop::option::of((prop_oneof![Just(60_usize), Just(64), Just(76), 4..30_usize], end))
}

/// A piece of a text: a secret in some form, a part of one, or anything.
fn piece(secrets: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let written = (writing(), around(), prop::sample::select(secrets), around(), wrap())
        .prop_map(|(how, before, secret, after, wrap)| how.write(&before, &secret, &after, wrap).text);
    let cut = (any::<bool>(), any::<prop::sample::Index>());
    prop_oneof![
        1 => around(),
        3 => (written, cut).prop_map(|(text, (cut, at))| {
            text[..if cut { at.index(text.len() + 1) } else { text.len() }].to_vec()
        }),
    ]
}

fn secrets_and_text() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u8>)> {
    prop::collection::vec(secret(), 1..4).prop_flat_map(|secrets| {
        let text = prop::collection::vec(piece(secrets.clone()), 0..6).prop_map(|pieces| pieces.concat());
        (Just(secrets), text)
    })
}

fn masks(secrets: &[Vec<u8>]) -> Masks {
    Masks::new(secrets.iter().map(Vec::as_slice))
}

proptest! {
    /// The same whatever the pieces, as many bytes as came, and nothing waits but what may begin a form.
    #[test]
    fn a_stream_is_masked_as_if_it_had_come_at_once(
        (secrets, text) in secrets_and_text(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let expected = Simple::new(&secrets).mask(&text);
        let masks = masks(&secrets);
        prop_assert_eq!(&masks.mask(&text), &expected.text);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let (mut masker, mut told) = (masks.stream(), Vec::new());
        for piece in cuts.windows(2) {
            masker.push_into(&text[piece[0]..piece[1]], &mut told);
            prop_assert_eq!(told.len() + masker.held(), piece[1]);
            prop_assert!(piece[1] == 0 || masker.held() <= expected.may_wait[piece[1] - 1]);
            prop_assert_eq!(masker.is_holding(), masker.held() > 0);
        }
        told.extend(masker.finish());
        prop_assert_eq!(&told, &expected.text);
        prop_assert!(!masker.is_holding());
        // Byte by byte, and again with the same masker.
        let mut told = Vec::new();
        for (at, byte) in text.iter().enumerate() {
            masker.push_into(&[*byte], &mut told);
            prop_assert!(masker.held() <= expected.may_wait[at]);
        }
        told.extend(masker.finish());
        prop_assert_eq!(&told, &expected.text);
    }

    /// However it is written and wherever it stands: no byte of it is told.
    #[test]
    fn a_secret_is_found_however_it_is_written(
        (secret, how) in (secret(), writing()),
        (before, after) in (around(), around()),
        wrap in wrap(),
    ) {
        let secret = if secret.trim_ascii().len() < MIN_SECRET_BYTES { [&secret[..], b"-12345678"].concat() } else { secret };
        let value = secret.trim_ascii();
        // What is no text is not written as JSON.
        let how = if std::str::from_utf8(value).is_err() && matches!(how, Writing::Json) { Writing::Raw } else { how };
        let written = how.write(&before, value, &after, wrap);
        let told = masks(std::slice::from_ref(&secret)).mask(&written.text);
        for at in written.secret {
            prop_assert!(b"*\r\n".contains(&told[at]), "{:?}", String::from_utf8_lossy(&told));
        }
    }

    /// The same of each line of it that is long enough.
    #[test]
    fn a_line_of_a_secret_is_found_however_it_is_written(
        (first, line, last) in ("[ -~]{0,20}", "[!-,.-~][ -~]{6,30}[!-~]", "[ -~]{0,20}"),
        how in writing(),
        (before, after) in (around(), around()),
        wrap in wrap(),
    ) {
        // A backslash before an `n` ends a line, too.
        prop_assume!(!line.contains("\\n"));
        let secret = format!("{first}\n{line}\n{last}\n");
        let written = how.write(&before, line.as_bytes(), &after, wrap);
        let told = masks(&[secret.into_bytes()]).mask(&written.text);
        for at in written.secret {
            prop_assert!(b"*\r\n".contains(&told[at]), "{:?}", String::from_utf8_lossy(&told));
        }
    }

    /// As curl and browsers send a name and a password.
    #[test]
    fn a_password_in_a_basic_header_is_found(user in "[a-z]{1,9}", password in "[!-~]{8,30}") {
        for text in [STANDARD.encode(format!("{user}:{password}")), URL_SAFE_NO_PAD.encode(format!("{user}:{password}"))] {
            let told = Masks::new([password.as_bytes()]).mask(format!("Authorization: Basic {text}\r\n").as_bytes());
            let told = String::from_utf8(told).unwrap();
            let known = 8 * (user.len() + 1) / 6 + 1;
            prop_assert!(told.matches('*').count() >= 8 * password.len() / 6 - 1 && told.len() == text.len() + 23, "{}", told);
            prop_assert!(told.trim_end()[21 + known..].len() - told[21 + known..].matches('*').count() <= 5, "{}", told);
        }
    }

    /// Nothing is changed, and nothing waits, that has nothing in common with a secret.
    #[test]
    fn other_text_passes(secret in "[A-Z]{8,64}", text in "[ .,;:\n#-]{0,200}") {
        let mut masker = Masks::new([secret.as_bytes()]).stream();
        prop_assert_eq!(masker.push(text.as_bytes()), text.as_bytes());
        prop_assert!(!masker.is_holding());
    }
}
