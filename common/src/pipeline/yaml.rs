//! YAML as a tree in which every node knows its place in the file.
//!
//! serde's derived readers stop at the first problem and lose how a scalar was written (`1.0` becomes `1`). So the tree
//! is built from the parser's events, and the format is read from the tree, with all problems reported together.
//!
//! **Invariant:** the tree has at most [`NODES_MAX`] nodes, [`DEPTH_MAX`] levels and [`EXPANDED_MAX_BYTES`] bytes of text,
//! aliases expanded; so whatever walks it is bounded, too.

use super::diagnostic::{Position, Problems, quote};
use super::limits::{DEPTH_MAX, EXPANDED_MAX_BYTES, FILE_MAX_BYTES, NODES_MAX};
use serde_saphyr::granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Span, Tag};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub at: Position,
    /// The bytes of a scalar in the file, its quotes included.
    pub raw: Range<usize>,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Any other scalar, as written: `1.0` stays `1.0`.
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a map and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: String,
    pub at: Position,
    pub value: Node,
}

impl Value {
    /// What it is, for "expected a list, found …".
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }
}

const TOO_DEEP: &str = "the file is nested too deeply";

/// The document of `text`; `None` if it cannot be read at all, which is then reported.
pub(super) fn parse(text: &str, problems: &mut Problems) -> Option<Node> {
    if text.len() > FILE_MAX_BYTES {
        let size = text.len();
        problems
            .add(Position::START, format!("the file has {size} bytes; a pipeline file has at most {FILE_MAX_BYTES}"));
        return None;
    }
    let mut options = serde_saphyr::granit_parser::Options::default();
    options.set_emit_comments(false);
    options.flow_nesting_limit = DEPTH_MAX;
    options.block_nesting_limit = DEPTH_MAX;
    let mut builder = Builder { problems, frames: Vec::new(), anchors: HashMap::new(), nodes: 0, bytes: 0, root: None };
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match event {
            Ok(event) => event,
            Err(error) => {
                refuse(&error, builder.problems);
                return None;
            }
        };
        if builder.event(event, &span).is_err() {
            return None;
        }
    }
    if builder.root.is_none() {
        builder.problems.add_help(Position::START, "the file is empty", "a pipeline begins with `name: …`");
    }
    builder.root
}

fn refuse(error: &ScanError, problems: &mut Problems) {
    let at = position(error.marker());
    match error.kind() {
        ErrorKind::RecursionLimitExceeded => problems.add(at, TOO_DEEP),
        ErrorKind::UnknownAnchor => {
            problems.add_help(
                at,
                "this alias names no anchor",
                "write `&name` before a value, then `*name` repeats it",
            );
        }
        _ => {
            let help = "the cause is here or shortly before: indentation, a quote, a bracket, a `:` or a tab";
            problems.add_help(at, format!("this is not YAML: {}", error.info()), help);
        }
    }
}

fn position(marker: &Marker) -> Position {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Position { line: number(marker.line().max(1)), column: number(marker.col().saturating_add(1)) }
}

/// The file cannot be read on; the reason is among the problems.
struct GiveUp;

/// A collection that is not complete yet.
struct Frame {
    at: Position,
    anchor: usize,
    /// Nodes and bytes before it, to know the size of what an anchor names.
    before: (usize, usize),
    /// Levels below it.
    depth: usize,
    kind: FrameKind,
}

enum FrameKind {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, seen: BTreeMap<String, Position>, merged: Vec<Node>, key: Key },
}

/// Where in a map the parser is.
enum Key {
    /// The next node is a key.
    Awaited,
    /// The next node is this key's value.
    Read(String, Position),
    /// The next node is the value of a key that was refused.
    Refused,
}

/// What an anchor names: the node, with its size.
struct Anchored {
    node: Node,
    nodes: usize,
    bytes: usize,
    depth: usize,
}

