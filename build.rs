//! Compiles `proto/` to Rust, with its descriptors for reflection, for the feature `service`.

#[cfg(not(feature = "service"))]
fn main() {}

#[cfg(feature = "service")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::{env, fs, path::PathBuf};

    use protox::prost::Message as _;

    let files = [
        "proto/tessera/v1/image.proto",
        "proto/tessera/v1/job_service.proto",
        "proto/tessera/v1/model_service.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    config.enable_type_names();
    // Maps in the order of their keys, so that equal messages have equal bytes.
    config.btree_map(["."]);
    tonic_prost_build::configure()
        .build_transport(true)
        .codec_path("crate::api::codec::ApiCodec")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
