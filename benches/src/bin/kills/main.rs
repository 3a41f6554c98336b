//! Kills the loader at random times while it saves, thousands of times, and checks after each what must hold.
//!
//! Hypothesis: whenever SIGKILL strikes, no checkpoint is torn, no acknowledgement is lost, and at most one part a stream is
//! sent twice. Small checkpoints of a few parts go to a fake S3 in this process; the loader is the real one, found beside
//! this program. It prints one JSON object, and fails when one of the counts that must be 0 is not.

mod check;
mod lane;
mod life;
mod tally;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use lane::Lane;
use tally::Tally;

/// Kills the loader at random times during saves and checks what is left.
#[derive(Parser, Clone)]
#[command(name = "kills")]
struct Args {
    /// Kills in all.
    #[arg(long, default_value_t = 3000)]
    iterations: u64,
    /// Stops after so many minutes, whatever was reached.
    #[arg(long, default_value_t = 15.0)]
    minutes: f64,
    /// Loaders side by side, each with a run and an origin of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=64))]
    lanes: u64,
    /// Parts that a loader sends at once: the streams of a save.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=16))]
    streams: u64,
    /// Bytes of a checkpoint, in MiB.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=4096))]
    mib: u64,
    /// Chooses the times; the same seed gives the same choices, and the machine the rest.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Also writes the result here.
    #[arg(long)]
    output: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let start = Instant::now();
    let deadline = start + Duration::from_secs_f64(args.minutes.clamp(0.0, 100_000.0) * 60.0);
    let is_over = AtomicBool::new(false);
    let mut tally = Tally::default();
    let outcome: anyhow::Result<()> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..args.lanes)
            .map(|number| {
                let (args, is_over) = (&args, &is_over);
                let share = args.iterations / args.lanes + u64::from(number < args.iterations % args.lanes);
                scope.spawn(move || -> anyhow::Result<Tally> {
                    let mut lane = Lane::new(args, number)?;
                    for _ in 0..share {
                        if Instant::now() >= deadline || is_over.load(Ordering::Relaxed) {
                            break;
                        }
                        lane.iterate().inspect_err(|_| is_over.store(true, Ordering::Relaxed))?;
                    }
                    Ok(lane.into_tally())
                })
            })
            .collect();
        for lane in lanes {
            match lane.join() {
                Ok(done) => tally.add(done?),
                Err(_) => anyhow::bail!("a lane panicked; what it found is above"),
            }
        }
        Ok(())
    });
    let result = tally.json(&args, start.elapsed());
    let text = serde_json::to_string_pretty(&result)?;
    println!("{text}");
    if let Some(path) = &args.output {
        std::fs::write(path, format!("{text}\n"))?;
    }
    outcome?;
    anyhow::ensure!(tally.is_good(args.streams), "something that must not be was found: see above");
    Ok(())
}
