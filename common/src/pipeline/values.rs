//! Durations, sizes and the other small forms. Each gives the form that it expects as its error.

use super::expand::RESERVED_MOUNTS;
use super::limits::{CPU_MAX_MILLIS, CPU_MIN_MILLIS};
use crate::digest::Digest;
use crate::id::SecretName;
use crate::job::{Device, HostPath};
use crate::path::RelPath;
use crate::rights::CAPABILITIES;
use std::ops::RangeInclusive;
use std::str::FromStr as _;

/// Whole seconds.
pub(super) fn duration_secs(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let readable = |secs: u64| humantime::format_duration(std::time::Duration::from_secs(secs)).to_string();
    let expected = || {
        let (least, most) = (readable(*range.start()), readable(*range.end()));
        format!("a duration with units, such as `90s` or `1h 30m`, from {least} to {most}")
    };
    let duration = humantime::parse_duration(text).map_err(|_| expected())?;
    let secs = duration.as_secs();
    if duration.subsec_nanos() == 0 && range.contains(&secs) { Ok(secs) } else { Err(expected()) }
}

/// Bytes. A number needs its unit: `memory: 2` would be two bytes.
pub(super) fn size_bytes(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let expected = || {
        let (least, most) = (bytesize::ByteSize(*range.start()), bytesize::ByteSize(*range.end()));
        format!("a size with its unit, such as `512MiB` or `2GB`, from {least} to {most}")
    };
    if text.ends_with(|c: char| c.is_ascii_digit()) {
        return Err(expected());
    }
    let bytes = bytesize::ByteSize::from_str(text).map_err(|_| expected())?.as_u64();
    if range.contains(&bytes) { Ok(bytes) } else { Err(expected()) }
}

/// Thousandths of a processor, from `2`, `0.5` or `500m`.
pub(super) fn cpu_millis(text: &str) -> Result<u32, String> {
    let (least, most) = (CPU_MIN_MILLIS, CPU_MAX_MILLIS / 1000);
    let expected = || format!("a number of processors such as `2`, `0.5` or `500m`, from {least}m to {most}");
    let millis = match text.strip_suffix('m') {
        Some(millis) => digits(millis),
        None => {
            let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
            // Three places: `0.5` is `500` thousandths.
            let part = (1..=3).contains(&part.len()).then(|| format!("{part:0<3}")).and_then(|part| digits(&part));
            digits(whole).zip(part).map(|(whole, part)| whole.saturating_mul(1000).saturating_add(part))
        }
    };
    let millis = millis.filter(|millis| (CPU_MIN_MILLIS..=CPU_MAX_MILLIS).contains(millis)).ok_or_else(expected)?;
    u32::try_from(millis).map_err(|_| expected())
}

/// A whole number up to `most`.
pub(super) fn count(text: &str, most: u64) -> Result<u32, String> {
    let number = digits(text).filter(|number| *number <= most).and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| format!("a whole number from 0 to {most}"))
}

/// A compression level.
pub(super) fn level(text: &str, levels: RangeInclusive<u8>) -> Result<u8, String> {
    let level = digits(text).and_then(|number| u8::try_from(number).ok()).filter(|level| levels.contains(level));
    level.ok_or_else(|| format!("a whole number from {} to {}", levels.start(), levels.end()))
}

