//! Who owns a chunk: the digest of its identity, and the look-up of three owners.

use std::hint::black_box;
use std::sync::Arc;

use criterion::Criterion;
use longshore_cluster::{Identity, Member, MemberId, Ring};
use longshore_types::{Artifact, ChunkKey, Version};

fn member(number: u32) -> Member {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&number.to_le_bytes());
    let identity = Identity {
        id: MemberId::from_bytes(id),
        weight: 1024,
        data: format!("10.0.0.1:{number}"),
        control: String::new(),
        unix_socket: None,
        host_id: String::new(),
        version: String::new(),
    };
    Member { address: identity.data.clone(), identity }
}

pub fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    let version = Version::new("etag:\"9b2cf535f27731c974343645a3985328\"").expect("a version");
    let url = "s3://bucket/models/llama/model-00001-of-00030.safetensors";
    let artifact = Arc::new(Artifact::new(url, version, 16 << 30).expect("an artifact"));
    let keys: Vec<ChunkKey> = ChunkKey::all(&artifact).collect();
    let mut next = keys.iter().cycle();
    group.bench_function("ring-chunk-id", |b| b.iter(|| next.next().map(ChunkKey::id)));
    let ids: Vec<_> = keys.iter().map(ChunkKey::id).collect();
    for members in [3, 64, 1_000] {
        let ring = Ring::new(&(0..members).map(member).collect::<Vec<_>>());
        let mut next = ids.iter().cycle();
        group.bench_function(format!("ring-lookup-{members}"), |b| {
            b.iter(|| next.next().map(|id| black_box(ring.owners(id.as_bytes(), 3))));
        });
    }
    group.finish();
}
