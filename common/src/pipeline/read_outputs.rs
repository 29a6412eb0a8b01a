//! Reads what a step leaves.

use super::diagnostic::{quote, quote_list};
use super::limits::STEP_LIST_MAX;
use super::model::Output;
use super::reader::{Fields, Reader};
use super::values;
use super::yaml::{Node, Value};
use crate::compress::{Codec, Compress, Packing};

pub(super) const OUTPUT_FIELDS: [&str; 5] = ["path", "publish", "optional", "compress", "level"];

/// What `compress` may be.
const WAYS: [&str; 6] = ["auto", "none", "zstd", "xz", "gzip", "bzip2"];

impl Reader<'_> {
    pub(super) fn outputs(&mut self, node: &Node) -> Vec<Output> {
        let items = self.list(node, "`outputs`", STEP_LIST_MAX);
        items.iter().filter_map(|item| self.output(item)).collect()
    }

    fn output(&mut self, node: &Node) -> Option<Output> {
        if let Value::Text(_) = node.value {
            let path = self.template(node, "the output")?;
            return Some(Output { path, publish: None, optional: false, compress: Compress::Auto });
        }
        let fields = self.fields(node, "an output", &OUTPUT_FIELDS)?;
        let path = match fields.get("path") {
            Some(path) => self.template(path, "the output's `path`"),
            None => {
                self.problems.add_help(fields.at, "the output has no `path`", "write `- path: out/disk.raw`");
                None
            }
        };
        let publish = fields.get("publish").and_then(|publish| self.template(publish, "`publish`"));
        let optional = self.flag(fields.get("optional"), "`optional`");
        let compress = self.compress(&fields);
        Some(Output { path: path?, publish, optional, compress: compress? })
    }

    /// `None` where it cannot be read, which is reported.
    fn compress(&mut self, fields: &Fields<'_>) -> Option<Compress> {
        let way = match fields.get("compress") {
            None => Some("auto"),
            Some(node) => self.way(node),
        };
        let codec = Codec::ALL.into_iter().find(|codec| Some(codec.as_str()) == way);
        let Some(level) = fields.get("level") else {
            let with = |codec: Codec| Compress::With(Packing { codec, level: codec.default_level() });
            return way.map(|way| codec.map_or(if way == "none" { Compress::None } else { Compress::Auto }, with));
        };
        let Some(codec) = codec else {
            if let Some(way) = way {
                let message = format!("`level` says nothing with `compress: {way}`");
                let codecs = quote_list(Codec::ALL.map(Codec::as_str));
                self.problems.add_help(level.at, message, format!("levels are for {codecs}"));
            }
            return None;
        };
        let parse =
            |text: &str| values::level(text, codec.levels()).map_err(|expected| format!("{expected} for {codec}"));
        let level = self.parsed(level, "`level`", parse)?;
        Some(Compress::With(Packing { codec, level }))
    }

    fn way(&mut self, node: &Node) -> Option<&'static str> {
        let text = self.text(node, "`compress`")?;
        let found = WAYS.into_iter().find(|way| *way == text);
        if found.is_none() {
            let message = format!("`compress` cannot be {}", quote(text));
            self.problems.add_unknown(node.at, message, text, "values", &WAYS);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_can_be_named() {
        let named: Vec<&str> = ["auto", "none"].into_iter().chain(Codec::ALL.map(Codec::as_str)).collect();
        assert_eq!(named, WAYS);
    }
}
