//! Single cases that are worth a name.

use super::*;

const TOKEN: &str = "ghp_0123456789abcdefghijABCDEFGHIJ";

fn told(masks: &Masks, text: &str) -> String {
    String::from_utf8(masks.mask(text.as_bytes())).unwrap()
}

#[test]
fn a_token_is_masked_and_a_line_is_told_at_once() {
    let masks = Masks::new([format!("{TOKEN}\n").as_bytes()]);
    assert_eq!(told(&masks, &format!("x={TOKEN}.\n")), format!("x={}.\n", "*".repeat(TOKEN.len())));
    let mut masker = masks.stream();
    assert_eq!(masker.push(b"cloning git\n"), b"cloning git\n");
    // It may be the beginning of the token; then it is not.
    assert_eq!(masker.push(b"cloning gh"), b"cloning ");
    assert_eq!(masker.held(), 2);
    assert_eq!(masker.push(b"c\n"), b"ghc\n");
    // What is complete does not wait for what follows.
    assert_eq!(masker.push(TOKEN.as_bytes()), b"*".repeat(TOKEN.len()));
    assert!(!masker.is_holding() && masker.finish().is_empty());
}

#[test]
fn a_stream_that_ends_within_a_secret_shows_no_more_than_a_few_bytes_of_it() {
    let mut masker = Masks::new([TOKEN.as_bytes()]).stream();
    assert_eq!(masker.push(&TOKEN.as_bytes()[..20]), b"");
    assert_eq!(masker.held(), 20);
    assert_eq!(masker.finish(), b"*".repeat(20), "whoever wrote it may have been killed");
    // What follows is another stream.
    assert_eq!(masker.push(&TOKEN.as_bytes()[20..]), &TOKEN.as_bytes()[20..]);
    masker.finish();
    assert_eq!(masker.push(b"the end of g"), b"the end of ");
    assert_eq!(masker.finish(), b"g");
}

#[test]
fn a_key_is_masked_line_by_line() {
    let key =
        "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEF\nAASCBKcwggSjAgEAAoIBAQC7\nshort==\n-----END KEY-----\n";
    let masks = Masks::new([key.as_bytes()]);
    let masked: String = key.trim_end().chars().map(|c| if c == '\n' { c } else { '*' }).collect();
    assert_eq!(told(&masks, key), masked.clone() + "\n");
    assert_eq!(told(&masks, &key.replace('\n', "\r\n")), masked.replace('\n', "\r\n") + "\r\n");
    let indented = "  -----BEGIN KEY-----\n  MIIEvQIBADANBgkqhkiG9w0BAQEF\n  ok";
    assert_eq!(told(&masks, indented), format!("  -----BEGIN KEY-----\n  {}\n  ok", "*".repeat(28)));
}

#[test]
fn what_is_too_short_is_passed_over() {
    for value in [&b""[..], b"1234567", b"  1234567\n\n", b" \n \n \n \n \n"] {
        assert!(!is_maskable(value) && Masks::new([value]).is_empty(), "{value:?}");
    }
    assert!(is_maskable(b"12345678\n") && !Masks::new([&b"12345678\n"[..]]).is_empty());
    let masks = Masks::default();
    assert!(masks.is_empty());
    assert_eq!(told(&masks, "anything"), "anything");
    assert_eq!(masks.mask_text("any text"), "any text");
}

#[test]
fn nothing_of_a_value_is_shown() {
    let masks = Masks::new([TOKEN.as_bytes()]);
    let mut masker = masks.stream();
    masker.push(&TOKEN.as_bytes()[..30]);
    assert_eq!(format!("{masks:?} {masker:?}"), "Masks { .. } Masker { held: 30, .. }");
    assert_eq!(
        masks.mask_text(&format!("bad value `{TOKEN}` é")),
        format!("bad value `{}` é", "*".repeat(TOKEN.len()))
    );
}

/// What an attacker tried by hand.
#[test]
fn lines_are_masked_in_basic_headers_and_as_shells_and_python_show_them() {
    let line = r#"CANARY-s3cr3t+/with=odd&chars "q" \ %"#;
    let masks = Masks::new([format!("{line}\nthe second line of it\n").as_bytes()]);
    for user in ["u", "me", "user", "users"] {
        let basic = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, format!("{user}:{line}"));
        let shown = told(&masks, &format!("Authorization: Basic {basic}\n"));
        assert!(shown.matches('*').count() > line.len(), "{shown}");
    }
    for text in [
        r#"declare -x CAN=$'CANARY-s3cr3t+/with=odd&chars "q" \\ %\nthe second line of it'"#,
        r#"declare -- CAN="CANARY-s3cr3t+/with=odd&chars \"q\" \\ %""#,
        r#"CANARY-s3cr3t+/with=odd\&chars\ \"q\"\ \\\ %"#,
        r#"'CANARY-s3cr3t+/with=odd&chars "q" \\ %\nthe second line of it'"#,
    ] {
        let shown = told(&masks, text);
        assert!(!["CANARY", "odd", "chars", "q", "second", "of it"].iter().any(|word| shown.contains(word)), "{shown}");
    }
}

/// A secret that consists of itself, in a stream that never ends: every byte ends a form.
#[test]
fn a_value_that_repeats_itself_takes_no_longer_than_another() {
    let value = [b'a'; 20_000];
    let masks = Masks::new([&value[..], b"aaaaaaaa"]);
    let mut masker = masks.stream();
    let mut told = Vec::new();
    for _ in 0..1_000 {
        masker.push_into(&[b'a'; 1_000], &mut told);
        assert!(!masker.is_holding() || told.len() < 8);
    }
    told.extend(masker.finish());
    assert_eq!((told.len(), told.iter().all(|byte| *byte == b'*')), (1_000_000, true));
}

#[test]
fn a_long_value_takes_little_memory() {
    let mut number = 7_u32;
    let mut random = || {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        number.to_be_bytes()[0]
    };
    let binary: Vec<u8> = (0..65_536).map(|_| random()).collect();
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &binary[..49_152]);
    let lines = text.as_bytes().chunks(64).collect::<Vec<_>>().join(&b"\n"[..]);
    for value in [binary, text.into_bytes(), lines] {
        let masks = Masks::new([&value[..]]);
        assert!(masks.memory_bytes() < 40 << 20, "{}", masks.memory_bytes());
        assert_eq!(masks.mask(&value).iter().filter(|byte| !b"*\n\r".contains(byte)).count(), 0);
    }
}