fn digits(text: &str) -> Option<u64> {
    // `parse` alone would take a sign.
    if text.is_empty() || text.bytes().any(|b| !b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// A device below /dev; a `?` behind it makes it optional.
pub(super) fn device(text: &str) -> Result<Device, String> {
    let (path, optional) = text.strip_suffix('?').map_or((text, false), |path| (path, true));
    let inside = path.strip_prefix("/dev/").is_some_and(|rest| rest.parse::<RelPath>().is_ok());
    if inside && !path.contains(':') {
        Ok(Device { path: path.to_owned(), optional })
    } else {
        Err("a path below /dev, such as `/dev/kvm`, with a `?` behind it if the host may lack it".to_owned())
    }
}

/// A secret's name; a `?` behind it makes it optional.
pub(super) fn secret(text: &str) -> Result<(SecretName, bool), String> {
    let (name, optional) = text.strip_suffix('?').map_or((text, false), |name| (name, true));
    let name = name
        .parse()
        .map_err(|_| "the name of a secret, such as `signing-key`, with a `?` behind it if the step can do without");
    Ok((name?, optional))
}

/// `/HOST/PATH`, `/HOST/PATH:/PATH`, and `:rw` behind either.
pub(super) fn host_path(text: &str) -> Result<HostPath, String> {
    let (paths, writable) = text.strip_suffix(":rw").map_or((text, false), |paths| (paths, true));
    let (source, target) = paths.split_once(':').unwrap_or((paths, paths));
    let is_path = |path: &str| {
        path.strip_prefix('/').is_some_and(|rest| rest.parse::<RelPath>().is_ok()) && !path.contains([':', ','])
    };
    let is_free = !RESERVED_MOUNTS
        .iter()
        .any(|reserved| target.strip_prefix(reserved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if is_path(source) && is_path(target) && is_free {
        Ok(HostPath { source: source.to_owned(), target: target.to_owned(), writable })
    } else {
        Err("a path on the host such as `/srv/ccache`, with the path in the container (`/srv/ccache:/ccache`, not below /work, \
             /railyard, /run/secrets, /proc, /sys or /dev) and `:rw` behind it where they are needed"
            .to_owned())
    }
}

/// `default`, or a capability without its `CAP_`. The error is the list of what there is.
pub(super) fn capability(text: &str) -> Result<String, Vec<&'static str>> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if text.eq_ignore_ascii_case("default") {
        Ok("default".to_owned())
    } else if CAPABILITIES.contains(&name) {
        Ok(name.to_owned())
    } else {
        Err(std::iter::once("default").chain(CAPABILITIES).collect())
    }
}

/// Whether `text` can be the name of an environment variable.
pub(super) fn is_env_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether `text` can be the name of a label: `kvm`, `example.org/rack`.
pub(super) fn is_label_name(text: &str) -> bool {
    text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_/".contains(&b))
}

/// Whether `text` can be an image reference: `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`.
pub(super) fn is_image_reference(text: &str) -> bool {
    let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    let (path, tag) = match rest.rsplit_once(':') {
        // A colon before a slash is the one of a port.
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    let (host, name) = match path.split_once('/') {
        Some((host, name)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), name),
        _ => (None, path),
    };
    let word = |text: &str, more: &[u8]| {
        text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || more.contains(&b))
    };
    text.len() <= 255
        && host.is_none_or(|host| word(host, b".-:"))
        && name.split('/').all(|part| word(part, b"._-") && !part.bytes().any(|b| b.is_ascii_uppercase()))
        && tag.is_none_or(|tag| tag.len() <= 128 && word(tag.trim_start_matches('_'), b"._-"))
        && digest.is_none_or(|digest| digest.parse::<Digest>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_of_whole_seconds_in_their_range() {
        for (text, want) in [("90s", Some(90)), ("1h 30m", Some(5400)), ("2h", Some(7200)), ("1m30s", Some(90))] {
            assert_eq!(duration_secs(text, 1..=100_000).ok(), want, "{text}");
        }
        for bad in
            ["", "30", "0", "0s", "-1s", "500ms", "2d", "1h 30", "99999999999999999999s", "18446744073709551615y"]
        {
            assert!(duration_secs(bad, 1..=100_000).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_sizes_with_units() {
        for (text, want) in [("2GiB", 2 << 30), ("512MiB", 512 << 20), ("2GB", 2_000_000_000), ("1.5 GiB", 3 << 29)] {
            assert_eq!(size_bytes(text, 1..=u64::MAX), Ok(want), "{text}");
        }
        for bad in ["", "2", "GiB", "-2GiB", "2 potatoes", "0GiB", "1e9GiB", "..GiB"] {
            assert!(size_bytes(bad, 1..=1 << 50).is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_processors() {
        for (text, want) in [("2", 2000), ("0.5", 500), ("500m", 500), ("1.25", 1250), ("0.010", 10)] {
            assert_eq!(cpu_millis(text), Ok(want), "{text}");
        }
        for bad in ["", "0", "0.001", "-1", "+1", ".5", "1.", "2000", "1.2345", "5 m", "99999999999999999999", "ä"] {
            assert!(cpu_millis(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn capabilities_lose_their_prefix() {
        assert_eq!(capability("CAP_SYS_ADMIN").as_deref(), Ok("SYS_ADMIN"));
        assert_eq!(capability("sys_admin").as_deref(), Ok("SYS_ADMIN"));
        assert_eq!(capability("default").as_deref(), Ok("default"));
        assert!(capability("SYS_ADMIM").is_err());
        assert!(CAPABILITIES.is_sorted());
    }

    #[test]
    fn devices_stay_below_dev() {
        assert_eq!(device("/dev/kvm?"), Ok(Device { path: "/dev/kvm".to_owned(), optional: true }));
        for bad in ["kvm", "/dev/", "/dev/../etc/shadow", "/etc/shadow", "/dev/kvm:/dev/x", "?"] {
            assert!(device(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn host_paths_are_absolute_and_leave_the_farm_s_own_alone() {
        let path = |source: &str, target: &str, writable| {
            Ok(HostPath { source: source.to_owned(), target: target.to_owned(), writable })
        };
        assert_eq!(host_path("/srv/ccache"), path("/srv/ccache", "/srv/ccache", false));
        assert_eq!(host_path("/srv/c:/ccache:rw"), path("/srv/c", "/ccache", true));
        assert_eq!(host_path("/srv/c:rw"), path("/srv/c", "/srv/c", true));
        for bad in ["", "/", "srv", "/srv/../etc", "/srv:x", "/srv:/work/x", "/proc", "/srv:/x:ro", "/srv:/", "/a,b"] {
            assert!(host_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn image_references_are_what_registries_take() {
        let digest = format!("a/b@{}", Digest::of(b""));
        for good in ["debian", "debian:bookworm", "h.example:5000/a/b:v1", "h.example:5000/a", "localhost/a:A", &digest]
        {
            assert!(is_image_reference(good), "{good}");
        }
        for bad in
            ["", "-a", "a b", "/a", "a/", "a//b", "a:", "$x", "Debian", "a:1+2", "a@sha256:00", "a:b:c", "@", ":"]
        {
            assert!(!is_image_reference(bad), "{bad}");
        }
    }
}
