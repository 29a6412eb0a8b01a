//! The build of a round: what its steps do, and what must come out. Nothing of that depends on the attempt.

use crate::dice::Dice;
use crate::plan::LEASE_TTL;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// The pipeline's name.
pub const NAME: &str = "faults";

/// Steps in each layer; those of a layer take in artifacts of earlier ones. Twenty in all.
const LAYERS: [usize; 5] = [5, 6, 5, 3, 1];

/// The big artifact is numbers, that many zero bytes, and numbers again: more than one part of an upload, cheap to make,
/// and another one in each round.
const BIG_MIB: usize = 16;
/// Numbers at each end of it.
const BIG_NUMBERS: u64 = 1_000;

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// What tells it from the same step of another round.
    pub token: String,
    /// Lines of its log.
    pub lines: u64,
    /// Breaths of a tenth of a second between them.
    breaths: u64,
    /// It leaves an image.
    commits: bool,
    /// It runs on the image that this step left.
    on: Option<usize>,
    /// It takes in what these steps left.
    inputs: Vec<usize>,
    /// The first number in its big artifact, if it leaves one.
    big_from: Option<u64>,
    /// Its artifacts are published.
    publishes: bool,
    /// It has a network.
    networked: bool,
}

impl Step {
    /// The steps of a round.
    pub fn draw(dice: &mut Dice) -> Vec<Self> {
        let mut steps: Vec<Self> = Vec::new();
        for (layer, count) in LAYERS.into_iter().enumerate() {
            let earlier = steps.len();
            for place in 0..count {
                let above = earlier - if layer == 0 { 0 } else { LAYERS[layer - 1] };
                let mut inputs = Vec::new();
                if layer > 0 {
                    // One of the layer before, so that the layers are layers, and two of any.
                    inputs = vec![index(dice, above, earlier), index(dice, 0, earlier), index(dice, 0, earlier)];
                    inputs.sort_unstable();
                    inputs.dedup();
                }
                steps.push(Self {
                    name: format!("s{layer}{place}"),
                    token: dice.token(),
                    lines: dice.between(20, 400),
                    breaths: dice.between(1, 8),
                    commits: layer == 0 && place == 0,
                    on: (layer > 0 && dice.once_in(2)).then_some(0),
                    inputs,
                    big_from: (layer == 1 && place == 0).then(|| dice.between(1_000_000, 8_000_000)),
                    publishes: layer == 1 && place == 0 || layer + 1 == LAYERS.len(),
                    networked: dice.once_in(3),
                });
            }
        }
        steps
    }

    /// The job's name.
    pub fn job(&self) -> String {
        format!("{}@linux/amd64", self.name)
    }

    fn script(&self, steps: &[Self]) -> String {
        let (name, token, lines) = (&self.name, &self.token, self.lines);
        let breath_every = lines.div_ceil(self.breaths);
        let mut text = format!(
            "n=0\nwhile test $n -lt {lines}; do n=$((n + 1)); echo \"line $n {token}\"; \
             if test $((n % {breath_every})) = 0; then sleep 0.1; fi; done\n\
             echo {token} > {name}.txt\n"
        );
        if self.on.is_some() {
            writeln!(text, "cat /etc/made >> {name}.txt").expect("a string takes text");
        }
        if !self.inputs.is_empty() {
            let files: Vec<String> =
                self.input_files(steps).iter().map(|(of, file)| format!("/inputs/{of}/{file}")).collect();
            writeln!(text, "cat {} | sha256sum >> {name}.txt", files.join(" ")).expect("a string takes text");
        }
        if let Some(from) = self.big_from {
            let (to, end) = (from + BIG_NUMBERS - 1, from + 2 * BIG_NUMBERS - 1);
            writeln!(
                text,
                "{{ seq {from} {to}; dd if=/dev/zero bs=1048576 count={BIG_MIB} 2>/dev/null; seq {} {end}; }} > {name}.big",
                to + 1
            )
            .expect("a string takes text");
        }
        if self.commits {
            writeln!(text, "echo made {token} > /etc/made").expect("a string takes text");
        }
        text
    }

    fn input_files(&self, steps: &[Self]) -> Vec<(String, String)> {
        let of = self.inputs.iter().map(|input| &steps[*input]);
        of.flat_map(|step| step.files().into_iter().map(|file| (step.name.clone(), file))).collect()
    }

    fn files(&self) -> Vec<String> {
        let big = self.big_from.map(|_| format!("{}.big", self.name));
        std::iter::once(format!("{}.txt", self.name)).chain(big).collect()
    }
}

fn index(dice: &mut Dice, from: usize, to: usize) -> usize {
    usize::try_from(dice.between(from as u64, to as u64 - 1)).unwrap_or(from)
}

/// The pipeline file of these steps, which start from `image`.
pub fn file(steps: &[Step], image: &str) -> String {
    let mut text = format!("name: {NAME}\nsteps:\n");
    for step in steps {
        let image = step.on.map_or_else(|| image.to_owned(), |on| format!("{{ step: {} }}", steps[on].name));
        let inputs: Vec<String> =
            step.inputs.iter().map(|input| format!("{{ step: {} }}", steps[*input].name)).collect();
        let publish = if step.publishes { ", publish: \"images/{{ version }}\"" } else { "" };
        let outputs: Vec<String> = step.files().iter().map(|file| format!("{{ path: {file}{publish} }}")).collect();
        let script = step.script(steps).replace('\n', "\n      ");
        write!(
            text,
            "  - name: {}\n    image: {image}\n    commit: {}\n    inputs: [{}]\n    outputs: [{}]\n    network: {}\n    \
             lease_ttl: {}s\n    resources: {{ cpu: 0.25, memory: 64MiB, disk: 64MiB }}\n    script: |\n      {}\n",
            step.name,
            step.commits,
            inputs.join(", "),
            outputs.join(", "),
            if step.networked { "default" } else { "none" },
            LEASE_TTL.as_secs(),
            script.trim_end(),
        )
        .expect("a string takes text");
    }
    text
}

/// Every file that the steps leave, with its bytes.
pub fn expected(steps: &[Step]) -> BTreeMap<String, Vec<u8>> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for step in steps {
        let mut text = format!("{}\n", step.token);
        if let Some(on) = step.on {
            writeln!(text, "made {}", steps[on].token).expect("a string takes text");
        }
        if !step.inputs.is_empty() {
            let mut sum = Sha256::new();
            for (_, file) in step.input_files(steps) {
                sum.update(&files[&file]);
            }
            writeln!(text, "{}  -", hex::encode(sum.finalize())).expect("a string takes text");
        }
        files.insert(format!("{}.txt", step.name), text.into_bytes());
        if let Some(from) = step.big_from {
            files.insert(format!("{}.big", step.name), big(from));
        }
    }
    files
}

fn big(from: u64) -> Vec<u8> {
    let numbers = |from: u64| (from..from + BIG_NUMBERS).map(|n| format!("{n}\n")).collect::<String>().into_bytes();
    [numbers(from), vec![0; BIG_MIB * 1024 * 1024], numbers(from + BIG_NUMBERS)].concat()
}

/// A digest as `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The names of the files that are published.
pub fn published(steps: &[Step]) -> Vec<String> {
    steps.iter().filter(|step| step.publishes).flat_map(Step::files).collect()
}
