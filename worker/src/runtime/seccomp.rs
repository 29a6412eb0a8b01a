//! Whether the engine keeps system calls from steps that no program needs.

use super::{Docker, RuntimeError};

/// How an engine names its filter among its security options.
const SECCOMP: &str = "name=seccomp";
/// What it says behind that where its own settings have switched the filter off.
const UNCONFINED: &str = "profile=unconfined";

/// The engine filters nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfiltered {
    /// It cannot.
    #[error(
        "the container engine has no seccomp: steps could make every system call that the host's kernel knows, those by which others got \
         out of their containers among them. It takes a kernel with CONFIG_SECCOMP_FILTER and an engine that is built with it; \
         `docker info` shows `seccomp` among the security options then"
    )]
    Missing,
    /// It is told not to.
    #[error(
        "the container engine's settings switch seccomp off (`seccomp-profile` is `unconfined`): steps could make every system call that \
         the host's kernel knows. Take that out of /etc/docker/daemon.json and of the command line of dockerd, and restart the engine"
    )]
    SwitchedOff,
}

impl Docker {
    /// Whether containers that ask for nothing get the engine's filter of system calls.
    ///
    /// # Errors
    /// [`RuntimeError`] if the engine does not answer.
    pub async fn filters_calls(&self) -> Result<Result<(), Unfiltered>, RuntimeError> {
        let info = self.short.info().await.map_err(self.error("ask for its security options"))?;
        Ok(judge(&info.security_options.unwrap_or_default()))
    }
}

fn judge(options: &[String]) -> Result<(), Unfiltered> {
    let seccomp = options.iter().find(|option| option.split(',').any(|part| part == SECCOMP));
    match seccomp {
        None => Err(Unfiltered::Missing),
        Some(option) if option.split(',').any(|part| part == UNCONFINED) => Err(Unfiltered::SwitchedOff),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_engines_say_of_their_filter_is_understood() {
        let judged = |options: &[&str]| judge(&options.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        let app_armor = "name=apparmor";
        for on in ["name=seccomp,profile=default", "name=seccomp,profile=builtin", "name=seccomp,profile=/etc/own.json"]
        {
            assert_eq!(judged(&[app_armor, on, "name=cgroupns"]), Ok(()), "{on}");
        }
        assert_eq!(judged(&[app_armor, "name=userns"]), Err(Unfiltered::Missing));
        assert_eq!(judged(&[]), Err(Unfiltered::Missing));
        assert_eq!(judged(&["name=seccomp,profile=unconfined"]), Err(Unfiltered::SwitchedOff));
    }
}
