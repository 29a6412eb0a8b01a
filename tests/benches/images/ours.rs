//! The farm: a controller with its embedded cache and two workers, each with an engine of its own.

use crate::Round;
use crate::child::{Controller, Worker};
use crate::events::{self, Events};
use crate::scene::Scene;
use crate::sim::{Submitter, runtime};
use anyhow::Context as _;
use railyard_common::id::WorkerName;
use railyard_service::tls::Authority;
use railyard_tests::engine::Engine;
use std::path::Path;

/// One build: the base gets into the cache, as it is in the others' registry; then the big layer is made on the first worker and
/// wanted on the second, then the small one on top of it.
pub fn round(scene: &Scene, round: usize) -> anyhow::Result<Round> {
    let dir = tempfile::tempdir_in(scene.dir.path())?;
    let controller = Controller::start(&dir.path().join("controller"))?;
    let authority = controller.authority()?;
    let first = worker(&controller, &authority, dir.path(), "first", &scene.first)?;
    let second = worker(&controller, &authority, dir.path(), "second", &scene.second)?;
    let mut ends = Events::listen(&scene.first, &["event=die", "label=railyard.worker=first"])?;
    let mut loads = Events::listen(&scene.second, &["event=load"])?;
    let begun = events::now();
    let runtime = runtime(1)?;
    runtime.block_on(async {
        let mut submitter = Submitter::new(&controller.operator_endpoint(&authority)?)?;
        let build = submitter.submit(&pipeline(scene), &format!("v{round}")).await?;
        submitter.ended(&build).await
    })?;
    // The first one was the base's.
    let base = ends.next(begun)?;
    let end = ends.next(base + 1e-6)?;
    let big = loads.next(end)? - end;
    let end = ends.next(end + big)?;
    let small = loads.next(end)? - end;
    first.stop()?;
    second.stop()?;
    controller.stop()?;
    Ok(Round { big, small })
}

fn pipeline(scene: &Scene) -> String {
    // Twice the layer: at its own size the step is at its limit.
    let common = "resources: { cpu: 0.5, memory: 256MiB, disk: 2GiB }";
    format!(
        "name: images\nsteps:\n\
         - {{ name: base, pool: first, image: \"{base}\", commit: true, script: 'true', {common} }}\n\
         - {{ name: big, pool: first, image: {{ step: base }}, commit: true, script: '{big}', {common} }}\n\
         - {{ name: use-big, pool: second, image: {{ step: big }}, script: 'true', {common} }}\n\
         - {{ name: small, pool: first, image: {{ step: big }}, needs: [use-big], commit: true, script: '{small}', {common} }}\n\
         - {{ name: use-small, pool: second, image: {{ step: small }}, script: 'true', {common} }}\n",
        base = scene.base,
        big = scene.big_script(),
        small = scene.small_script(),
    )
}

fn worker(
    controller: &Controller,
    authority: &Authority,
    dir: &Path,
    name: &str,
    engine: &Engine,
) -> anyhow::Result<Worker> {
    let (pki, config) = (dir.join("pki"), dir.join(format!("{name}.toml")));
    let identity = controller.worker_endpoint(authority, &name.parse::<WorkerName>()?)?.identity;
    identity.context("an identity")?.write(&pki, name)?;
    std::fs::write(pki.join("ca.pem"), authority.ca_pem())?;
    let text = format!(
        "controller = \"{url}\"\nname = \"{name}\"\npool = \"{name}\"\nca = \"{pki}/ca.pem\"\ncert = \"{pki}/{name}.pem\"\n\
         key = \"{pki}/{name}.key\"\ndata_dir = \"{data}\"\ndocker_socket = \"{socket}\"\n\
         pressure = {{ memory_percent = 0, io_percent = 0 }}\nimage_cache = '0B'\n",
        url = controller.url,
        pki = pki.display(),
        data = dir.join(name).display(),
        socket = engine.socket().display(),
    );
    std::fs::write(&config, text)?;
    Worker::start(&config)
}
