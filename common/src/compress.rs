//! How a step's output is compressed.

use crate::path::{Glob, RelPath};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A format that the standard tools read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Codec {
    /// `zstd`
    Zstd,
    /// `xz`
    Xz,
    /// `gzip`
    Gzip,
    /// `bzip2`
    Bzip2,
}

impl Codec {
    /// Every codec.
    pub const ALL: [Self; 4] = [Self::Zstd, Self::Xz, Self::Gzip, Self::Bzip2];

    /// The name of its tool.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
        }
    }

    /// What its tool appends to a file's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Zstd => ".zst",
            Self::Xz => ".xz",
            Self::Gzip => ".gz",
            Self::Bzip2 => ".bz2",
        }
    }

    /// From fast to small. zstd goes on to 22 with windows that its tool refuses to read unless it is told to.
    pub fn levels(self) -> RangeInclusive<u8> {
        match self {
            Self::Zstd => 1..=19,
            Self::Xz => 0..=9,
            Self::Gzip | Self::Bzip2 => 1..=9,
        }
    }

    /// The level of its tool when nobody says otherwise.
    pub fn default_level(self) -> u8 {
        match self {
            Self::Zstd => 3,
            Self::Xz | Self::Gzip => 6,
            Self::Bzip2 => 9,
        }
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A codec and how much it tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packing {
    /// The format.
    pub codec: Codec,
    /// One of [`Codec::levels`].
    pub level: u8,
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.codec, self.level)
    }
}

/// What an output wants. As text: `auto`, `none`, or a codec and its level, `xz:6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Compress {
    /// Published files stay as they are. Others are stored and sent compressed where that pays; nobody sees it.
    #[default]
    Auto,
    /// Stored as it is.
    None,
    /// The artifact is the compressed file, and has the codec's suffix.
    With(Packing),
}

impl Compress {
    /// What it appends to the names of artifacts.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Auto | Self::None => "",
            Self::With(packing) => packing.codec.suffix(),
        }
    }

    /// Whether it is what an output has that says nothing.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// The text says no way to compress.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no way to compress: expected `auto`, `none`, or a codec and its level such as `xz:6`")]
pub struct BadCompress(pub String);

impl fmt::Display for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::With(Packing { codec, level }) => write!(f, "{codec}:{level}"),
        }
    }
}

impl FromStr for Compress {
    type Err = BadCompress;

    fn from_str(text: &str) -> Result<Self, BadCompress> {
        match text {
            "auto" => return Ok(Self::Auto),
            "none" => return Ok(Self::None),
            _ => {}
        }
        let packing = text.split_once(':').and_then(|(name, level)| {
            let codec = Codec::ALL.into_iter().find(|codec| codec.as_str() == name)?;
            let level = level.parse().ok().filter(|level| codec.levels().contains(level))?;
            Some(Packing { codec, level })
        });
        packing.map(Self::With).ok_or_else(|| BadCompress(text.to_owned()))
    }
}

impl TryFrom<String> for Compress {
    type Error = BadCompress;

    fn try_from(text: String) -> Result<Self, BadCompress> {
        text.parse()
    }
}

impl From<Compress> for String {
    fn from(compress: Compress) -> Self {
        compress.to_string()
    }
}

/// Which artifacts an output leaves: files that match a glob, under names with a suffix behind.
#[derive(Clone, Debug)]
pub struct ArtifactMatcher {
    files: globset::GlobMatcher,
    suffix: &'static str,
}

impl ArtifactMatcher {
    /// Those of files that `glob` matches, compressed like that.
    pub fn new(glob: &Glob, compress: Compress) -> Self {
        Self { files: glob.matcher(), suffix: compress.suffix() }
    }

    /// Whether an artifact of that path may be one.
    pub fn is_match(&self, artifact: &str) -> bool {
        artifact.strip_suffix(self.suffix).is_some_and(|file| self.files.is_match(file))
    }

    /// The name of the artifact that `file` becomes; `None` if the glob does not match it.
    ///
    /// # Errors
    /// A name that is too long with the suffix.
    pub fn artifact_of(&self, file: &str) -> Option<Result<RelPath, crate::path::BadPath>> {
        self.files.is_match(file).then(|| format!("{file}{}", self.suffix).parse())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_reads_as_it_is_written() {
        let named = Codec::ALL.into_iter().flat_map(|codec| {
            let levels = codec.levels().chain([codec.default_level()]);
            levels.map(move |level| Compress::With(Packing { codec, level }))
        });
        for compress in named.chain([Compress::Auto, Compress::None]) {
            assert_eq!(compress.to_string().parse(), Ok(compress));
        }
        for bad in ["", "xz", "xz:10", "zstd:0", "zstd:22", "gzip:0", "lz4:1", "xz:-1", "XZ:6", "xz:6:7"] {
            assert!(bad.parse::<Compress>().is_err(), "{bad}");
        }
    }

    #[test]
    fn artifacts_are_known_by_their_suffix() {
        let matcher =
            |glob: &str, compress: &str| ArtifactMatcher::new(&glob.parse().unwrap(), compress.parse().unwrap());
        for (glob, compress, artifact, want) in [
            ("out/*", "auto", "out/a.xz", true),
            ("out/*", "xz:6", "out/a.xz", true),
            ("out/*", "xz:6", "out/a", false),
            ("out/**", "gzip:1", "out/deep/a.gz", true),
            ("**", "bzip2:9", "a.bz2", true),
            ("out/{a,b/**}", "zstd:3", "out/b/c/d.zst", true),
            ("out/a.xz", "xz:6", "out/a.xz", false),
            ("out/a.xz", "xz:6", "out/a.xz.xz", true),
        ] {
            assert_eq!(matcher(glob, compress).is_match(artifact), want, "{glob} {compress} {artifact}");
        }
        let made = matcher("out/*", "xz:6").artifact_of("out/disk.raw").unwrap().unwrap();
        assert_eq!(made.as_str(), "out/disk.raw.xz");
        assert!(matcher("out/*", "xz:6").artifact_of("disk.raw").is_none());
        let longest = "x".repeat(255);
        assert!(matcher("*", "xz:6").artifact_of(&longest).unwrap().is_err());
    }
}
