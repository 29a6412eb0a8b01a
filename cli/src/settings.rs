//! Which farm a client verb talks to, and as whom.
//!
//! Layers, the first that says something wins: the flags; the file that `--config` names; `RAILYARD_URL`, `RAILYARD_CA`,
//! `RAILYARD_CERT` and `RAILYARD_KEY`, or `RAILYARD_TOKEN`; the file that `RAILYARD_CONFIG` names; and if no file was named,
//! `./railyard-data/client.toml` (a development farm in this directory), else the user's own file.
//!
//! **Invariant:** certificate and key come from the same layer. A key never meets a stranger's certificate. Who says who he is
//! first, by a certificate or a token, is believed.

use crate::args::FarmArgs;
use crate::farm::chain;
use railyard_service::channel::Endpoint;
use railyard_service::tls::PemPair;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where `railyard dev` leaves the settings of its farm, from the directory it was started in.
pub const DEV_CONFIG: &str = "railyard-data/client.toml";

/// The settings are missing or wrong.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "no farm is configured. Start one here with `railyard dev`; or name one with --url and --ca \
         (RAILYARD_URL, RAILYARD_CA), or in {user_config} (url, ca, cert, key)"
    )]
    NoFarm { user_config: String },
    #[error(
        "the URL of the farm is known ({url}) but not its CA certificate: give --ca FILE, RAILYARD_CA or `ca` in the file"
    )]
    NoCa { url: String },
    #[error("{there} is given without {missing}: a certificate and its key belong together")]
    HalfPair { there: &'static str, missing: &'static str },
    #[error("`{url}` is not the URL of a controller: https://HOST:PORT is expected")]
    BadUrl { url: String },
    #[error("{0}")]
    File(String),
    #[error("cannot read {what} from {}: {error}", path.display())]
    Read { what: &'static str, path: PathBuf, error: std::io::Error },
}

/// What one layer says.
#[derive(Debug, Default, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Layer {
    url: Option<String>,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    /// A file with a bearer token, instead of certificate and key.
    token_file: Option<PathBuf>,
    /// The token itself; from the environment only.
    #[serde(skip)]
    token: Option<String>,
}

impl Layer {
    fn says_who(&self) -> bool {
        self.cert.is_some() || self.key.is_some() || self.token_file.is_some() || self.token.is_some()
    }
}

/// The surroundings of the process, as data.
pub struct Surroundings<'a> {
    /// Looks up an environment variable.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// The working directory.
    pub cwd: PathBuf,
}

impl Surroundings<'static> {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self { env: &|name| std::env::var(name).ok().filter(|value| !value.is_empty()), cwd: PathBuf::from(".") }
    }
}

/// Which farm, and as whom: paths, not yet read.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    /// `https://HOST:PORT`
    pub url: String,
    /// The farm's CA certificate.
    pub ca: PathBuf,
    /// Certificate and key, if there are any.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// A bearer token instead.
    pub token: Option<Bearer>,
}

/// A bearer token, or where it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bearer {
    /// It.
    Token(String),
    /// A file with it.
    File(PathBuf),
}

impl Settings {
    /// Merges the layers.
    ///
    /// # Errors
    /// When a file that was named cannot be read, when certificate or key stand alone, and when there is no farm.
    pub fn resolve(flags: &FarmArgs, around: &Surroundings) -> Result<Self, SettingsError> {
        let layers = layers(flags, around)?;
        let first = |field: fn(&Layer) -> Option<&PathBuf>| layers.iter().find_map(field).cloned();
        let url = layers.iter().find_map(|layer| layer.url.clone());
        let url =
            url.ok_or_else(|| SettingsError::NoFarm { user_config: user_config(around).display().to_string() })?;
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("https://") || url.len() == "https://".len() {
            return Err(SettingsError::BadUrl { url });
        }
        let ca = first(|layer| layer.ca.as_ref()).ok_or_else(|| SettingsError::NoCa { url: url.clone() })?;
        let who = layers.iter().find(|layer| layer.says_who());
        let token = who.and_then(|layer| {
            let file = layer.token_file.clone().map(Bearer::File);
            layer.token.clone().map(Bearer::Token).or(file)
        });
        let identity = match who {
            None => None,
            Some(Layer { cert: None, key: None, .. }) => None,
            Some(Layer { cert: Some(cert), key: Some(key), .. }) => Some((cert.clone(), key.clone())),
            Some(Layer { cert: Some(_), .. }) => {
                return Err(SettingsError::HalfPair { there: "a certificate", missing: "its key" });
            }
            Some(_) => return Err(SettingsError::HalfPair { there: "a key", missing: "its certificate" }),
        };
        Ok(Self { url, ca, identity, token })
    }

