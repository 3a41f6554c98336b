//! Saves through real engines to a fake S3 server and to folders: each ends committed and whole, or clearly failed with its
//! bytes kept.

#![allow(clippy::unwrap_used)]

mod copies;
mod deltas;
mod faults;
mod nodes;
mod plain;
mod sweeps;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use longshore_memory::Arena;
use longshore_origin::{OriginOptions, Origins};
use longshore_testkit::FakeOrigin;
use longshore_testkit::origin::OriginConfig;
use longshore_types::checkpoint::{AttemptId, Commit, FilePlace};
use longshore_types::{BlockChecksum, ByteSize, CHUNK_BYTES, Code};
use tempfile::TempDir;

use crate::catalog::Catalog;
use crate::engine::Engine;
use crate::options::CheckpointOptions;
use crate::plan::{PlanRequest, RankItems, SaveFile, SaveOptions, SavePlan, SaveTensor};
use crate::sink::{ChunkSink, NoSink};
use crate::slabs::{SlabGranted, SlabHello, SlabKey};
use crate::status::{SaveState, SaveStatus};
use crate::{SLAB_BYTES, slab_count};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
/// What the fake server takes as the least part, as S3 does.
const PART_BYTES: u64 = 5 << 20;

fn server() -> FakeOrigin {
    let fake = FakeOrigin::with(OriginConfig::default());
    fake.create_bucket("bucket");
    fake
}

fn origins_of(fake: &FakeOrigin) -> Origins {
    Origins::new(OriginOptions {
        s3_endpoint: Some(fake.url()),
        s3_region: Some("us-east-1".to_owned()),
        s3_access_key_id: Some("test".to_owned()),
        s3_secret_access_key: Some("test-secret".into()),
        attempts_max: 2,
        retry_pause_ms: 1,
        first_byte_timeout_ms: 2000,
        stall_timeout_ms: 2000,
        ..OriginOptions::default()
    })
    .unwrap()
}

/// One node: an engine over a folder.
struct Node {
    folder: TempDir,
    origins: Origins,
    sink: Arc<dyn ChunkSink>,
    engine: Arc<Engine>,
}

impl Node {
    async fn new(origins: &Origins) -> Node {
        Node::with_sink(origins, Arc::new(NoSink)).await
    }

    async fn with_sink(origins: &Origins, sink: Arc<dyn ChunkSink>) -> Node {
        let folder = TempDir::new().unwrap();
        let engine = open(&folder, origins, &sink).await;
        Node { folder, origins: origins.clone(), sink, engine }
    }

    /// The process ends in order and starts again.
    async fn restart(self) -> Node {
        self.engine.close(PATIENCE).await;
        drop(self.engine);
        let engine = open(&self.folder, &self.origins, &self.sink).await;
        Node { engine, ..self }
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(self.origins.clone())
    }

    async fn plan(&self, uri: &str, step: u64, options: &SaveOptions, content: &Content) -> SavePlan {
        let request = content.request(uri, step, options.clone(), 1, 0);
        (*self.engine.plan(request).await.unwrap()).clone()
    }

    /// Takes charge of a rank and gives all of its bytes.
    async fn save_rank(&self, plan: &SavePlan, rank: u32, content: &Content) -> AttemptId {
        let images = content.images(plan, rank);
        let inline = images.iter().filter(|(_, image)| image.len() <= 4 * MIB);
        let inline = inline.map(|(file, image)| (*file, Bytes::from(image.clone()))).collect();
        self.engine.start(plan.clone(), rank, inline).await.unwrap();
        for (file, image) in images.iter().filter(|(_, image)| image.len() > 4 * MIB) {
            self.stage(plan, *file, image).await;
        }
        plan.attempt
    }

