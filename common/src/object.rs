//! What an object of the cache is, by its path: the other way round of [`crate::layout`].

use crate::blob::Encoding;
use crate::digest::Digest;
use crate::id::{BuildId, PipelineName, Version};
use crate::path::RelPath;
use crate::planted::{self, Bug};

/// What lies at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// A blob, or with `beside`, what is noted beside one.
    Blob {
        /// Which.
        digest: Digest,
        /// In which form.
        encoding: Encoding,
        /// It is the note of the digest of the stored bytes.
        beside: bool,
    },
    /// A build's manifest.
    Manifest(BuildId),
    /// Something else that is kept for one build.
    Record(BuildId),
    /// A log of a build.
    Log(BuildId),
    /// An index, or another file that is not one build's.
    Shared,
    /// See [`crate::layout::end_mark`].
    End,
    /// Nothing that the farm would put there.
    Foreign,
}

impl Object {
    /// What lies at `path`, which is below one of the farm's own directories.
    pub fn at(path: &RelPath) -> Self {
        let mut parts = path.as_str().split('/');
        if path.file_name() == "~end" && path.as_str().matches('/').count() == 1 {
            return Self::End;
        }
        match parts.next() {
            Some("blobs") => blob(path).unwrap_or(Self::Foreign),
            Some("builds") => match owner(parts) {
                Owner::Build(build, "build.json") if path.as_str().matches('/').count() == 3 => Self::Manifest(build),
                Owner::Build(build, _) => Self::Record(build),
                Owner::Pipeline => Self::Shared,
                Owner::Nobody => Self::Foreign,
            },
            Some("logs") => match owner(parts) {
                Owner::Build(build, _) => Self::Log(build),
                Owner::Pipeline | Owner::Nobody => Self::Foreign,
            },
            _ => Self::Foreign,
        }
    }
}

fn blob(path: &RelPath) -> Option<Object> {
    let rest = path.as_str().strip_prefix("blobs/sha256/")?;
    let (shard, name) = rest.split_once('/')?;
    let (name, beside) = name.strip_suffix(".sha256").map_or((name, false), |name| (name, true));
    let (name, encoding) = match name.strip_suffix(".zst") {
        Some(name) => (name, Encoding::Zstd),
        None => (name, Encoding::Identity),
    };
    let digest = Digest::from_hex(name).ok()?;
    (shard.len() == 2 && name.starts_with(shard)).then_some(Object::Blob { digest, encoding, beside })
}

/// Whose a file below `builds` or `logs` is.
enum Owner<'a> {
    /// With the next part of the path.
    Build(BuildId, &'a str),
    /// It lies beside the builds' directories: `builds.json`, `latest.json`, or below `channels`.
    Pipeline,
    Nobody,
}

fn owner<'a>(mut parts: impl Iterator<Item = &'a str>) -> Owner<'a> {
    let Some(pipeline) = parts.next().and_then(|name| name.parse::<PipelineName>().ok()) else { return Owner::Nobody };
    match (parts.next().map(str::parse::<Version>), parts.next()) {
        (Some(Ok(version)), Some(name)) => {
            let version = if planted::is(Bug::SweepShortVersion) { shortened(&version) } else { version };
            Owner::Build(BuildId { pipeline, version }, name)
        }
        (Some(Err(_)), _) => Owner::Pipeline,
        _ => Owner::Nobody,
    }
}

/// What a match by substring makes of a version: `1.10` is taken for `1.1`.
fn shortened(version: &Version) -> Version {
    let text = version.as_str();
    text[..text.len() - 1].parse().unwrap_or_else(|_| version.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Blob;
    use crate::layout;

    fn at(text: &str) -> Object {
        Object::at(&text.parse().unwrap())
    }

    #[test]
    fn what_the_layout_makes_is_told_again() {
        let digest = Digest::of(b"x");
        let build: BuildId = "mini/1.10.0+x".parse().unwrap();
        for encoding in [Encoding::Identity, Encoding::Zstd] {
            let blob = Blob { encoding, ..Blob::plain(digest, 1) };
            assert_eq!(Object::at(&layout::blob(&blob)), Object::Blob { digest, encoding, beside: false });
            assert_eq!(Object::at(&layout::stored_digest(&blob)), Object::Blob { digest, encoding, beside: true });
        }
        assert_eq!(Object::at(&layout::build_manifest(&build)), Object::Manifest(build.clone()));
        assert_eq!(Object::at(&layout::placing(&build)), Object::Record(build.clone()));
        assert_eq!(Object::at(&layout::log(&build, &"a@linux/amd64".parse().unwrap(), 1)), Object::Log(build.clone()));
        assert_eq!(Object::at(&layout::builds_index(&build.pipeline)), Object::Shared);
        assert_eq!(Object::at(&layout::latest(&build.pipeline)), Object::Shared);
        for directory in layout::SWEPT {
            let end = layout::end_mark(directory);
            assert_eq!(Object::at(&end), Object::End);
            assert!(end.as_str() > format!("{directory}/sha256/zzz").as_str());
        }
        assert_eq!(at("builds/mini/channels/alpha/builds.json"), Object::Shared);
        assert_eq!(at("builds/mini/1/build.json/more"), Object::Record("mini/1".parse().unwrap()));
        assert_eq!(at("builds/mini/1/build.json/build.json"), Object::Record("mini/1".parse().unwrap()));
    }

    #[test]
    fn what_the_farm_did_not_put_there_is_foreign() {
        let hex = Digest::of(b"x").hex();
        for text in [
            "blobs/readme.txt",
            "blobs/sha256/zz/abc",
            "logs/mini/1",
            "builds/mini/stray",
            "images/x",
            "logs/Mini/1/x",
            "logs/mini/latest.json",
        ] {
            assert_eq!(at(text), Object::Foreign, "{text}");
        }
        for shard in ["00", &hex[..3], &hex[..1], ""] {
            let path = format!("blobs/sha256/{shard}/{hex}").replace("//", "/");
            assert_eq!(at(&path), Object::Foreign, "in the wrong directory: {path}");
        }
        assert_eq!(at(&format!("blobs/sha256/{}/{}", &hex[..2], hex.to_uppercase())), Object::Foreign);
    }
}
