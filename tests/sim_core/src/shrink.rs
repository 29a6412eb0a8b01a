//! A failing world made smaller, for as long as the same invariant breaks.

use crate::config::{Config, Trouble};
use crate::trace::Listen;
use crate::world::run;

/// Worlds that are tried at most.
const TRIES_MAX: u32 = 600;

/// The smallest world found in which `invariant` is broken like in `config`.
pub fn shrink(config: &Config, invariant: &str) -> Config {
    let mut shrinker = Shrinker { best: config.clone(), invariant, tries: 0 };
    // Twice: what could not go before may go when something else is gone.
    for _ in 0..2 {
        shrinker.faults();
        shrinker.numbers();
        shrinker.trouble();
    }
    shrinker.best
}

struct Shrinker<'a> {
    best: Config,
    invariant: &'a str,
    tries: u32,
}

impl Shrinker<'_> {
    fn take(&mut self, candidate: Config) -> bool {
        if self.tries >= TRIES_MAX || candidate == self.best {
            return false;
        }
        self.tries += 1;
        let broken = run(&candidate, Listen::No).broken;
        let same = broken.is_some_and(|broken| broken.invariant == self.invariant);
        if same {
            self.best = candidate;
        }
        same
    }

    /// Faults are left out in chunks, smaller and smaller.
    fn faults(&mut self) {
        let mut chunk = self.best.faults.max(1);
        loop {
            let left: Vec<usize> = (0..self.best.faults).filter(|n| !self.best.skip.contains(n)).collect();
            for some in left.chunks(chunk) {
                let mut candidate = self.best.clone();
                candidate.skip.extend(some);
                self.take(candidate);
            }
            if chunk == 1 {
                break;
            }
            chunk = chunk.div_ceil(2);
        }
        // Those at the end need not be named one by one.
        while self.best.faults > 0 && self.best.skip.contains(&(self.best.faults - 1)) {
            let mut fewer = self.best.clone();
            fewer.faults -= 1;
            fewer.skip.remove(&fewer.faults);
            if !self.take(fewer) {
                break;
            }
        }
    }

    fn numbers(&mut self) {
        let fields: [fn(&mut Config) -> &mut usize; 4] =
            [|c| &mut c.builds, |c| &mut c.steps, |c| &mut c.workers, |c| &mut c.clients];
        for field in fields {
            for to in 1..*field(&mut self.best.clone()) {
                let mut candidate = self.best.clone();
                *field(&mut candidate) = to;
                if self.take(candidate) {
                    break;
                }
            }
        }
    }

    fn trouble(&mut self) {
        for (trouble, _) in Trouble::ALL {
            let mut candidate = self.best.clone();
            candidate.off.insert(trouble);
            self.take(candidate);
        }
    }
}
