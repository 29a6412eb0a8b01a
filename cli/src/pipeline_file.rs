//! A pipeline file on this machine: read with its scripts, checked, and its faults shown where they are.

use crate::args::RequestArgs;
use crate::failure::{Exit, Failure};
use crate::render::style::{Style, Tone};
use crate::render::{Console, ansi};
use railyard_common::id::Version;
use railyard_common::path::RelPath;
use railyard_common::pipeline::{Diagnostic, Pipeline, Request, Source, script_files};
use railyard_common::tier;
use railyard_proto::v1::SubmitRequest;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Largest file that is read: more than any limit of the pipeline format, so that those give the message.
const READ_MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The text of a pipeline file and of the scripts beside it.
#[derive(Debug)]
pub struct PipelineFile {
    /// As it was written on the command line.
    pub name: String,
    /// Its text.
    pub text: String,
    /// Script files, by the path in the pipeline file. One that is not there is missing here: the check says so, with
    /// its place.
    pub files: BTreeMap<String, String>,
}

/// What `-o json` prints for a file with faults.
#[derive(Serialize)]
struct Faulty<'a> {
    valid: bool,
    diagnostics: &'a [Diagnostic],
}

/// Faults found in it.
pub type Faults = Vec<Diagnostic>;

impl PipelineFile {
    /// Reads the file and the scripts that it names.
    ///
    /// # Errors
    /// [`Failure::Usage`] for files that cannot be read, [`Failure::Told`] after the faults have been shown.
    pub fn read(path: &Path, console: &Console) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let text = read_text(path).map_err(|why| Failure::Usage(format!("cannot read {name}: {why}")))?;
        let mut file = Self { name, text, files: BTreeMap::new() };
        let dir = path.parent().unwrap_or(Path::new(""));
        let scripts = script_files(&file.text, &file.name).map_err(|faults| file.show(&faults, console))?;
        for script in scripts {
            // Only what lies beside the pipeline file is ever read and sent.
            if script.parse::<RelPath>().is_err() {
                continue;
            }
            match read_text(&dir.join(&script)) {
                Ok(text) => drop(file.files.insert(script, text)),
                Err(Unreadable::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(why) => return Err(Failure::Usage(format!("cannot read {}: {why}", dir.join(&script).display()))),
            }
        }
        Ok(file)
    }

    /// Checks everything that can be known without a build.
    ///
    /// # Errors
    /// The faults.
    pub fn parse(&self) -> Result<Pipeline, Faults> {
        Pipeline::parse(&Source { file_name: &self.name, text: &self.text, files: &self.files })
    }

    /// Checks what a build asks for, and gives the message for the controller.
    ///
    /// # Errors
    /// [`Failure::Usage`], or [`Failure::Told`] after the faults have been shown.
    pub fn request(self, args: &RequestArgs, console: &Console) -> Result<SubmitRequest, Failure> {
        let params = params(&args.params)?;
        let version = args.version.clone().map(|version| tier::version_of(version, args.untrusted)).transpose();
        let version = version.map_err(|bad| Failure::Usage(bad.to_string()))?;
        self.parse()
            .and_then(|pipeline| expand(&pipeline, version, &params, args))
            .map_err(|faults| self.show(&faults, console))?;
        Ok(SubmitRequest {
            pipeline: self.text,
            file_name: self.name,
            files: self.files.into_iter().collect(),
            version: args.version.as_ref().map(ToString::to_string).unwrap_or_default(),
            params: params.into_iter().collect(),
            platforms: args.platforms.iter().map(ToString::to_string).collect(),
            idempotency_key: String::new(),
            priority: String::new(),
            untrusted: args.untrusted,
            channel: args.channel.as_ref().map(ToString::to_string).unwrap_or_default(),
        })
    }

    /// Shows the faults on stderr for people, and as JSON on stdout for programs; gives the failure to end with.
    pub fn show(&self, faults: &[Diagnostic], console: &Console) -> Failure {
        for fault in faults {
            console.note(self.describe(fault, console.err).trim_end());
        }
        if !console.is_json() {
            return Failure::Told(Exit::Usage);
        }
        match console.json(&Faulty { valid: false, diagnostics: faults }) {
            Ok(()) => Failure::Told(Exit::Usage),
            Err(failure) => failure,
        }
    }

