//! The text the kernel writes, and pieces on a machine as it is.

use super::*;

const SMAPS: &str = "\
55d000000000-55d000001000 r--p 00000000 fe:00 42                         /bin/x
ShmemPmdMapped:        4 kB
7f0000000000-7f0040000000 rw-s 00000000 00:01 1034                       /memfd:longshore-pinned (deleted)
Size:            1048576 kB
ShmemPmdMapped:  1048576 kB
FilePmdMapped:         8 kB
VmFlags: rd wr sh mr mw me ms sd hg
7f0080000000-7f0080200000 rw-s 00000000 00:01 1035                       /memfd:longshore-pinned (deleted)
ShmemPmdMapped:     2048 kB
7f0090000000-7f0090200000 rw-s 00000000 00:01 1036                       /memfd:other (deleted)
ShmemPmdMapped:     2048 kB
";

#[test]
fn huge_pages_of_our_mappings_are_counted() {
    assert_eq!(huge_bytes(SMAPS, &[0x7f00_0000_0000, 0x7f00_8000_0000]), (1 << 30) + (2 << 20));
    assert_eq!(huge_bytes(SMAPS, &[0x1234]), 0);
    assert_eq!(kib_field("MemFree: 5 kB\nMemAvailable:   12 kB\n", "MemAvailable:"), Some(12 << 10));
    assert_eq!(kib_field("MemAvailable: many kB\n", "MemAvailable:"), None);
}

#[test]
fn pieces_come_in_the_order_of_the_plan_from_any_number_of_threads() {
    let plan: Vec<_> = (0..5).map(|at| PiecePlan { slots: 1 + at % 2, node: None }).collect();
    let (pieces, _) = create_all(&plan).unwrap();
    let lens: Vec<_> = pieces.iter().map(|piece| piece.memory.len() as u64 / CHUNK_BYTES).collect();
    assert_eq!(lens, [1, 2, 1, 2, 1]);
    assert!(pieces.iter().all(|piece| piece.memory.start().as_ptr().align_offset(HUGE_PAGE_BYTES) == 0));
}

#[test]
fn memory_that_is_bound_to_a_node_says_so_and_to_none_that_is_not_there() {
    let create = |node| Piece::create(&PiecePlan { slots: 1, node: Some(node) }, false).unwrap().node;
    // Where the call is not permitted, nothing is claimed at all.
    assert!(matches!(create(0), Some(0) | None));
    assert_eq!(create(1023), None);
    assert_eq!(create(9999), None);
}

#[test]
fn more_huge_pages_than_were_set_aside_are_an_error_and_no_signal() {
    let slots = (free_huge_pages() / 8 + 1).min(64);
    if slots * 8 > free_huge_pages() {
        assert!(Piece::create(&PiecePlan { slots, node: None }, true).is_err());
    }
}
