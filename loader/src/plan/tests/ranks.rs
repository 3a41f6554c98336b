//! Plans of ranks, against slices by definition.

use longshore_device::{Device, HostDevice, Intake};
use longshore_memory::Arena;
use longshore_types::Dtype;
use longshore_types::header::tensor_bytes;

use super::reference::{Seat, indices, take};
use super::*;
use crate::parallel::{FusedPart, ParallelRule, Rule};

/// A tensor and the rule for it.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    dtype: Option<Dtype>,
    shape: Vec<u64>,
    rule: Rule,
}

impl Case {
    fn new(name: &str, dtype: Dtype, shape: &[u64], rule: Rule) -> Case {
        Case { name: name.into(), dtype: Some(dtype), shape: shape.to_vec(), rule }
    }

    fn len_bytes(&self) -> u64 {
        self.dtype.map_or(Some(7), |dtype| tensor_bytes(dtype, &self.shape)).unwrap()
    }
}

fn split(dim: u32) -> Rule {
    Rule::Split { dim, parts: vec![] }
}

fn fused(dim: u32, parts: &[(u64, u32)]) -> Rule {
    Rule::Split { dim, parts: parts.iter().map(|&(size, replicas)| FusedPart { size, replicas }).collect() }
}

/// All cases in one file, behind a header of so many bytes.
fn manifest_of(cases: &[Case], header_bytes: u64) -> Manifest {
    let lengths: Vec<(u64, u64)> =
        cases.iter().enumerate().map(|(i, case)| (if i == 0 { header_bytes } else { 0 }, case.len_bytes())).collect();
    let mut manifest = manifest(&[(0, Some(lengths))]);
    for (tensor, case) in manifest.tensors.iter_mut().zip(cases) {
        tensor.name.clone_from(&case.name);
        tensor.dtype = case.dtype;
        tensor.dtype_name = case.dtype.map_or("F3".into(), |dtype| format!("{dtype:?}"));
        tensor.shape.clone_from(&case.shape);
    }
    manifest
}

fn parallel_of(cases: &[Case], seat: Seat) -> Parallel {
    let rules = cases.iter().map(|case| {
        let is_expert = case.rule == Rule::Expert;
        let pattern = if is_expert { "experts.{expert}.*".to_owned() } else { case.name.clone() };
        ParallelRule::new(&pattern, case.rule.clone()).unwrap()
    });
    Parallel::new(seat.rank, seat.world_size, rules.collect()).unwrap()
}

fn plan_of(cases: &[Case], seat: Seat) -> Result<Plan> {
    Plan::new(&manifest_of(cases, 8), Some(&parallel_of(cases, seat)), 256, SideFiles::WithTensors)
}

