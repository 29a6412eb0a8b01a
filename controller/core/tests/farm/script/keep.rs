//! Lines about keeping builds: pins, tags, reductions, claims. A blob is called by its bytes; those of an artifact are its path.

use crate::script::line::{Line, millis, parsed};
use railyard_common::id::BuildId;
use railyard_common::retention::{Keep, Pin};
use railyard_common::time::Millis;
use railyard_core::{Command, Force, Reduction, Whose};

/// Who asks, where nobody is named.
const ADA: &str = "ada";

/// Reads one of them:
///
/// - `pin mini/1 lab by=bob own for=14h: why`; `own`: only where it takes the place of none of others
/// - `unpin mini/1 lab by=bob own`, `unpin mini/1`: all of its pins
/// - `tag mini/1 golden`, `untag mini golden`
/// - `reduce mini/1 mini/2 manifest force: why`
/// - `swept mini/1 nothing`: what went with its reduction to nothing is gone
/// - `claim w1 j0.1 a.deb b.deb`
/// - `must-stay 1h`: which blobs, when what is reduced stays for an hour
pub fn read(words: &[&str], text: String) -> Result<Line, String> {
    let by = || ADA.to_owned();
    Ok(Line::Command(match words {
        ["pin", build, name, options @ ..] => {
            let Asked { by, whose, span } = asked(options)?;
            let pin = Pin { by, why: text, at: Millis(0), until: None };
            return Ok(Line::Pin { build: parsed(build)?, name: parsed(name)?, pin, whose, span });
        }
        ["unpin", build, rest @ ..] => {
            let (name, options) = match rest {
                [name, options @ ..] if *name != "own" && !name.contains('=') => (Some(parsed(name)?), options),
                options => (None, options),
            };
            let Asked { by, whose, .. } = asked(options)?;
            Command::Unpin { build: parsed(build)?, name, by, whose }
        }
        ["tag", build, tag] => Command::Tag { build: parsed(build)?, tag: parsed(tag)?, by: by() },
        ["untag", pipeline, tag] => Command::Untag { pipeline: parsed(pipeline)?, tag: parsed(tag)?, by: by() },
        ["reduce", builds @ .., keep, "force"] => reduce(builds, keep, &text, Force::Forced)?,
        ["reduce", builds @ .., keep] => reduce(builds, keep, &text, Force::Asked)?,
        ["swept", build, keep] => Command::Swept { builds: vec![(parsed(build)?, kept(keep)?)] },
        ["claim", worker, lease, blobs @ ..] => {
            let blobs = blobs.iter().map(|blob| (*blob).to_owned()).collect();
            return Ok(Line::Claim { lease: parsed(lease)?, worker: parsed(worker)?, blobs });
        }
        ["must-stay", grace] => return Ok(Line::MustStay(millis(grace)?)),
        _ => return Err("no such command, or not of this form".to_owned()),
    }))
}

struct Asked {
    by: String,
    whose: Whose,
    span: Option<u64>,
}

fn asked(options: &[&str]) -> Result<Asked, String> {
    let mut asked = Asked { by: ADA.to_owned(), whose: Whose::Anybodys, span: None };
    for option in options {
        match option.split_once('=') {
            Some(("by", by)) => by.clone_into(&mut asked.by),
            Some(("for", span)) => asked.span = Some(millis(span)?),
            None if *option == "own" => asked.whose = Whose::Own,
            _ => return Err(format!("a pin has no option `{option}`")),
        }
    }
    Ok(asked)
}

fn reduce(builds: &[&str], keep: &str, why: &str, force: Force) -> Result<Command, String> {
    let keep = kept(keep)?;
    let one = |build: &&str| Ok(Reduction { build: parsed::<BuildId>(build)?, keep, why: why.to_owned() });
    let builds = builds.iter().map(one).collect::<Result<_, String>>()?;
    Ok(Command::Reduce { builds, by: ADA.to_owned(), force })
}

fn kept(word: &str) -> Result<Keep, String> {
    let all = [Keep::Nothing, Keep::Manifest, Keep::Published, Keep::All];
    all.into_iter()
        .find(|keep| keep.to_string() == word)
        .ok_or(format!("`{word}` is nothing that can be kept of a build"))
}
