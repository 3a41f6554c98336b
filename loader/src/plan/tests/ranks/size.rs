//! Plans of large models stay small and are made in time.

use super::*;

/// The tensors of a Llama model with the usual names.
fn llama(layers: usize, hidden: u64, inner: u64, kv: u64) -> (Vec<Case>, Vec<ParallelRule>) {
    let mut cases = vec![Case::new("model.embed_tokens.weight", Dtype::BF16, &[128_256, hidden], split(0))];
    for layer in 0..layers {
        for (name, shape) in [
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
        ] {
            let name = format!("model.layers.{layer}.{name}.weight");
            cases.push(Case::new(&name, Dtype::BF16, &shape, Rule::Replicate));
        }
    }
    let rules = [("*.o_proj.weight", 1), ("*.down_proj.weight", 1), ("*_proj.weight", 0), ("*embed_tokens.weight", 0)];
    let rules = rules.map(|(pattern, dim)| ParallelRule::new(pattern, split(dim)).unwrap());
    (cases, rules.to_vec())
}

#[test]
fn a_plan_of_140_gigabytes_stays_small() {
    let (cases, rules) = llama(80, 8192, 28_672, 1024);
    let manifest = manifest_of(&cases, 8);
    assert!(manifest.size_bytes() > 135_000_000_000);
    let mut placed = 0;
    for rank in [0, 3, 7] {
        let parallel = Parallel::new(rank, 8, rules.clone()).unwrap();
        let layout = Layout::new(&manifest, Some(&parallel), 256, SideFiles::WithTensors).unwrap();
        let strided = layout.copies.iter().filter(|copy| copy.rows > 1).count();
        assert_eq!(strided, 160, "an output and a down projection in each layer");
        let plan = Plan::from_layout(&manifest, layout).unwrap();
        placed = plan.layout.sizes_bytes[0];
        let parts: usize = plan.chunks.iter().map(|chunk| chunk.parts.len()).sum();
        assert!(parts < 30_000 && plan.chunks.len() < 5_000, "{parts} parts in {} reads", plan.chunks.len());
    }
    assert!((17_000_000_000..18_000_000_000).contains(&placed), "{placed}");
}

#[test]
fn a_hundred_thousand_tensors_of_a_rank_are_planned_in_time() {
    let (cases, rules) = llama(11_111, 512, 64, 64);
    let manifest = manifest_of(&cases, 8);
    assert_eq!(manifest.tensors.len(), 100_000);
    let parallel = Parallel::new(5, 8, rules).unwrap();
    // The fastest of a few: others use the machine too.
    let timed = (0..5).map(|_| {
        let start = Instant::now();
        let plan = Plan::new(&manifest, Some(&parallel), 256, SideFiles::WithTensors).unwrap();
        let elapsed = start.elapsed();
        assert_eq!(plan.layout.tensors.len(), 100_000);
        elapsed
    });
    let elapsed = timed.min().unwrap();
    // Without optimisation this only guards against something quadratic.
    let limit_ms = if cfg!(debug_assertions) { 3_000 } else { 50 };
    assert!(elapsed.as_millis() < limit_ms, "{elapsed:?}");
}
