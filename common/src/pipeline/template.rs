//! `{{ name }}`: texts with places to fill in.

use super::diagnostic::{Position, quote};
use super::limits::PLACE_BYTES;
use crate::platform::Platform;
use std::collections::BTreeMap;
use std::fmt;

/// The names that every job knows.
pub(super) const BUILT_IN: [&str; 7] = ["version", "pipeline", "channel", "build", "step", "platform", "arch"];
/// The one of them that a parameter may be named as.
pub(super) const CHANNEL: &str = "channel";

/// A text with places to fill in.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub at: Position,
    pieces: Vec<Piece>,
}

#[derive(Clone, Debug)]
enum Piece {
    Text(String),
    Use(Name, Position),
}

/// What stands between the braces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    BuiltIn(&'static str),
    Param(String),
    Matrix(String),
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn(name) => f.write_str(name),
            Self::Param(name) => f.write_str(name),
            Self::Matrix(key) => write!(f, "matrix.{key}"),
        }
    }
}

/// Why a text is not a template.
pub(super) struct BadTemplate {
    pub at: Position,
    pub message: String,
}

/// The values for one job.
pub(super) struct Scope<'a> {
    pub pipeline: &'a str,
    pub version: &'a str,
    pub channel: &'a str,
    pub step: &'a str,
    pub platform: Platform,
    pub matrix: &'a [(String, String)],
    /// `None`: not known while checking.
    pub params: &'a BTreeMap<String, Option<Template>>,
}

/// Why a template gave no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unrendered {
    /// It uses a value that is not known.
    Unknown,
    /// The result would be longer than allowed.
    TooLong,
}

/// Whether `text` can name a parameter or a matrix key.
pub(super) fn is_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

impl Template {
    /// A text without places.
    pub fn literal(at: Position, text: &str) -> Self {
        Self { at, pieces: vec![Piece::Text(text.to_owned())] }
    }

    /// Reads `text`. `place` gives the position of the n-th `{{` of the text.
    pub fn parse(text: &str, at: Position, place: impl Fn(usize) -> Position) -> (Self, Vec<BadTemplate>) {
        let (mut pieces, mut bad) = (Vec::new(), Vec::new());
        let mut plain = String::new();
        let mut rest = text;
        let mut count = 0;
        while let Some(start) = rest.find("{{") {
            let (before, after) = (&rest[..start], &rest[start + 2..]);
            let here = place(count);
            count += 1;
            if let Some(before) = before.strip_suffix('\\') {
                plain.push_str(before);
                plain.push_str("{{");
                rest = after;
                continue;
            }
            plain.push_str(before);
            rest = match expression(after) {
                Ok((name, length)) => {
                    if !plain.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut plain)));
                    }
                    pieces.push(Piece::Use(name, here));
                    &after[length..]
                }
                Err(message) => {
                    bad.push(BadTemplate { at: here, message });
                    after
                }
            };
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            pieces.push(Piece::Text(plain));
        }
        (Self { at, pieces }, bad)
    }

    /// Every name that it uses, with its place.
    pub fn uses(&self) -> impl Iterator<Item = (&Name, Position)> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(_) => None,
            Piece::Use(name, at) => Some((name, *at)),
        })
    }

    /// Those of them that a parameter's value must not use.
    pub fn uses_beyond_built_in(&self) -> impl Iterator<Item = (&Name, Position)> {
        self.uses().filter(|(name, _)| !matches!(name, Name::BuiltIn(_)))
    }

    /// The template, with what is written as the channel meant as the parameter of that name.
    pub fn with_param_for_channel(mut self) -> Self {
        for piece in &mut self.pieces {
            if let Piece::Use(name, _) = piece
                && *name == Name::BuiltIn(CHANNEL)
            {
                *name = Name::Param(CHANNEL.to_owned());
            }
        }
        self
    }

    /// Where to point when the filled-in text is no good: at a parameter's use, else at any use, else at the text.
    pub fn blame(&self) -> Position {
        let param = self.uses().find(|(name, _)| matches!(name, Name::Param(_)));
        param.or_else(|| self.uses().next()).map_or(self.at, |(_, at)| at)
    }

    /// The text with every place filled in, and what that cost, whatever came of it: the bytes that were written, and
    /// [`PLACE_BYTES`] for each piece.
    pub fn render(&self, scope: &Scope<'_>, max_bytes: usize) -> (Result<String, Unrendered>, usize) {
        let (mut out, mut pieces) = (String::new(), 0);
        let done = self.render_into(scope, false, max_bytes, &mut out, &mut pieces);
        let cost = out.len() + pieces * PLACE_BYTES;
        (done.map(|()| out), cost)
    }

    /// A parameter's value (`is_value`) uses built-ins only. What uses more gives nothing, so that this is one level deep whatever the
    /// values are: they could name each other in a circle.
    fn render_into(
        &self,
        scope: &Scope<'_>,
        is_value: bool,
        max_bytes: usize,
        out: &mut String,
        pieces: &mut usize,
    ) -> Result<(), Unrendered> {
        for piece in &self.pieces {
            *pieces += 1;
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Use(Name::BuiltIn(name), _) => push_built_in(name, scope, out),
                Piece::Use(_, _) if is_value => return Err(Unrendered::Unknown),
                Piece::Use(Name::Matrix(key), _) => {
                    let value = scope.matrix.iter().find(|(name, _)| name == key);
                    out.push_str(value.map(|(_, value)| value.as_str()).ok_or(Unrendered::Unknown)?);
                }
                Piece::Use(Name::Param(name), _) => {
                    let value = scope.params.get(name).and_then(Option::as_ref).ok_or(Unrendered::Unknown)?;
                    value.render_into(scope, true, max_bytes, out, pieces)?;
                }
            }
            if out.len() > max_bytes {
                return Err(Unrendered::TooLong);
            }
        }
        Ok(())
    }
}

fn push_built_in(name: &str, scope: &Scope<'_>, out: &mut String) {
    match name {
        "version" => out.push_str(scope.version),
        "pipeline" => out.push_str(scope.pipeline),
        CHANNEL => out.push_str(scope.channel),
        "build" => {
            out.push_str(scope.pipeline);
            out.push('/');
            out.push_str(scope.version);
        }
        "step" => out.push_str(scope.step),
        "platform" => out.push_str(scope.platform.as_str()),
        _ => out.push_str(scope.platform.arch()),
    }
}

/// Longest text between the braces: a name of 63, `matrix.` and room for spaces.
const EXPRESSION_MAX_BYTES: usize = 256;

/// The name up to `}}`, and the length of all that.
fn expression(after: &str) -> Result<(Name, usize), String> {
    const FORM: &str = "expected `{{ name }}` or `{{ matrix.KEY }}`";
    // A window, so that a line of nothing but braces is not searched to its end for each of them.
    let window = &after[..after.floor_char_boundary(EXPRESSION_MAX_BYTES)];
    let line = window.lines().next().unwrap_or_default();
    let Some(end) = line.find("}}") else {
        return Err(format!("`{{{{` has no `}}}}` on its line; {FORM}"));
    };
    let inner = line[..end].trim();
    let name = if let Some(name) = BUILT_IN.into_iter().find(|name| *name == inner) {
        Name::BuiltIn(name)
    } else if is_name(inner) {
        Name::Param(inner.to_owned())
    } else if let Some(key) = inner.strip_prefix("matrix.").filter(|key| is_name(key)) {
        Name::Matrix(key.to_owned())
    } else {
        return Err(format!("{} is not a name; {FORM}", quote(inner)));
    };
    Ok((name, end + 2))
}