    /// The bearer token, if there is one.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn token(&self) -> Result<Option<String>, SettingsError> {
        Ok(match &self.token {
            None => None,
            Some(Bearer::Token(token)) => Some(token.clone()),
            Some(Bearer::File(path)) => Some(read("the token", path)?.trim().to_owned()),
        })
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn endpoint(&self) -> Result<Endpoint, SettingsError> {
        let identity = match &self.identity {
            Some((cert, key)) => {
                Some(PemPair { cert_pem: read("the certificate", cert)?, key_pem: read("the key", key)? })
            }
            None => None,
        };
        Ok(Endpoint { url: self.url.clone(), ca_pem: read("the farm's CA certificate", &self.ca)?, identity })
    }
}

fn layers(flags: &FarmArgs, around: &Surroundings) -> Result<Vec<Layer>, SettingsError> {
    let env_path = |name: &str| (around.env)(name).map(PathBuf::from);
    let mut layers = vec![Layer {
        url: flags.url.clone(),
        ca: flags.ca.clone(),
        cert: flags.cert.clone(),
        key: flags.key.clone(),
        ..Layer::default()
    }];
    if let Some(path) = &flags.config {
        layers.push(load(path)?);
    }
    layers.push(Layer {
        url: (around.env)("RAILYARD_URL"),
        ca: env_path("RAILYARD_CA"),
        cert: env_path("RAILYARD_CERT"),
        key: env_path("RAILYARD_KEY"),
        token_file: None,
        token: (around.env)("RAILYARD_TOKEN"),
    });
    if flags.config.is_some() {
        return Ok(layers);
    }
    if let Some(path) = env_path("RAILYARD_CONFIG") {
        layers.push(load(&path)?);
        return Ok(layers);
    }
    let defaults = [around.cwd.join(DEV_CONFIG), user_config(around)];
    if let Some(path) = defaults.iter().find(|path| path.is_file()) {
        layers.push(load(path)?);
    }
    Ok(layers)
}

/// `$XDG_CONFIG_HOME/railyard/config.toml`, by default `~/.config/railyard/config.toml`.
pub fn user_config(around: &Surroundings) -> PathBuf {
    let base = match ((around.env)("XDG_CONFIG_HOME"), (around.env)("HOME")) {
        (Some(xdg), _) => PathBuf::from(xdg),
        (None, Some(home)) => Path::new(&home).join(".config"),
        (None, None) => PathBuf::from("~/.config"),
    };
    base.join("railyard/config.toml")
}

/// Reads a file; its relative paths are relative to its directory.
fn load(path: &Path) -> Result<Layer, SettingsError> {
    let layer: Layer = railyard_service::config::load(path).map_err(|error| SettingsError::File(chain(&error)))?;
    let dir = path.parent().unwrap_or(Path::new(""));
    let absolute = |path: Option<PathBuf>| path.map(|path| dir.join(path));
    Ok(Layer {
        url: layer.url,
        ca: absolute(layer.ca),
        cert: absolute(layer.cert),
        key: absolute(layer.key),
        token_file: absolute(layer.token_file),
        token: None,
    })
}

/// The farm that a settings file is for, if there is such a file.
pub fn url_of(path: &Path) -> Option<String> {
    load(path).ok()?.url.map(|url| url.trim_end_matches('/').to_owned())
}

