mod ranks;
mod reference;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use longshore_device::Part;
use longshore_types::chunk::chunk_count;
use longshore_types::{Artifact, BLOCK_BYTES, CHUNK_BYTES, Extent, Manifest, ModelFile, Tensor, Version};
use proptest::prelude::*;

use super::*;

/// A file of the model under test: `None` is delivered as bytes, else the gap in front of each tensor and its length.
type FileSpec = (u64, Option<Vec<(u64, u64)>>);

fn manifest(files: &[FileSpec]) -> Manifest {
    let mut manifest = Manifest {
        url: "s3://b/m".into(),
        revision: "r".into(),
        files: vec![],
        tensors: vec![],
        skipped: vec![],
        warnings: vec![],
    };
    for (file, (tail, tensors)) in files.iter().enumerate() {
        let mut at = 0;
        for (position, &(gap, length_bytes)) in tensors.iter().flatten().enumerate() {
            at += gap;
            manifest.tensors.push(Tensor {
                name: format!("t{file}.{position}"),
                dtype_name: "U8".into(),
                dtype: None,
                shape: vec![length_bytes],
                extent: Extent { file, offset_bytes: at, length_bytes },
                piece: None,
            });
            at += length_bytes;
        }
        let version = Version::new("etag:\"1\"").unwrap();
        let artifact = Arc::new(Artifact::new(format!("s3://b/m/f{file}"), version, at + tail).unwrap());
        manifest.files.push(ModelFile::plain(format!("f{file}"), artifact, tensors.is_some()));
    }
    manifest
}

/// What the region holds after the plan was executed: region offset -> (length, file, file offset).
type Held = BTreeMap<u64, (u64, usize, u64)>;

/// Carries the plan out on intervals instead of bytes, checking every promise that a backend relies on.
fn execute(manifest: &Manifest, plan: &Plan) -> Held {
    let mut held = Held::new();
    for chunk in &plan.chunks {
        let url = chunk.key.artifact().url();
        let file = manifest.files.iter().position(|file| file.artifact.url() == url).unwrap();
        assert!(chunk.range.start.is_multiple_of(BLOCK_BYTES) && chunk.range.start < chunk.range.end);
        assert!(chunk.range.end.is_multiple_of(BLOCK_BYTES) || chunk.range.end == chunk.key.len_bytes());
        let mut at = chunk.file_range().start;
        let mut needed_blocks = std::collections::BTreeSet::new();
        let mut last_place_end = None;
        for part in &chunk.parts {
            match *part {
                Part::Place { offset_bytes, len_bytes } => {
                    assert!(len_bytes > 0 && offset_bytes + len_bytes <= plan.layout.sizes_bytes[0]);
                    assert_ne!(last_place_end, Some(offset_bytes), "neighbours are merged");
                    let before = held.insert(offset_bytes, (len_bytes, file, at));
                    assert!(before.is_none(), "two writers of one place");
                    needed_blocks.extend(at / BLOCK_BYTES..=(at + len_bytes - 1) / BLOCK_BYTES);
                    at += len_bytes;
                    last_place_end = Some(offset_bytes + len_bytes);
                }
                Part::Rows { offset_bytes, row_bytes, skip_bytes, rows } => {
                    assert!(row_bytes > 0 && rows > 1, "one row is a place");
                    assert!(skip_bytes > 0 && skip_bytes < BLOCK_BYTES, "{skip_bytes} bytes between rows");
                    assert!(offset_bytes + row_bytes * rows <= plan.layout.sizes_bytes[0]);
                    for row in 0..rows {
                        let before = held.insert(offset_bytes + row * row_bytes, (row_bytes, file, at));
                        assert!(before.is_none(), "two writers of one place");
                        needed_blocks.extend(at / BLOCK_BYTES..=(at + row_bytes - 1) / BLOCK_BYTES);
                        at += row_bytes + if row + 1 < rows { skip_bytes } else { 0 };
                    }
                    last_place_end = None;
                }
                Part::Discard { len_bytes } => {
                    assert!(len_bytes > 0);
                    at += len_bytes;
                    last_place_end = None;
                }
            }
        }
        assert_eq!(at, chunk.file_range().end, "the parts are exactly the range");
        let asked = chunk.file_range().start / BLOCK_BYTES..chunk.file_range().end.div_ceil(BLOCK_BYTES);
        assert!(asked.clone().all(|block| needed_blocks.contains(&block)), "a block that nobody needs is read");
    }
    let mut end_before = 0;
    for (&offset, &(len, ..)) in &held {
        assert!(offset >= end_before, "two places overlap");
        end_before = offset + len;
    }
    held
}

