//! The controller's settings.

use crate::cache::{CacheConfig, EmbeddedConfig};
use crate::policy::PolicyRule;
use crate::sweep::SweepConfig;
use bytesize::ByteSize;
use railyard_common::id::PoolName;
use railyard_common::retention::Rule;
use railyard_core::FORGET_REVOKED_MILLIS;
use railyard_service::listener::Limits;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// `railyard controller --config FILE`: TOML.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerConfig {
    /// The farm's name, in certificates and for people.
    #[serde(default = "default_farm")]
    pub farm: String,
    /// Where journal, growing logs and keys lie; with the default cache also the cache.
    pub data_dir: PathBuf,
    /// The address of the one TLS port.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// How workers and people reach that port: `https://HOST:PORT`. Default: `https://` and the listening address,
    /// with `localhost` for an unspecified one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
    /// More host names and addresses for the server's certificate; `localhost`, `127.0.0.1` and those of `listen` and
    /// `public_url` are in it always.
    #[serde(default)]
    pub names: Vec<String>,
    /// Where artifacts, images and filed logs lie. Default: embedded, in `cache` below `data_dir`, readable with a signed
    /// URL or a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheConfig>,
    /// What steps of some pipelines may have besides what all steps have, as a list of tables with `name`, `pipelines` and `allow`.
    /// With `untrusted = true` it holds for untrusted builds as well, and can allow no more than devices and host paths to read. A
    /// worker has to allow it too. Read again at SIGHUP: it holds for what is submitted from then on. Default: nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policy: Vec<PolicyRule>,
    /// The key under which secrets of steps are stored: 64 hexadecimal digits, readable by the controller only. Made at the first
    /// start. Default: `pki/secrets.key` in `data_dir`. Keep a copy elsewhere: without it the stored secrets are worth nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_file: Option<PathBuf>,
    /// What holds for builds of changes that nobody has looked at. Read again at SIGHUP.
    #[serde(default, skip_serializing_if = "UntrustedConfig::is_default")]
    pub untrusted: UntrustedConfig,
    /// Longest log of an attempt; what is longer is cut, with a note that says how much.
    #[serde(default = "default_log_max")]
    pub log_max: ByteSize,
    /// How long a worker's certificate is good, in seconds; the worker renews it at two thirds. It is the longest that a stolen one
    /// is of use to somebody whom nobody has noticed. Default: 86400, a day.
    #[serde(default = "default_worker_certificate", deserialize_with = "certificate_secs")]
    pub worker_certificate_secs: u64,
    /// How long a certificate is good that a person gets with `railyard login`, in seconds. Default: 2592000, 30 days.
    #[serde(default = "default_person_certificate", deserialize_with = "certificate_secs")]
    pub person_certificate_secs: u64,
    /// What is kept of which builds, as a list of tables: the first that names a build's pipeline and channel holds. Where none does, the
    /// last 50 successes of each channel are kept. Read again at SIGHUP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retention: Vec<Rule>,
    /// When and how what is not kept is deleted. Read again at SIGHUP.
    #[serde(default, skip_serializing_if = "SweepConfig::is_default")]
    pub sweep: SweepConfig,
    /// What one client may take of the port.
    #[serde(default)]
    pub limits: Limits,
    /// Where the settings stand, to read some of them again. `None`: nowhere.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

/// `[untrusted]`: what holds for untrusted builds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UntrustedConfig {
    /// The pool whose workers run every job of an untrusted build, whatever pool its step names, so that strangers' code shares no
    /// host with releases. Default: none, and then they run on workers that have no pool either.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<PoolName>,
}

impl UntrustedConfig {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn default_farm() -> String {
    "railyard".to_owned()
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 7411))
}

fn default_worker_certificate() -> u64 {
    24 * 3600
}

fn default_person_certificate() -> u64 {
    30 * 24 * 3600
}

/// Longest that a certificate may be good: a revocation is remembered for [`FORGET_REVOKED_MILLIS`] and must outlive what it
/// ends.
const CERTIFICATE_MAX_SECS: u64 = 366 * 24 * 3600;

const _: () =
    assert!(CERTIFICATE_MAX_SECS * 1000 < FORGET_REVOKED_MILLIS, "a certificate would outlive its revocation");

fn certificate_secs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    match u64::deserialize(deserializer)? {
        0 => Err(D::Error::custom("certificates of 0 seconds are good for nothing")),
        secs if secs > CERTIFICATE_MAX_SECS => Err(D::Error::custom(format!(
            "{secs} seconds are too long: {CERTIFICATE_MAX_SECS}, which is 366 days, at most, because a revocation is forgotten \
             after 400 days and must outlive the certificates that it ends"
        ))),
        secs => Ok(secs),
    }
}

fn default_log_max() -> ByteSize {
    ByteSize::gib(1)
}

