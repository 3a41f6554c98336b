//! Models in the shapes of a decoder.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use longshore_testkit::modelgen::{Model, ModelSpec, TensorSpec};
use longshore_types::ByteSize;
use serde_json::{Value, json};

/// What to write.
#[derive(Args)]
pub struct Options {
    /// Folder to write to; made when missing.
    folder: PathBuf,
    /// About so many bytes.
    #[arg(long)]
    size: ByteSize,
    /// Files that the tensors are spread over.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=1000))]
    shards: u64,
    /// So many tensors, of equal size, instead of layers.
    #[arg(long)]
    tensors: Option<u64>,
    /// Folders beside each other, `FOLDER/0` to `FOLDER/N-1`, each with a model of its own.
    #[arg(long)]
    models: Option<u64>,
}

/// Writes the files and says what they hold.
pub fn write(options: &Options) -> anyhow::Result<Value> {
    let numbers: Vec<Option<u64>> = match options.models {
        None => vec![None],
        Some(count) => (0..count).map(Some).collect(),
    };
    let (mut bytes, mut tensors) = (0, 0);
    for number in numbers {
        let folder = number.map_or(options.folder.clone(), |number| options.folder.join(number.to_string()));
        let model = made(options, number)?;
        model.write_to(&folder).with_context(|| format!("write a model to {}", folder.display()))?;
        bytes += model.tensor_bytes();
        tensors += model.tensors.len();
    }
    Ok(json!({ "bytes": bytes, "tensors": tensors, "shards": options.shards }))
}

fn made(options: &Options, number: Option<u64>) -> anyhow::Result<Model> {
    ensure!(options.size.0 >= 1 << 20, "--size {}: at least 1 MiB is needed", options.size);
    // Tensors of models beside each other have names of their own, so that a mix-up would be seen.
    let prefix = number.map_or(String::new(), |number| format!("model{number}."));
    let tensors = match options.tensors {
        Some(count) => equal(&prefix, options.size.0, count.max(1)),
        None => layers(&prefix, options.size.0),
    };
    let shards = options.shards.min(tensors.len() as u64);
    let shards = usize::try_from(shards).context("--shards")?;
    Ok(ModelSpec::of(number.map_or(1, |number| number + 2), tensors).shards(shards).build())
}

/// Tensors of one size.
fn equal(prefix: &str, size_bytes: u64, count: u64) -> Vec<TensorSpec> {
    let elements = (size_bytes / count / 2).max(1);
    (0..count).map(|at| TensorSpec::new(format!("{prefix}layers.{at}.weight"), "BF16", vec![elements])).collect()
}

/// The layers of a decoder: large matrices, and small vectors between them. Small models are narrower, not cut off.
fn layers(prefix: &str, size_bytes: u64) -> Vec<TensorSpec> {
    let hidden = if size_bytes < 256 << 20 { 512 } else { 2048 };
    let inner = hidden / 4 * 11;
    let shapes: [(&str, Vec<u64>); 9] = [
        ("input_layernorm", vec![hidden]),
        ("self_attn.q_proj", vec![hidden, hidden]),
        ("self_attn.k_proj", vec![hidden / 8, hidden]),
        ("self_attn.v_proj", vec![hidden / 8, hidden]),
        ("self_attn.o_proj", vec![hidden, hidden]),
        ("post_attention_layernorm", vec![hidden]),
        ("mlp.gate_proj", vec![inner, hidden]),
        ("mlp.up_proj", vec![inner, hidden]),
        ("mlp.down_proj", vec![hidden, inner]),
    ];
    let mut tensors = Vec::new();
    let (mut total, mut layer) = (0, 0);
    while total < size_bytes {
        for (name, shape) in &shapes {
            let name = format!("{prefix}model.layers.{layer}.{name}.weight");
            let tensor = TensorSpec::new(name, "BF16", shape.clone());
            total += tensor.len_bytes();
            tensors.push(tensor);
        }
        layer += 1;
    }
    tensors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_has_about_the_size_that_was_asked_for() {
        for size_bytes in [8 << 20, 300 << 20] {
            let total: u64 = layers("", size_bytes).iter().map(TensorSpec::len_bytes).sum();
            assert!(total >= size_bytes && total < size_bytes + (100 << 20), "{total} for {size_bytes}");
        }
        let tensors = equal("m.", 64 << 20, 1000);
        assert_eq!(tensors.len(), 1000);
        assert_eq!(tensors[999].name, "m.layers.999.weight");
    }
}
