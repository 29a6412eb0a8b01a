//! What people say about keeping builds.

use super::{GRACE, World};
use railyard_common::id::{BuildId, PinName, TagName};
use railyard_common::retention::{Keep, Pin};
use railyard_core::{Command, Force, Reduction, Whose};

impl World {
    pub(super) fn somebody_wants_something(&mut self) {
        let Some(build) = self.some_build() else { return };
        let (by, name): (String, PinName) =
            ("olga".to_owned(), self.dice.pick(&["olga", "eva"]).parse().expect("a name"));
        let tag: TagName = self.dice.pick(&["golden", "lts"]).parse().expect("a tag");
        let command = match self.dice.below(14) {
            0 | 1 => {
                let until = self.dice.chance(500).then(|| self.now.plus(self.dice.within(1, 4 * GRACE)));
                Command::Pin {
                    build,
                    name,
                    pin: Pin { at: self.now, by, why: String::new(), until },
                    whose: Whose::Anybodys,
                }
            }
            2..=4 => Command::Unpin { build, name: Some(name), by, whose: Whose::Anybodys },
            5 => Command::Tag { build, tag, by },
            6 | 7 => Command::Untag { pipeline: build.pipeline, tag, by },
            8 => {
                let channel = self.dice.pick(&["alpha", "beta"]).parse().expect("a channel");
                return self.begin_promotion(build, channel);
            }
            9 => delete(build, Force::Forced),
            10 | 11 => delete(build, Force::Asked),
            12 => Command::Retry { build, step: None },
            _ => return self.let_sweeps_go_on(),
        };
        // What the farm refuses is its right; what it does is judged.
        let _ = self.decide(&command);
    }
}

fn delete(build: BuildId, force: Force) -> Command {
    let reduction = Reduction { build, keep: Keep::Nothing, why: "not wanted".to_owned() };
    Command::Reduce { builds: vec![reduction], by: "olga".to_owned(), force }
}