impl ControllerConfig {
    /// The defaults, with everything below `data_dir`.
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            farm: default_farm(),
            data_dir,
            listen: default_listen(),
            public_url: None,
            names: Vec::new(),
            cache: None,
            policy: Vec::new(),
            secret_key_file: None,
            untrusted: UntrustedConfig::default(),
            log_max: default_log_max(),
            worker_certificate_secs: default_worker_certificate(),
            person_certificate_secs: default_person_certificate(),
            retention: Vec::new(),
            sweep: SweepConfig::default(),
            limits: Limits::default(),
            file: None,
        }
    }

    /// The cache's settings, the default included.
    pub fn cache(&self) -> CacheConfig {
        let embedded = || EmbeddedConfig { dir: self.data_dir.join("cache"), public_read: false, key_file: None };
        self.cache.clone().unwrap_or_else(|| CacheConfig::Embedded(embedded()))
    }

    /// Where the key of the secrets lies.
    pub fn secret_key_file(&self) -> PathBuf {
        self.secret_key_file.clone().unwrap_or_else(|| self.data_dir.join("pki").join("secrets.key"))
    }

    /// How the port is reached, when it really listens at `bound`.
    pub fn url(&self, bound: SocketAddr) -> String {
        if let Some(url) = &self.public_url {
            return url.trim_end_matches('/').to_owned();
        }
        let host = if bound.ip().is_unspecified() { "localhost".to_owned() } else { bound.ip().to_string() };
        let host = if bound.is_ipv6() && !bound.ip().is_unspecified() { format!("[{host}]") } else { host };
        format!("https://{host}:{}", bound.port())
    }

    /// Every name that the server's certificate is good for.
    pub fn server_names(&self) -> Vec<String> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        if !self.listen.ip().is_unspecified() {
            names.push(self.listen.ip().to_string());
        }
        if let Some(host) =
            self.public_url.as_deref().and_then(|url| url.parse::<http::Uri>().ok()?.host().map(str::to_owned))
        {
            names.push(host.trim_matches(['[', ']']).to_owned());
        }
        names.extend(self.names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a farm is promised that sets nothing. Whoever changes one of these changes the page for operators too.
    #[test]
    fn the_defaults_are_these() {
        let config: ControllerConfig = serde_json::from_value(serde_json::json!({ "data_dir": "/d" })).unwrap();
        for config in [config, ControllerConfig::new("/d".into())] {
            assert_eq!((config.worker_certificate_secs, config.person_certificate_secs), (86_400, 2_592_000));
            assert_eq!((config.listen.to_string().as_str(), config.farm.as_str()), ("0.0.0.0:7411", "railyard"));
            assert_eq!(config.log_max.as_u64(), 1_073_741_824);
            let CacheConfig::Embedded(cache) = config.cache() else { panic!("{:?}", config.cache()) };
            assert_eq!((cache.dir, cache.public_read), ("/d/cache".into(), false));
            assert_eq!(
                (config.sweep.every.secs, config.sweep.grace.secs, config.sweep.deletes_per_sec),
                (3_600, 86_400, 5_000)
            );
            let limits = serde_json::to_value(&config.limits).unwrap();
            let want = serde_json::json!({
                "handshakes_per_address": 128,
                "arrivals_per_address_per_sec": 500,
                "connections_per_address": 1_024,
                "connections_per_identity": 512,
                "requests_per_client": 2_048,
                "requests_per_client_per_sec": 2_000,
                "handshake_secs": 10,
                "head_secs": 30,
                "body_secs": 60,
                "answer_secs": 120,
            });
            assert_eq!(limits, want);
        }
    }

    #[test]
    fn a_bad_size_is_named_with_the_form_that_is_wanted() {
        let wanted = "invalid value: string \"7TBB\", expected a size such as \"500GiB\" or \"7TB\"";
        for (text, place) in [
            ("data_dir = \"/d\"\n[sweep]\nmax_bytes = \"7TBB\"\n", "3:13: max_bytes"),
            ("data_dir = \"/d\"\nsweep = { low_bytes=\"7TBB\" }\n", "2:21: low_bytes"),
            ("data_dir = \"/d\"\n[[retention]]\nmax_bytes = \"7TBB\"\n", "3:13: max_bytes"),
            ("data_dir = \"/d\"\nlog_max = \"7TBB\"\n", "2:11: log_max"),
        ] {
            let read = railyard_service::config::parse::<ControllerConfig>(text, "farm.toml".as_ref());
            assert_eq!(read.unwrap_err().to_string(), format!("farm.toml:{place}: {wanted}"));
        }
    }

    #[test]
    fn no_certificate_outlives_the_memory_of_its_revocation() {
        let read = |name: &str, secs: u64| {
            serde_json::from_value::<ControllerConfig>(serde_json::json!({ "data_dir": "/d", name: secs }))
        };
        for name in ["worker_certificate_secs", "person_certificate_secs"] {
            assert!(read(name, 1).is_ok() && read(name, CERTIFICATE_MAX_SECS).is_ok());
            for (secs, why) in [(0, "good for nothing"), (CERTIFICATE_MAX_SECS + 1, "forgotten after 400 days")] {
                let error = read(name, secs).unwrap_err().to_string();
                assert!(error.contains(why), "{name}: {error}");
            }
        }
    }
}
