//! Between the engine's forms and the worker's.

use super::{Chunk, FileMount, LocalImage, Source};
use crate::usage::Writable;
use bollard::container::LogOutput;
use bollard::models::{ContainerInspectResponse, DeviceMapping, ImageInspect, Mount, MountType, MountVolumeOptions};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What engines call a mount that they keep themselves.
const VOLUME: &str = "volume";

pub(super) fn chunk(output: LogOutput) -> Chunk {
    let source = match output {
        LogOutput::StdErr { .. } => Source::Stderr,
        _ => Source::Stdout,
    };
    Chunk { source, bytes: output.into_bytes() }
}

pub(super) fn mount(mount: &FileMount) -> Mount {
    Mount {
        typ: Some(MountType::BIND),
        source: Some(mount.source.to_string_lossy().into_owned()),
        target: Some(mount.target.clone()),
        read_only: Some(mount.read_only),
        ..Default::default()
    }
}

/// Without a name of its own, so that it goes with its container; labelled, so that it is found if that is not so.
pub(super) fn volume(target: &str, labels: &BTreeMap<String, String>) -> Mount {
    let labels = labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Mount {
        typ: Some(MountType::VOLUME),
        target: Some(target.to_owned()),
        volume_options: Some(MountVolumeOptions { labels: Some(labels), ..Default::default() }),
        ..Default::default()
    }
}

pub(super) fn device_mapping(path: &str) -> DeviceMapping {
    DeviceMapping {
        path_on_host: Some(path.to_owned()),
        path_in_container: Some(path.to_owned()),
        cgroup_permissions: Some("rwm".to_owned()),
    }
}

/// Its root's changes, the volumes that its image asks for, and the files that the engine mounts into each container.
pub(super) fn writable(inspect: ContainerInspectResponse) -> Writable {
    let upper = inspect.graph_driver.and_then(|mut driver| driver.data.remove("UpperDir"));
    let mounts = inspect.mounts.unwrap_or_default();
    let volumes = mounts.into_iter().filter(|mount| mount.typ.as_deref() == Some(VOLUME));
    let files = [inspect.hosts_path, inspect.hostname_path, inspect.resolv_conf_path];
    let there = |path: String| Some(PathBuf::from(path)).filter(|path| path.exists());
    let paths = upper.into_iter().chain(files.into_iter().flatten()).filter_map(there).collect();
    let volumes = volumes.filter_map(|mount| mount.source).filter_map(there).collect();
    Writable { paths, volumes, container: inspect.id.unwrap_or_default() }
}

pub(super) fn local_image(inspect: ImageInspect) -> Option<LocalImage> {
    let layers = inspect.root_fs.and_then(|root| root.layers).unwrap_or_default();
    Some(LocalImage {
        id: inspect.id?,
        os: inspect.os.unwrap_or_default(),
        architecture: inspect.architecture.unwrap_or_default(),
        created: inspect.created.unwrap_or_default(),
        layers: layers.iter().map(|layer| layer.parse().ok()).collect::<Option<_>>()?,
        config: serde_json::to_value(inspect.config.unwrap_or_default()).ok()?,
        size_bytes: inspect.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
    })
}

/// With neither tag nor digest the engine would pull every tag that there is.
pub(super) fn with_tag(reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    if name.contains([':', '@']) { reference.to_owned() } else { format!("{reference}:latest") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_name_means_its_latest_tag() {
        for (reference, want) in [
            ("debian", "debian:latest"),
            ("host:5000/debian", "host:5000/debian:latest"),
            ("host:5000/debian:12", "host:5000/debian:12"),
            ("debian@sha256:00", "debian@sha256:00"),
        ] {
            assert_eq!(with_tag(reference), want);
        }
    }
}
