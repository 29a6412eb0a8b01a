//! What people use today, over the same stores.

use super::sample::{self, Sample};
use super::store::{BUCKET, KEY_ID, Kind, SECRET, Service};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A tool.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// rsync over ssh, into a directory on the same disk.
    Rsync,
    /// A single stream, unverified.
    Curl,
    Rclone,
    S5cmd,
    Aws,
}

/// The tools that can speak with a store. Nobody else can push into the embedded cache: rsync, which needs a shell there, stands
/// for what is done without one.
pub fn of(kind: Kind) -> Vec<Peer> {
    match kind {
        Kind::Embedded => vec![Peer::Rsync, Peer::Curl, Peer::Rclone],
        Kind::EmbeddedTls => vec![Peer::Curl],
        Kind::S3 => vec![Peer::S5cmd, Peer::Aws, Peer::Rclone],
    }
}

/// `cp`, and everything on the disk.
pub fn copy(space: &Path, file: &Path) -> anyhow::Result<(u64, Sample)> {
    let bytes = std::fs::metadata(file)?.len();
    let dest = space.join("copied");
    let mut command = Command::new("sh");
    command.args(["-c", "cp \"$0\" \"$1\" && sync \"$1\""]).arg(file).arg(&dest);
    let sample = sample::run(&command)?;
    std::fs::remove_file(dest)?;
    Ok((bytes, sample))
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Self::Rsync => "rsync over ssh",
            Self::Curl => "curl",
            Self::Rclone => "rclone",
            Self::S5cmd => "s5cmd",
            Self::Aws => "aws s3 cp",
        }
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Rsync => &["rsync", "ssh", "sshd", "ssh-keygen"],
            Self::Curl => &["curl"],
            Self::Rclone => &["rclone"],
            Self::S5cmd => &["s5cmd"],
            Self::Aws => &["aws"],
        }
    }

    /// The program that is not here.
    pub fn missing(self) -> Option<String> {
        let missing = self.programs().iter().find(|program| find(program).is_none());
        missing.map(|program| (*program).to_owned())
    }

    /// Whether it can write into a store of that kind.
    pub fn pushes(self, kind: Kind) -> bool {
        kind == Kind::S3 || self == Self::Rsync
    }

    pub fn push(self, service: &Service, file: &Path, space: &Path) -> anyhow::Result<(u64, Sample)> {
        let bytes = std::fs::metadata(file)?.len();
        let target = service.root.join("peer");
        // Every push is one of a new file.
        let _ = std::fs::remove_file(&target);
        let sample = match self {
            Self::Rsync => {
                let ssh = Ssh::start(space)?;
                let mut command = Command::new("rsync");
                command.args(["-a", "-e", &ssh.shell()]).arg(file).arg(format!("127.0.0.1:{}", target.display()));
                sample::run(&command)?
            }
            _ => sample::run(&self.s3(service, &file.to_string_lossy(), &object(self)))?,
        };
        Ok((bytes, sample))
    }

    /// What does the same as ours: a pull whose digest is looked at, by the fastest tool for that. rsync
    /// looks at a digest of its own.
    pub fn verified_name(self) -> Option<&'static str> {
        match self {
            Self::Rsync => None,
            Self::Curl => Some("curl, openssl"),
            Self::Rclone => Some("rclone, openssl"),
            Self::S5cmd => Some("s5cmd, openssl"),
            Self::Aws => Some("aws, openssl"),
        }
    }

    pub fn pull(self, service: &Service, file: &Path, space: &Path, verify: bool) -> anyhow::Result<(u64, Sample)> {
        let bytes = std::fs::metadata(file)?.len();
        let (source, dest) = (service.root.join("peer"), space.join("pulled-by-peer"));
        if !source.exists() {
            std::fs::copy(file, &source)?;
        }
        let url = || -> anyhow::Result<String> { Ok(format!("{}/peer", cache_url(service)?)) };
        let ssh = if self == Self::Rsync { Some(Ssh::start(space)?) } else { None };
        let mut command = match self {
            Self::Rsync => {
                let mut command = Command::new("rsync");
                command.args(["-a", "-e", &ssh.as_ref().map(Ssh::shell).unwrap_or_default()]);
                command.arg(format!("127.0.0.1:{}", source.display())).arg(&dest);
                command
            }
            Self::Curl => {
                let mut command = Command::new("curl");
                command.args(["-sSf", "--http1.1"]);
                if service.kind == Kind::EmbeddedTls {
                    command.arg("--cacert").arg(&service.ca);
                }
                command.arg(url()?).arg("-o").arg(&dest);
                command
            }
            Self::Rclone if service.kind != Kind::S3 => {
                let mut command = Command::new("rclone");
                command.args(["copyurl", &url()?]).arg(&dest);
                command
            }
            _ => self.s3(service, &object(self), &dest.to_string_lossy()),
        };
        if verify {
            command = then_verified(&command, &dest);
        }
        let sample = sample::run(&command)?;
        anyhow::ensure!(Command::new("cmp").arg(file).arg(&dest).status()?.success(), "it came back changed");
        std::fs::remove_file(dest)?;
        Ok((bytes, sample))
    }

    fn s3(self, service: &Service, from: &str, to: &str) -> Command {
        let endpoint = &service.endpoint;
        let mut command = match self {
            Self::S5cmd => {
                let mut command = Command::new("s5cmd");
                command.args(["--endpoint-url", endpoint, "cp", from, to]);
                command
            }
            Self::Aws => {
                let mut command = Command::new("aws");
                command.args(["--endpoint-url", endpoint, "s3", "cp", "--only-show-errors", from, to]);
                command
            }
            _ => {
                let mut command = Command::new("rclone");
                command.args(["copyto", "--s3-provider", "Other", "--s3-endpoint", endpoint, "--s3-env-auth"]);
                command.args(["--s3-no-check-bucket", "--s3-force-path-style", from, to]);
                command
            }
        };
        command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET).env("AWS_REGION", "us-east-1");
        command
    }
}

