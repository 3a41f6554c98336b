//! The program that `longshore exec` starts in the tests: attaches as its environment says, and prints what it finds.

use std::path::Path;

use anyhow::Context;
use longshore_tests::Attached;
use serde_json::json;
use sha2::{Digest, Sha256};

fn main() -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).with_context(|| format!("{name} is not set"));
    let attached =
        Attached::attach(Path::new(&variable("LONGSHORE_ATTACH_SOCKET")?), &variable("LONGSHORE_MODEL_ID")?)?;
    let digest = |region, offset_bytes, length_bytes| -> anyhow::Result<String> {
        let bytes = attached.read(region, offset_bytes, length_bytes)?;
        Ok(Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect())
    };
    let mut tensors = Vec::new();
    for tensor in &attached.model.tensors {
        tensors.push(json!({
            "name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.length_bytes,
            "sha256": digest(tensor.region, tensor.offset_bytes, tensor.length_bytes)?,
        }));
    }
    let mut files = Vec::new();
    for file in &attached.model.files {
        let sha256 = digest(file.region, file.offset_bytes, file.length_bytes)?;
        files.push(json!({ "name": file.name, "bytes": file.length_bytes, "sha256": sha256 }));
    }
    let found = json!({
        "uri": variable("LONGSHORE_MODEL_URI")?, "revision": variable("LONGSHORE_REVISION")?,
        "tensors": tensors, "files": files,
    });
    println!("{found}");
    Ok(())
}
