//! Arenas of real memory.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::io::{FdFlags, fcntl_getfd};

use super::*;
use crate::{Arena, Landing};

const SLOT: u64 = PinnedArena::SLOT_BYTES;

fn pinned(slots: u64) -> (Arena, PinnedArena) {
    let arena = Arena::new(slots * SLOT);
    let pinned = PinnedArena::create(slots * SLOT, arena.try_reserve(slots * SLOT).unwrap()).unwrap();
    (arena, pinned)
}

fn file(pinned: &PinnedArena, index: usize) -> File {
    File::from(pinned.pieces()[index].fd.try_clone_to_owned().unwrap())
}

#[test]
fn what_is_filled_here_is_read_through_the_descriptor() {
    let (_arena, pinned) = pinned(3);
    let stats = pinned.stats();
    assert_eq!((stats.capacity_bytes, stats.used_bytes), (3 * SLOT, 0));
    let pieces = pinned.pieces();
    assert_eq!(pieces.iter().map(|piece| piece.len_bytes).sum::<u64>(), 3 * SLOT);
    assert!(pieces.iter().all(|piece| fcntl_getfd(piece.fd).unwrap().contains(FdFlags::CLOEXEC)));
    let chunks: Vec<_> = std::iter::from_fn(|| pinned.try_chunk(SLOT, None)).collect();
    assert_eq!((chunks.len(), pinned.stats().used_bytes), (3, 3 * SLOT));
    for (mark, chunk) in (1u8..).zip(&chunks) {
        let Claim::Fill(mut window) = chunk.claim(2..3) else { panic!("not missing") };
        window.fill(mark);
        window.commit();
        let (piece, offset) = chunk.place();
        let mut byte = [0];
        file(&pinned, piece).read_exact_at(&mut byte, offset + (3 << 20) - 1).unwrap();
        assert_eq!(byte, [mark]);
    }
    drop(chunks);
    assert_eq!(pinned.stats().used_bytes, 0);
}

#[test]
fn pieces_are_allocated_and_keep_their_size_where_they_can_be_sealed() {
    let (_arena, pinned) = pinned(2);
    let file = file(&pinned, 0);
    let metadata = file.metadata().unwrap();
    let allocated = std::os::unix::fs::MetadataExt::blocks(&metadata) * 512;
    assert!(allocated >= metadata.len(), "{allocated} of {}", metadata.len());
    // Those of the private mount cannot be sealed.
    let refused = [0, metadata.len() + 4096].map(|len| file.set_len(len).is_err());
    let is_sealable = crate::shared_memory().pages() != crate::SharedPages::HugePrivateMount;
    assert_eq!(refused, [is_sealable; 2]);
}

#[test]
fn slots_are_of_huge_pages_where_shared_memory_is() {
    let (_arena, pinned) = pinned(1);
    let is_small = crate::shared_memory().pages() == crate::SharedPages::Small;
    // Set aside by an administrator they are the better ones, whatever else there is.
    assert!(pinned.stats().pages == PageKind::Hugetlb || (pinned.stats().pages == PageKind::Small) == is_small);
}

#[test]
fn memory_is_paid_for_until_the_last_chunk_is_gone() {
    let (arena, pinned) = pinned(1);
    let clone = pinned.clone();
    let chunk = pinned.try_chunk(5, None).unwrap();
    assert!(clone.try_chunk(5, None).is_none());
    drop((pinned, clone));
    assert_eq!(arena.leased_bytes(), SLOT);
    drop(chunk);
    assert_eq!(arena.leased_bytes(), 0);
}

#[test]
fn sizes_that_cannot_be() {
    let arena = Arena::new(1 << 60);
    let create = |bytes, reserved| PinnedArena::create(bytes, arena.try_reserve(reserved).unwrap());
    assert_eq!(create(SLOT - 1, SLOT).unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(create(2 * SLOT, SLOT).unwrap_err().code(), Code::Internal);
    assert_eq!(create(1 << 50, 1 << 50).unwrap_err().code(), Code::Exhausted);
    assert_eq!(arena.leased_bytes(), 0);
    // What is more than whole slots is left alone.
    let pinned = create(2 * SLOT - 1, SLOT).unwrap();
    assert_eq!(pinned.stats().capacity_bytes, SLOT);
    assert!(pinned.try_chunk(SLOT + 1, None).is_none());
}

#[test]
fn blocks_of_a_chunk_serve_as_a_landing() {
    let (_arena, pinned) = pinned(1);
    let chunk = pinned.try_chunk((2 << 20) + 77, None).unwrap();
    let Claim::Fill(window) = chunk.claim(1..9) else { panic!("not missing") };
    let mut landing = Landing::builder().block_window(window).build().unwrap();
    assert_eq!(landing.len(), (1 << 20) + 77);
    let whole = landing.contiguous_mut().unwrap();
    assert_eq!((whole.as_ptr().align_offset(4096), whole.len()), (0, (1 << 20) + 77));
    landing.copy_in((1 << 20) + 70, b"the end");
    let windows = landing.into_block_windows();
    assert_eq!(windows.len(), 1);
    windows.into_iter().for_each(BlockWindow::commit);
    assert_eq!(chunk.bytes((2 << 20) + 70..(2 << 20) + 77), Some(&b"the end"[..]));

    let Claim::Fill(window) = chunk.claim(0..9) else { panic!("not missing") };
    let mut landing = Landing::builder().scratch(3).block_window(window).build().unwrap();
    assert!(landing.contiguous_mut().is_none());
    // A landing that is given up leaves its blocks missing, without anybody's help.
    drop(landing);
    assert!(!chunk.is_ready(0..1));
}

#[test]
fn kinds_of_pages_have_names() {
    let names = [PageKind::Hugetlb, PageKind::Transparent, PageKind::Small].map(|kind| kind.to_string());
    assert_eq!(names, ["hugetlb 2 MiB", "transparent huge", "4 KiB"]);
}
