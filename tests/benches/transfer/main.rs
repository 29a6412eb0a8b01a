//! How fast artifacts get into the cache and out of it: `cargo bench -p railyard-tests --bench transfer -- [--quick]
//! [--only NAME]… [--json FILE]`.
//!
//! Two inputs of 2 GiB, one that does not compress and one that compresses about 2.5 times, there and back: over the embedded
//! cache, with TLS and without, and over an S3 service (s3s-fs), each a process of its own. The peers do the same with the same
//! services in the same run, where they are on the PATH. Wall time includes everything until the file is complete and checked
//! as far as the tool checks it: ours is hashed before it is sent, verified by the cache, and flushed to the disk there.
//!
//! Processor seconds are the whole machine's, servers and kernel included: nothing else should run meanwhile. Memory is the
//! client's largest process.

mod client;
mod files;
mod four;
#[path = "../schedule/machine.rs"]
#[allow(dead_code, reason = "the other bench needs more of it")]
mod machine;
mod peers;
mod sample;
mod store;

use anyhow::Context as _;
use files::{Files, Input};
use sample::{Row, Rows};
use std::path::PathBuf;
use store::{Kind, Service};

/// What the command line says.
struct Options {
    /// Small files: to see that it works.
    quick: bool,
    only: Vec<String>,
    rounds: usize,
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    // Fails only if a provider is installed already, and then it is this one: no other is linked.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if store::is_child()? || client::is_child()? || sample::is_child()? {
        return Ok(());
    }
    let options = options()?;
    let space = machine::workspace()?;
    let files = Files::make(space.path(), if options.quick { 256 << 20 } else { 2 << 30 })?;
    let mut rows = Rows::new(options.rounds);
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    for input in Input::ALL {
        let file = &files.of(input);
        if wanted("copy") {
            rows.measure("disk", input, "push", "cp + sync", |_| peers::copy(space.path(), file))?;
        }
        for kind in Kind::ALL {
            if wanted(kind.name()) {
                measure_store(kind, input, &files, space.path(), &mut rows)?;
            }
        }
    }
    if wanted("four") {
        four::measure(&files, space.path(), &mut rows)?;
    }
    rows.print();
    if let Some(path) = options.json {
        let text = serde_json::to_string_pretty(&rows.json())?;
        std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Ours and the peers' over one store.
fn measure_store(
    kind: Kind,
    input: Input,
    files: &Files,
    space: &std::path::Path,
    rows: &mut Rows,
) -> anyhow::Result<()> {
    let file = &files.of(input);
    let service = Service::start(kind, space)?;
    let ours = if kind == Kind::EmbeddedTls { "railyard, TLS" } else { "railyard" };
    rows.measure(kind.name(), input, "push", ours, |_| {
        service.empty()?;
        client::push(&service, file, input)
    })?;
    rows.measure(kind.name(), input, "pull", ours, |_| client::pull(&service, file, input, space))?;
    for peer in peers::of(kind) {
        if let Some(missing) = peer.missing() {
            rows.skip(Row::new(kind.name(), input, "", peer.name()), &missing);
            continue;
        }
        if peer.pushes(kind) {
            rows.measure(kind.name(), input, "push", peer.name(), |_| peer.push(&service, file, space))?;
        }
        rows.measure(kind.name(), input, "pull", peer.name(), |_| peer.pull(&service, file, space, false))?;
        if let Some(name) = peer.verified_name() {
            rows.measure(kind.name(), input, "pull", name, |_| peer.pull(&service, file, space, true))?;
        }
    }
    service.empty()?;
    Ok(())
}

fn options() -> anyhow::Result<Options> {
    let mut names = vec!["copy", "four"];
    names.extend(Kind::ALL.map(Kind::name));
    let mut options = Options { quick: false, only: Vec::new(), rounds: 3, json: None };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // What cargo itself passes.
            "--bench" => {}
            "--quick" => options.quick = true,
            "--rounds" => options.rounds = args.next().context("--rounds takes a number")?.parse()?,
            "--only" => {
                let name = args.next().unwrap_or_default();
                anyhow::ensure!(names.contains(&name.as_str()), "--only takes one of {}", names.join(", "));
                options.only.push(name);
            }
            "--json" => options.json = Some(args.next().context("--json takes a file")?.into()),
            other => anyhow::bail!("`{other}` is none of --quick, --rounds N, --only NAME, --json FILE"),
        }
    }
    Ok(options)
}
