//! What steps with a network cannot reach: the host that they run on, its cloud's metadata, the controller, each other, and whatever
//! the worker's settings name besides.
//!
//! Steps have a bridge of their own in the engine. Whatever comes from it passes a chain of the kernel's packet filter first,
//! in `mangle`'s `PREROUTING`: before ports that containers publish on the host are looked up, before the host's own sockets,
//! and before other bridges. The engine and most firewalls leave that table alone. Looked at before each step that has a network,
//! and put back where somebody has flushed it.
//!
//! Bridge and chain are named by the digest of the settings: all workers of an engine with the same settings share them, and a
//! worker that was killed leaves nothing behind that the next one does not use. Both stay when a worker ends; its steps may run on.
//! A network that this worker has made for other settings goes when no container is in it.
//!
//! **Invariant:** a step has a network only when these rules are there, unless the settings say otherwise.

mod controller;
mod host;
pub mod peer;
mod registry;
mod rules;

pub use controller::Controller;
pub use rules::Rules;

use crate::blocking::blocking;
use crate::runtime::{EngineNetwork, NetworkSpec, Runtime, RuntimeError};
use controller::Whereabouts;
use host::Namespace;
use peer::{Allowed, Denied};
use railyard_common::digest::Digest;
use serde::Deserialize;
use std::net::SocketAddr;

/// What engines call the network of containers that name none.
pub const ENGINE_DEFAULT: &str = "bridge";

/// Hex digits of the digest in names. The name of an interface has at most 15 characters.
const DIGEST_LEN: usize = 12;

/// What steps with a network cannot reach.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// What no step reaches: `host` (every address of this host, and what is published there), `link-local` (169.254.0.0/16, where
    /// most clouds have their metadata), `metadata` (where others have it: 168.63.129.16, 100.100.100.200, 192.0.0.192), `controller`
    /// (its port, wherever its name leads), networks such as `10.0.0.0/8`, and addresses. The name servers of this host are always
    /// reached, at their port. Steps have no IPv6. No image is pulled from a registry there either. Default: the four words.
    pub deny: Vec<Denied>,
    /// Exceptions, such as `10.0.0.5` or `10.0.0.0/24`; with a port (`10.0.0.5:3128`) only that one, by TCP. Default: none.
    pub allow: Vec<Allowed>,
    /// What becomes of steps with a network where the rules cannot be made, because the worker is not root on the engine's host, or
    /// there is no `iptables`: `refuse` gives them back, `allow` runs them. Default: `refuse`.
    pub unguarded: Unguarded,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        let deny = vec![Denied::Host, Denied::LinkLocal, Denied::Metadata, Denied::Controller];
        Self { deny, allow: Vec::new(), unguarded: Unguarded::Refuse }
    }
}

/// What becomes of steps that nothing keeps from reaching the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unguarded {
    /// They are not run here.
    #[default]
    Refuse,
    /// They run.
    Allow,
}

/// A step cannot have a network, or only one without rules.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The engine did not make it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The rules cannot be made, and this is why.
    #[error("{0}")]
    Unguarded(String),
}

/// An image is not pulled; why, for people.
#[derive(Debug, thiserror::Error)]
pub enum MayNotPull {
    /// The settings deny where its registry is.
    #[error("{0}")]
    Denied(String),
    /// It cannot be told for now what is denied.
    #[error("{0}")]
    NotNow(String),
}

/// The network of this worker's steps.
pub struct Guard {
    config: NetworkConfig,
    /// Where the controller is, if that is denied by itself.
    controller: Whereabouts,
    spec: NetworkSpec,
    chain: String,
    /// The rules as the kernel lists them, since they were last made; held while they are looked at.
    installed: tokio::sync::Mutex<Option<Installed>>,
}

struct Installed {
    rules: Rules,
    namespace: Namespace,
    listed: String,
}

