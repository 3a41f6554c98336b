//! The fake origin as a process, for benches, demos and tests in other languages.
//!
//! Prints one line when it listens, `fake-origin listening on http://127.0.0.1:PORT`, and serves until it is killed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::{Parser, ValueEnum};
use longshore_testkit::origin::Quirks;
use longshore_testkit::{Dialect, FakeOrigin, OriginConfig};
use longshore_types::ByteSize;

/// A fast object store that counts what it serves and takes, and misbehaves on demand; see its pages /_counters,
/// /_fault and /_objects.
#[derive(Parser)]
#[command(name = "fake-origin")]
struct Args {
    /// Address to listen on; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// What to speak.
    #[arg(long, value_enum, default_value = "s3")]
    dialect: Speaks,
    /// Serve the files under this folder, as `PREFIX/name`.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Bucket, bucket and folder, or repository that the files of --folder are in.
    #[arg(long, default_value = "bucket")]
    prefix: String,
    /// Serve a generated object: `bucket/key=SIZE`, for instance `bucket/big.bin=20GiB`. May be repeated.
    #[arg(long)]
    generate: Vec<String>,
    /// Access key id that S3 requests must be signed with, together with --secret.
    #[arg(long, requires = "secret")]
    access_key: Option<String>,
    /// Secret of the access key.
    #[arg(long, requires = "access_key")]
    secret: Option<String>,
    /// Bearer token that GCS and hub requests must carry.
    #[arg(long)]
    token: Option<String>,
    /// The hub redirects large files to a second server.
    #[arg(long)]
    redirect: bool,
    /// Largest page of a listing.
    #[arg(long, default_value_t = 1000)]
    page_size: usize,
    /// Make an empty bucket, to be written to. May be repeated.
    #[arg(long)]
    bucket: Vec<String>,
    /// Keep what is uploaded in nameless files in this folder instead of in memory.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Most memory for what is uploaded; more is refused with 507.
    #[arg(long, default_value = "4GiB")]
    memory: ByteSize,
    /// Smallest part of a multipart upload, except for the last.
    #[arg(long, default_value = "5MiB")]
    part_min: ByteSize,
    /// Most bytes a second of all uploads together.
    #[arg(long)]
    upload_bandwidth: Option<ByteSize>,
    /// Most bytes a second of all objects that go out together.
    #[arg(long)]
    bandwidth: Option<ByteSize>,
    /// Most bytes a second on one connection: cloud stores give some 90 MB.
    #[arg(long)]
    connection_bandwidth: Option<ByteSize>,
    /// How much later every answer begins, in milliseconds.
    #[arg(long, default_value_t = 0)]
    first_byte_ms: u64,
    /// Get something wrong as a real server does. May be repeated.
    #[arg(long, value_enum)]
    quirk: Vec<Quirk>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Quirk {
    /// No condition is looked at.
    IgnoresConditions,
    /// Conditions of writes are not looked at.
    IgnoresConditionalPuts,
    /// Ranges are answered with everything.
    IgnoresRanges,
    /// No ETag is sent.
    HasNoEtag,
    /// Checksums are neither checked nor told.
    HasNoChecksums,
    /// Writes with a checksum are refused.
    RejectsChecksums,
    /// Open uploads cannot be listed.
    CannotListUploads,
}

fn quirks(given: &[Quirk]) -> Quirks {
    let has = |quirk| given.contains(&quirk);
    Quirks {
        ignores_conditions: has(Quirk::IgnoresConditions),
        ignores_conditional_puts: has(Quirk::IgnoresConditionalPuts),
        ignores_ranges: has(Quirk::IgnoresRanges),
        has_no_etag: has(Quirk::HasNoEtag),
        has_no_checksums: has(Quirk::HasNoChecksums),
        rejects_checksums: has(Quirk::RejectsChecksums),
        cannot_list_uploads: has(Quirk::CannotListUploads),
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Speaks {
    S3,
    Gcs,
    Hub,
    Http,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let dialect = match args.dialect {
        Speaks::S3 => Dialect::S3,
        Speaks::Gcs => Dialect::Gcs,
        Speaks::Hub => Dialect::Hub,
        Speaks::Http => Dialect::Http,
    };
    let origin = FakeOrigin::try_with(OriginConfig {
        dialect,
        listen: args.listen,
        access_key: args.access_key.zip(args.secret),
        token: args.token,
        page_size: args.page_size,
        redirects_large_files: args.redirect,
        quirks: quirks(&args.quirk),
        data_dir: args.data_dir,
        memory_bytes_max: args.memory.0,
        part_bytes_min: args.part_min.0,
        upload_bytes_per_second: args.upload_bandwidth.map(|rate| rate.0),
        bytes_per_second: args.bandwidth.map(|rate| rate.0),
        connection_bytes_per_second: args.connection_bandwidth.map(|rate| rate.0),
        first_byte: Duration::from_millis(args.first_byte_ms),
    })
    .with_context(|| format!("cannot listen on {}", args.listen))?;
    args.bucket.iter().for_each(|name| origin.create_bucket(name));
    if let Some(folder) = &args.folder {
        origin.put_folder(&args.prefix, folder).with_context(|| format!("cannot read {}", folder.display()))?;
    }
    for (seed, text) in (1..).zip(&args.generate) {
        let (path, size) = text.split_once('=').ok_or_else(|| anyhow!("--generate {text}: write bucket/key=SIZE"))?;
        let size: ByteSize = size.parse().map_err(|error| anyhow!("--generate {text}: {error}"))?;
        origin.generate(path, seed, size.0);
    }
    println!("fake-origin listening on {}", origin.url());
    loop {
        std::thread::park();
    }
}
