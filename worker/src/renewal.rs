//! The worker's certificate is renewed at two thirds of its time. The key stays: one file changes, at once or not at all.

use crate::join::Files;
use crate::uplink::{Jitter, Uplink};
use railyard_common::time::Millis;
use railyard_service::channel::{ChannelError, Endpoint};
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::enrol::{self, EnrolError, Enrolled};
use railyard_service::tls::{self, KeyRequest, PemPair, TlsError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::Channel;

/// Tries, when the controller cannot be reached: there are eight hours left of a day's certificate.
const RETRY: Duration = Duration::from_secs(60);
/// A certificate of seconds, as tests have them, is tried again sooner.
const RETRY_SHARE: u32 = 10;
/// And never sooner than that, whatever a certificate says.
const RETRY_LEAST: Duration = Duration::from_millis(500);
/// A sleep of more than this is cut in pieces: the host may have been asleep itself.
const NAP: Duration = Duration::from_secs(3600);

/// Where the controller is, with the certificate that is shown now.
#[derive(Clone)]
pub struct Credentials(Arc<Mutex<Endpoint>>);

impl Credentials {
    /// Begins with these.
    pub fn new(endpoint: Endpoint) -> Self {
        Self(Arc::new(Mutex::new(endpoint)))
    }

    /// What to show now.
    pub fn now(&self) -> Endpoint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// When the certificate in use is to be renewed, on the clock of the kernel's boot. The wall clock may be anywhere: one that is ahead
/// of the controller's would find each new certificate due at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Due {
    at: Duration,
    /// The least time between two tries, whether they go well or not.
    pause: Duration,
}

impl Due {
    /// Of a certificate that was here before: only the wall clock tells how old it is. If that is wrong, this is too early once, or
    /// as late as for a new one.
    fn of_found(cert_pem: &str, now: Millis, booted: Duration) -> Result<Self, TlsError> {
        let (use_for, pause) = Self::times(cert_pem)?;
        Ok(Self { at: booted + use_for.saturating_sub(enrol::age(cert_pem, now)?), pause })
    }

    /// Of one that was given just now.
    fn of_given(cert_pem: &str, booted: Duration) -> Result<Self, TlsError> {
        let (use_for, pause) = Self::times(cert_pem)?;
        Ok(Self { at: booted + use_for.max(pause), pause })
    }

    fn times(cert_pem: &str) -> Result<(Duration, Duration), TlsError> {
        let length = enrol::length(cert_pem)?;
        Ok((length / 3 * 2, RETRY.min(length / RETRY_SHARE).max(RETRY_LEAST)))
    }
}

/// Keeps a worker's certificate good.
pub struct Renewal {
    /// Where it lies.
    pub files: Files,
    /// What is shown.
    pub credentials: Credentials,
    /// Makes the way to the controller.
    pub channel: fn(&Endpoint) -> Result<Channel, ChannelError>,
    /// Is told to use the new one.
    pub uplink: Uplink,
    /// Keeps a crowd of workers from renewing at once.
    pub jitter: Jitter,
}

impl Renewal {
    /// Renews until it is dropped. Streams that are open go on as they are.
    pub async fn run(self) {
        let Some(pair) = self.credentials.now().identity else { return };
        let mut due = match Due::of_found(&pair.cert_pem, SystemClock.now(), SystemClock.boottime()) {
            Ok(due) => due,
            Err(error) => return tracing::error!(%error, "the certificate cannot be renewed"),
        };
        loop {
            let wait = due.at.saturating_sub(SystemClock.boottime());
            if !wait.is_zero() {
                tokio::time::sleep(wait.min(NAP)).await;
                continue;
            }
            match self.renew().await {
                Ok(next) => due = next,
                Err(error) => {
                    if let Some(next) = self.take_up() {
                        due = next;
                        continue;
                    }
                    self.complain(&error);
                    tokio::time::sleep(due.pause + self.jitter.pause(1)).await;
                }
            }
        }
    }

    fn complain(&self, error: &RenewError) {
        let why = railyard_service::error_chain(error);
        let shown = self.credentials.now().identity;
        match shown.and_then(|pair| tls::secs_left(&pair.cert_pem, SystemClock.now()).ok()) {
            None | Some(0) => tracing::error!(
                %why,
                "the certificate has expired, as far as this host's clock is right; join the farm again with a token (`--join`) and the same \
                 data directory, and this worker takes the new one up"
            ),
            Some(left) => tracing::warn!(%why, secs_left = left, "the certificate cannot be renewed yet; trying again"),
        }
    }

    /// When the certificate in the file is due, if it is a good one and not the one that has expired: somebody has joined once more.
    fn take_up(&self) -> Option<Due> {
        let now = SystemClock.now();
        let own = self.credentials.now().identity?;
        let cert_pem = std::fs::read_to_string(&self.files.cert).ok()?;
        let key_pem = std::fs::read_to_string(&self.files.key).ok()?;
        let is_good = |pem: &str| tls::secs_left(pem, now).is_ok_and(|left| left > 0);
        let is_mine = tls::identity_of_pem(&cert_pem).ok()?.name == tls::identity_of_pem(&own.cert_pem).ok()?.name;
        if is_good(&own.cert_pem) || !is_good(&cert_pem) || !is_mine {
            return None;
        }
        let due = Due::of_found(&cert_pem, now, SystemClock.boottime()).ok()?;
        self.show(PemPair { cert_pem, key_pem });
        tracing::info!("somebody has joined again with this worker's data directory; it goes on with that certificate");
        Some(due)
    }

    /// Calls go over a new connection from now on; what is open stays.
    fn show(&self, pair: PemPair) {
        self.credentials.0.lock().unwrap_or_else(PoisonError::into_inner).identity = Some(pair);
        self.uplink.renew();
    }

    /// When that is due again.
    async fn renew(&self) -> Result<Due, RenewError> {
        let endpoint = self.credentials.now();
        let key_pem = endpoint.identity.as_ref().map(|pair| pair.key_pem.clone()).unwrap_or_default();
        let key = KeyRequest::from_pem(&key_pem)?;
        let Enrolled { pair, expires_at, identity, .. } = enrol::renew((self.channel)(&endpoint)?, &key).await?;
        let due = Due::of_given(&pair.cert_pem, SystemClock.boottime())?;
        tls::write_secret(&self.files.cert, &pair.cert_pem)?;
        self.show(pair);
        let hours = expires_at.since(SystemClock.now()) / 3_600_000;
        tracing::info!(%identity, hours, "the certificate is renewed");
        Ok(due)
    }
}

/// A certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// A file or a key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The way to the controller.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The controller does not give another.
    #[error(transparent)]
    Enrol(#[from] EnrolError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use railyard_service::tls::{Authority, Identity, Role};

    const HOUR: Duration = Duration::from_secs(3600);
    const BOOTED: Duration = Duration::from_secs(777);

    fn certificate(secs: u64) -> String {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open_or_create(dir.path(), "test").unwrap();
        authority.issue_client(&Identity::new(Role::Worker, "w").unwrap(), secs).unwrap().cert_pem
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_wherever_the_wall_clock_is() {
        let (day, now) = (certificate(24 * 3600), SystemClock.now());
        let in_hours = |due: Due| (due.at - BOOTED).as_secs_f64() / 3600.0;
        let given = Due::of_given(&day, BOOTED).unwrap();
        assert!((15.9..=16.0).contains(&in_hours(given)), "{given:?}");
        for (ahead_hours, hours) in [(0, 15.9..=16.0), (6, 9.9..=10.0), (16, 0.0..=0.0), (1000, 0.0..=0.0)] {
            let due = Due::of_found(&day, now.plus(ahead_hours * 3_600_000), BOOTED).unwrap();
            assert!(hours.contains(&in_hours(due)), "{ahead_hours}: {due:?}");
        }
        // A clock that is behind would have it wait for longer than the certificate is good.
        let behind = Due::of_found(&day, Millis(now.0 - 1_000 * 3_600_000), BOOTED).unwrap();
        assert!(behind.at <= BOOTED + 16 * HOUR, "{behind:?}");
    }

    #[test]
    fn there_is_a_pause_between_two_tries_whatever_a_certificate_says() {
        // Certificates end at a whole second.
        for (secs, pause, wait) in [
            (0, 500..=500, 500..=500),
            (9, 800..=900, 5_333..=6_000),
            (24 * 3600, 60_000..=60_000, 57_599_000..=57_600_000),
        ] {
            let due = Due::of_given(&certificate(secs), BOOTED).unwrap();
            assert!(pause.contains(&due.pause.as_millis()), "{secs}: {due:?}");
            assert!(wait.contains(&(due.at - BOOTED).as_millis()), "{secs}: {due:?}");
        }
    }
}
