//! The parts of the GPU report that a script is too slow for: writing tens of gigabytes of model, reading files at the
//! disk's own rate, and the price of a checksum.
//!
//! It never touches a GPU. Each command prints one JSON object. The report itself is `scripts/gpu`.

mod checksum;
mod model;
mod read;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use longshore_types::ByteSize;

/// Writes models, reads files and checksums memory as fast as this machine does, for `make gpu`.
#[derive(Parser)]
#[command(name = "gpu-bench")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write a model in the shape of a decoder: safetensors files of BF16 with random bytes.
    Model {
        /// Folder to write to.
        folder: PathBuf,
        /// About so many bytes.
        #[arg(long)]
        size: ByteSize,
        /// About so many tensors: nine a layer and three more.
        #[arg(long, default_value_t = 1000)]
        tensors: u64,
        /// Files that the layers are spread over.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
        files: u64,
        /// Chooses the bytes.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Threads; one a core when not given.
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Read files from front to back into buffers that are used again and again: the limit of a load from disk.
    Read {
        /// The files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Past the page cache.
        #[arg(long)]
        direct: bool,
        /// Bytes of one read.
        #[arg(long, default_value = "16MiB")]
        block: ByteSize,
        /// Reads in flight, a thread each.
        #[arg(long, default_value_t = 16)]
        threads: usize,
    },
    /// Checksum memory as loads do: CRC-64/NVME over blocks of 1 MiB.
    Checksum {
        /// Bytes in all.
        #[arg(long, default_value = "16GiB")]
        size: ByteSize,
        /// Memory that they are read from, over and over.
        #[arg(long, default_value = "1GiB")]
        memory: ByteSize,
        /// Threads.
        #[arg(long, default_value_t = 1)]
        threads: usize,
    },
}

fn main() -> anyhow::Result<()> {
    let answer = match Args::parse().command {
        Command::Model { folder, size, tensors, files, seed, threads } => {
            let shape = model::Shape::near(size.0, tensors);
            model::write(&folder, &shape, files, seed, threads.unwrap_or_else(cores))?
        }
        Command::Read { files, direct, block, threads } => read::read(&files, direct, block.0, threads)?,
        Command::Checksum { size, memory, threads } => checksum::measure(size.0, memory.0, threads)?,
    };
    println!("{answer}");
    Ok(())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(4, usize::from)
}

/// CPU seconds of this process so far, of all threads.
fn cpu_seconds() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Deals `items` to `threads` threads, each with what `make` gives it.
fn deal<I: Send, C>(
    items: Vec<I>,
    threads: usize,
    make: impl Fn() -> C + Sync,
    work: impl Fn(&mut C, I) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    let queue = std::sync::Mutex::new(items.into_iter());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                scope.spawn(|| {
                    let mut context = make();
                    while let Some(item) = next() {
                        work(&mut context, item)?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
    })
}
