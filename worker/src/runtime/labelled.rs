//! What the engine has that carries the worker's labels: containers, volumes, networks.

use super::docker::{Docker, REMOVE_TIMEOUT};
use super::{FoundContainer, FoundVolume, RuntimeError};
use bollard::query_parameters as query;
use std::collections::HashMap;

/// What has all of these labels.
fn filter(labels: &[(String, String)]) -> HashMap<String, Vec<String>> {
    let labels = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    HashMap::from([("label".to_owned(), labels)])
}

impl Docker {
    pub(super) async fn containers_with(
        &self,
        labels: &[(String, String)],
    ) -> Result<Vec<FoundContainer>, RuntimeError> {
        let options = query::ListContainersOptionsBuilder::default().all(true).filters(&filter(labels)).build();
        let found = self.short.list_containers(Some(options)).await.map_err(self.error("list containers"))?;
        let found =
            found.into_iter().filter_map(|container| Some((container.id?, container.labels.unwrap_or_default())));
        Ok(found.map(|(id, labels)| FoundContainer { id, labels }).collect())
    }

    pub(super) async fn volumes_with(&self, labels: &[(String, String)]) -> Result<Vec<FoundVolume>, RuntimeError> {
        let options = query::ListVolumesOptionsBuilder::default().filters(&filter(labels)).build();
        let found = self.short.list_volumes(Some(options)).await.map_err(self.error("list volumes"))?;
        let found = found.volumes.unwrap_or_default().into_iter();
        Ok(found.map(|volume| FoundVolume { name: volume.name, labels: volume.labels }).collect())
    }

    pub(super) async fn networks_with(&self, labels: &[(String, String)]) -> Result<Vec<String>, RuntimeError> {
        let options = query::ListNetworksOptionsBuilder::default().filters(&filter(labels)).build();
        let found = self.short.list_networks(Some(options)).await.map_err(self.error("list networks"))?;
        Ok(found.into_iter().filter_map(|network| network.name).collect())
    }

    /// Removes a volume.
    pub(super) async fn drop_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let doing = format!("remove volume {name}");
        let client = self.short.clone().with_timeout(REMOVE_TIMEOUT);
        let options = None::<query::RemoveVolumeOptions>;
        match client.remove_volume(name, options).await.map_err(self.error(&doing)) {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}
