//! What a sweep finds in the cache: paths, and the manifests of builds.

use super::{Target, texts};
use railyard_common::manifest::References;
use railyard_common::object::Object;
use railyard_common::path::RelPath;
use railyard_common::{blob::Blob, layout};

pub const MANIFEST: Target = Target {
    name: "manifest",
    parse,
    examples: || {
        texts(&[
            "builds/mini/1.0.0/build.json\n{\"schema_version\":1,\"build\":\"mini/1.0.0\",\"verdict\":\"succeeded\",\"jobs\":[{\"artifacts\":[{\"path\":\"a\",\"blob\":{\"digest\":\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"size_bytes\":0,\"stored_bytes\":0},\"media_type\":\"\",\"published\":\"images/a\"}]}]}",
            "blobs/sha256/e3/e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.zst.sha256\n{\"schema_version\":2}",
            "logs/mini/1.0.0/a-linux-amd64/1.log.zst\n[]",
            "builds/mini/channels/alpha/latest.json\n{}",
            "blobs/~end\n{\"schema_version\":1,\"build\":\"mini/1\",\"verdict\":\"failed\",\"untrusted\":true,\"jobs\":[]}",
        ])
    },
    words: &[
        "builds/",
        "blobs/sha256/",
        "logs/",
        "/~end",
        "build.json",
        ".zst",
        ".sha256",
        "..",
        "//",
        "\n{",
        "\"schema_version\":1",
        "\"schema_version\":18446744073709551616",
        "\"build\":\"",
        "\"jobs\":[",
        "\"image\":{",
        "\"layers\":[",
        "\"config\":",
        "\"published\":\"",
        "\"stored_bytes\":18446744073709551615",
        "\"verdict\":\"succeeded\"",
        "null",
        "[[[[",
        "\\u0000",
    ],
    max_len: 16 * 1024,
    memory_factor: 200,
    memory_base: 0,
};

fn parse(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let (path, manifest) = text.split_once('\n').unwrap_or((&text, ""));
    let object = path.parse::<RelPath>().map(|path| (Object::at(&path), path));
    let found = match &object {
        Err(_) => "no path",
        Ok((Object::Blob { digest, encoding, beside }, path)) => {
            // What is taken for a blob is deleted as one: it must lie where that blob does.
            let blob = Blob { encoding: *encoding, ..Blob::plain(*digest, 0) };
            let place = if *beside { layout::stored_digest(&blob) } else { layout::blob(&blob) };
            assert_eq!(place, *path);
            "a blob"
        }
        Ok((Object::Manifest(build), path)) => {
            assert_eq!(layout::build_manifest(build), *path);
            "a manifest"
        }
        Ok((Object::Record(build) | Object::Log(build), path)) => {
            let own = format!("/{}/{}/", build.pipeline, build.version);
            assert!(path.as_str().contains(&own), "{path} is said to be of {build}");
            "of a build"
        }
        Ok((Object::Shared, _)) => "shared",
        Ok((Object::End, _)) => "an end",
        Ok((Object::Foreign, _)) => "foreign",
    };
    let read = match References::read(manifest.as_bytes()) {
        Ok(said) => {
            assert!(said.published.len() <= said.blobs.len());
            "read"
        }
        Err(_) => "refused",
    };
    format!("{found}, {read}")
}
