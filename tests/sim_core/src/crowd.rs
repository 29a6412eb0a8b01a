//! Many worlds at a time, each in one thread.

use crate::config::Config;
use crate::trace::Listen;
use crate::world::{Outcome, run};
use railyard_common::planted::{Bug, plant};
use std::sync::Mutex;
use std::sync::mpsc;

/// Runs the worlds of `configs` with `bug` planted, and gives each with what came of it to `each`, in no certain order, until
/// that returns false.
pub fn crowd(
    threads: usize,
    bug: Option<Bug>,
    configs: impl Iterator<Item = Config> + Send,
    mut each: impl FnMut(Config, Outcome) -> bool,
) {
    let configs = Mutex::new(configs.fuse());
    let (sender, outcomes) = mpsc::sync_channel(threads);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (sender, configs) = (sender.clone(), &configs);
            scope.spawn(move || {
                plant(bug);
                loop {
                    // Poisoned only if a thread panicked, and then the whole scope does.
                    let Some(config) = configs.lock().ok().and_then(|mut configs| configs.next()) else { return };
                    let outcome = run(&config, Listen::No);
                    if sender.send((config, outcome)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        // A receiver that is gone ends the threads.
        let mut outcomes = outcomes.into_iter();
        for (config, outcome) in outcomes.by_ref() {
            if !each(config, outcome) {
                break;
            }
        }
        drop(outcomes);
    });
}

/// As many threads as there are processors.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
