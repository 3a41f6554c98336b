//! `longshore ls` and `longshore stat`: metadata, through the cache.

use std::fmt::Write;

use longshore_types::{ResolvedFile, Result, format_bytes, redact_url};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::args::UriArgs;
use crate::node::Node;
use crate::output::{Output, row, table};

/// Runs `ls`.
///
/// # Errors
/// Those of the origin.
pub async fn list(args: UriArgs, output: Output, token: CancellationToken) -> Result<()> {
    let node = Node::open(&args.node, &token).await?;
    let url = node.origins.canonical_url(&args.uri)?;
    let listing = node.control.list(&url, args.revalidate).await?;
    let total: u64 = listing.files.iter().map(|file| file.artifact.size_bytes()).sum();
    let entry = |file: &ResolvedFile| -> Value {
        json!({"name": file.name, "bytes": file.artifact.size_bytes(), "version": file.artifact.version()})
    };
    let value = json!({
        "uri": redact_url(&url),
        "revision": listing.revision,
        "cached": listing.is_cached,
        "bytes": total,
        "files": listing.files.iter().map(entry).collect::<Vec<_>>(),
        "warnings": node.warnings,
    });
    output.result(&value, |text| {
        let rows = listing.files.iter().map(|file| row([&format_bytes(file.artifact.size_bytes()), &file.name]));
        text.push_str(&table(&rows.collect::<Vec<_>>()));
        let (count, total) = (listing.files.len(), format_bytes(total));
        let _ = writeln!(text, "{count} files, {total}, revision {}", listing.revision);
    })?;
    node.close().await;
    Ok(())
}

/// Runs `stat`.
///
/// # Errors
/// Those of the origin.
pub async fn stat(args: UriArgs, output: Output, token: CancellationToken) -> Result<()> {
    let node = Node::open(&args.node, &token).await?;
    let url = node.origins.canonical_url(&args.uri)?;
    let (artifact, is_cached) = node.control.stat(&url, args.revalidate).await?;
    let value = json!({
        "uri": redact_url(artifact.url()),
        "bytes": artifact.size_bytes(),
        "version": artifact.version(),
        "cached": is_cached,
        "warnings": node.warnings,
    });
    output.result(&value, |text| {
        let size = format!("{} ({} bytes)", format_bytes(artifact.size_bytes()), artifact.size_bytes());
        let _ = writeln!(text, "uri      {}", redact_url(artifact.url()));
        let _ = writeln!(text, "size     {size}");
        let _ = writeln!(text, "version  {}", artifact.version());
        let _ = writeln!(text, "cached   {}", if is_cached { "yes" } else { "no" });
    })?;
    node.close().await;
    Ok(())
}
