//! The speed report: Longshore beside the plain limit of the same work, in one run, in alternation.
//!
//! Daemons run as processes of their own. Each round measures every limit and every case once, so that a noisy machine
//! hits both alike; medians and their ratios are reported, with the CPU seconds of every process that took part. Start
//! reading at [`cases::run`].

mod cases;
mod limits;
mod report;
mod system;

use std::path::PathBuf;

use clap::Parser;
use longshore_types::ByteSize;

/// Measures loads from a local file, a same-host worker, a TCP worker and an S3-compatible origin beside plain limits.
#[derive(Debug, Clone, Parser)]
pub struct Options {
    /// Bytes of the model. Everything is read from memory or the page cache: keep it well below the free memory.
    #[arg(long, default_value = "2GB")]
    size: ByteSize,
    /// Measured rounds; one more warms up and is not counted.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Threads and connections of the plain limits; the loader's own choice unless given.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
    /// Folder of the results.
    #[arg(long, default_value = "benches/results")]
    results: PathBuf,
    /// The page that is written from the results.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
    /// Be the origin of a run: serve the model at this address until killed.
    #[arg(long, hide = true, value_name = "ADDRESS")]
    serve_origin: Option<std::net::SocketAddr>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some(listen) = options.serve_origin {
        return cases::serve_origin(options.size.0, listen);
    }
    let report = cases::run(&options)?;
    let file = report.write(&options.results)?;
    report.write_page(&options.page, &file)?;
    print!("{}", report.table());
    println!("\nwritten: {} and {}", file.display(), options.page.display());
    Ok(())
}
