//! Descriptions of models.

use crate::content::{Content, mix};

/// Every dtype of the format, with the bits of an element.
pub const ALL_DTYPES: [(&str, u64); 22] = [
    ("BOOL", 8),
    ("F4", 4),
    ("F6_E2M3", 6),
    ("F6_E3M2", 6),
    ("U8", 8),
    ("I8", 8),
    ("F8_E5M2", 8),
    ("F8_E4M3", 8),
    ("F8_E8M0", 8),
    ("F8_E4M3FNUZ", 8),
    ("F8_E5M2FNUZ", 8),
    ("I16", 16),
    ("U16", 16),
    ("F16", 16),
    ("BF16", 16),
    ("I32", 32),
    ("U32", 32),
    ("F32", 32),
    ("C64", 64),
    ("F64", 64),
    ("I64", 64),
    ("U64", 64),
];

/// Bits of an element; unknown dtypes count as bytes.
pub fn dtype_bits(dtype: &str) -> u64 {
    ALL_DTYPES.iter().find(|(name, _)| *name == dtype).map_or(8, |(_, bits)| *bits)
}

/// A tensor to be generated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Unique in the model.
    pub name: String,
    /// As written into the file.
    pub dtype: String,
    /// Empty for a scalar.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// A tensor.
    pub fn new(name: impl Into<String>, dtype: &str, shape: impl Into<Vec<u64>>) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: dtype.to_owned(), shape: shape.into() }
    }

    /// Size of its data, rounded up to whole bytes.
    pub fn len_bytes(&self) -> u64 {
        (self.shape.iter().product::<u64>() * dtype_bits(&self.dtype)).div_ceil(8)
    }
}

/// How headers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Padded with spaces so that the data starts at a multiple of 8, as the format's library does.
    Aligned,
    /// So that the data starts at an odd offset, and every wider tensor lies askew.
    Odd,
    /// As it comes; the order of the names is not that of the data.
    Shuffled,
}

/// A model to be generated: the same description gives the same bytes.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Chooses the bytes.
    pub seed: u64,
    /// In the order of their data.
    pub tensors: Vec<TensorSpec>,
    /// Number of safetensors files; with more than one there is an index.
    pub shards: usize,
    /// How headers are written.
    pub header: HeaderStyle,
    /// Whether files carry `__metadata__`.
    pub has_metadata: bool,
    /// Files beside the weights.
    pub side_files: Vec<(String, Content)>,
}

impl ModelSpec {
    /// These tensors in one file, with a configuration file beside it.
    pub fn of(seed: u64, tensors: Vec<TensorSpec>) -> ModelSpec {
        let config = format!("{{\"model_type\": \"generated\", \"seed\": {seed}}}\n");
        ModelSpec {
            seed,
            tensors,
            shards: 1,
            header: HeaderStyle::Aligned,
            has_metadata: true,
            side_files: vec![("config.json".to_owned(), Content::from(config.into_bytes()))],
        }
    }

    /// In so many shards.
    #[must_use]
    pub fn shards(self, shards: usize) -> ModelSpec {
        ModelSpec { shards, ..self }
    }

    /// With headers like that.
    #[must_use]
    pub fn header(self, header: HeaderStyle) -> ModelSpec {
        ModelSpec { header, ..self }
    }

    /// With another file beside the weights.
    #[must_use]
    pub fn side_file(mut self, name: &str, content: impl Into<Content>) -> ModelSpec {
        self.side_files.push((name.to_owned(), content.into()));
        self
    }

    /// A few tensors of a few hundred kilobytes in all.
    pub fn small(seed: u64) -> ModelSpec {
        ModelSpec::of(
            seed,
            vec![
                TensorSpec::new("embed.weight", "F16", [100, 64]),
                TensorSpec::new("layer.0.weight", "F32", [64, 64]),
                TensorSpec::new("layer.0.bias", "F32", [64]),
                TensorSpec::new("head.weight", "BF16", [1000, 64]),
            ],
        )
    }

    /// One tensor of every dtype, and of every odd shape.
    pub fn every_dtype(seed: u64) -> ModelSpec {
        let mut tensors = Vec::new();
        for (dtype, _) in ALL_DTYPES {
            let name = dtype.to_lowercase();
            tensors.push(TensorSpec::new(format!("{name}.matrix"), dtype, [12, 34]));
            // Four elements are the fewest that fill whole bytes in every dtype.
            tensors.push(TensorSpec::new(format!("{name}.four"), dtype, [4]));
            tensors.push(TensorSpec::new(format!("{name}.empty"), dtype, [3, 0, 5]));
        }
        for (dtype, bits) in ALL_DTYPES {
            if bits >= 8 {
                tensors.push(TensorSpec::new(format!("{}.scalar", dtype.to_lowercase()), dtype, []));
            }
        }
        tensors.push(TensorSpec::new("one.byte", "U8", [1]));
        tensors.push(TensorSpec::new("deep", "I16", [1, 2, 1, 3, 1, 2, 1, 1]));
        tensors.push(TensorSpec::new("名前 with \"quotes\" and \\", "F32", [3]));
        ModelSpec::of(seed, tensors).header(HeaderStyle::Odd)
    }

    /// About `size_bytes` in `tensors` tensors of unequal sizes and mixed dtypes.
    pub fn sized(seed: u64, size_bytes: u64, tensors: usize) -> ModelSpec {
        let tensors = tensors.max(1);
        let weight = |i: usize| 1 + mix(seed ^ i as u64) % 16;
        let total: u64 = (0..tensors).map(weight).sum();
        let dtypes = ["BF16", "F32", "F16", "I8", "F8_E4M3", "U8", "I64"];
        let specs = (0..tensors).map(|i| {
            let dtype = dtypes[(mix(seed.wrapping_add(i as u64)) % dtypes.len() as u64) as usize];
            let share = u128::from(size_bytes) * u128::from(weight(i)) / u128::from(total);
            let elements = share as u64 * 8 / dtype_bits(dtype);
            TensorSpec::new(format!("layers.{i}.weight"), dtype, [elements.max(1)])
        });
        ModelSpec::of(seed, specs.collect())
    }

    /// Anything: 1 to 200 tensors, 1 to 30 shards, any dtype, 0 bytes to about `tensor_bytes_max` each.
    pub fn random(seed: u64, tensor_bytes_max: u64) -> ModelSpec {
        let mut state = seed;
        let mut draw = |below: u64| {
            state = mix(state);
            state % below.max(1)
        };
        let count = 1 + draw(200);
        let tensors: Vec<TensorSpec> = (0..count)
            .map(|i| {
                let (dtype, bits) = ALL_DTYPES[draw(ALL_DTYPES.len() as u64) as usize];
                // Small sizes as often as large ones; multiples of four fill whole bytes.
                let bytes = draw(2 + tensor_bytes_max) >> draw(20);
                let elements = if bits < 8 { bytes / 4 * 4 } else { bytes * 8 / bits };
                let shape = match draw(4) {
                    0 if elements % 2 == 0 => vec![2, elements / 2],
                    1 => vec![1, elements, 1],
                    _ => vec![elements],
                };
                TensorSpec::new(format!("t{i}.{}", "x".repeat(draw(30) as usize)), dtype, shape)
            })
            .collect();
        let header = [HeaderStyle::Aligned, HeaderStyle::Odd, HeaderStyle::Shuffled][draw(3) as usize];
        let shards = 1 + draw(30).min(count - 1) as usize;
        ModelSpec { has_metadata: draw(2) == 0, ..ModelSpec::of(seed, tensors).shards(shards).header(header) }
    }
}
