//! Text that somebody else wrote, made safe for a terminal: colours may pass, nothing else is executed.
//!
//! A log can hold sequences that move the cursor, set the window's title or fill the keyboard's buffer. The filter is a
//! state machine over bytes, so that a sequence which is split across two chunks is caught as well.

/// What the filter lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Colours and weights (SGR), text, tabs and line ends.
    Colours,
    /// Text, tabs and line ends.
    Text,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Text,
    /// After `\r`: a line end if `\n` follows, else the beginning of the line's next version.
    Return,
    /// After ESC.
    Escape,
    /// In ESC with intermediate bytes (character sets); one final byte ends it.
    Intermediate,
    /// In `ESC [ …`: the bytes so far.
    Control(Vec<u8>),
    /// In OSC, DCS, APC, PM or SOS: everything up to BEL or ESC \ is dropped.
    Dropped,
    /// After ESC in such a string.
    StringEscape,
    /// After 0xC2, which begins the UTF-8 form of the C1 controls.
    C2,
}

/// Longest SGR sequence that is passed on; real ones are far shorter.
const SGR_MAX_BYTES: usize = 64;

/// The filter with its memory.
#[derive(Debug)]
pub struct Filter {
    keep: Keep,
    state: State,
    coloured: bool,
}

impl Filter {
    /// At the beginning of a text.
    pub fn new(keep: Keep) -> Self {
        Self { keep, state: State::Text, coloured: false }
    }

    /// Appends what of `input` is safe to `out`.
    pub fn push(&mut self, input: &[u8], out: &mut Vec<u8>) {
        for &byte in input {
            self.byte(byte, out);
        }
    }

    /// Ends the text: a colour that is still on is switched off.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        self.state = State::Text;
        if self.coloured {
            out.extend_from_slice(b"\x1b[0m");
            self.coloured = false;
        }
    }

    fn byte(&mut self, byte: u8, out: &mut Vec<u8>) {
        self.state = match std::mem::replace(&mut self.state, State::Text) {
            State::Text => Self::text(byte, out),
            State::Return if byte == b'\n' => {
                out.push(b'\n');
                State::Text
            }
            // A progress display rewrites its line: each version gets a line of its own.
            State::Return => {
                out.push(b'\n');
                Self::text(byte, out)
            }
            State::Escape => match byte {
                b'[' => State::Control(Vec::new()),
                b']' | b'P' | b'X' | b'^' | b'_' => State::Dropped,
                0x20..=0x2f => State::Intermediate,
                0x1b => State::Escape,
                _ => State::Text,
            },
            State::Intermediate if (0x20..=0x2f).contains(&byte) => State::Intermediate,
            State::Intermediate => State::Text,
            State::Control(seen) => self.control(seen, byte, out),
            State::Dropped => match byte {
                0x07 => State::Text,
                0x1b => State::StringEscape,
                _ => State::Dropped,
            },
            State::StringEscape => match byte {
                b'\\' => State::Text,
                0x1b => State::StringEscape,
                _ => State::Dropped,
            },
            State::C2 => match byte {
                0x9b => State::Control(Vec::new()),
                0x90 | 0x98 | 0x9d..=0x9f => State::Dropped,
                0x80..=0x9f => State::Text,
                _ => {
                    out.push(0xc2);
                    Self::text(byte, out)
                }
            },
        };
    }

    fn text(byte: u8, out: &mut Vec<u8>) -> State {
        match byte {
            0x1b => State::Escape,
            b'\r' => State::Return,
            0xc2 => State::C2,
            b'\n' | b'\t' => {
                out.push(byte);
                State::Text
            }
            0..=0x1f | 0x7f => State::Text,
            _ => {
                out.push(byte);
                State::Text
            }
        }
    }

    fn control(&mut self, mut seen: Vec<u8>, byte: u8, out: &mut Vec<u8>) -> State {
        match byte {
            0x1b => State::Escape,
            b'm' => {
                let sgr = seen.len() <= SGR_MAX_BYTES && seen.iter().all(|b| matches!(b, b'0'..=b'9' | b';' | b':'));
                if sgr && self.keep == Keep::Colours {
                    self.coloured = !matches!(seen.as_slice(), b"" | b"0");
                    out.extend_from_slice(b"\x1b[");
                    out.extend_from_slice(&seen);
                    out.push(b'm');
                }
                State::Text
            }
            0x40..=0x7e => State::Text,
            b'\n' => {
                // A sequence does not span lines; this one was cut short.
                out.push(b'\n');
                State::Text
            }
            _ => {
                if seen.len() <= SGR_MAX_BYTES {
                    seen.push(byte);
                }
                State::Control(seen)
            }
        }
    }
}

