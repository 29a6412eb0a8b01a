//! What a controller makes at its first start: the farm's CA, its own certificate, an operator's, and the client settings
//! that go with it.
//!
//! ```text
//! DATA/pki/ca.pem ca.key server.pem server.key operator.pem operator.key
//! DATA/client.toml
//! ```

use crate::config::ControllerConfig;
use anyhow::Context as _;
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::tls::{self, Authority, CLIENT_VALIDITY_SECS, Identity, PemPair, Role};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The farm's keys and certificates.
pub struct Pki {
    authority: Arc<Authority>,
    dir: PathBuf,
}

impl Pki {
    /// Opens what is there; makes what is not.
    ///
    /// # Errors
    /// If a file cannot be read or written, or the CA's files do not fit together.
    pub fn open_or_create(config: &ControllerConfig) -> anyhow::Result<Self> {
        let dir = config.data_dir.join("pki");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let authority = Arc::new(Authority::open_or_create(&dir, &config.farm)?);
        Ok(Self { authority, dir })
    }

    /// The CA.
    pub fn authority(&self) -> Arc<Authority> {
        self.authority.clone()
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.authority.ca_pem()
    }

    /// A fresh certificate for the server: names may have changed since the last start.
    ///
    /// # Errors
    /// If it cannot be made or written.
    pub fn server(&self, names: &[String]) -> anyhow::Result<PemPair> {
        let pair = self.authority.issue_server(names)?;
        pair.write(&self.dir, "server")?;
        Ok(pair)
    }

    /// Writes a client's certificate and key as `NAME.pem` and `NAME.key` into `dir`, with the CA's as `ca.pem`.
    ///
    /// # Errors
    /// If they cannot be made or written.
    pub fn issue(&self, identity: &Identity, dir: &Path, name: &str) -> anyhow::Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        self.authority.issue_client(identity, CLIENT_VALIDITY_SECS)?.write(dir, name)?;
        let ca = dir.join("ca.pem");
        if !ca.exists() {
            std::fs::write(&ca, self.ca_pem()).with_context(|| format!("cannot write {}", ca.display()))?;
        }
        Ok(())
    }

    /// Whether a client's certificate is there and will be for a while: more than a third of a year.
    fn is_good(&self, name: &str) -> anyhow::Result<bool> {
        let path = self.dir.join(format!("{name}.pem"));
        let pem = match std::fs::read_to_string(&path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let left = tls::secs_left(&pem, SystemClock.now()).with_context(|| format!("{} is damaged", path.display()))?;
        Ok(left >= CLIENT_VALIDITY_SECS / 3)
    }

    /// An operator's certificate, made anew when two thirds of its time are over, and the client settings that use it.
    ///
    /// # Errors
    /// If they cannot be made or written.
    pub fn operator(&self, config: &ControllerConfig, url: &str) -> anyhow::Result<()> {
        if !self.is_good("operator")? {
            self.issue(&Identity::new(Role::Operator, "operator")?, &self.dir, "operator")?;
        }
        let path = config.data_dir.join("client.toml");
        let text = format!(
            "# Written by the controller at each start; paths are relative to this file.\n\
             url = \"{url}\"\nca = \"pki/ca.pem\"\ncert = \"pki/operator.pem\"\nkey = \"pki/operator.key\"\n"
        );
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Issues a certificate without a running controller, from its data directory.
///
/// # Errors
/// If the farm has no CA there, or files cannot be written.
pub fn issue(config: &ControllerConfig, identity: &Identity, dir: &Path) -> anyhow::Result<()> {
    let ca = config.data_dir.join("pki").join("ca.pem");
    // Without this a mistyped directory would become a farm of its own.
    anyhow::ensure!(ca.is_file(), "there is no {}; start the controller once, then try again", ca.display());
    Pki::open_or_create(config)?.issue(identity, dir, &identity.name)
}
