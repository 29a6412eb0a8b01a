//! The jobs of a build as a tree of what they wait for.
//!
//! A job with several needs hangs below the one that is farthest from the start, the one it is likely to wait for
//! longest; the others are named behind it, but for those that another need waits for anyway.

use super::ansi;
use super::style::{Style, Tone};
use crate::view::Build;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// One line per job.
pub fn graph(build: &Build, style: Style) -> String {
    let depth = depths(build);
    let parent_of = |index: usize| {
        let needs = build.jobs[index].needs.iter().filter_map(|need| position(build, need));
        needs.filter(|&need| depth[need] < depth[index]).max_by_key(|&need| (depth[need], need))
    };
    let mut children: BTreeMap<Option<usize>, Vec<usize>> = BTreeMap::new();
    for index in 0..build.jobs.len() {
        children.entry(parent_of(index)).or_default().push(index);
    }
    let drawing = Drawing { build, style, ancestors: ancestors(build), children };
    let mut text = String::new();
    for &root in drawing.children.get(&None).into_iter().flatten() {
        drawing.draw(root, "", "", &mut text);
    }
    text
}

fn position(build: &Build, name: &str) -> Option<usize> {
    build.jobs.iter().position(|job| job.name == name)
}

/// How many jobs must run one after the other before each. Jobs are listed dependencies first; a need that comes later
/// (which no farm sends) is ignored rather than followed in a circle.
fn depths(build: &Build) -> Vec<usize> {
    let mut depth = vec![0; build.jobs.len()];
    for index in 0..build.jobs.len() {
        let needs = build.jobs[index].needs.iter().filter_map(|need| position(build, need));
        depth[index] = needs.filter(|&need| need < index).map(|need| depth[need] + 1).max().unwrap_or(0);
    }
    depth
}

/// For each job, every job that must end before it begins.
fn ancestors(build: &Build) -> Vec<BTreeSet<usize>> {
    let mut all: Vec<BTreeSet<usize>> = Vec::with_capacity(build.jobs.len());
    for index in 0..build.jobs.len() {
        let mut found = BTreeSet::new();
        for need in build.jobs[index].needs.iter().filter_map(|need| position(build, need)).filter(|&need| need < index)
        {
            found.insert(need);
            found.extend(&all[need]);
        }
        all.push(found);
    }
    all
}

struct Drawing<'a> {
    build: &'a Build,
    style: Style,
    ancestors: Vec<BTreeSet<usize>>,
    children: BTreeMap<Option<usize>, Vec<usize>>,
}

impl Drawing<'_> {
    /// Whether waiting for `job` is waiting for `earlier` as well.
    fn implies(&self, job: &str, earlier: &str) -> bool {
        let found = position(self.build, job).zip(position(self.build, earlier));
        found.is_some_and(|(job, earlier)| self.ancestors[job].contains(&earlier))
    }

    fn draw(&self, index: usize, before: &str, before_children: &str, text: &mut String) {
        let job = &self.build.jobs[index];
        let parent = self.children.iter().find(|(_, list)| list.contains(&index)).and_then(|(parent, _)| *parent);
        let parent = parent.map(|parent| self.build.jobs[parent].name.as_str());
        let news = |need: &&str| Some(*need) != parent && !job.needs.iter().any(|other| self.implies(other, need));
        let others: Vec<&str> = job.needs.iter().map(String::as_str).filter(news).collect();
        let state = self.style.paint(Tone::from(job.state), job.state.as_str());
        let _ = write!(text, "{before}{}  {state}", ansi::one_line(&job.name));
        if !others.is_empty() {
            let note = format!("  (also after {})", ansi::one_line(&others.join(", ")));
            text.push_str(&self.style.paint(Tone::Faint, &note));
        }
        text.push('\n');
        let below = self.children.get(&Some(index)).map_or(&[][..], Vec::as_slice);
        for (nth, &child) in below.iter().enumerate() {
            let (branch, trunk) = if nth + 1 == below.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            self.draw(child, &format!("{before_children}{branch}"), &format!("{before_children}{trunk}"), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::changes::tests::{build, job};

    #[test]
    fn draws_the_mini_distribution() {
        let sample = build(vec![
            job("sdk", &[]),
            job("packages", &["sdk"]),
            job("image", &["packages"]),
            job("vms.qcow2", &["image", "sdk"]),
            job("vms.vhd", &["image", "sdk"]),
            job("test", &["image", "sdk", "vms.qcow2", "vms.vhd"]),
            job("docs", &[]),
        ]);
        let want = "\
sdk  blocked
└─ packages  blocked
   └─ image  blocked
      ├─ vms.qcow2  blocked
      └─ vms.vhd  blocked
         └─ test  blocked  (also after vms.qcow2)
docs  blocked
";
        assert_eq!(graph(&sample, Style::PLAIN), want);
    }

    #[test]
    fn a_circle_does_not_hang() {
        let sample = build(vec![job("a", &["b"]), job("b", &["a"])]);
        assert_eq!(graph(&sample, Style::PLAIN), "a  blocked  (also after b)\n└─ b  blocked\n");
    }
}
