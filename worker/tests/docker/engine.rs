//! The engine as the tests see it: a base image of busybox, and a look behind the worker's back.

use bollard::Docker;
use bollard::query_parameters as query;
use futures_util::StreamExt as _;
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;
use railyard_worker::image_move::archive::{self, Content, Layer, LayerTar};
use railyard_worker::image_move::config;
use railyard_worker::image_move::root::Packing;
use railyard_worker::runtime::{self, ImageName, Runtime, labels};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longer than the engine takes for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

pub const SOCKET: &str = "/var/run/docker.sock";

const APPLETS: [&str; 36] = [
    "sh",
    "cat",
    "cp",
    "dd",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "id",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "mv",
    "nproc",
    "printf",
    "readlink",
    "rm",
    "seq",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "tail",
    "tar",
    "touch",
    "true",
    "uname",
    "wc",
    "yes",
    "chmod",
];

/// The engine. Without one the tests cannot run, and say so.
pub async fn runtime() -> Arc<runtime::Docker> {
    match runtime::Docker::connect(Path::new(SOCKET)).await {
        Ok(docker) => Arc::new(docker),
        Err(error) => panic!("these tests need a Docker engine: {error}"),
    }
}

pub fn client() -> Docker {
    Docker::connect_with_unix(SOCKET, 120, bollard::API_DEFAULT_VERSION).unwrap()
}

fn busybox() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).map(|dir| dir.join("busybox"));
    places.find(|file| file.exists()).expect("these tests need busybox on the PATH (Debian: busybox-static)")
}

/// A root file system of busybox and little else. `marker` makes it another image.
pub fn busybox_root(marker: &str) -> Vec<u8> {
    busybox_root_with(marker, &[])
}

/// The same with more files, or others: paths, modes and contents.
fn busybox_root_with(marker: &str, more: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut written = std::collections::BTreeSet::new();
    let mut file = |path: &str, mode: u32, content: &[u8]| {
        if !written.insert(path.to_owned()) {
            return;
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, path, content).unwrap();
    };
    for (path, mode, content) in more {
        file(path, *mode, content);
    }
    file("bin/busybox", 0o755, &std::fs::read(busybox()).unwrap());
    file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n");
    file("etc/marker", 0o644, marker.as_bytes());
    file("opt/base/kept", 0o644, b"kept");
    file("opt/base/removed", 0o644, b"removed");
    file("opt/opaque/old", 0o644, b"old");
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_size(0);
    tar.append_data(&mut header, "tmp", &b""[..]).unwrap();
    tar.into_inner().unwrap()
}

/// The base image of the tests, in the engine. The same bytes each time, so that tests that run at once agree.
pub async fn base_image() -> String {
    image_of("railyard-test-base", &busybox_root("")).await
}

/// Users of an image whose root has no password.
const OPEN_ROOT: &[u8] = b"root::0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n";

/// The base image, with a program in `/opt/setuid` that belongs to root and runs as root, whoever starts it.
pub async fn setuid_image() -> String {
    let program = std::fs::read(busybox()).unwrap();
    let more: [(&str, u32, &[u8]); 2] = [("opt/setuid/busybox", 0o4755, &program), ("etc/passwd", 0o644, OPEN_ROOT)];
    image_of("railyard-test-setuid", &busybox_root_with("", &more)).await
}

/// What a script prints in a container with the engine's own defaults, which is none of the worker's.
pub async fn output_of(image: &str, script: &str) -> String {
    let body = bollard::models::ContainerCreateBody {
        image: Some(image.to_owned()),
        cmd: Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec()),
        host_config: Some(bollard::models::HostConfig { network_mode: Some("none".to_owned()), ..Default::default() }),
        ..Default::default()
    };
    let client = client();
    let created = client.create_container(None::<query::CreateContainerOptions>, body).await.unwrap();
    client.start_container(&created.id, None).await.unwrap();
    let options = query::LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).build();
    let said: Vec<_> = client.logs(&created.id, Some(options)).collect().await;
    let forced = query::RemoveContainerOptionsBuilder::default().force(true).build();
    client.remove_container(&created.id, Some(forced)).await.unwrap();
    said.into_iter().map(|said| said.unwrap().to_string()).collect()
}

