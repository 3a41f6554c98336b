//! A client process maps slabs, fills and seals them, and is killed at any point: what is sealed is complete.
//!
//! The client is this test binary started again with a variable set; the memory is what it finds under that path.

#![cfg(not(miri))]
#![allow(clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use longshore_memory::Arena;
use longshore_memory::slabs::{
    CONTROL_RECORD_BYTES, ControlPage, PieceName, SessionFolder, SlabFolder, SlabPiece, SlabRecord, SlabState,
};
use memmap2::{MmapOptions, MmapRaw};

const FOLDER: &str = "LONGSHORE_SLAB_TEST_FOLDER";
const SLABS: u32 = 16;
const SLAB_BYTES: usize = 512 << 10;
const PIECE: PieceName = PieceName { index: 0, len_bytes: SLABS as u64 * SLAB_BYTES as u64 };

/// What belongs into a slab in a round.
fn word(round: u64, slab: u32) -> u64 {
    (round << 32 | u64::from(slab)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn record(round: u64, slab: u32) -> SlabRecord {
    SlabRecord { slab, attempt: [3; 16], file: 1, slab_index: slab, length_bytes: SLAB_BYTES as u64, generation: round }
}

fn client(session: &SessionFolder) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_client", "--nocapture", "--test-threads=1"])
        .env(FOLDER, session.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn what_a_killed_client_sealed_is_complete() {
    let place = tempfile::tempdir_in("/dev/shm").unwrap();
    let folder = SlabFolder::open(&place.path().join("slabs")).unwrap();
    let session = folder.create_session("one").unwrap();
    let arena = Arena::new(64 << 20);
    let piece = SlabPiece::create(&session, PIECE, arena.try_reserve(PIECE.len_bytes).unwrap()).unwrap();
    let control = ControlPage::create(&session, SLABS, arena.try_reserve(4096).unwrap()).unwrap();
    let (mut sealed, mut unsealed) = (0, 0);
    for round in 0..24_u64 {
        (0..SLABS).for_each(|slab| control.grant(&record(round, slab)).unwrap());
        let mut child = client(&session);
        writeln!(child.stdin.as_mut().unwrap(), "{round}").unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let target = format!("sealed {}", round % u64::from(SLABS - 1));
        assert!(lines.any(|line| line.unwrap().ends_with(&target)), "the client ended early");
        // Somewhere in the copies that follow; busy, because it is a matter of microseconds.
        let moment = Instant::now() + Duration::from_micros(round * 37 % 400);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // As the next daemon does it.
        let control = ControlPage::open(&session, None).unwrap();
        for slab in 0..SLABS {
            let (state, read) = control.record(slab).unwrap();
            assert_eq!(read, record(round, slab));
            if state != SlabState::Sealed {
                unsealed += 1;
                continue;
            }
            sealed += 1;
            let mut bytes = vec![0; SLAB_BYTES];
            piece.read(u64::from(slab) * SLAB_BYTES as u64, &mut bytes).unwrap();
            let wanted = word(round, slab).to_le_bytes();
            assert!(
                bytes.chunks(8).all(|found| found == wanted),
                "slab {slab} of round {round} is sealed and not whole"
            );
        }
    }
    assert!(sealed > 24 && unsealed > 24, "{sealed} sealed, {unsealed} not: the kills came at no good time");
}

fn map(path: &Path, len: usize) -> MmapRaw {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    MmapOptions::new().len(len).map_raw(&file).unwrap()
}

/// Not a test of its own: without the variable it has nothing to do.
#[test]
fn the_client() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let memory = map(&folder.join(PIECE.to_string()), PIECE.len_bytes as usize);
    let control = map(&folder.join("control"), 4096);
    let mut round = String::new();
    std::io::stdin().read_line(&mut round).unwrap();
    let round: u64 = round.trim().parse().unwrap();
    for slab in 0..SLABS {
        let start = memory.as_mut_ptr().wrapping_add(slab as usize * SLAB_BYTES).cast::<u64>();
        for at in 0..SLAB_BYTES / 8 {
            // SAFETY: within the mapping, aligned, and of this process alone while the slab is granted to it.
            unsafe { start.wrapping_add(at).write(word(round, slab)) };
        }
        let state = control.as_mut_ptr().wrapping_add(slab as usize * CONTROL_RECORD_BYTES as usize);
        // SAFETY: the first word of a record, within the mapping and aligned; others only ever read or write it whole.
        let state = unsafe { AtomicU32::from_ptr(state.cast()) };
        state.store(SlabState::Sealed as u32, Ordering::Release);
        println!("sealed {slab}");
    }
    // Until it is killed.
    std::io::stdin().read_line(&mut String::new()).unwrap();
}
