//! How fast slabs get to the disk, synced: through the page cache or past it, into blocks that are there or not.
//!
//! `cargo run --release -p longshore-checkpoint --example flush_disk -- FILE MIB [THREADS]`. Two threads, or so many, write slabs of 64 MiB, each of which is
//! synced by itself, as the flush threads do. Compare with `fio --rw=write --bs=1M --end_fsync=1` on the same disk.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use longshore_checkpoint::SLAB_BYTES;
use longshore_memory::Arena;
use longshore_types::{BlockChecksum, Error};
use rustix::fs::{FallocateFlags, OFlags, fallocate};

const ROUNDS: usize = 3;

/// Name, past the page cache, blocks taken ahead, bytes of one write.
const WAYS: [(&str, bool, bool, usize); 4] = [
    ("page cache", false, false, 1 << 20),
    ("page cache, blocks ahead", false, true, 1 << 20),
    ("direct", true, false, 16 << 20),
    ("direct, blocks ahead", true, true, 16 << 20),
];

fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: flush_disk FILE MIB [THREADS]")?;
    let slabs =
        arguments.next().ok_or("usage: flush_disk FILE MIB [THREADS]")?.parse::<u64>()?.div_ceil(SLAB_BYTES >> 20);
    let threads_wanted = arguments.next().map_or(Ok(2), |threads| threads.parse::<usize>())?;
    let arena = Arena::new(1 << 30);
    for round in 0..ROUNDS {
        for (name, direct, ahead, unit) in WAYS {
            let flags = if direct { OFlags::DIRECT.bits() as i32 } else { 0 };
            let file = File::options().write(true).create(true).truncate(true).custom_flags(flags).open(&path)?;
            if ahead {
                fallocate(&file, FallocateFlags::empty(), 0, slabs * SLAB_BYTES)?;
            }
            let next = AtomicU64::new(0);
            let started = Instant::now();
            std::thread::scope(|scope| -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                let write = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                    let mut buffer = arena.try_buffer(unit).ok_or("no memory")?;
                    buffer.fill(7);
                    loop {
                        let slab = next.fetch_add(1, Ordering::Relaxed);
                        if slab >= slabs {
                            return Ok(());
                        }
                        for at in (0..SLAB_BYTES).step_by(unit) {
                            for block in buffer.chunks(1 << 20) {
                                std::hint::black_box(BlockChecksum::of(block));
                            }
                            file.write_all_at(&buffer, slab * SLAB_BYTES + at)?;
                        }
                        file.sync_data()?;
                    }
                };
                let threads: Vec<_> = (0..threads_wanted).map(|_| scope.spawn(write)).collect();
                for thread in threads {
                    thread.join().map_err(|_| Error::new(longshore_types::Code::Internal, "a thread panicked"))??;
                }
                Ok(())
            })?;
            let rate = (slabs * SLAB_BYTES) as f64 / 1e6 / started.elapsed().as_secs_f64();
            println!("round {round}: {name}: {rate:.0} MB/s");
        }
    }
    std::fs::remove_file(&path)?;
    Ok(())
}