    /// Copies a file into slabs as a training process does.
    async fn stage(&self, plan: &SavePlan, file: u32, image: &[u8]) {
        let (session, _) = self.engine.slabs().hello(SlabHello::default()).await.unwrap();
        for slab_index in 0..slab_count(image.len() as u64) {
            let key = SlabKey { attempt: plan.attempt, file, slab_index };
            let granted = session.acquire(key, PATIENCE).await.unwrap();
            let SlabGranted::Slab { slab, piece, offset_bytes, length_bytes } = granted else { continue };
            let at = (u64::from(slab_index) * SLAB_BYTES) as usize;
            let memory: File = session.pieces(piece as usize)[0].fd().try_clone_to_owned().unwrap().into();
            memory.write_all_at(&image[at..at + length_bytes as usize], offset_bytes).unwrap();
            let control: File = session.control().fd().try_clone_to_owned().unwrap().into();
            control.write_all_at(&2u32.to_le_bytes(), u64::from(slab) * 128).unwrap();
            session.seal(slab).unwrap();
        }
        drop(session);
    }

    async fn save(&self, uri: &str, step: u64, options: &SaveOptions, content: &Content) -> AttemptId {
        let plan = self.plan(uri, step, options, content).await;
        self.save_rank(&plan, 0, content).await
    }

    async fn until(&self, attempt: AttemptId, reached: impl FnMut(&Arc<SaveStatus>) -> bool) -> Arc<SaveStatus> {
        let mut status = self.engine.watch(&attempt).unwrap();
        let waited = tokio::time::timeout(PATIENCE, status.wait_for(reached)).await;
        match waited {
            Ok(status) => status.unwrap().clone(),
            Err(_) => panic!("not reached: {:#?}", self.engine.watch(&attempt).unwrap().borrow()),
        }
    }

    async fn ended(&self, attempt: AttemptId) -> Arc<SaveStatus> {
        self.until(attempt, |status| status.state.is_ended()).await
    }

    async fn committed(&self, attempt: AttemptId) -> Arc<SaveStatus> {
        let status = self.ended(attempt).await;
        assert_eq!(status.state, SaveState::Committed, "{status:#?}");
        status
    }

    async fn failed(&self, attempt: AttemptId, code: Code) -> Arc<SaveStatus> {
        let status = self.ended(attempt).await;
        assert_eq!(status.state, SaveState::Failed, "{status:#?}");
        assert_eq!(status.error.as_ref().unwrap().code(), code, "{status:#?}");
        status
    }

    /// Reads a checkpoint block by block as a loader would, and compares it with what was saved.
    async fn assert_whole(&self, uri: &str, step: u64, content: &Content) -> Arc<Commit> {
        let commit = self.catalog().get(uri, Some(step)).await.unwrap();
        let tensors: BTreeMap<&str, &Vec<u8>> = content.tensors.iter().map(|(t, b)| (t.name.as_str(), b)).collect();
        let mut files = vec![];
        for file in &commit.files {
            let image = self.read_file(uri, &commit, file).await;
            let blocks = BlockChecksum::of_blocks(&image);
            assert_eq!(blocks, file.blocks, "{}", file.name);
            assert_eq!(BlockChecksum::of(&image), file.checksum, "{}", file.name);
            files.push(image);
        }
        let mut seen = 0;
        for tensor in &commit.tensors {
            let wanted = tensors[tensor.name.rsplit('/').next().unwrap()];
            let mut found = vec![];
            for piece in &tensor.pieces {
                let range = piece.offset_bytes as usize..(piece.offset_bytes + piece.length_bytes) as usize;
                let bytes = &files[piece.file as usize][range];
                assert_eq!(BlockChecksum::of(bytes), piece.checksum, "{}", tensor.name);
                found.extend_from_slice(bytes);
            }
            assert!(found == *wanted, "{} has other bytes", tensor.name);
            seen += 1;
        }
        assert_eq!(seen, tensors.len());
        for (name, bytes) in &content.files {
            let index = commit.files.iter().position(|file| file.name == *name).unwrap();
            assert!(files[index] == *bytes, "{name} has other bytes");
        }
        commit
    }

