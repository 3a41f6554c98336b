//! Manifests of checkpoints: from their commit alone, with what every block must be, and nothing that was not committed.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;

use longshore_types::checkpoint::{
    AttemptId, COMMIT_NAME, ChunkRun, Commit, FilePlace, INTENT_NAME, Parent, StoredFile, StoredObject, StoredPiece,
    StoredTensor,
};
use longshore_types::manifest::committed_objects;
use longshore_types::{
    Artifact, BlockChecksum, CHUNK_BYTES, Code, Error, Manifest, ManifestBuilder, Progress, Resolved, ResolvedFile,
    Selection, Version,
};

const URL: &str = "s3://b/run/step-5";

fn attempt(number: u8) -> AttemptId {
    AttemptId::from_bytes([number; 16])
}

fn content(len: u64, seed: u64) -> Vec<u8> {
    (0..len).map(|at| (((at + seed) * 2_654_435_761) >> 9) as u8).collect()
}

/// The objects of a bucket, by URL.
#[derive(Default)]
struct Bucket(BTreeMap<String, Vec<u8>>);

impl Bucket {
    fn object(&mut self, path: &str, bytes: &[u8], of: AttemptId) -> StoredObject {
        self.0.insert(format!("s3://b/run/{path}"), bytes.to_vec());
        StoredObject {
            path: path.to_owned(),
            size_bytes: bytes.len() as u64,
            version: "etag:1".to_owned(),
            checksum: BlockChecksum::of(bytes),
            attempt: of,
        }
    }

    /// What a listing of the URL gives.
    fn resolved(&self, url: &str) -> Resolved {
        let below = self.0.iter().filter_map(|(object, bytes)| {
            let name = object.strip_prefix(url)?.strip_prefix('/')?;
            let version = Version::new("etag:1").unwrap();
            let artifact = Arc::new(Artifact::new(object.clone(), version, bytes.len() as u64).unwrap());
            Some(ResolvedFile { name: name.to_owned(), artifact })
        });
        Resolved { url: url.to_owned(), revision: "listed".to_owned(), files: below.collect() }
    }

    /// Drives a builder; gives the bytes read too.
    fn drive(&self, mut builder: ManifestBuilder) -> Result<(Manifest, u64), Error> {
        let mut read_bytes = 0;
        loop {
            match builder.advance()? {
                Progress::Done(manifest) => return Ok((manifest, read_bytes)),
                Progress::Need(reads) => {
                    // Backwards: answers come in any order.
                    for read in reads.iter().rev() {
                        let object = &self.0[read.artifact.url()];
                        assert_eq!(object.len() as u64, read.artifact.size_bytes());
                        let range = read.object_range.start as usize..read.object_range.end as usize;
                        read_bytes += range.len() as u64;
                        builder.supply(read, &object[range])?;
                    }
                }
            }
        }
    }

    fn build(&self, url: &str, include: &[&str]) -> Result<Manifest, Error> {
        let selection = Selection::new(include.iter().map(|&p| p.to_owned()).collect())?;
        Ok(self.drive(ManifestBuilder::new(self.resolved(url), &selection)?)?.0)
    }

    fn commit(&mut self, url: &str, commit: &Commit) {
        self.0.insert(format!("{url}/{COMMIT_NAME}"), commit.to_bytes());
    }
}

fn file(name: &str, bytes: &[u8], place: FilePlace) -> StoredFile {
    StoredFile {
        name: name.to_owned(),
        size_bytes: bytes.len() as u64,
        checksum: BlockChecksum::of(bytes),
        blocks: BlockChecksum::of_blocks(bytes),
        place,
    }
}

fn piece(file: u32, offset_bytes: u64, start: &[u64], shape: &[u64]) -> StoredPiece {
    let length_bytes = shape.iter().product();
    let checksum = BlockChecksum(0);
    StoredPiece { file, offset_bytes, length_bytes, start: start.to_vec(), shape: shape.to_vec(), checksum }
}

/// Two files of tensors, one of which is stored in two pieces, and a plain file.
fn full(bucket: &mut Bucket) -> Commit {
    let (one, two, config) = (content(3 << 20, 1), content(100, 2), b"{}".to_vec());
    let id = attempt(1);
    let objects = vec![
        bucket.object("step-5/model-x-00001-of-00002.safetensors", &one, id),
        bucket.object("step-5/model-x-00002-of-00002.safetensors", &two, id),
        bucket.object("step-5/config.json", &config, id),
    ];
    let tensor = |name: &str, shape: &[u64], pieces| StoredTensor {
        name: name.to_owned(),
        dtype: "U8".to_owned(),
        shape: shape.to_vec(),
        pieces,
    };
    Commit {
        attempt: id,
        step: 5,
        epoch: 1,
        created_ms: 7,
        world_size: 1,
        parent: None,
        delta_depth: 0,
        objects,
        files: vec![
            file("model-00001-of-00002.safetensors", &one, FilePlace::Object(0)),
            file("model-00002-of-00002.safetensors", &two, FilePlace::Object(1)),
            file("config.json", &config, FilePlace::Object(2)),
        ],
        tensors: vec![
            tensor("late", &[10], vec![piece(0, 2 << 20, &[0], &[10])]),
            tensor("w", &[4, 10], vec![piece(0, 64, &[0, 0], &[2, 10]), piece(1, 8, &[2, 0], &[2, 10])]),
            tensor("early", &[8], vec![piece(0, 8, &[0], &[8])]),
        ],
        aliases: vec![],
        metadata: BTreeMap::new(),
    }
}

