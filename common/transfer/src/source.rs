//! Where a blob is fetched from: a signed URL, and the next one when that is too old.

use crate::error::{MoveError, TransferError};
use std::convert::Infallible;
use tokio::sync::Mutex;

/// URLs that are expired although nothing has come since the one before: more of them, and the clocks of controller and cache
/// disagree.
const RENEWALS_MAX: u32 = 3;

/// Where signed URLs of one blob come from.
pub trait BlobUrls: Sync {
    /// Why there are none.
    type Error: Send;

    /// A URL of the blob that is good from now on, for a while.
    fn sign(&self) -> impl Future<Output = Result<String, Self::Error>> + Send;
}

/// A URL for which there is no other one.
pub(crate) struct Fixed<'a>(pub(crate) &'a str);

impl BlobUrls for Fixed<'_> {
    type Error = Infallible;

    async fn sign(&self) -> Result<String, Infallible> {
        Ok(self.0.to_owned())
    }
}

/// The URL that is good now, for all streams of a pull.
pub(crate) struct Source<'a, U> {
    urls: &'a U,
    signed: Mutex<Signed>,
}

struct Signed {
    url: String,
    /// Bytes of the blob that had come by then.
    came: u64,
    /// Renewals in a row between which nothing came.
    in_vain: u32,
}

impl<'a, U: BlobUrls> Source<'a, U> {
    /// With a first URL.
    pub(crate) async fn open(urls: &'a U) -> Result<Self, MoveError<U::Error>> {
        let url = urls.sign().await.map_err(MoveError::Urls)?;
        Ok(Self { urls, signed: Mutex::new(Signed { url, came: 0, in_vain: 0 }) })
    }

    /// The URL to ask at.
    pub(crate) async fn url(&self) -> String {
        self.signed.lock().await.url.clone()
    }

    /// One that was asked at is too old, as `expired` says: there is another one from now on. `came` are the bytes of the blob that
    /// have come: a big one may take longer than many URLs live.
    pub(crate) async fn renew(&self, old: &str, came: u64, expired: TransferError) -> Result<(), MoveError<U::Error>> {
        let mut signed = self.signed.lock().await;
        if signed.url != old {
            // Another stream was here first.
            return Ok(());
        }
        if came > signed.came {
            signed.in_vain = 0;
        }
        if signed.in_vain == RENEWALS_MAX {
            return Err(expired.into());
        }
        let url = self.urls.sign().await.map_err(MoveError::Urls)?;
        *signed = Signed { url, came, in_vain: signed.in_vain + 1 };
        Ok(())
    }
}
