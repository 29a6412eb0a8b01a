//! `completions` and `man`.

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::failure::Failure;
use crate::render::Console;
use clap::CommandFactory as _;
use serde::Serialize;

/// Prints a completion script.
///
/// # Errors
/// Only if stdout fails.
pub fn completions(args: &CompletionsArgs, console: &Console) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "railyard", &mut script);
    console.write(&script)
}

/// Writes one page for the program and one for each verb.
///
/// # Errors
/// If the directory or a page cannot be written.
pub fn man(args: &ManArgs, console: &Console) -> Result<(), Failure> {
    let doing = format!("write manual pages into {}", args.dir.display());
    let failed = |error| Failure::local(&doing, error);
    std::fs::create_dir_all(&args.dir).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.dir).map_err(failed)?;
    if console.is_json() {
        #[derive(Serialize)]
        struct Written<'a> {
            dir: &'a std::path::Path,
        }
        return console.json(&Written { dir: &args.dir });
    }
    console.print(&format!("manual pages are in {}; read one with: man -l {0}/railyard.1\n", args.dir.display()))
}
