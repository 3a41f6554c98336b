//! An engine, and a training process that copies into its slabs.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use longshore_checkpoint::{
    CheckpointOptions, Engine, NoSink, PlanRequest, RankItems, SLAB_BYTES, SaveFile, SaveOptions, SavePlan, SaveState,
    SaveStatus, SaveTensor, SlabGranted, SlabHello, SlabKey, SlabSession,
};
use longshore_memory::Arena;
use longshore_origin::{OriginOptions, Origins};
use longshore_types::checkpoint::{AttemptId, Commit, FilePlace};
use longshore_types::{BlockChecksum, ByteSize, Result};
use tempfile::TempDir;

pub const MIB: u64 = 1 << 20;
pub const SOON: Duration = Duration::from_secs(60);

/// Folders that outlive engines.
pub struct Place {
    pub disk: TempDir,
    _shm: TempDir,
    pub options: CheckpointOptions,
    /// Plan for an origin that does not answer.
    pub is_down: bool,
}

impl Place {
    pub fn new() -> Place {
        let disk = tempfile::tempdir().unwrap();
        let shm = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let options = CheckpointOptions {
            dir: Some(disk.path().join("spool")),
            slab_dir: Some(shm.path().to_owned()),
            memory: Some(ByteSize(6 * SLAB_BYTES)),
            // A budget of its own: how full this machine's disk is does not matter.
            disk: Some(ByteSize(8 << 30)),
            resume_wait_ms: 0,
            ..CheckpointOptions::default()
        };
        Place { disk, _shm: shm, options, is_down: false }
    }

    pub fn run_folder(&self) -> PathBuf {
        self.disk.path().join("run")
    }

    pub fn run(&self) -> String {
        if self.is_down { "s3://bucket/run".to_owned() } else { format!("file://{}", self.run_folder().display()) }
    }

    pub async fn open(&self) -> Arc<Engine> {
        self.open_with(self.options.clone()).await
    }