fn names(manifest: &Manifest) -> Vec<&str> {
    manifest.tensors.iter().map(|tensor| tensor.name.as_str()).collect()
}

#[test]
fn a_commit_is_all_that_is_read_and_all_that_counts() {
    let mut bucket = Bucket::default();
    let commit = full(&mut bucket);
    bucket.commit(URL, &commit);
    bucket.0.insert(format!("{URL}/{INTENT_NAME}"), b"left over".to_vec());
    bucket.0.insert(format!("{URL}/model.safetensors.index.json"), b"for other tools, not read".to_vec());
    let selection = Selection::default();
    let (manifest, read) = bucket.drive(ManifestBuilder::new(bucket.resolved(URL), &selection).unwrap()).unwrap();
    assert_eq!(read, commit.to_bytes().len() as u64);
    assert_eq!(manifest.revision, format!("attempt:{}", attempt(1)));
    assert_eq!(names(&manifest), ["early", "w#0", "late", "w#1"]);
    let whole = &manifest.tensors[0];
    assert_eq!((whole.piece.as_ref(), whole.extent.offset_bytes, whole.shape.as_slice()), (None, 8, &[8][..]));
    let second = manifest.tensors[3].piece.as_ref().unwrap();
    assert_eq!((&second.start, &second.shape, &second.of_shape), (&vec![2, 0], &vec![2, 10], &vec![4, 10]));
    let file = &manifest.files[0];
    assert_eq!(file.name, "model-00001-of-00002.safetensors");
    assert_eq!(file.artifact.url(), "s3://b/run/step-5/model-x-00001-of-00002.safetensors");
    assert!(file.artifact.is_of_attempt() && file.is_tensors && file.chunks.is_none());
    assert_eq!(file.checksums.as_deref(), Some(&commit.files[0].blocks[..]));
    assert!(!manifest.files[2].is_tensors);
    assert_eq!(manifest.tensors_at(0, &(0..70)), "tensor early, w#0");
    assert_eq!(manifest.tensors_at(2, &(0..70)), "no tensor");
    let mut skipped: Vec<&str> = manifest.skipped.iter().map(|(name, _)| name.as_str()).collect();
    skipped.sort_unstable();
    assert_eq!(skipped, [COMMIT_NAME, INTENT_NAME, "model.safetensors.index.json"]);

    // The same from the commit alone, but for what else lies there.
    let (known, read) = bucket.drive(ManifestBuilder::of_commit(&commit, URL, &selection).unwrap()).unwrap();
    assert_eq!(
        (read, &known.files, &known.tensors, &known.revision),
        (0, &manifest.files, &manifest.tensors, &manifest.revision)
    );
    assert_eq!(known.skipped, []);
}

#[test]
fn files_are_selected_by_their_names_in_the_checkpoint() {
    let mut bucket = Bucket::default();
    let commit = full(&mut bucket);
    bucket.commit(URL, &commit);
    let manifest = bucket.build(URL, &["*00002-of*"]).unwrap();
    assert_eq!((names(&manifest), manifest.files.len(), manifest.tensors[0].extent.file), (vec!["w#1"], 1, 0));
    assert!(manifest.skipped.iter().any(|(name, why)| name == "config.json" && why.contains("include")));
    // Names of objects are not names of files.
    assert_eq!(bucket.build(URL, &["model-x-*"]).unwrap_err().code(), Code::NotFound);
}

#[test]
fn what_a_deleted_checkpoint_left_to_its_deltas_is_no_model() {
    let mut bucket = Bucket::default();
    let object = format!("model-{}-00001-of-00001.safetensors", attempt(7));
    bucket.0.insert(format!("{URL}/{object}"), b"whatever".to_vec());
    let error = bucket.build(URL, &[]).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(URL) && error.message().contains("no commit"), "{error}");
}

#[test]
fn what_is_not_committed_is_not_loaded() {
    let mut bucket = Bucket::default();
    let commit = full(&mut bucket);
    bucket.0.insert(format!("{URL}/{INTENT_NAME}"), b"{}".to_vec());
    let error = bucket.build(URL, &[]).unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(URL) && error.message().contains("not committed"), "{error}");
    // The files by themselves are a model like any other: only the folder is a checkpoint.
    let run = bucket.build("s3://b/run", &[]).unwrap_err();
    assert_ne!(run.code(), Code::InvalidArgument, "{run}");
    bucket.commit(URL, &commit);
    let error = bucket.build("s3://b/run", &[]).unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("s3://b/run/step-5"), "{error}");
}

