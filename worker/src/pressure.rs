//! Pressure: what the kernel says of processes that stand still for want of memory or of the disk.
//!
//! The files below `/proc/pressure` (`Documentation/accounting/psi.rst` of the kernel) give it as percentages of time. `full` is
//! the time in which nothing got on at all; a host that only has much to do stays near zero. A kernel without them, or with
//! them switched off, says nothing, and that is nothing against more jobs.

use crate::config::PressureConfig;
use railyard_proto::v1::{Pressure, Scarce};
use std::path::{Path, PathBuf};

/// Where the kernel says it.
pub const PROC_PRESSURE: &str = "/proc/pressure";

/// Reads the host's pressure, and judges it.
#[derive(Debug)]
pub struct Gauge {
    dir: PathBuf,
    limits: PressureConfig,
    /// What was told last.
    told: Option<Scarce>,
}

impl Gauge {
    /// Reads below `dir`.
    pub fn new(dir: &Path, limits: PressureConfig) -> Self {
        Self { dir: dir.to_owned(), limits, told: None }
    }

    /// What speaks against more jobs now. Once over its limit, it has to fall to half of that to be over: else jobs would come
    /// and go with every breath.
    pub fn read(&mut self) -> Option<Pressure> {
        let scarce =
            [(Scarce::Memory, "memory", self.limits.memory_percent), (Scarce::Io, "io", self.limits.io_percent)];
        let mut found = scarce.into_iter().filter(|(_, _, limit)| *limit > 0).filter_map(|(scarce, file, limit)| {
            let text = std::fs::read_to_string(self.dir.join(file)).ok()?;
            let percent = stalled_percent(&text)?;
            let limit = if self.told == Some(scarce) { limit.div_ceil(2) } else { limit };
            (percent >= limit).then(|| Pressure { scarce: scarce.into(), percent })
        });
        let now = found.next();
        let scarce = now.as_ref().map(Pressure::scarce);
        if scarce != self.told {
            match now {
                Some(Pressure { percent, .. }) => {
                    tracing::warn!(
                        ?scarce,
                        percent,
                        "this host is under pressure; nothing new is taken until that is over"
                    );
                }
                None => tracing::info!("the pressure is over"),
            }
        }
        self.told = scarce;
        now
    }
}

/// The percentage of the last ten seconds in which nothing got on.
fn stalled_percent(text: &str) -> Option<u32> {
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    let average = full.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?;
    average.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a kernel 6.1 wrote it, but for the figure.
    fn file(full: &str) -> String {
        format!(
            "some avg10=91.12 avg60=33.79 avg300=12.80 total=468072139\n\
             full avg10={full} avg60=0.01 avg300=0.02 total=103840896\n"
        )
    }

    fn gauge(dir: &Path) -> Gauge {
        Gauge::new(dir, PressureConfig { memory_percent: 10, io_percent: 60 })
    }

    fn told(gauge: &mut Gauge) -> Option<(Scarce, u32)> {
        gauge.read().map(|pressure| (pressure.scarce(), pressure.percent))
    }

    #[test]
    fn a_host_that_stands_still_takes_nothing_new_until_it_moves_again() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, full: &str| std::fs::write(dir.path().join(name), file(full)).unwrap();
        let mut gauge = gauge(dir.path());
        write("memory", "9.99");
        write("io", "59.99");
        assert_eq!(told(&mut gauge), None, "that others wait now and then is no pressure");
        write("io", "60.00");
        assert_eq!(told(&mut gauge), Some((Scarce::Io, 60)));
        write("io", "30.00");
        assert_eq!(told(&mut gauge), Some((Scarce::Io, 30)), "not over yet");
        write("memory", "12.34");
        assert_eq!(told(&mut gauge), Some((Scarce::Memory, 12)), "memory comes first");
        write("memory", "4.99");
        assert_eq!(told(&mut gauge), None);
        write("io", "30.00");
        assert_eq!(told(&mut gauge), None);
    }

    #[test]
    fn a_kernel_that_does_not_tell_and_a_limit_of_0_are_nothing_against_jobs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(told(&mut gauge(&dir.path().join("none"))), None);
        for text in ["", "full\n", "full avg10= total=1\n", "some avg10=99.00 avg60=99.00 avg300=99.00 total=1\n"] {
            std::fs::write(dir.path().join("memory"), text).unwrap();
            assert_eq!(told(&mut gauge(dir.path())), None, "{text:?}");
        }
        std::fs::write(dir.path().join("memory"), file("99.00")).unwrap();
        assert_eq!(told(&mut gauge(dir.path())), Some((Scarce::Memory, 99)));
        let mut off = Gauge::new(dir.path(), PressureConfig { memory_percent: 0, io_percent: 0 });
        assert_eq!(told(&mut off), None);
    }
}
