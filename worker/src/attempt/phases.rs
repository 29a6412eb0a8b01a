//! What an attempt does, stage by stage; the next process begins with the stage that this one had entered.

use super::container::{self, Ran, Room};
use super::dirs::JobDir;
use super::fault::Fault;
use super::patience::Patience;
use super::record::{RunStage, Stage};
use super::{Attempt, Left, artifacts, spec, unless_stopped};
use crate::disk::{DiskError, room};
use crate::images::make::{self, Made};
use crate::images::{InUse, prepare, save};
use crate::inputs;
use crate::log::{JobLog, count};
use crate::network::{NetworkError, Unguarded};
use crate::runtime::LocalImage;
use crate::secrets::SecretsError;
use crate::uplink::UplinkError;
use railyard_common::blob::Blob;
use railyard_common::order::Order;
use railyard_common::outcome::{OutcomeKind, Reason};
use railyard_common::redact::Masks;
use railyard_common::secret::SecretValue;
use railyard_proto::v1::Phase;
use railyard_service::rpc_error;
use std::path::PathBuf;
use std::time::Duration;
use tracing::{Instrument as _, info_span};

/// Layers of an image that engines take: overlay2 mounts no more below one that can be written to (`maxLayerDepth` of Docker).
const LAYERS_MAX: usize = 125;

/// Whether somebody has begun before, and may have left something.
#[derive(Clone, Copy, Debug)]
enum Began {
    Now,
    Before,
}

impl Attempt {
    /// Does what is left to do, from `stage` on.
    pub(super) async fn execute(
        &mut self,
        dir: &JobDir,
        log: &JobLog,
        stage: Stage,
        left: &mut Left,
    ) -> Result<(), Fault> {
        self.image_in_use = stage.image().map(|id| prepare::hold(&self.shop, &self.order, id));
        let made = match stage {
            Stage::Fetch => {
                self.enter(Phase::Fetch).await;
                let began = if self.resumed { Began::Before } else { Began::Now };
                self.fetch_and_work(dir, log, began).await?
            }
            Stage::Run(stage) => {
                self.enter(Phase::Run).await;
                match self.work_on(dir, log, stage).instrument(info_span!("run")).await? {
                    Some(made) => made,
                    None => self.fetch_and_work(dir, log, Began::Before).await?,
                }
            }
            Stage::Pack { image } => {
                self.masks = self.read_masks(log).await.ok();
                let image = self.known_image(log, &image).await?;
                self.make_image(dir, log, &image).instrument(info_span!("pack")).await?
            }
            Stage::Upload { made } => {
                self.masks = self.read_masks(log).await.ok();
                if let Some(made) = &made {
                    make::check(made, &dir.image()).await?;
                }
                made
            }
            // Somebody else's business.
            Stage::Report => return Ok(()),
        };
        self.enter(Phase::Upload).await;
        let stop = self.stop.clone();
        let uploading = unless_stopped(stop, self.upload(dir, log, made, left).instrument(info_span!("upload")));
        // The container's files can take a while to go. Nothing waits for that but the report.
        let (uploaded, ()) = tokio::join!(uploading, self.remove_container());
        uploaded
    }

    pub(super) async fn enter(&self, phase: Phase) {
        // Nobody listens only when the worker is gone already.
        let _ = self.events.send(super::Event::Entered(self.order.lease, phase)).await;
    }

    /// Fetches and runs, until the container has ended well.
    async fn fetch_and_work(&mut self, dir: &JobDir, log: &JobLog, mut began: Began) -> Result<Option<Made>, Fault> {
        let shop = self.shop.clone();
        let mut patience = Patience::new(&shop, log);
        loop {
            self.prepare(dir, log, began).await?;
            unless_stopped(self.stop.clone(), room::admit(&shop, &self.order, log)).await?;
            let (image, in_use, mounts) =
                unless_stopped(self.stop.clone(), self.fetch(dir, log).instrument(info_span!("fetch"))).await?;
            self.image_in_use = Some(in_use);
            self.enter(Phase::Run).await;
            let worked = self.work(dir, log, &image, &mounts, &mut patience).instrument(info_span!("run")).await?;
            match worked {
                Some(made) => return Ok(made),
                None => began = Began::Before,
            }
        }
    }

