//! The configuration of images that the farm makes.

use crate::runtime::LocalImage;
use bytes::Bytes;
use railyard_common::digest::Digest;
use railyard_common::platform::Platform;
use serde_json::{Value, json};

/// What the engine writes for an image without a date; a fixed one, so that the same layers give the same image.
const NO_DATE: &str = "1970-01-01T00:00:00Z";

/// The configuration of a committed container: the layers of `committed`, but the settings of `base`.
///
/// The engine would have every container of the next step inherit this step's environment, script and labels; and some
/// write their own architecture into every image that they commit.
pub fn committed(committed: &LocalImage, base: &LocalImage, by: &str) -> Bytes {
    let kept = base.layers.len().min(committed.layers.len());
    let history = (0..committed.layers.len()).map(|n| if n < kept { "an earlier image" } else { by });
    render(&base.architecture, &committed.created, &base.config, &committed.layers, history)
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
    fn a_committed_image_keeps_the_settings_of_its_base() {
        let base = LocalImage {
            id: "sha256:0".into(),
            os: "linux".into(),
            architecture: "arm64".into(),
            created: "2026-01-01T00:00:00Z".into(),
            layers: vec![Digest::of(b"1")],
            config: json!({ "Env": ["PATH=/bin"] }),
        };
        let mut image = base.clone();
        image.layers.push(Digest::of(b"2"));
        image.config = json!({ "Env": ["PATH=/bin", "RAILYARD_STEP=x"], "Cmd": ["/railyard/script"] });
        image.architecture = "amd64".into();
        let config: Value = serde_json::from_slice(&committed(&image, &base, "step x")).unwrap();
        assert_eq!(config["config"], base.config);
        assert_eq!(config["architecture"], "arm64");
        assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
        assert_eq!(config["history"][1]["created_by"], "step x");
    }
}
