//! The real engine, with faults that it does not have by itself.

use async_trait::async_trait;
use futures_util::StreamExt as _;
use futures_util::stream;
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;
use railyard_worker::runtime::{
    ByteStream, ContainerSpec, ContainerState, Docker, EngineNetwork, Exit, FoundContainer, FoundVolume, Hearing,
    ImageName, LocalImage, NetworkSpec, Output, Runtime, RuntimeError,
};
use railyard_worker::usage::Writable;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// What goes wrong, and how many times.
pub struct Faults {
    pub start_panics: AtomicU32,
    /// The engine goes away before it has started the container.
    pub start_unheard: AtomicU32,
    /// The engine goes away when it has started the container.
    pub start_unanswered: AtomicU32,
    /// The engine does not know its own mark: it is another one.
    pub forgets: AtomicU32,
    /// The output breaks off behind its first bytes.
    pub output_breaks: AtomicU32,
    pub remove_fails: AtomicU32,
    pub stop_fails: AtomicU32,
    /// A container is made only with a permit of this.
    pub create_waits: Option<Arc<Semaphore>>,
    /// Has a permit for each removal that went well.
    pub removals: Arc<Semaphore>,
    /// Where the engine says that it keeps its files.
    pub disk: Option<PathBuf>,
    /// The engine does not take an archive, once it has read some of it.
    pub load_fails: AtomicU32,
    /// The worker cannot read what the engine keeps of a container.
    pub no_overlay: bool,
    /// The network of its containers is on another host than the worker.
    pub network_elsewhere: bool,
    /// The engine tells of its network as it was before it was killed and started again.
    pub network_of_before: AtomicU32,
    /// It can only with a permit of this.
    pub overlay_waits: Option<Arc<Semaphore>>,
    /// The engine tells of an image only with a permit of this.
    pub image_waits: Option<Arc<Semaphore>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            start_panics: 0.into(),
            start_unheard: 0.into(),
            start_unanswered: 0.into(),
            forgets: 0.into(),
            output_breaks: 0.into(),
            remove_fails: 0.into(),
            stop_fails: 0.into(),
            create_waits: None,
            removals: Arc::new(Semaphore::new(0)),
            disk: None,
            load_fails: 0.into(),
            no_overlay: false,
            network_elsewhere: false,
            network_of_before: 0.into(),
            overlay_waits: None,
            image_waits: None,
        }
    }
}

pub struct Faulty {
    pub engine: Arc<Docker>,
    pub faults: Faults,
}

fn is_due(fault: &AtomicU32) -> bool {
    fault.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok()
}

fn refused(doing: &str) -> RuntimeError {
    RuntimeError::Refused { doing: doing.to_owned(), status: Some(500), message: "the test does not want it".into() }
}

fn away() -> RuntimeError {
    RuntimeError::Unreachable { socket: "no.sock".into(), why: "the test wants it so".into() }
}

#[async_trait]
impl Hearing for Faulty {
    async fn attach(&self, container: &str) -> Result<Output, RuntimeError> {
        self.engine.attach(container).await
    }

    async fn log(&self, container: &str) -> Result<Output, RuntimeError> {
        self.engine.log(container).await
    }

    async fn leave_mark(&self, container: &str) -> Result<String, RuntimeError> {
        self.engine.leave_mark(container).await
    }

    async fn remembers(&self, container: &str, mark: Option<&str>) -> Result<bool, RuntimeError> {
        Ok(!is_due(&self.faults.forgets) && self.engine.remembers(container, mark).await?)
    }
}

#[async_trait]
impl Runtime for Faulty {
    fn disk(&self) -> Option<&Path> {
        self.faults.disk.as_deref().or_else(|| self.engine.disk())
    }

    async fn network(&self, spec: &NetworkSpec) -> Result<Option<EngineNetwork>, RuntimeError> {
        if is_due(&self.faults.network_of_before) {
            return Ok(Some(EngineNetwork { subnets: Vec::new(), pid: Some(i32::MAX) }));
        }
        match self.faults.network_elsewhere {
            true => Ok(Some(EngineNetwork { subnets: Vec::new(), pid: None })),
            false => self.engine.network(spec).await,
        }
    }