    /// Makes the start a clean one, also if it is not the first.
    async fn prepare(&self, dir: &JobDir, log: &JobLog, began: Began) -> Result<(), Fault> {
        let Order { lease, build, job, .. } = &self.order;
        let who = &self.shop.config.name;
        match began {
            Began::Now => log.note(&format!("{build} {job}, attempt {} on worker {who}", lease.attempt)).await?,
            Began::Before => {
                self.record(dir).enter(&Stage::Fetch).await;
                self.remove_container().await;
                self.remove_secrets().await;
                dir.clear().await?;
                JobDir::create(&self.shop.data, *lease)?;
                log.note(&format!("worker {who} or its engine was restarted; beginning again")).await?;
            }
        }
        spec::check(&self.shop.config, &self.order)
    }

    async fn fetch(&self, dir: &JobDir, log: &JobLog) -> Result<(LocalImage, InUse, Vec<inputs::InputMount>), Fault> {
        let (shop, order) = (&self.shop, &self.order);
        // First, so that a job that cannot have them costs nothing.
        self.fetch_secrets(log).await?;
        let mut patience = Patience::new(shop, log);
        let (image, in_use) = loop {
            match prepare::prepare(shop, order, log).await {
                Ok(image) => break image,
                Err(fault) => patience.after(fault).await?,
            }
        };
        if order.run.commit && image.layers.len() >= LAYERS_MAX {
            let message = format!(
                "{} is to leave an image on top of one with {} layers, and container engines take no more than {LAYERS_MAX}: begin from an \
                 earlier image, or make one layer of it (a root tarball, with `image.import`)",
                order.job,
                image.layers.len()
            );
            return Err(Fault::ended(OutcomeKind::Failed, Reason::ImageMissing, message));
        }
        let mut mounts = Vec::new();
        if !order.inputs.is_empty() {
            let started = shop.clock.monotonic();
            let blobs: Vec<Blob> = order.inputs.iter().map(|input| input.artifact.blob).collect();
            let held = inputs::fetch(shop, order.lease, &blobs).await?;
            let (tree, apart, inputs) = (dir.inputs(), spec::can_remount(order), order.inputs.clone());
            // The blobs are held until their second names are there.
            mounts = crate::blocking::blocking(move || inputs::lay_out(&tree, &inputs, &held, apart)).await?;
            let bytes = bytesize::ByteSize::b(blobs.iter().map(|blob| blob.size_bytes).sum()).display().iec();
            let secs = (shop.clock.monotonic() - started).as_secs_f32();
            log.note(&format!("fetched {}, {bytes}, in {secs:.1} s", count(blobs.len(), "input"))).await?;
        }
        let script = dir.script();
        write_script(&script, &spec::script(&order.run.script)).await.map_err(DiskError::at("write", &script))?;
        if let Some(text) = spec::start(order) {
            let start = dir.start();
            write_script(&start, &text).await.map_err(DiskError::at("write", &start))?;
        }
        Ok((image, in_use, mounts))
    }

    /// Fetches the secrets of the step, if it has some.
    async fn fetch_secrets(&self, log: &JobLog) -> Result<(), Fault> {
        let (shop, lease) = (&self.shop, self.order.lease);
        if self.order.run.secrets.is_empty() {
            return Ok(());
        }
        // Whoever cannot keep them does not ask for them.
        let dir = shop.secrets.clone();
        crate::blocking::blocking(move || dir.check()).await.map_err(|error| self.cannot_keep(&error))?;
        let secrets = shop.uplink.fetch_secrets(lease).await.map_err(refused_secret)?;
        log.note(&format!("fetched {}", count(secrets.len(), "secret"))).await?;
        let dir = shop.secrets.clone();
        dir.begin(lease);
        let written = crate::blocking::blocking(move || dir.write(lease, &secrets)).await;
        written.map(drop).map_err(|error| self.cannot_keep(&error))
    }

