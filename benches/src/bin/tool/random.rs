//! Small reads at random places: of a file by `pread`, which is the limit, and of a cached object through the reader that
//! clients use.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use longshore_proto::convert::artifact_from_proto;
use longshore_proto::v1::StatRequest;
use longshore_proto::v1::worker_client::WorkerClient;
use longshore_types::Artifact;
use longshore_wire::{ClientOptions, DataClient, Endpoint, FileReader, Mode, ReaderOptions};
use serde_json::Value;

use crate::times::{described, measure as timed};

/// What to read, and how.
#[derive(Args)]
pub struct Options {
    /// A file.
    #[arg(long, conflicts_with_all = ["url", "socket", "worker", "control"])]
    file: Option<PathBuf>,
    /// An object that a worker caches.
    #[arg(long, requires = "control")]
    url: Option<String>,
    /// Unix socket of the worker's data plane.
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The worker's data plane over TCP, `host:port`.
    #[arg(long, conflicts_with = "socket")]
    worker: Option<String>,
    /// The worker's control service, `host:port`.
    #[arg(long)]
    control: Option<String>,
    /// Reads that are measured.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    count: u32,
    /// Reads before them that are not: the reader verifies each block of 1 MiB once.
    #[arg(long, default_value_t = 0)]
    warm: u32,
    /// Bytes of each.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    bytes: u32,
    /// Chooses the places.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Reads and says how many a second came.
pub fn measure(options: &Options) -> anyhow::Result<Value> {
    match (&options.file, &options.url) {
        (Some(path), None) => {
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            let size = file.metadata()?.len();
            read(options, size, |at, out| Ok(file.read_exact_at(out, at)?))
        }
        (None, Some(url)) => {
            let reader = reader(options, url)?;
            let size = reader.artifact().size_bytes();
            let value = read(options, size, |at, out| {
                ensure!(reader.read_at(at, out)? == out.len(), "{url} ended at byte {at}");
                Ok(())
            })?;
            ensure!(reader.stats().mismatches == 0, "{url}: blocks did not match their checksums");
            Ok(value)
        }
        _ => bail!("one of --file and --url is needed"),
    }
}

fn read(
    options: &Options,
    size_bytes: u64,
    one: impl Fn(u64, &mut [u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Value> {
    let bytes = u64::from(options.bytes);
    ensure!(size_bytes > bytes, "{size_bytes} bytes are too few to read {bytes} of them at random places");
    let mut out = vec![0; options.bytes as usize];
    let mut places = Places(options.seed);
    let mut read_one = || {
        let at = places.next_below(size_bytes - bytes);
        let start = Instant::now();
        one(at, &mut out)?;
        anyhow::Ok(start.elapsed())
    };
    for _ in 0..options.warm {
        read_one()?;
    }
    let (sample, calls) = timed(|| (0..options.count).map(|_| read_one()).collect::<anyhow::Result<Vec<Duration>>>())?;
    Ok(described(sample, calls))
}

/// Places that follow from a seed (splitmix64).
struct Places(u64);

impl Places {
    fn next_below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }
}

fn reader(options: &Options, url: &str) -> anyhow::Result<FileReader> {
    let endpoint = match (&options.socket, &options.worker) {
        (Some(path), None) => Endpoint::Unix(path.clone()),
        (None, Some(address)) => Endpoint::Tcp(address.clone()),
        _ => bail!("one of --socket and --worker is needed"),
    };
    let artifact = Arc::new(artifact(options, url)?);
    let client = DataClient::new(ClientOptions::default());
    Ok(FileReader::new(client, artifact, &ReaderOptions::default(), move |_| vec![(endpoint.clone(), Mode::Fill)]))
}

fn artifact(options: &Options, url: &str) -> anyhow::Result<Artifact> {
    let control = options.control.as_deref().context("--control is needed")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let message = runtime.block_on(async {
        let mut client = WorkerClient::connect(format!("http://{control}")).await?;
        let request = StatRequest { url: url.to_owned(), ..Default::default() };
        anyhow::Ok(client.stat(request).await?.into_inner())
    })?;
    Ok(artifact_from_proto(message.artifact)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_at_places_that_follow_from_the_seed() {
        let mut places = Places(7);
        let found: Vec<u64> = (0..1000).map(|_| places.next_below(50_000)).collect();
        assert!(found.iter().all(|place| *place < 50_000));
        assert!(found.iter().any(|place| *place > 40_000));
        let mut again = Places(7);
        assert!(found.iter().all(|place| *place == again.next_below(50_000)));
    }
}
