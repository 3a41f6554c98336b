//! Compiles the `.proto` files with protox, so that no `protoc` has to be installed.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "longshore/v1/model.proto",
        "longshore/v1/loader.proto",
        "longshore/v1/holder.proto",
        "longshore/v1/worker.proto",
        "longshore/v1/checkpoint.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    std::fs::write(out.join("longshore.bin"), descriptors.encode_to_vec())?;
    // Few tensors have one, and lists of a hundred thousand are half as long without room for it.
    tonic_prost_build::configure().boxed(".longshore.v1.Tensor.piece").compile_fds(descriptors)?;
    Ok(())
}