    pub async fn open_with(&self, options: CheckpointOptions) -> Arc<Engine> {
        let origin = OriginOptions {
            // Nobody listens there: an origin that is down.
            s3_endpoint: Some("http://127.0.0.1:9".to_owned()),
            s3_skip_signature: true,
            ..OriginOptions::default()
        };
        let origins = Origins::new(origin).unwrap();
        let _ = std::fs::create_dir_all(self.run_folder());
        let deadline = std::time::Instant::now() + SOON;
        loop {
            let opened = Engine::open(options.clone(), origins.clone(), Arena::new(2 << 30), Arc::new(NoSink)).await;
            match opened {
                Ok(engine) => return engine,
                // Memory of the sessions of an engine in this same process may still be going.
                Err(error) if error.message().contains("slab folder") && std::time::Instant::now() < deadline => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub fn attempt_folder(&self, attempt: &AttemptId) -> PathBuf {
        self.disk.path().join("spool/attempts").join(attempt.to_string())
    }

    /// Where slabs are.
    pub fn slab_folder(&self) -> PathBuf {
        self.options.slab_folder(&self.disk.path().join("spool"))
    }

    /// The plan of one rank's files.
    pub async fn plan(&self, engine: &Engine, step: u64, files: &[(&str, u64)], options: SaveOptions) -> SavePlan {
        let files = files.iter().map(|(name, size)| SaveFile { name: (*name).to_owned(), size_bytes: *size });
        let items = RankItems { files: files.collect(), ..RankItems::default() };
        self.plan_ranks(engine, step, vec![items], options).await
    }

    pub async fn plan_ranks(
        &self,
        engine: &Engine,
        step: u64,
        ranks: Vec<RankItems>,
        options: SaveOptions,
    ) -> SavePlan {
        let request =
            PlanRequest { uri: self.run(), step, world_size: ranks.len() as u32, ranks, options, join_timeout_ms: 0 };
        engine.plan(request).await.unwrap().as_ref().clone()
    }

    /// Reads every file of a committed step and compares it with what was saved, block by block and whole.
    pub fn check_commit(&self, plan: &SavePlan, contents: &[Vec<u8>]) -> Commit {
        let path = self.run_folder().join(format!("step-{}/_CKPT.json", plan.step));
        let commit = Commit::parse(&std::fs::read(&path).unwrap(), "commit").unwrap();
        assert_eq!(commit.attempt, plan.attempt);
        for (file, content) in commit.files.iter().zip(contents) {
            let object = |object: u32| {
                let stored = &commit.objects[object as usize];
                let bytes = std::fs::read(self.run_folder().join(&stored.path)).unwrap();
                assert_eq!(bytes.len() as u64, stored.size_bytes);
                assert_eq!(BlockChecksum::of(&bytes), stored.checksum, "{}", stored.path);
                bytes
            };
            let bytes = match &file.place {
                FilePlace::Object(index) => object(*index),
                FilePlace::Chunks(runs) => {
                    let mut bytes = Vec::new();
                    for run in runs {
                        let whole = object(run.object);
                        let start = run.first_chunk as usize * (16 << 20);
                        let end = (start + run.count as usize * (16 << 20)).min(whole.len());
                        bytes.extend_from_slice(&whole[start..end]);
                    }
                    bytes.truncate(file.size_bytes as usize);
                    bytes
                }
            };
            assert!(bytes == *content, "{} differs", file.name);
            assert_eq!(file.checksum, BlockChecksum::of(content));
            assert_eq!(file.blocks, BlockChecksum::of_blocks(content));
        }
        for tensor in &commit.tensors {
            for piece in &tensor.pieces {
                let at = piece.offset_bytes as usize;
                let bytes = &contents[piece.file as usize][at..at + piece.length_bytes as usize];
                assert_eq!(piece.checksum, BlockChecksum::of(bytes), "{}", tensor.name);
            }
        }
        commit
    }
}

/// Bytes that differ in every block, and by seed.
pub fn content(size: u64, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; size as usize];
    for word in bytes.chunks_mut(8) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
    bytes
}

/// What belongs into each file of a plan: its header, then noise.
pub fn contents(plan: &SavePlan, seed: u64) -> Vec<Vec<u8>> {
    let files = plan.files.iter().enumerate();
    files
        .map(|(index, file)| {
            let mut bytes = content(file.size_bytes, seed.wrapping_mul(1000) + index as u64);
            bytes[..file.header.len()].copy_from_slice(&file.header);
            bytes
        })
        .collect()
}

/// A tensor that is whole.
pub fn tensor(name: &str, shape: &[u64]) -> SaveTensor {
    SaveTensor {
        group: String::new(),
        name: name.to_owned(),
        dtype: "U8".to_owned(),
        shape: shape.to_vec(),
        start: vec![],
        piece_shape: vec![],
    }
}

/// A training process.
pub struct Client {
    session: SlabSession,
}

impl Client {
    pub async fn new(engine: &Engine) -> Client {
        let hello = SlabHello { uid: rustix::process::getuid().as_raw(), ..SlabHello::default() };
        Client { session: engine.slabs().hello(hello).await.unwrap().0 }
    }

    /// Copies and seals one slab.
    pub async fn slab(&self, attempt: AttemptId, file: u32, slab_index: u32, content: &[u8]) -> Result<()> {
        let key = SlabKey { attempt, file, slab_index };
        let granted = self.session.acquire(key, SOON).await?;
        let SlabGranted::Slab { slab, piece, offset_bytes, length_bytes } = granted else { return Ok(()) };
        let start = (u64::from(slab_index) * SLAB_BYTES) as usize;
        let piece = self.session.pieces(piece as usize).remove(0);
        let memory: File = piece.fd().try_clone_to_owned().unwrap().into();
        memory.write_all_at(&content[start..start + length_bytes as usize], offset_bytes).unwrap();
        let control: File = self.session.control().fd().try_clone_to_owned().unwrap().into();
        control.write_all_at(&2u32.to_le_bytes(), u64::from(slab) * 128).unwrap();
        self.session.seal(slab)
    }

    /// The service goes, this process stays.
    pub fn leave(self) {
        self.session.leave();
    }

    /// Takes a slab and never seals it.
    pub async fn take(&self, attempt: AttemptId, file: u32, slab_index: u32) {
        self.session.acquire(SlabKey { attempt, file, slab_index }, SOON).await.unwrap();
    }

    /// Copies all files of a rank.
    pub async fn stage(&self, plan: &SavePlan, rank: u32, contents: &[Vec<u8>]) -> Result<()> {
        for (index, file) in plan.files.iter().enumerate().filter(|(_, file)| file.rank == rank) {
            for slab in 0..longshore_checkpoint::slab_count(file.size_bytes) {
                self.slab(plan.attempt, index as u32, slab, &contents[index]).await?;
            }
        }
        Ok(())
    }
}

/// Waits for a state; panics when the save ends otherwise.
pub async fn reaches(engine: &Engine, attempt: &AttemptId, wanted: SaveState) -> Arc<SaveStatus> {
    let mut watch = engine.watch(attempt).unwrap();
    let reached = watch.wait_for(|status| status.state >= wanted || status.state.is_ended());
    let status = match tokio::time::timeout(SOON, reached).await {
        Ok(status) => status.unwrap().clone(),
        Err(_) => panic!("waited for {wanted:?}: {:?}", engine.watch(attempt).unwrap().borrow()),
    };
    assert!(
        status.state == wanted || (status.state < SaveState::Failed && status.state > wanted),
        "wanted {wanted:?}: {status:?}"
    );
    status
}

/// Stages all ranks with one client each, and waits for the commit.
pub async fn save(engine: &Arc<Engine>, plan: &SavePlan, contents: &[Vec<u8>]) -> Arc<SaveStatus> {
    for rank in 0..plan.world_size {
        engine.start(plan.clone(), rank, Vec::new()).await.unwrap();
        let client = Client::new(engine).await;
        client.stage(plan, rank, contents).await.unwrap();
        // The process lives until what it copied is safe.
        if rank + 1 == plan.world_size {
            reaches(engine, &plan.attempt, SaveState::LocalDurable).await;
        }
    }
    reaches(engine, &plan.attempt, SaveState::Committed).await
}

pub fn inline(plan: &SavePlan, contents: &[Vec<u8>], rank: u32) -> Vec<(u32, Bytes)> {
    let files = plan.files.iter().enumerate().filter(|(_, file)| file.rank == rank);
    files.map(|(index, _)| (index as u32, Bytes::from(contents[index].clone()))).collect()
}
