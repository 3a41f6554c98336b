//! Writes a model of any size without holding it: what a file holds at an offset follows from seed, file and offset.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use longshore_types::CHUNK_BYTES;
use serde_json::{Map, Value, json};

/// Widths are multiples of this, so that eight ranks can split any of them.
const WIDTH_STEP: u64 = 256;
/// Elements of a layer's matrices over the square of the width: q, k, v, o and gate, up, down.
const LAYER_SQUARES: f64 = 1.0 + 0.25 + 0.25 + 1.0 + 3.0 * 3.5;
/// Rows of the embedding over the width.
const VOCABULARY: u64 = 8;
const BF16_BYTES: u64 = 2;

/// A decoder: so many layers of a width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    width: u64,
    layers: u64,
}

/// A tensor and its shape.
type Tensor = (String, Vec<u64>);

impl Shape {
    /// The shape with about that size and number of tensors.
    pub fn near(size_bytes: u64, tensors: u64) -> Shape {
        let layers = (tensors.saturating_sub(3) / 9).max(1);
        let squares = LAYER_SQUARES * layers as f64 + 2.0 * VOCABULARY as f64;
        let width = (size_bytes as f64 / BF16_BYTES as f64 / squares).sqrt();
        let width = ((width / WIDTH_STEP as f64).round() as u64).max(1) * WIDTH_STEP;
        Shape { width, layers }
    }

    fn layer(self, index: u64) -> Vec<Tensor> {
        let (wide, narrow, long) = (self.width, self.width / 4, self.width * 7 / 2);
        let of = |name: &str, shape: &[u64]| (format!("model.layers.{index}.{name}.weight"), shape.to_vec());
        vec![
            of("input_layernorm", &[wide]),
            of("self_attn.q_proj", &[wide, wide]),
            of("self_attn.k_proj", &[narrow, wide]),
            of("self_attn.v_proj", &[narrow, wide]),
            of("self_attn.o_proj", &[wide, wide]),
            of("post_attention_layernorm", &[wide]),
            of("mlp.gate_proj", &[long, wide]),
            of("mlp.up_proj", &[long, wide]),
            of("mlp.down_proj", &[wide, long]),
        ]
    }

    /// The tensors of each file, in order.
    fn files(self, count: u64) -> Vec<Vec<Tensor>> {
        let count = count.min(self.layers);
        let mut files: Vec<Vec<Tensor>> = vec![Vec::new(); count as usize];
        files[0].push(("model.embed_tokens.weight".to_owned(), vec![VOCABULARY * self.width, self.width]));
        for layer in 0..self.layers {
            files[(layer * count / self.layers) as usize].extend(self.layer(layer));
        }
        if let Some(last) = files.last_mut() {
            last.push(("model.norm.weight".to_owned(), vec![self.width]));
            last.push(("lm_head.weight".to_owned(), vec![VOCABULARY * self.width, self.width]));
        }
        files
    }
}

/// Writes the files and says what was written.
pub fn write(folder: &Path, shape: &Shape, files: u64, seed: u64, threads: usize) -> anyhow::Result<Value> {
    let start = Instant::now();
    std::fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let contents = shape.files(files);
    let (mut opened, mut pieces, mut weight_map) = (Vec::new(), Vec::new(), Map::new());
    let mut bytes = 0;
    for (index, tensors) in contents.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, contents.len());
        let (header, data_bytes) = header_of(tensors);
        let file = File::create(folder.join(&name)).with_context(|| format!("create {name}"))?;
        file.write_all_at(&header, 0)?;
        let (first, end) = (header.len() as u64, header.len() as u64 + data_bytes);
        file.set_len(end)?;
        pieces.extend((first..end).step_by(CHUNK_BYTES as usize).map(|at| (index, at, (at + CHUNK_BYTES).min(end))));
        weight_map.extend(tensors.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
        bytes += data_bytes;
        opened.push(file);
    }
    let count = weight_map.len();
    // Writes to one file exclude each other: the files side by side.
    pieces.sort_by_key(|(_, at, _)| *at);
    crate::deal(
        pieces,
        threads,
        || vec![0u8; CHUNK_BYTES as usize],
        |buffer, (index, at, end)| {
            let buffer = &mut buffer[..(end - at) as usize];
            fill(buffer, seed ^ ((index as u64) << 48) ^ at);
            Ok(opened[index].write_all_at(buffer, at)?)
        },
    )?;
    let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
    let config = json!({ "hidden_size": shape.width, "num_hidden_layers": shape.layers });
    std::fs::write(folder.join("config.json"), config.to_string())?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({ "bytes": bytes, "tensors": count, "files": contents.len(), "seconds": seconds }))
}

/// A safetensors header of whole 8 bytes, and the bytes of data behind it.
fn header_of(tensors: &[Tensor]) -> (Vec<u8>, u64) {
    let mut header = Map::new();
    let mut at = 0;
    for (name, shape) in tensors {
        let end = at + shape.iter().product::<u64>() * BF16_BYTES;
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    (bytes, at)
}

/// Random bytes that follow from `seed`. The exponents stay small, so that sums over BF16 stay finite.
fn fill(buffer: &mut [u8], seed: u64) {
    // SplitMix64.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for piece in buffer.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word = (word ^ (word >> 31)) & 0xbfff_bfff_bfff_bfff;
        piece.copy_from_slice(&word.to_le_bytes()[..piece.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_are_near_what_was_asked() {
        for (size, tensors) in [(40_000_000_000, 1000), (2_000_000_000, 200)] {
            let shape = Shape::near(size, tensors);
            let files = shape.files(10);
            let all: Vec<&Tensor> = files.iter().flatten().collect();
            let bytes: u64 = all.iter().map(|(_, shape)| shape.iter().product::<u64>() * BF16_BYTES).sum();
            assert!(bytes.abs_diff(size) < size / 6, "{bytes} of {size}");
            assert!((all.len() as u64).abs_diff(tensors) < 9, "{} of {tensors}", all.len());
        }
    }

    #[test]
    fn a_written_model_is_safetensors_and_differs_by_seed() {
        let folder = tempfile::tempdir().unwrap();
        let shape = Shape { width: WIDTH_STEP, layers: 2 };
        let mut seen = Vec::new();
        for seed in [1, 2] {
            let written = write(folder.path(), &shape, 2, seed, 2).unwrap();
            assert_eq!(written["tensors"], 21);
            let bytes = std::fs::read(folder.path().join("model-00001-of-00002.safetensors")).unwrap();
            let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
            let ends = header.as_object().unwrap().values().map(|tensor| tensor["data_offsets"][1].as_u64().unwrap());
            assert_eq!(ends.max().unwrap() as usize, bytes.len() - 8 - header_bytes);
            seen.push(bytes);
        }
        assert_ne!(seen[0], seen[1]);
    }
}
