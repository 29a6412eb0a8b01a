//! Why a command did not do what it was asked, and the exit code that says so.

use crate::render::ansi;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// The end of a command that went wrong. The message is for a person: what was wrong, where, and what to do.
#[derive(Debug)]
pub enum Failure {
    /// The build (or the service that was started) failed. Exit code 1.
    Failed(String),
    /// The command line, the settings or the pipeline file are wrong. Exit code 2.
    Usage(String),
    /// The farm cannot be reached, or refuses. Exit code 3.
    Farm(String),
    /// Everything has been said already; only the exit code is left.
    Told(Exit),
    /// Whoever read our output went away (`railyard logs … | head`). Nothing is wrong.
    OutputClosed,
}

/// The exit codes, which scripts rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The build failed, or the work could not be done on this machine.
    Failed = 1,
    /// Wrong arguments, settings or pipeline file.
    Usage = 2,
    /// The farm cannot be reached, or refuses.
    Farm = 3,
    /// Interrupted by Ctrl-C, as shells write it: 128 and the signal's number.
    Interrupted = 130,
}

impl Failure {
    /// Writes the message to stderr and gives the exit code. Part of it may be what somebody else wrote, a pin's reason for
    /// instance: nothing in it moves the cursor or does anything else to the terminal.
    pub fn report(self) -> ExitCode {
        let (exit, message) = match self {
            Self::Failed(message) => (Exit::Failed, message),
            Self::Usage(message) => (Exit::Usage, message),
            Self::Farm(message) => (Exit::Farm, message),
            Self::Told(exit) => return ExitCode::from(exit as u8),
            Self::OutputClosed => return ExitCode::SUCCESS,
        };
        // If stderr is gone as well, nobody is left to tell.
        let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("railyard: {}\n", ansi::plain(&message)));
        ExitCode::from(exit as u8)
    }

    /// A failure of this machine, with what was being done: "cannot write x: no space left".
    pub fn local(doing: impl fmt::Display, error: impl fmt::Display) -> Self {
        Self::Failed(format!("cannot {doing}: {error}"))
    }
}

/// Writing to stdout or stderr failed.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::local("write the output", error),
        }
    }
}