    /// The fault with its line and a caret below it.
    fn describe(&self, fault: &Diagnostic, style: Style) -> String {
        let place = format!("{}:{}:{}", fault.file, fault.line, fault.column);
        let mut text =
            format!("{}: {} {}\n", style.paint(Tone::Heading, &place), style.paint(Tone::Bad, "error:"), fault.message);
        let line = usize::try_from(fault.line).ok().and_then(|line| self.text.lines().nth(line.checked_sub(1)?));
        if let Some(line) = line.filter(|_| fault.file == self.name) {
            let column = usize::try_from(fault.column).unwrap_or(1).max(1);
            let number = fault.line.to_string();
            let margin = " ".repeat(number.len());
            // A tab before the caret stays a tab, so that the caret stands below its place.
            let blank: String = line.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            let bar = style.paint(Tone::Faint, "|");
            text.push_str(&format!("{} {bar} {}\n", style.paint(Tone::Faint, &number), ansi::plain(line)));
            text.push_str(&format!("{margin} {bar} {blank}{}\n", style.paint(Tone::Bad, "^")));
        }
        if let Some(help) = &fault.help {
            text.push_str(&format!("  help: {help}\n"));
        }
        text
    }
}

/// Checks the plan that the controller would make, but for what it takes from other builds. A version that the controller is to choose is stood in for: plans differ in
/// it only by text.
pub fn expand(
    pipeline: &Pipeline,
    version: Option<Version>,
    params: &BTreeMap<String, String>,
    args: &RequestArgs,
) -> Result<(), Faults> {
    let version = version.unwrap_or_else(|| "0".parse().expect("0 is a version"));
    let (platforms, channel) = (args.platforms.clone(), args.channel.clone());
    pipeline.check_request(&Request { params: params.clone(), platforms, channel, ..Request::of(version) })
}

fn params(given: &[(String, String)]) -> Result<BTreeMap<String, String>, Failure> {
    let mut params = BTreeMap::new();
    for (key, value) in given {
        if params.insert(key.clone(), value.clone()).is_some() {
            return Err(Failure::Usage(format!("--param {key} is given twice")));
        }
    }
    Ok(params)
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("{0}")]
    Io(io::Error),
    #[error("it has more than {READ_MAX_BYTES} bytes")]
    TooBig,
    #[error("it is not UTF-8 text")]
    NotText,
}

fn read_text(path: &Path) -> Result<String, Unreadable> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(Unreadable::Io)?;
    let mut bytes = Vec::new();
    file.take(READ_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(Unreadable::Io)?;
    if bytes.len() as u64 > READ_MAX_BYTES {
        return Err(Unreadable::TooBig);
    }
    String::from_utf8(bytes).map_err(|_| Unreadable::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_below_its_place() {
        let file = PipelineFile {
            name: "r.yaml".to_owned(),
            text: "name: mini\n\tstepz: []\n".to_owned(),
            files: BTreeMap::new(),
        };
        let fault = Diagnostic {
            file: "r.yaml".to_owned(),
            line: 2,
            column: 2,
            message: "`stepz` is not a field".to_owned(),
            help: Some("did you mean `steps`?".to_owned()),
        };
        assert_eq!(
            file.describe(&fault, Style::PLAIN),
            "r.yaml:2:2: error: `stepz` is not a field\n2 | \tstepz: []\n  | \t^\n  help: did you mean `steps`?\n"
        );
        // A place in another file, or beyond the end, has no line to show.
        let elsewhere = Diagnostic { line: 9, help: None, ..fault };
        assert_eq!(file.describe(&elsewhere, Style::PLAIN), "r.yaml:9:2: error: `stepz` is not a field\n");
    }

    #[test]
    fn a_parameter_is_given_once() {
        let twice = [("a".to_owned(), "1".to_owned()), ("a".to_owned(), "2".to_owned())];
        assert!(matches!(params(&twice), Err(Failure::Usage(message)) if message.contains("--param a")));
    }
}
