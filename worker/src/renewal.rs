//! The worker's certificate is renewed at two thirds of its time. The key stays: one file changes, at once or not at all.

use crate::join::Files;
use crate::uplink::{Jitter, Uplink};
use railyard_service::channel::{ChannelError, Endpoint};
use railyard_service::clock::{Clock as _, SystemClock};
use railyard_service::enrol::{self, EnrolError, Enrolled};
use railyard_service::tls::{self, KeyRequest, TlsError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tonic::transport::Channel;

/// Tries, when the controller cannot be reached: there are eight hours left of a day's certificate.
const RETRY: Duration = Duration::from_secs(60);
/// A certificate of seconds, as tests have them, is tried again sooner.
const RETRY_SHARE: u32 = 10;
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
        loop {
            let Some(pair) = self.credentials.now().identity else { return };
            let due = match enrol::renew_after(&pair.cert_pem) {
                Ok(due) => due,
                Err(error) => return tracing::error!(%error, "the certificate cannot be renewed"),
            };
            if !due.is_zero() {
                tokio::time::sleep(due.min(NAP)).await;
                continue;
            }
            let Err(error) = self.renew().await else { continue };
            let left = tls::secs_left(&pair.cert_pem, SystemClock.now()).unwrap_or_default();
            let why = railyard_service::error_chain(&error);
            match left {
                0 => tracing::error!(%why, "the certificate has expired; join the farm again with a token (`--join`)"),
                left => tracing::warn!(%why, secs_left = left, "the certificate cannot be renewed yet; trying again"),
            }
            let pause = RETRY.min(Duration::from_secs(left.max(1)) / RETRY_SHARE);
            tokio::time::sleep(pause + self.jitter.pause(1)).await;
        }
    }

    async fn renew(&self) -> Result<(), RenewError> {
        let endpoint = self.credentials.now();
        let key_pem = endpoint.identity.as_ref().map(|pair| pair.key_pem.clone()).unwrap_or_default();
        let key = KeyRequest::from_pem(&key_pem)?;
        let Enrolled { pair, expires_at, identity, .. } = enrol::renew((self.channel)(&endpoint)?, &key).await?;
        tls::write_public(&self.files.cert, &pair.cert_pem)?;
        self.credentials.0.lock().unwrap_or_else(PoisonError::into_inner).identity = Some(pair);
        // Calls go over a new connection from now on; what is open stays.
        self.uplink.renew();
        let hours = expires_at.since(SystemClock.now()) / 3_600_000;
        tracing::info!(%identity, hours, "the certificate is renewed");
        Ok(())
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