#[test]
fn damaged_commits_are_refused() {
    let mut bucket = Bucket::default();
    let commit = full(&mut bucket);
    let good = commit.to_bytes();
    for at in (0..good.len()).step_by(97) {
        let mut bytes = good.clone();
        bytes[at] ^= 4;
        bucket.0.insert(format!("{URL}/{COMMIT_NAME}"), bytes);
        let error = bucket.build(URL, &[]).unwrap_err();
        assert_eq!(error.code(), Code::Corrupt, "byte {at}: {error}");
        assert!(error.message().contains(COMMIT_NAME), "{error}");
    }
    for size in [0, (512 << 20) + 1] {
        let mut resolved = bucket.resolved(URL);
        let commit = resolved.files.iter_mut().find(|file| file.name == COMMIT_NAME).unwrap();
        let version = commit.artifact.version().clone();
        commit.artifact = Arc::new(Artifact::new(commit.artifact.url(), version, size).unwrap());
        let refused = ManifestBuilder::new(resolved, &Selection::default()).err().unwrap();
        assert_eq!(refused.code(), Code::Corrupt, "{refused}");
    }
}

/// A delta of one file whose middle chunk is new; with a safetensors file saved byte for byte that begins in the pack.
fn delta(bucket: &mut Bucket) -> (Commit, Vec<u8>) {
    let header =
        r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[9],"data_offsets":[4,13]}}"#;
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&[7; 13]);
    let big = content(2 * CHUNK_BYTES + 5, 3);
    let mut pack = bytes.clone();
    pack.resize(CHUNK_BYTES as usize, 0);
    pack.extend_from_slice(&big[CHUNK_BYTES as usize..2 * CHUNK_BYTES as usize]);
    let objects = vec![
        bucket.object("step-5/delta-x-r0.pack", &pack, attempt(2)),
        bucket.object("step-4/big.bin.y", &big, attempt(1)),
    ];
    let run = |object, first_chunk, count| ChunkRun { object, first_chunk, count };
    let commit = Commit {
        attempt: attempt(2),
        parent: Some(Parent { step: 4, attempt: attempt(1) }),
        delta_depth: 1,
        objects,
        files: vec![
            file("big.bin", &big, FilePlace::Chunks(vec![run(1, 0, 1), run(0, 1, 1), run(1, 2, 1)])),
            file("raw.safetensors", &bytes, FilePlace::Chunks(vec![run(0, 0, 1)])),
        ],
        tensors: vec![],
        ..full(&mut Bucket::default())
    };
    (commit, bytes)
}

#[test]
fn a_delta_names_the_chunks_of_others_and_headers_are_checked() {
    let mut bucket = Bucket::default();
    let (commit, bytes) = delta(&mut bucket);
    bucket.commit(URL, &commit);
    let manifest = bucket.build(URL, &[]).unwrap();
    let big = &manifest.files[0];
    assert_eq!((big.name.as_str(), big.artifact.size_bytes()), ("big.bin", 2 * CHUNK_BYTES + 5));
    let place = |index| {
        let key = big.chunks.as_ref().unwrap().key(index).unwrap();
        (key.artifact().url().to_owned(), key.artifact().version().to_string(), key.index())
    };
    let (pack, parent) = ("s3://b/run/step-5/delta-x-r0.pack", "s3://b/run/step-4/big.bin.y");
    assert_eq!(place(0), (parent.to_owned(), format!("attempt:{}", attempt(1)), 0));
    assert_eq!(place(1), (pack.to_owned(), format!("attempt:{}", attempt(2)), 1));
    assert_eq!(place(2), (parent.to_owned(), format!("attempt:{}", attempt(1)), 2));
    assert_eq!(names(&manifest), ["a", "b"]);
    assert_eq!(manifest.tensors[1].extent.offset_bytes, bytes.len() as u64 - 9);
    assert!(manifest.files[1].is_tensors);
    let urls: Vec<&str> = big.artifacts().map(|artifact| artifact.url()).collect();
    assert_eq!(urls, [parent, pack, parent]);

    // A flipped byte in the header is found although it parses.
    let object = bucket.0.get_mut(pack).unwrap();
    let at = object.iter().position(|&byte| byte == b'9').unwrap();
    object[at] = b'8';
    let error = bucket.build(URL, &[]).unwrap_err();
    assert_eq!(error.code(), Code::Corrupt);
    assert!(error.message().contains("raw.safetensors"), "{error}");
}

#[test]
fn a_folder_that_was_copied_is_a_checkpoint_too() {
    let mut bucket = Bucket::default();
    let commit = full(&mut bucket);
    let artifacts = committed_objects(&commit, "s3://other/released").unwrap();
    assert_eq!(artifacts[2].url(), "s3://other/released/config.json");
    // One that needs objects of other steps needs them beside it.
    let (delta, _) = delta(&mut bucket);
    let artifacts = committed_objects(&delta, "s3://other/run/released").unwrap();
    assert_eq!(artifacts[1].url(), "s3://other/run/step-4/big.bin.y");
    assert_eq!(committed_objects(&delta, "s3://released").unwrap_err().code(), Code::Corrupt);
}
