//! A network of the engine's for steps.

use super::docker::Docker;
use super::{EngineNetwork, NetworkSpec, RuntimeError, labels};
use crate::network::ENGINE_DEFAULT;
use bollard::models::{NetworkCreateRequest, NetworkInspect};
use std::collections::HashMap;
use tokio::net::UnixStream;

/// What the bridge's interface is called.
const BRIDGE_NAME: &str = "com.docker.network.bridge.name";

/// Whether containers on it reach each other.
const BETWEEN_CONTAINERS: &str = "com.docker.network.bridge.enable_icc";

/// Largest packet. The engine's own setting holds for its default network only.
const MTU: &str = "com.docker.network.driver.mtu";

impl Docker {
    /// Makes sure of the network.
    pub(super) async fn ensure_network(&self, spec: &NetworkSpec) -> Result<EngineNetwork, RuntimeError> {
        let found = match self.find_network(&spec.name).await? {
            Some(found) => found,
            None => self.create_network(spec).await?,
        };
        let configs = found.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
        let subnets = configs.into_iter().filter_map(|config| config.subnet?.parse().ok()).collect();
        Ok(EngineNetwork { subnets, pid: self.engine_pid().await })
    }

    async fn find_network(&self, name: &str) -> Result<Option<NetworkInspect>, RuntimeError> {
        let doing = format!("inspect network {name}");
        match self.short.inspect_network(name, None).await.map_err(self.error(&doing)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create_network(&self, spec: &NetworkSpec) -> Result<NetworkInspect, RuntimeError> {
        let default = self.find_network(ENGINE_DEFAULT).await?.and_then(|network| network.options).unwrap_or_default();
        let mut options = HashMap::from([
            (BRIDGE_NAME.to_owned(), spec.bridge.clone()),
            (BETWEEN_CONTAINERS.to_owned(), "false".to_owned()),
        ]);
        options.extend(default.get(MTU).map(|mtu| (MTU.to_owned(), mtu.clone())));
        let bridge = [(labels::NETWORK.to_owned(), spec.bridge.clone())];
        let own = spec.labels.iter().cloned().chain(bridge);
        let request = NetworkCreateRequest {
            name: spec.name.clone(),
            driver: Some("bridge".to_owned()),
            options: Some(options),
            labels: Some(own.collect()),
            ..Default::default()
        };
        let doing = format!("create network {}", spec.name);
        let created = self.short.create_network(request).await.map_err(self.error(&doing));
        match (created, self.find_network(&spec.name).await?) {
            // Whoever else made it a moment ago made the same.
            (_, Some(found)) => Ok(found),
            (Err(error), None) => Err(error),
            (Ok(_), None) => {
                let message = "it was removed at once; does something on this host prune networks?".to_owned();
                Err(RuntimeError::Refused { doing, status: None, message })
            }
        }
    }

    /// Removes a network.
    pub(super) async fn drop_network(&self, name: &str) -> Result<(), RuntimeError> {
        let doing = format!("remove network {name}");
        match self.short.remove_network(name).await.map_err(self.error(&doing)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// The engine's process, or that which listens for it: it is in the same network. `None` if this process cannot see it.
    async fn engine_pid(&self) -> Option<i32> {
        let stream = UnixStream::connect(&self.socket).await.ok()?;
        stream.peer_cred().ok()?.pid().filter(|pid| *pid > 0)
    }
}
