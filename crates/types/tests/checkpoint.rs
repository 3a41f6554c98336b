//! Commits and their companions: what is written is read back, every flipped byte is found, nothing hostile gets through.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use longshore_types::checkpoint::*;
use longshore_types::{BLOCK_BYTES, BlockChecksum, CHUNK_BYTES, Code};
use proptest::prelude::*;

fn attempt(seed: u8) -> AttemptId {
    AttemptId::from_bytes([seed; 16])
}

fn blocks(size_bytes: u64, seed: u64) -> Vec<BlockChecksum> {
    (0..size_bytes.div_ceil(BLOCK_BYTES))
        .map(|block| BlockChecksum(seed.wrapping_mul(0x9e37_79b9).wrapping_add(block)))
        .collect()
}

/// A commit of `sizes.len()` files; every third one lies in chunks of two objects.
fn commit_of(sizes: &[u64], metadata: BTreeMap<String, String>) -> Commit {
    let mut commit = Commit {
        attempt: attempt(1),
        step: 90,
        epoch: 3,
        created_ms: 1_763_000_000_000,
        world_size: 2,
        parent: None,
        delta_depth: 0,
        objects: vec![],
        files: vec![],
        tensors: vec![],
        aliases: vec![],
        metadata,
    };
    for (number, &size_bytes) in sizes.iter().enumerate() {
        let checksum = BlockChecksum(size_bytes ^ number as u64);
        let object = |path: String, size_bytes, seed| StoredObject {
            path,
            size_bytes,
            version: format!("etag:\"{number}\""),
            checksum,
            attempt: attempt(seed),
        };
        let first = commit.objects.len() as u32;
        let chunks = size_bytes.div_ceil(CHUNK_BYTES) as u32;
        let place = if number % 3 == 2 && chunks > 1 {
            commit.parent = Some(Parent { step: 80, attempt: attempt(2) });
            commit.delta_depth = 1;
            commit.objects.push(object(format!("step-80/old-{number}"), size_bytes, 2));
            commit.objects.push(object(format!("step-90/delta-{number}.pack"), CHUNK_BYTES, 1));
            FilePlace::Chunks(vec![
                ChunkRun { object: first, first_chunk: 0, count: chunks - 1 },
                ChunkRun { object: first + 1, first_chunk: 0, count: 1 },
            ])
        } else {
            commit.objects.push(object(format!("step-90/file-{number}"), size_bytes, 1));
            FilePlace::Object(first)
        };
        let name = format!("file-{number}.safetensors");
        commit.files.push(StoredFile { name, size_bytes, checksum, blocks: blocks(size_bytes, number as u64), place });
        if size_bytes >= 16 {
            let piece = |offset_bytes, start| StoredPiece {
                file: number as u32,
                offset_bytes,
                length_bytes: 8,
                start: vec![start, 0],
                shape: vec![1, 4],
                checksum,
            };
            commit.tensors.push(StoredTensor {
                name: format!("layers.{number}.weight"),
                dtype: "BF16".to_owned(),
                shape: vec![2, 4],
                pieces: vec![piece(8, 0), piece(0, 1)],
            });
            let (name, target) = (format!("tied.{number}"), format!("layers.{number}.weight"));
            commit.aliases.push(Alias { group: String::new(), name, target });
        }
    }
    commit
}

fn small() -> Commit {
    commit_of(&[100, 0, 2 * CHUNK_BYTES + 5, BLOCK_BYTES + 1], BTreeMap::from([("a".to_owned(), "\"\\é\n".to_owned())]))
}

/// Parses a commit whose body was changed, with a checksum that fits.
fn altered(change: impl FnOnce(&mut serde_json::Value)) -> longshore_types::Result<Commit> {
    let mut file: serde_json::Value = serde_json::from_slice(&small().to_bytes()).unwrap();
    change(&mut file["commit"]);
    let body = file["commit"].to_string();
    let bytes = format!("{{\"checksum\":\"{}\",\"commit\":{body}}}", BlockChecksum::of(body.as_bytes()));
    Commit::parse(bytes.as_bytes(), "s3://b/run/step-90/_CKPT.json")
}

