//! A transformer in small: the names and merged shapes that groups of ranks load by slices.

use super::spec::{ModelSpec, TensorSpec};

/// Sizes of a transformer. Head count times head size is the hidden size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transformer {
    /// Layers.
    pub layers: u64,
    /// Hidden size.
    pub hidden: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Size between the two projections of a dense layer and of an expert.
    pub inner: u64,
    /// Experts of each layer.
    pub experts: u64,
    /// Vocabulary.
    pub vocabulary: u64,
}

impl Transformer {
    /// Rows of the query part of a merged query, key and value projection, and of each of the other two.
    pub fn qkv_rows(&self) -> [u64; 3] {
        let head = self.hidden / self.heads.max(1);
        [self.hidden, head * self.kv_heads, head * self.kv_heads]
    }
}

impl ModelSpec {
    /// Embeddings, and layers of a merged query, key and value projection with a bias, an output projection, a merged
    /// gate and up projection, a down projection, experts and norms, in mixed dtypes.
    pub fn transformer(seed: u64, of: Transformer) -> ModelSpec {
        let Transformer { hidden, inner, .. } = of;
        let qkv_rows = of.qkv_rows().iter().sum::<u64>();
        let mut tensors = vec![TensorSpec::new("model.embed_tokens.weight", "BF16", [of.vocabulary, hidden])];
        for layer in 0..of.layers {
            let mut add = |name: &str, dtype: &str, shape: &[u64]| {
                tensors.push(TensorSpec::new(format!("model.layers.{layer}.{name}"), dtype, shape));
            };
            add("input_layernorm.weight", "F32", &[hidden]);
            add("self_attn.qkv_proj.weight", "BF16", &[qkv_rows, hidden]);
            add("self_attn.qkv_proj.bias", "F32", &[qkv_rows]);
            add("self_attn.o_proj.weight", "F8_E4M3", &[hidden, hidden]);
            add("self_attn.o_proj.weight_scale", "F32", &[]);
            add("mlp.gate_up_proj.weight", "BF16", &[2 * inner, hidden]);
            add("mlp.down_proj.weight", "BF16", &[hidden, inner]);
            for expert in 0..of.experts {
                add(&format!("mlp.experts.{expert}.gate_up_proj.weight"), "F4", &[2 * inner, hidden]);
                add(&format!("mlp.experts.{expert}.down_proj.weight"), "F4", &[hidden, inner]);
            }
        }
        tensors.push(TensorSpec::new("model.norm.weight", "F32", [hidden]));
        tensors.push(TensorSpec::new("lm_head.weight", "F16", [of.vocabulary, hidden]));
        ModelSpec::of(seed, tensors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_shapes_add_up() {
        let of = Transformer { layers: 2, hidden: 64, heads: 8, kv_heads: 2, inner: 96, experts: 4, vocabulary: 100 };
        assert_eq!(of.qkv_rows(), [64, 16, 16]);
        let spec = ModelSpec::transformer(1, of);
        assert_eq!(spec.tensors.len(), 3 + 2 * (7 + 8));
        let model = spec.build();
        assert_eq!(model.tensor("model.layers.1.self_attn.qkv_proj.weight").unwrap().shape, [96, 64]);
        assert_eq!(model.tensor("model.layers.0.mlp.experts.3.down_proj.weight").unwrap().content.len_bytes(), 64 * 48);
    }
}
