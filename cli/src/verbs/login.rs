//! `login`: a token becomes a certificate, and settings that use it.

use crate::args::{FarmArgs, LoginArgs};
use crate::failure::Failure;
use crate::farm::chain;
use crate::render::{Console, human};
use crate::secret;
use crate::settings::{self, Settings, Surroundings, user_config};
use jiff::Timestamp;
use railyard_common::token::{Token, TokenKind};
use railyard_proto::v1::JoinAs;
use railyard_service::channel;
use railyard_service::enrol::{self, EnrolError, Enrolled};
use railyard_service::tls::{self, KeyRequest};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What `login` says.
#[derive(Serialize)]
struct LoggedIn {
    identity: String,
    url: String,
    config: PathBuf,
    expires_at: Option<Timestamp>,
}

/// Joins a farm as a person, or renews what came of that.
///
/// # Errors
/// [`Failure::Usage`] for a token or settings that cannot work, [`Failure::Farm`] if the farm does not let us in.
pub async fn login(args: &LoginArgs, console: &Console) -> Result<(), Failure> {
    let config = args.config.clone().unwrap_or_else(|| user_config(&Surroundings::of_process()));
    let (url, enrolled) = match (&args.url, &args.token) {
        (Some(url), Some(token)) => (url.trim_end_matches('/').to_owned(), join(args, url, token, &config).await?),
        _ => renew(&config).await?,
    };
    let expires_at = Timestamp::from_millisecond(i64::try_from(enrolled.expires_at.0).unwrap_or(i64::MAX)).ok();
    let told = LoggedIn { identity: enrolled.identity.to_string(), url, config, expires_at };
    if console.is_json() {
        return console.json(&told);
    }
    let left = expires_at.map(|at| human::left(at, console.now())).unwrap_or_default();
    console.print(&format!(
        "you are {} at {}, for {left}; settings in {}\n",
        told.identity,
        told.url,
        told.config.display()
    ))
}

async fn join(args: &LoginArgs, url: &str, token: &str, config: &Path) -> Result<Enrolled, Failure> {
    let url = url.trim_end_matches('/');
    let token = secret::read(token)?;
    // Before it is used up.
    Token::parse(&token, TokenKind::Join).map_err(|error| Failure::Usage(error.to_string()))?;
    let known = settings::url_of(config);
    if let Some(known) = known.filter(|known| known != url && !args.force) {
        let message =
            format!("{} is for {known}; name another file with --config, or replace it with --force", config.display());
        return Err(Failure::Usage(message));
    }
    let files = Files::beside(config, url);
    let key = match std::fs::read_to_string(&files.key) {
        // An earlier try may have lost the answer.
        Ok(key_pem) => KeyRequest::from_pem(&key_pem).map_err(|error| Failure::Usage(chain(&error)))?,
        Err(_) => {
            let key = KeyRequest::generate().map_err(|error| Failure::Failed(chain(&error)))?;
            tls::write_secret(&files.key, &key.key_pem()).map_err(|error| Failure::Failed(chain(&error)))?;
            key
        }
    };
    let enrolled = enrol::join_with(url, &token, &key, JoinAs::Person).await.map_err(failure)?;
    files.write(config, url, &enrolled).map_err(|error| Failure::Failed(chain(&error)))?;
    Ok(enrolled)
}

async fn renew(config: &Path) -> Result<(String, Enrolled), Failure> {
    let usage = |error: crate::settings::SettingsError| Failure::Usage(chain(&error));
    let flags = FarmArgs { config: Some(config.to_owned()), ..FarmArgs::default() };
    let settings = Settings::resolve(&flags, &Surroundings::of_process()).map_err(usage)?;
    let endpoint = settings.endpoint().map_err(usage)?;
    let (Some((cert, _)), Some(pair)) = (&settings.identity, &endpoint.identity) else {
        return Err(Failure::Usage(format!("{} names no certificate to renew", config.display())));
    };
    let key = KeyRequest::from_pem(&pair.key_pem).map_err(|error| Failure::Usage(chain(&error)))?;
    let channel = channel::connect(&endpoint).map_err(|error| Failure::Usage(chain(&error)))?;
    let enrolled = enrol::renew(channel, &key).await.map_err(failure)?;
    tls::write_public(cert, &enrolled.pair.cert_pem).map_err(|error| Failure::Failed(chain(&error)))?;
    Ok((endpoint.url, enrolled))
}

fn failure(error: EnrolError) -> Failure {
    match error {
        EnrolError::Token(_) | EnrolError::Channel(_) => Failure::Usage(chain(&error)),
        _ => Failure::Farm(chain(&error)),
    }
}

/// Where a farm's files lie beside the settings.
struct Files {
    ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

impl Files {
    fn beside(config: &Path, url: &str) -> Self {
        let host: String =
            url.trim_start_matches("https://").chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
        let file = |ending: &str| config.with_file_name(format!("{host}.{ending}"));
        Self { ca: file("ca.pem"), cert: file("pem"), key: file("key") }
    }

    /// The settings come last: with them, the farm is known.
    fn write(&self, config: &Path, url: &str, enrolled: &Enrolled) -> Result<(), tls::TlsError> {
        tls::write_public(&self.ca, &enrolled.ca_pem)?;
        tls::write_public(&self.cert, &enrolled.pair.cert_pem)?;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = format!(
            "# Written by `railyard login`; paths are relative to this file.\n\
             url = {url:?}\nca = {:?}\ncert = {:?}\nkey = {:?}\n",
            name(&self.ca),
            name(&self.cert),
            name(&self.key)
        );
        tls::write_public(config, &text)
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-')
}
