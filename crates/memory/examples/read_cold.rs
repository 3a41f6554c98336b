//! How fast one cold file comes into memory, by each of our ways and by `fio` at the same queue depth.
//!
//! `cargo run --release -p longshore-memory --example read_cold -- FILE [THREADS] [ROUNDS] [WAY...]`
//!
//! FILE is made when it is not there (2 GiB); of a longer one that is what is read. Before each run its pages are dropped
//! from the cache, and the disk rests: rented ones are fast for a moment after a pause. The ways take turns, five rounds if
//! nothing else is said, another one first each time; medians are printed, with the CPU time each took. `fio` always runs;
//! of the others those that are named, or all.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use longshore_memory::direct::{DirectFile, residency};
use longshore_memory::{Arena, Claim, Landing, PinnedArena, RegionWriter, Reservation};
use longshore_types::{CHUNK_BYTES, Error, Result};
use rustix::fs::{Advice, fadvise};
use rustix::io::preadv;

const FILE_BYTES: u64 = 2 << 30;
const ROUNDS: usize = 5;
const REST: Duration = Duration::from_secs(3);
const THREADS_MAX: usize = 64;
const CACHED_READ_BYTES: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// `fio`, 16 reads of 1 MiB in flight a thread.
    Fio,
    /// Straight into aligned slots: of the kind of pages that this machine gives, which is printed.
    Direct,
    /// Into aligned memory of each thread, and from there to places in a region that are not.
    Bounced,
    /// Through the page cache, into slots.
    Cached,
    /// Through the page cache, into the places of [`Way::Bounced`].
    CachedUnaligned,
}

const WAYS: [Way; 5] = [Way::Fio, Way::Direct, Way::Bounced, Way::Cached, Way::CachedUnaligned];

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "target/tmp/read_cold.bin".into());
    let threads = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(1usize).clamp(1, THREADS_MAX);
    let rounds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS).max(1);
    let named: Vec<String> = arguments.collect();
    let is_wanted = |way: &Way| *way == Way::Fio || named.is_empty() || named.contains(&format!("{way:?}"));
    let ways: Vec<Way> = WAYS.into_iter().filter(is_wanted).collect();
    let path = Path::new(&path);
    if !path.exists() {
        make(path).map_err(|error| failed(&error))?;
    }
    let arena = Arena::new(4 << 30);
    let pinned = PinnedArena::create(threads as u64 * CHUNK_BYTES, reserve(&arena, THREADS_MAX as u64 * CHUNK_BYTES)?)?;
    let region = RegionWriter::create("region", FILE_BYTES + 4096, reserve(&arena, FILE_BYTES + 4096)?)?;
    // Touched before: what a fresh page costs is no matter of how its bytes are read.
    region.claim(0..region.len())?.fill(1);
    println!("slots of {} pages; region of {}", pinned.stats().pages, longshore_memory::shared_memory().pages());
    let memory = Memory { pinned, region };
    let mut seconds = vec![Vec::new(); ways.len()];
    for round in 0..rounds {
        for index in (0..ways.len()).map(|at| (at + round) % ways.len()) {
            drop_from_cache(path).map_err(|error| failed(&error))?;
            std::thread::sleep(REST);
            seconds[index].push(run(ways[index], path, threads, &memory)?);
        }
    }
    let medians: Vec<_> = seconds.iter_mut().map(|runs| median(runs)).collect();
    let fio = medians[0].0;
    for (way, (wall, cpu)) in ways.into_iter().zip(&medians) {
        let rate = FILE_BYTES as f64 / wall.as_secs_f64() / 1e9;
        let ratio = fio.as_secs_f64() / wall.as_secs_f64();
        let cpu = cpu.as_secs_f64() / (FILE_BYTES as f64 / 1e9);
        println!("{way:?} threads={threads} GB/s={rate:.2} of_fio={ratio:.2} cpu_s_per_GB={cpu:.3}");
    }
    Ok(())
}

fn median(runs: &mut [(Duration, Duration)]) -> (Duration, Duration) {
    runs.sort();
    runs[runs.len() / 2]
}

/// Where the bytes go.
struct Memory {
    pinned: PinnedArena,
    region: RegionWriter,
}

fn reserve(arena: &Arena, bytes: u64) -> Result<Reservation> {
    arena.wait_reserve(bytes, Duration::ZERO)
}

