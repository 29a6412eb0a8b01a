//! Compiles the protocol without protoc, and keeps the descriptor set for server reflection.

use prost::Message as _;

/// Messages with a secret in them.
const SECRET: [&str; 4] = ["SetSecretRequest", "SecretFile", "EnrolRequest", "CreateTokenResponse"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "railyard/v1/types.proto",
        "railyard/v1/worker.proto",
        "railyard/v1/client.proto",
        "railyard/v1/admin.proto",
        "railyard/v1/access.proto",
    ];
    for file in files {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // The codec looks up what a message may be by its name.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    // Their debug output is written by hand: it must not show what nobody may see.
    config.skip_debug(SECRET.map(|message| format!(".railyard.v1.{message}")));
    tonic_prost_build::configure()
        .bytes(".railyard.v1.LogBatch.data")
        .bytes(".railyard.v1.LogChunk.data")
        .codec_path("crate::bounded::Codec")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
