//! The parts of the speed report that are written in Rust: the model, the plain limits, and calls that are too
//! short for a script to time.
//!
//! Each command prints one JSON object, `agent` one for each line it is given; the report itself is `benches/speed`.

mod agent;
mod attach;
mod limits;
mod metadata;
mod model;
mod random;
mod times;

use clap::{Parser, Subcommand};

/// Model, limits and short calls of the speed report, for `make bench`.
#[derive(Parser)]
#[command(name = "bench-tool")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write safetensors files in the shapes of a decoder.
    Model(model::Options),
    /// Measure plain limits: one JSON object on stdout for each on stdin.
    Agent,
    /// Attach to a loaded model over and over.
    Attach(attach::Options),
    /// Ask a worker for metadata with many calls in flight.
    Metadata(metadata::Options),
    /// Read small pieces at random places.
    Random(random::Options),
}

fn main() -> anyhow::Result<()> {
    let answer = match Args::parse().command {
        Command::Model(options) => model::write(&options)?,
        Command::Agent => return agent::run(),
        Command::Attach(options) => attach::measure(&options)?,
        Command::Metadata(options) => metadata::measure(&options)?,
        Command::Random(options) => random::measure(&options)?,
    };
    println!("{answer}");
    Ok(())
}