fn assert_holds(held: &Held, place: Place, file: usize, file_offset: u64) {
    let mut at = 0;
    while at < place.length_bytes {
        let (&start, &(len, from_file, from)) = held.range(..=place.offset_bytes + at).next_back().unwrap();
        let within = place.offset_bytes + at - start;
        assert!(within < len, "a hole in the middle of a tensor");
        assert_eq!((from_file, from + within), (file, file_offset + at), "bytes of another place");
        at += len - within;
    }
}

fn check(manifest: &Manifest) -> Plan {
    let plan = Plan::new(manifest, None, 256, SideFiles::WithTensors).unwrap();
    let held = execute(manifest, &plan);
    assert_eq!(plan.layout.tensors.len(), manifest.tensors.len());
    for PlacedTensor { tensor, place, .. } in plan.layout.tensors_of(manifest) {
        assert!(place.offset_bytes.is_multiple_of(256));
        assert_eq!(place.length_bytes, tensor.extent.length_bytes);
        assert_holds(&held, place, tensor.extent.file, tensor.extent.offset_bytes);
    }
    for &(file, place) in &plan.layout.files {
        assert!(!manifest.files[file].is_tensors && place.offset_bytes.is_multiple_of(256));
        assert_eq!(place.length_bytes, manifest.files[file].artifact.size_bytes());
        assert_holds(&held, place, file, 0);
    }
    plan
}

fn lengths() -> impl Strategy<Value = u64> {
    prop_oneof![
        3 => 0u64..2000,
        2 => (0u64..64).prop_map(|n| n * 256),
        1 => 0u64..3 * CHUNK_BYTES,
        1 => (0u64..4).prop_map(|n| n * BLOCK_BYTES),
    ]
}

fn gaps() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(0u64), 1 => 0u64..5000, 1 => 0u64..2 * CHUNK_BYTES]
}

fn file_specs() -> impl Strategy<Value = FileSpec> {
    (lengths(), proptest::option::weighted(0.8, proptest::collection::vec((gaps(), lengths()), 0..40)))
}

proptest! {
    #[test]
    fn executing_the_plan_gives_every_tensor_exactly_its_bytes(
        files in proptest::collection::vec(file_specs(), 1..6),
    ) {
        check(&manifest(&files));
    }
}

#[test]
fn a_dense_file_is_one_copy_and_one_part_a_chunk() {
    let tensors = vec![(0, 256 * 1000); 300];
    let manifest = manifest(&[(0, Some(tensors))]);
    let layout = Layout::new(&manifest, None, 256, SideFiles::WithTensors).unwrap();
    assert_eq!(layout.copies.len(), 1);
    let plan = check(&manifest);
    assert_eq!(plan.chunks.len() as u64, chunk_count(300 * 256_000));
    assert!(plan.chunks.iter().all(|chunk| chunk.parts.len() == 1));
}

#[test]
fn a_long_header_is_not_fetched_and_empty_models_need_nothing() {
    let plan = check(&manifest(&[(0, Some(vec![(40 << 20, 10)]))]));
    assert_eq!(plan.chunks.len(), 1);
    assert_eq!(plan.fetch_bytes(), 10);
    let plan = check(&manifest(&[(0, Some(vec![(8, 0), (0, 0)])), (0, None)]));
    assert!(plan.chunks.is_empty());
    assert_eq!(plan.layout.sizes_bytes[0], 0);
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused_by_name() {
    let good = manifest(&[(0, Some(vec![(8, 100), (0, 100)])), (5, None)]);
    let break_it = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        Plan::new(&manifest, None, 256, SideFiles::WithTensors).unwrap_err().to_string()
    };
    assert!(break_it(&|m| m.tensors[1].extent.offset_bytes -= 1).contains("overlaps"));
    assert!(break_it(&|m| m.tensors[1].extent.length_bytes += 1).contains("beyond the end"));
    assert!(break_it(&|m| m.tensors[1].extent.offset_bytes = u64::MAX).contains("beyond the end"));
    assert!(break_it(&|m| m.tensors[1].extent.file = 1).contains("without tensors"));
    assert!(break_it(&|m| m.tensors.swap(0, 1)).contains("overlaps"));
    assert!(break_it(&|m| m.tensors[0].dtype = Some(longshore_types::Dtype::F32)).contains("dtype and shape"));
}

#[test]
fn a_hundred_thousand_tensors_are_planned_in_time() {
    let manifest = manifest(&[(0, Some((0..100_000).map(|n| (0, n % 70_000)).collect()))]);
    let start = Instant::now();
    let plan = Plan::new(&manifest, None, 256, SideFiles::WithTensors).unwrap();
    let elapsed = start.elapsed();
    assert_eq!(plan.layout.tensors.len(), 100_000);
    // Without optimisation this only guards against something quadratic.
    let limit_ms = if cfg!(debug_assertions) { 2_000 } else { 50 };
    assert!(elapsed.as_millis() < limit_ms, "{elapsed:?}");
}
