//! Random numbers out of one seed. Each purpose has its own stream, so that leaving something out of one does not change
//! what another draws.

/// A stream of random numbers.
pub struct Dice(fastrand::Rng);

/// What a stream is for.
#[derive(Clone, Copy)]
pub enum Purpose {
    /// The size and shape of the world.
    Shape,
    /// Hosts and their clocks.
    Hosts,
    /// Pipelines, and what clients do with them.
    Clients,
    /// When which part breaks.
    Faults,
    /// Messages.
    Net,
    /// Engines.
    Engine,
    /// Journal, logs and object store.
    Disks,
    /// How an attempt goes; one stream for each.
    Fate(u64),
}

impl Purpose {
    fn number(self) -> u64 {
        match self {
            Self::Shape => 1,
            Self::Hosts => 2,
            Self::Clients => 3,
            Self::Faults => 4,
            Self::Net => 5,
            Self::Engine => 6,
            Self::Disks => 7,
            Self::Fate(which) => 1000 + which,
        }
    }
}

impl Dice {
    /// The stream of `seed` for `purpose`.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        Self(fastrand::Rng::with_seed(mix(seed ^ mix(purpose.number()))))
    }

    /// From `low` to `high`, both included.
    pub fn within(&mut self, low: u64, high: u64) -> u64 {
        self.0.u64(low..=high)
    }

    /// Below `count`, which is not 0.
    pub fn below(&mut self, count: usize) -> usize {
        self.0.usize(..count)
    }

    /// True in so many of a thousand cases.
    pub fn chance(&mut self, permille: u64) -> bool {
        permille > 0 && self.0.u64(..1000) < permille
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// Any number.
    pub fn any(&mut self) -> u64 {
        self.0.u64(..)
    }
}

/// SplitMix64's finisher: neighbouring seeds become unrelated streams.
pub fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
