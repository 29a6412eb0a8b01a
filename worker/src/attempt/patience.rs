//! Waiting for an engine that is away: a restart takes it seconds, and what an attempt has done so far takes hours.

use super::fault::Fault;
use crate::log::JobLog;
use crate::workshop::Workshop;
use std::time::Duration;

/// Before an engine that went away is asked again.
const ENGINE_PAUSE: Duration = Duration::from_secs(1);

/// For one thing that is asked of the engine, and asked again when it was away.
///
/// ```text
/// let mut patience = Patience::new(shop, log);
/// loop {
///     match ask().await {
///         Err(fault) => patience.after(fault).await?,
///         Ok(answer) => break answer,
///     }
/// }
/// ```
pub struct Patience<'a> {
    shop: &'a Workshop,
    log: &'a JobLog,
    waited: Duration,
}

impl<'a> Patience<'a> {
    /// Has waited for nothing yet.
    pub fn new(shop: &'a Workshop, log: &'a JobLog) -> Self {
        Self { shop, log, waited: Duration::ZERO }
    }

    /// Returns well when it is worth trying again: the engine was away and is back. In all it waits no longer than the
    /// engine's grace.
    ///
    /// # Errors
    /// The same fault, if it is another one, or the engine has not come back.
    pub async fn after(&mut self, fault: Fault) -> Result<(), Fault> {
        let Fault::Runtime(error) = &fault else { return Err(fault) };
        if !error.is_unreachable() {
            return Err(fault);
        }
        tracing::warn!(%error, "the engine is away; waiting for it");
        if self.waited.is_zero() {
            self.log.note("the engine is away; waiting for it").await?;
        }
        let (since, before) = (self.shop.clock.boottime(), self.waited);
        loop {
            if self.waited >= self.shop.config.engine_grace() {
                return Err(fault);
            }
            tokio::time::sleep(ENGINE_PAUSE).await;
            self.waited = before + self.shop.clock.boottime().saturating_sub(since);
            if self.shop.runtime.ping().await.is_ok() {
                tracing::info!("the engine is back");
                return Ok(());
            }
        }
    }
}