    async fn writable(&self, container: &str) -> Result<Option<Writable>, RuntimeError> {
        self.engine.writable(container).await
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        if let Some(permits) = &self.faults.create_waits {
            permits.acquire().await.unwrap().forget();
        }
        self.engine.create(spec).await
    }

    async fn start(&self, container: &str) -> Result<Output, RuntimeError> {
        assert!(!is_due(&self.faults.start_panics), "the test wants it so");
        if is_due(&self.faults.start_unheard) {
            return Err(away());
        }
        let output = self.engine.start(container).await?;
        if is_due(&self.faults.start_unanswered) {
            return Err(away());
        }
        if is_due(&self.faults.output_breaks) {
            let broken = stream::once(async { Err(refused("read on")) });
            return Ok(output.take(1).chain(broken).boxed());
        }
        Ok(output)
    }

    async fn state(&self, container: &str) -> Result<Option<ContainerState>, RuntimeError> {
        self.engine.state(container).await
    }

    async fn exit(&self, container: &str) -> Result<Exit, RuntimeError> {
        self.engine.exit(container).await
    }

    async fn is_live_restore(&self) -> Result<bool, RuntimeError> {
        self.engine.is_live_restore().await
    }

    async fn stop(&self, container: &str, grace: Duration) -> Result<(), RuntimeError> {
        if is_due(&self.faults.stop_fails) { Err(refused("stop")) } else { self.engine.stop(container, grace).await }
    }

    async fn remove(&self, container: &str) -> Result<(), RuntimeError> {
        if is_due(&self.faults.remove_fails) {
            return Err(refused("remove"));
        }
        self.engine.remove(container).await?;
        self.faults.removals.add_permits(1);
        Ok(())
    }

    async fn ping(&self) -> Result<String, RuntimeError> {
        self.engine.ping().await
    }

    async fn image(&self, reference: &str) -> Result<Option<LocalImage>, RuntimeError> {
        if let Some(permits) = &self.faults.image_waits {
            permits.acquire().await.unwrap().forget();
        }
        self.engine.image(reference).await
    }

    async fn pull(&self, reference: &str, platform: Platform) -> Result<(), RuntimeError> {
        self.engine.pull(reference, platform).await
    }

    async fn tag(&self, image: &str, name: &ImageName) -> Result<(), RuntimeError> {
        self.engine.tag(image, name).await
    }

    async fn untag(&self, reference: &str) -> Result<(), RuntimeError> {
        self.engine.untag(reference).await
    }

    async fn names_below(&self, prefix: &str) -> Result<Vec<String>, RuntimeError> {
        self.engine.names_below(prefix).await
    }

    async fn layer_chains(&self) -> Result<Vec<Vec<Digest>>, RuntimeError> {
        self.engine.layer_chains().await
    }

    async fn export(&self, reference: &str) -> Result<ByteStream, RuntimeError> {
        self.engine.export(reference).await
    }

    async fn load(&self, mut archive: ByteStream) -> Result<(), RuntimeError> {
        if is_due(&self.faults.load_fails) {
            archive.next().await;
            return Err(RuntimeError::Refused {
                doing: "load an image".into(),
                status: None,
                message: "no space left on device".into(),
            });
        }
        self.engine.load(archive).await
    }

    async fn overlay(&self, container: &str) -> Result<Option<PathBuf>, RuntimeError> {
        if let Some(permits) = &self.faults.overlay_waits {
            permits.acquire().await.unwrap().forget();
        }
        if self.faults.no_overlay { Ok(None) } else { self.engine.overlay(container).await }
    }

    async fn commit(&self, container: &str, name: &ImageName) -> Result<(), RuntimeError> {
        self.engine.commit(container, name).await
    }

    async fn containers(&self, labels: &[(String, String)]) -> Result<Vec<FoundContainer>, RuntimeError> {
        self.engine.containers(labels).await
    }

    async fn volumes(&self, labels: &[(String, String)]) -> Result<Vec<FoundVolume>, RuntimeError> {
        self.engine.volumes(labels).await
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        self.engine.remove_volume(name).await
    }

    async fn networks(&self, labels: &[(String, String)]) -> Result<Vec<String>, RuntimeError> {
        self.engine.networks(labels).await
    }

    async fn remove_network(&self, name: &str) -> Result<(), RuntimeError> {
        self.engine.remove_network(name).await
    }
}