    async fn read_file(&self, uri: &str, commit: &Commit, file: &longshore_types::checkpoint::StoredFile) -> Vec<u8> {
        let mut image = vec![];
        let mut ranges = vec![];
        match &file.place {
            FilePlace::Object(object) => ranges.push((*object, 0, file.size_bytes)),
            FilePlace::Chunks(runs) => {
                let mut left = file.size_bytes;
                for run in runs {
                    let length = left.min(u64::from(run.count) * CHUNK_BYTES);
                    ranges.push((run.object, u64::from(run.first_chunk) * CHUNK_BYTES, length));
                    left -= length;
                }
            }
        }
        for (object, start, length) in ranges {
            let artifact = commit.artifact_of(&self.origins.canonical_url(uri).unwrap(), object).unwrap();
            let pieces: Vec<Bytes> = self.origins.read(&artifact, start..start + length).try_collect().await.unwrap();
            pieces.iter().for_each(|piece| image.extend_from_slice(piece));
        }
        image
    }
}

async fn open(folder: &TempDir, origins: &Origins, sink: &Arc<dyn ChunkSink>) -> Arc<Engine> {
    let options = CheckpointOptions {
        dir: Some(folder.path().join("spool")),
        slab_dir: Some(folder.path().join("slabs")),
        memory: Some(ByteSize(2 * SLAB_BYTES)),
        disk: Some(ByteSize(2 << 30)),
        uploads: 3,
        part_bytes: ByteSize(PART_BYTES),
        resume_wait_ms: 100,
        ..CheckpointOptions::default()
    };
    Engine::open(options, origins.clone(), Arena::new(1 << 30), Arc::clone(sink)).await.unwrap()
}

/// What one rank saves.
#[derive(Clone, Default)]
struct Content {
    tensors: Vec<(SaveTensor, Vec<u8>)>,
    files: Vec<(String, Vec<u8>)>,
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Content {
    fn tensor(mut self, group: &str, name: &str, seed: u64, len: usize) -> Content {
        let tensor = SaveTensor {
            group: group.to_owned(),
            name: name.to_owned(),
            dtype: "U8".to_owned(),
            shape: vec![len as u64],
            start: vec![],
            piece_shape: vec![],
        };
        self.tensors.push((tensor, noise(seed, len)));
        self
    }

    fn file(mut self, name: &str, bytes: &[u8]) -> Content {
        self.files.push((name.to_owned(), bytes.to_vec()));
        self
    }

    /// A small model.
    fn small(seed: u64) -> Content {
        Content::default()
            .tensor("", "layers.0.weight", seed, 300_000)
            .tensor("", "layers.1.weight", seed + 1, 7)
            .tensor("optim", "exp_avg", seed + 2, 2 * MIB + 5)
            .file("config.json", format!("{{\"seed\":{seed}}}").as_bytes())
            .file("empty", b"")
    }

    fn request(&self, uri: &str, step: u64, options: SaveOptions, world_size: u32, rank: u32) -> PlanRequest {
        PlanRequest {
            uri: uri.to_owned(),
            step,
            world_size,
            ranks: vec![RankItems {
                rank,
                tensors: self.tensors.iter().map(|(tensor, _)| tensor.clone()).collect(),
                files: self
                    .files
                    .iter()
                    .map(|(name, bytes)| SaveFile { name: name.clone(), size_bytes: bytes.len() as u64 })
                    .collect(),
                aliases: vec![],
            }],
            options,
            join_timeout_ms: 10_000,
        }
    }

    /// The files of a rank, byte for byte.
    fn images(&self, plan: &SavePlan, rank: u32) -> Vec<(u32, Vec<u8>)> {
        let image = |file: &crate::plan::PlannedFile| {
            if !file.is_tensors() {
                return self.files.iter().find(|(name, _)| *name == file.name).unwrap().1.clone();
            }
            let mut image = file.header.clone();
            for planned in &file.tensors {
                assert_eq!(image.len() as u64, planned.offset_bytes);
                let is_it = |(tensor, _): &&(SaveTensor, Vec<u8>)| {
                    tensor.name == planned.tensor.name && tensor.group == planned.tensor.group
                };
                image.extend_from_slice(&self.tensors.iter().find(is_it).unwrap().1);
            }
            image
        };
        plan.files_of(rank).map(|file| (file as u32, image(&plan.files[file]))).collect()
    }
}