/// The text without control sequences, and with those characters shown that reorder others.
pub fn plain(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut filter = Filter::new(Keep::Text);
    filter.push(text.as_bytes(), &mut out);
    filter.finish(&mut out);
    let text = String::from_utf8_lossy(&out);
    if !text.contains(is_bidi) {
        return text.into_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_bidi(c) { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown
}

/// Characters that turn around what is shown behind them, so that a line could say other things than it does. They are shown by
/// their number: an honest text has them, too, and reads as well without.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text without control sequences, on one line.
pub fn one_line(text: &str) -> String {
    plain(text).replace(['\n', '\t'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(keep: Keep, input: &[u8]) -> String {
        let mut whole = Vec::new();
        let mut filter = Filter::new(keep);
        filter.push(input, &mut whole);
        filter.finish(&mut whole);
        // Cut anywhere, the result is the same.
        for cut in 0..=input.len() {
            let mut parts = Vec::new();
            let mut filter = Filter::new(keep);
            filter.push(&input[..cut], &mut parts);
            filter.push(&input[cut..], &mut parts);
            filter.finish(&mut parts);
            assert_eq!(parts, whole, "cut at {cut}");
        }
        String::from_utf8(whole).unwrap()
    }

    #[test]
    fn colours_pass_and_are_switched_off_at_the_end() {
        assert_eq!(filtered(Keep::Colours, b"\x1b[1;31mred\x1b[0m plain"), "\x1b[1;31mred\x1b[0m plain");
        assert_eq!(filtered(Keep::Colours, b"\x1b[32mgreen"), "\x1b[32mgreen\x1b[0m");
        assert_eq!(filtered(Keep::Text, b"\x1b[1;31mred\x1b[0m"), "red");
    }

    #[test]
    fn nothing_else_is_executed() {
        for (input, want) in [
            (&b"a\x1b[2J\x1b[Hb"[..], "ab"), // clear, home
            (b"a\x1b]0;title\x07b", "ab"),   // window title
            (b"a\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\b", "alinkb"),
            (b"a\x1bP$q\"p\x1b\\b", "ab"), // device control
            (b"a\x1b(0b", "ab"),           // character set
            (b"a\x1bcb", "ab"),            // reset
            (b"a\x1b[>0;1mb", "ab"),       // ends in m, is no colour
            (b"a\x07\x08b\x7f\x00", "ab"),
            (b"a\xc2\x9b2Jb", "ab"),      // CSI as C1
            (b"a\xc2\x9d0;t\x07b", "ab"), // OSC as C1
            ("a\u{a0}ä€b".as_bytes(), "a\u{a0}ä€b"),
            (b"one\r\ntwo\r\n", "one\ntwo\n"),
            (b"10%\r20%\r100%\n", "10%\n20%\n100%\n"),
            (b"tab\there", "tab\there"),
            (b"a\x1b[3\nb", "a\nb"),
        ] {
            assert_eq!(filtered(Keep::Colours, input), want, "{:?}", String::from_utf8_lossy(input));
        }
    }

    #[test]
    fn what_would_turn_a_line_around_is_shown() {
        assert_eq!(one_line("one/1\u{202e}1/eno\u{2066}x\u{200f}"), r"one/1\u{202e}1/eno\u{2066}x\u{200f}");
        assert_eq!(one_line("שלום é"), "שלום é");
    }

    #[test]
    fn an_endless_sequence_costs_no_memory() {
        let mut filter = Filter::new(Keep::Colours);
        let mut out = Vec::new();
        filter.push(b"\x1b[", &mut out);
        filter.push(&vec![b'1'; 1 << 20], &mut out);
        assert!(matches!(&filter.state, State::Control(seen) if seen.len() <= SGR_MAX_BYTES + 1));
    }
}