/// The command, and then a look at the digest of what it has fetched.
fn then_verified(command: &Command, dest: &Path) -> Command {
    let mut both = Command::new("sh");
    both.args(["-c", "dest=$0; \"$@\" && openssl dgst -sha256 \"$dest\""]).arg(dest);
    both.arg(command.get_program()).args(command.get_args());
    both.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    both
}

fn object(peer: Peer) -> String {
    match peer {
        Peer::Rclone => format!(":s3:{BUCKET}/peer"),
        _ => format!("s3://{BUCKET}/peer"),
    }
}

/// Where the cache of a service can be read, as one of its signed URLs tells.
fn cache_url(service: &Service) -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(service.root.with_file_name("url"))?)
}

/// Where a program is.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let dirs = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// An ssh daemon of our own.
struct Ssh {
    daemon: Child,
    port: u16,
    key: PathBuf,
}

impl Ssh {
    fn start(space: &Path) -> anyhow::Result<Self> {
        let dir = space.join("ssh");
        std::fs::create_dir_all(&dir)?;
        std::fs::create_dir_all("/run/sshd")?;
        let key = dir.join("key");
        if !key.exists() {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status()?;
            anyhow::ensure!(made.success(), "ssh-keygen failed");
            std::fs::copy(dir.join("key.pub"), dir.join("authorized"))?;
        }
        let port = railyard_tests::farm::free_port();
        let mut command = Command::new(find("sshd").unwrap_or_default());
        command.args(["-D", "-e", "-f", "/dev/null", "-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none"]);
        command.args(["-o", &format!("ListenAddress=127.0.0.1:{port}")]);
        command.arg("-o").arg(format!("HostKey={}", key.display()));
        command.arg("-o").arg(format!("AuthorizedKeysFile={}", dir.join("authorized").display()));
        let daemon = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn()?;
        railyard_tests::wait::until("sshd", std::time::Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).map(drop).map_err(|error| error.to_string())
        });
        Ok(Self { daemon, port, key })
    }

    fn shell(&self) -> String {
        let options = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR";
        format!("ssh -p {} -i {} {options}", self.port, self.key.display())
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
