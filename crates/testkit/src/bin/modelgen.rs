//! Writes generated models to disk and prints what a reader must find in them, for tests in other languages.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Parser, Subcommand};
use longshore_testkit::modelgen::{HeaderStyle, Model, ModelSpec, bad_models, unknown_dtype};
use longshore_types::ByteSize;
use serde_json::json;

/// Generates safetensors models, good and bad. Prints JSON: files and tensors with sizes and SHA-256.
#[derive(Parser)]
#[command(name = "modelgen")]
struct Args {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Subcommand)]
enum Kind {
    /// One tensor of every dtype and odd shape.
    EveryDtype(Common),
    /// About SIZE bytes in so many tensors.
    Sized {
        #[command(flatten)]
        common: Common,
        /// Size of all tensors, for instance `2GiB`.
        #[arg(long)]
        size: ByteSize,
        /// Number of tensors.
        #[arg(long, default_value_t = 50)]
        tensors: usize,
    },
    /// Anything that follows from the seed.
    Random(Common),
    /// A model with a tensor of an unknown dtype.
    UnknownDtype(Common),
    /// Every bad model, each in a folder of its name; prints the code and the words that its refusal must hold.
    Bad(Common),
}

#[derive(clap::Args)]
struct Common {
    /// Folder to write to.
    folder: PathBuf,
    /// Chooses the bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of safetensors files.
    #[arg(long)]
    shards: Option<usize>,
}

fn main() -> anyhow::Result<()> {
    let (spec, common) = match Args::parse().kind {
        Kind::EveryDtype(common) => (ModelSpec::every_dtype(common.seed), common),
        Kind::Sized { common, size, tensors } => (ModelSpec::sized(common.seed, size.0, tensors), common),
        Kind::Random(common) => (ModelSpec::random(common.seed, 1 << 20), common),
        Kind::UnknownDtype(common) => return write(&unknown_dtype(), &common.folder),
        Kind::Bad(common) => return write_bad(&common.folder),
    };
    let spec = match common.shards {
        Some(shards) => spec.shards(shards).header(HeaderStyle::Shuffled),
        None => spec,
    };
    write(&spec.build(), &common.folder)
}

fn write(model: &Model, folder: &Path) -> anyhow::Result<()> {
    model.write_to(folder).with_context(|| format!("cannot write to {}", folder.display()))?;
    println!("{}", model.expectation());
    Ok(())
}

fn write_bad(folder: &Path) -> anyhow::Result<()> {
    let mut all = Vec::new();
    for bad in bad_models() {
        let path = folder.join(bad.name);
        bad.model.write_to(&path).with_context(|| format!("cannot write to {}", path.display()))?;
        all.push(json!({ "name": bad.name, "code": bad.code.as_str(), "says": bad.says }));
    }
    println!("{}", json!(all));
    Ok(())
}