impl Guard {
    /// For a worker with these settings, and its controller. Does nothing yet.
    pub fn new(config: &NetworkConfig, controller: Option<Controller>) -> Self {
        let is_denied = |denied| config.deny.contains(&denied);
        let covers = |controller: &Controller| controller.is_here() && is_denied(Denied::Host);
        let controller = controller.filter(|it| is_denied(Denied::Controller) && !covers(it));
        let digest = Digest::of(format!("{:?} {:?} {controller:?}", config.deny, config.allow).as_bytes());
        let id = &digest.hex()[..DIGEST_LEN];
        Self {
            config: config.clone(),
            controller: Whereabouts::of(controller),
            spec: NetworkSpec { name: format!("railyard-{id}"), bridge: format!("ry-{id}"), labels: Vec::new() },
            chain: format!("RAILYARD-{id}"),
            installed: tokio::sync::Mutex::new(None),
        }
    }

    /// The network carries these labels, if it is this worker that makes it.
    #[must_use]
    pub fn labelled(mut self, labels: impl IntoIterator<Item = (String, String)>) -> Self {
        self.spec.labels = labels.into_iter().collect();
        self
    }

    /// The name of the network.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// What becomes of steps where the rules cannot be made.
    pub fn unguarded(&self) -> Unguarded {
        self.config.unguarded
    }

    /// Refuses an image whose registry is where no step may reach: the engine would go there from the host.
    ///
    /// # Errors
    /// [`MayNotPull`].
    pub async fn may_pull(&self, reference: &str) -> Result<(), MayNotPull> {
        let controller = self.controller().await.map_err(MayNotPull::NotNow)?;
        registry::may_pull(&self.config, &controller, reference).await.map_err(MayNotPull::Denied)
    }

    /// Where the controller is, if that is denied by itself. Nothing, if nobody knows and steps may run all the same.
    async fn controller(&self) -> Result<Vec<SocketAddr>, String> {
        match self.controller.now().await {
            Err(why) if self.config.unguarded == Unguarded::Allow => {
                tracing::warn!(why, "steps with a network may reach the controller");
                Ok(Vec::new())
            }
            known => known,
        }
    }

    /// Makes sure of network and rules; gives the network's name. Milliseconds, when both are there and name servers answer.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn ensure(&self, runtime: &dyn Runtime) -> Result<String, NetworkError> {
        // Before anything else: two that make the same rules at once would see each other's halves.
        let mut installed = self.installed.lock().await;
        loop {
            let Some(engine) = runtime.network(&self.spec).await? else { return Ok(ENGINE_DEFAULT.to_owned()) };
            let (chain, bridge) = (self.chain.clone(), self.spec.bridge.clone());
            let controller = self.controller().await.map_err(NetworkError::Unguarded)?;
            let (config, seen, known) = (self.config.clone(), engine.clone(), installed.take());
            match blocking(move || install(chain, bridge, &config, &controller, &seen, known)).await {
                // An engine that was killed meanwhile took its network with it: that is no want of this host's, and the step can wait.
                Err(NetworkError::Unguarded(_)) if runtime.network(&self.spec).await?.as_ref() != Some(&engine) => {}
                made => {
                    *installed = Some(made?);
                    return Ok(self.spec.name.clone());
                }
            }
        }
    }
}

fn install(
    chain: String,
    bridge: String,
    config: &NetworkConfig,
    controller: &[SocketAddr],
    engine: &EngineNetwork,
    known: Option<Installed>,
) -> Result<Installed, NetworkError> {
    let namespace = Namespace::with(&bridge, engine.pid).map_err(NetworkError::Unguarded)?;
    let rules = Rules::new(chain, bridge, config, &host::name_servers(), &engine.subnets, controller);
    if let Some(known) = known
        && known.rules == rules
        && known.namespace == namespace
        && namespace.list(&rules).is_ok_and(|listed| listed == known.listed)
    {
        return Ok(known);
    }
    namespace.install(&rules).map_err(NetworkError::Unguarded)?;
    let listed = namespace.list(&rules).map_err(NetworkError::Unguarded)?;
    tracing::info!(bridge = rules.bridge(), ?namespace, "the rules for the network of steps are made");
    Ok(Installed { rules, namespace, listed })
}