proptest! {
    #[test]
    fn commits_round_trip(
        sizes in prop::collection::vec(prop_oneof![0u64..64, 0u64..4 * BLOCK_BYTES, 0u64..5 * CHUNK_BYTES], 0..12),
        metadata in prop::collection::btree_map(".{0,8}", ".{0,20}", 0..4),
    ) {
        let commit = commit_of(&sizes, metadata);
        commit.check().unwrap();
        let bytes = commit.to_bytes();
        prop_assert_eq!(Commit::parse(&bytes, "url").unwrap(), commit.clone());
        prop_assert_eq!(Commit::parse(&bytes, "url").unwrap().to_bytes(), bytes, "equal commits give equal bytes");
    }

    #[test]
    fn any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Commit::parse(&bytes, "url");
        let _ = RankRecord::parse(&bytes, "url");
        let _ = Intent::parse(&bytes, "url");
        let _ = Latest::parse(&bytes, "url");
    }

    #[test]
    fn numbers_of_any_size_never_panic(number in any::<u64>(), at in 0usize..12) {
        let _ = altered(|commit| {
            let place = match at {
                0 => &mut commit["objects"][0]["size_bytes"],
                1 => &mut commit["files"][0]["size_bytes"],
                2 => &mut commit["files"][2]["place"]["chunks"][0]["count"],
                3 => &mut commit["files"][2]["place"]["chunks"][0]["first_chunk"],
                4 => &mut commit["files"][2]["place"]["chunks"][0]["object"],
                5 => &mut commit["tensors"][0]["pieces"][0]["offset_bytes"],
                6 => &mut commit["tensors"][0]["pieces"][0]["length_bytes"],
                7 => &mut commit["tensors"][0]["pieces"][0]["start"][0],
                8 => &mut commit["tensors"][0]["pieces"][0]["shape"][1],
                9 => &mut commit["tensors"][0]["shape"][0],
                10 => &mut commit["files"][0]["place"]["object"],
                _ => &mut commit["tensors"][0]["pieces"][0]["file"],
            };
            *place = number.into();
        });
    }
}

#[test]
fn every_flipped_bit_is_found() {
    let bytes = small().to_bytes();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            let error = Commit::parse(&flipped, "s3://b/run/step-90/_CKPT.json").unwrap_err();
            assert_eq!(error.code(), Code::Corrupt, "bit {bit} of byte {at}");
            assert!(error.message().starts_with("s3://b/run/step-90/_CKPT.json "), "{error}");
        }
    }
    for cut in 0..bytes.len() {
        assert!(Commit::parse(&bytes[..cut], "url").is_err(), "cut at {cut}");
    }
    assert!(Commit::parse(&[&bytes[..], b"\n"].concat(), "url").is_err());
}

#[test]
fn what_does_not_hold_together_is_refused() {
    let refused = |what: &str, change: fn(&mut serde_json::Value)| {
        let error = altered(change).expect_err(what);
        assert_eq!(error.code(), Code::Corrupt, "{what}: {error}");
        assert!(error.message().contains("step-90/_CKPT.json"), "{error}");
    };
    altered(|_| ()).unwrap();
    refused("unknown member", |commit| commit["extra"] = 1.into());
    refused("no ranks", |commit| commit["world_size"] = 0.into());
    refused("depth without parent", |commit| commit["delta_depth"] = 0.into());
    refused("path out of the run", |commit| commit["objects"][0]["path"] = "step-1/../../x".into());
    refused("path in no step", |commit| commit["objects"][0]["path"] = "other/x".into());
    refused("same object twice", |commit| commit["objects"][1]["path"] = commit["objects"][0]["path"].clone());
    refused("name of a file", |commit| commit["files"][0]["name"] = "/etc/passwd".into());
    refused("same file twice", |commit| commit["files"][1]["name"] = commit["files"][0]["name"].clone());
    refused("blocks", |commit| commit["files"][3]["blocks"] = "AAAAAAAAAAA=".into());
    refused("blocks of odd length", |commit| commit["files"][3]["blocks"] = "AAAA".into());
    refused("object of another size", |commit| commit["objects"][0]["size_bytes"] = 101.into());
    refused("object of another checksum", |commit| commit["objects"][0]["checksum"] = "0000000000000000".into());
    refused("no such object", |commit| commit["files"][0]["place"]["object"] = 99.into());
    refused("too few chunks", |commit| commit["files"][2]["place"]["chunks"][0]["count"] = 1.into());
    refused("chunks beyond", |commit| commit["files"][2]["place"]["chunks"][1]["first_chunk"] = 1.into());
    refused("empty run", |commit| commit["files"][2]["place"]["chunks"][0]["count"] = 0.into());
    refused("piece beyond its file", |commit| commit["tensors"][0]["pieces"][0]["offset_bytes"] = 93.into());
    refused("piece of other bytes", |commit| commit["tensors"][0]["pieces"][0]["length_bytes"] = 7.into());
    refused("piece missing", |commit| {
        commit["tensors"][0]["pieces"].as_array_mut().unwrap().pop();
    });
    refused("piece twice", |commit| commit["tensors"][0]["pieces"][1]["start"][0] = 0.into());
    refused("alias of nothing", |commit| commit["aliases"][0]["target"] = "nothing".into());
    refused("alias of its own name", |commit| commit["aliases"][0]["name"] = "layers.0.weight".into());
}

