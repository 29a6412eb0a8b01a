//! The engine's host: whose network it is, and its packet filter.

use super::Rules;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

/// Where a resolver's configuration lies. The second one is asked where the first names only a resolver on this host, as the
/// engine does it.
const RESOLV_CONF: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// Where these programs are that not every service manager has on its path.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Seconds that a program waits for others that change the same tables.
const WAIT_SECS: &str = "10";

/// A network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Namespace {
    /// This process's.
    Own,
    /// That of the engine's process.
    Of(i32),
}

impl Namespace {
    /// The one that has `bridge`: the engine's. That of this process counts only where the engine's cannot be seen, or has none:
    /// two engines of one machine, each in a network of its own, have bridges of the same name.
    pub(super) fn with(bridge: &str, engine: Option<i32>) -> Result<Self, String> {
        let has = |process: &str| {
            fs::read_to_string(format!("/proc/{process}/net/dev"))
                .is_ok_and(|text| text.lines().any(|line| line.trim_start().starts_with(&format!("{bridge}:"))))
        };
        let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
        match engine {
            Some(pid) if has(&pid.to_string()) => {
                let is_own = namespace("self").is_some_and(|own| Some(own) == namespace(&pid.to_string()));
                Ok(if is_own { Self::Own } else { Self::Of(pid) })
            }
            _ if has("self") => Ok(Self::Own),
            _ => Err(format!(
                "the engine's bridge {bridge} is in a network that this worker does not see; run it on the engine's host, or in a \
                 container with the host's network and processes"
            )),
        }
    }

    /// Makes the rules, or makes them anew. There is no moment without them.
    pub(super) fn install(&self, rules: &Rules) -> Result<(), String> {
        self.install_with("iptables", rules.v4(), rules)?;
        match self.install_with("ip6tables", &rules.v6(), rules) {
            // Nobody can speak it there.
            Err(_) if !self.speaks_ipv6(rules.bridge()) => Ok(()),
            installed => installed,
        }
    }

    fn install_with(&self, program: &str, table: &str, rules: &Rules) -> Result<(), String> {
        self.run(&format!("{program}-restore"), &["--wait", WAIT_SECS, "--noflush"], table)?;
        let jump = |verb: &str| {
            self.run(program, &[&["--wait", WAIT_SECS, "-t", "mangle", verb], &rules.jump()[..]].concat(), "")
        };
        jump("-C").or_else(|_| jump("-I")).map(drop)
    }

    /// The rules as the kernel has them. An error if packets do not pass them.
    pub(super) fn list(&self, rules: &Rules) -> Result<String, String> {
        let mut listed = String::new();
        for program in ["iptables", "ip6tables"] {
            let ask = |args: &[&str]| self.run(program, &[&["--wait", WAIT_SECS, "-t", "mangle"], args].concat(), "");
            let found = ask(&[&["-C"], &rules.jump()[..]].concat()).and_then(|_| ask(&["-S", rules.chain()]));
            match found {
                Err(_) if program == "ip6tables" && !self.speaks_ipv6(rules.bridge()) => {}
                found => listed.push_str(&found?),
            }
        }
        Ok(listed)
    }

    fn speaks_ipv6(&self, bridge: &str) -> bool {
        let process = match self {
            Self::Own => "self".to_owned(),
            Self::Of(pid) => pid.to_string(),
        };
        fs::read_to_string(format!("/proc/{process}/net/if_inet6")).is_ok_and(|text| text.contains(bridge))
    }

    /// What the program prints.
    fn run(&self, program: &str, args: &[&str], input: &str) -> Result<String, String> {
        let mut command = match self {
            Self::Own => Command::new(program),
            Self::Of(pid) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net=/proc/{pid}/ns/net")).arg("--").arg(program);
                command
            }
        };
        let failed = |why: &dyn std::fmt::Display| format!("`{program} {}` failed: {why}", args.join(" "));
        command.args(args).env("PATH", SYSTEM_PATH).env("LC_ALL", "C");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| failed(&error))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that ends before it has read all says why.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(|error| failed(&error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(failed(&said.lines().next().unwrap_or("it does not say why")))
    }
}

/// The name servers that the engine hands to containers. One on the host's loopback is asked by the engine itself.
pub(super) fn name_servers() -> Vec<Ipv4Addr> {
    let servers = RESOLV_CONF.map(|path| name_servers_of(&fs::read_to_string(path).unwrap_or_default()));
    servers.into_iter().find(|servers| !servers.is_empty()).unwrap_or_default()
}

fn name_servers_of(text: &str) -> Vec<Ipv4Addr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = servers.filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok());
    addresses.filter(|address| !address.is_loopback()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_those_that_a_container_can_ask() {
        let text = "# a comment\nnameserver 127.0.0.53\nnameserver 10.0.0.2\n nameserver\t192.0.2.1\nnameserver fe80::1\noptions x\n";
        let want: Vec<Ipv4Addr> = ["10.0.0.2", "192.0.2.1"].map(|text| text.parse().unwrap()).to_vec();
        assert_eq!(name_servers_of(text), want);
    }

    #[test]
    fn a_bridge_that_nobody_has_is_said() {
        let error = Namespace::with("ry-nowhere", Some(1)).unwrap_err();
        assert!(error.contains("ry-nowhere"), "{error}");
    }
}
