//! The configuration of images that the farm makes.

use crate::runtime::LocalImage;
use bytes::Bytes;
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;
use serde_json::{Value, json};

/// What the engine writes for an image without a date; a fixed one, so that the same layers give the same image.
const NO_DATE: &str = "1970-01-01T00:00:00Z";

/// The configuration of a container's file system as an image: the layers of `base` and what is on top of them, and the settings
/// of `base` as well. `created` is when, in RFC 3339.
///
/// An engine would have every container of the next step inherit this step's environment, script and labels; and some
/// write their own architecture into every image that they commit.
pub fn layered(base: &LocalImage, layers: &[Digest], created: &str, by: &str) -> Bytes {
    let kept = base.layers.len().min(layers.len());
    let history = (0..layers.len()).map(|n| if n < kept { "an earlier image" } else { by });
    render(&base.architecture, created, &base.config, layers, history)
}

/// The configuration of a root tarball as an image.
pub fn imported(platform: Platform, layer: Digest, by: &str) -> Bytes {
    render(platform.arch(), NO_DATE, &json!({}), &[layer], std::iter::once(by))
}

fn render<'a>(
    architecture: &str,
    created: &str,
    config: &Value,
    layers: &[Digest],
    history: impl Iterator<Item = &'a str>,
) -> Bytes {
    let history: Vec<Value> = history.map(|by| json!({ "created": created, "created_by": by })).collect();
    let image = json!({
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": config,
        "history": history,
        "rootfs": { "type": "layers", "diff_ids": layers },
    });
    // A `Value` writes its keys in order, so that equal images have equal bytes.
    Bytes::from(image.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_keeps_the_settings_of_its_base() {
        let base = LocalImage {
            id: "sha256:0".into(),
            os: "linux".into(),
            architecture: "arm64".into(),
            created: "2026-01-01T00:00:00Z".into(),
            layers: vec![Digest::of(b"1")],
            config: json!({ "Env": ["PATH=/bin"] }),
            size_bytes: 0,
        };
        let layers = [base.layers[0], Digest::of(b"2")];
        let created = "2026-02-03T04:05:06Z";
        let config: Value = serde_json::from_slice(&layered(&base, &layers, created, "step x")).unwrap();
        assert_eq!(config["created"], created);
        assert_eq!(config["config"], base.config);
        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
        assert_eq!(config["history"][1]["created_by"], "step x");
    }
}
