//! Metadata operations a second of one worker, over its control service.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use longshore_proto::v1::worker_client::WorkerClient;
use longshore_proto::v1::{ListRequest, StatRequest};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use crate::times::{Stopwatch, described};

/// What to ask.
#[derive(Args)]
pub struct Options {
    /// The worker's control service, `host:port`.
    #[arg(long)]
    worker: String,
    /// A folder with many objects.
    #[arg(long)]
    url: String,
    /// What is called.
    #[arg(long, value_enum, default_value = "stat")]
    call: Call,
    /// Calls in all.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    count: u32,
    /// Calls in flight.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    in_flight: u32,
    /// Ask the origin each time.
    #[arg(long)]
    revalidate: bool,
}

/// The kinds of calls.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Call {
    /// Size and version of one object; the objects take turns.
    Stat,
    /// A page of 1,000 objects.
    List,
}

/// Calls and says how many a second came back.
pub fn measure(options: &Options) -> anyhow::Result<Value> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(options))
}

async fn run(options: &Options) -> anyhow::Result<Value> {
    let endpoint = Endpoint::new(format!("http://{}", options.worker))?;
    let channel = endpoint.connect().await.with_context(|| format!("no worker at {}", options.worker))?;
    let names = names(channel.clone(), &options.url).await?;
    if options.call == Call::Stat && !options.revalidate {
        // Once each, so that what is measured is cached.
        calls(channel.clone(), options, &names, (names.len() as u32).min(options.count)).await?;
    }
    let watch = Stopwatch::start();
    let calls = calls(channel, options, &names, options.count).await?;
    Ok(described(watch.sample(), calls))
}

/// The URLs of the first objects in the folder.
async fn names(channel: Channel, url: &str) -> anyhow::Result<Vec<String>> {
    let request = ListRequest { url: url.to_owned(), page_size: 10_000, ..Default::default() };
    let mut client = WorkerClient::new(channel).max_decoding_message_size(longshore_proto::MESSAGE_BYTES_MAX);
    let files = client.list(request).await?.into_inner().files;
    ensure!(!files.is_empty(), "there is nothing at {url}");
    Ok(files.into_iter().map(|file| format!("{}/{}", url.trim_end_matches('/'), file.name)).collect())
}

/// `count` calls by as many tasks as may be in flight; gives the time of each.
async fn calls(channel: Channel, options: &Options, names: &[String], count: u32) -> anyhow::Result<Vec<Duration>> {
    let next = std::sync::atomic::AtomicU32::new(0);
    let lane = || async {
        let mut client =
            WorkerClient::new(channel.clone()).max_decoding_message_size(longshore_proto::MESSAGE_BYTES_MAX);
        let mut found = Vec::new();
        loop {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            if at >= count {
                return anyhow::Ok(found);
            }
            let start = Instant::now();
            one(&mut client, options, &names[at as usize % names.len()]).await?;
            found.push(start.elapsed());
        }
    };
    let lanes = futures::future::try_join_all((0..options.in_flight).map(|_| lane())).await?;
    Ok(lanes.into_iter().flatten().collect())
}

async fn one(client: &mut WorkerClient<Channel>, options: &Options, name: &str) -> anyhow::Result<()> {
    let revalidate = options.revalidate;
    match options.call {
        Call::Stat => {
            let request = StatRequest { url: name.to_owned(), revalidate, forwarded: false };
            client.stat(request).await?;
        }
        Call::List => {
            let request = ListRequest { url: options.url.clone(), revalidate, page_size: 1000, ..Default::default() };
            client.list(request).await?;
        }
    }
    Ok(())
}
