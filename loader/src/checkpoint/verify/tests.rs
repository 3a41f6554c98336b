use std::path::Path;

use longshore_origin::OriginOptions;
use longshore_types::checkpoint::{AttemptId, StoredObject, StoredPiece, StoredTensor};

use super::*;

const MIB: usize = 1 << 20;

fn attempt(number: u8) -> AttemptId {
    AttemptId::from_bytes([number; 16])
}

fn content(len: usize, seed: u32) -> Vec<u8> {
    (0..len as u32).map(|at| (at ^ seed).wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect()
}

fn object(path: &str, bytes: &[u8], by: u8) -> StoredObject {
    let (size_bytes, checksum) = (bytes.len() as u64, BlockChecksum::of(bytes));
    StoredObject { path: path.into(), size_bytes, version: "v".into(), checksum, attempt: attempt(by) }
}

fn file(name: &str, bytes: &[u8], place: FilePlace) -> StoredFile {
    let blocks = bytes.chunks(MIB).map(BlockChecksum::of).collect();
    StoredFile { name: name.into(), size_bytes: bytes.len() as u64, checksum: BlockChecksum::of(bytes), blocks, place }
}

fn tensor(name: &str, file: u32, range: Range<usize>) -> StoredTensor {
    let length_bytes = range.len() as u64;
    let piece = StoredPiece {
        file,
        offset_bytes: range.start as u64,
        length_bytes,
        start: vec![0],
        shape: vec![length_bytes],
        checksum: BlockChecksum(0),
    };
    StoredTensor { name: name.into(), dtype: "U8".into(), shape: vec![length_bytes], pieces: vec![piece] }
}

/// A run in a folder: a whole file of 70 MiB, a delta of a file of 2 chunks whose first one an older object has, and an
/// empty file.
struct Run {
    folder: tempfile::TempDir,
    commit: Arc<Commit>,
}

impl Run {
    fn new() -> Run {
        let folder = tempfile::tempdir().unwrap();
        let chunk = CHUNK_BYTES as usize;
        let (whole, older) = (content(70 * MIB + 5, 1), content(2 * chunk, 2));
        let delta = [&older[chunk..], &content(3 * MIB + 7, 3)].concat();
        let mut pack = delta[chunk..].to_vec();
        pack.resize(chunk, 0);
        for (path, bytes) in
            [("step-2/whole", &whole), ("step-1/old", &older), ("step-2/d.pack", &pack), ("step-2/empty", &vec![])]
        {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let runs = [(1, 1), (2, 0)].map(|(object, first_chunk)| ChunkRun { object, first_chunk, count: 1 });
        let commit = Commit {
            attempt: attempt(2),
            step: 2,
            epoch: 1,
            created_ms: 1,
            world_size: 1,
            parent: None,
            delta_depth: 0,
            objects: vec![
                object("step-2/whole", &whole, 2),
                object("step-1/old", &older, 1),
                object("step-2/d.pack", &pack, 2),
                object("step-2/empty", b"", 2),
            ],
            files: vec![
                file("whole", &whole, FilePlace::Object(0)),
                file("delta", &delta, FilePlace::Chunks(runs.to_vec())),
                file("empty", b"", FilePlace::Object(3)),
            ],
            tensors: vec![
                tensor("first", 0, 0..8 * MIB),
                tensor("second", 0, 8 * MIB..70 * MIB),
                tensor("changed", 1, chunk..delta.len()),
            ],
            aliases: Vec::new(),
            metadata: Default::default(),
        };
        Run { folder, commit: Arc::new(commit) }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn flip(&self, name: &str, at: usize) {
        let path: &Path = &self.path(name);
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    async fn verify(&self) -> (Findings, Progress) {
        #[derive(clap::Parser)]
        struct Program {
            #[command(flatten)]
            options: OriginOptions,
        }
        let options = <Program as clap::Parser>::parse_from(["test"]).options;
        let origins = Origins::new(options).unwrap();
        let url = origins.canonical_url(self.folder.path().to_str().unwrap()).unwrap();
        let (progress, seen) = watch::channel(Progress::default());
        let findings = verify(&self.commit, &url, &origins, &progress).await.unwrap();
        (findings, seen.borrow().clone())
    }
}

fn named(findings: &Findings) -> Vec<(&str, Code)> {
    findings.problems.iter().map(|problem| (problem.object.as_str(), problem.error.code())).collect()
}

#[tokio::test]
async fn what_is_as_it_was_saved_is_read_once_and_whole() {
    let run = Run::new();
    let (findings, progress) = run.verify().await;
    assert_eq!((findings.count, named(&findings)), (0, vec![]));
    assert_eq!((progress.objects_done, progress.objects_total), (4, 4));
    let bytes = run.commit.size_bytes();
    assert_eq!((progress.bytes_done, progress.bytes_total), (bytes, bytes));
}

#[tokio::test]
async fn a_flipped_byte_is_found_and_its_object_and_tensor_are_named() {
    let run = Run::new();
    run.flip("step-2/whole", 66 * MIB);
    run.flip("step-2/d.pack", MIB + 3);
    // Another chunk of the older object is none of this checkpoint's, nor is what a chunk is padded with.
    run.flip("step-1/old", 5);
    run.flip("step-2/d.pack", 8 * MIB);
    let (findings, _) = run.verify().await;
    assert_eq!(named(&findings), [("step-2/whole", Code::Corrupt), ("step-2/d.pack", Code::Corrupt)]);
    let messages: Vec<&str> = findings.problems.iter().map(|problem| problem.error.message()).collect();
    assert!(messages[0].contains("file whole") && messages[0].contains("tensor second,"), "{messages:?}");
    assert!(messages[1].contains("file delta") && messages[1].contains("tensor changed,"), "{messages:?}");
}

#[tokio::test]
async fn what_is_gone_or_short_is_found() {
    let run = Run::new();
    std::fs::remove_file(run.path("step-1/old")).unwrap();
    std::fs::write(run.path("step-2/empty"), "x").unwrap();
    std::fs::write(run.path("step-2/whole"), content(70 * MIB, 1)).unwrap();
    let (findings, progress) = run.verify().await;
    assert_eq!(findings.count, 3, "{findings:?}");
    assert_eq!(named(&findings)[1], ("step-1/old", Code::NotFound));
    assert_eq!((progress.objects_done, progress.objects_total), (4, 4));
}