    /// Another worker may. It is no fault of this one's that counts against what else it can do.
    fn cannot_keep(&self, error: &SecretsError) -> Fault {
        let (who, error) = (&self.shop.config.name, railyard_service::error_chain(error));
        let message = format!("worker {who} cannot keep the secrets of this job: {error}");
        Fault::ended(OutcomeKind::Refused, Reason::Unsupported, message)
    }

    /// Where the secrets of the step are, if it has some.
    fn secrets_dir(&self) -> Result<Option<PathBuf>, Fault> {
        if self.order.run.secrets.is_empty() {
            return Ok(None);
        }
        self.shop.secrets.of(self.order.lease).map(Some).map_err(|error| self.cannot_keep(&error))
    }

    /// Hides the secrets of the step in what its container writes, and in what the worker notes from here on.
    async fn read_masks(&self, log: &JobLog) -> Result<Masks, Fault> {
        if self.order.run.secrets.is_empty() {
            return Ok(Masks::default());
        }
        let (dir, lease) = (self.shop.secrets.clone(), self.order.lease);
        let values = crate::blocking::blocking(move || {
            dir.read(lease).map(|values| Masks::new(values.iter().map(SecretValue::reveal)))
        });
        let masks = values.await.map_err(|error| {
            let error = railyard_service::error_chain(&error);
            let message = format!("its secrets are gone, and nothing could hide them in its output: {error}");
            Fault::ended(OutcomeKind::Lost, Reason::Engine, message)
        })?;
        log.hide(&masks);
        Ok(masks)
    }

    /// Runs the container and, where the step wants it, makes an image of it. `None` if there was none to run.
    async fn work(
        &mut self,
        dir: &JobDir,
        log: &JobLog,
        image: &LocalImage,
        mounts: &[inputs::InputMount],
        patience: &mut Patience<'_>,
    ) -> Result<Option<Option<Made>>, Fault> {
        let shop = self.shop.clone();
        let network = self.network(patience).await?;
        let secrets = self.secrets_dir()?;
        let spec = spec::container(&shop, dir, &self.order, image, mounts, secrets, network);
        log.note("running the script").await?;
        let started = shop.clock.boottime();
        let (order, record, masks) = (self.order.clone(), self.record(dir), self.read_masks(log).await?);
        self.masks = Some(masks.clone());
        let room = Room {
            shop: &shop,
            order: &order,
            name: &spec.name,
            work: &dir.work(),
            log,
            record: &record,
            masks: &masks,
        };
        if container::run(&room, &spec, &image.id, patience, &mut self.stop).await? == Ran::Never {
            return Ok(None);
        }
        self.ended_well(log, started).await?;
        self.make_image(dir, log, image).await.map(Some)
    }

    /// The network that the step wants, with everything around it that is to keep it where it belongs.
    async fn network(&self, patience: &mut Patience<'_>) -> Result<Option<String>, Fault> {
        let (shop, who) = (&self.shop, &self.shop.config.name);
        if self.order.run.network_none {
            return Ok(None);
        }
        loop {
            match unless_stopped(self.stop.clone(), async { Ok(shop.guard.ensure(&*shop.runtime).await) }).await? {
                Ok(name) => return Ok(Some(name)),
                Err(NetworkError::Runtime(error)) => {
                    unless_stopped(self.stop.clone(), patience.after(error.into())).await?;
                }
                Err(NetworkError::Unguarded(why)) if shop.guard.unguarded() == Unguarded::Refuse => {
                    let message = format!(
                        "worker {who} cannot keep steps with a network away from its host: {why}. Repair that, write `network: none`, or \
                         let them run all the same with `network = {{ unguarded = \"allow\" }}` in its settings"
                    );
                    return Err(Fault::ended(OutcomeKind::Refused, Reason::Unsupported, message));
                }
                Err(NetworkError::Unguarded(why)) => {
                    tracing::warn!(why, "a step with a network runs that nothing keeps away from this host");
                    return Ok(Some(shop.guard.name().to_owned()));
                }
            }
        }
    }

