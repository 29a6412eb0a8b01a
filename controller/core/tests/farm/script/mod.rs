//! A small line language for what happens to a farm, and its transcript.
//!
//! One command a line; an indented line continues the one above; `#` starts a comment, which the transcript keeps.
//! Everything after `: ` is free text. See [`line::Line`] for the commands, [`keep`] for those about keeping builds, and [`plan`] for plans.

mod keep;
mod line;
mod plan;
mod stage;
mod tell;

use stage::Stage;

/// Runs a script. The transcript shows each command after `> ` and below it what came of it.
///
/// # Panics
/// With the line's number, if a line cannot be read or an invariant breaks.
pub fn transcript(text: &str) -> String {
    let mut stage = Stage::default();
    for (number, command) in commands(text) {
        if command.is_empty() || command.starts_with('#') {
            stage.say(&command);
            continue;
        }
        let line = line::read(&command).unwrap_or_else(|why| panic!("line {number}: {why}\n{command}"));
        command.lines().enumerate().for_each(|(n, part)| {
            let mark = if n == 0 { '>' } else { '.' };
            stage.say(&format!("{mark} {part}"));
        });
        stage.run(line).unwrap_or_else(|why| panic!("line {number}: {why}\n{command}"));
    }
    stage.finish()
}

/// The commands with the numbers of their first lines; a continued command keeps its line breaks.
fn commands(text: &str) -> Vec<(usize, String)> {
    let mut commands: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let continues = line.starts_with(' ') && !line.trim().is_empty();
        match commands.last_mut() {
            Some((_, last)) if continues => {
                last.push('\n');
                last.push_str(line.trim_end());
            }
            _ => commands.push((index + 1, line.trim_end().to_owned())),
        }
    }
    commands
}