/// Wall time and CPU time.
fn run(way: Way, path: &Path, threads: usize, memory: &Memory) -> Result<(Duration, Duration)> {
    if way == Way::Fio {
        return fio(path, threads);
    }
    let Memory { pinned, region } = memory;
    let chunks = FILE_BYTES / CHUNK_BYTES;
    let direct = DirectFile::open(path).map_err(|error| failed(&error))?;
    let direct = direct.ok_or_else(|| Error::new(longshore_types::Code::Unsupported, "no direct reads here"))?;
    let cached = File::open(path).map_err(|error| failed(&error))?;
    let next = AtomicU64::new(0);
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= chunks {
                return Ok(());
            }
            let range = index * CHUNK_BYTES..(index + 1) * CHUNK_BYTES;
            let mut landing = match way {
                Way::Direct | Way::Cached => {
                    let chunk = pinned.try_chunk(CHUNK_BYTES, None);
                    match chunk.map(|chunk| chunk.claim(0..u32::MAX)) {
                        Some(Claim::Fill(window)) => Landing::builder().block_window(window).build()?,
                        _ => return Err(Error::new(longshore_types::Code::Internal, "no slot")),
                    }
                }
                _ => Landing::builder().window(region.claim(range.start + 256..range.end + 256)?).build()?,
            };
            match way {
                Way::Direct => {
                    let whole = landing.contiguous_mut().unwrap_or_default();
                    direct.read(range.start, whole).map_err(|error| failed(&error))?;
                }
                Way::Bounced => {
                    let mut at = 0;
                    let copy = |part: &[u8]| {
                        landing.copy_in(at, part);
                        at += part.len();
                    };
                    direct.read_through(range, copy).map_err(|error| failed(&error))?;
                }
                _ => read_cached(&cached, &range, &mut landing)?,
            }
        }
    };
    let (start, cpu) = (Instant::now(), cpu_time());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().try_for_each(|worker| match worker.join() {
            Ok(answer) => answer,
            Err(_) => Err(Error::new(longshore_types::Code::Internal, "a thread panicked")),
        })
    })?;
    let taken = (start.elapsed(), cpu_time().saturating_sub(cpu));
    let was_cached = residency(&cached, 0..FILE_BYTES).unwrap_or(f64::NAN);
    eprintln!("{way:?} {:.3} s, {was_cached:.2} of the file is cached now", taken.0.as_secs_f64());
    Ok(taken)
}

fn read_cached(file: &File, range: &Range<u64>, landing: &mut Landing) -> Result<()> {
    let mut at = 0;
    while at < landing.len() {
        let mut slices = landing.slices_mut(at..at + CACHED_READ_BYTES);
        at += preadv(file, &mut slices, range.start + at as u64).map_err(|error| failed(&error.into()))?;
    }
    Ok(())
}

fn fio(path: &Path, threads: usize) -> Result<(Duration, Duration)> {
    let size = FILE_BYTES / threads as u64 / CHUNK_BYTES * CHUNK_BYTES;
    let output = Command::new("fio")
        .args([
            "--name=cold",
            "--rw=read",
            "--bs=1m",
            "--ioengine=io_uring",
            "--iodepth=16",
            "--direct=1",
            "--readonly",
        ])
        .args(["--group_reporting", "--thread", "--output-format=terse", "--terse-version=3"])
        .args([format!("--filename={}", path.display()), format!("--numjobs={threads}"), format!("--size={size}")])
        .arg(format!("--offset_increment={size}"))
        .output()
        .map_err(|error| failed(&error))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let fields: Vec<&str> = text.trim().split(';').collect();
    let field = |at: usize| -> Option<f64> { fields.get(at)?.trim_end_matches('%').parse().ok() };
    let numbers = field(5).zip(field(8)).zip(field(87).zip(field(88)));
    let Some(((kib, milliseconds), (user, system))) = numbers else {
        let message = format!("fio said {text} {}", String::from_utf8_lossy(&output.stderr));
        return Err(Error::new(longshore_types::Code::Unavailable, message));
    };
    // Scaled to the whole file: with some numbers of threads a rest of it is not read.
    let wall = Duration::from_secs_f64(milliseconds / 1000.0 * (FILE_BYTES as f64 / 1024.0) / kib);
    eprintln!("Fio {:.3} s", wall.as_secs_f64());
    Ok((wall, wall.mul_f64((user + system) / 100.0)))
}

fn make(path: &Path) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = File::create(path)?;
    let mut state = 1u64;
    let mut block = vec![0u8; 1 << 20];
    for _ in 0..FILE_BYTES >> 20 {
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()
}

fn drop_from_cache(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
}

/// User and system time of this process.
fn cpu_time() -> Duration {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(clock.tv_sec.unsigned_abs(), u32::try_from(clock.tv_nsec).unwrap_or(0))
}

fn failed(error: &std::io::Error) -> Error {
    Error::new(longshore_types::Code::Unavailable, error.to_string())
}
