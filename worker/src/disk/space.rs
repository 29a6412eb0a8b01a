//! How full a file system is, and what is too full.

use bytesize::ByteSize;
use nix::sys::statvfs::statvfs;
use serde::Deserialize;
use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

/// When the worker makes room on the file systems that it uses. What it removes is what nobody needs, whatever that is, the least
/// recently used first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskConfig {
    /// With more in use, by whomever, it begins: a share such as `85%`, or a size such as `900GiB`. `100%`: never. Default: `85%`.
    pub high: Mark,
    /// It goes on until so much is in use, if it can; above `high` it counts as that. Default: `75%`.
    pub low: Mark,
    /// How often the worker looks for what it has left behind and nobody goes on with. Default: 300.
    pub reap_secs: u64,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self { high: Mark::Percent(85), low: Mark::Percent(75), reap_secs: 300 }
    }
}

/// So much of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Mark {
    /// A share.
    Percent(u8),
    /// A size.
    Bytes(ByteSize),
}

/// That is no mark.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a share such as \"85%\" nor a size such as \"900GiB\"")]
pub struct BadMark(String);

impl FromStr for Mark {
    type Err = BadMark;

    fn from_str(text: &str) -> Result<Self, BadMark> {
        let bad = || BadMark(text.to_owned());
        match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse().ok().filter(|p| *p <= 100).map(Self::Percent).ok_or_else(bad),
            // `85` would be 85 bytes, which nobody means.
            None if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => Err(bad()),
            None => text.parse().map(Self::Bytes).map_err(|_| bad()),
        }
    }
}

impl TryFrom<String> for Mark {
    type Error = BadMark;

    fn try_from(text: String) -> Result<Self, BadMark> {
        text.parse()
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

impl Mark {
    fn of(self, total_bytes: u64) -> u64 {
        match self {
            // Not the other way round, or it would not fit.
            Self::Percent(percent) => {
                total_bytes / 100 * u64::from(percent) + total_bytes % 100 * u64::from(percent) / 100
            }
            Self::Bytes(bytes) => bytes.as_u64().min(total_bytes),
        }
    }
}

/// How full a file system is. As `df` has it: what only root could still write counts as neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// In use, or free.
    pub total_bytes: u64,
    /// What can still be written.
    pub free_bytes: u64,
}

impl Space {
    /// That of the file system of `path`.
    ///
    /// # Errors
    /// If the file system cannot be asked.
    pub fn of(path: &Path) -> io::Result<Self> {
        let stat = statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let free_bytes = bytes(stat.blocks_available());
        let used_bytes = bytes(stat.blocks().saturating_sub(stat.blocks_free()));
        let total_bytes = used_bytes.saturating_add(free_bytes);
        let files = (stat.files().saturating_sub(stat.files_free()), stat.files_available());
        Ok(Self { total_bytes, free_bytes: free_bytes.min(free_for_files(total_bytes, files)) })
    }

    /// By whomever.
    pub fn used_bytes(&self) -> u64 {
        self.total_bytes.saturating_sub(self.free_bytes)
    }

    /// The high mark and the low one, as bytes in use. The low one is never the higher.
    pub fn marks(&self, config: &DiskConfig) -> (u64, u64) {
        let high = config.high.of(self.total_bytes);
        (high, config.low.of(self.total_bytes).min(high))
    }

    /// How much has to go; 0 if there is room enough.
    pub fn excess_bytes(&self, config: &DiskConfig) -> u64 {
        let (high, low) = self.marks(config);
        let used = self.used_bytes();
        if used > high { used - low } else { 0 }
    }
}

/// A file system that has no room for another file is as full as one that has none for another byte: the share of files that can
/// still be made, as bytes. Some make room for files as they are made, and tell of none.
fn free_for_files(total_bytes: u64, (used, free): (u64, u64)) -> u64 {
    match u128::from(used) + u128::from(free) {
        0 => total_bytes,
        // Never more than the total.
        all => u64::try_from(u128::from(total_bytes) * u128::from(free) / all).unwrap_or(total_bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_for_files_is_no_room() {
        assert_eq!([(0, 0), (0, 9), (5, 5), (9, 0)].map(|files| free_for_files(1000, files)), [1000, 1000, 500, 0]);
        assert_eq!(free_for_files(u64::MAX, (1, u64::MAX)), u64::MAX - 1);
    }

    fn config(high: &str, low: &str) -> DiskConfig {
        DiskConfig { high: high.parse().unwrap(), low: low.parse().unwrap(), ..DiskConfig::default() }
    }

    fn used(bytes: u64) -> Space {
        Space { total_bytes: 1000, free_bytes: 1000 - bytes }
    }

    #[test]
    fn above_the_high_mark_as_much_goes_as_brings_it_to_the_low_one() {
        let usual = DiskConfig::default();
        assert_eq!([0, 850, 851, 1000].map(|bytes| used(bytes).excess_bytes(&usual)), [0, 0, 101, 250]);
        let sizes = config("900B", "600B");
        assert_eq!([900, 901].map(|bytes| used(bytes).excess_bytes(&sizes)), [0, 301]);
        assert_eq!(used(1000).excess_bytes(&config("100%", "0%")), 0, "it can be switched off");
        assert_eq!(used(600).marks(&config("50%", "2TiB")), (500, 500));
        let big = Space { total_bytes: u64::MAX, free_bytes: 0 };
        assert!(big.excess_bytes(&usual) > 0);
    }

    #[test]
    fn marks_are_shares_or_sizes() {
        assert_eq!(
            ["85%", "7 %", "1GiB"].map(|text| text.parse()),
            [Ok(Mark::Percent(85)), Ok(Mark::Percent(7)), Ok(Mark::Bytes(ByteSize::gib(1)))]
        );
        for bad in ["", "%", "101%", "-1%", "much", "85", "0.9"] {
            assert!(bad.parse::<Mark>().unwrap_err().to_string().contains("neither"), "{bad}");
        }
        assert!(Space::of(Path::new("/")).unwrap().used_bytes() > 0);
    }
}