struct Builder<'p> {
    problems: &'p mut Problems,
    frames: Vec<Frame>,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    bytes: usize,
    root: Option<Node>,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), GiveUp> {
        let at = position(&span.start);
        match event {
            Event::DocumentStart(..) if self.root.is_some() => {
                self.problems.add(at, "a second YAML document begins here; a pipeline file has one");
                Err(GiveUp)
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.tag(tag.as_deref(), at);
                let raw = span.byte_range().unwrap_or_default();
                self.grow(at, 1, text.len())?;
                let value = match (style, text.as_ref()) {
                    (ScalarStyle::Plain, "" | "~" | "null" | "Null" | "NULL") => Value::Null,
                    _ => Value::Text(text.into_owned()),
                };
                let node = Node { at, raw, value };
                if anchor != 0 {
                    let bytes = node_bytes(&node);
                    self.anchors.insert(anchor, Anchored { node: node.clone(), nodes: 1, bytes, depth: 0 });
                }
                self.attach(node, 0);
                Ok(())
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), at);
                self.open(at, anchor, FrameKind::List(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tag(tag.as_deref(), at);
                let (entries, seen, merged) = (Vec::new(), BTreeMap::new(), Vec::new());
                self.open(at, anchor, FrameKind::Map { entries, seen, merged, key: Key::Awaited })
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(),
            Event::Alias(id) => self.alias(id, at),
            _ => Ok(()),
        }
    }

    fn tag(&mut self, tag: Option<&Tag>, at: Position) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            self.problems.add(at, format!("the tag {} means nothing in a pipeline file", quote(&tag.original())));
        }
    }

    fn grow(&mut self, at: Position, nodes: usize, bytes: usize) -> Result<(), GiveUp> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.bytes = self.bytes.saturating_add(bytes);
        if self.nodes > NODES_MAX {
            self.problems.add(at, format!("the file has more than {NODES_MAX} values, its aliases expanded"));
            return Err(GiveUp);
        }
        if self.bytes > EXPANDED_MAX_BYTES {
            self.problems.add(at, format!("the file has more than {EXPANDED_MAX_BYTES} bytes, its aliases expanded"));
            return Err(GiveUp);
        }
        Ok(())
    }

    fn deep(&mut self, at: Position, depth: usize) -> Result<(), GiveUp> {
        if self.frames.len() + depth > DEPTH_MAX {
            self.problems.add(at, TOO_DEEP);
            return Err(GiveUp);
        }
        Ok(())
    }

    fn open(&mut self, at: Position, anchor: usize, kind: FrameKind) -> Result<(), GiveUp> {
        let before = (self.nodes, self.bytes);
        self.grow(at, 1, 0)?;
        self.frames.push(Frame { at, anchor, before, depth: 1, kind });
        self.deep(at, 0)
    }

    fn close(&mut self) -> Result<(), GiveUp> {
        let Some(frame) = self.frames.pop() else { return Ok(()) };
        let value = match frame.kind {
            FrameKind::List(items) => Value::List(items),
            FrameKind::Map { entries, merged, .. } => Value::Map(self.merge(entries, merged)),
        };
        let node = Node { at: frame.at, raw: 0..0, value };
        if frame.anchor != 0 {
            let (nodes, bytes) = (self.nodes - frame.before.0, self.bytes - frame.before.1);
            // A copy for the aliases; counted, because each level of nested anchors makes one.
            self.grow(frame.at, nodes, bytes)?;
            self.anchors.insert(frame.anchor, Anchored { node: node.clone(), nodes, bytes, depth: frame.depth });
        }
        self.attach(node, frame.depth);
        Ok(())
    }

    fn alias(&mut self, id: usize, at: Position) -> Result<(), GiveUp> {
        let Some(Anchored { node, nodes, bytes, depth }) = self.anchors.get(&id) else {
            self.problems.add(at, "this alias stands inside of what it names");
            return Err(GiveUp);
        };
        // The sizes first: nothing is copied that does not fit.
        let (nodes, bytes, depth) = (*nodes, *bytes, *depth);
        let copy = (self.nodes.saturating_add(nodes) <= NODES_MAX
            && self.bytes.saturating_add(bytes) <= EXPANDED_MAX_BYTES)
            .then(|| node.clone());
        self.grow(at, nodes, bytes)?;
        self.deep(at, depth)?;
        if let Some(node) = copy {
            self.attach(node, depth);
        }
        Ok(())
    }

    /// Puts a complete node where it belongs.
    fn attach(&mut self, node: Node, depth: usize) {
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some(node);
            return;
        };
        frame.depth = frame.depth.max(depth + 1);
        match &mut frame.kind {
            FrameKind::List(items) => items.push(node),
            FrameKind::Map { entries, seen, merged, key } => match std::mem::replace(key, Key::Awaited) {
                Key::Awaited => *key = read_key(node, seen, self.problems),
                Key::Read(name, _) if name == "<<" => merged.push(node),
                Key::Read(name, at) => entries.push(Entry { key: name, at, value: node }),
                Key::Refused => {}
            },
        }
    }

    /// Adds what `<<: *anchor` brings in and the map does not say itself.
    fn merge(&mut self, mut entries: Vec<Entry>, merged: Vec<Node>) -> Vec<Entry> {
        let mut known: HashSet<String> = match merged.is_empty() {
            true => return entries,
            false => entries.iter().map(|entry| entry.key.clone()).collect(),
        };
        for node in merged {
            let at = node.at;
            let maps = match node.value {
                Value::List(items) => items,
                value => vec![Node { value, ..node }],
            };
            for map in maps {
                let Value::Map(more) = map.value else {
                    self.problems.add(at, format!("expected a map after `<<`, found {}", map.value.kind()));
                    continue;
                };
                entries.extend(more.into_iter().filter(|entry| known.insert(entry.key.clone())));
            }
        }
        entries
    }
}

fn node_bytes(node: &Node) -> usize {
    if let Value::Text(text) = &node.value { text.len() } else { 0 }
}

fn read_key(node: Node, seen: &mut BTreeMap<String, Position>, problems: &mut Problems) -> Key {
    let Value::Text(name) = node.value else {
        problems.add(node.at, format!("expected a text as key, found {}", node.value.kind()));
        return Key::Refused;
    };
    if let Some(first) = seen.get(&name) {
        problems.add(node.at, format!("duplicate key {}: it stands on line {} already", quote(&name), first.line));
        return Key::Refused;
    }
    seen.insert(name.clone(), node.at);
    Key::Read(name, node.at)
}
