//! A small farm that most tests begin with.

use crate::engine::Engine;
use crate::farm::{BUILD_LIMIT, Farm, Worker, files_below};
use crate::{image, unique, wait};

/// What a step of a test reserves: little, so that many tests fit on one machine.
pub const SMALL: &str = "resources: { cpu: 0.5, memory: 64MiB, disk: 64MiB }";

/// A farm with one worker on the machine's engine, and an image for steps, which goes with it.
pub struct Scene {
    /// The machine's engine.
    pub engine: Engine,
    /// The farm.
    pub farm: Farm,
    /// Its worker.
    pub worker: Worker,
    /// The image.
    pub image: String,
}

impl Default for Scene {
    fn default() -> Self {
        Self::with(format!("railyard-test-{}:1", unique()), image::busybox)
    }
}

impl Scene {
    /// One whose image is made by `make`.
    pub fn with(image: String, make: fn(&Engine, &str)) -> Self {
        let engine = Engine::shared();
        make(&engine, &image);
        let farm = Farm::start();
        // Registries of tests are here.
        let worker = farm.worker("w", &engine, "network = { allow = ['127.0.0.1'] }\n");
        Self { engine, farm, worker, image }
    }

    /// Writes a pipeline of this name with the one step `only`, of which `more` are further lines; gives its path.
    pub fn one_step(&self, name: &str, more: &str) -> String {
        one_step(&self.farm, name, &self.image, more)
    }

    /// Nothing of any job is left on the worker.
    ///
    /// # Panics
    /// If it is not so in good time.
    pub fn is_clean(&self) {
        wait::until("a clean worker", BUILD_LIMIT, || {
            let (containers, files) =
                (self.engine.containers_of(&self.worker.name), files_below(&self.worker.data.join("jobs")));
            if containers.is_empty() && files.is_empty() { Ok(()) } else { Err(format!("{containers:?} {files:?}")) }
        });
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.engine.docker(&["image", "rm", "--force", &self.image]);
    }
}

/// Writes a pipeline of this name with the one step `only`, of which `more` are further lines; gives its path.
pub fn one_step(farm: &Farm, name: &str, image: &str, more: &str) -> String {
    farm.pipeline(name, &format!("name: {name}\nsteps:\n  - name: only\n    image: {image}\n    {SMALL}\n{more}\n"))
}
