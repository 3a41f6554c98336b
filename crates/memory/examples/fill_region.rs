//! What it costs to fill a fresh region, for each kind of shared memory of this machine.
//!
//! `cargo run --release -p longshore-memory --example fill_region -- [MIB]`
//!
//! One thread writes every byte of a region that nobody has touched (1 GiB), and then the same bytes once more: the
//! difference is what pages cost. The kinds take turns, five rounds; the least of each is printed, in CPU seconds per GB.

use std::time::Duration;

use longshore_memory::{Arena, RegionWriter, SharedMemory};
use longshore_types::{Error, Result};

const ROUNDS: usize = 5;

fn main() -> Result<()> {
    let mib: u64 = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1024);
    let len = mib << 20;
    let mut kinds = vec![("memfd", SharedMemory::memfd())];
    match SharedMemory::private_mount(None) {
        Ok(memory) => kinds.push(("private mount", memory)),
        Err(error) => println!("no private mount: {error}"),
    }
    let mut least = vec![[Duration::MAX; 2]; kinds.len()];
    for _ in 0..ROUNDS {
        for ((_, memory), least) in kinds.iter().zip(&mut least) {
            let taken = fill(memory, len)?;
            *least = [least[0].min(taken[0]), least[1].min(taken[1])];
        }
    }
    for ((name, memory), [fresh, again]) in kinds.iter().zip(least) {
        let of_gb = |time: Duration| time.as_secs_f64() / (len as f64 / 1e9);
        println!("{name} ({}): fresh {:.3}, again {:.3} CPU s/GB", memory.pages(), of_gb(fresh), of_gb(again));
    }
    Ok(())
}

/// CPU time of the first and of the second filling.
fn fill(memory: &SharedMemory, len: u64) -> Result<[Duration; 2]> {
    let arena = Arena::new(len);
    let reservation = arena.try_reserve(len).ok_or_else(|| Error::new(longshore_types::Code::Exhausted, "no room"))?;
    let writer = RegionWriter::create_in(memory, "fill", len, reservation)?;
    let mut window = writer.claim(0..len)?;
    let mut taken = [Duration::ZERO; 2];
    for (byte, taken) in (1..).zip(&mut taken) {
        let start = cpu_time();
        window.fill(byte);
        *taken = cpu_time().saturating_sub(start);
    }
    Ok(taken)
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(clock.tv_sec.unsigned_abs(), u32::try_from(clock.tv_nsec).unwrap_or(0))
}