#[test]
fn marks_round_trip_and_flips_are_found() {
    let intent = Intent {
        attempt: attempt(4),
        epoch: 2,
        step: 7,
        world_size: 8,
        created_ms: 5,
        parent: Some(Parent { step: 6, attempt: attempt(3) }),
    };
    let latest = Latest { step: 7, attempt: attempt(4) };
    assert_eq!(Intent::parse(&intent.to_bytes(), "url").unwrap(), intent);
    assert_eq!(Latest::parse(&latest.to_bytes(), "url").unwrap(), latest);
    assert!(Latest::parse(&intent.to_bytes(), "url").is_err(), "another kind of file");
    let bytes = intent.to_bytes();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x20;
        assert!(Intent::parse(&flipped, "url").is_err(), "byte {at}");
    }
    assert!(Intent::parse(&vec![b' '; MARK_BYTES_MAX as usize + 1], "url").is_err());
}

#[test]
fn rank_records_round_trip() {
    let commit = small();
    let record = RankRecord {
        attempt: commit.attempt,
        step: commit.step,
        rank: 1,
        objects: commit.objects.clone(),
        files: commit
            .files
            .iter()
            .zip(0..)
            .map(|(stored, file)| RankFile { file, stored: stored.clone(), tensors: vec![BlockChecksum(7)] })
            .collect(),
        parent: commit.parent,
        delta_depth: 1,
    };
    assert_eq!(RankRecord::parse(&record.to_bytes(), "url").unwrap(), record);
    let mut broken = record.clone();
    broken.files[0].stored.size_bytes += 1;
    assert_eq!(RankRecord::parse(&broken.to_bytes(), "url").unwrap_err().code(), Code::Corrupt);
}

#[test]
fn a_block_is_told_by_the_tensors_in_it() {
    let commit = small();
    assert_eq!(commit.tensors_at(0, 0..8), ["layers.0.weight"]);
    assert_eq!(commit.tensors_at(0, 16..100), [""; 0]);
    assert_eq!(commit.tensors_at(3, 0..BLOCK_BYTES), ["layers.3.weight"]);
}

#[test]
fn objects_have_one_identity_in_caches() {
    let commit = small();
    let artifact = commit.artifact_of("s3://b/run", 0).unwrap();
    assert_eq!(artifact.url(), "s3://b/run/step-90/file-0");
    assert_eq!(artifact.version().as_str(), format!("attempt:{}", attempt(1)));
    assert!(commit.artifact_of("s3://b/run", 99).is_err());
    assert_eq!(object_url("s3://b/r", "step-1/a?b#c %20%3F"), "s3://b/r/step-1/a%3Fb%23c %20%253F");
    assert_eq!(object_url("file:///r/", "step-1/a b%"), "file:///r/step-1/a%20b%25");
}
