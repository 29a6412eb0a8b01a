//! Configuration files.

use super::{Target, texts};
use railyard_controller::ControllerConfig;
use railyard_service::config::{ConfigError, parse as read};
use railyard_worker::WorkerConfig;
use std::path::Path;

pub const CONFIG: Target = Target {
    name: "config",
    parse,
    examples: || {
        texts(&[
            "data_dir = \"/d\"\nlisten = \"0.0.0.0:7411\"\npublic_url = \"https://f:7411\"\nlog_max = \"1GiB\"\nnames = [\"a\"]\n[cache]\nkind = \"embedded\"\ndir = \"/c\"\npublic_read = true\n",
            "data_dir = \"/d\"\n[cache]\nkind = \"s3\"\nbucket = \"b\"\nregion = \"r\"\n[limits]\nrequests_per_client = 5\n",
            "data_dir = \"/d\"\n[[policy]]\nname = \"images\"\npipelines = [\"flatcar\", \"mini-*\"]\nallow = [\"privileged\", \"devices:/dev/kvm\", \"host-paths:/srv/c:rw\", \"capabilities:SYS_ADMIN\"]\n[[policy]]\nname = \"changes\"\npipelines = [\"*\"]\nallow = [\"devices:/dev/kvm\"]\nuntrusted = true\n",
            "data_dir = \"/d\"\nsweep = { every = \"1h\", grace = \"1day\", deletes_per_sec = 10, max_bytes = \"7TB\" }\n[[retention]]\npipelines = [\"os\", \"m-*\"]\nchannels = [\"nightly\"]\nkeep_last = 50\nkeep_releases = \"all\"\nold = \"published\"\nold_max_age = \"1y\"\nmax_bytes = \"1TiB\"\nlow_bytes = \"900GiB\"\n",
            "controller = \"https://f\"\nname = \"w\"\nca = \"a\"\ncert = \"b\"\nkey = \"c\"\ndata_dir = \"/d\"\ncapacity = { cpu_millis = 8000, memory = \"32GiB\" }\nlabels = { kvm = \"yes\" }\n",
            "controller = \"https://f:7411\"\nname = \"w\"\ndata_dir = \"/d\"\ndisk = { high = \"85%\", low = \"900GiB\" }\n[network]\ndeny = [\"host\", \"link-local\", \"metadata\", \"controller\", \"10.0.0.0/8\"]\nallow = [\"10.0.0.5:3128\"]\nunguarded = \"refuse\"\n",
        ])
    },
    words: &[
        "data_dir = ",
        "listen = ",
        "[cache]\n",
        "[[policy]]\n",
        "[[retention]]\n",
        "max_age = \"99999999999y\"",
        "keep_releases = 4294967296",
        "allow = [\"host-paths:/\"]",
        "untrusted = true",
        "[[a]]\n",
        "a.b.c = ",
        "{",
        "}",
        "\"\"\"",
        "'''",
        "\\u0000",
        "1979-05-27T07:32:00Z",
        "0x",
        "inf",
        "nan",
        "limits = ",
        "9223372036854775807",
        "-9223372036854775808",
        "\"1EiB\"",
        "\"99999999TiB\"",
        "public_url = \"https://[::1]:1\"",
        "#",
        "=",
        "\r\n",
    ],
    max_len: 16 * 1024,
    memory_factor: 500,
    memory_base: 0,
};

fn parse(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let file = Path::new("f.toml");
    let controller = match read::<ControllerConfig>(&text, file) {
        Ok(config) => {
            let names = config.server_names();
            assert!(names.len() >= 3 && config.url(config.listen).starts_with("http") | config.public_url.is_some());
            format!("{:?}", config.cache()).split([' ', '(']).next().unwrap_or_default().to_owned()
        }
        Err(error) => said(&error, &text),
    };
    let worker =
        read::<WorkerConfig>(&text, file).map_or_else(|error| said(&error, &text), |_| "a worker's".to_owned());
    format!("{controller} / {worker}")
}

fn said(error: &ConfigError, text: &str) -> String {
    let ConfigError::Parse { line, column, message, .. } = error else { panic!("nothing was read from a disk") };
    assert!(*line >= 1 && *column >= 1 && *line <= text.split('\n').count(), "{error}");
    message.clone()
}