fn read(what: &'static str, path: &Path) -> Result<String, SettingsError> {
    std::fs::read_to_string(path).map_err(|error| SettingsError::Read { what, path: path.to_owned(), error })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn resolve(flags: &FarmArgs, env: &[(&str, &str)], cwd: &Path) -> Result<Settings, SettingsError> {
        let env: BTreeMap<_, _> = env.iter().copied().collect();
        let look_up = move |name: &str| env.get(name).map(|value| (*value).to_owned());
        Settings::resolve(flags, &Surroundings { env: &look_up, cwd: cwd.to_owned() })
    }

    fn config(path: &Path, url: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let text = format!("url = \"https://{url}\"\nca = \"ca.pem\"\ncert = \"me.pem\"\nkey = \"me.key\"\n");
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing.toml");
        let message = load(&path).err().unwrap().to_string();
        assert!(message.contains("missing.toml: No such file"), "{message}");
    }

    #[test]
    fn the_first_layer_that_says_something_wins() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        config(&home.join(".config/railyard/config.toml"), "user:1");
        let env = [("HOME", home.to_str().unwrap())];
        let none = FarmArgs::default();

        let user = resolve(&none, &env, dir.path()).unwrap();
        assert_eq!(user.url, "https://user:1");
        assert_eq!(user.ca, home.join(".config/railyard/ca.pem"));

        config(&dir.path().join(DEV_CONFIG), "dev:1");
        assert_eq!(resolve(&none, &env, dir.path()).unwrap().url, "https://dev:1");

        let named = dir.path().join("named.toml");
        config(&named, "named:1");
        let with_config = [env[0], ("RAILYARD_CONFIG", named.to_str().unwrap())];
        assert_eq!(resolve(&none, &with_config, dir.path()).unwrap().url, "https://named:1");

        let with_url = [env[0], with_config[1], ("RAILYARD_URL", "https://env:1")];
        let from_env = resolve(&none, &with_url, dir.path()).unwrap();
        assert_eq!((from_env.url.as_str(), from_env.ca), ("https://env:1", dir.path().join("ca.pem")));

        let flag_file = dir.path().join("flag.toml");
        config(&flag_file, "flagfile:1");
        let by_file = FarmArgs { config: Some(flag_file), ..FarmArgs::default() };
        assert_eq!(resolve(&by_file, &with_url, dir.path()).unwrap().url, "https://flagfile:1");

        let by_flag = FarmArgs { url: Some("https://flag:1/".to_owned()), ..by_file };
        assert_eq!(resolve(&by_flag, &with_url, dir.path()).unwrap().url, "https://flag:1");
    }

    #[test]
    fn a_certificate_keeps_its_own_key() {
        let dir = tempfile::tempdir().unwrap();
        config(&dir.path().join(DEV_CONFIG), "dev:1");
        let alone = resolve(&FarmArgs::default(), &[("RAILYARD_CERT", "x.pem")], dir.path());
        assert!(matches!(alone, Err(SettingsError::HalfPair { .. })), "{alone:?}");
        let pair = resolve(&FarmArgs::default(), &[("RAILYARD_CERT", "x.pem"), ("RAILYARD_KEY", "x.key")], dir.path())
            .unwrap();
        assert_eq!(pair.identity, Some(("x.pem".into(), "x.key".into())));
    }

    #[test]
    fn says_what_to_do_when_there_is_no_farm() {
        let dir = tempfile::tempdir().unwrap();
        let error = resolve(&FarmArgs::default(), &[("HOME", "/home/u")], dir.path()).unwrap_err().to_string();
        assert!(error.contains("railyard dev") && error.contains("/home/u/.config/railyard/config.toml"), "{error}");
    }

    #[test]
    fn wrong_settings_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "url = \"https://x:1\"\nclient_key = \"k\"\n").unwrap();
        let flags = FarmArgs { config: Some(file), ..FarmArgs::default() };
        let error = resolve(&flags, &[], dir.path()).unwrap_err().to_string();
        assert!(error.contains("c.toml:2"), "{error}");

        let flags = FarmArgs { url: Some("http://x:1".to_owned()), ..FarmArgs::default() };
        assert!(matches!(resolve(&flags, &[], dir.path()), Err(SettingsError::BadUrl { .. })));
        let flags = FarmArgs { url: Some("https://x:1".to_owned()), ..FarmArgs::default() };
        assert!(matches!(resolve(&flags, &[], dir.path()), Err(SettingsError::NoCa { .. })));
    }
}