/// An image with nothing but a program that prints its script.
pub async fn image_without_shell() -> String {
    let mut tar = tar::Builder::new(Vec::new());
    let program = std::fs::read(busybox()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(program.len() as u64);
    header.set_mode(0o755);
    tar.append_data(&mut header, "bin/cat", &program[..]).unwrap();
    image_of("railyard-test-no-shell", &tar.into_inner().unwrap()).await
}

/// A root file system as an image.
pub async fn image_of(repository: &str, root: &[u8]) -> String {
    let engine = runtime().await;
    let digest = Digest::of(root);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("layer.tar");
    std::fs::write(&file, root).unwrap();
    let name = ImageName { repository: repository.to_owned(), tag: digest.hex()[..12].to_owned() };
    if engine.image(&name.to_string()).await.unwrap().is_none() {
        let platform = railyard_worker::host::native().expect("a host of a platform that the farm knows");
        let config = config::imported(platform, digest, "test");
        let content = Content::File { file, packing: Packing::Plain };
        let tar = LayerTar { content, size_bytes: root.len() as u64 };
        engine.load(archive::stream(config, vec![Layer { digest, tar: Some(tar) }], name.clone())).await.unwrap();
    }
    name.to_string()
}

/// An image of so many layers, of a file each.
pub async fn image_of_layers(count: usize) -> String {
    let engine = runtime().await;
    let name = ImageName { repository: "railyard-test-layers".to_owned(), tag: count.to_string() };
    if engine.image(&name.to_string()).await.unwrap().is_none() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |n: usize| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            tar.append_data(&mut header, format!("layer-{n}"), &[][..]).unwrap();
            let (bytes, file) = (tar.into_inner().unwrap(), dir.path().join(n.to_string()));
            std::fs::write(&file, &bytes).unwrap();
            let content = Content::File { file, packing: Packing::Plain };
            Layer { digest: Digest::of(&bytes), tar: Some(LayerTar { content, size_bytes: bytes.len() as u64 }) }
        };
        let layers: Vec<Layer> = (0..count).map(layer).collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
        let config = serde_json::json!({
            "os": "linux", "architecture": native().arch().to_string(), "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        engine.load(archive::stream(config.to_string().into(), layers, name.clone())).await.unwrap();
    }
    name.to_string()
}

pub fn native() -> Platform {
    railyard_worker::host::native().expect("a host of a platform that the farm knows")
}

/// Names or ids of containers with a label of the worker's farm.
pub async fn containers_of(farm: &str) -> Vec<String> {
    let found = runtime().await.containers(&[(labels::FARM.to_owned(), farm.to_owned())]).await.unwrap();
    found.into_iter().map(|found| found.id).collect()
}

/// Images of the worker's farm.
pub async fn images_of(farm: &str) -> Vec<String> {
    runtime().await.names_below(&format!("railyard.local/{farm}/")).await.unwrap()
}

/// A container that sleeps, with these labels. Not one of the worker's making.
pub async fn foreign_container(labels: &[(&str, &str)]) -> String {
    let body = bollard::models::ContainerCreateBody {
        image: Some(base_image().await),
        cmd: Some(vec!["/bin/sleep".into(), "600".into()]),
        host_config: Some(bollard::models::HostConfig {
            network_mode: Some("none".to_owned()),
            auto_remove: Some(true),
            ..Default::default()
        }),
        labels: Some(
            labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<HashMap<_, _>>(),
        ),
        ..Default::default()
    };
    let created = client().create_container(None::<query::CreateContainerOptions>, body).await.unwrap();
    client().start_container(&created.id, None).await.unwrap();
    created.id
}

pub async fn exists(container: &str) -> bool {
    client().inspect_container(container, None).await.is_ok()
}

/// How many processes a container has now.
pub async fn process_count(container: &str) -> u64 {
    let options = query::StatsOptionsBuilder::default().stream(false).one_shot(true).build();
    let stats = client().stats(container, Some(options)).next().await.unwrap().unwrap();
    stats.pids_stats.and_then(|pids| pids.current).unwrap_or_default()
}

/// Waits until the engine has removed the container.
pub async fn removed(container: &str) {
    let options = query::WaitContainerOptionsBuilder::default().condition("removed").build();
    // Its exit code comes as an error, and so does a container that is gone already.
    let waited = async { while client().wait_container(container, Some(options.clone())).next().await.is_none() {} };
    tokio::time::timeout(PATIENCE, waited).await.expect("the container is removed");
    assert!(!exists(container).await);
}

/// Why the engine cannot run anything privileged, if it cannot.
pub async fn refuses_privileged() -> Option<String> {
    let body = bollard::models::ContainerCreateBody {
        image: Some(base_image().await),
        cmd: Some(vec!["/bin/true".into()]),
        host_config: Some(bollard::models::HostConfig {
            network_mode: Some("none".to_owned()),
            privileged: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    };
    let created = client().create_container(None::<query::CreateContainerOptions>, body).await.unwrap();
    let started = client().start_container(&created.id, None).await;
    let forced = query::RemoveContainerOptionsBuilder::default().force(true).build();
    client().remove_container(&created.id, Some(forced)).await.unwrap();
    match started {
        Ok(()) => None,
        Err(bollard::errors::Error::DockerResponseServerError { message, .. }) => Some(message),
        Err(error) => panic!("{error}"),
    }
}
