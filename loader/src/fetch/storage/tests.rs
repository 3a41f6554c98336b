use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_types::{Artifact, CHUNK_BYTES, ChunkKey, Version};

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn place(offset_bytes: u64, len_bytes: u64) -> Part {
    Part::Place { offset_bytes, len_bytes }
}

fn chunk(range: Range<u64>, parts: Vec<Part>) -> ChunkPlan {
    assert_eq!(parts.iter().map(Part::len_bytes).sum::<u64>(), range.end - range.start);
    let artifact = Artifact::new("file:///m", Version::new("v").unwrap(), CHUNK_BYTES).unwrap();
    ChunkPlan { region: 0, key: ChunkKey::new(Arc::new(artifact), 0).unwrap(), range, parts, expected: None }
}

/// Where each KiB of a chunk goes; all numbers of these tests are whole ones.
fn destinations(chunk: &ChunkPlan) -> BTreeMap<u64, u64> {
    let mut all = BTreeMap::new();
    let mut at = chunk.range.start;
    for part in &chunk.parts {
        let (rows, row_bytes, pitch, to) = match *part {
            Part::Place { offset_bytes, len_bytes } => (1, len_bytes, 0, offset_bytes),
            Part::Rows { offset_bytes, row_bytes, skip_bytes, rows } => {
                (rows, row_bytes, row_bytes + skip_bytes, offset_bytes)
            }
            Part::Discard { .. } => (0, 0, 0, 0),
        };
        for row in 0..rows {
            for step in (0..row_bytes).step_by(KIB as usize) {
                assert!(all.insert(at + row * pitch + step, to + row * row_bytes + step).is_none());
            }
        }
        at += part.len_bytes();
    }
    all
}

/// Start, end and destination of an extent; start and end of what is left.
type Apart = (Vec<(u64, u64, u64)>, Vec<(u64, u64)>);

/// Takes a chunk apart and checks that nothing is lost and nothing comes twice; gives the extents and what is left.
fn taken_apart(chunk: &ChunkPlan) -> Apart {
    let found = extents(chunk);
    // However many of them were read before a refusal.
    for done in 0..=found.len() {
        let rest = rest(chunk, &found[..done]);
        let mut all = BTreeMap::new();
        for plan in &rest {
            assert!(plan.range.start.is_multiple_of(MIB) && !plan.parts.is_empty());
            assert!(plan.range.end.is_multiple_of(MIB) || plan.range.end == chunk.range.end);
            assert_eq!(plan.parts.iter().map(Part::len_bytes).sum::<u64>(), plan.len_bytes());
            all.extend(destinations(plan));
        }
        for extent in &found[..done] {
            for step in (0..extent.range.end - extent.range.start).step_by(KIB as usize) {
                assert!(all.insert(extent.range.start + step, extent.to + step).is_none());
            }
        }
        assert_eq!(all, destinations(chunk), "{done} of {found:?}");
    }
    let rest = rest(chunk, &found).into_iter().map(|plan| (plan.range.start, plan.range.end)).collect();
    (found.into_iter().map(|extent| (extent.range.start, extent.range.end, extent.to)).collect(), rest)
}

#[test]
fn a_chunk_of_one_tensor_is_read_whole() {
    assert_eq!(
        taken_apart(&chunk(0..16 * MIB, vec![place(7 * KIB, 16 * MIB)])),
        (vec![(0, 16 * MIB, 7 * KIB)], vec![])
    );
    // A file that ends within a block.
    let found = taken_apart(&chunk(2 * MIB..4 * MIB + KIB, vec![place(0, 2 * MIB + KIB)]));
    assert_eq!(found, (vec![(2 * MIB, 4 * MIB, 0)], vec![(4 * MIB, 4 * MIB + KIB)]));
}

#[test]
fn ends_headers_rows_and_small_tensors_are_left() {
    let rows = Part::Rows { offset_bytes: 40 * MIB, row_bytes: KIB, skip_bytes: KIB, rows: 1024 };
    let parts = vec![
        Part::Discard { len_bytes: 3 * KIB },
        place(0, 10 * KIB),
        // From within the first block into the fourth one.
        place(MIB, 3 * MIB),
        place(20 * MIB, 512 * KIB),
        Part::Discard { len_bytes: MIB - 512 * KIB - 13 * KIB },
        rows,
        Part::Discard { len_bytes: MIB + KIB },
        // Two neighbours that are one.
        place(30 * MIB, MIB + 512 * KIB),
        place(31 * MIB + 512 * KIB, 2 * MIB + 512 * KIB),
    ];
    let len = parts.iter().map(Part::len_bytes).sum();
    let (found, rest) = taken_apart(&chunk(0..len, parts));
    assert_eq!(found, [(MIB, 3 * MIB, 2 * MIB - 13 * KIB), (7 * MIB, 11 * MIB, 30 * MIB)]);
    assert_eq!(rest, [(0, MIB), (3 * MIB, 7 * MIB)]);
}

#[test]
fn what_is_not_wanted_is_not_fetched() {
    let parts = vec![place(0, MIB), Part::Discard { len_bytes: 2 * MIB }, place(MIB, MIB)];
    assert_eq!(taken_apart(&chunk(0..4 * MIB, parts)).1, []);
    // Nothing that is large enough.
    let small = chunk(0..2 * MIB, vec![place(0, MIB - KIB), place(5 * MIB, MIB + KIB)]);
    assert_eq!(taken_apart(&small), (vec![(MIB, 2 * MIB, 5 * MIB + KIB)], vec![(0, MIB)]));
    let small = chunk(0..2 * MIB, vec![place(0, MIB - KIB), place(5 * MIB, 2 * KIB), place(8 * MIB, MIB - KIB)]);
    assert_eq!(taken_apart(&small), (vec![], vec![(0, 2 * MIB)]));
}