    /// The same with a container that is there.
    async fn work_on(&mut self, dir: &JobDir, log: &JobLog, stage: RunStage) -> Result<Option<Option<Made>>, Fault> {
        let shop = self.shop.clone();
        let name = spec::container_name(&shop.farm, &shop.config, &self.order);
        let started = Duration::from_millis(stage.started_millis);
        let id = stage.image.clone();
        let (order, record, masks) = (self.order.clone(), self.record(dir), self.read_masks(log).await?);
        self.masks = Some(masks.clone());
        let room =
            Room { shop: &shop, order: &order, name: &name, work: &dir.work(), log, record: &record, masks: &masks };
        if container::resume(&room, stage, &mut self.stop).await? == Ran::Never {
            return Ok(None);
        }
        self.ended_well(log, started).await?;
        let image = self.known_image(log, &id).await?;
        self.make_image(dir, log, &image).await.map(Some)
    }

    /// The image that a container began with.
    async fn known_image(&self, log: &JobLog, id: &str) -> Result<LocalImage, Fault> {
        let mut patience = Patience::new(&self.shop, log);
        loop {
            match self.shop.runtime.image(id).await {
                Ok(Some(image)) => return Ok(image),
                Ok(None) => {
                    let message = format!("the engine does not have image {id} any more");
                    return Err(Fault::ended(OutcomeKind::Lost, Reason::Engine, message));
                }
                Err(error) => unless_stopped(self.stop.clone(), patience.after(error.into())).await?,
            }
        }
    }

    async fn ended_well(&self, log: &JobLog, started: Duration) -> Result<(), Fault> {
        let secs = self.shop.clock.boottime().saturating_sub(started).as_secs_f32();
        Ok(log.note(&format!("the script ended well after {secs:.1} s")).await?)
    }

    /// A container that has ended well becomes an image, if the step wants that. Nobody needs the container afterwards.
    async fn make_image(&self, dir: &JobDir, log: &JobLog, base: &LocalImage) -> Result<Option<Made>, Fault> {
        let (shop, order, record) = (&self.shop, &self.order, self.record(dir));
        let mut made = None;
        if order.run.commit {
            record.enter(&Stage::Pack { image: base.id.clone() }).await;
            // The container's processors and memory are free.
            self.enter(Phase::Upload).await;
            let (name, scratch) = (spec::container_name(&shop.farm, &shop.config, order), dir.image());
            let mut patience = Patience::new(shop, log);
            while made.is_none() {
                match unless_stopped(self.stop.clone(), make::make(shop, order, base, &name, &scratch, log)).await {
                    Ok(done) => made = Some(done),
                    Err(fault) => unless_stopped(self.stop.clone(), patience.after(fault)).await?,
                }
            }
        }
        record.enter(&Stage::Upload { made: made.clone() }).await;
        Ok(made)
    }

    async fn upload(&self, dir: &JobDir, log: &JobLog, made: Option<Made>, left: &mut Left) -> Result<(), Fault> {
        let (shop, order) = (&self.shop, &self.order);
        left.artifacts = artifacts::save(shop, order.lease, dir, &order.run.outputs, &mut left.uploads, log).await?;
        let Some(made) = made else { return Ok(()) };
        let mut patience = Patience::new(shop, log);
        loop {
            match save::save(shop, order.lease, &made, &dir.image(), &mut left.uploads, log).await {
                Ok(image) => {
                    left.image = Some(image);
                    return Ok(());
                }
                Err(fault) => patience.after(fault).await?,
            }
        }
    }
}

/// A secret that is missing will be missing for the next worker, too: the job has failed.
fn refused_secret(error: UplinkError) -> Fault {
    match error {
        UplinkError::Refused { status, .. } if rpc_error::reason_of(&status).as_deref() == Some(rpc_error::SECRET) => {
            Fault::ended(OutcomeKind::Failed, Reason::SecretMissing, status.message())
        }
        error => error.into(),
    }
}

async fn write_script(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let (path, text) = (path.to_owned(), text.to_owned());
    let write = move || {
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
    };
    crate::blocking::blocking(write).await
}
