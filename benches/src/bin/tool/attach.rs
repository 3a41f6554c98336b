//! How long a process waits for a model that is loaded already: description and descriptors over the attach socket.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use longshore_tests::Attached;
use serde_json::Value;

use crate::times::described;

/// Whom to ask.
#[derive(Args)]
pub struct Options {
    /// The attach socket.
    #[arg(long)]
    socket: PathBuf,
    /// The loaded model.
    #[arg(long)]
    model_id: String,
    /// How often.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
}

/// Attaches, one lease after the other.
pub fn measure(options: &Options) -> anyhow::Result<Value> {
    let mut tensors = 0;
    let (sample, calls) = crate::times::measure(|| {
        (0..options.count)
            .map(|_| {
                let start = Instant::now();
                let attached = Attached::attach(&options.socket, &options.model_id)?;
                tensors = attached.model.tensors.len();
                Ok(start.elapsed())
            })
            .collect::<anyhow::Result<Vec<_>>>()
    })?;
    let mut value = described(sample, calls);
    value["tensors"] = tensors.into();
    Ok(value)
}