fn bytes_of_file(manifest: &Manifest) -> Vec<u8> {
    let size = manifest.files[0].artifact.size_bytes();
    (0..size).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Carries the plan out with bytes.
fn region_of(plan: &Plan, file: &[u8]) -> Vec<u8> {
    let mut region = vec![0; plan.layout.sizes_bytes[0] as usize];
    for chunk in &plan.chunks {
        let mut run = &file[chunk.file_range().start as usize..chunk.file_range().end as usize];
        let mut next = |len: u64| {
            let (taken, rest) = run.split_at(len as usize);
            run = rest;
            taken
        };
        for part in &chunk.parts {
            match *part {
                Part::Discard { len_bytes } => drop(next(len_bytes)),
                Part::Place { offset_bytes, len_bytes } => {
                    region[offset_bytes as usize..][..len_bytes as usize].copy_from_slice(next(len_bytes));
                }
                Part::Rows { offset_bytes, row_bytes, skip_bytes, rows } => {
                    for row in 0..rows {
                        let at = (offset_bytes + row * row_bytes) as usize;
                        region[at..at + row_bytes as usize].copy_from_slice(next(row_bytes));
                        next(if row + 1 < rows { skip_bytes } else { 0 });
                    }
                }
            }
        }
        assert!(next(0).is_empty());
    }
    region
}

/// What a rank must hold of a case: shape and bytes; nothing when it is another rank's expert.
fn wanted(case: &Case, experts: u64, bytes: &[u8], seat: Seat) -> Option<(Vec<u64>, Vec<u8>)> {
    match &case.rule {
        Rule::Replicate => Some((case.shape.clone(), bytes.to_vec())),
        Rule::Expert => {
            let number: u64 = case.name.split('.').nth(1)?.parse().unwrap();
            let owner = number * u64::from(seat.world_size) / experts;
            (owner == u64::from(seat.rank)).then(|| (case.shape.clone(), bytes.to_vec()))
        }
        Rule::Split { dim, parts } => {
            let dim = *dim as usize;
            let own = indices(case.shape[dim], parts, seat).unwrap();
            let mut shape = case.shape.clone();
            shape[dim] = own.len() as u64;
            Some((shape, take(bytes, case.dtype.unwrap(), &case.shape, dim, &own)))
        }
    }
}

/// Compares every tensor of a rank with its slice by definition.
fn check_bytes(cases: &[Case], seat: Seat) -> Plan {
    let manifest = manifest_of(cases, 1001);
    let plan = Plan::new(&manifest, Some(&parallel_of(cases, seat)), 256, SideFiles::WithTensors).unwrap();
    execute(&manifest, &plan);
    let file = bytes_of_file(&manifest);
    let region = region_of(&plan, &file);
    let experts = cases.iter().filter(|case| case.rule == Rule::Expert).count() as u64;
    let mut placed = plan.layout.tensors_of(&manifest);
    for (case, tensor) in cases.iter().zip(&manifest.tensors) {
        let extent = tensor.extent;
        let bytes = &file[extent.offset_bytes as usize..][..extent.length_bytes as usize];
        let Some((shape, bytes)) = wanted(case, experts, bytes, seat) else { continue };
        let found = placed.next().unwrap();
        assert_eq!((&found.tensor.name, found.shape), (&tensor.name, &*shape), "{seat:?}");
        assert_eq!(found.place.length_bytes, bytes.len() as u64);
        assert!(found.place.offset_bytes.is_multiple_of(256));
        assert!(region[found.place.offset_bytes as usize..].starts_with(&bytes), "{} at {seat:?}", tensor.name);
    }
    assert!(placed.next().is_none());
    drop(placed);
    plan
}

const DTYPES: [Dtype; 9] = [
    Dtype::F4,
    Dtype::F6_E2M3,
    Dtype::BOOL,
    Dtype::F8_E4M3,
    Dtype::BF16,
    Dtype::F32,
    Dtype::I64,
    Dtype::C64,
    Dtype::U16,
];

/// A tensor that can be split as its rule says. `small` and `inner` keep it to a size that a test can hold.
fn case(world_size: u32, index: usize) -> impl Strategy<Value = Case> {
    let divisors: Vec<u32> = (1..=world_size).filter(|n| world_size.is_multiple_of(*n)).collect();
    let parts = proptest::collection::vec((1_u64..4, proptest::sample::select(divisors)), 0..4);
    let shape = proptest::collection::vec(prop_oneof![9 => 1_u64..6, 1 => Just(0)], 1..5);
    let inputs = (proptest::sample::select(&DTYPES[..]), shape, 0_usize..5, parts, 0..7);
    inputs.prop_map(move |(dtype, mut shape, dim, parts, kind)| {
        let dim = dim % shape.len();
        let parts: Vec<(u64, u32)> =
            parts.iter().map(|&(each, replicas)| (each * u64::from(world_size / replicas), replicas)).collect();
        shape[dim] *= u64::from(world_size);
        let rule = match kind {
            0 => Rule::Replicate,
            1..=3 => split(dim as u32),
            _ if parts.is_empty() => split(dim as u32),
            _ => {
                shape[dim] = parts.iter().map(|part| part.0).sum();
                fused(dim as u32, &parts)
            }
        };
        // Packed elements are cut at whole bytes when what is behind the dimension fills them.
        if dtype.bitsize() < 8 {
            shape.push(8 / if dtype == Dtype::F4 { 2 } else { 1 });
        }
        Case { name: format!("t{index}"), dtype: Some(dtype), shape, rule }
    })
}

fn seat_and_cases() -> impl Strategy<Value = (Seat, Vec<Case>)> {
    (1_u32..9).prop_flat_map(|world_size| {
        let cases: Vec<_> = (0..5).map(|index| case(world_size, index)).collect();
        let experts = proptest::option::of(1_u32..3);
        (0..world_size, cases, experts).prop_map(move |(rank, mut cases, experts)| {
            for number in 0..experts.unwrap_or(0) * world_size {
                let name = format!("experts.{number}.w");
                cases.push(Case::new(&name, Dtype::U8, &[u64::from(number) % 3, 5], Rule::Expert));
            }
            (Seat { rank, world_size }, cases)
        })
    })
}

proptest! {
    #[test]
    fn every_rank_holds_its_slices((seat, cases) in seat_and_cases()) {
        check_bytes(&cases, seat);
    }

    /// Rows of a few bytes to several chunks, over many chunks: intervals instead of bytes.
    #[test]
    fn rows_are_cut_along_chunks(
        gap in 0_u64..3 << 20,
        row in prop_oneof![1_u64..5000, 1_u64 << 18..3 << 20, 15_u64 << 20..40 << 20],
        world_size in 1_u32..9, rank in 0_u32..8, bytes in 1_u64..120 << 20, by_rows in any::<bool>(),
    ) {
        let seat = Seat { rank: rank % world_size, world_size };
        let outer = (bytes / (row * u64::from(world_size))).clamp(1, 2000);
        let (shape, dim) = match by_rows {
            true => (vec![outer, row * u64::from(world_size)], 1),
            false => (vec![u64::from(world_size) * outer, row], 0),
        };
        let cases = [
            Case::new("before", Dtype::U8, &[gap], Rule::Expert),
            Case::new("strided", Dtype::U8, &shape, split(dim)),
            Case::new("after", Dtype::U8, &[3], Rule::Replicate),
        ];
        let manifest = manifest_of(&cases, 8);
        let rules = cases[1..].iter().map(|case| ParallelRule::new(&case.name, case.rule.clone()).unwrap());
        let parallel = Parallel::new(seat.rank, world_size, rules.collect()).unwrap();
        let plan = Plan::new(&manifest, Some(&parallel), 256, SideFiles::WithTensors).unwrap();
        let held = execute(&manifest, &plan);
        let tensor = &manifest.tensors[1];
        let place = plan.layout.tensors[1].place;
        let (rows, pitch, length, first) = match by_rows {
            true => (outer, row * u64::from(world_size), row, u64::from(seat.rank) * row),
            false => (1, 0, outer * row, u64::from(seat.rank) * outer * row),
        };
        for index in 0..rows {
            let piece = Place { offset_bytes: place.offset_bytes + index * length, length_bytes: length, ..place };
            assert_holds(&held, piece, 0, tensor.extent.offset_bytes + index * pitch + first);
        }
    }
}

#[test]
fn merged_projections_of_every_rank() {
    for world_size in [1_u32, 2, 4, 8, 16] {
        let replicas = world_size.div_ceil(4);
        let cases = [
            // 16 query heads and 4 key and value heads of 8, then gate and up.
            Case::new("qkv", Dtype::BF16, &[192, 64], fused(0, &[(128, 1), (32, replicas), (32, replicas)])),
            Case::new("gate_up", Dtype::F32, &[160, 3, 2], fused(0, &[(80, 1), (80, 1)])),
            Case::new("conv1d", Dtype::F16, &[6, 192], fused(1, &[(64, 1), (64, 1), (64, 1)])),
            Case::new("uneven", Dtype::I8, &[5, 192], fused(1, &[(128, 1), (32, replicas), (32, replicas)])),
            Case::new("packed", Dtype::F4, &[3, 64], split(1)),
            Case::new("o", Dtype::BF16, &[64, 128], split(1)),
            Case::new("norm", Dtype::F32, &[64], Rule::Replicate),
        ];
        for rank in 0..world_size {
            let plan = check_bytes(&cases, Seat { rank, world_size });
            let listed: Vec<u64> = plan.layout.copies.iter().map(|copy| copy.rows).collect();
            if world_size == 8 {
                // Equal parts are a pattern in any dimension, unequal ones are listed.
                assert_eq!(listed[..3], [1, 1, 1], "q, k and v");
                assert_eq!(listed[3..5], [2, 18], "gate and up, then six rows of q, k and v");
                assert_eq!(listed.len(), 5 + 15 + 3);
            }
        }
    }
}

#[test]
fn a_tensor_that_does_not_fit_its_rule_is_named_with_the_reason() {
    let refused = |case: Case, world_size| {
        let error = plan_of(&[case], Seat { rank: 0, world_size }).unwrap_err();
        assert_eq!(error.code(), longshore_types::Code::InvalidArgument);
        let text = error.to_string();
        assert!(text.contains("tensor \"the.tensor\""), "{text}");
        text
    };
    let case = |shape: &[u64], rule| Case::new("the.tensor", Dtype::F16, shape, rule);
    let text = refused(case(&[1000, 64], split(0)), 16);
    assert!(text.contains("dimension 0 of [1000, 64] cannot be cut into 16 equal pieces, for a world of 16"), "{text}");
    let text = refused(case(&[2, 48], fused(1, &[(32, 1), (16, 2)])), 12);
    assert!(text.contains("has a part of 32 that cannot be cut into 12"), "{text}");
    let text = refused(case(&[7], fused(0, &[(4, 1), (3, 2)])), 4);
    assert!(
        text.contains("a part of 3") && text.contains("2 equal pieces, for a world of 4 with 2 replicas"),
        "{text}"
    );
    let text = refused(case(&[48], fused(0, &[(32, 1), (8, 1)])), 4);
    assert!(text.contains("the rule's parts together, 32 + 8"), "{text}");
    let text = refused(case(&[48], fused(0, &[(u64::MAX, 1), (49, 1)])), 1);
    assert!(text.contains("parts together"), "{text}");
    let text = refused(case(&[48], split(1)), 4);
    assert!(text.contains("no dimension 1 in the shape [48]"), "{text}");
    let text = refused(case(&[], split(0)), 2);
    assert!(text.contains("no dimension 0 in the shape []"), "{text}");
    let text = refused(Case { dtype: None, ..case(&[8], split(0)) }, 2);
    assert!(text.contains("dtype \"F3\" is unknown"), "{text}");
    let text = refused(Case { dtype: Some(Dtype::F4), ..case(&[6, 2, 3], split(0)) }, 4);
    assert!(text.contains("cannot be cut into 4"), "{text}");
    let text = refused(Case { dtype: Some(Dtype::F4), ..case(&[2, 6], split(1)) }, 2);
    assert!(text.contains("whole bytes of F4"), "{text}");
}

#[test]
fn bytes_of_an_unknown_dtype_and_scalars_go_to_every_rank() {
    let unknown = Case { dtype: None, ..Case::new("raw", Dtype::U8, &[3, 5], Rule::Replicate) };
    let scalar = Case::new("scalar", Dtype::F32, &[], Rule::Replicate);
    for rank in 0..2 {
        check_bytes(&[unknown.clone(), scalar.clone()], Seat { rank, world_size: 2 });
    }
}

#[test]
fn dimensions_that_overflow_when_multiplied_are_no_danger_in_an_empty_tensor() {
    let empty = Case::new("empty", Dtype::F64, &[0, 1 << 62, 1 << 62], split(1));
    let plan = plan_of(&[empty], Seat { rank: 1, world_size: 2 }).unwrap();
    assert_eq!(plan.layout.tensors[0].shape.as_deref(), Some(&[0, 1 << 61, 1 << 62][..]));
    assert!(plan.chunks.is_empty());
}

#[test]
fn pieces_without_a_pattern_are_bounded() {
    let rows = (1 << 20) / 2;
    let uneven = |name: &str, rows| Case::new(name, Dtype::U8, &[rows, 6], fused(1, &[(4, 1), (2, 1)]));
    let seat = Seat { rank: 0, world_size: 2 };
    assert_eq!(plan_of(&[uneven("a", rows)], seat).unwrap().layout.copies.len(), 1 << 20);
    let error = plan_of(&[uneven("a", rows), uneven("b", 2)], seat).unwrap_err().to_string();
    assert!(error.contains("tensor \"b\"") && error.contains("1048576 separate pieces"), "{error}");
}

#[test]
fn experts_are_dealt_out_in_runs() {
    let experts = |numbers: &[u32]| -> Vec<Case> {
        let name = |number: &u32| format!("experts.{number}.w");
        numbers.iter().map(|number| Case::new(&name(number), Dtype::U8, &[2], Rule::Expert)).collect()
    };
    let held = |rank| {
        let cases = experts(&[3, 0, 1, 2]);
        let plan = plan_of(&cases, Seat { rank, world_size: 2 }).unwrap();
        plan.layout.tensors.iter().map(|of| cases[of.tensor].name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(held(0), ["experts.0.w", "experts.1.w"]);
    assert_eq!(held(1), ["experts.3.w", "experts.2.w"]);
    let refused =
        |numbers: &[u32]| plan_of(&experts(numbers), Seat { rank: 0, world_size: 2 }).unwrap_err().to_string();
    assert!(refused(&[0, 1, 3]).contains("expert 2 is missing among those up to 3"));
    assert!(refused(&[1, 2]).contains("expert 0 is missing"));
    assert!(refused(&[4_000_000_000]).contains("expert 0 is missing"));
    assert!(refused(&[0, 1, 2]).contains("3 experts cannot be dealt out evenly to a world of 2"));
    let huge = Case::new("experts.99999999999.w", Dtype::U8, &[2], Rule::Expert);
    let error = plan_of(&[huge], Seat { rank: 0, world_size: 2 }).unwrap_err().to_string();
    assert!(error.contains("names no expert"), "{error}");
}

#[test]
fn the_first_rule_decides_and_one_that_decides_nothing_is_a_warning() {
    let cases = [
        Case::new("a.weight", Dtype::U8, &[4], Rule::Replicate),
        Case::new("b.weight", Dtype::U8, &[4], Rule::Replicate),
        Case::new("c.bias", Dtype::U8, &[4], Rule::Replicate),
    ];
    let rule = |pattern: &str, rule| ParallelRule::new(pattern, rule).unwrap();
    let rules = vec![
        rule("a.*", Rule::Replicate),
        rule("*.weight", split(0)),
        rule("b.*", Rule::Replicate),
        rule("*.{expert}.*", Rule::Expert),
    ];
    let parallel = Parallel::new(0, 2, rules).unwrap();
    let plan = Plan::new(&manifest_of(&cases, 8), Some(&parallel), 256, SideFiles::WithTensors).unwrap();
    let lengths: Vec<u64> = plan.layout.tensors.iter().map(|of| of.place.length_bytes).collect();
    assert_eq!(lengths, [4, 2, 4]);
    let warnings = &plan.layout.warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("\"b.*\"") && warnings[1].contains("\"*.{expert}.*\""), "{warnings:?}");
}

#[test]
fn real_bytes_land_in_host_memory() {
    // Rows that end in chunks where others begin, and gaps of whole blocks.
    let cases = [
        Case::new("tall", Dtype::U8, &[3000, 6000], split(1)),
        Case::new("wide", Dtype::U8, &[3, 5 << 20], fused(1, &[(3 << 20, 1), (2 << 20, 2)])),
        Case::new("small", Dtype::BF16, &[4, 4, 4], split(2)),
    ];
    let manifest = manifest_of(&cases, 1001);
    let file = bytes_of_file(&manifest);
    for rank in 0..4 {
        let seat = Seat { rank, world_size: 4 };
        let plan = Plan::new(&manifest, Some(&parallel_of(&cases, seat)), 256, SideFiles::WithTensors).unwrap();
        let device = HostDevice::new(Arena::new(64 << 20));
        let builder = device.reserve("ranks", plan.layout.sizes_bytes[0]).unwrap();
        for chunk in &plan.chunks {
            let Intake::Land(land) = builder.intake() else { panic!("not host memory") };
            let mut landing = land.landing(&chunk.parts).unwrap();
            landing.copy_in(0, &file[chunk.file_range().start as usize..chunk.file_range().end as usize]);
            land.submit(landing).unwrap();
        }
        let region = builder.finish().unwrap();
        for (case, PlacedTensor { tensor, shape, place }) in cases.iter().zip(plan.layout.tensors_of(&manifest)) {
            let Rule::Split { dim, parts } = &case.rule else { continue };
            let own = indices(case.shape[*dim as usize], parts, seat).unwrap();
            assert_eq!(shape[*dim as usize], own.len() as u64);
            let mut found = vec![0; place.length_bytes as usize];
            region.read(place.offset_bytes, &mut found).unwrap();
            let bytes = &file[tensor.extent.offset_bytes as usize..][..tensor.extent.length_bytes as usize];
            // By rows, so that it takes no minute without optimisation.
            let pitch =
                tensor.extent.length_bytes as usize / case.shape[..*dim as usize].iter().product::<u64>() as usize;
            let width = pitch / case.shape[*dim as usize] as usize;
            let mut rows = found.chunks(own.len() * width);
            for row in bytes.chunks(pitch) {
                let runs = own.chunk_by(|a, b| a + 1 == *b);
                let wanted = runs.map(|run| &row[run[0] as usize * width..(run[run.len() - 1] as usize + 1) * width]);
                assert!(rows.next().unwrap() == wanted.collect::<Vec<_>>().concat(), "{} at {seat:?}", case.name);
            }
        }
    }
}

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
        let plan = Plan::new(&manifest, Some(&parallel), 256, SideFiles::WithTensors).unwrap();
        placed = plan.layout.sizes_bytes[0];
        assert_eq!(plan.layout.copies.iter().filter(|copy| copy.rows > 1).count(), 160);
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
