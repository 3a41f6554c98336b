//! Plans of ranks, against slices by definition.

mod rules;
mod size;

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

fn copies_of(cases: &[Case], seat: Seat) -> Result<Vec<CopyRange>> {
    let manifest = manifest_of(cases, 8);
    Ok(Layout::new(&manifest, Some(&parallel_of(cases, seat)), 256, SideFiles::WithTensors)?.copies)
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
fn check_bytes(cases: &[Case], seat: Seat) {
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
            let seat = Seat { rank, world_size };
            check_bytes(&cases, seat);
            let listed: Vec<u64> = copies_of(&cases, seat).unwrap().iter().map(|copy| copy.rows).collect();
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
fn pieces_that_only_look_even_are_listed() {
    // Rank 3 has the columns 3 and 7 of 9: evenly spaced within a row, and not from one row to the next.
    let case = Case::new("t", Dtype::U8, &[3, 9], fused(1, &[(6, 1), (3, 2)]));
    for rank in 0..6 {
        check_bytes(std::slice::from_ref(&case), Seat { rank, world_size: 6 });
    }
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
