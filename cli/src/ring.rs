//! `longshore ring`: which workers own which chunks of a model, computed here as everybody computes it.

use std::collections::BTreeMap;
use std::fmt::Write;

use longshore_cluster::{MemberId, Ring};
use longshore_types::{ChunkKey, Manifest, Result, Selection, format_bytes, redact_url};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::args::RingArgs;
use crate::node::Node;
use crate::output::{Output, row, table};

/// Runs the command.
///
/// # Errors
/// Those of the origin.
pub async fn run(args: RingArgs, output: Output, token: CancellationToken) -> Result<()> {
    let node = Node::open(&args.node, &token).await?;
    let url = node.origins.canonical_url(&args.uri)?;
    let (manifest, _) = node.cluster.manifest(&url, &Selection::default(), false).await?;
    let ring = node.ring();
    let placed = place(&ring, &manifest, usize::from(args.replicas));
    let shares = shares(&ring, &placed);
    let value = json!({
        "uri": redact_url(&url),
        "revision": manifest.revision,
        "bytes": manifest.size_bytes(),
        "members": shares.iter().map(Share::json).collect::<Vec<_>>(),
        "chunks": placed.iter().map(Placed::json).collect::<Vec<_>>(),
    });
    output.result(&value, |text| {
        if shares.is_empty() {
            let _ = writeln!(text, "no cache workers: the cache inside this process owns all {} chunks", placed.len());
            return;
        }
        let head = row(["WORKER", "ID", "WEIGHT", "CHUNKS", "BYTES"]);
        let rows: Vec<_> = std::iter::once(head).chain(shares.iter().map(Share::row)).collect();
        text.push_str(&table(&rows));
        if args.chunks {
            let _ = writeln!(text);
            let rows: Vec<_> = placed.iter().map(|chunk| chunk.row(&shares)).collect();
            text.push_str(&table(&rows));
        }
    })?;
    node.close().await;
    Ok(())
}

/// A chunk and its owners.
struct Placed {
    file: String,
    index: u32,
    id: String,
    len_bytes: u64,
    owners: Vec<MemberId>,
}

fn place(ring: &Ring, manifest: &Manifest, replicas: usize) -> Vec<Placed> {
    let keys = manifest.files.iter().flat_map(|file| ChunkKey::all(&file.artifact).map(move |key| (file, key)));
    keys.map(|(file, key)| {
        let id = key.id();
        let owners = ring.owners(id.as_bytes(), replicas).iter().map(|owner| owner.id()).collect();
        Placed { file: file.name.clone(), index: key.index(), id: id.to_string(), len_bytes: key.len_bytes(), owners }
    })
    .collect()
}

impl Placed {
    fn json(&self) -> Value {
        let Placed { file, index, id, len_bytes, owners } = self;
        json!({"file": file, "index": index, "id": id, "bytes": len_bytes, "owners": owners})
    }

    fn row(&self, shares: &[Share]) -> Vec<String> {
        let address = |id: &MemberId| {
            shares.iter().find(|share| share.id == *id).map_or_else(|| id.to_string(), |share| share.address.clone())
        };
        let owners: Vec<String> = self.owners.iter().map(address).collect();
        row([&format!("{}#{}", self.file, self.index), &format_bytes(self.len_bytes), &owners.join(", ")])
    }
}

/// What one worker owns.
struct Share {
    id: MemberId,
    address: String,
    weight: u64,
    chunks: u64,
    bytes: u64,
}

fn shares(ring: &Ring, placed: &[Placed]) -> Vec<Share> {
    let mut owned: BTreeMap<MemberId, (u64, u64)> = BTreeMap::new();
    for chunk in placed {
        for owner in &chunk.owners {
            let (chunks, bytes) = owned.entry(*owner).or_default();
            *chunks += 1;
            *bytes += chunk.len_bytes;
        }
    }
    let share = |member: &std::sync::Arc<longshore_cluster::Member>| {
        let (chunks, bytes) = owned.get(&member.id()).copied().unwrap_or_default();
        Share { id: member.id(), address: member.address.clone(), weight: member.weight(), chunks, bytes }
    };
    ring.members().iter().map(share).collect()
}

impl Share {
    fn json(&self) -> Value {
        let Share { id, address, weight, chunks, bytes } = self;
        json!({"id": id, "address": address, "weight": weight, "chunks": chunks, "bytes": bytes})
    }

    fn row(&self) -> Vec<String> {
        let Share { id, address, weight, chunks, bytes } = self;
        row([address, &id.to_string(), &weight.to_string(), &chunks.to_string(), &format_bytes(*bytes)])
    }
}
